#!/usr/bin/env bash
# Installs Debian packages, as root, so that no service of theirs starts now or at the next boot: the demo and the
# tests start servers of their own, and a developer's machine keeps its ports.
set -euo pipefail

policy=/usr/sbin/policy-rc.d
no_cluster=/etc/postgresql-common/createcluster.d/build-agent.conf
log=$(mktemp)
undo=()
clean_up() {
    rm -f "$log" "${undo[@]}"
}
trap clean_up EXIT

quietly() {
    if ! "$@" >"$log" 2>&1; then
        cat "$log" >&2
        echo "Failed: $*" >&2
        exit 1
    fi
}

is_installed() {
    [[ $(dpkg-query --show --showformat '${db:Status-Status}' "$1" 2>/dev/null) == installed ]]
}

# A service that was here before is its owner's to start and stop.
silenced=()
for service in redis-server postgresql; do
    if ! is_installed "$service"; then
        silenced+=("$service")
    fi
done

# Maintainer scripts ask this program before they start anything (Debian policy 9.3.3.1); 101 forbids.
if [[ ! -e $policy ]]; then
    undo+=("$policy")
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
fi
# PostgreSQL's package makes a cluster and starts it at each boot unless told not to.
mkdir -p "$(dirname "$no_cluster")"
undo+=("$no_cluster")
echo 'create_main_cluster = false' >"$no_cluster"

export DEBIAN_FRONTEND=noninteractive
# Another apt at work (unattended upgrades on a fresh machine) is waited for.
wait_for_lock=(-o DPkg::Lock::Timeout=300)
quietly apt-get "${wait_for_lock[@]}" update -q
quietly apt-get "${wait_for_lock[@]}" install -q -y --no-install-recommends "$@"

for service in "${silenced[@]}"; do
    if is_installed "$service"; then
        quietly update-rc.d "$service" disable
    fi
done
