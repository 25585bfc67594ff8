"""What the agent tells its service manager from start to end, as systemd would hear it."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.daemon.agent import HANG_S
from agent.errors import ServerUnfit
from agent.queue.private import PrivateRedis
from agent.store import servers
from tests.acceptance.farm import Farm
from tests.services import wait_until


class Manager:
    """A service manager that only listens."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.bind(str(path))
        self._fields: list[str] = []

    def heard(self) -> list[str]:
        """Return every field that came so far; asked often, or the agent finds the socket full."""
        while True:
            try:
                self._fields += self._socket.recv(65536).decode().split("\n")
            except BlockingIOError:
                return self._fields

    def close(self) -> None:
        """Hear nothing more."""
        self._socket.close()


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Manager]:
    """A manager that every agent started meanwhile reports to."""
    path = tmp_path / "notify"
    monkeypatch.setenv("NOTIFY_SOCKET", str(path))
    manager = Manager(path)
    yield manager
    manager.close()


@pytest.mark.slow
def test_f26_agent_started_before_redis_waits_and_asks_for_time(
    sqlite_farm: Farm, redis_server: PrivateRedis, manager: Manager
) -> None:
    """Guards: the start's time limit must meet only an agent that hangs, not one that waits."""
    redis_server.stop()
    agent = sqlite_farm.agent(wait_ready=False)
    more_time = f"EXTEND_TIMEOUT_USEC={round(HANG_S * 1_000_000)}"
    wait_until(
        lambda: manager.heard().count(more_time) >= 3, 30, "the agent to ask for time, again and again"
    )
    assert any(field.startswith("STATUS=waiting: Redis") for field in manager.heard())
    assert "READY=1" not in manager.heard()
    assert agent.get("/readyz")[0] == 503
    redis_server.start()
    wait_until(lambda: "READY=1" in manager.heard(), 30, "the agent to be ready")
    agent.wait_ready()


@pytest.mark.slow
def test_agent_that_ends_by_itself_tells_that_it_stops_before_it_hands_over(
    sqlite_farm: Farm, manager: Manager
) -> None:
    """Guards: a watchdog that fires while the agent gives its builds back would kill it in the midst."""
    agent = sqlite_farm.agent()
    build_id = sqlite_farm.submit("echo begun; sleep 60")
    sqlite_farm.wait_running(build_id, printed="begun")
    agent.signal(signal.SIGTERM)
    wait_until(lambda: "STOPPING=1" in manager.heard(), 10, "the drain to be told")
    drain_time = "EXTEND_TIMEOUT_USEC=30000000"
    wait_until(lambda: manager.heard().count(drain_time) >= 2, 10, "time for the drain to be asked for")
    agent.signal(signal.SIGTERM)
    more_time = f"EXTEND_TIMEOUT_USEC={round(HANG_S * 1_000_000)}"
    wait_until(lambda: more_time in manager.heard(), 10, "time for the hand-over to be asked for")
    assert agent.wait_exit() == 0


def test_server_that_cannot_build_never_registers(sqlite_farm: Farm) -> None:
    """Guards: `canary.admit`, before anything is told to the database."""
    farm = sqlite_farm
    agent = farm.agent("unfit", wait_ready=False, boot_canary="on", shell="/bin/false")
    assert agent.wait_exit() == ServerUnfit.exit_code
    assert "the boot canary ended with 1, so this server can't build" in agent.log()
    assert servers.list_servers(farm.store) == []
    agent.start(boot_canary="on", shell="/bin/bash,-euo,pipefail,-c")
    assert "canary.passed" in agent.log()
