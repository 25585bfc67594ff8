#!/usr/bin/env bash
# Lints everything: Python's style, format and types, and every shell script. Stops at the first tool that complains.
set -euo pipefail

cd "$(dirname "$0")/../.."

.venv/bin/ruff check --quiet .
.venv/bin/ruff format --quiet --check .
.venv/bin/mypy --no-error-summary
# The folders of tests are no packages; without this two files of one name would be one module.
.venv/bin/mypy --strict --no-error-summary --explicit-package-bases tests
# Checks of a finished server run by Debian's own pytest, beside their conftest.
MYPYPATH=setup_scripts/verify .venv/bin/mypy --strict --no-error-summary --explicit-package-bases setup_scripts/verify

# Every script, whatever its name: by ending or by first line.
mapfile -d '' -t scripts < <(
    find . \( -name .git -o -name .venv -o -name node_modules \) -prune -o -type f -print0 |
        xargs -0 grep --null -lE --max-count=1 '^#!(/usr/bin/env |/bin/|/usr/bin/)(ba|da)?sh\b' |
        sort -z
)
shellcheck --external-sources "${scripts[@]}"
echo "Lint: ruff, mypy and shellcheck (${#scripts[@]} scripts) have no complaints."
