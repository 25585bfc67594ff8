#!/usr/bin/env bash
# Prints the path of a Python that can make the virtual environment: 3.11 or newer, with venv and ensurepip.
# Ends with 1 when there is none, and with 2 when one is new enough but lacks ensurepip (Debian's python3-venv);
# its path is printed then, too.
set -euo pipefail

# A pyenv shim is on the PATH for every version ever installed, and fails for those not chosen: each is asked.
is_new_enough='import sys; sys.exit(sys.version_info < (3, 11))'
without_venv=

for name in python3 python3.13 python3.12 python3.11 python3.14; do
    while read -r program; do
        if ! "$program" -c "$is_new_enough" </dev/null 2>/dev/null; then
            continue
        fi
        # The real program behind a shim or a link: the virtual environment must not hang on a shim's choice.
        program=$("$program" -c 'import sys; print(sys._base_executable or sys.executable)')
        if "$program" -c 'import venv, ensurepip' 2>/dev/null; then
            echo "$program"
            exit 0
        fi
        without_venv=${without_venv:-$program}
    done < <(type -ap "$name")
done

if [[ -n $without_venv ]]; then
    echo "$without_venv"
    exit 2
fi
exit 1
