"""The heartbeats on a real database: they renew the lease, obey orders, and give up what is not theirs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import fakeredis
import pytest

from agent import clock
from agent.config import Settings
from agent.daemon.heartbeat import GHOST_S, RQ_LIFE_S, DatabaseHeartbeat, RedisHeartbeat
from agent.daemon.vitals import Vitals
from agent.errors import QueueUnavailable, StoreUnavailable
from agent.model.build import BuildState, Claim
from agent.model.outcome import Outcome
from agent.model.server import Identity, OrderKind, Registration, ServerState
from agent.queue import lease as leases
from agent.queue.carrier import Carrier
from agent.store import attempts, builds, orders, output, servers
from agent.store.attempts import EndResult
from agent.store.engine import Store
from tests.integration.conftest_store import AT, begun, ended, lose, make_build, make_server

LEASE_S = 30.0


@dataclass
class FakeSlot:
    """What the heartbeats know of a slot."""

    claim: Claim | None = None
    typical_s: float | None = None
    ends: list[tuple[Outcome, str]] = field(default_factory=list)
    shown: int = 0

    def end(
        self, outcome: Outcome, detail: str, *, build: tuple[str, int] | None, grace_s: float | None
    ) -> bool:
        if self.claim is None:
            return False
        if build is not None and build != (self.claim.ref.build_id, self.claim.ref.number):
            return False
        self.ends.append((outcome, detail))
        return True

    def show_life(self) -> None:
        self.shown += 1


@dataclass
class Heart:
    """A server with two slots and its heartbeat in the database."""

    store: Store
    folder: Path
    requeued: list[EndResult] = field(default_factory=list)
    changes: list[int] = field(default_factory=list)
    status: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        settings = Settings(
            state_dir=self.folder,
            lease_s=LEASE_S,
            min_free_bytes=0,
            min_free_inodes=0,
            min_free_memory_bytes=0,
        )
        for folder in (settings.workspace_dir, settings.spool_dir):
            folder.mkdir(parents=True, exist_ok=True)
        self.vitals = Vitals(settings, on_change=lambda: self.changes.append(1))
        self.vitals.redis.succeed()
        self.slots = [FakeSlot(), FakeSlot()]
        self.beat = DatabaseHeartbeat(
            store=self.store,
            registration=self.registration,
            vitals=self.vitals,
            slots=self.slots,  # type: ignore[arg-type]
            status=lambda: self.status,
            requeue=self.requeued.append,
        )

    def registration(self) -> Registration:
        return Registration(
            identity=Identity(id="server-1", name="one"),
            session=self.vitals.lease.session,
            slots=2,
            queues=["builds"],
            tags={},
            agent_version="1",
            lease_s=30.0,
        )

    def begin(self) -> None:
        """Register, and open the gate as the daemon does."""
        self.beat.register()
        self.vitals.condition.started()
        self.decide()

    def decide(self) -> None:
        self.vitals.gate.set_reasons(self.vitals.judge().reasons)

    def run(self, build_id: str = "build-1", slot: int = 0) -> Claim:
        """Have a build in a slot."""
        make_build(self.store, build_id)
        claim = self.claim(build_id)
        assert self.vitals.gate.try_enter()
        self.slots[slot].claim = claim
        return claim

    def claim(self, build_id: str) -> Claim:
        claim = builds.claim(
            self.store, build_id, server_id="server-1", session=self.vitals.lease.session, slot=0
        )
        assert claim is not None
        return claim

    def finish(self, slot: int = 0) -> None:
        """Have what is in a slot come out of it."""
        self.slots[slot].claim = None
        self.vitals.gate.leave()

    def order(self, kind: OrderKind, deadline_at: datetime | None = None) -> int:
        return orders.give(self.store, server_id="server-1", kind=kind, by="ann", deadline_at=deadline_at).id

    def result(self, order_id: int) -> str | None:
        with self.store.read() as connection:
            found = {order.id: order for order in orders.read_open(connection, "server-1")}
        if order_id in found:
            return None if found[order_id].taken_at is None else "taken"
        return "closed"


@pytest.fixture
def store(sqlite_url: str) -> Iterator[Store]:
    store = Store(sqlite_url)
    yield store
    store.dispose()


@pytest.fixture
def heart(store: Store, tmp_path: Path) -> Heart:
    made = Heart(store, tmp_path / "state")
    made.begin()
    return made


class Clock:
    """A clock that goes with the real one and can be moved ahead."""

    def __init__(self) -> None:
        self._real = clock.mono
        self.ahead_s = 0.0

    def __call__(self) -> float:
        return self._real() + self.ahead_s


@pytest.fixture
def hands(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(clock, "mono", made)
    return made


def state(heart: Heart) -> ServerState:
    return servers.get(heart.store, "server-1").state


# Beating.


def test_beat_renews_the_lease_and_says_how_the_server_is(hands: Clock, heart: Heart) -> None:
    heart.status = {"busy": 1}
    hands.ahead_s += LEASE_S - 1
    assert heart.vitals.lease.must_fence
    heart.beat.cycle()
    assert heart.vitals.lease.age_s < 10
    server = servers.get(heart.store, "server-1")
    assert (server.state, server.beat, server.status) == (ServerState.ACCEPTING, 1, {"busy": 1})
    heart.vitals.redis.fail("refused")
    heart.beat.cycle()
    server = servers.get(heart.store, "server-1")
    assert server.state is ServerState.NOT_READY
    assert (server.state_reason or "").startswith("redis: refused")


def test_registration_is_of_this_life_and_opens_the_link(heart: Heart) -> None:
    server = servers.get(heart.store, "server-1")
    assert (server.session, server.name, server.slots) == (heart.vitals.lease.session, "one", 2)
    assert heart.vitals.database.is_up


def test_registering_closes_what_the_former_life_left_and_queues_it(store: Store, tmp_path: Path) -> None:
    make_server(store, session="former")
    make_build(store)
    assert builds.claim(store, "build-1", server_id="server-1", session="former", slot=0) is not None
    heart = Heart(store, tmp_path / "state")
    heart.begin()
    assert builds.get(store, "build-1").state is BuildState.QUEUED
    assert [(item.build_id, item.requeued) for item in heart.requeued] == [("build-1", True)]


def test_absent_database_is_a_fault_of_the_link_and_renews_nothing(
    hands: Clock, heart: Heart, store: Store
) -> None:
    with store.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE servers RENAME TO elsewhere")
        connection.exec_driver_sql("CREATE VIEW servers AS SELECT * FROM elsewhere")  # which takes no update
    hands.ahead_s += 20
    with pytest.raises(StoreUnavailable):
        heart.beat.cycle()
    assert not heart.vitals.database.is_up
    assert heart.vitals.lease.age_s >= 20


# Fencing.


def test_life_taken_for_lost_ends_its_builds_and_takes_none(heart: Heart) -> None:
    heart.run()
    lose(heart.store)
    heart.beat.cycle()
    assert [outcome for outcome, _ in heart.slots[0].ends] == [Outcome.LOST]
    assert not heart.vitals.gate.is_open
    heart.decide()  # as the daemon's main thread does every second
    assert not heart.vitals.gate.is_open
    assert "taken for lost" in heart.vitals.gate.reasons[0]


def test_fenced_life_begins_anew_when_its_steps_have_ended(heart: Heart) -> None:
    heart.run()
    former = heart.vitals.lease.session
    lose(heart.store)
    heart.beat.cycle()
    heart.beat.cycle()
    assert heart.vitals.lease.session == former  # a build of it is still being ended
    assert state(heart) is ServerState.LOST
    heart.finish()
    heart.beat.cycle()
    assert heart.vitals.lease.session != former
    server = servers.get(heart.store, "server-1")
    assert server.session == heart.vitals.lease.session
    assert builds.get(heart.store, "build-1").state is BuildState.QUEUED
    assert [item.build_id for item in heart.requeued] == ["build-1"]
    heart.decide()
    assert heart.vitals.gate.is_open


def test_second_agent_of_the_same_server_fences_the_first(heart: Heart) -> None:
    heart.run()
    make_server(heart.store, session="other")
    heart.beat.cycle()
    assert heart.slots[0].ends[0][0] is Outcome.LOST


# Attempts.


def test_cancelled_build_is_ended_in_its_slot_alone(heart: Heart) -> None:
    heart.run("build-1", 0)
    heart.run("build-2", 1)
    builds.request_cancel(heart.store, "build-1", by="bob")
    heart.beat.cycle()
    assert heart.slots[0].ends == [(Outcome.CANCELLED, "by bob")]
    assert heart.slots[1].ends == []


def test_attempt_closed_by_others_is_ended(heart: Heart) -> None:
    claim = heart.run()
    attempts.end(heart.store, claim.ref, ended(Outcome.LOST))
    heart.beat.cycle()
    assert heart.slots[0].ends == [(Outcome.LOST, "closed by others")]


def test_attempt_claimed_while_the_database_was_asked_is_left_alone(
    heart: Heart, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is held now and not in the answer, which is older."""
    ask = servers.beat

    def ask_then_claim(*args: Any, **fields: Any) -> Any:
        answer = ask(*args, **fields)
        heart.run()
        return answer

    monkeypatch.setattr(servers, "beat", ask_then_claim)
    heart.beat.cycle()
    assert heart.slots[0].ends == []


def test_running_build_is_left_alone(heart: Heart) -> None:
    heart.run()
    for _ in range(3):
        heart.beat.cycle()
    assert heart.slots[0].ends == []


def test_attempt_in_no_slot_is_given_back_with_patience(hands: Clock, heart: Heart) -> None:
    """A claim whose answer was lost: on record as ours, and nobody here knows of it."""
    make_build(heart.store)
    heart.claim("build-1")
    heart.beat.cycle()
    hands.ahead_s += GHOST_S - 5
    heart.beat.cycle()
    assert builds.get(heart.store, "build-1").state is BuildState.RUNNING
    hands.ahead_s += 6
    heart.beat.cycle()
    build = builds.get(heart.store, "build-1")
    assert (build.state, build.attempts_allowed) == (BuildState.QUEUED, 4)  # it used up no attempt


def test_attempt_that_reaches_its_slot_in_time_is_no_ghost(hands: Clock, heart: Heart) -> None:
    make_build(heart.store)
    claim = heart.claim("build-1")
    heart.beat.cycle()
    heart.slots[0].claim = claim
    for _ in range(3):
        hands.ahead_s += GHOST_S
        heart.beat.cycle()
    assert builds.get(heart.store, "build-1").state is BuildState.RUNNING


def test_attempt_that_has_run_something_is_not_given_back(hands: Clock, heart: Heart) -> None:
    make_build(heart.store)
    claim = heart.claim("build-1")
    output.apply(heart.store, [(claim.ref, begun())])
    for _ in range(3):
        heart.beat.cycle()
        hands.ahead_s += GHOST_S
    assert builds.get(heart.store, "build-1").state is BuildState.RUNNING


# Orders.


def test_drain_closes_the_gate_at_once_and_is_done_when_nothing_is_in_hand(heart: Heart) -> None:
    heart.run()
    order = heart.order(OrderKind.DRAIN)
    assert heart.beat.cycle() == 0.0  # and beats again, so that whoever gave it sees the server obey
    assert not heart.vitals.gate.try_enter()
    assert heart.vitals.gate.reasons == ("drain asked by ann",)
    assert heart.result(order) == "taken"
    heart.beat.cycle()
    assert state(heart) is ServerState.DRAINING
    heart.finish()
    heart.beat.cycle()
    assert heart.result(order) == "closed"
    heart.beat.cycle()
    assert state(heart) is ServerState.DRAINED


def test_drain_of_an_idle_server_is_done_only_behind_a_closed_gate(heart: Heart) -> None:
    """An operator who reads "drained" ends the machine (F06)."""
    order = heart.order(OrderKind.DRAIN)
    heart.beat.cycle()
    assert heart.result(order) == "closed"
    assert not heart.vitals.gate.try_enter()


def test_drain_is_not_done_while_the_gate_is_open(heart: Heart, monkeypatch: pytest.MonkeyPatch) -> None:
    order = heart.order(OrderKind.DRAIN)
    close = heart.vitals.gate.close
    # The main thread opens it once more, by a judgement from before the order.
    monkeypatch.setattr(
        heart.vitals.gate, "close", lambda reason: (close(reason), heart.vitals.gate.set_reasons([]))
    )
    heart.beat.cycle()
    assert heart.result(order) == "taken"
    heart.decide()
    heart.beat.cycle()
    assert heart.result(order) == "closed"


@pytest.mark.parametrize("kind", [OrderKind.RESUME, OrderKind.QUARANTINE])
def test_order_that_is_a_word_is_done_when_it_is_taken(heart: Heart, kind: OrderKind) -> None:
    heart.run()
    order = heart.order(kind)
    heart.beat.cycle()
    assert heart.result(order) == "closed"
    assert heart.vitals.gate.is_open == (kind is OrderKind.RESUME)


def test_later_order_replaces_an_open_one(heart: Heart) -> None:
    heart.run()
    drain = heart.order(OrderKind.DRAIN)
    heart.beat.cycle()
    resume = heart.order(OrderKind.RESUME)
    heart.beat.cycle()
    assert (heart.result(drain), heart.result(resume)) == ("closed", "closed")
    heart.decide()
    assert heart.vitals.gate.is_open


def test_orders_given_while_the_agent_was_away_count_in_their_order(heart: Heart) -> None:
    wanted = []
    for first, second in ((OrderKind.RESUME, OrderKind.DRAIN), (OrderKind.DRAIN, OrderKind.RESUME)):
        heart.order(first)
        heart.order(second)
        heart.beat.cycle()
        wanted.append(heart.vitals.condition.wanted.kind)
    assert wanted == [OrderKind.DRAIN, OrderKind.RESUME]


def test_order_is_taken_once(heart: Heart) -> None:
    heart.run()
    heart.order(OrderKind.DRAIN)
    assert heart.beat.cycle() == 0.0
    before = len(heart.changes)
    assert heart.beat.cycle() is None
    assert len(heart.changes) == before


def test_deadline_of_a_drain_is_taken_with_it(heart: Heart) -> None:
    heart.order(OrderKind.DRAIN, AT)
    heart.beat.cycle()
    assert heart.vitals.condition.drain_deadline.is_passed


def test_quarantine_outlives_the_agent(store: Store, tmp_path: Path) -> None:
    first = Heart(store, tmp_path / "one")
    first.begin()
    first.order(OrderKind.QUARANTINE)
    first.beat.cycle()
    second = Heart(store, tmp_path / "two")
    second.begin()
    assert second.vitals.gate.reasons == ("quarantine asked by ann",)


def test_drain_outlives_being_out_of_reach(heart: Heart) -> None:
    """The record forgets a drain with the life that took it; the agent, which lives on, does not."""
    heart.run()
    heart.order(OrderKind.DRAIN)
    heart.beat.cycle()
    lose(heart.store)
    heart.beat.cycle()
    heart.finish()
    heart.beat.cycle()
    assert heart.vitals.fenced is None
    heart.decide()
    assert heart.vitals.gate.reasons == ("drain asked by ann",)


def test_resume_given_while_the_agent_was_out_of_reach_ends_its_drain(heart: Heart) -> None:
    heart.order(OrderKind.DRAIN)
    heart.beat.cycle()
    lose(heart.store)
    heart.beat.cycle()
    heart.order(OrderKind.RESUME)
    heart.beat.cycle()
    heart.decide()
    assert heart.vitals.gate.is_open


def test_leaving_server_closes_the_drain_that_ends_with_it(heart: Heart) -> None:
    heart.run()
    order = heart.order(OrderKind.TERMINATE)
    heart.beat.cycle()
    heart.finish()
    heart.beat.leave(ServerState.TERMINATED, None)
    assert heart.result(order) == "closed"
    assert state(heart) is ServerState.TERMINATED


def test_life_that_was_taken_for_lost_does_not_sign_off_for_its_successor(heart: Heart) -> None:
    lose(heart.store)
    heart.beat.cycle()
    heart.beat.leave(ServerState.STOPPED, None)
    assert state(heart) is ServerState.LOST


# What the server learns.


def test_draining_server_learns_how_long_its_builds_usually_take(heart: Heart) -> None:
    first = heart.run("build-1")
    attempts.end(heart.store, first.ref, ended(ended_at=clock.utc_now()))
    heart.finish()
    heart.run("build-2")
    heart.beat.cycle()
    assert heart.slots[0].typical_s is None
    heart.order(OrderKind.DRAIN)
    heart.beat.cycle()
    assert heart.slots[0].typical_s is not None
    assert heart.slots[0].typical_s < 60


def test_clock_of_the_database_is_looked_at_with_the_first_beat(heart: Heart) -> None:
    assert heart.vitals.database.skew_s is None
    heart.beat.cycle()
    assert heart.vitals.database.skew_s == 0.0  # SQLite has ours


# The heartbeat in Redis.


@dataclass
class Pulse:
    """The heartbeat in a Redis that can be taken away."""

    vitals: Vitals

    def __post_init__(self) -> None:
        self.server = fakeredis.FakeServer()
        self.connection = fakeredis.FakeRedis(server=self.server)
        self.slots = [FakeSlot(), FakeSlot()]
        self.beat = RedisHeartbeat(
            carrier=Carrier(self.connection),
            vitals=self.vitals,
            slots=self.slots,  # type: ignore[arg-type]
        )

    def values(self) -> Mapping[str, bytes | None]:
        return leases.beats(self.connection, [self.vitals.lease.session])


@pytest.fixture
def pulse(hands: Clock, heart: Heart) -> Pulse:
    return Pulse(heart.vitals)


def test_each_beat_in_redis_differs_and_renews_the_lease(hands: Clock, pulse: Pulse) -> None:
    seen = []
    for _ in range(3):
        hands.ahead_s += 10
        pulse.beat.cycle()
        seen.append(pulse.values()[pulse.vitals.lease.session])
        assert pulse.vitals.lease.age_s < 5
    assert None not in seen
    assert len(set(seen)) == 3


def test_absent_redis_is_a_fault_of_the_link_and_renews_nothing(hands: Clock, pulse: Pulse) -> None:
    pulse.beat.cycle()
    pulse.server.connected = False
    hands.ahead_s += 20
    with pytest.raises(QueueUnavailable):
        pulse.beat.cycle()
    assert not pulse.vitals.redis.is_up
    assert pulse.vitals.lease.age_s >= 20
    pulse.server.connected = True
    pulse.beat.cycle()
    assert pulse.vitals.redis.is_up


def test_lease_that_ran_out_is_not_renewed_by_redis(hands: Clock, pulse: Pulse) -> None:
    hands.ahead_s += LEASE_S
    pulse.beat.cycle()
    assert pulse.vitals.lease.must_fence


def test_slots_are_shown_at_first_each_minute_and_after_an_outage(hands: Clock, pulse: Pulse) -> None:
    pulse.beat.cycle()
    assert [slot.shown for slot in pulse.slots] == [1, 1]
    pulse.beat.cycle()
    assert pulse.slots[0].shown == 1
    hands.ahead_s += RQ_LIFE_S
    pulse.beat.cycle()
    assert pulse.slots[0].shown == 2
    pulse.server.connected = False
    with pytest.raises(QueueUnavailable):
        pulse.beat.cycle()
    pulse.server.connected = True
    pulse.beat.cycle()
    assert pulse.slots[0].shown == 3
    pulse.connection.flushall()
    pulse.beat.cycle()
    assert pulse.slots[0].shown == 4


def test_clock_of_redis_is_looked_at_with_the_first_beat(pulse: Pulse) -> None:
    assert pulse.vitals.redis.skew_s is None
    pulse.beat.cycle()
    assert pulse.vitals.redis.skew_s is not None
    assert abs(pulse.vitals.redis.skew_s) < 5


def test_suspension_through_rq_is_a_reason_while_it_lasts(heart: Heart, pulse: Pulse) -> None:
    pulse.connection.set("rq:suspended", 1)
    pulse.beat.cycle()
    heart.decide()
    assert heart.vitals.gate.reasons == ("suspended through RQ: `rq resume` ends it",)
    pulse.connection.delete("rq:suspended")
    pulse.beat.cycle()
    heart.decide()
    assert heart.vitals.gate.is_open
