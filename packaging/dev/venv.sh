#!/usr/bin/env bash
# Makes .venv for "demo" (what the agent needs) or "test" (also tools, tests, console, cloud), and nothing when it is
# up to date: a stamp in it holds a checksum of pyproject.toml and of the Python it was made with.
set -euo pipefail

purpose=${1:?usage: venv.sh demo|test}
cd "$(dirname "$0")/../.."

if ! python=$(packaging/dev/python.sh); then
    echo "No Python of 3.11 or newer with the venv module: install one (Debian: python3-venv) and try again." >&2
    exit 1
fi

# The place counts as well: an editable installation in a moved checkout points to where it was.
wanted=$({
    pwd
    echo "$python"
    "$python" --version
    cat pyproject.toml
} | sha256sum | cut -d' ' -f1)

# A stamp of "test" serves "demo" too, not the other way round.
for made_for in test "$purpose"; do
    if [[ -x .venv/bin/build-agent && $(cat ".venv/stamp-$made_for" 2>/dev/null) == "$wanted" ]]; then
        exit 0
    fi
done

if [[ $(cat .venv/stamp-demo 2>/dev/null) != "$wanted" ]]; then
    echo "Making .venv with $("$python" --version)"
    "$python" -m venv --clear .venv
fi

# Extras that pyproject.toml has; one that it lacks would be passed over with a mere warning.
extras=()
if [[ $purpose == test ]]; then
    extras=(dev console aws fleet)
    if command -v gcc >/dev/null && command -v pkg-config >/dev/null && pkg-config --exists libsystemd; then
        extras+=(systemd)
    fi
fi
target=.
if [[ ${#extras[@]} -gt 0 ]]; then
    target=".[$(IFS=, && echo "${extras[*]}")]"
fi
echo "Installing build-agent and what it needs for $purpose into .venv"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
# pip warns of much that nobody can act on; all of it is shown when it fails.
if ! .venv/bin/python -m pip install --disable-pip-version-check --editable "$target" >"$log" 2>&1; then
    cat "$log" >&2
    exit 1
fi
echo "$wanted" >".venv/stamp-$purpose"
