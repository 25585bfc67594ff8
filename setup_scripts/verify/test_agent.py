"""The agent is installed and can build: a canary through a Redis and a database of its own, as its own user."""

from __future__ import annotations

import json
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import as_user_words, run, wait_until

DEFINITION = """\
project: canary
steps:
  - echo "canary on $(id -un)"
  - echo sum $((40 + 2))
"""


class Canary:
    """An agent of the build user's, on a private queue; what runs on this server as a service is not touched."""

    def __init__(self, home: Path) -> None:
        self.home = home
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{probe.getsockname()[1]}"
        settings = {
            "redis_url": f"unix://{home}/redis.sock",
            "database_url": f"sqlite:///{home}/builds.db",
            "state_dir": f"{home}/state",
            "secrets_dir": f"{home}/secrets",
            "image_file": f"{home}/image.json",
            "health_address": self.address,
            "server_name": "canary",
            "cloud": "none",
            "min_free_bytes": "200MiB",
            "min_free_inodes": "1000",
        }
        lines = [
            f'{name} = "{value}"' if name != "min_free_inodes" else f"{name} = {value}"
            for name, value in settings.items()
        ]
        (home / "agent.toml").write_text("\n".join(lines) + "\n")
        (home / "canary.yml").write_text(DEFINITION)

    def words(self, *words: str) -> list[str]:
        """Return the command line of our build-agent."""
        return as_user_words(
            ["env", f"BUILD_AGENT_CONFIG={self.home}/agent.toml", "build-agent", *words], self.home
        )

    def command(self, *words: str) -> str:
        """Run build-agent on the private queue and return what it printed."""
        return run(*self.words(*words), timeout=120)

    def is_ready(self) -> bool:
        """Whether the agent takes builds."""
        try:
            with urllib.request.urlopen(f"http://{self.address}/readyz", timeout=5):
                return True
        except (OSError, urllib.error.HTTPError):
            return False


@pytest.fixture
def canary(home: Path) -> Iterator[Canary]:
    it = Canary(home)
    redis = [
        "redis-server",
        "--port",
        "0",
        "--unixsocket",
        f"{home}/redis.sock",
        "--dir",
        str(home),
        "--save",
        "",
    ]
    running = []
    log = (home / "log").open("wb")

    def start(words: list[str]) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        running.append(process)
        return process

    try:
        start(as_user_words(redis, home))
        wait_until((home / "redis.sock").exists, "redis-server opens its socket")
        it.command("db", "upgrade")
        agent = start(it.words("run"))
        wait_until(lambda: it.is_ready() or agent.poll() is not None, "the agent takes builds")
        assert agent.poll() is None, (
            f"the agent ended with {agent.poll()}: {(home / 'log').read_text()[-2000:]}"
        )
        yield it
    finally:
        for process in reversed(running):
            _end(process)
        log.close()


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def test_agent_says_its_version() -> None:
    assert run("build-agent", "--version").strip(), "build-agent says no version: run 50-agent.sh"


def test_settings_are_good() -> None:
    assert run("runuser", "-u", "build-agent", "--", "build-agent", "config", "check"), (
        "see /etc/build-agent/agent.toml"
    )


def test_unit_is_as_systemd_wants_it() -> None:
    done = subprocess.run(
        ["systemd-analyze", "verify", "build-agent.service"], capture_output=True, text=True, check=False
    )
    ours = [line for line in done.stderr.splitlines() if "build-agent" in line]
    assert not ours, f"systemd finds fault with the unit: {ours}"


def test_agent_runs_a_canary_build(canary: Canary) -> None:
    answer = canary.command("submit", f"{canary.home}/canary.yml", "--json")
    build = json.loads(answer)["id"]
    output = canary.command("logs", build, "--follow")
    assert "canary on build-agent" in output, f"the step did not run as the build user: {output}"
    assert "sum 42" in output
    shown = json.loads(canary.command("show", build, "--json"))
    assert shown["outcome"] == "passed", f"the canary ended as {shown['outcome']}"
