#!/usr/bin/env bash
# Keeps a server that builds for weeks from filling its disk: logs are rotated, old files in /tmp and in caches go, and
# what containers have left goes when room is short.
set -euo pipefail
# shellcheck source=setup_scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

usage() {
    cat <<'USAGE'
usage: 70-hygiene.sh [--profile minimal|full]

Sets up log rotation and the clean-up of temporary files and caches.
USAGE
}

rotate_logs() {
    # By size too, so that a program that complains all day does not fill the disk until its month is over.
    put /etc/logrotate.d/00-build-agent <<'CONF'
# Holds for all files after this one.
maxsize 100M
compress
CONF
    enable logrotate.timer
}

age_files() {
    # Debian's own tmp.conf keeps them for ever; a file of its name in /etc stands in for it.
    put /etc/tmpfiles.d/tmp.conf <<'CONF'
# A running build keeps its files young; those of builds that left them are gone after this.
q /tmp 1777 root root 2d
q /var/tmp 1777 root root 7d
CONF
    enable systemd-tmpfiles-clean.timer
}

clean_disk() {
    local files
    files=$(cd "$(dirname "${BASH_SOURCE[0]}")/70-hygiene" && pwd)
    put /usr/local/sbin/build-agent-clean-disk 0755 <"$files/clean-disk.sh"
    put /etc/systemd/system/build-agent-clean-disk.service <"$files/build-agent-clean-disk.service"
    put /etc/systemd/system/build-agent-clean-disk.timer <"$files/build-agent-clean-disk.timer"
    enable build-agent-clean-disk.timer
}

begin "$@"
install_packages
rotate_logs
age_files
clean_disk
# What this set-up has fetched.
apt-get clean
say "removed the archives of packages"
