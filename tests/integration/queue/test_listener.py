"""The listener: what RQ and the console say arrives; what anybody else says does no harm."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import redis
from rq.command import PUBSUB_CHANNEL_TEMPLATE, send_shutdown_command, send_stop_job_command

from agent import clock
from agent.errors import QueueUnavailable
from agent.queue import listen
from agent.queue.connection import connect
from agent.queue.listen import Listener, nudge, nudge_channel
from agent.queue.private import PrivateRedis
from tests.services import wait_until

SLOT = "server-1.0"


class Ear:
    """A listener in a thread of its own, and what it has heard."""

    def __init__(self, connection: redis.Redis) -> None:
        self.commands: list[Mapping[str, Any]] = []
        self.nudges = 0
        self.faults: list[str] = []
        self._stop = threading.Event()
        self.listener = Listener(
            connection, server_id="server-1", workers={SLOT: self._obey}, on_nudge=self._note
        )
        self._thread = threading.Thread(target=self._listen)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join(20)
        self.listener.close()

    def _listen(self) -> None:
        while not self._stop.is_set():
            try:
                self.listener.cycle(0.05)
            except QueueUnavailable as error:
                self.faults.append(str(error))
                self._stop.wait(0.05)

    def _obey(self, command: Mapping[str, Any]) -> None:
        self.commands.append(command)
        if command["command"] == "unknown to us":
            raise KeyError(command["job_id"])

    def _note(self) -> None:
        self.nudges += 1


@pytest.fixture
def ear(connection: redis.Redis) -> Iterator[Ear]:
    ear = Ear(connection)
    ear.start()
    wait_until(lambda: connection.pubsub_numsub(nudge_channel("server-1"))[0][1] == 1)
    yield ear
    ear.close()


def test_nudge_arrives_at_its_server_alone(ear: Ear, connection: redis.Redis) -> None:
    nudge(connection, "server-2")
    nudge(connection, "server-1")
    wait_until(lambda: ear.nudges)
    assert ear.nudges == 1
    assert ear.commands == []


def test_commands_of_rq_arrive_at_their_slot(ear: Ear, connection: redis.Redis) -> None:
    send_shutdown_command(connection, SLOT)
    send_shutdown_command(connection, "server-1.1")
    wait_until(lambda: ear.commands)
    assert [command["command"] for command in ear.commands] == ["shutdown"]


def stop_job(connection: redis.Redis) -> None:
    connection.hset("rq:job:build-1", mapping={"data": "x", "worker_name": SLOT, "status": "started"})
    send_stop_job_command(connection, "build-1", serializer="json")


def test_stop_job_names_its_job(ear: Ear, connection: redis.Redis) -> None:
    stop_job(connection)
    wait_until(lambda: ear.commands)
    assert ear.commands[0]["job_id"] == "build-1"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xfe",
        b"not json",
        b"[]",
        b"7",
        b"null",
        b"{}",
        b"[" * 200_000,
        b'{"command": "unknown to us"}',
        b'{"command": 1e999}',
    ],
    ids=range(10),
)
def test_any_bytes_on_the_channel_do_no_harm(ear: Ear, connection: redis.Redis, data: bytes) -> None:
    connection.publish(PUBSUB_CHANNEL_TEMPLATE % SLOT, data)
    connection.publish(nudge_channel("server-1"), data)
    send_shutdown_command(connection, SLOT)
    wait_until(lambda: ear.nudges and {"command": "shutdown"}.items() <= _last(ear).items())
    assert ear.faults == []


def _last(ear: Ear) -> Mapping[str, Any]:
    last = ear.commands[-1] if ear.commands else {}
    return last if isinstance(last, dict) else {}


def test_listener_subscribes_anew_after_redis_was_away(private_redis: PrivateRedis) -> None:
    connection = connect(private_redis.url)
    ear = Ear(connection)
    ear.start()
    wait_until(lambda: connection.pubsub_numsub(nudge_channel("server-1"))[0][1] == 1)
    private_redis.kill()
    wait_until(lambda: ear.faults)
    private_redis.start()
    wait_until(lambda: connection.pubsub_numsub(nudge_channel("server-1"))[0][1] == 1)
    nudge(connection, "server-1")
    wait_until(lambda: ear.nudges)
    assert "Redis can't be used" in ear.faults[0]
    ear.close()
    connection.close()


@pytest.fixture
def move_clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    offset = 0.0
    real = clock.mono

    def move(seconds: float) -> None:
        nonlocal offset
        offset += seconds

    monkeypatch.setattr(clock, "mono", lambda: real() + offset)
    return move


def test_redis_that_says_nothing_is_noticed_by_an_unanswered_ping(
    private_redis: PrivateRedis, move_clock: Callable[[float], None]
) -> None:
    """A network that swallows packets closes no connection."""
    connection = connect(private_redis.url)
    listener = Listener(connection, server_id="server-1", workers={}, on_nudge=lambda: None)
    listener.cycle(0.05)
    private_redis.pause()
    move_clock(listen.PING_S)
    listener.cycle(0.05)  # asks
    move_clock(listen.PING_S)
    with pytest.raises(QueueUnavailable, match="no answer to a ping"):
        listener.cycle(0.05)
    private_redis.resume()
    listener.cycle(0.05)
    listener.close()
    connection.close()


def test_redis_that_answers_pings_is_not_given_up(
    connection: redis.Redis, move_clock: Callable[[float], None]
) -> None:
    listener = Listener(connection, server_id="server-1", workers={}, on_nudge=lambda: None)
    for _ in range(4):
        for _ in range(5):
            listener.cycle(0.05)
        move_clock(listen.PING_S)
    assert connection.pubsub_numsub(nudge_channel("server-1"))[0][1] == 1
    listener.close()
    wait_until(lambda: connection.pubsub_numsub(nudge_channel("server-1"))[0][1] == 0)


def test_nudge_that_can_not_be_sent_is_told(private_redis: PrivateRedis) -> None:
    connection = connect(private_redis.url)
    private_redis.stop()
    with pytest.raises(QueueUnavailable):
        nudge(connection, "server-1")
    connection.close()


def test_command_on_the_wire_is_the_one_rq_sends(connection: redis.Redis) -> None:
    """RQ's own format, held here so that a new release that changes it is noticed."""
    pubsub = connection.pubsub()  # type: ignore[no-untyped-call]
    pubsub.subscribe(PUBSUB_CHANNEL_TEMPLATE % SLOT)
    send_shutdown_command(connection, SLOT)

    def heard() -> bytes:
        message = pubsub.get_message(timeout=0.1) or {}
        return bytes(message["data"]) if message.get("type") == "message" else b""

    assert json.loads(wait_until(heard))["command"] == "shutdown"
    pubsub.close()
