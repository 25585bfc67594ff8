"""Time: deadlines on a clock that no one sets, and waits that grow without a herd."""

from __future__ import annotations

import time
from datetime import UTC
from itertools import islice, pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent import clock
from agent.clock import Deadline, backoff

# A machine under load takes its time; what is found has to hold at any speed.
patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


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


def test_monotonic_time_goes_on_and_counts_from_boot() -> None:
    readings = [clock.mono() for _ in range(100)]
    assert all(first <= second for first, second in pairwise(readings))
    assert clock.mono() == pytest.approx(time.clock_gettime(time.CLOCK_BOOTTIME), abs=5)


def test_sleep_takes_its_time() -> None:
    before = clock.mono()
    clock.sleep(0.05)
    assert clock.mono() - before >= 0.05


def test_wall_clock_is_aware_and_utc() -> None:
    assert clock.utc_now().tzinfo is UTC


def test_deadline_passes_at_its_moment(hands: Clock) -> None:
    deadline = Deadline.after(10)
    assert (deadline.remaining_s, deadline.is_passed) == (10, False)
    hands.now += 9.5
    assert (deadline.remaining_s, deadline.is_passed) == (0.5, False)
    hands.now += 0.5
    assert (deadline.remaining_s, deadline.is_passed) == (0.0, True)
    hands.now += 100
    assert (deadline.remaining_s, deadline.is_passed) == (0.0, True)


@pytest.mark.parametrize("seconds", [0, -5])
def test_no_time_at_all_is_now(hands: Clock, seconds: float) -> None:
    deadline = Deadline.after(seconds)
    assert (deadline.remaining_s, deadline.is_passed) == (0.0, True)


def test_deadline_of_none_never_passes(hands: Clock) -> None:
    deadline = Deadline.after(None)
    hands.now += 1e12
    assert (deadline.remaining_s, deadline.is_passed) == (None, False)


@patient
@given(st.none() | st.floats(-100, 100), st.none() | st.floats(-100, 100))
def test_earlier_of_two_is_the_one_that_passes_first(first: float | None, second: float | None) -> None:
    one, two = Deadline(first), Deadline(second)
    known = [at for at in (first, second) if at is not None]
    assert one.earlier(two).at_mono == two.earlier(one).at_mono == (min(known) if known else None)


@patient
@given(first_s=st.floats(0.01, 5), limit_s=st.floats(0.01, 60))
def test_waits_double_up_to_the_limit_each_in_its_upper_half(first_s: float, limit_s: float) -> None:
    whole_s = first_s
    for wait in islice(backoff(first_s, limit_s), 12):
        assert whole_s / 2 <= wait <= whole_s
        whole_s = min(whole_s * 2, limit_s)


def test_waits_of_a_fleet_differ() -> None:
    firsts = {next(backoff()) for _ in range(50)}
    assert len(firsts) > 40
