#!/usr/bin/env bash
# What the numbered scripts share, read by them and never run: their words, what they say and how they fail, packages
# in spite of a bad network, files written whole.
set -euo pipefail

# The scripts' own file of profiles and pins.
# shellcheck source=setup_scripts/profiles.sh
. "$(dirname "${BASH_SOURCE[0]}")/profiles.sh"

SETUP_STATE=${SETUP_STATE:-/var/lib/build-agent-setup}
# Seconds before the second, third, .. try of what the network failed.
SETUP_RETRY_WAITS=${SETUP_RETRY_WAITS:-5 15 45 90}
# A file system with less than this is full: dpkg cannot unpack anything into it.
FULL_BELOW_KIB=4096
FULL_BELOW_INODES=64
# Chosen on the command line of each script.
profile=full
script=$(basename "$0" .sh)
scratch=

# A line is written at once, whoever reads it at the other end of a pipe.
say() { printf '%s\n' "$*"; }

# fail REASON: says why, to the reader and to setup.sh, and ends the script.
fail() {
    printf 'failed: %s\n' "$*" >&2
    if [[ -n ${SETUP_REASON-} ]]; then
        printf '%s\n' "$*" 2>/dev/null >"$SETUP_REASON" || true
    fi
    exit 1
}

# begin WORDS..: reads the words that every script takes. The script has defined usage() and is to run as root.
begin() {
    while (($#)); do
        case $1 in
            --profile)
                if [[ $# -lt 2 || -z ${SCRIPTS[$2]-} ]]; then
                    usage >&2
                    exit 64
                fi
                profile=$2
                shift
                ;;
            -h | --help)
                usage
                exit 0
                ;;
            *)
                usage >&2
                exit 64
                ;;
        esac
        shift
    done
    [[ $EUID -eq 0 ]] || fail "run it as root"
    command -v apt-get >/dev/null || fail "this is no Debian: there is no apt-get"
    export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8
    # Not in /tmp, which may be what is full.
    scratch=$(mktemp -d -p /run build-agent-setup.XXXXXX 2>/dev/null || mktemp -d) ||
        fail "no scratch directory: No space left on device: $(full_file_systems)"
    trap clean_up EXIT
}

clean_up() {
    forbid_services_no_more
    rm -rf "$scratch"
}

is_booted() { [[ -d /run/systemd/system ]]; }

# full_file_systems: prints those with no room left, as "/var (12 KiB and 3 inodes free)", and fails if there is none.
full_file_systems() {
    local path mount free inodes found=() seen=' '
    for path in / /usr /var /var/cache/apt/archives /var/lib/dpkg /var/lib/apt/lists /var/log /tmp /run "$SETUP_STATE"; do
        [[ -e $path ]] || continue
        read -r mount free < <(df --output=target,avail -k "$path" | tail -n 1)
        read -r inodes < <(df --output=iavail "$path" | tail -n 1)
        [[ $seen != *" $mount "* ]] || continue
        seen+="$mount "
        # Some file systems count no inodes and say "-".
        if ((free < FULL_BELOW_KIB)) || [[ $inodes =~ ^[0-9]+$ ]] && ((inodes < FULL_BELOW_INODES)); then
            found+=("$mount ($free KiB and $inodes inodes free)")
        fi
    done
    ((${#found[@]})) || return 1
    (
        IFS=,
        echo "${found[*]}"
    )
}

# fail_full: names the file system that has no room; the log of apt says which where it asked before it wrote.
fail_full() {
    local where
    where=$(full_file_systems) ||
        where=$(sed -n "s/.*enough free space in \(.*[^.]\)\.\?$/\1/p" "$scratch/log" | head -n 1)
    fail "No space left on device: ${where:-$(fullest)}; make room there and run setup.sh again, it goes on here"
}

# The room was given back when what needed it was given up: the least room is the best guess.
fullest() {
    df --output=avail,target -k / /usr /var /tmp 2>/dev/null | tail -n +2 | sort -n | awk 'NR == 1 {print $2 " (" $1 " KiB free)"}'
}

# Packages.

is_installed() {
    [[ $(dpkg-query --show --showformat '${db:Status-Status}' "$1" 2>/dev/null) == installed ]]
}

# Debian's maintainer scripts ask this program before they start anything (policy 9.3.3.1); 101 forbids. What has to run
# now is started by the scripts; the rest begins with the server that is made from the image.
POLICY=/usr/sbin/policy-rc.d
POLICY_MARK='# of build-agent set-up'

forbid_services() {
    [[ -e $POLICY ]] || printf '#!/bin/sh\n%s\nexit 101\n' "$POLICY_MARK" >"$POLICY"
    chmod 755 "$POLICY"
}

forbid_services_no_more() {
    # Only ours: an image that is made in a container may have one of its own.
    if [[ -e $POLICY ]] && grep -qxF "$POLICY_MARK" "$POLICY"; then
        rm -f "$POLICY"
    fi
}

# Installs what the profile names for this script.
install_packages() {
    local wanted missing=() name
    mapfile -t wanted < <(packages_of "$script" "$profile")
    for name in "${wanted[@]}"; do
        is_installed "$name" || missing+=("$name")
    done
    if ((${#missing[@]} == 0)); then
        say "all ${#wanted[@]} packages are installed"
        return
    fi
    say "installing ${#missing[@]} of ${#wanted[@]} packages: ${missing[*]}"
    forbid_services
    retry "installing packages" install_once "${missing[@]}"
    forbid_services_no_more
}

# apt_upgrade: brings what the base image holds up to date, once, while the image is made.
apt_upgrade() {
    say "bringing the packages of the base up to date"
    forbid_services
    retry "upgrading packages" upgrade_once
    forbid_services_no_more
}

install_once() { mend_packages && update_lists && run_apt install --yes --no-install-recommends "$@"; }
upgrade_once() { mend_packages && update_lists && run_apt upgrade --yes --with-new-pkgs; }

# What a kill or a full disk left half done is finished first: apt refuses everything else until it is.
mend_packages() {
    dpkg --force-confdef --force-confold --configure -a >"$scratch/log" 2>&1 || {
        tail -n 20 "$scratch/log"
        # Some need another package to be there first; this brings it.
        update_lists && run_apt install --yes --fix-broken
    }
}

# The lists of an hour ago are new enough; those that a try has failed with are not.
update_lists() {
    if [[ -n $(find "$SETUP_STATE/lists-read" -mmin -60 2>/dev/null) ]]; then
        return
    fi
    say "reading the lists of packages"
    run_apt update || return
    mkdir -p "$SETUP_STATE"
    touch "$SETUP_STATE/lists-read" || true
}

# run_apt WORDS..: shows apt's lines as they come, without the noise, and keeps them to judge a failure by.
run_apt() {
    # Its own retries would hide a dead network for minutes; ours say what they wait for.
    apt-get --quiet \
        -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 -o DPkg::Options::=--force-confdef -o DPkg::Options::=--force-confold \
        -o Acquire::Retries=1 -o Acquire::http::Timeout=20 -o Acquire::https::Timeout=20 -o APT::Update::Error-Mode=any \
        "$@" 2>&1 </dev/null | tee "$scratch/log" |
        sed --unbuffered -e 's/.*\r//' -e '/^(Reading database/d' -e '/^Selecting previously/d' -e '/^Preparing to unpack/d' \
            -e '/^Reading package lists/d' -e '/^Building dependency tree/d' -e '/^Reading state information/d' -e '/^ *$/d'
}

FULL_WORDS="No space left on device|n't have enough free space|write error.*space"
NETWORK_WORDS='Temporary failure|Could not (resolve|connect|handshake)|(Unable|Cannot) (to )?(connect|initiate)|Connection (timed out|refused|reset|failed|closed)'
NETWORK_WORDS+='|Network is unreachable|No route to host|[Tt]imed out|[Tt]imeout|Failed to fetch|Some index files failed|Hash Sum mismatch|unexpected size|Error reading from server'

# retry WHAT COMMAND..: tries again, with longer and longer waits, what the network fails; anything else fails at once.
# The command leaves its output in $scratch/log.
retry() {
    local what=$1 wait waits tries=0 code began=$SECONDS
    shift
    read -ra waits <<<"$SETUP_RETRY_WAITS"
    for wait in "${waits[@]}" last; do
        tries=$((tries + 1)) code=0
        : >"$scratch/log"
        "$@" || code=$?
        ((code)) || return 0
        if grep -qE "$FULL_WORDS" "$scratch/log" || full_file_systems >/dev/null; then
            fail_full
        fi
        grep -qE "$NETWORK_WORDS" "$scratch/log" || fail "$what: $(last_error)"
        rm -f "$SETUP_STATE/lists-read"
        [[ $wait != last ]] || break
        say "network: $(last_error)"
        say "network: $what did not get through; trying again in $wait s (try $tries of $((${#waits[@]} + 1)))"
        sleep "$wait"
    done
    fail "network: $what did not get through in $tries tries over $((SECONDS - began)) s ($(last_error));" \
        "mend the network and run setup.sh again, it goes on here"
}

# The first complaint says what went wrong, those after it what followed.
last_error() {
    local line
    line=$(grep -m 1 -E '^(E|Err|W):|^dpkg: error|Could not|error' "$scratch/log") || line=$(tail -n 1 "$scratch/log")
    printf '%s' "${line:-it said nothing}"
}

# Files and units.

# put PATH [MODE]: writes what it reads to a file, whole or not at all, and says so when that changes something.
put() {
    local path=$1 mode=${2:-0644} new
    mkdir -p "$(dirname "$path")"
    new=$(mktemp "$path.XXXXXX") || fail_write "$path"
    cat >"$new" || fail_write "$path"
    chmod "$mode" "$new"
    if [[ ! -L $path && -f $path ]] && cmp -s "$new" "$path" && [[ $(stat -c %a "$path") == "${mode#0}" ]]; then
        rm -f "$new"
    else
        mv -fT "$new" "$path"
        say "wrote $path"
    fi
}

fail_write() {
    local where
    if where=$(full_file_systems); then
        fail "No space left on device: $where; $1 could not be written"
    fi
    fail "$1 could not be written"
}

# enable UNIT..: at boot, and now where systemd runs. disable UNIT..: neither.
enable() {
    systemctl --quiet enable "$@"
    if is_booted; then
        systemctl daemon-reload
        # A container lacks what some units ask for: systemd passes over those by itself.
        systemctl --no-block restart "$@"
    fi
    say "enabled: $*"
}

disable() {
    local unit
    for unit in "$@"; do
        # One that the base does not have is as good as disabled.
        systemctl --quiet disable "$unit" 2>/dev/null || true
        ! is_booted || systemctl --quiet stop "$unit" 2>/dev/null || true
    done
    say "not started at boot: $*"
}
