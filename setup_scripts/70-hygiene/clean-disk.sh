#!/usr/bin/env bash
# Makes room on a build server: always what is old, and more of it when the disk is nearly full. Never what a build that
# runs is using: the agent keeps its own workspaces and caches in order by itself.
set -euo pipefail

ROOT=${CLEAN_DISK_ROOT:-}
# Per cent used, of space or inodes, from which on everything goes that can be had again.
SHORT_FROM=${CLEAN_DISK_SHORT_FROM:-85}
OLD_DAYS=14

used_percent() {
    df --output=pcent,ipcent "$ROOT/" | tail -n 1 | tr -d '%-' | awk '{print ($1 > $2 + 0 ? $1 : $2 + 0)}'
}

remove_old() {
    local folder
    for folder in "$ROOT"/root/.cache "$ROOT"/home/*/.cache "$ROOT"/var/lib/build-agent/.cache; do
        [[ -d $folder ]] || continue
        find "$folder" -xdev -type f -atime "+$1" -mtime "+$1" -delete
        find "$folder" -xdev -mindepth 1 -type d -empty -delete
    done
    find "$ROOT/var/crash" "$ROOT/var/lib/systemd/coredump" -xdev -type f -delete 2>/dev/null || true
}

echo "disk: $(used_percent) % used"
remove_old "$OLD_DAYS"
if (($(used_percent) >= SHORT_FROM)); then
    echo "disk: short of room, removing package archives, caches older than a day and unused container images"
    remove_old 1
    if [[ -z $ROOT ]]; then
        apt-get clean || true
        journalctl --quiet --vacuum-size=100M || true
        if command -v podman >/dev/null && id build-agent >/dev/null 2>&1; then
            # Images that no container uses; those of running builds are in use. An hour: one may just have been pulled.
            runuser -u build-agent -- env --chdir=/ HOME=/var/lib/build-agent XDG_RUNTIME_DIR= \
                podman image prune --all --force --filter until=1h || true
        fi
    fi
fi
echo "disk: $(used_percent) % used"
