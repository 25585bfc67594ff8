#!/usr/bin/env bash
# The languages that builds are written in, as Debian has them: Python, Node.js, Ruby, Go, Java, C and C++, PHP.
set -euo pipefail
# shellcheck source=setup_scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

usage() {
    cat <<'USAGE'
usage: 30-languages.sh [--profile minimal|full]

Installs Python, Node.js, Ruby, Go, Java, C/C++ and PHP with their package managers.
USAGE
}

# `python` is what many builds call; Debian has python3 alone.
name_python() {
    ln -sfn /usr/bin/python3 /usr/local/bin/python
    say "python is python3"
}

tell_versions() {
    say "Python $(python3 --version | cut -d ' ' -f 2), Node.js $(node --version), npm $(npm --version)"
    say "Ruby $(ruby --version | cut -d ' ' -f 2), Go $(go version | cut -d ' ' -f 3), PHP $(php -r 'echo PHP_VERSION;')"
    say "Java $(javac -version 2>&1 | cut -d ' ' -f 2), gcc $(gcc -dumpfullversion), clang $(clang --version | head -n 1)"
}

begin "$@"
install_packages
name_python
tell_versions
