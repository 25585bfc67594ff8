"""Links: the last try tells, with since when."""

from __future__ import annotations

import logging

import pytest

from agent import clock
from agent.daemon.link import Link
from agent.errors import StoreUnavailable


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def hands(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(clock, "mono", made)
    return made


def test_link_is_down_until_it_has_answered(hands: Clock) -> None:
    link = Link("database")
    hands.now += 3
    assert (link.is_up, link.fault) == (False, "database: not reached yet (for 3 s)")
    link.succeed()
    assert (link.is_up, link.fault) == (True, None)


def test_outage_counts_from_its_first_fault_and_tells_the_newest(hands: Clock) -> None:
    link = Link("redis")
    link.succeed()
    hands.now += 100
    link.fail("refused")
    hands.now += 7
    link.fail("timed out\nwith more that is for the log")
    assert link.fault == "redis: timed out (for 7 s)"


def test_outage_and_its_end_are_told_once_each(hands: Clock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    link = Link("redis")
    for _ in range(3):
        link.succeed()
    for _ in range(3):
        link.fail("refused")
    link.succeed()
    events = [getattr(record, "event", "") for record in caplog.records]
    assert events == ["link.up", "link.down", "link.up"]


def test_trying_notes_how_it_ended() -> None:
    link = Link("database")
    with link.trying():
        pass
    assert link.is_up
    with pytest.raises(StoreUnavailable), link.trying():
        raise StoreUnavailable("gone")
    assert link.fault is not None
    assert link.fault.startswith("database: gone")


def test_mistake_of_ours_says_nothing_of_the_link() -> None:
    link = Link("database")
    link.succeed()
    with pytest.raises(KeyError), link.trying():
        raise KeyError("x")
    assert link.is_up
