"""The health endpoint: codes for machines, reasons for people, and no fault of a peer is ours."""

from __future__ import annotations

import json
import logging
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pytest
import requests

from agent.daemon.health import HealthEndpoint, Views
from agent.errors import AgentFailed
from tests.services import wait_until


@dataclass
class Agent:
    """What the endpoint shows, as the test sets it."""

    dead: list[str] = field(default_factory=list)
    unready: list[str] = field(default_factory=list)
    status: dict[str, Any] = field(default_factory=dict)

    def views(self) -> Views:
        return Views(
            dead=lambda: self.dead,
            unready=lambda: self.unready,
            status=lambda: self.status,
            metrics=lambda: (b"build_agent_ready 1\n", "text/plain; version=0.0.4"),
        )


@pytest.fixture
def agent() -> Agent:
    return Agent()


@pytest.fixture
def endpoint(agent: Agent) -> Iterator[HealthEndpoint]:
    endpoint = HealthEndpoint("127.0.0.1:0", agent.views())
    endpoint.start()
    yield endpoint
    endpoint.close()


def get(endpoint: HealthEndpoint, path: str) -> requests.Response:
    return requests.get(f"http://127.0.0.1:{endpoint.port}{path}", timeout=10)


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/readyz?verbose"])
def test_well_agent_answers_ok(endpoint: HealthEndpoint, path: str) -> None:
    answer = get(endpoint, path)
    assert (answer.status_code, answer.text) == (200, "ok\n")
    assert answer.headers["Cache-Control"] == "no-store"


def test_agent_that_takes_no_builds_is_alive_and_says_why(endpoint: HealthEndpoint, agent: Agent) -> None:
    agent.unready = ["database: gone (for 3 s)", "disk: 1 GiB free — ünder the limit"]
    answer = get(endpoint, "/readyz")
    assert answer.status_code == 503
    assert answer.text.splitlines() == agent.unready
    assert get(endpoint, "/healthz").status_code == 200


def test_dead_loop_makes_the_agent_unwell(endpoint: HealthEndpoint, agent: Agent) -> None:
    agent.dead = ["loop shipper died: ValueError: x"]
    answer = get(endpoint, "/healthz")
    assert (answer.status_code, answer.text) == (503, "loop shipper died: ValueError: x\n")


def test_status_is_json_whatever_it_holds(endpoint: HealthEndpoint, agent: Agent) -> None:
    agent.status = {"state": "accepting", "at": datetime(2026, 1, 2, tzinfo=UTC), "slots": [{"slot": 1}]}
    answer = get(endpoint, "/status")
    assert answer.headers["Content-Type"] == "application/json"
    assert json.loads(answer.text)["slots"] == [{"slot": 1}]


def test_metrics_come_with_their_type(endpoint: HealthEndpoint) -> None:
    answer = get(endpoint, "/metrics")
    assert answer.text == "build_agent_ready 1\n"
    assert answer.headers["Content-Type"] == "text/plain; version=0.0.4"


@pytest.mark.parametrize("path", ["/", "/healthz/", "/../etc/passwd"])
def test_other_path_names_those_there_are(endpoint: HealthEndpoint, path: str) -> None:
    answer = get(endpoint, path)
    assert answer.status_code == 404
    assert "/readyz" in answer.text


def test_method_that_changes_something_is_not_known(endpoint: HealthEndpoint) -> None:
    answer = requests.post(f"http://127.0.0.1:{endpoint.port}/healthz", timeout=10)
    assert answer.status_code == 501


def test_silent_peer_holds_up_nobody(endpoint: HealthEndpoint) -> None:
    with socket.create_connection(("127.0.0.1", endpoint.port)):
        assert get(endpoint, "/healthz").status_code == 200


def test_peers_that_hang_up_leave_no_thread_and_no_traceback(
    endpoint: HealthEndpoint, agent: Agent, capfd: pytest.CaptureFixture[str]
) -> None:
    agent.status = {"much": "x" * 5_000_000}
    before = threading.active_count()
    for _ in range(10):
        with socket.create_connection(("127.0.0.1", endpoint.port)) as peer:
            peer.sendall(b"GET /status HTTP/1.0\r\n\r\n")
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # a reset, not an end
    wait_until(lambda: threading.active_count() <= before, 20, "the threads to end")
    assert "Traceback" not in capfd.readouterr().err
    assert get(endpoint, "/healthz").status_code == 200


def test_view_that_fails_is_told_in_the_log(
    endpoint: HealthEndpoint, agent: Agent, caplog: pytest.LogCaptureFixture
) -> None:
    agent.unready = [7]  # type: ignore[list-item]
    with pytest.raises(requests.ConnectionError):
        get(endpoint, "/readyz")
    wait_until(lambda: caplog.records)
    assert "TypeError" in caplog.records[-1].getMessage()
    assert caplog.records[-1].levelno == logging.ERROR
    assert get(endpoint, "/healthz").status_code == 200


def test_closed_endpoint_refuses_and_frees_its_port(agent: Agent) -> None:
    first = HealthEndpoint("127.0.0.1:0", agent.views())
    first.start()
    assert get(first, "/healthz").status_code == 200
    first.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", first.port))
    second = HealthEndpoint(f"127.0.0.1:{first.port}", agent.views())
    second.start()
    assert get(second, "/healthz").status_code == 200
    second.close()


def test_endpoint_that_never_served_can_be_closed(agent: Agent) -> None:
    endpoint = HealthEndpoint("127.0.0.1:0", agent.views())
    endpoint.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", endpoint.port))


def test_address_in_use_says_what_to_do(endpoint: HealthEndpoint, agent: Agent) -> None:
    with pytest.raises(AgentFailed, match=r"can't listen on 127.0.0.1:\d+: Address already in use; another"):
        HealthEndpoint(f"127.0.0.1:{endpoint.port}", agent.views())


def test_address_may_be_of_ipv6(agent: Agent) -> None:
    if not socket.has_ipv6:
        pytest.skip("needs IPv6")
    endpoint = HealthEndpoint("[::1]:0", agent.views())
    endpoint.start()
    assert requests.get(f"http://[::1]:{endpoint.port}/healthz", timeout=10).text == "ok\n"
    endpoint.close()
