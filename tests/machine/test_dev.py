"""`build-agent dev`: a developer's machine, from nothing to a build and back to nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from agent.fleet.local.provider import LocalProvider

DEFINITION = '{"project": "shop", "steps": ["echo built on $(hostname) as $(id -un)"]}'


class Developer:
    """Somebody at a terminal, with a provider."""

    def __init__(self, provider: LocalProvider, home: Path) -> None:
        self._environ = {
            **os.environ,
            "BUILD_AGENT_LOCAL_DIR": str(provider.local_dir),
            "BUILD_AGENT_LOCAL_SUBNET": provider.subnet,
            "BUILD_AGENT_STATE_DIR": str(home),
        }

    def run(self, *words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        argv = [sys.executable, "-m", "agent.cli", "dev", *words]
        return subprocess.run(
            argv, env=self._environ, input=stdin, capture_output=True, text=True, timeout=200, check=False
        )


@pytest.fixture
def developer(provider: LocalProvider, tmp_path: Path) -> Developer:
    """Somebody at a terminal."""
    return Developer(provider, tmp_path)


def test_machine_comes_up_builds_and_goes(
    developer: Developer, provider: LocalProvider, package: Path
) -> None:
    up = developer.run("up", "web", "--deb", str(package))
    assert up.returncode == 0, up.stdout + up.stderr
    assert [line.split()[1] for line in up.stdout.splitlines()[:5]] == [
        "launch",
        "push",
        "setup",
        "verify",
        "start",
    ]
    assert up.stdout.splitlines()[5].startswith("machine web builds, at 10.213.")

    # What a shell there would make words of arrives as one.
    submit = [
        "ssh",
        "web",
        "--",
        "runuser",
        "-u",
        "build-agent",
        "--",
        "build-agent",
        "submit",
        "-",
        "--follow",
    ]
    built = developer.run(*submit, stdin=DEFINITION)
    assert built.returncode == 0, built.stdout + built.stderr
    assert "built on web as build-agent" in built.stdout
    assert developer.run("ssh", "web", "--", "echo", "a  b; exit 3").stdout == "a  b; exit 3\n"
    assert developer.run("ssh", "web", "--", "false").returncode == 1

    # What is done is not done again.
    again = developer.run("up", "web", "--deb", str(package), "--output")
    assert again.returncode == 0, again.stdout + again.stderr

    assert developer.run("down", "web").stdout == "machine web is gone\n"
    assert list(provider.list_machines({})) == []
    assert not Path("/var/lib/build-agent-bakes/dev-web").exists()
    assert developer.run("down", "web").stdout == "there was no machine web\n"
    gone = developer.run("ssh", "web")
    assert (gone.returncode, gone.stderr) == (
        66,
        "build-agent: there is no machine 'web': build-agent dev up web\n",
    )
