#!/usr/bin/env bash
# Installs the Debian packages that are missing for "demo", "test" or "deb", and nothing when nothing is.
# One line says what each is for. Needs root or sudo only when something has to be installed.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
purpose=${1:?usage: packages.sh demo|test|deb}
packages=()
lines=()

# need PACKAGE REASON: notes a package to install.
need() {
    packages+=("$1")
    lines+=("$1: $2")
}

# need_command COMMAND PACKAGE REASON: notes the package unless the command is there.
need_command() {
    if ! command -v "$1" >/dev/null; then
        need "$2" "$3"
    fi
}

need_python() {
    local python status=0
    python=$("$here/python.sh") || status=$?
    case $status in
        0) ;;
        2) need "$(venv_package "$python")" "makes virtual environments with $python" ;;
        *)
            # shellcheck source=/dev/null
            if [[ $(. /etc/os-release && echo "$ID-${VERSION_ID-}") == ubuntu-22.04 ]]; then
                # Its python3 is 3.10, and 3.11 stands beside it.
                need python3.11 "runs the agent"
                need python3.11-venv "makes virtual environments"
            else
                need python3 "runs the agent"
                need python3-venv "makes virtual environments"
            fi
            ;;
    esac
}

# Debian names the package after the version; python3-venv is for whichever version python3 is.
venv_package() {
    if [[ $1 == /usr/bin/python3 || $1 == "$(readlink -f /usr/bin/python3)" ]]; then
        echo python3-venv
    else
        echo "$(basename "$1")-venv"
    fi
}

need_headers() {
    local python=$1
    if ! "$python" -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(
            os.path.join(sysconfig.get_path("include"), "Python.h")))' 2>/dev/null; then
        need python3-dev "headers for systemd-python"
    fi
}

# systemd-python is built from source: the journal's handler and the tests of it need it.
need_systemd_build() {
    local python
    need_command gcc gcc "builds systemd-python"
    if [[ ! -e /usr/include/stdlib.h ]]; then
        need libc6-dev "builds systemd-python"
    fi
    need_command pkg-config pkg-config "builds systemd-python"
    if ! { command -v pkg-config >/dev/null && pkg-config --exists libsystemd; }; then
        need libsystemd-dev "builds systemd-python"
    fi
    if python=$("$here/python.sh"); then
        need_headers "$python"
    else
        # Python itself is on the list by now, so its headers can't be here.
        need python3-dev "headers for systemd-python"
    fi
}

# The package is built for the system's own Python, whichever runs the tests.
need_deb_build() {
    need_command dh debhelper "builds the Debian package"
    need_systemd_build
    if ! [[ -x /usr/bin/python3 ]] || ! /usr/bin/python3 -c 'import venv, ensurepip' 2>/dev/null; then
        need python3-venv "makes the environment in the Debian package"
    fi
    need_headers /usr/bin/python3
}

if [[ $purpose == deb ]]; then
    need_command git git "gives the Debian package its version"
    need_deb_build
else
    need_command setpriv util-linux "ties the servers' lives to ours"
    need_command redis-server redis-server "the queue"
    need_command git git "checks out what is built"
    need_python
    if [[ $purpose == test ]]; then
        need_command shellcheck shellcheck "lints the shell scripts"
        need_command ps procps "tests look at processes"
        if ! compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null && ! command -v initdb >/dev/null; then
            need postgresql "the tests' database"
        fi
        # Brings what systemd-python takes, too.
        need_deb_build
        need_command lintian lintian "checks the Debian package"
        need_command mmdebstrap mmdebstrap "makes the root filesystem that tests boot"
        need_command systemd-nspawn systemd-container "boots it"
        need_command ip iproute2 "gives each machine a network"
        need_command nft nftables "leads it out"
        need_command ssh openssh-client "logs in to it"
        need_command qemu-system-x86_64 qemu-system-x86 "boots one with a kernel of its own"
        need_command mkfs.ext4 e2fsprogs "makes its disk"
        # Ubuntu has it as a snap alone, which comes from elsewhere: its tests are skipped there.
        # shellcheck source=/dev/null
        if [[ $(. /etc/os-release && echo "$ID") == debian ]]; then
            need_command chromium chromium "shows the console's pages"
        fi
        need_command packer packer "reads and runs its template"
        need_command vagrant vagrant "reads the Vagrantfile"
    fi
fi

if [[ ${#packages[@]} -eq 0 ]]; then
    exit 0
fi
printf 'Installing %s\n' "${lines[@]}"

if ! command -v apt-get >/dev/null; then
    echo "This is no Debian or Ubuntu: install what the lines above name with your own package manager." >&2
    exit 1
fi
if [[ $EUID -eq 0 ]]; then
    exec "$here/install.sh" "${packages[@]}"
elif command -v sudo >/dev/null; then
    # sudo drops the environment, and with it the way to the package mirror.
    proxies=()
    for name in http_proxy https_proxy no_proxy; do
        if [[ -n ${!name-} ]]; then
            proxies+=("$name=${!name}")
        fi
    done
    exec sudo env "${proxies[@]}" "$here/install.sh" "${packages[@]}"
else
    echo "Neither root nor sudo: have root run this, then try again:" >&2
    echo "    $here/install.sh ${packages[*]}" >&2
    exit 1
fi
