"""The order of precedence: stop, quarantine, drain, start, faults; and deadlines that no wall clock moves."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from agent import clock
from agent.daemon.condition import Condition, Wanted
from agent.host.notices import Notice
from agent.model.server import OrderKind, ServerState

FAULTS = ["database: gone"]
DRAIN = Wanted(kind=OrderKind.DRAIN, by="ann", note="new image")
TERMINATE = Wanted(kind=OrderKind.TERMINATE, by="ann")
QUARANTINE = Wanted(kind=OrderKind.QUARANTINE, by="ann", note="odd")
RESUME = Wanted(kind=OrderKind.RESUME, by="ann")


def condition(wanted: Wanted = RESUME, *, is_started: bool = True, stop: str = "") -> Condition:
    made = Condition(lambda: None)
    made.want(wanted)
    if is_started:
        made.started()
    if stop:
        made.stop(stop)
    return made


@pytest.mark.parametrize(
    ("made", "in_hand", "faults", "state", "reasons"),
    [
        (condition(), 0, [], ServerState.ACCEPTING, []),
        (condition(), 2, [], ServerState.ACCEPTING, []),
        (condition(), 0, FAULTS, ServerState.NOT_READY, FAULTS),
        (condition(is_started=False), 0, [], ServerState.STARTING, ["starting"]),
        (condition(is_started=False), 0, FAULTS, ServerState.STARTING, ["starting", *FAULTS]),
        (condition(DRAIN), 1, [], ServerState.DRAINING, ["drain asked by ann: new image"]),
        (condition(DRAIN), 0, [], ServerState.DRAINED, ["drain asked by ann: new image"]),
        (condition(DRAIN), 1, FAULTS, ServerState.DRAINING, ["drain asked by ann: new image", *FAULTS]),
        (condition(DRAIN, is_started=False), 0, [], ServerState.DRAINED, ["drain asked by ann: new image"]),
        (condition(TERMINATE), 1, [], ServerState.DRAINING, ["terminate asked by ann"]),
        (condition(TERMINATE), 0, FAULTS, ServerState.DRAINED, ["terminate asked by ann", *FAULTS]),
        (condition(QUARANTINE), 1, [], ServerState.QUARANTINED, ["quarantine asked by ann: odd"]),
        (
            condition(QUARANTINE),
            0,
            FAULTS,
            ServerState.QUARANTINED,
            ["quarantine asked by ann: odd", *FAULTS],
        ),
        (
            condition(QUARANTINE, is_started=False),
            0,
            [],
            ServerState.QUARANTINED,
            ["quarantine asked by ann: odd"],
        ),
        (condition(stop="stopping"), 0, [], ServerState.DRAINING, ["stopping"]),
        (condition(stop="stopping"), 1, FAULTS, ServerState.DRAINING, ["stopping", *FAULTS]),
        (condition(QUARANTINE, stop="stopping"), 0, [], ServerState.DRAINING, ["stopping"]),
        (condition(DRAIN, stop="stopping"), 0, [], ServerState.DRAINING, ["stopping"]),
        (condition(is_started=False, stop="stopping"), 0, [], ServerState.DRAINING, ["stopping"]),
    ],
)
def test_precedence(
    made: Condition, in_hand: int, faults: list[str], state: ServerState, reasons: list[str]
) -> None:
    verdict = made.judge(in_hand=in_hand, faults=faults)
    assert (verdict.state, list(verdict.reasons)) == (state, reasons)


def test_only_an_accepting_server_has_no_reason() -> None:
    for wanted in (RESUME, DRAIN, TERMINATE, QUARANTINE):
        for is_started in (True, False):
            for stop in ("", "stopping"):
                for in_hand in (0, 1):
                    for faults in ([], FAULTS):
                        made = condition(wanted, is_started=is_started, stop=stop)
                        verdict = made.judge(in_hand=in_hand, faults=faults)
                        assert (verdict.state is ServerState.ACCEPTING) == (not verdict.reasons)


def test_newest_order_counts_and_is_told() -> None:
    told: list[int] = []
    made = Condition(lambda: told.append(1))
    made.started()
    for wanted in (DRAIN, QUARANTINE, RESUME):
        made.want(wanted)
    assert made.judge(in_hand=0, faults=[]).state is ServerState.ACCEPTING
    assert made.wanted is RESUME
    assert len(told) == 3


def test_first_reason_to_stop_stays_and_no_order_undoes_it() -> None:
    made = condition(stop="the agent is stopping")
    made.stop("another reason")
    made.want(RESUME)
    assert made.is_stopping
    assert made.judge(in_hand=0, faults=[]).reasons == ["the agent is stopping"]


@pytest.mark.parametrize(("wanted", "expected"), [(TERMINATE, True), (DRAIN, False), (RESUME, False)])
def test_only_terminate_asks_the_server_to_leave(wanted: Wanted, expected: bool) -> None:
    assert condition(wanted).is_leaving_asked is expected


def test_order_of_nobody_in_particular_has_words() -> None:
    assert Wanted(kind=OrderKind.DRAIN).words == "drain asked by somebody"


# Deadlines.


class WallClock:
    """A wall clock that the test sets."""

    def __init__(self) -> None:
        self.now = datetime(2026, 5, 4, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def wall(monkeypatch: pytest.MonkeyPatch) -> WallClock:
    made = WallClock()
    monkeypatch.setattr(clock, "utc_now", made)
    return made


def noticed(at: datetime | None = None, wanted: Wanted = RESUME) -> Condition:
    made = condition(wanted)
    made.notice(Notice(words="spot notice", at=at), margin_s=20)
    return made


@pytest.mark.parametrize(
    ("wanted", "in_hand", "state", "reason"),
    [
        (RESUME, 1, ServerState.DRAINING, "spot notice"),
        (RESUME, 0, ServerState.DRAINED, "spot notice"),
        (DRAIN, 1, ServerState.DRAINING, "drain asked by ann: new image"),
        (QUARANTINE, 0, ServerState.QUARANTINED, "quarantine asked by ann"),
    ],
)
def test_f08_notice_of_the_cloud_drains_behind_what_operators_say(
    wanted: Wanted, in_hand: int, state: ServerState, reason: str
) -> None:
    verdict = noticed(wanted=wanted).judge(in_hand=in_hand, faults=[])
    assert verdict.state is state
    assert verdict.reasons[0].startswith(reason)


def test_f08_notice_that_is_taken_back_is_news_once() -> None:
    made = noticed()
    assert not made.notice(Notice(words="spot notice"), margin_s=20)
    assert made.notice(None, margin_s=20)
    assert not made.notice(None, margin_s=20)
    assert made.judge(in_hand=0, faults=[]).state is ServerState.ACCEPTING


def test_f08_end_is_the_notices_less_the_margin_and_never_later_than_the_operators(wall: WallClock) -> None:
    made = noticed(wall.now + timedelta(seconds=120))
    assert 99 < (made.drain_deadline.remaining_s or 0) <= 100
    made.want(Wanted(kind=OrderKind.DRAIN, deadline_at=wall.now + timedelta(seconds=50)))
    assert 49 < (made.drain_deadline.remaining_s or 0) <= 50
    made.want(Wanted(kind=OrderKind.DRAIN, deadline_at=wall.now + timedelta(hours=1)))
    assert 99 < (made.drain_deadline.remaining_s or 0) <= 100
    assert made.give_back_words == "spot notice"


def test_order_without_a_deadline_has_none() -> None:
    assert condition(DRAIN).drain_deadline.remaining_s is None


def test_deadline_is_measured_once_and_a_clock_set_later_moves_it_no_more(wall: WallClock) -> None:
    deadline_at = wall.now + timedelta(hours=1)
    made = condition(Wanted(kind=OrderKind.DRAIN, deadline_at=deadline_at))
    wall.now += timedelta(days=1)
    remaining_s = made.drain_deadline.remaining_s
    assert remaining_s is not None
    assert 3590 < remaining_s <= 3600
    wall.now -= timedelta(days=2)
    assert not made.drain_deadline.is_passed


def test_deadline_that_has_passed_is_now(wall: WallClock) -> None:
    made = condition(Wanted(kind=OrderKind.DRAIN, deadline_at=wall.now - timedelta(hours=1)))
    assert made.drain_deadline.is_passed


def test_next_order_takes_the_deadline_of_the_former_with_it(wall: WallClock) -> None:
    made = condition(Wanted(kind=OrderKind.DRAIN, deadline_at=wall.now))
    made.want(RESUME)
    assert not made.drain_deadline.is_passed
