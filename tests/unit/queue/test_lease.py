"""Lease arithmetic: an agent ends its own steps before anybody else may take it for dead."""

from __future__ import annotations

import fakeredis
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent import clock
from agent.errors import QueueUnavailable
from agent.queue import lease as leases
from agent.queue.lease import FENCE_GRACE_S, Lease

# A machine under load takes its time; what is found has to hold at any speed.
patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

LEASE_S = 30.0


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


def test_time_until_fencing_is_told_and_a_renewal_puts_it_off(hands: Clock) -> None:
    lease = Lease(LEASE_S)
    hands.now += 24.0
    assert lease.fence_due_s == pytest.approx(1.0)
    lease.renewed(hands.now, is_confirmed=True)
    assert lease.fence_due_s == pytest.approx(25.0)
    hands.now += 60.0
    assert lease.fence_due_s == 0


def test_fencing_is_due_a_sixth_of_the_lease_before_its_end(hands: Clock) -> None:
    lease = Lease(LEASE_S)
    hands.now += 24.9
    assert not lease.must_fence
    hands.now += 0.2
    assert lease.must_fence
    assert lease.age_s == pytest.approx(25.1)


def test_renewal_counts_from_when_it_was_sent_not_from_its_answer(hands: Clock) -> None:
    """An answer may take as long as a statement; the server's heartbeat stood still meanwhile."""
    lease = Lease(LEASE_S)
    sent_mono = hands.now
    hands.now += 12
    lease.renewed(sent_mono, is_confirmed=True)
    assert lease.age_s == 12


def test_late_answer_to_an_early_beat_does_not_shorten_the_lease(hands: Clock) -> None:
    lease = Lease(LEASE_S)
    hands.now += 10
    lease.renewed(hands.now, is_confirmed=True)
    lease.renewed(hands.now - 8, is_confirmed=True)
    assert lease.age_s == 0


@pytest.mark.parametrize("is_confirmed", [True, False])
def test_either_way_renews_a_lease_that_runs(hands: Clock, is_confirmed: bool) -> None:
    lease = Lease(LEASE_S)
    for _ in range(10):
        hands.now += 20
        lease.renewed(hands.now, is_confirmed=is_confirmed)
        assert not lease.must_fence


def test_lease_that_has_run_out_is_renewed_by_the_database_alone(hands: Clock) -> None:
    """Redis doesn't know whether others have taken over; a machine that wakes from suspend asks there first."""
    lease = Lease(LEASE_S)
    hands.now += 3600
    lease.renewed(hands.now, is_confirmed=False)
    assert lease.must_fence
    lease.renewed(hands.now, is_confirmed=True)
    assert not lease.must_fence


def test_new_life_has_a_new_session_and_a_whole_lease(hands: Clock) -> None:
    lease = Lease(LEASE_S)
    former = lease.session
    hands.now += 100
    assert lease.begin() == lease.session != former
    assert lease.age_s == 0


def test_grace_of_fencing_fits_what_is_left_of_the_lease(hands: Clock) -> None:
    lease = Lease(LEASE_S)
    hands.now += 25
    assert lease.fence_grace_s == FENCE_GRACE_S
    hands.now += 4
    assert lease.fence_grace_s == pytest.approx(0.5)
    hands.now += 10
    assert lease.fence_grace_s == 0


@patient
@given(lease_s=st.floats(3, 3600), waits=st.lists(st.floats(0, 4000), max_size=20))
def test_reaper_may_act_only_after_fencing_was_due(lease_s: float, waits: list[float]) -> None:
    """The reaper sees a beat at its sending at the earliest, and waits a whole lease from there."""
    with pytest.MonkeyPatch.context() as patch:
        hands = Clock()
        patch.setattr(clock, "mono", hands)
        lease = Lease(lease_s)
        seen_mono = hands.now
        for wait in waits:
            hands.now += wait
            reaper_acts = hands.now - seen_mono >= lease_s
            assert lease.must_fence or not reaper_acts
            if not lease.must_fence:
                seen_mono = hands.now
                lease.renewed(hands.now, is_confirmed=False)


def test_beat_in_redis_changes_and_outlives_some_leases() -> None:
    connection = fakeredis.FakeRedis()
    leases.beat(connection, "life-1", 1, lease_s=LEASE_S)
    first = leases.beats(connection, ["life-1", "life-2"])
    leases.beat(connection, "life-1", 2, lease_s=LEASE_S)
    second = leases.beats(connection, ["life-1", "life-2"])
    assert first["life-1"] != second["life-1"]
    assert first["life-2"] is second["life-2"] is None
    assert 3 * LEASE_S < connection.ttl(leases.beat_key("life-1")) <= 4 * LEASE_S + 1


def test_beats_of_nobody_ask_nobody() -> None:
    server = fakeredis.FakeServer()
    server.connected = False
    assert leases.beats(fakeredis.FakeRedis(server=server), []) == {}
    with pytest.raises(QueueUnavailable, match="Redis can't be used"):
        leases.beats(fakeredis.FakeRedis(server=server), ["life-1"])
