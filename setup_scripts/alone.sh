#!/usr/bin/env bash
# Makes a server that is set up a whole build farm by itself, to try and to develop with: Redis beside the agent, a database
# in SQLite, the agent started. A server from an image needs none of it: its settings come from outside. Can be run again.
set -euo pipefail
# shellcheck source=setup_scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

usage() {
    cat <<'USAGE'
usage: alone.sh

Makes this server, which setup.sh has set up, a whole build farm: starts Redis, makes the database, starts the agent.
USAGE
}

case ${1-} in
    '') ;;
    -h | --help)
        usage
        exit 0
        ;;
    *)
        usage >&2
        exit 64
        ;;
esac

command -v build-agent >/dev/null || fail "build-agent is not here: run setup.sh first"
systemctl enable --quiet --now redis-server.service
runuser -u build-agent -- build-agent db upgrade
systemctl restart build-agent.service
say "this machine builds: runuser -u build-agent -- build-agent submit FILE --follow"
