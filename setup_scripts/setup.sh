#!/usr/bin/env bash
# Turns a bare Debian server into a build server: runs the numbered scripts of a profile in order, as root. Run again, it
# passes over what is done and goes on where it was, whatever ended it. docs/build-server.md says what each profile holds.
set -euo pipefail

usage() {
    cat <<'USAGE'
usage: setup.sh --profile minimal|full [--deb FILE] [--only NN] [--list]

Runs the set-up scripts of a profile, in order; those that are done and unchanged are passed over.

  --profile P   which scripts, and which packages (profiles.sh)
  --deb FILE    the agent's Debian package; without it ../dist/build-agent_*.deb, else the checkout around this folder
  --only NN     run this script alone, done or not: 35, or 35-tools
  --list        print the scripts and whether each is done, and run none

Kept in /var/lib/build-agent-setup (SETUP_STATE):
  unfinished    there from the first moment to the good end; a server that has it does not join the queue
  progress      a JSON line for each thing that begins or ends
  done/         a stamp for each script that is done
  result        the exit code, written last

Exit codes: 0 done, 1 a script failed, 64 wrong words, 75 another set-up is at work.
USAGE
}

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=setup_scripts/lib.sh
. "$here/lib.sh"

state=$SETUP_STATE
profile='' deb='' only='' list=no
child='' current='' current_began=0
# How long a new set-up waits for what a killed one has left running, such as dpkg.
ORPHANS_S=${SETUP_ORPHANS_S:-600}
# Given up when the disk is full, so that the end can be put on record.
RESERVE_KIB=64

# With the time, as every line of the scripts gets it.
say() { printf '%(%Y-%m-%dT%H:%M:%SZ)T setup: %s\n' -1 "$*"; }

wrong() {
    printf 'setup.sh: %s\n' "$*" >&2
    usage >&2
    exit 64
}

read_words() {
    while (($#)); do
        case $1 in
            --profile | --deb | --only)
                [[ $# -ge 2 ]] || wrong "$1 needs a word after it"
                declare -g "${1#--}=$2"
                shift
                ;;
            --list) list=yes ;;
            -h | --help)
                usage
                exit 0
                ;;
            *) wrong "what is $1?" ;;
        esac
        shift
    done
    [[ -n $profile ]] || wrong "--profile is missing"
    [[ -n ${SCRIPTS[$profile]-} ]] || wrong "no profile $profile; there are: $(tr ' ' '\n' <<<"${!SCRIPTS[*]}" | sort | xargs)"
    [[ -z $deb || -f $deb ]] || wrong "--deb $deb: no such file"
    [[ -z $only || -n $(chosen) ]] || wrong "--only $only: profile $profile has ${SCRIPTS[$profile]}"
}

# chosen: prints the names of the scripts to run.
chosen() {
    local name
    for name in ${SCRIPTS[$profile]}; do
        if [[ -z $only || $name == "$only" || ${name%%-*} == "$only" ]]; then
            echo "$name"
        fi
    done
}

find_deb() {
    local found
    if [[ -z $deb ]] && found=$(compgen -G "$here/../dist/build-agent_*.deb"); then
        # The newest; their names hold no blanks.
        # shellcheck disable=SC2012,SC2086
        deb=$(ls -t $found | head -n 1)
    fi
    [[ -z $deb ]] || deb=$(realpath "$deb")
}

# stamp_of SCRIPT: prints a checksum of all that decides what the script does. A script with another one runs again.
stamp_of() {
    {
        cat "$here/$1.sh" "$here"/{lib,pins,profiles}.sh
        [[ ! -d $here/$1 ]] || find "$here/$1" -type f -print0 | sort -z | xargs -0r cat
        echo "$profile"
        if [[ $1 == 50-agent ]]; then
            agent_digest
        fi
    } | sha256sum | cut -d ' ' -f 1
}

# The package, or the checkout that the agent is installed from.
agent_digest() {
    if [[ -n $deb ]]; then
        sha256sum <"$deb"
    elif [[ -d $here/../agent ]]; then
        find "$here"/../{agent,systemd,pyproject.toml} -type f ! -path '*/__pycache__/*' -print0 | sort -z | xargs -0r sha256sum
    fi
}

is_done() { [[ -f $state/done/$1 && $(<"$state/done/$1") == "$(stamp_of "$1")" ]]; }

show_list() {
    local name word
    for name in $(chosen); do
        word='to do'
        if is_done "$name"; then
            word='done'
        elif [[ -f $state/done/$name ]]; then
            word=changed
        fi
        printf '%-14s %s\n' "$name" "$word"
    done
}

# One at a time. The scripts hold the lock with us, so what a killed set-up has left at work is waited for.
take_lock() {
    exec 9>>"$state/lock"
    local waited=0 pid
    until flock --nonblock 9; do
        pid=$(<"$state/pid") 2>/dev/null || pid=''
        if [[ -n $pid ]] && kill -0 "$pid" 2>/dev/null && [[ $(tr '\0' ' ' <"/proc/$pid/cmdline") == *setup.sh* ]]; then
            say "another set-up is at work: process $pid"
            exit 75
        fi
        ((waited)) || say "a set-up that was killed has left processes at work; waiting for them: $(holders)"
        if ((waited >= ORPHANS_S)); then
            say "they have not ended within $ORPHANS_S s: $(holders)"
            exit 75
        fi
        sleep 1
        waited=$((waited + 1))
    done
    echo $$ >"$state/pid"
}

holders() {
    local file pid
    for file in /proc/[0-9]*/fd/9; do
        pid=${file#/proc/} pid=${pid%%/*}
        if [[ $pid != "$$" && $file -ef $state/lock ]]; then
            printf '%s (%s) ' "$pid" "$(cat "/proc/$pid/comm" 2>/dev/null || true)"
        fi
    done
}

# From the first moment: a server that is set up in part must never join the queue, whatever ends us.
mark_unfinished() {
    say_unfinished "it is at work, or was killed" &&
        rm -f "$state/result" "$state/reason" &&
        head -c "${RESERVE_KIB}K" /dev/zero >"$state/reserve" || return
    say "profile $profile: $(chosen | xargs)"
}

say_unfinished() {
    printf 'The set-up of profile %s has not come to its good end: %s.\nRun it again: %s\n' \
        "$profile" "$1" "$here/setup.sh --profile $profile" >"$state/unfinished"
}

# progress SCRIPT STATE SECONDS
progress() {
    printf '{"at":"%(%Y-%m-%dT%H:%M:%SZ)T","script":"%s","state":"%s","seconds":%d}\n' -1 "$@" >>"$state/progress"
}

# Each line at once, with its time and whose it is. One that cannot be written, to a log on a full disk, is dropped: the
# script must not die of it.
prefix() {
    local line
    while IFS= read -r line || [[ -n $line ]]; do
        printf '%(%Y-%m-%dT%H:%M:%SZ)T %s: %s\n' -1 "$1" "$line" 2>/dev/null || true
    done
}

run_script() {
    local words=(--profile "$profile") code=0 stamp
    current=$1 current_began=$SECONDS
    stamp=$(stamp_of "$1")
    # The agent is installed in one way, whatever else the server holds.
    if [[ $1 == 50-agent ]]; then
        words=()
        [[ -z $deb ]] || words=(--deb "$deb")
    fi
    say "$1 begins"
    progress "$1" started 0
    rm -f "$state/reason"
    # Behind us, so that a signal is heard at once; in a process group of its own, so that all of it can be ended.
    set -m
    SETUP_REASON=$state/reason SETUP_STATE=$state "$here/$1.sh" "${words[@]}" 2>&1 </dev/null | prefix "$1" &
    child=$(jobs -p %%)
    set +m
    wait "$!" || code=$?
    child=''
    ((code == 0)) || failed "$code"
    # What it wrote is on the disk before the word that it is done.
    sync -f "$state"
    echo "$stamp" >"$state/done/$1.new"
    mv "$state/done/$1.new" "$state/done/$1"
    progress "$1" "done" $((SECONDS - current_began))
    say "$1 is done, $((SECONDS - current_began)) s"
}

# failed CODE: puts on record how the script failed, and ends.
failed() {
    local reason where
    reason=$(cat "$state/reason" 2>/dev/null || true)
    if [[ -z $reason ]]; then
        reason="it ended with code $1; its last lines say why"
        ! where=$(full_file_systems) || reason="No space left on device: $where"
    fi
    rm -f "$state/reserve"
    progress "$current" failed $((SECONDS - current_began)) || true
    end 1 "$current failed: $reason"
}

# end CODE WORDS: what is left of a set-up that did not come to its good end.
end() {
    rm -f "$state/reserve" "$state/reason" "$state/pid"
    say_unfinished "$2" || say "$state/unfinished stays, without a reason in it"
    say "$2"
    echo "$1" >"$state/result" || say "$state/result could not be written"
    exit "$1"
}

# The word of a signal goes on to all that the script has started; dpkg finishes what it is at.
stopped() {
    trap '' TERM INT HUP
    if [[ -n $child ]]; then
        kill -TERM -- "-$child" 2>/dev/null || true
        wait || true
        progress "$current" failed $((SECONDS - current_began)) || true
    fi
    end "$1" "it was stopped by a signal"
}

end_well() {
    local name left=()
    rm -f "$state/reserve" "$state/reason" "$state/pid"
    for name in ${SCRIPTS[$profile]}; do
        is_done "$name" || left+=("$name")
    done
    if ((${#left[@]})); then
        say_unfinished "to do: ${left[*]}"
        say "done with ${only}; to do: ${left[*]}"
    else
        sync -f "$state"
        rm -f "$state/unfinished"
        say "profile $profile is set up, $SECONDS s"
    fi
    echo 0 >"$state/result"
}

main() {
    local name
    read_words "$@"
    find_deb
    if [[ $list == yes ]]; then
        show_list
        return
    fi
    [[ $EUID -eq 0 || $state != /var/lib/build-agent-setup ]] || wrong "run it as root"
    # As nohup over ssh, or a unit, may leave it: what is installed is found, whoever starts us.
    export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
    umask 022
    cd /
    mkdir -p "$state/done"
    take_lock
    trap 'stopped 143' TERM
    trap 'stopped 130' INT
    trap 'stopped 129' HUP
    mark_unfinished || end 1 "nothing can be written to $state: $(full_file_systems || echo 'see above')"
    for name in $(chosen); do
        if [[ -z $only ]] && is_done "$name"; then
            say "$name is done already"
            progress "$name" skipped 0
        else
            run_script "$name"
        fi
    done
    end_well
}

main "$@"
