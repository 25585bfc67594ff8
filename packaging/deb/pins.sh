#!/usr/bin/env bash
# Writes pins.txt anew: the newest versions that pyproject.toml allows. Run it, look at the difference, run the tests.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/../.."
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

/usr/bin/python3 -m venv "$scratch/venv"
"$scratch/venv/bin/python" -m pip --disable-pip-version-check --quiet install \
    --dry-run --ignore-installed --report "$scratch/report.json" '.[systemd]' 'setuptools>=69'
{
    echo '# What the Debian package carries, and setuptools, which builds two of them. Made by packaging/deb/pins.sh.'
    "$scratch/venv/bin/python" - "$scratch/report.json" <<'PYTHON'
import json
import sys

with open(sys.argv[1], encoding="utf-8") as report:
    found = [package["metadata"] for package in json.load(report)["install"]]
pins = sorted((f"{it['name']}=={it['version']}" for it in found if it["name"] != "build-agent"), key=str.lower)
print(*pins, sep="\n")
PYTHON
} >"$scratch/pins.txt"
mv "$scratch/pins.txt" packaging/deb/pins.txt
