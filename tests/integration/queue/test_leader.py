"""The leader: only one, patient with the living, thorough with the dead, on a clock that the tests move."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import redis
from rq.executions import Execution

from agent import clock
from agent.errors import QueueUnavailable
from agent.metrics import catalogue as gauge
from agent.metrics.reading import GaugeValue
from agent.metrics.registry import Metrics
from agent.model.build import AttemptRef, BuildState
from agent.model.outcome import Outcome
from agent.model.server import ServerState
from agent.queue import leader as leading
from agent.queue import lease as leases
from agent.queue.carrier import Carrier
from agent.queue.connection import connect
from agent.queue.job import SERIALIZER, BuildJob
from agent.queue.leader import LEADER_KEY, PATIENCE_S, RQ_CLEANING_S, Leader
from agent.queue.private import PrivateRedis
from agent.store import attempts, builds, servers
from agent.store.engine import Store
from tests.integration.conftest_store import beat, claim, make_build, make_server, running

LEASE_S = 30.0
MakeLeader = Callable[..., Leader]


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


@pytest.fixture
def make_leader(store: Store, carrier: Carrier) -> MakeLeader:
    def make(session: str = "leader-life", **fields: object) -> Leader:
        known: dict[str, object] = {
            "store": store,
            "carrier": carrier,
            "metrics": Metrics(),
            "lease_s": LEASE_S,
            "sweep_s": 2.5,
            "session": lambda: session,
        }
        made = Leader(**known | fields)  # type: ignore[arg-type]
        made.watch_queues(["builds"])
        return made

    return make


def beat_in_redis(carrier: Carrier, count: int, session: str = "life-1") -> None:
    leases.beat(carrier.connection, session, count, lease_s=LEASE_S)


def state(store: Store, server_id: str = "server-1") -> ServerState:
    return servers.get(store, server_id).state


# Who leads.


def test_one_leads_and_the_others_wait(make_leader: MakeLeader) -> None:
    first, second = make_leader("life-a"), make_leader("life-b")
    for _ in range(3):
        first.cycle()
        second.cycle()
        assert (first.is_leading, second.is_leading) == (True, False)


def test_another_leads_at_once_when_the_leader_resigns(make_leader: MakeLeader) -> None:
    first, second = make_leader("life-a"), make_leader("life-b")
    first.cycle()
    second.cycle()
    first.resign()
    second.cycle()
    first.cycle()
    assert (first.is_leading, second.is_leading) == (False, True)


def test_who_does_not_lead_can_not_resign_for_another(make_leader: MakeLeader) -> None:
    first, second = make_leader("life-a"), make_leader("life-b")
    first.cycle()
    second.resign()
    second.cycle()
    assert (first.is_leading, second.is_leading) == (True, False)


def test_leadership_lapses_when_the_leader_is_gone(make_leader: MakeLeader, connection: redis.Redis) -> None:
    first, second = make_leader("life-a"), make_leader("life-b")
    first.cycle()
    assert 0 < connection.pttl(LEADER_KEY) <= 6000
    connection.pexpire(LEADER_KEY, 1)
    for _ in range(1000):
        second.cycle()
        if second.is_leading:
            break
    assert second.is_leading
    first.cycle()
    assert not first.is_leading


def test_leader_outlives_a_redis_that_comes_back_empty(
    make_leader: MakeLeader, connection: redis.Redis
) -> None:
    first = make_leader()
    first.cycle()
    connection.flushall()
    connection.script_flush()
    first.cycle()
    assert first.is_leading


def test_leader_without_redis_takes_nobody_for_dead(
    hands: Clock, store: Store, private_redis: PrivateRedis, make_leader: MakeLeader
) -> None:
    """Who can't read both heartbeats must not judge by one."""
    carrier = Carrier(connect(private_redis.url))
    leader = make_leader(carrier=carrier)
    ref = running(store)
    leader.cycle()
    private_redis.stop()
    hands.now += 10 * LEASE_S
    with pytest.raises(QueueUnavailable):
        leader.cycle()
    with pytest.raises(QueueUnavailable):
        leader.reap()
    assert attempts.list_attempts(store, ref.build_id)[0].state == "running"
    carrier.connection.close()


# The reaper.


def test_server_silent_for_a_lease_is_lost_and_its_build_queued_again(
    hands: Clock, store: Store, carrier: Carrier, make_leader: MakeLeader
) -> None:
    running(store)
    leader = make_leader()
    leader.cycle()
    hands.now += LEASE_S - 0.1
    leader.cycle()
    assert state(store) is ServerState.STARTING
    assert builds.get(store, "build-1").state is BuildState.RUNNING
    hands.now += 0.2
    leader.cycle()
    assert state(store) is ServerState.LOST
    build = builds.get(store, "build-1")
    assert (build.state, build.attempt) == (BuildState.QUEUED, 1)
    assert attempts.list_attempts(store, "build-1")[0].outcome is Outcome.LOST
    assert carrier.waiting("builds") == ["build-1"]
    assert not beat(store).is_current


@pytest.mark.parametrize("where", ["database", "redis"])
def test_heartbeat_in_one_place_keeps_a_server_alive(
    hands: Clock, store: Store, carrier: Carrier, make_leader: MakeLeader, where: str
) -> None:
    running(store)
    leader = make_leader()
    for count in range(20):
        leader.cycle()
        hands.now += LEASE_S / 2
        if where == "database":
            assert beat(store).is_current
        else:
            beat_in_redis(carrier, count)
    leader.cycle()
    assert builds.get(store, "build-1").state is BuildState.RUNNING
    hands.now += LEASE_S  # and then in neither
    leader.cycle()
    assert state(store) is ServerState.LOST


def test_lease_counts_from_the_last_beat_wherever_it_was(
    hands: Clock, store: Store, carrier: Carrier, make_leader: MakeLeader
) -> None:
    running(store)
    leader = make_leader()
    leader.cycle()
    hands.now += 20
    beat(store)
    leader.cycle()
    hands.now += 20
    beat_in_redis(carrier, 1)
    leader.cycle()
    hands.now += LEASE_S - 1
    leader.cycle()
    assert builds.get(store, "build-1").state is BuildState.RUNNING


@pytest.mark.parametrize(("own_s", "waits_s"), [(10.0, 10.0), (100.0, 100.0), (None, LEASE_S)])
def test_server_is_measured_by_its_own_lease(
    hands: Clock, store: Store, make_leader: MakeLeader, own_s: float | None, waits_s: float
) -> None:
    """While a new `lease_s` is rolled out, servers with the old one run beside the new (F10)."""
    make_server(store, lease_s=own_s)
    running(store)
    leader = make_leader()
    leader.cycle()
    hands.now += waits_s - 0.1
    leader.cycle()
    assert builds.get(store, "build-1").state is BuildState.RUNNING
    hands.now += 0.2
    leader.cycle()
    assert state(store) is ServerState.LOST


def test_lease_is_that_of_the_life_that_holds_it(hands: Clock, store: Store, make_leader: MakeLeader) -> None:
    """A server that begins a new life with a longer lease has that from its first moment on."""
    make_server(store, lease_s=10.0)
    leader = make_leader()
    leader.cycle()
    hands.now += 9
    make_server(store, session="life-2", lease_s=60.0)
    leader.cycle()
    hands.now += 59
    leader.cycle()
    assert state(store) is ServerState.STARTING
    hands.now += 2
    leader.cycle()
    assert state(store) is ServerState.LOST


def test_beat_at_the_last_moment_keeps_the_server(
    store: Store, make_leader: MakeLeader, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_server(store, lease_s=0.0)
    running(store)
    leader = make_leader()
    leader.cycle()
    read = leases.beats

    def read_and_beat(connection: redis.Redis, sessions: list[str]) -> dict[str, bytes | None]:
        beat(store)  # after the leader has read the database's heartbeats
        return read(connection, sessions)

    monkeypatch.setattr(leases, "beats", read_and_beat)
    leader.cycle()
    assert state(store) is ServerState.ACCEPTING
    assert builds.get(store, "build-1").state is BuildState.RUNNING


def test_new_leader_gives_everybody_a_whole_lease(
    hands: Clock, store: Store, make_leader: MakeLeader
) -> None:
    running(store)
    first, second = make_leader("life-a"), make_leader("life-b")
    first.cycle()
    hands.now += LEASE_S - 1
    first.resign()
    second.cycle()
    hands.now += LEASE_S - 1
    second.cycle()
    assert builds.get(store, "build-1").state is BuildState.RUNNING
    second.resign()
    hands.now += LEASE_S
    first.cycle()  # what it saw when it led before says nothing of the time between
    assert builds.get(store, "build-1").state is BuildState.RUNNING
    hands.now += LEASE_S
    first.cycle()
    assert builds.get(store, "build-1").state is BuildState.QUEUED


def test_leader_does_not_take_itself_for_lost(hands: Clock, store: Store, make_leader: MakeLeader) -> None:
    running(store)
    leader = make_leader("life-1")
    for _ in range(5):
        leader.cycle()
        hands.now += LEASE_S
    assert builds.get(store, "build-1").state is BuildState.RUNNING


def test_attempt_of_a_former_life_is_closed_at_once(
    store: Store, carrier: Carrier, make_leader: MakeLeader
) -> None:
    running(store)
    make_server(store, session="life-2")
    make_leader().cycle()
    assert builds.get(store, "build-1").state is BuildState.QUEUED
    assert carrier.waiting("builds") == ["build-1"]
    assert state(store) is ServerState.STARTING


def test_only_the_silent_server_is_lost(hands: Clock, store: Store, make_leader: MakeLeader) -> None:
    running(store)
    make_server(store, "server-2", session="life-2")
    make_build(store, "build-2")
    assert claim(store, "build-2", server_id="server-2", session="life-2") is not None
    leader = make_leader()
    for _ in range(4):
        leader.cycle()
        hands.now += LEASE_S / 2
        beat(store)
    leader.cycle()
    assert [state(store, name) for name in ("server-1", "server-2")] == [
        ServerState.ACCEPTING,
        ServerState.LOST,
    ]
    assert builds.get(store, "build-1").state is BuildState.RUNNING
    assert builds.get(store, "build-2").state is BuildState.QUEUED


def begin_deploy(store: Store, ref: AttemptRef) -> None:
    attempts.begin_deploy(store, ref, project="shop", environment="production", retry_safe=False)


def test_begun_deploy_of_a_lost_server_is_not_run_again(
    hands: Clock, store: Store, carrier: Carrier, make_leader: MakeLeader
) -> None:
    begin_deploy(store, running(store))
    leader = make_leader()
    leader.cycle()
    hands.now += LEASE_S
    leader.cycle()
    build = builds.get(store, "build-1")
    assert (build.state, build.outcome) == (BuildState.ENDED, Outcome.LOST)
    assert carrier.waiting("builds") == []


def test_attempt_closed_while_redis_is_away_is_queued_by_the_sweep(
    hands: Clock, store: Store, carrier: Carrier, make_leader: MakeLeader, connection: redis.Redis
) -> None:
    running(store)
    make_server(store, session="life-2")
    connection.set("rq:queue:builds", "no list")  # so that the build can't be queued
    leader = make_leader()
    with pytest.raises(QueueUnavailable):
        leader.cycle()
    assert builds.get(store, "build-1").state is BuildState.QUEUED
    connection.delete("rq:queue:builds")
    leader.cycle()
    hands.now += PATIENCE_S
    leader.cycle()
    assert carrier.waiting("builds") == ["build-1"]


# The sweeper.


def test_build_that_redis_lost_is_queued_again_with_patience(
    hands: Clock, store: Store, carrier: Carrier, make_leader: MakeLeader
) -> None:
    make_build(store)
    leader = make_leader()
    leader.cycle()
    hands.now += PATIENCE_S - 0.1
    leader.cycle()
    assert carrier.waiting("builds") == []
    hands.now += 0.2
    leader.cycle()
    assert carrier.waiting("builds") == ["build-1"]
    leader.cycle()
    assert carrier.waiting("builds") == ["build-1"]


def test_build_cancelled_with_rqs_own_tools_ends_and_can_be_retried(
    hands: Clock, store: Store, carrier: Carrier, make_leader: MakeLeader
) -> None:
    make_build(store)
    carrier.publish("build-1", "builds")
    job = carrier.queue("builds").fetch_job("build-1")
    assert job is not None
    job.cancel()
    leader = make_leader()
    leader.cycle()
    hands.now += PATIENCE_S
    leader.cycle()
    build = builds.get(store, "build-1")
    assert (build.outcome, build.cancel_by) == (Outcome.CANCELLED, "rq")
    assert carrier.waiting("builds") == []
    # Retried while Redis is away: the old cancel must not end it again.
    builds.retry(store, "build-1", by="ann", max_attempts=3)
    leader.cycle()
    hands.now += PATIENCE_S
    leader.cycle()
    assert carrier.waiting("builds") == ["build-1"]
    assert builds.get(store, "build-1").state is BuildState.QUEUED
    # Queued anew, it can be cancelled anew.
    again = carrier.queue("builds").fetch_job("build-1")
    assert again is not None
    again.cancel()
    leader.cycle()
    hands.now += PATIENCE_S
    leader.cycle()
    assert builds.get(store, "build-1").outcome is Outcome.CANCELLED


def test_build_seen_meanwhile_is_given_the_whole_patience_again(
    hands: Clock, store: Store, carrier: Carrier, make_leader: MakeLeader, connection: redis.Redis
) -> None:
    make_build(store)
    leader = make_leader()
    leader.cycle()
    hands.now += PATIENCE_S - 1
    carrier.publish("build-1", "builds")
    leader.cycle()
    connection.flushall()
    hands.now += PATIENCE_S - 1
    leader.cycle()
    leader.cycle()
    assert carrier.waiting("builds") == []


def test_whole_queue_comes_back_after_redis_came_back_empty(
    hands: Clock, store: Store, carrier: Carrier, make_leader: MakeLeader, connection: redis.Redis
) -> None:
    for number in range(50):
        make_build(store, f"build-{number:02}", queue=f"queue-{number % 3}")
        carrier.publish(f"build-{number:02}", f"queue-{number % 3}")
    leader = make_leader()
    leader.cycle()
    connection.flushall()
    leader.cycle()
    hands.now += PATIENCE_S
    leader.cycle()
    for queue in range(3):
        expected = [f"build-{number:02}" for number in range(50) if number % 3 == queue]
        assert carrier.waiting(f"queue-{queue}") == expected


def test_build_in_hand_is_not_missing_and_goes_back_when_nobody_begins_it(
    hands: Clock, store: Store, carrier: Carrier, make_leader: MakeLeader
) -> None:
    make_build(store)
    carrier.publish("build-1", "builds")
    carrier.take(["builds"])
    leader = make_leader()
    leader.cycle()
    hands.now += PATIENCE_S - 0.1
    leader.cycle()
    assert carrier.in_hand("builds") == ["build-1"]
    hands.now += PATIENCE_S / 2 + 0.1  # the lists of what is in hand are looked at that often
    leader.cycle()
    assert (carrier.waiting("builds"), carrier.in_hand("builds")) == (["build-1"], [])


def test_build_that_is_begun_in_time_is_left_alone(
    hands: Clock, store: Store, carrier: Carrier, make_leader: MakeLeader
) -> None:
    make_server(store)
    make_build(store)
    carrier.publish("build-1", "builds")
    carrier.take(["builds"])
    leader = make_leader("life-1")
    leader.cycle()
    assert claim(store) is not None
    carrier.forget("builds", "build-1")
    for _ in range(4):
        hands.now += PATIENCE_S
        leader.cycle()
    assert (carrier.waiting("builds"), carrier.in_hand("builds")) == ([], [])


def test_job_of_another_program_left_in_hand_goes_back_though_nothing_is_on_record(
    hands: Clock, carrier: Carrier, make_leader: MakeLeader
) -> None:
    carrier.publish("build-1", "builds")
    carrier.take(["builds"])
    leader = make_leader()
    leader.cycle()
    hands.now += PATIENCE_S
    leader.cycle()
    assert carrier.waiting("builds") == ["build-1"]


def test_builds_that_run_or_have_ended_are_never_queued(
    hands: Clock, store: Store, carrier: Carrier, make_leader: MakeLeader
) -> None:
    running(store)
    make_build(store, "build-2")
    builds.request_cancel(store, "build-2", by="ann")
    leader = make_leader("life-1")
    for _ in range(4):
        leader.cycle()
        hands.now += PATIENCE_S
    assert carrier.waiting("builds") == []


def test_length_of_each_queue_is_a_gauge(store: Store, carrier: Carrier, make_leader: MakeLeader) -> None:
    metrics = Metrics()
    for number in range(3):
        make_build(store, f"build-{number}")
        carrier.publish(f"build-{number}", "builds")
    make_leader(metrics=metrics).cycle()
    values = {item.labels: item.value for item in metrics.snapshot() if isinstance(item, GaugeValue)}
    assert values["builds",] == 3
    assert any(
        item.metric is gauge.QUEUE_WAITING for item in metrics.snapshot() if isinstance(item, GaugeValue)
    )


# RQ's registries.


def start_in_rq(carrier: Carrier, build_id: str) -> BuildJob:
    carrier.publish(build_id, "builds")
    carrier.take(["builds"])
    carrier.forget("builds", build_id)
    job = BuildJob.fetch(build_id, connection=carrier.connection, serializer=SERIALIZER)
    with carrier.connection.pipeline() as pipeline:
        job.prepare_for_execution("server-1.0", pipeline=pipeline)
        execution = Execution.create(job, 600, pipeline=pipeline, worker_name="server-1.0")
        # Its time has run out long ago.
        pipeline.zadd(job.started_job_registry.key, {execution.composite_key: 1})
        pipeline.execute()
    assert isinstance(job, BuildJob)
    return job


def test_what_has_expired_in_rq_is_cleaned_every_two_minutes(
    hands: Clock, carrier: Carrier, make_leader: MakeLeader
) -> None:
    leader = make_leader()
    job = start_in_rq(carrier, "build-1")
    leader.cycle()
    assert job.started_job_registry.get_job_ids(cleanup=False) == ["build-1"]
    hands.now += RQ_CLEANING_S
    leader.cycle()
    assert job.started_job_registry.get_job_ids(cleanup=False) == []
    assert job.failed_job_registry.get_job_ids(cleanup=False) == ["build-1"]


def test_job_that_rq_can_not_read_does_not_end_the_leader(
    hands: Clock, store: Store, carrier: Carrier, make_leader: MakeLeader, connection: redis.Redis
) -> None:
    leader = make_leader()
    job = start_in_rq(carrier, "build-1")
    connection.hset(job.key, "created_at", "yesterday")
    hands.now += RQ_CLEANING_S
    leader.cycle()
    assert leader.is_leading
    make_build(store, "build-2")
    leader.cycle()
    hands.now += PATIENCE_S
    leader.cycle()
    assert carrier.waiting("builds") == ["build-2"]


def test_patience_fits_the_time_that_a_lost_build_has() -> None:
    """F01 gives it its next attempt within a lease and 15 s, the last of them for a look and the claim."""
    assert leading.PATIENCE_S * 1.5 <= 10
