#!/usr/bin/env bash
# Builds the Debian package for the Debian or Ubuntu that this runs on: dist/build-agent_<version>_<arch>.deb.
# Needs no root. The same commit, pins and Debian release give the same package, byte for byte.
set -euo pipefail

usage() {
    cat <<'USAGE'
usage: build.sh [--output DIR]

Builds build-agent_<version>_<arch>.deb and prints its path.

  --output DIR  put it there; dist/ of the checkout by default
USAGE
}

checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
output=$checkout/dist

read_arguments() {
    while (($#)); do
        case $1 in
            --output)
                [[ $# -ge 2 ]] || {
                    usage >&2
                    exit 64
                }
                output=$2
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
}

in_git() { git -c safe.directory="$checkout" -C "$checkout" "$@" 2>/dev/null; }

# A tagged commit is the version that its tag names. Any other comes before the version it leads to ('~' sorts before
# everything), in the order of commits.
package_version() {
    local version commit
    version=$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' "$checkout/agent/__init__.py")
    if ! in_git rev-parse --verify --quiet HEAD >/dev/null; then
        echo "$version"
        return
    fi
    # Python's and Debian's words for what comes before a version differ only in this sign.
    commit=$(TZ=UTC in_git log -1 --format='%cd.g%h' --abbrev=12 --date=format-local:%Y%m%d%H%M%S)
    if [[ -n $(in_git status --porcelain) ]]; then
        echo "$version~$commit.changed"
    elif in_git describe --exact-match --match "v$version" HEAD >/dev/null; then
        echo "$version"
    else
        echo "$version~$commit"
    fi
}

# The time that every file in the package gets.
source_epoch() {
    in_git log -1 --format=%ct || stat --format %Y "$checkout/CHANGELOG.md"
}

read_arguments "$@"
mkdir -p "$output"
output=$(cd "$output" && pwd)
scratch=$(mktemp -d "${TMPDIR:-/tmp}/build-agent-deb.XXXXXX")
trap 'rm -rf "$scratch"' EXIT

# What is said is the same everywhere, and file modes don't hang on the caller's mask.
export LC_ALL=C.UTF-8 TZ=UTC SOURCE_DATE_EPOCH="${SOURCE_DATE_EPOCH:-$(source_epoch)}"
umask 022
version=$(package_version)
echo "Building build-agent $version"

# From a copy: a build leaves its products beside the sources, and the checkout may be read-only.
source=$scratch/build-agent
mkdir "$source"
cp -r "$checkout"/{CHANGELOG.md,LICENSE,README.md,agent,docs,packaging,pyproject.toml,setup_scripts,systemd} "$source"
find "$source" -name __pycache__ -prune -exec rm -r {} +
mv "$source/packaging/deb/debian" "$source/debian"
/usr/bin/python3 "$source/packaging/deb/changelog.py" "$source/CHANGELOG.md" "$version" >"$source/debian/changelog"

if ! make --directory "$source" --makefile debian/rules binary >"$scratch/log" 2>&1; then
    cat "$scratch/log" >&2
    echo "The package could not be built; the lines above say why." >&2
    exit 1
fi
for package in "$scratch"/*.deb; do
    mv "$package" "$output/"
    echo "$output/$(basename "$package")"
done
