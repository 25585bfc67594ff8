"""A slot on a real Redis: what it takes it runs once, refuses or puts back, whatever fails around it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from rq import Worker
from rq.queue import Queue
from rq.worker.base import BaseWorker

from agent import clock
from agent.build.attempt import AttemptSummary
from agent.build.cancel import CancelToken
from agent.daemon.loop import Loop
from agent.errors import StoreUnavailable
from agent.metrics.registry import Metrics
from agent.model.build import BuildState, Claim
from agent.model.outcome import Outcome
from agent.queue.carrier import Carrier, Waiter
from agent.queue.connection import connect
from agent.queue.gate import Gate
from agent.queue.job import FUNCTION, SERIALIZER, BuildJob
from agent.queue.lease import Lease
from agent.queue.private import PrivateRedis
from agent.queue.slot import WAIT_S, Slot, SlotPlan
from agent.store import attempts, builds
from agent.store.engine import Store
from tests.integration.conftest_store import ended, make_build, make_server
from tests.services import wait_until

DEFINITION = {"project": "shop", "steps": ["make"]}


class Bench:
    """A slot with all it works with. Its builds end as `outcome` says, or wait until `let_end`."""

    def __init__(self, redis_url: str, store: Store, queues: list[str]) -> None:
        self.store = store
        self.carrier = Carrier(connect(redis_url))
        self.waiter = Waiter(redis_url, longest_wait_s=WAIT_S)
        self.gate = Gate()
        self.gate.set_reasons([])
        self.lease = Lease(30)
        self.ran: list[Claim] = []
        self.outcome = Outcome.PASSED
        self.let_end = threading.Event()
        self.let_end.set()
        make_server(store, session=self.lease.session)
        self.slot = Slot(
            SlotPlan(
                index=0,
                server_id="server-1",
                server_name="server-1",
                queues=queues,
                max_attempts=3,
                carrier=self.carrier,
                waiter=self.waiter,
                store=store,
                gate=self.gate,
                lease=self.lease,
                metrics=Metrics(),
                run=self._run,
            )
        )
        self.loop = Loop("slot", self.slot.serve, interval_s=0, is_endless=False)

    def _run(self, claim: Claim, token: CancelToken) -> AttemptSummary:
        self.ran.append(claim)
        outcome, detail = self.outcome, "why"
        while not self.let_end.wait(0.01):
            if token.cancel is not None:
                outcome, detail = token.cancel.outcome, token.cancel.detail
                break
        result = attempts.end(self.store, claim.ref, ended(outcome, detail=detail))
        return AttemptSummary(
            applied=result.applied, requeued=result.requeued, outcome=outcome, detail=detail
        )

    def start(self) -> None:
        self.loop.start()
        wait_until(lambda: Worker.all(connection=self.carrier.connection))

    def wait_idle(self, count: int) -> None:
        """Wait until so many builds have run and the slot has nothing in hand."""
        wait_until(lambda: len(self.ran) >= count and not self.gate.in_hand, 20, lambda: f"{self.ran}")

    def stop(self) -> None:
        self.let_end.set()
        self.slot.stop()
        deadline = clock.Deadline.after(30)
        while not self.loop.join(0.05):
            self.carrier.wake([self.waiter])
            assert not deadline.is_passed

    def close(self) -> None:
        if self.loop.is_alive:
            self.stop()
        self.waiter.close()
        self.carrier.connection.close()

    def worker(self) -> BaseWorker | None:
        found = Worker.all(connection=self.carrier.connection)
        return found[0] if found else None


@pytest.fixture
def make_bench(redis_url: str, store: Store) -> Iterator[Callable[..., Bench]]:
    made: list[Bench] = []

    def make(queues: list[str] | None = None, url: str = redis_url) -> Bench:
        bench = Bench(url, store, queues or ["builds"])
        made.append(bench)
        return bench

    yield make
    for bench in made:
        bench.close()


@pytest.fixture
def bench(make_bench: Callable[..., Bench]) -> Bench:
    made = make_bench()
    made.start()
    return made


def submit(bench: Bench, build_id: str = "build-1", **fields: Any) -> None:
    make_build(bench.store, build_id, **fields)
    bench.carrier.publish(build_id, fields.get("queue", "builds"))


def enqueue(bench: Bench, *arguments: Any, build_id: str = "build-1", **options: Any) -> None:
    """Enqueue as another program does."""
    queue = Queue("builds", connection=bench.carrier.connection, serializer="json")
    queue.enqueue(FUNCTION, *arguments, job_id=build_id, **options)


def job(bench: Bench, build_id: str = "build-1") -> BuildJob:
    found = BuildJob.fetch(build_id, connection=bench.carrier.connection, serializer=SERIALIZER)
    assert isinstance(found, BuildJob)
    return found


def outcome(bench: Bench, build_id: str = "build-1") -> Outcome | None:
    return builds.get(bench.store, build_id).outcome


# Running.


def test_build_on_record_is_run_and_rq_is_told(bench: Bench) -> None:
    submit(bench)
    bench.wait_idle(1)
    assert outcome(bench) is Outcome.PASSED
    assert job(bench).get_status() == "finished"
    result = job(bench).latest_result()
    assert result is not None
    assert result.return_value == {
        "build": "build-1",
        "attempt": 1,
        "outcome": "passed",
        "requeued": False,
    }
    assert (bench.carrier.waiting("builds"), bench.carrier.in_hand("builds")) == ([], [])


def test_build_of_another_program_is_recorded_and_run(bench: Bench) -> None:
    enqueue(bench, DEFINITION)
    bench.wait_idle(1)
    build = builds.get(bench.store, "build-1")
    assert (build.outcome, build.project, build.created_by) == (Outcome.PASSED, "shop", "rq")
    assert bench.ran[0].definition == DEFINITION


def test_build_whose_job_redis_has_lost_is_run(bench: Bench) -> None:
    make_build(bench.store)
    bench.carrier.connection.rpush("rq:queue:builds", "build-1")
    bench.wait_idle(1)
    assert outcome(bench) is Outcome.PASSED


def test_failed_build_is_failed_in_rq_with_its_reason(bench: Bench) -> None:
    bench.outcome = Outcome.FAILED
    submit(bench)
    bench.wait_idle(1)
    assert job(bench).get_status() == "failed"
    result = job(bench).latest_result()
    assert result is not None
    assert result.exc_string is not None
    assert result.exc_string.startswith("failed: why")


def test_build_that_has_to_run_again_is_queued_again(bench: Bench) -> None:
    bench.outcome = Outcome.INFRASTRUCTURE
    submit(bench, attempts_allowed=3)
    bench.wait_idle(3)
    assert [claim.ref.number for claim in bench.ran] == [1, 2, 3]
    assert outcome(bench) is Outcome.INFRASTRUCTURE
    assert job(bench).started_job_registry.get_job_ids(cleanup=False) == []
    assert bench.carrier.waiting("builds") == []


def test_attempt_that_was_taken_away_leaves_rqs_view_to_its_successor(bench: Bench) -> None:
    bench.let_end.clear()
    submit(bench)
    wait_until(lambda: bench.ran)
    make_server(bench.store, session="life-2")
    attempts.close_lost(bench.store, bench.ran[0].ref, why="a new life")
    bench.gate.close("enough")
    bench.let_end.set()
    bench.wait_idle(1)
    assert builds.get(bench.store, "build-1").state is BuildState.QUEUED
    assert job(bench).get_status() == "started"  # as the successor, which has not begun, will have it
    assert job(bench).started_job_registry.get_job_ids(cleanup=False) == []


def test_builds_wait_for_their_turn_in_one_slot(bench: Bench) -> None:
    for number in range(10):
        submit(bench, f"build-{number}")
    bench.wait_idle(10)
    assert [claim.ref.build_id for claim in bench.ran] == [f"build-{number}" for number in range(10)]


def test_slot_takes_from_all_its_queues(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(["urgent", "builds"])
    submit(bench, "normal")
    submit(bench, "hurry", queue="urgent")
    bench.start()
    bench.wait_idle(2)
    assert [claim.ref.build_id for claim in bench.ran] == ["hurry", "normal"]
    submit(bench, "later", queue="builds")
    submit(bench, "soon", queue="urgent")
    bench.wait_idle(4)


def test_build_that_asks_for_tags_moves_to_the_queue_of_those_that_have_them(bench: Bench) -> None:
    enqueue(bench, DEFINITION | {"tags": {"gpu": "yes"}})
    wait_until(lambda: bench.carrier.waiting("builds+gpu=yes") == ["build-1"])
    bench.gate.wait_idle(10)
    assert bench.ran == []
    assert builds.get(bench.store, "build-1").queue == "builds+gpu=yes"


# Not running.


def test_build_that_was_cancelled_or_taken_by_another_is_dropped(bench: Bench) -> None:
    make_build(bench.store)
    builds.request_cancel(bench.store, "build-1", by="ann")
    bench.carrier.publish("build-1", "builds")
    submit(bench, "build-2")
    bench.wait_idle(1)
    assert [claim.ref.build_id for claim in bench.ran] == ["build-2"]
    assert bench.carrier.in_hand("builds") == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["make"], "the definition is a mapping"),
        ([DEFINITION, 1], "the job has 2"),
        ([{"project": "shop", "stepz": ["x"]}], "stepz"),
        ([], "no build of its id is on record"),
    ],
)
def test_refused_job_is_on_record_and_the_next_is_run(bench: Bench, arguments: list[Any], words: str) -> None:
    enqueue(bench, *arguments)
    submit(bench, "build-2")
    bench.wait_idle(1)
    wait_until(lambda: bench.carrier.in_hand("builds") == [])
    build = builds.get(bench.store, "build-1")
    assert (build.state, build.outcome) == (BuildState.ENDED, Outcome.REFUSED)
    assert words in (build.detail or "")
    assert [claim.ref.build_id for claim in bench.ran] == ["build-2"]
    wait_until(lambda: job(bench).get_status() == "failed")


@pytest.mark.parametrize(
    "damage",
    [
        lambda connection: connection.set("rq:job:build-1", "a string"),
        lambda connection: connection.hset("rq:job:build-1", "data", b"\x80\x05pickle"),
        lambda connection: connection.hset("rq:job:build-1", mapping={"data": b"x", "created_at": "?"}),
        lambda connection: connection.hset("rq:job:build-1", "status", "queued"),
        lambda connection: connection.hset("rq:job:build-1", "data", json.dumps(["os.abort", None, [], {}])),
    ],
    ids=["wrong kind", "pickle", "broken field", "no data", "other function"],
)
def test_damaged_job_is_refused_once_and_for_all(
    bench: Bench, damage: Callable[[redis.Redis], object]
) -> None:
    damage(bench.carrier.connection)
    bench.carrier.connection.rpush("rq:queue:builds", "build-1")
    submit(bench, "build-2")
    bench.wait_idle(1)
    assert outcome(bench) is Outcome.REFUSED
    assert (bench.carrier.waiting("builds"), bench.carrier.in_hand("builds")) == ([], [])
    assert bench.loop.is_alive


def test_build_is_put_back_when_the_gate_closes_before_it_is_begun(bench: Bench) -> None:
    bench.gate.close("draining")
    submit(bench)
    bench.carrier.wake([bench.waiter])
    wait_until(
        lambda: (bench.carrier.waiting("builds"), bench.carrier.in_hand("builds")) == (["build-1"], [])
    )
    assert bench.ran == []
    bench.gate.set_reasons([])
    bench.wait_idle(1)
    assert outcome(bench) is Outcome.PASSED


def test_build_is_put_back_while_the_database_is_away(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_args: object, **_more: object) -> None:
        raise StoreUnavailable("gone for lunch")

    with monkeypatch.context() as patch:
        patch.setattr(builds, "claim", fail)
        submit(bench)
        wait_until(lambda: not bench.gate.is_open)
        assert bench.gate.reasons == ("database: gone for lunch",)
        wait_until(lambda: bench.carrier.waiting("builds") == ["build-1"])
        assert bench.carrier.in_hand("builds") == []
    bench.gate.set_reasons([])
    bench.wait_idle(1)
    assert outcome(bench) is Outcome.PASSED


def test_suspended_slot_puts_back_what_it_took(bench: Bench) -> None:
    bench.carrier.connection.set("rq:suspended", 1)
    submit(bench)
    wait_until(lambda: bench.gate.reasons == ("suspended through RQ",))
    wait_until(lambda: bench.carrier.waiting("builds") == ["build-1"])
    bench.carrier.connection.delete("rq:suspended")
    bench.gate.set_reasons([])
    bench.wait_idle(1)
    assert len(bench.ran) == 1


# Ending.


def test_build_in_the_slot_is_ended_by_its_name_only(bench: Bench) -> None:
    bench.let_end.clear()
    submit(bench)
    wait_until(lambda: bench.slot.claim)
    assert bench.slot.holds("build-1")
    assert not bench.slot.end(Outcome.LOST, "x", build=("build-1", 2), grace_s=None)
    assert not bench.slot.end(Outcome.LOST, "x", build=("build-2", 1), grace_s=None)
    assert bench.slot.end(Outcome.CANCELLED, "by ann", build=("build-1", 1), grace_s=None)
    bench.wait_idle(1)
    assert outcome(bench) is Outcome.CANCELLED
    assert not bench.slot.end(Outcome.LOST, "x", build=None, grace_s=None)


def test_rqs_stop_job_cancels_the_build(bench: Bench) -> None:
    bench.let_end.clear()
    submit(bench)
    wait_until(lambda: bench.slot.claim)
    bench.slot.kill_horse()
    bench.wait_idle(1)
    build = builds.get(bench.store, "build-1")
    assert (build.outcome, build.detail) == (Outcome.CANCELLED, "through RQ")


def test_stopped_slot_finishes_its_build_and_takes_no_other(bench: Bench) -> None:
    bench.let_end.clear()
    submit(bench)
    submit(bench, "build-2")
    wait_until(lambda: bench.ran)
    bench.slot.stop()
    assert bench.slot.is_stopping
    bench.let_end.set()
    assert bench.loop.join(20)
    assert outcome(bench) is Outcome.PASSED
    assert bench.carrier.waiting("builds") == ["build-2"]
    assert bench.worker() is None


def test_ends_of_builds_leave_no_descriptor(bench: Bench) -> None:
    """Each build has a token with a descriptor of its own (F18)."""
    submit(bench, "first")
    bench.wait_idle(1)
    before = len(list(Path("/proc/self/fd").iterdir()))
    for number in range(60):
        submit(bench, f"build-{number}")
    bench.wait_idle(61)
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 2


# RQ's view, and a Redis that fails.


def test_slot_shows_in_rq_with_what_it_does(bench: Bench) -> None:
    worker = bench.worker()
    assert worker is not None
    assert (worker.name, worker.get_state()) == ("server-1.0", "idle")
    bench.let_end.clear()
    submit(bench)
    wait_until(lambda: bench.ran)
    worker = bench.worker()
    assert worker is not None
    assert worker.get_state() == "busy"
    assert job(bench).get_status() == "started"
    assert job(bench).started_job_registry.get_job_ids(cleanup=False) == ["build-1"]


def test_slot_shows_again_after_redis_came_back_empty(bench: Bench) -> None:
    bench.let_end.clear()
    submit(bench)
    wait_until(lambda: bench.ran)
    bench.carrier.connection.flushall()
    assert bench.worker() is None
    bench.slot.show_life()
    worker = bench.worker()
    assert worker is not None
    assert worker.name == "server-1.0"
    bench.let_end.set()
    bench.wait_idle(1)
    assert outcome(bench) is Outcome.PASSED


def test_former_life_of_the_same_name_is_no_hindrance(make_bench: Callable[..., Bench]) -> None:
    first = make_bench()
    first.slot._be_born()
    second = make_bench()
    second.start()
    submit(second)
    second.wait_idle(1)
    assert second.loop.failure is None


@pytest.mark.parametrize(
    "fields",
    [
        {"repeats_left": "3", "repeat_intervals": '["soon"]'},
        {"retries_left": "2", "retry_intervals": "[]"},
        {"dependency_ids": "nonsense"},
        {"result_ttl": "-5"},
        {"group_id": "nonsense"},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_odd_fields_of_a_job_do_not_end_the_slot(bench: Bench, fields: dict[Any, Any]) -> None:
    bench.let_end.clear()
    bench.outcome = Outcome.FAILED if "retries_left" in fields else Outcome.PASSED
    bench.gate.close("wait")
    enqueue(bench, DEFINITION)
    bench.carrier.connection.hset("rq:job:build-1", mapping=dict(fields))
    bench.gate.set_reasons([])
    bench.let_end.set()
    submit(bench, "build-2")
    wait_until(lambda: outcome(bench, "build-2"), 20, lambda: f"{bench.loop.failure!r}")
    assert bench.loop.failure is None
    assert outcome(bench) in (bench.outcome, Outcome.REFUSED)


def test_redis_that_goes_in_mid_build_costs_the_build_nothing(
    make_bench: Callable[..., Bench], private_redis: PrivateRedis
) -> None:
    bench = make_bench(url=private_redis.url)
    bench.start()
    bench.let_end.clear()
    submit(bench)
    wait_until(lambda: bench.ran)
    private_redis.kill()
    bench.let_end.set()
    wait_until(lambda: outcome(bench) is Outcome.PASSED)
    private_redis.start()
    bench.wait_idle(1)
    assert job(bench).get_status() == "finished"
    submit(bench, "build-2")
    bench.wait_idle(2)
    assert bench.loop.failure is None


def test_stopped_slot_does_not_wait_for_a_redis_that_is_away(
    make_bench: Callable[..., Bench], private_redis: PrivateRedis
) -> None:
    bench = make_bench(url=private_redis.url)
    bench.start()
    bench.let_end.clear()
    submit(bench)
    wait_until(lambda: bench.ran)
    private_redis.kill()
    bench.let_end.set()
    wait_until(lambda: outcome(bench) is Outcome.PASSED)
    bench.slot.stop()
    assert bench.loop.join(20)
    assert bench.loop.failure is None
    private_redis.start()


def test_redis_that_comes_late_is_waited_for(
    make_bench: Callable[..., Bench], private_redis: PrivateRedis
) -> None:
    private_redis.stop()
    bench = make_bench(url=private_redis.url)
    bench.loop.start()
    private_redis.start()
    wait_until(bench.worker)
    submit(bench)
    bench.wait_idle(1)
    assert outcome(bench) is Outcome.PASSED
