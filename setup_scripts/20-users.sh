#!/usr/bin/env bash
# The users of a build server: the one that the agent runs as, with subordinate ids for rootless containers, and modes
# that keep users out of each other's files.
set -euo pipefail
# shellcheck source=setup_scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

usage() {
    cat <<'USAGE'
usage: 20-users.sh [--profile minimal|full]

Makes the user build-agent and closes users' files to each other.
USAGE
}

USER_NAME=build-agent
# What rootless containers map their users to: 65,536 ids, above those that adduser gives to people.
SUB_IDS=(231072 65536)

make_user() {
    if id "$USER_NAME" >/dev/null 2>&1; then
        say "the user is there: $(id "$USER_NAME")"
        return
    fi
    # As the package's sysusers.d has it, which then finds the user made. Here, because rights are given by its number.
    put "$scratch/build-agent.conf" <<<"u $USER_NAME - \"Build agent\" /var/lib/build-agent /usr/sbin/nologin" >/dev/null
    systemd-sysusers "$scratch/build-agent.conf"
    say "made the user: $(id "$USER_NAME")"
}

give_sub_ids() {
    local file
    for file in /etc/subuid /etc/subgid; do
        { grep -v "^$USER_NAME:" "$file" 2>/dev/null || true; } >"$scratch/ids"
        echo "$USER_NAME:${SUB_IDS[0]}:${SUB_IDS[1]}" >>"$scratch/ids"
        put "$file" <"$scratch/ids"
    done
}

close_homes() {
    # New homes, and files that people make when they log in, are not for all to read.
    sed -e 's/^UMASK\s.*/UMASK\t\t027/' -e 's/^#\?HOME_MODE\s.*/HOME_MODE\t0700/' /etc/login.defs >"$scratch/login.defs"
    put /etc/login.defs <"$scratch/login.defs"
    put /etc/profile.d/build-agent-umask.sh <<<'umask 027'
    chmod 0700 /root
}

begin "$@"
make_user
give_sub_ids
close_homes
