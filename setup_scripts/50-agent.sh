#!/usr/bin/env bash
# Installs the agent on a Debian or Ubuntu server: program, user, directories, default settings and unit.
# Run as root. Running it again brings all of it up to date and leaves settings and secrets alone.
set -euo pipefail

usage() {
    cat <<'USAGE'
usage: 50-agent.sh [--wheel FILE] [--no-enable]

Installs build-agent from the checkout that this script lies in.

  --wheel FILE  install this wheel instead; units and default settings still come from the checkout
  --no-enable   do not enable the unit: the agent does not start at boot
USAGE
}

prefix=/opt/build-agent
checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
wheel=
enable=yes

say() { printf 'agent: %s\n' "$*"; }
fail() {
    printf 'agent: %s\n' "$*" >&2
    exit 1
}

read_arguments() {
    while (($#)); do
        case $1 in
            --wheel)
                [[ $# -ge 2 ]] || fail "--wheel needs a file"
                [[ $2 == *.whl && -f $2 ]] || fail "--wheel $2: no such wheel"
                wheel=$(realpath "$2")
                shift
                ;;
            --no-enable) enable=no ;;
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

# A command's output is of interest only when it fails.
quietly() {
    if ! "$@" >"$scratch/log" 2>&1; then
        cat "$scratch/log" >&2
        fail "failed: $*"
    fi
}

check() {
    [[ $EUID -eq 0 ]] || fail "run it as root"
    command -v apt-get >/dev/null || fail "this is no Debian or Ubuntu: there is no apt-get"
    # Python loads modules when they are first needed: an agent whose files are exchanged would run half of each.
    if [[ -d /run/systemd/system ]] && systemctl --quiet is-active build-agent.service; then
        fail "build-agent is running; drain and stop it first: systemctl stop build-agent"
    fi
}

install_packages() {
    # python3-systemd writes the journal's fields; git checks out what is built.
    local wanted=(ca-certificates git python3 python3-systemd python3-venv systemd) missing=() name
    for name in "${wanted[@]}"; do
        if [[ $(dpkg-query --show --showformat '${db:Status-Status}' "$name" 2>/dev/null) != installed ]]; then
            missing+=("$name")
        fi
    done
    if ((${#missing[@]} == 0)); then
        say "Debian packages are there: ${wanted[*]}"
        return
    fi
    say "installing Debian packages: ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    quietly apt-get -o DPkg::Lock::Timeout=300 update -q
    quietly apt-get -o DPkg::Lock::Timeout=300 install -q -y --no-install-recommends "${missing[@]}"
}

check_python() {
    /usr/bin/python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        fail "$(/usr/bin/python3 --version) is too old: the agent needs 3.11 (Debian 12, Ubuntu 24.04 or newer)"
}

build_wheel() {
    if [[ -n $wheel ]]; then
        return
    fi
    say "building a wheel of $checkout"
    # From a copy: a build leaves its products beside the sources, and the checkout may be read-only.
    mkdir "$scratch/source" "$scratch/wheel"
    cp -r "$checkout"/{agent,pyproject.toml,README.md,LICENSE} "$scratch/source/"
    quietly "$prefix/bin/python" -m pip wheel --no-deps --wheel-dir "$scratch/wheel" "$scratch/source"
    wheel=$(compgen -G "$scratch/wheel/build_agent-*.whl")
}

install_program() {
    local python=$prefix/bin/python dist=/usr/lib/python3/dist-packages/systemd
    # A virtual environment made for another Python is of no use after an upgrade of the system.
    if [[ ! -x $python || $($python -c 'import sys; print(*sys.version_info[:2])' 2>/dev/null) != \
        "$(/usr/bin/python3 -c 'import sys; print(*sys.version_info[:2])')" ]]; then
        say "making a virtual environment in $prefix"
        quietly /usr/bin/python3 -m venv --clear "$prefix"
    fi
    build_wheel
    say "installing $(basename "$wheel") and what it needs into $prefix"
    # The agent itself always anew: a checkout changes and its version does not.
    quietly "$python" -m pip install --upgrade "$wheel"
    quietly "$python" -m pip install --no-deps --force-reinstall "$wheel"
    # Debian's package, seen through a link: from a package index it would have to be compiled here.
    ln -sfn "$dist" "$("$python" -c 'import sysconfig; print(sysconfig.get_path("platlib"))')/systemd"
    ln -sfn "$prefix/bin/build-agent" /usr/local/bin/build-agent
    say "$("$prefix/bin/build-agent" --version) is installed; the command is /usr/local/bin/build-agent"
}

install_units() {
    install -D -m 0644 "$checkout/systemd/build-agent.sysusers.conf" /usr/lib/sysusers.d/build-agent.conf
    install -D -m 0644 "$checkout/systemd/build-agent.tmpfiles.conf" /usr/lib/tmpfiles.d/build-agent.conf
    install -D -m 0644 "$checkout/systemd/build-agent.service" /usr/lib/systemd/system/build-agent.service
    quietly systemd-sysusers build-agent.conf
    say "the user is $(id build-agent)"
    quietly systemd-tmpfiles --create build-agent.conf
    say "directories are /etc/build-agent, /etc/build-agent/secrets and /var/lib/build-agent"
}

install_settings() {
    local settings=/etc/build-agent/agent.toml
    if [[ -e $settings ]]; then
        say "$settings is there and stays as it is"
    else
        install -m 0640 -o root -g build-agent "$checkout/packaging/agent.toml" "$settings"
        say "$settings holds every setting as a comment, with its default"
    fi
    # A fault in them would be found only when the agent starts, on a server made from this one.
    "$prefix/bin/build-agent" --config "$settings" config check | sed 's/^/agent: /'
}

enable_unit() {
    if [[ -d /run/systemd/system ]]; then
        quietly systemctl daemon-reload
    fi
    if [[ $enable == yes ]]; then
        quietly systemctl enable build-agent.service
        say "build-agent.service is enabled: the agent starts at boot"
    else
        say "build-agent.service is $(systemctl is-enabled build-agent.service || true) and stays so (--no-enable)"
    fi
    say "next: redis_url and database_url in /etc/build-agent/agent.toml, then"
    say "      runuser -u build-agent -- build-agent db upgrade; systemctl start build-agent"
}

read_arguments "$@"
check
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
install_packages
check_python
install_program
install_units
install_settings
enable_unit
