#!/usr/bin/env bash
# The base of a build server: Debian's packages up to date, locale, time, a journal with limits, and nothing that changes
# a running server by itself.
set -euo pipefail
# shellcheck source=setup_scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

usage() {
    cat <<'USAGE'
usage: 10-base.sh [--profile minimal|full]

Brings the base up to date and sets locale, time, journal and apt.
USAGE
}

check_debian() {
    local codename
    codename=$(. /etc/os-release && echo "${VERSION_CODENAME-}")
    [[ $codename == "$DEBIAN_CODENAME" ]] ||
        fail "this is ${codename:-no Debian}: the scripts are written for Debian $DEBIAN_VERSION ($DEBIAN_CODENAME)"
}

# Servers are replaced, not changed: what is upgraded behind a build's back is another server than the one verified.
stop_upgrades() {
    put /etc/apt/apt.conf.d/90build-agent <<'CONF'
// A server stays as its image was verified; a newer image brings newer packages.
APT::Periodic::Enable "0";
APT::Install-Recommends "false";
// Builds that install packages leave no archives of them behind.
Binary::apt::APT::Keep-Downloaded-Packages "false";
CONF
    if is_installed unattended-upgrades; then
        say "removing unattended-upgrades"
        retry "removing unattended-upgrades" run_apt purge --yes unattended-upgrades
    fi
    disable apt-daily.timer apt-daily-upgrade.timer man-db.timer
    # A package that is upgraded in a later image would enable them again.
    systemctl --quiet mask apt-daily.timer apt-daily-upgrade.timer
}

set_locale() {
    # C.UTF-8 is there without anything; en_US.UTF-8 is what test suites ask for.
    put /etc/locale.gen <<<'en_US.UTF-8 UTF-8'
    if ! locale -a 2>/dev/null | grep -qx en_US.utf8; then
        say "making locale en_US.UTF-8"
        locale-gen >/dev/null
    fi
    put /etc/default/locale <<<'LANG=C.UTF-8'
}

# Servers stand beside each other in logs; a clock that is wrong by a minute makes a server refuse builds.
set_time() {
    echo Etc/UTC >"$scratch/timezone"
    put /etc/timezone <"$scratch/timezone"
    ln -sfn /usr/share/zoneinfo/Etc/UTC /etc/localtime
    put /etc/systemd/timesyncd.conf.d/10-build-agent.conf <<'CONF'
[Time]
# The first answers on EC2 alone and needs no way out; the next is asked when one does not answer.
NTP=169.254.169.123 0.debian.pool.ntp.org 1.debian.pool.ntp.org 2.debian.pool.ntp.org
CONF
    # One that the base image brought, as on EC2, does the same.
    if systemctl --quiet is-enabled chrony.service 2>/dev/null; then
        say "time: chrony is enabled and stays"
    else
        enable systemd-timesyncd.service
    fi
}

limit_journal() {
    put /etc/systemd/journald.conf.d/10-build-agent.conf <<'CONF'
[Journal]
# Kept over a restart: why a server died is read afterwards.
Storage=persistent
SystemMaxUse=500M
SystemKeepFree=1G
SystemMaxFileSize=50M
MaxRetentionSec=1month
CONF
    if is_booted; then
        systemctl restart systemd-journald.service
    fi
}

begin "$@"
check_debian
stop_upgrades
apt_upgrade
install_packages
set_locale
set_time
limit_journal
