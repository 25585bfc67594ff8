"""Servers started from an image, with the package's own units under a real systemd: nobody logs in to set them up."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from agent.fleet.local.provider import LocalProvider
from tests.machine.machine import BootedMachine
from tests.services import wait_until

Boot = Callable[..., BootedMachine]
SETTINGS = """\
#build-agent
slots = 3
stop_limit_s = 3600
lease_s = 30
kill_grace_s = 2
"""
READY_S = 60.0
# The exposure that `systemd-analyze security` finds, 0 to 10; recorded in docs/security.md.
EXPOSURE = 5.0


class Server(BootedMachine):
    """A machine with an agent."""

    def is_ready(self) -> bool:
        """Whether it takes builds."""
        return self.ask("/readyz") is not None

    def ask(self, path: str) -> str | None:
        """Ask the agent's endpoint; `None` when it says no or nothing."""
        words = f"import urllib.request as u; print(u.urlopen('http://127.0.0.1:9180{path}', timeout=5).read().decode())"
        code, said = self.attempt(f'python3 -c "{words}"')
        return said if code == 0 else None

    def wait_ready(self) -> None:
        """Wait until it takes builds."""
        wait_until(self.is_ready, READY_S, self.explain)

    def explain(self) -> str:
        """Return what there is to see when something does not come."""
        told = self.attempt(
            "systemctl status --no-pager build-agent; systemctl list-jobs --no-pager; "
            "journalctl -q --no-pager -n 40 -u 'build-agent*'"
        )[1]
        return f"{self.now.state}\n{told}\n{self.provider.console_output(self.id)[-3000:]}"

    def agent(self, words: str) -> str:
        """Run build-agent as its user."""
        return self.run(f"runuser -u build-agent -- build-agent {words}")

    def submit(self, *steps: str) -> str:
        """Submit a build; return its id."""
        definition = json.dumps({"project": "test", "steps": list(steps)})
        said = self.run("runuser -u build-agent -- build-agent submit - --json", stdin=definition.encode())
        return str(json.loads(said)["id"])

    def show(self, build_id: str) -> dict[str, Any]:
        """Return the build as `show --json` has it."""
        found: dict[str, Any] = json.loads(self.agent(f"show {build_id} --json"))
        return found

    def outcomes(self, build_id: str) -> list[str | None]:
        """Return the outcome of each attempt."""
        return [it["outcome"] for it in self.show(build_id)["attempts"]]

    def wait_printed(self, build_id: str, words: str, attempt: int = 1) -> None:
        """Wait until an attempt has printed something."""
        wait_until(
            lambda: (
                words
                in self.attempt(f"runuser -u build-agent -- build-agent logs {build_id} --attempt {attempt}")[
                    1
                ]
            ),
            60,
            self.explain,
        )

    def property(self, name: str, unit: str = "build-agent") -> str:
        """Return a property of a unit."""
        return self.run(f"systemctl show -P {name} {unit}").strip()


@pytest.fixture
def serve(boot: Boot, provider: LocalProvider, server_image: str) -> Callable[..., Server]:
    """Starts servers, whose settings are their user data."""

    def start(user_data: str = SETTINGS, *, wait_ready: bool = True, **more: Any) -> Server:
        server = Server(provider, boot(server_image, user_data=user_data, wait_up=wait_ready, **more).id)
        if wait_ready:
            server.wait_ready()
        return server

    return start


def test_server_from_an_image_joins_the_queue_by_itself(serve: Callable[..., Server]) -> None:
    server = serve(name="web-7")
    assert server.property("StatusText") == "taking builds"
    (row,) = json.loads(server.agent("servers --all --json"))
    assert (row["name"], row["state"], row["slots"], row["image_version"]) == ("web-7", "accepting", 3, "7")
    build_id = server.submit("echo built by $(id -un)", "test ! -w /etc && test ! -w /opt/build-agent")
    wait_until(lambda: server.show(build_id)["state"] == "ended", 30, server.explain)
    assert server.outcomes(build_id) == ["passed"]
    assert "built by build-agent" in server.agent(f"logs {build_id}")
    assert server.run("stat -c '%a %U %G' /etc/build-agent/agent.toml") == "640 root build-agent\n"
    assert server.run("systemctl --failed --no-legend") == ""
    assert server.attempt("test -s /etc/ssh/ssh_host_ed25519_key")[0] == 0
    assert "canary.passed" in server.run(
        "journalctl -q --no-pager -o json -u build-agent | grep -o 'canary.passed'"
    )
    # The journal has the fields that docs/log-events.md promises.
    assert (
        server.run(f"journalctl -q -o cat -u build-agent BUILD={build_id} EVENT=build.ended OUTCOME=passed")
        != ""
    )


def test_units_are_as_systemd_wants_them_and_exposed_no_more_than_recorded(
    serve: Callable[..., Server],
) -> None:
    server = serve()
    units = server.run("cd /usr/lib/systemd/system && ls build-agent*.service builds.slice").split()
    assert "build-agent-first-boot.service" in units
    assert server.run(f"systemd-analyze verify {' '.join(units)}") == ""
    said = server.run("systemd-analyze security --no-pager build-agent.service | tail -1")
    found = re.search(r"level for build-agent\.service: ([0-9.]+)", said)
    assert found, said
    assert float(found[1]) <= EXPOSURE
    assert server.property("Slice") == "builds.slice"


def test_f26_server_that_boots_before_redis_waits_and_then_joins(serve: Callable[..., Server]) -> None:
    server = serve(SETTINGS + 'redis_url = "redis://127.0.0.1:6399/0"\n', wait_ready=False)
    wait_until(lambda: server.property("StatusText").startswith("waiting: Redis"), 30, server.explain)
    assert server.property("ActiveState") == "activating"
    server.run("systemd-run --unit=late-redis redis-server --port 6399 --save ''")
    server.wait_ready()
    assert server.property("NRestarts") == "0"


def test_f26_machine_that_is_set_up_in_part_never_registers(serve: Callable[..., Server]) -> None:
    server = serve()
    (before,) = json.loads(server.agent("servers --all --json"))
    server.run("systemctl stop build-agent-first-boot")  # and with it the agent, which needs it
    server.write("/var/lib/build-agent-setup/unfinished", "to do: 50-agent\n")
    assert server.attempt("systemctl start build-agent")[0] != 0
    wait_until(lambda: server.attempt("test -e /run/systemd/shutdown/scheduled")[0] == 0, 30, server.explain)
    assert "to do: 50-agent" in server.run("journalctl -q --no-pager -o cat -u build-agent-first-boot")
    told = server.run("journalctl -q --no-pager -o cat -u build-agent-failed")
    assert "takes no builds, it powers off in 5 min" in told
    (after,) = json.loads(server.agent("servers --all --json"))
    assert after["registered_at"] == before["registered_at"]
    # The agent by itself does not let itself in either.
    code, said = server.attempt("runuser -u build-agent -- build-agent run")
    assert (code, "to do: 50-agent" in said) == (78, True)


def test_malformed_user_data_is_told_and_starts_no_agent(serve: Callable[..., Server]) -> None:
    server = serve("#build-agent\nslot = 3\n", wait_ready=False)
    wait_until(
        lambda: server.property("ActiveState", "build-agent-first-boot") == "failed", 30, server.explain
    )
    said = server.run("journalctl -q --no-pager -o cat -u build-agent-first-boot")
    assert "user data:2: unknown setting slot; did you mean slots?" in said
    assert server.property("ActiveState") == "inactive"


def test_f07_stop_drains_and_restart_comes_back(serve: Callable[..., Server]) -> None:
    server = serve()
    build_id = server.submit("echo begun; sleep 4; echo finished")
    server.wait_printed(build_id, "begun")
    server.run("systemctl restart build-agent", limit_s=60)
    assert server.outcomes(build_id) == ["passed"]
    server.wait_ready()
    assert json.loads(server.ask("/status") or "{}")["former_end"] == "success exited 0"


def test_f07_second_signal_gives_back_what_runs(serve: Callable[..., Server]) -> None:
    server = serve()
    build_id = server.submit("echo begun; sleep 600")
    server.wait_printed(build_id, "begun")
    server.run("systemctl stop --no-block build-agent")
    wait_until(lambda: server.property("ActiveState") == "deactivating", 20, server.explain)
    server.run("systemctl kill --kill-whom=main build-agent")
    wait_until(lambda: server.property("ActiveState") == "inactive", 30, server.explain)
    assert server.outcomes(build_id) == ["preempted"]
    assert server.show(build_id)["state"] == "queued"
    assert server.attempt("pgrep -f 'sleep 600'")[0] == 1


def test_f07_reboot_gives_back_what_it_does_not_wait_for(serve: Callable[..., Server]) -> None:
    server = serve(SETTINGS.replace("3600", "2"))
    build_id = server.submit("echo begun; test $BUILD_ATTEMPT = 2 || sleep 600")
    server.wait_printed(build_id, "begun")
    server.provider.reboot(server.id)
    wait_until(
        lambda: server.is_up() and server.is_ready() and len(server.outcomes(build_id)) == 2,
        90,
        server.explain,
    )
    wait_until(lambda: server.show(build_id)["state"] == "ended", 60, server.explain)
    assert server.outcomes(build_id) == ["preempted", "passed"]


def test_f09_killed_agent_is_started_anew_and_nothing_of_the_former_life_is_left(
    serve: Callable[..., Server],
) -> None:
    server = serve()
    step = "echo begun; echo $$ >/tmp/pid-$BUILD_ATTEMPT; test $BUILD_ATTEMPT = 2 || exec sleep 600"
    build_id = server.submit(step)
    server.wait_printed(build_id, "begun")
    server.run("kill -KILL $(systemctl show -P MainPID build-agent)")
    wait_until(lambda: server.attempt("pgrep -f 'sleep 600'")[0] == 1, 10, "the step to end with its agent")
    wait_until(lambda: server.show(build_id)["state"] == "ended", 90, server.explain)
    assert server.outcomes(build_id) == ["lost", "passed"]
    assert "begun" in server.agent(f"logs {build_id} --attempt 1")
    assert server.property("NRestarts") == "1"
    assert "signal killed KILL" in server.run("journalctl -q --no-pager -o cat -u build-agent")


def test_f27_frozen_agent_is_restarted_by_the_watchdog_and_its_build_runs_again(
    serve: Callable[..., Server],
) -> None:
    server = serve()
    build_id = server.submit("echo begun; test $BUILD_ATTEMPT = 2 || sleep 600")
    server.wait_printed(build_id, "begun")
    server.run("kill -STOP $(systemctl show -P MainPID build-agent)")
    wait_until(lambda: server.property("NRestarts") == "1", 60, server.explain)
    wait_until(lambda: server.show(build_id)["state"] == "ended", 90, server.explain)
    assert server.outcomes(build_id) == ["lost", "passed"]
    assert server.attempt("pgrep -f 'sleep 600'")[0] == 1
    assert "watchdog" in server.run("journalctl -q --no-pager -o cat -u build-agent")
