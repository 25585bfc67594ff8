"""The scripts that move builds between RQ's lists, on a real Redis: at every moment each is in one."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable

import pytest
import redis
from rq.executions import Execution
from rq.intermediate_queue import IntermediateQueue
from rq.queue import Queue

from agent.errors import QueueUnavailable
from agent.queue.carrier import RESULT_TTL_S, Carrier
from agent.queue.connection import connect
from agent.queue.job import FUNCTION, SERIALIZER, BuildJob
from agent.queue.private import PrivateRedis
from tests.integration.conftest_store import race


def fetch(carrier: Carrier, build_id: str = "build-1") -> BuildJob:
    job = BuildJob.fetch(build_id, connection=carrier.connection, serializer=SERIALIZER)
    assert isinstance(job, BuildJob)
    return job


def lists(carrier: Carrier, queue: str = "builds") -> tuple[list[str], list[str]]:
    return carrier.waiting(queue), carrier.in_hand(queue)


# Taking and giving back.


def test_builds_are_taken_in_their_order(carrier: Carrier) -> None:
    for number in range(5):
        carrier.publish(f"build-{number}", "builds")
    assert [carrier.take(["builds"]) for _ in range(5)] == [("builds", f"build-{n}") for n in range(5)]
    assert carrier.take(["builds"]) is None
    assert lists(carrier) == ([], [f"build-{number}" for number in range(5)])


def test_first_queue_that_has_a_build_goes_first(carrier: Carrier) -> None:
    carrier.publish("normal", "builds")
    carrier.publish("hurry", "urgent")
    assert carrier.take(["urgent", "builds"]) == ("urgent", "hurry")
    assert carrier.take(["urgent", "builds"]) == ("builds", "normal")
    assert carrier.take(["urgent", "builds"]) is None


def test_name_of_a_queue_with_tags_comes_back_whole(carrier: Carrier) -> None:
    carrier.publish("build-1", "builds+arch=arm64,gpu=a%3Ab")
    assert carrier.take(["builds+arch=arm64,gpu=a%3Ab"]) == ("builds+arch=arm64,gpu=a%3Ab", "build-1")


def test_lists_are_the_ones_rq_knows(carrier: Carrier) -> None:
    queue = Queue("builds", connection=carrier.connection, serializer=SERIALIZER)
    carrier.publish("build-1", "builds")
    assert queue.get_job_ids() == ["build-1"]
    carrier.take(["builds"])
    assert IntermediateQueue(queue.key, carrier.connection).get_job_ids() == ["build-1"]


def test_build_given_back_is_the_next_again(carrier: Carrier) -> None:
    for name in ("build-1", "build-2"):
        carrier.publish(name, "builds")
    carrier.take(["builds"])
    assert carrier.give_back("builds", "build-1")
    assert lists(carrier) == (["build-1", "build-2"], [])


def test_giving_back_what_is_not_in_hand_does_nothing(carrier: Carrier) -> None:
    """The sweep and a slot may both put the same id back; a second copy would run into the first's claim."""
    carrier.publish("build-1", "builds")
    carrier.take(["builds"])
    assert carrier.give_back("builds", "build-1")
    assert not carrier.give_back("builds", "build-1")
    assert not carrier.give_back("builds", "unknown")
    assert lists(carrier) == (["build-1"], [])


def test_forgotten_build_is_in_no_list(carrier: Carrier) -> None:
    carrier.publish("build-1", "builds")
    carrier.take(["builds"])
    carrier.forget("builds", "build-1")
    assert lists(carrier) == ([], [])


def test_many_takers_get_each_build_once(carrier: Carrier) -> None:
    for number in range(200):
        carrier.publish(f"build-{number}", "builds")
    taken: list[str] = []

    def take_all() -> None:
        while (found := carrier.take(["urgent", "builds"])) is not None:
            taken.append(found[1])

    race(*[take_all] * 8)
    assert Counter(taken) == Counter(f"build-{number}" for number in range(200))


def test_slots_that_take_and_give_back_lose_nothing(carrier: Carrier) -> None:
    names = {f"build-{number}" for number in range(20)}
    for name in names:
        carrier.publish(name, "builds")

    def juggle() -> None:
        for _ in range(100):
            if found := carrier.take(["builds"]):
                carrier.give_back(*found)

    race(*[juggle] * 6)
    waiting, in_hand = lists(carrier)
    assert (set(waiting), len(waiting), in_hand) == (names, 20, [])


# Publishing.


def test_published_job_is_one_that_any_program_could_have_sent(carrier: Carrier) -> None:
    assert carrier.publish("build-1", "builds")
    job = fetch(carrier)
    assert (job.func_name, job.args, job.kwargs) == (FUNCTION, [], {})
    assert (job.origin, job.get_status(), job.timeout) == ("builds", "queued", -1)
    assert job.definition() is None
    assert [queue.name for queue in Queue.all(connection=carrier.connection)] == ["builds"]


def test_publishing_twice_queues_once(carrier: Carrier) -> None:
    assert carrier.publish("build-1", "builds")
    assert not carrier.publish("build-1", "builds")
    assert lists(carrier) == (["build-1"], [])


def test_build_in_hand_is_not_queued_a_second_time(carrier: Carrier) -> None:
    carrier.publish("build-1", "builds")
    carrier.take(["builds"])
    assert not carrier.publish("build-1", "builds")
    assert lists(carrier) == ([], ["build-1"])


def test_publishers_at_the_same_moment_queue_once(carrier: Carrier) -> None:
    for number in range(20):
        results = race(*[lambda name=f"build-{number}": carrier.publish(name, "builds")] * 4)
        assert results.count(True) == 1
    assert len(carrier.waiting("builds")) == 20


def finish(carrier: Carrier, job: BuildJob) -> None:
    job.set_status("finished")  # type: ignore[arg-type]
    job.finished_job_registry.add(job, ttl=RESULT_TTL_S)
    carrier.connection.expire(job.key, RESULT_TTL_S)


def fail(carrier: Carrier, job: BuildJob) -> None:
    job.set_status("failed")  # type: ignore[arg-type]
    job.failed_job_registry.add(job, ttl=RESULT_TTL_S, exc_string="why")


def cancel(carrier: Carrier, job: BuildJob) -> None:
    job.cancel()


@pytest.mark.parametrize("end", [finish, fail, cancel])
def test_ended_job_is_queued_again_like_a_new_one(
    carrier: Carrier, end: Callable[[Carrier, BuildJob], None]
) -> None:
    carrier.publish("build-1", "builds")
    carrier.take(["builds"])
    carrier.forget("builds", "build-1")
    end(carrier, fetch(carrier))
    assert carrier.publish("build-1", "builds")
    job = fetch(carrier)
    assert carrier.waiting("builds") == ["build-1"]
    assert job.get_status() == "queued"
    assert carrier.connection.ttl(job.key) == -1  # else the job would be gone before its turn
    queue = carrier.queue("builds")
    for registry in (queue.finished_job_registry, queue.failed_job_registry, queue.canceled_job_registry):
        assert registry.get_job_ids(cleanup=False) == []


def test_traces_of_a_lost_attempt_are_cleaned_when_it_is_queued_again(carrier: Carrier) -> None:
    carrier.publish("build-1", "builds")
    carrier.take(["builds"])
    carrier.forget("builds", "build-1")
    job = fetch(carrier)
    with carrier.connection.pipeline() as pipeline:
        job.prepare_for_execution("server-1.0", pipeline=pipeline)
        execution = Execution.create(job, 600, pipeline=pipeline, worker_name="server-1.0")
        pipeline.execute()
    assert job.started_job_registry.get_job_ids(cleanup=False) == ["build-1"]
    assert carrier.publish("build-1", "builds")
    again = fetch(carrier)
    assert again.get_status() == "queued"
    assert (again.started_at, again.worker_name) == (None, None)
    assert job.started_job_registry.get_job_ids(cleanup=False) == []
    assert not carrier.connection.exists(execution.key)
    assert again.get_executions() == []


def test_job_of_another_program_keeps_what_it_carries(carrier: Carrier) -> None:
    definition = {"project": "shop", "steps": ["make"]}
    queue = Queue("builds", connection=carrier.connection, serializer="json")
    queue.enqueue(FUNCTION, definition, job_id="build-1")
    carrier.take(["builds"])
    carrier.forget("builds", "build-1")
    assert carrier.publish("build-1", "builds")
    assert fetch(carrier).definition() == definition


def test_build_moved_to_another_queue_is_shown_there(carrier: Carrier) -> None:
    """What asks for tags moves to the queue of servers that have them, under the job it came with."""
    carrier.publish("build-1", "builds")
    carrier.take(["builds"])
    carrier.forget("builds", "build-1")
    assert carrier.publish("build-1", "builds+gpu=yes")
    assert carrier.waiting("builds+gpu=yes") == ["build-1"]
    assert fetch(carrier).origin == "builds+gpu=yes"
    names = {queue.name for queue in Queue.all(connection=carrier.connection)}
    assert names == {"builds", "builds+gpu=yes"}


def test_job_that_redis_lost_in_between_is_not_said_to_be_queued(carrier: Carrier) -> None:
    assert not carrier._publish_again(carrier.queue("builds"), "build-1")
    assert lists(carrier) == ([], [])


def test_scripts_survive_a_redis_that_has_forgotten_them(carrier: Carrier) -> None:
    carrier.publish("build-1", "builds")
    carrier.take(["builds"])
    carrier.connection.script_flush()
    assert carrier.give_back("builds", "build-1")
    carrier.connection.script_flush()
    assert carrier.take(["builds"]) == ("builds", "build-1")


# What is asked and told.


def test_id_that_is_no_text_can_be_taken_and_forgotten(carrier: Carrier, connection: redis.Redis) -> None:
    connection.rpush("rq:queue:builds", b"\xff\xfe", "build-1")
    found = carrier.take(["builds"])
    assert found is not None
    assert carrier.in_hand("builds") == [found[1]]
    carrier.forget(*found)
    assert lists(carrier) == (["build-1"], [])


def test_suspension_is_seen(carrier: Carrier, connection: redis.Redis) -> None:
    assert not carrier.is_suspended()
    connection.set("rq:suspended", 1)
    assert carrier.is_suspended()


def test_clock_is_the_servers(carrier: Carrier, connection: redis.Redis) -> None:
    before = connection.time()[0]
    assert before <= carrier.clock() <= before + 60
    carrier.ping()


def test_absent_redis_is_told_by_every_method(private_redis: PrivateRedis) -> None:
    carrier = Carrier(connect(private_redis.url))
    private_redis.stop()
    calls: list[Callable[[], object]] = [
        lambda: carrier.take(["builds"]),
        lambda: carrier.give_back("builds", "build-1"),
        lambda: carrier.forget("builds", "build-1"),
        lambda: carrier.publish("build-1", "builds"),
        lambda: carrier.waiting("builds"),
        lambda: carrier.in_hand("builds"),
        carrier.is_suspended,
        carrier.ping,
        carrier.clock,
    ]
    for call in calls:
        with pytest.raises(QueueUnavailable, match="Redis can't be used"):
            call()
    carrier.wake([])  # of no consequence, so of no complaint
    private_redis.start()
    assert carrier.publish("build-1", "builds")
    carrier.connection.close()


def test_job_on_the_wire_is_json(carrier: Carrier) -> None:
    carrier.publish("build-1", "builds")
    assert json.loads(fetch(carrier).data) == [FUNCTION, None, [], {}]


def test_threads_may_share_a_carrier(carrier: Carrier) -> None:
    done = threading.Barrier(4, timeout=30)

    def use(number: int) -> None:
        for turn in range(25):
            carrier.publish(f"build-{number}-{turn}", f"queue-{number}")
            assert carrier.take([f"queue-{number}"]) == (f"queue-{number}", f"build-{number}-{turn}")
        done.wait()

    assert race(*[lambda number=number: use(number) for number in range(4)]) == [None] * 4
