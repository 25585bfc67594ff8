"""RQ compatibility: what works with RQ's workers works with slots, as far as RQ's own tools and programs reach."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from rq import Queue
from rq.command import PUBSUB_CHANNEL_TEMPLATE, send_shutdown_command, send_stop_job_command
from rq.job import Job, JobStatus

from agent.errors import NotFound
from agent.model.build import BuildState
from agent.model.outcome import Outcome
from tests.acceptance.delivery import Witness
from tests.acceptance.farm import Farm
from tests.services import wait_until

FUNCTION = "agent.queue.intake.build"

pytestmark = pytest.mark.slow


@pytest.fixture
def witness(tmp_path: Path) -> Witness:
    """A witness of what steps really did."""
    return Witness(tmp_path / "witness")


def _rq(farm: Farm, *words: str) -> str:
    """Run RQ's own command; return what it prints."""
    command = [str(Path(sys.executable).with_name("rq")), *words, "--url", farm.redis_url]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout


def _plain_queue(farm: Farm, name: str = "builds") -> Queue:
    """Return a queue as another program makes it, which knows nothing of build-agent."""
    return Queue(name, connection=farm.carrier.connection, serializer="json")


def _shut_down(farm: Farm, worker: str) -> None:
    """Send a slot RQ's shutdown, once it listens: who does not listen then never hears of it."""
    channel = PUBSUB_CHANNEL_TEMPLATE % worker
    connection = farm.carrier.connection
    wait_until(
        lambda: dict(connection.pubsub_numsub(channel))[channel.encode()], message=f"{worker} to listen"
    )
    send_shutdown_command(connection, worker)


def _job(farm: Farm, build_id: str) -> Job:
    return Job.fetch(build_id, connection=farm.carrier.connection, serializer="json")


def _is_on_record(farm: Farm, build_id: str) -> Callable[[], bool]:
    def is_there() -> bool:
        try:
            return farm.build(build_id).state is BuildState.ENDED
        except NotFound:
            return False

    return is_there


def test_rq_info_shows_slots_and_what_they_do(sqlite_farm: Farm, witness: Witness) -> None:
    sqlite_farm.agent("server", slots=2, queues="urgent,builds")
    shown = _rq(sqlite_farm, "info", "--raw", "--only-workers")
    assert "server.0 " in shown
    assert "server.1 " in shown
    assert shown.count(" idle urgent, builds.") == 2
    build_id = sqlite_farm.submit(witness.held())
    witness.wait_alive(build_id, 1)
    wait_until(lambda: " busy " in _rq(sqlite_farm, "info", "--raw", "--only-workers"), message="a busy slot")
    assert "queue builds 0, 1 executing" in _rq(sqlite_farm, "info", "--raw", "--only-queues")
    witness.release()
    assert sqlite_farm.wait_ended(build_id).outcome is Outcome.PASSED
    wait_until(
        lambda: "0 executing, 1 finished, 0 failed" in _rq(sqlite_farm, "info", "--raw", "--only-queues"),
        message="RQ to count the build as finished",
    )


def test_rq_forgets_the_slots_of_an_agent_that_has_ended(sqlite_farm: Farm) -> None:
    agent = sqlite_farm.agent("server")
    assert "server.0 " in _rq(sqlite_farm, "info", "--raw", "--only-workers")
    agent.process.terminate()  # type: ignore[union-attr]
    assert agent.wait_exit() == 0
    assert "server." not in _rq(sqlite_farm, "info", "--raw", "--only-workers")


def test_rq_suspend_holds_builds_back_until_rq_resume(sqlite_farm: Farm, witness: Witness) -> None:
    agent = sqlite_farm.agent()
    _rq(sqlite_farm, "suspend")
    builds = [sqlite_farm.submit(witness.ran()) for _ in range(3)]
    wait_until(
        lambda: "suspended" in agent.get("/readyz")[1], message="the agent to say that it is suspended"
    )
    # Nothing stays in a slot's hand. Two slots that give back at once may swap what they had.
    wait_until(
        lambda: set(sqlite_farm.carrier.waiting("builds")) == set(builds), message="the queue to lie still"
    )
    assert [witness.runs(build_id) for build_id in builds] == [[], [], []]
    _rq(sqlite_farm, "resume")
    for build_id in builds:
        assert sqlite_farm.wait_ended(build_id).outcome is Outcome.PASSED
        assert witness.runs(build_id) == [1]


def test_rq_stop_job_cancels_the_build(sqlite_farm: Farm, witness: Witness) -> None:
    sqlite_farm.agent()
    stopped, other = sqlite_farm.submit(witness.held()), sqlite_farm.submit(witness.held())
    witness.wait_alive(stopped, 1)
    witness.wait_alive(other, 1)
    wait_until(lambda: _job(sqlite_farm, stopped).worker_name, message="RQ to know who runs it")
    send_stop_job_command(sqlite_farm.carrier.connection, stopped, serializer="json")
    build = sqlite_farm.wait_ended(stopped)
    assert build.outcome is Outcome.CANCELLED
    assert "RQ" in (build.detail or "")
    assert witness.is_still(stopped, 1)
    assert not witness.is_still(other, 1)
    wait_until(
        lambda: _job(sqlite_farm, stopped).get_status() is JobStatus.FAILED, message="RQ to see the end"
    )
    witness.release()
    assert sqlite_farm.wait_ended(other).outcome is Outcome.PASSED


def test_rq_shutdown_of_every_slot_ends_the_agent_after_its_builds(
    sqlite_farm: Farm, witness: Witness
) -> None:
    agent = sqlite_farm.agent("server", slots=2)
    running = sqlite_farm.submit(witness.held())
    witness.wait_alive(running, 1)
    for index in range(2):
        _shut_down(sqlite_farm, f"server.{index}")
    wait_until(lambda: agent.log().count("slot.rq_command") == 2, message="both slots to have heard it")
    waiting = sqlite_farm.submit(witness.ran())
    assert not witness.is_still(running, 1, 1.5)
    witness.release()
    assert agent.wait_exit() == 0
    assert sqlite_farm.build(running).outcome is Outcome.PASSED
    assert sqlite_farm.build(waiting).state is BuildState.QUEUED


def test_rq_shutdown_of_one_slot_leaves_the_other_at_work(sqlite_farm: Farm, witness: Witness) -> None:
    agent = sqlite_farm.agent("server", slots=2)
    _shut_down(sqlite_farm, "server.0")
    wait_until(lambda: "slot.rq_command" in agent.log(), message="the slot to have heard it")
    wait_until(
        lambda: "server.0 " not in _rq(sqlite_farm, "info", "--raw", "--only-workers"),
        message="the slot to sign off",
    )
    builds = [sqlite_farm.submit(witness.ran()) for _ in range(3)]
    for build_id in builds:
        assert sqlite_farm.wait_ended(build_id).outcome is Outcome.PASSED
    assert agent.get("/readyz")[0] == 200


def test_job_of_another_program_runs_and_is_put_on_record(farm: Farm, witness: Witness) -> None:
    farm.agent()
    definition = {"project": "other", "steps": [witness.ran(), "echo hello"]}
    job = _plain_queue(farm).enqueue(FUNCTION, definition)
    wait_until(_is_on_record(farm, job.id), 20, "the build to be on record, and ended")
    build = farm.build(job.id)
    assert (build.outcome, build.project, build.created_by) == (Outcome.PASSED, "other", "rq")
    assert farm.text(job.id, step=2) == "hello\n"
    assert witness.runs(job.id) == [1]
    wait_until(lambda: _job(farm, job.id).get_status() is JobStatus.FINISHED, message="RQ to have the end")
    result = _job(farm, job.id).return_value()
    assert result == {"build": job.id, "attempt": 1, "outcome": "passed", "requeued": False}


def test_job_of_another_program_whose_build_fails_is_failed_for_rq(sqlite_farm: Farm) -> None:
    sqlite_farm.agent()
    job = _plain_queue(sqlite_farm).enqueue(FUNCTION, {"project": "other", "steps": ["exit 3"]})
    wait_until(_is_on_record(sqlite_farm, job.id), 20, "the build to be on record, and ended")
    assert sqlite_farm.build(job.id).outcome is Outcome.FAILED
    wait_until(
        lambda: _job(sqlite_farm, job.id).get_status() is JobStatus.FAILED, message="RQ to have the end"
    )


def test_job_that_depends_on_a_build_waits_for_it(sqlite_farm: Farm, witness: Witness) -> None:
    sqlite_farm.agent()
    queue = _plain_queue(sqlite_farm)
    first = queue.enqueue(FUNCTION, {"project": "other", "steps": [witness.held()]})
    second = queue.enqueue(FUNCTION, {"project": "other", "steps": [witness.ran()]}, depends_on=first)
    never = queue.enqueue(
        FUNCTION,
        {"project": "other", "steps": [witness.ran()]},
        depends_on=queue.enqueue(FUNCTION, {"project": "other", "steps": ["exit 1"]}),
    )
    witness.wait_alive(first.id, 1)
    assert witness.is_still(second.id, 1, 1.0)
    assert witness.runs(second.id) == []
    witness.release()
    wait_until(_is_on_record(sqlite_farm, second.id), 20, "the dependent to end")
    assert witness.runs(second.id) == [1]
    assert witness.runs(never.id) == []


def test_several_queues_are_served_in_their_order(sqlite_farm: Farm, witness: Witness) -> None:
    submitted = {
        name: [sqlite_farm.submit(witness.ran(), queue=name) for _ in range(3)]
        for name in ("low", "urgent", "builds")
    }
    sqlite_farm.agent(slots=1, queues="urgent,builds,low")
    for builds in submitted.values():
        for build_id in builds:
            assert sqlite_farm.wait_ended(build_id).outcome is Outcome.PASSED
    ran = [line.split()[0] for line in witness.runs_path.read_text().splitlines()]
    assert ran == submitted["urgent"] + submitted["builds"] + submitted["low"]


def test_idle_slot_hears_of_a_build_in_any_of_its_queues(sqlite_farm: Farm, witness: Witness) -> None:
    sqlite_farm.agent(slots=1, queues="urgent,builds,low")
    for name in ("low", "builds", "urgent"):
        build_id = sqlite_farm.submit(witness.ran(), queue=name)
        assert sqlite_farm.wait_ended(build_id, 15).outcome is Outcome.PASSED


def test_build_that_asks_for_tags_runs_only_where_they_are(sqlite_farm: Farm, witness: Witness) -> None:
    farm = sqlite_farm
    farm.agent("plain")
    tagged = {"steps": [f'{witness.ran()}; echo "$BUILD_SERVER"'], "tags": {"arch": "arm64"}}
    build_id = farm.submit(tagged)
    job = _plain_queue(farm).enqueue(FUNCTION, {"project": "other", **tagged})
    for _ in range(3):
        assert farm.wait_ended(farm.submit("true")).outcome is Outcome.PASSED
    assert farm.build(build_id).state is BuildState.QUEUED
    wait_until(lambda: farm.build(job.id).state is BuildState.QUEUED, message="the job to be on record")
    farm.agent("arm", tags="arch=arm64,gpu=yes")
    assert farm.wait_ended(build_id).outcome is Outcome.PASSED
    assert farm.wait_ended(job.id).outcome is Outcome.PASSED
    assert farm.text(build_id) == farm.text(job.id) == "arm\n"
    assert witness.runs(build_id) == witness.runs(job.id) == [1]


def test_job_enqueued_twice_under_one_id_runs_once(sqlite_farm: Farm, witness: Witness) -> None:
    """Also for a job that comes again after its build has ended: the record is the judge, not the queue."""
    queue, definition = _plain_queue(sqlite_farm), {"project": "other", "steps": [witness.ran()]}
    for _ in range(2):
        queue.enqueue(FUNCTION, definition, job_id="twice")
    sqlite_farm.agent(slots=2)
    wait_until(_is_on_record(sqlite_farm, "twice"), 20, "the build to end")
    queue.enqueue(FUNCTION, definition, job_id="twice")
    assert sqlite_farm.wait_ended(sqlite_farm.submit("true")).outcome is Outcome.PASSED
    wait_until(lambda: not sqlite_farm.carrier.waiting("builds"), message="the queue to be empty")
    assert witness.runs("twice") == [1]
    assert sqlite_farm.attempts("twice") == [(1, Outcome.PASSED)]
