#!/usr/bin/env bash
# Tools that builds call: git, curl, archives; in the full profile build systems and more, too.
set -euo pipefail
# shellcheck source=setup_scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

usage() {
    cat <<'USAGE'
usage: 35-tools.sh [--profile minimal|full]

Installs the tools of the profile.
USAGE
}

# Whoever cloned it, a build reads its own workspace; and nothing asks at a terminal that is not there.
set_git() {
    git config --system --replace-all init.defaultBranch main
    git config --system --replace-all advice.detachedHead false
    git config --system --replace-all core.askPass true
    say "git $(git --version | cut -d ' ' -f 3): defaults in /etc/gitconfig"
}

begin "$@"
install_packages
disable redis-server.service
set_git
