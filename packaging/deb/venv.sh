#!/usr/bin/env bash
# Makes the virtual environment of the package in a directory: the agent and what it needs, nothing to change it with.
# It runs where it is made and in /opt/build-agent, where the package puts it.
set -euo pipefail

target=${1:?usage: venv.sh DIRECTORY}
home=/opt/build-agent
# The one of the Debian release: the package is bound to it, and its C extensions are built for it.
python=/usr/bin/python3
source=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
pins=$source/packaging/deb/pins.txt

# What a developer's shell points to would count as installed already.
unset PYTHONPATH PYTHONHOME

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

"$python" -m venv "$scratch/tools"
pip=("$scratch/tools/bin/python" -m pip --disable-pip-version-check --quiet)
# For what builds wheels, too: pip gives it to their build environments.
export PIP_CONSTRAINT=$pins

# Both are built here and anew: a wheel in pip's cache may come from another Python and its compiler flags.
systemd=$(grep '^systemd-python==' "$pins")
"${pip[@]}" wheel --no-deps --no-cache-dir --use-pep517 --no-binary systemd-python --wheel-dir "$scratch/wheels" \
    "$source" "$systemd"

"$python" -m venv --without-pip "$target"
sed '/^#/d; /^$/d; /^setuptools==/d; /^systemd-python==/d' "$pins" >"$scratch/wanted.txt"
"${pip[@]}" --python "$target/bin/python3" install --no-compile --no-deps --only-binary :all: \
    --requirement "$scratch/wanted.txt" "$scratch"/wheels/*.whl
# The pins are complete and fit each other.
"${pip[@]}" --python "$target/bin/python3" check

# Of the commands, the agent's own and RQ's, which look into its queues; they name their interpreter by its path.
find "$target/bin" -type f ! -name build-agent ! -name rq -delete
sed -i "1s|^#!.*|#!$home/bin/python3|" "$target/bin/build-agent" "$target/bin/rq"
find "$target/bin" -type l ! -name python3 -delete
ln -sfn "$python" "$target/bin/python3"
rm -rf "${target:?}/include" "${target:?}/lib64"
# Only these count; the others hold the paths and the patch release of the day.
printf 'home = %s\ninclude-system-site-packages = false\n' "$(dirname "$python")" >"$target/pyvenv.cfg"

packages=$(echo "$target"/lib/python3.*/site-packages)
# pip's notes of what it put where: the package manager has its own, and they hold paths of this build.
rm -f "$packages"/*.dist-info/{RECORD,REQUESTED,INSTALLER,direct_url.json}
# What nothing in the agent imports: tests of C extensions, their sources and headers.
rm -rf "$packages"/*/tests
find "$packages" \( -name '*.c' -o -name '*.cpp' -o -name '*.h' -o -name '*.hpp' -o -name '*.pyx' \) -delete
find "$packages" -type f -exec chmod 0644 {} +
# Those of wheels come stripped, and some lose their libraries when it is done again.
strip --strip-unneeded "$packages"/systemd/*.so
