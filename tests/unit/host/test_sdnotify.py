"""sd_notify against real datagram sockets, by a plain socket and by systemd-python where it is installed."""

from __future__ import annotations

import importlib.util
import os
import secrets
import socket
import tempfile
import threading
from collections.abc import Iterator

import pytest

from agent import clock
from agent.host.sdnotify import Notifier


def has_library() -> bool:
    try:
        return importlib.util.find_spec("systemd.daemon") is not None
    except ImportError:
        return False


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest) -> Iterator[tuple[socket.socket, str]]:
    """Give a manager's socket and its NOTIFY_SOCKET."""
    name = f"agent-test-{secrets.token_hex(8)}"
    with (
        # Not pytest's own folder: a socket's path ends at 107 bytes, and that may be deep in a build's workspace.
        tempfile.TemporaryDirectory(prefix="ba-", dir="/tmp") as folder,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening,
    ):
        address = f"@{name}" if request.param == "abstract" else f"{folder}/n"
        listening.bind("\0" + name if request.param == "abstract" else address)
        listening.settimeout(10)
        yield listening, address


@pytest.fixture(params=["socket", "systemd-python"])
def pair(
    request: pytest.FixtureRequest, manager: tuple[socket.socket, str], monkeypatch: pytest.MonkeyPatch
) -> tuple[socket.socket, Notifier]:
    """Give a manager's socket and a notifier that speaks to it, once by each way."""
    listening, address = manager
    if request.param == "socket":
        return listening, Notifier({"NOTIFY_SOCKET": address})
    if not has_library():
        pytest.skip("needs systemd-python")
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    return listening, Notifier()


def test_messages_are_those_of_the_protocol(pair: tuple[socket.socket, Notifier]) -> None:
    listening, notifier = pair
    calls = [
        (notifier.ready(), "READY=1"),
        (notifier.ready("2 slots"), "READY=1\nSTATUS=2 slots"),
        (notifier.status("drains, 3 builds run"), "STATUS=drains, 3 builds run"),
        (notifier.alive(), "WATCHDOG=1"),
        (notifier.stopping("drains"), "STOPPING=1\nSTATUS=drains"),
        (notifier.extend_timeout(1.5), "EXTEND_TIMEOUT_USEC=1500000"),
    ]
    assert [was_sent for was_sent, _ in calls] == [True] * len(calls)
    assert [listening.recv(4096).decode() for _ in calls] == [expected for _, expected in calls]


def test_status_cannot_smuggle_another_field(pair: tuple[socket.socket, Notifier]) -> None:
    listening, notifier = pair
    notifier.status("held: x\nMAINPID=1\r\nSTOPPING=1")
    assert listening.recv(4096) == b"STATUS=held: x MAINPID=1 STOPPING=1"


def test_status_can_be_emptied(pair: tuple[socket.socket, Notifier]) -> None:
    listening, notifier = pair
    notifier.status("")
    assert listening.recv(4096) == b"STATUS="


def test_manager_that_does_not_read_stops_no_thread(
    pair: tuple[socket.socket, Notifier], caplog: pytest.LogCaptureFixture
) -> None:
    listening, notifier = pair
    over, gaps_s = threading.Event(), [0.0]

    def run_on() -> None:
        last = clock.mono()
        while not over.wait(0.01):
            now = clock.mono()
            gaps_s.append(now - last)
            last = now

    other = threading.Thread(target=run_on)
    other.start()
    sent = 0
    while sent < 100_000 and notifier.alive():
        sent += 1
    assert not notifier.alive()
    over.set()
    other.join()
    assert sent > 0
    assert max(gaps_s) < 0.4
    assert [vars(record)["event"] for record in caplog.records] == ["sdnotify.failed"]
    listening.recv(4096)
    assert notifier.alive()


def test_absent_manager_is_told_nothing() -> None:
    notifier = Notifier({})
    assert not notifier.is_supervised
    assert not notifier.ready()
    assert notifier.watchdog_interval_s is None


@pytest.mark.parametrize("address", ["/nowhere/at/all", "@", "relative", "vsock:2:1"])
def test_address_that_leads_nowhere_is_no_fault_of_the_agent(
    address: str, caplog: pytest.LogCaptureFixture
) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": address})
    assert not notifier.ready()
    assert not notifier.alive()
    assert [vars(record)["event"] for record in caplog.records] == ["sdnotify.failed"]


@pytest.mark.parametrize(
    ("environ", "interval_s"),
    [
        ({"WATCHDOG_USEC": "30000000"}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_PID": str(os.getpid())}, None),
    ],
)
def test_watchdog_is_fed_twice_within_its_limit(environ: dict[str, str], interval_s: float | None) -> None:
    assert Notifier(environ).watchdog_interval_s == interval_s
