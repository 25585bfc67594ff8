"""A build is cancelled in whatever state it is, and its slot takes the next one at once (F17)."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import pytest
from rq.command import send_stop_job_command

from agent import clock
from agent.errors import NotFound, StateConflict
from agent.model.build import Build, BuildState
from agent.model.outcome import Outcome
from agent.queue.listen import nudge
from agent.queue.private import PrivateRedis
from agent.store import builds, servers, steps
from tests.acceptance.farm import Farm
from tests.acceptance.repository import make_repository
from tests.services import TcpProxy, wait_until

GRACE_S = 2.0  # the farm's
NEXT_S = 2.0  # the fault's: from the end of the grace to the next build
DEAF = "trap '' TERM; echo up; while :; do sleep 0.1; done"


def cancel(farm: Farm, build_id: str) -> str:
    """Cancel as people do: on record, and a nudge to whoever may run it."""
    answer = builds.request_cancel(farm.store, build_id, by="ann")
    for server in servers.list_servers(farm.store):
        nudge(farm.carrier.connection, server.id)
    return answer


def assert_next_runs(
    farm: Farm, cancelled_id: str, next_id: str, *, limit_s: float = GRACE_S + NEXT_S
) -> Build:
    """Wait for both to end, and hold the slot to its time; return the cancelled one."""
    following = farm.wait_ended(next_id)
    cancelled = farm.wait_ended(cancelled_id)
    assert following.outcome is Outcome.PASSED
    assert following.started_at is not None
    assert cancelled.cancel_requested_at is not None
    assert (following.started_at - cancelled.cancel_requested_at).total_seconds() < limit_s
    return cancelled


@pytest.fixture
def silent_host() -> Iterator[int]:
    """A port where somebody listens and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield int(listener.getsockname()[1])


def test_f17_queued_build_ends_at_once_and_is_never_run(farm: Farm, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    first = farm.submit(f"touch {ran}")
    assert builds.request_cancel(farm.store, first, by="ann", why="not now") == "cancelled"
    build = farm.build(first)
    assert (build.state, build.outcome) == (BuildState.ENDED, Outcome.CANCELLED)
    assert build.detail == "cancelled by ann before it began: not now"
    farm.agent(slots=1)
    assert farm.wait_ended(farm.submit("true")).outcome is Outcome.PASSED
    assert not ran.exists()
    assert farm.attempts(first) == []


@pytest.mark.parametrize("script", ["echo up; sleep 600", DEAF], ids=["meek", "deaf"])
def test_f17_running_step_is_ended_and_the_slot_takes_the_next(farm: Farm, script: str) -> None:
    farm.agent(slots=1)
    first = farm.submit({"steps": [script, "echo never"]})
    farm.wait_running(first, printed="up")
    following = farm.submit("true")
    assert cancel(farm, first) == "requested"
    build = assert_next_runs(farm, first, following)
    assert (build.outcome, build.cancel_by) == (Outcome.CANCELLED, "ann")
    assert [item.step for item in steps.list_steps(farm.store, first, 1)] == [1]
    assert farm.attempts(first) == [(1, Outcome.CANCELLED)]


@pytest.mark.parametrize("branch", [{"branch": "main"}, {}], ids=["cloning", "asking"])
def test_f17_checkout_from_a_host_that_is_silent_is_ended(
    sqlite_farm: Farm, silent_host: int, branch: dict[str, str]
) -> None:
    farm = sqlite_farm
    farm.agent(slots=1)
    source = {"git": f"git://127.0.0.1:{silent_host}/repository", **branch}
    first = farm.submit({"source": source, "steps": ["echo never"]})
    farm.wait_running(first)
    wait_until(lambda: steps.list_steps(farm.store, first, 1), 10, "the checkout")
    following = farm.submit("true")
    cancel(farm, first)
    build = assert_next_runs(farm, first, following)
    assert build.outcome is Outcome.CANCELLED
    assert [(item.step, item.outcome) for item in steps.list_steps(farm.store, first, 1)] == [
        (0, Outcome.CANCELLED)
    ]


@pytest.mark.slow
def test_f17_cancel_at_any_moment_of_many_short_steps_ends_the_build_in_order(sqlite_farm: Farm) -> None:
    farm = sqlite_farm
    farm.agent(slots=2)
    moments = random.Random(17)
    for _ in range(12):
        # The last step never ends by itself: a fast machine may come that far.
        first = farm.submit({"setup": ["true"] * 5, "steps": [*["true"] * 200, "sleep 600"]})
        farm.wait_running(first)
        pause = clock.Deadline.after(moments.uniform(0.0, 0.5))
        wait_until(lambda end=pause: end.is_passed, 5)
        following = farm.submit("true")
        cancel(farm, first)
        build = assert_next_runs(farm, first, following)
        assert build.outcome is Outcome.CANCELLED
        ended = steps.list_steps(farm.store, first, 1)
        # Nothing after the step that was ended, and nothing left open.
        assert all(item.state == "ended" for item in ended)
        assert all(item.outcome is Outcome.PASSED for item in ended[:-1])


def test_f17_deploy_that_waits_for_its_lock_is_ended_and_the_one_that_has_it_goes_on(
    farm: Farm, tmp_path: Path
) -> None:
    farm.agent(slots=2, source_roots=tmp_path)
    repository = make_repository(tmp_path / "repository", {"a": "b"})
    go = tmp_path / "go"
    wait = f"echo up; until [ -e {go} ]; do sleep 0.05; done"
    deploy = {"production": {"branches": ["*"], "steps": [wait]}}
    document = {"source": {"directory": str(repository)}, "deploy": deploy, "steps": ["true"]}
    holder = farm.submit(document)
    farm.wait_running(holder, printed="up")
    waiter = farm.submit(document)
    farm.wait_running(waiter)
    wait_until(lambda: "deploy.waiting" in farm.agents[0].log(), 10, "the wait for the lock")
    following = farm.submit("true")
    cancel(farm, waiter)
    build = assert_next_runs(farm, waiter, following)
    assert build.outcome is Outcome.CANCELLED
    assert "up" not in farm.text(waiter)
    go.touch()
    assert farm.wait_ended(holder).outcome is Outcome.PASSED


@pytest.mark.slow
def test_f17_cancel_while_the_database_is_slow(
    tmp_path: Path, redis_server: PrivateRedis, postgres_url: str
) -> None:
    parts = urlsplit(postgres_url)
    with TcpProxy(("127.0.0.1", parts.port or 5432)) as proxy:
        slow_url = urlunsplit(parts._replace(netloc=f"postgres@127.0.0.1:{proxy.port}"))
        farm = Farm(tmp_path / "farm", redis_url=redis_server.url, database_url=postgres_url)
        try:
            farm.agent(slots=1, database_url=slow_url)
            first = farm.submit(DEAF)
            farm.wait_running(first, printed="up")
            proxy.delay(0.05)
            following = farm.submit("true")
            cancel(farm, first)
            # A beat, an end and a claim at 0.1 s a round trip come on top; the grace does not grow.
            build = assert_next_runs(farm, first, following, limit_s=GRACE_S + NEXT_S + 5.0)
            assert build.outcome is Outcome.CANCELLED
        finally:
            farm.close()


def test_f17_cancelled_twice_is_cancelled_once(sqlite_farm: Farm) -> None:
    farm = sqlite_farm
    farm.agent(slots=1)
    first = farm.submit(DEAF)
    farm.wait_running(first, printed="up")
    following = farm.submit("true")
    assert [cancel(farm, first), cancel(farm, first), cancel(farm, first)] == ["requested"] * 3
    assert_next_runs(farm, first, following)
    assert farm.text(first).count("the step was ended") == 1
    with pytest.raises(StateConflict, match="already ended"):
        cancel(farm, first)
    assert farm.attempts(first) == [(1, Outcome.CANCELLED)]


def test_f17_unknown_and_ended_builds_are_refused_by_name(sqlite_farm: Farm) -> None:
    farm = sqlite_farm
    farm.agent(slots=1)
    with pytest.raises(NotFound, match="no-such-build"):
        cancel(farm, "no-such-build")
    passed = farm.submit("true")
    farm.wait_ended(passed)
    with pytest.raises(StateConflict, match=passed):
        cancel(farm, passed)
    assert farm.build(passed).outcome is Outcome.PASSED


def test_stop_through_rq_cancels_the_build(sqlite_farm: Farm) -> None:
    farm = sqlite_farm
    farm.agent(slots=1)
    first = farm.submit("echo up; sleep 600")
    farm.wait_running(first, printed="up")
    send_stop_job_command(farm.carrier.connection, first, serializer="json")
    build = farm.wait_ended(first)
    assert (build.outcome, build.detail) == (Outcome.CANCELLED, "through RQ")
    assert farm.wait_ended(farm.submit("true")).outcome is Outcome.PASSED


def test_cancelled_build_can_be_run_again(sqlite_farm: Farm) -> None:
    farm = sqlite_farm
    farm.agent(slots=1)
    first = farm.submit('[ "$BUILD_ATTEMPT" = 2 ] || sleep 600')
    farm.wait_running(first)
    cancel(farm, first)
    assert farm.wait_ended(first).outcome is Outcome.CANCELLED
    build = builds.retry(farm.store, first, by="ann", max_attempts=3)
    farm.carrier.publish(build.id, build.queue)
    assert farm.wait_ended(first).outcome is Outcome.PASSED
    assert farm.attempts(first) == [(1, Outcome.CANCELLED), (2, Outcome.PASSED)]
