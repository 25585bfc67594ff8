#!/usr/bin/env bash
# What is in an image, in one place: the scripts of each profile in their order, and the Debian packages that a script
# installs for it. The one line to change for one more package; docs/build-server.md says what else a language takes.
# They are for those who read this file.
# shellcheck disable=SC2034
set -euo pipefail

# shellcheck source=setup_scripts/pins.sh
. "$(dirname "${BASH_SOURCE[0]}")/pins.sh"

# minimal: what the agent needs, and builds in Python and shell. full: everything.
declare -A SCRIPTS=(
    [minimal]="10-base 20-users 35-tools 50-agent 60-hardening 70-hygiene"
    [full]="10-base 20-users 30-languages 35-tools 40-databases 45-containers 46-browser 50-agent 60-hardening 70-hygiene"
)

# PROFILE:SCRIPT, or SCRIPT alone where all profiles have the same.
declare -A PACKAGES=(
    # iproute2 and procps to look at a server; python3-pytest runs the checks, so that they need no network.
    [10-base]="ca-certificates dbus iproute2 locales lsb-release openssh-server procps python3 python3-pytest
        systemd-timesyncd tzdata"

    [30-languages]="
        python$PYTHON_VERSION python$PYTHON_VERSION-dev python3-dev python3-pip python3-setuptools python3-venv python3-wheel
        nodejs npm
        ruby$RUBY_VERSION ruby ruby-dev bundler
        golang-$GO_VERSION-go golang-go
        openjdk-$JAVA_VERSION-jdk-headless maven
        gcc-$GCC_VERSION g++-$GCC_VERSION build-essential clang gdb
        php$PHP_VERSION-cli php$PHP_VERSION-curl php$PHP_VERSION-mbstring php$PHP_VERSION-xml php$PHP_VERSION-zip composer"

    # redis-server: the checks run a build through a queue of their own.
    [minimal:35-tools]="curl git openssh-client python3-venv redis-server unzip xz-utils zip"
    [full:35-tools]="curl git openssh-client python3-venv redis-server unzip xz-utils zip
        autoconf automake bzip2 cmake file git-lfs jq less libtool make ninja-build patch pkg-config rsync shellcheck
        sqlite3 strace tree wget zstd"

    [40-databases]="postgresql-$POSTGRESQL_VERSION postgresql-client-$POSTGRESQL_VERSION libpq-dev
        mariadb-server mariadb-client libmariadb-dev redis-server redis-tools"

    # The runtime, and what rootless containers take: user name spaces, a network and a file system in user space.
    [45-containers]="podman podman-docker buildah crun catatonit containernetworking-plugins fuse-overlayfs slirp4netns uidmap"

    # Fonts, or a page is rendered as boxes.
    [46-browser]="chromium chromium-driver fonts-dejavu-core fonts-liberation fonts-noto-color-emoji"

    [60-hardening]="nftables openssh-server"

    [70-hygiene]="logrotate"
)

# packages_of SCRIPT PROFILE: prints the packages, one a line.
packages_of() {
    local words=${PACKAGES[$2:$1]-${PACKAGES[$1]-}}
    # Cut at blanks and line ends: the names hold neither.
    # shellcheck disable=SC2086
    printf '%s\n' $words
}
