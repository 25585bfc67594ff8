#!/usr/bin/env bash
# Installs the agent from its Debian package: program, user, directories, default settings and unit. Nothing is started.
# Run again, it brings the package up to date and leaves settings and secrets alone.
set -euo pipefail
# shellcheck source=setup_scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

usage() {
    cat <<'USAGE'
usage: 50-agent.sh [--deb FILE] [--no-enable]

Installs the Debian package build-agent.

  --deb FILE   this package; without it the newest ../dist/build-agent_*.deb, and in a checkout that has none, one that
               is built there
  --no-enable  the agent does not start at boot
USAGE
}

deb='' enable=yes
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

read_words() {
    while (($#)); do
        case $1 in
            --deb)
                [[ $# -ge 2 && -n $2 ]] || wrong
                deb=$2
                shift
                ;;
            --no-enable) enable=no ;;
            -h | --help)
                usage
                exit 0
                ;;
            *) wrong ;;
        esac
        shift
    done
}

wrong() {
    usage >&2
    exit 64
}

find_deb() {
    if [[ -z $deb ]]; then
        # The newest; their names hold no blanks.
        # shellcheck disable=SC2012
        deb=$(ls -t "$here"/../dist/build-agent_*.deb 2>/dev/null | head -n 1) || true
    fi
    if [[ -z $deb && -x $here/../packaging/deb/build.sh ]]; then
        say "building the package from $(realpath "$here/..")"
        "$here/../packaging/deb/build.sh" --output "$scratch" ||
            fail "the package could not be built here; build it elsewhere (make deb) and give it with --deb"
        deb=$(compgen -G "$scratch/build-agent_*.deb")
    fi
    [[ -n $deb ]] || fail "there is no package: build one in a checkout (make deb) and give it with --deb"
    [[ -f $deb ]] || fail "--deb $deb: no such file"
    deb=$(realpath "$deb")
    [[ $(dpkg-deb --field "$deb" Package 2>/dev/null) == build-agent ]] || fail "$deb is no package of build-agent"
}

# Python loads modules when they are first needed: an agent whose files are exchanged would run half of each version.
refuse_running() {
    if is_booted && systemctl --quiet is-active build-agent.service; then
        fail "build-agent is running; drain and stop it first: systemctl stop build-agent"
    fi
}

install_once() {
    # The same version again is installed again: of a checkout that changes, the version does not tell.
    mend_packages && update_lists && run_apt install --yes --no-install-recommends --reinstall --allow-downgrades "$deb"
}

read_words "$@"
# Without words: those above are read already.
# shellcheck disable=SC2119
begin
find_deb
refuse_running
say "installing $(basename "$deb")"
forbid_services
retry "installing the agent" install_once
forbid_services_no_more
if [[ $enable == no ]]; then
    systemctl --quiet disable build-agent.service
    say "build-agent.service does not start at boot"
fi
say "$(build-agent --version) is installed"
# A fault in the settings would be found only when the agent starts, on a server made from this one.
build-agent config check
