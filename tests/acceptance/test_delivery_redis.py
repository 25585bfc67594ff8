"""F03: Redis restarts, is away for longer than a lease, comes back empty; nothing that the database knows is lost."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import redis

from agent.model.outcome import Outcome
from agent.queue.private import PrivateRedis
from tests.acceptance.delivery import Witness
from tests.acceptance.farm import LEASE_S, AgentProcess, Farm
from tests.services import wait_until

pytestmark = pytest.mark.slow


@pytest.fixture
def witness(tmp_path: Path) -> Witness:
    """A witness of what steps really did."""
    return Witness(tmp_path / "witness")


def _workers(farm: Farm) -> str:
    """Return what RQ shows of workers."""
    command = [
        str(Path(sys.executable).with_name("rq")),
        "info",
        "--raw",
        "--only-workers",
        "--url",
        farm.redis_url,
    ]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout


def _assert_went_on(
    farm: Farm, witness: Witness, agent: AgentProcess, pid: int, running: str, queued: Sequence[str]
) -> None:
    """Fail unless the running build passes untouched, the queued ones run once, and RQ shows the slots."""
    witness.release()
    assert farm.wait_ended(running).outcome is Outcome.PASSED
    for build_id in queued:
        assert farm.wait_ended(build_id).outcome is Outcome.PASSED
        assert farm.attempts(build_id) == [(1, Outcome.PASSED)]
        assert witness.runs(build_id) == [1]
    assert farm.attempts(running) == [(1, Outcome.PASSED)]
    assert witness.runs(running) == [1]
    witness.assert_output_is_its_own(farm, running)
    assert agent.pid == pid
    assert agent.process is not None
    assert agent.process.poll() is None
    wait_until(
        lambda: {f"{agent.folder.name}.{index}" for index in range(2)} <= set(_workers(farm).split()),
        30,
        lambda: f"RQ to show the slots; it shows:\n{_workers(farm)}",
    )


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_f03_redis_restarts(farm: Farm, redis_server: PrivateRedis, witness: Witness, how: str) -> None:
    """Guards: every loop and slot waits Redis out and connects anew; the append-only file keeps the queue."""
    agent = farm.agent(slots=2)
    pid = agent.pid
    running = farm.submit(witness.held())
    witness.wait_alive(running, 1)
    getattr(redis_server, how)()
    redis_server.start()
    _assert_went_on(farm, witness, agent, pid, running, [farm.submit(witness.ran())])


def test_f03_redis_is_away_for_longer_than_a_lease(
    farm: Farm, redis_server: PrivateRedis, witness: Witness
) -> None:
    """Guards: the heartbeat in the database alone holds the lease; what is submitted meanwhile stands on record."""
    agent = farm.agent(slots=2)
    farm.agent("other")
    pid = agent.pid
    held = [farm.submit(witness.held()) for _ in range(4)]
    for build_id in held:
        witness.wait_alive(build_id, 1)
    redis_server.stop()
    wait_until(lambda: agent.get("/readyz")[0] == 503, 20, "the agent to close its gate")
    assert "redis" in agent.get("/readyz")[1].lower()
    queued = [farm.submit(witness.ran()) for _ in range(3)]
    gone_until = witness.lives(held[0])[1][1] + 2 * LEASE_S
    wait_until(lambda: witness.lives(held[0])[1][1] > gone_until, 4 * LEASE_S, "the step to go on")
    # One ends while Redis is away: the database has its end, RQ is told later.
    assert all(farm.attempts(build_id) == [(1, None)] for build_id in held)
    redis_server.start()
    agent.wait_ready()
    _assert_went_on(farm, witness, agent, pid, held[0], queued)
    for build_id in held[1:]:
        assert farm.wait_ended(build_id).outcome is Outcome.PASSED
        assert farm.attempts(build_id) == [(1, Outcome.PASSED)]


def test_f03_build_ends_while_redis_is_away(farm: Farm, redis_server: PrivateRedis, witness: Witness) -> None:
    """Guards: the end goes into the database whatever Redis does; an agent told to stop then does not wait for RQ."""
    agent = farm.agent()
    build_id = farm.submit(witness.held())
    witness.wait_alive(build_id, 1)
    redis_server.stop()
    witness.release()
    assert farm.wait_ended(build_id).outcome is Outcome.PASSED
    agent.process.terminate()  # type: ignore[union-attr]
    assert agent.wait_exit(30) == 0
    assert farm.attempts(build_id) == [(1, Outcome.PASSED)]
    redis_server.start()
    farm.agent("next")
    after = farm.submit(witness.ran())
    assert farm.wait_ended(after).outcome is Outcome.PASSED
    assert witness.runs(build_id) == [1]


@pytest.mark.parametrize("how", ["restart", "flush"])
def test_f03_redis_comes_back_empty(
    farm: Farm, redis_server: PrivateRedis, witness: Witness, how: str
) -> None:
    """Guards: the sweep queues from the database what no list holds; a flush breaks no connection, so nobody is told."""
    agent = farm.agent(slots=2)
    pid = agent.pid
    running = [farm.submit(witness.held()) for _ in range(2)]
    for build_id in running:
        witness.wait_alive(build_id, 1)
    queued = [farm.submit(witness.ran()) for _ in range(5)]
    assert farm.carrier.waiting("builds") == queued
    if how == "restart":
        redis_server.kill()
        redis_server.wipe()
        redis_server.start()
    else:
        with redis.Redis.from_url(redis_server.url) as client:
            client.flushall()
    wait_until(
        lambda: farm.carrier.waiting("builds") == queued, 20, "the queue to be as it was, in its order"
    )
    _assert_went_on(farm, witness, agent, pid, running[0], queued)
    assert farm.wait_ended(running[1]).outcome is Outcome.PASSED


def test_f03_agent_dies_while_redis_is_empty(
    farm: Farm, redis_server: PrivateRedis, witness: Witness
) -> None:
    """Guards: a build whose job, execution and worker are all gone from Redis still gets its next attempt."""
    victim = farm.agent("victim")
    build_id = farm.submit(witness.held())
    witness.wait_alive(build_id, 1)
    farm.agent("rescuer")
    redis_server.kill()
    redis_server.wipe()
    victim.kill()
    redis_server.start()
    witness.wait_alive(build_id, 2, LEASE_S + 30)
    witness.assert_alone(build_id, 2)
    witness.release()
    assert farm.wait_ended(build_id).outcome is Outcome.PASSED
    assert farm.attempts(build_id) == [(1, Outcome.LOST), (2, Outcome.PASSED)]
