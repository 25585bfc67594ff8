#!/usr/bin/env bash
# A container engine for builds: podman, rootless, under the name docker too. No daemon, no socket, no root.
set -euo pipefail
# shellcheck source=setup_scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

usage() {
    cat <<'USAGE'
usage: 45-containers.sh [--profile minimal|full]

Installs podman and sets it up for rootless containers.
USAGE
}

configure() {
    put /etc/containers/containers.conf.d/10-build-agent.conf <<'CONF'
[containers]
# A build's containers go the way of its processes: no state in a daemon, no log in the journal.
log_driver = "k8s-file"

[engine]
# Build users have no login session, so no systemd of their own that could keep cgroups and events.
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "crun"
CONF
    put /etc/containers/registries.conf.d/10-build-agent.conf <<'CONF'
# `docker run alpine` means what it means everywhere.
unqualified-search-registries = ["docker.io"]
CONF
    # Or the command `docker` reminds at each call that it is podman.
    put /etc/containers/nodocker </dev/null
}

check_sub_ids() {
    grep -q '^build-agent:' /etc/subuid /etc/subgid || fail "build-agent has no subordinate ids: run 20-users first"
    say "subordinate ids of build-agent: $(sed -n 's/^build-agent://p' /etc/subuid)"
}

begin "$@"
install_packages
# An API for all users, and a job that looks for newer images: neither is for a build server.
disable podman.socket podman.service podman-auto-update.timer podman-restart.service
configure
check_sub_ids
say "$(podman --version)"
