#!/usr/bin/env bash
# Runs the checks of a finished server, on the server itself, as root. They need no network.
set -euo pipefail

usage() {
    cat <<'USAGE'
usage: run.sh --profile minimal|full --report DIR [-k WORDS]

Checks the server and writes DIR/junit.xml and DIR/report.json. Ends with 0 only when every check passed.

  --profile P   what the server was set up as
  --report DIR  where the reports go
  -k WORDS      only checks of this name, as pytest reads it
USAGE
}

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
profile='' report='' chosen=()

wrong() {
    printf 'run.sh: %s\n' "$*" >&2
    usage >&2
    exit 64
}

while (($#)); do
    case $1 in
        --profile | --report)
            [[ $# -ge 2 ]] || wrong "$1 needs a word after it"
            declare "${1#--}=$2"
            shift
            ;;
        -k)
            [[ $# -ge 2 ]] || wrong "-k needs a word after it"
            chosen=(-k "$2")
            shift
            ;;
        -h | --help)
            usage
            exit 0
            ;;
        *) wrong "what is $1?" ;;
    esac
    shift
done
[[ $profile == minimal || $profile == full ]] || wrong "--profile is minimal or full"
[[ -n $report ]] || wrong "--report is missing"
[[ $EUID -eq 0 ]] || wrong "run it as root"
/usr/bin/python3 -c 'import pytest' 2>/dev/null || {
    echo "run.sh: there is no pytest: 10-base.sh installs it" >&2
    exit 1
}

mkdir -p "$report"
report=$(realpath "$report")
# Those of a former run would be taken for this one's.
rm -f "$report/junit.xml" "$report/report.json"
cd "$here"
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 LC_ALL=C.UTF-8
# Output goes through a pipe to whoever follows: one line a check, as it ends. Settings of a checkout around us are not ours.
exec /usr/bin/python3 -m pytest -c /dev/null --rootdir "$here" -p no:cacheprovider --tb short --verbose --color no \
    --profile "$profile" --report-json "$report/report.json" --junit-xml "$report/junit.xml" "${chosen[@]}" "$here"
