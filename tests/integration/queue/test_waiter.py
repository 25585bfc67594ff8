"""Waiting for a build: it comes at once, an end to waiting loses none, and a dead Redis is told."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from agent.clock import mono
from agent.errors import QueueUnavailable
from agent.queue.carrier import Carrier, Waiter
from agent.queue.connection import connect
from agent.queue.private import PrivateRedis
from tests.services import TcpProxy, wait_until


@pytest.fixture
def waiter(redis_url: str) -> Iterator[Waiter]:
    waiter = Waiter(redis_url, longest_wait_s=30)
    yield waiter
    waiter.close()


class Waiting:
    """A thread that waits once."""

    def __init__(self, waiter: Waiter, timeout_s: int = 30) -> None:
        self.answer: object = "none yet"
        self._waiter = waiter
        self._timeout_s = timeout_s
        self._thread = threading.Thread(target=self._wait)
        self._thread.start()

    def _wait(self) -> None:
        try:
            self.answer = self._waiter.wait("builds", self._timeout_s)
        except QueueUnavailable as error:
            self.answer = error

    def join(self) -> object:
        self._thread.join(40)
        return self.answer


def is_blocked(carrier: Carrier) -> bool:
    return int(carrier.connection.info("clients")["blocked_clients"]) > 0


def test_build_that_is_there_is_handed_out_at_once(waiter: Waiter, carrier: Carrier) -> None:
    carrier.publish("build-1", "builds")
    assert waiter.wait("builds", 30) == "build-1"
    assert carrier.in_hand("builds") == ["build-1"]


def test_build_that_comes_ends_the_wait(waiter: Waiter, carrier: Carrier) -> None:
    waiting = Waiting(waiter)
    wait_until(lambda: is_blocked(carrier))
    carrier.publish("build-1", "builds")
    assert waiting.join() == "build-1"
    assert (carrier.waiting("builds"), carrier.in_hand("builds")) == ([], ["build-1"])


def test_wait_ends_without_a_build(waiter: Waiter) -> None:
    assert waiter.wait("builds", 1) is None


def test_wake_ends_the_wait_long_before_its_time(waiter: Waiter, carrier: Carrier) -> None:
    waiting = Waiting(waiter)
    wait_until(lambda: is_blocked(carrier))
    began_mono = mono()
    carrier.wake([waiter])
    assert waiting.join() is None
    assert mono() - began_mono < 15
    carrier.publish("build-1", "builds")
    assert waiter.wait("builds", 30) == "build-1"  # and it can wait again


def test_wake_of_one_that_does_not_wait_does_no_harm(waiter: Waiter, carrier: Carrier) -> None:
    carrier.wake([waiter])
    assert waiter.client_id is None
    carrier.publish("build-1", "builds")
    assert waiter.wait("builds", 30) == "build-1"
    carrier.wake([waiter])
    carrier.publish("build-2", "builds")
    assert waiter.wait("builds", 30) == "build-2"


def test_wakes_raced_against_builds_lose_none(waiter: Waiter, carrier: Carrier) -> None:
    taken: list[str] = []
    stop = threading.Event()

    def serve() -> None:
        while not stop.is_set():
            if (build_id := waiter.wait("builds", 1)) is not None:
                taken.append(build_id)

    server = threading.Thread(target=serve)
    server.start()
    wait_until(lambda: waiter.client_id)
    for number in range(100):
        carrier.publish(f"build-{number}", "builds")
        carrier.wake([waiter])
    wait_until(lambda: len(taken) == 100, 30, lambda: f"{len(taken)} taken")
    stop.set()
    server.join(10)
    assert taken == [f"build-{number}" for number in range(100)]
    assert carrier.waiting("builds") == []


def test_redis_that_dies_under_a_wait_is_told_and_a_new_one_waited_at(private_redis: PrivateRedis) -> None:
    waiter = Waiter(private_redis.url, longest_wait_s=30)
    carrier = Carrier(connect(private_redis.url))
    waiting = Waiting(waiter)
    wait_until(lambda: is_blocked(carrier))
    private_redis.kill()
    assert isinstance(waiting.join(), QueueUnavailable)
    private_redis.start()
    carrier.publish("build-1", "builds")
    assert waiter.wait("builds", 30) == "build-1"
    waiting = Waiting(waiter)
    wait_until(lambda: is_blocked(carrier))
    carrier.wake([waiter])  # by the id of the new connection
    assert waiting.join() is None
    waiter.close()
    carrier.connection.close()


@pytest.mark.slow
def test_answer_that_comes_too_late_is_not_taken_for_the_next(redis_server: PrivateRedis) -> None:
    """What was popped for a wait that was given up is in hand, for the sweep; it answers no other wait."""
    with TcpProxy(redis_server.socket_path) as proxy:
        waiter = Waiter(f"redis://127.0.0.1:{proxy.port}/0", longest_wait_s=-2)  # three seconds in all
        carrier = Carrier(connect(redis_server.url))
        waiting = Waiting(waiter)
        wait_until(lambda: is_blocked(carrier))
        proxy.hang()
        carrier.publish("early", "builds")
        assert isinstance(waiting.join(), QueueUnavailable)
        proxy.restore()
        carrier.publish("late", "builds")
        assert waiter.wait("builds", 1) == "late"
        assert carrier.in_hand("builds") == ["early", "late"]
        waiter.close()
        carrier.connection.close()
