"""The Debian package on a bare Debian: installed, upgraded, removed, purged, as operators do it."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.machine.machine import BootedMachine
from tests.services import wait_until

Boot = Callable[..., BootedMachine]
APT = "DEBIAN_FRONTEND=noninteractive apt-get -qq -o Dpkg::Use-Pty=0 --no-install-recommends"
INSTALL = f"{APT} install --yes --reinstall --allow-downgrades"
# Written by packages that ours only asks for, by systemd at run time, and by the tools themselves.
NOT_OURS = r"/(proc|sys|dev|run|tmp|root|var/(cache|log|tmp|lib/(apt|dpkg|systemd)))(/|$)"
LIST = (
    f"find / -xdev -regextype posix-extended -regex '{NOT_OURS}' -prune -o -printf '%p %y %m %u %g\\n' | sort"
)


@pytest.fixture
def bare(boot: Boot, package: Path) -> BootedMachine:
    """A machine that has what the package asks for, and the package's file."""
    machine = boot()
    machine.write("/root/new.deb", package.read_bytes())
    machine.run(f"apt-get -qq update && {APT} install --yes ca-certificates git libsystemd0", limit_s=300)
    return machine


def older(package: Path, folder: Path) -> bytes:
    """Return the package as of an earlier version, whose settings file had another line."""
    tree = folder / "older"
    subprocess.run(["dpkg-deb", "--raw-extract", package, tree], check=True, timeout=120)
    control = tree / "DEBIAN/control"
    control.write_text(re.sub(r"^Version: .*$", "Version: 0.0.1", control.read_text(), flags=re.MULTILINE))
    with (tree / "etc/build-agent/agent.toml").open("a") as settings:
        settings.write("\n# of the version before\n")
    made = folder / "older.deb"
    # Uncompressed: it is read once.
    subprocess.run(
        ["dpkg-deb", "-Znone", "--build", tree, made], check=True, timeout=120, capture_output=True
    )
    return made.read_bytes()


def test_lintian_finds_no_error(package: Path) -> None:
    done = subprocess.run(
        ["lintian", "--allow-root", "--fail-on", "error", package],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


def test_installed_package_is_ready_for_its_settings(bare: BootedMachine) -> None:
    said = bare.run(f"{INSTALL} /root/new.deb", limit_s=200)
    assert "runuser -u build-agent -- build-agent db upgrade" in said
    assert bare.run("build-agent --version").startswith("build-agent, version ")
    assert bare.run("build-agent config check") == "settings are good: /etc/build-agent/agent.toml\n"
    assert bare.run("systemctl is-enabled build-agent").strip() == "enabled"
    assert bare.attempt("systemctl is-active build-agent")[1].strip() == "inactive"
    assert bare.run("systemd-analyze verify build-agent.service") == ""
    assert bare.run(
        "stat -c '%a %U %G' /etc/build-agent/agent.toml /etc/build-agent /var/lib/build-agent"
    ) == ("640 root build-agent\n750 root build-agent\n700 build-agent build-agent\n")
    assert bare.run("getent passwd build-agent").strip().endswith(":/var/lib/build-agent:/usr/sbin/nologin")
    for path in (
        "/usr/share/man/man1/build-agent.1.gz",
        "/usr/share/man/man5/agent.toml.5.gz",
        "/usr/share/bash-completion/completions/build-agent",
        "/usr/share/build-agent/setup_scripts/setup.sh",
        "/usr/share/doc/build-agent/copyright",
    ):
        assert bare.attempt(f"test -s {path}")[0] == 0, path
    # With nothing to change it, and byte code that its user could not write.
    assert bare.attempt("ls /opt/build-agent/bin")[1].split() == ["build-agent", "python3", "rq"]
    assert (
        bare.run("/opt/build-agent/bin/python3 -c 'import systemd.journal, psycopg, agent.daemon.agent'")
        == ""
    )
    assert "up to date: 0005" in bare.run(
        "runuser -u build-agent -- build-agent db upgrade >/dev/null; runuser -u build-agent -- build-agent db upgrade"
    )


def test_upgrade_keeps_settings_and_is_refused_under_a_running_agent(
    bare: BootedMachine, package: Path, tmp_path: Path
) -> None:
    bare.write("/root/older.deb", older(package, tmp_path))
    bare.run(f"{INSTALL} /root/older.deb", limit_s=200)
    bare.run("sed -i 's/^#slots = .*/slots = 7/' /etc/build-agent/agent.toml")
    # No Redis here: it waits, and that is running, too.
    bare.run("runuser -u build-agent -- build-agent db upgrade; systemctl start --no-block build-agent")
    wait_until(
        lambda: bare.attempt("systemctl show -P StatusText build-agent | grep -q waiting")[0] == 0,
        30,
        lambda: bare.attempt("systemctl status build-agent")[1],
    )
    code, said = bare.attempt(f"{INSTALL} -o Dpkg::Options::=--force-confold /root/new.deb", limit_s=200)
    assert code != 0
    assert "systemctl stop build-agent" in said
    assert bare.run("systemctl show -P MainPID build-agent").strip() != "0"
    assert bare.run("dpkg-query -W -f '${Version}' build-agent") == "0.0.1"
    bare.run("systemctl stop build-agent", limit_s=100)
    bare.run(f"{INSTALL} -o Dpkg::Options::=--force-confold /root/new.deb", limit_s=200)
    assert bare.run("dpkg-query -W -f '${Version}' build-agent") != "0.0.1"
    assert "\nslots = 7\n" in bare.run("cat /etc/build-agent/agent.toml")
    assert bare.run("stat -c '%a %U %G' /etc/build-agent/agent.toml") == "640 root build-agent\n"
    # An upgrade starts nothing, and leaves what the operator enabled.
    assert bare.attempt("systemctl is-active build-agent")[1].strip() == "inactive"
    assert bare.run("systemctl is-enabled build-agent").strip() == "enabled"


def test_purge_leaves_the_machine_as_it_was_but_for_the_user(bare: BootedMachine) -> None:
    before = set(bare.run(LIST).splitlines())
    bare.run(f"{INSTALL} /root/new.deb", limit_s=200)
    bare.run("echo word >/etc/build-agent/secrets/token; runuser -u build-agent -- build-agent db upgrade")
    bare.run(f"{APT} remove --yes build-agent", limit_s=100)
    assert bare.attempt("command -v build-agent")[0] == 1
    assert bare.attempt("systemctl cat build-agent.service")[0] == 1
    assert bare.run("cat /etc/build-agent/secrets/token") == "word\n"
    bare.run(f"{APT} purge --yes build-agent", limit_s=100)
    after = set(bare.run(LIST).splitlines())
    users = re.compile(r"/etc/(passwd|shadow|group|gshadow)-? ")
    # Folders whose time alone changed are in both lists; so is nothing else.
    assert sorted(line for line in before ^ after if not users.match(line)) == []
