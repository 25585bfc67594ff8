"""F05, F10: a server that is cut off ends its steps before others may begin; one that is only busy keeps its builds."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from agent.clock import mono
from agent.model.outcome import Outcome
from agent.model.server import ServerState
from agent.queue.lease import Lease
from agent.queue.private import PrivateRedis
from agent.store import servers
from tests.acceptance.delivery import Witness, proxied_database, proxied_redis, submit_deploy
from tests.acceptance.farm import LEASE_S, AgentProcess, Farm
from tests.services import TcpProxy, wait_until

pytestmark = pytest.mark.slow


@pytest.fixture
def witness(tmp_path: Path) -> Witness:
    """A witness of what steps really did."""
    return Witness(tmp_path / "witness")


@dataclass(frozen=True)
class Island:
    """A farm with an agent whose every way out can be closed, and one that sees everything."""

    farm: Farm
    database: TcpProxy
    redis: TcpProxy
    urls: dict[str, object]

    def victim(self, **settings: object) -> AgentProcess:
        """Start the agent that will be cut off."""
        merged: dict[str, Any] = {**self.urls, **settings}
        return self.farm.agent("victim", **merged)

    def isolate(self, how: str) -> None:
        """Close both ways: `cut` as a host that is refused, `hang` as a network that swallows packets."""
        for proxy in (self.database, self.redis):
            getattr(proxy, how)()

    def reconnect(self) -> None:
        """Open both ways; what was held back arrives late."""
        for proxy in (self.database, self.redis):
            proxy.restore()


@pytest.fixture
def island(postgres_farm: Farm, redis_server: PrivateRedis) -> Iterator[Island]:
    """A farm with an island."""
    with ExitStack() as stack:
        database, database_url = stack.enter_context(proxied_database(postgres_farm.database_url))
        redis, redis_url = stack.enter_context(proxied_redis(redis_server))
        urls: dict[str, object] = {"database_url": database_url, "redis_url": redis_url}
        yield Island(postgres_farm, database, redis, urls)


def _assert_comes_back(farm: Farm, victim: AgentProcess, build_id: str, pid: int) -> None:
    """Fail unless the victim, in the same process, takes builds again and its late words have changed nothing."""
    attempts = farm.attempts(build_id)
    victim.wait_ready(40)
    assert victim.pid == pid
    wait_until(lambda: victim.status()["spool_records"] == 0, 20, "its spool to be shipped")
    assert farm.attempts(build_id) == attempts
    server = servers.get(farm.store, "victim")
    wait_until(lambda: servers.get(farm.store, "victim").state is ServerState.ACCEPTING, 20, f"{server}")


@pytest.mark.parametrize("how", ["cut", "hang"])
def test_f05_server_cut_off_ends_its_steps_before_another_attempt_begins(
    island: Island, witness: Witness, how: str
) -> None:
    """Guards: self-fencing, in time whatever Redis and database do to the agent's other threads."""
    farm = island.farm
    victim = island.victim(slots=4)
    pid = victim.pid
    # A step that will not go by itself: fencing has to reach KILL within the lease.
    build_id = farm.submit(f"trap '' TERM\n{witness.held()}")
    witness.wait_alive(build_id, 1)
    farm.agent("rescuer")
    island.isolate(how)
    witness.wait_alive(build_id, 2, LEASE_S + 20)
    assert witness.is_still(build_id, 1)
    witness.assert_alone(build_id, 2)
    # Attempt 2 still runs when the victim is back with what it has to say about attempt 1.
    island.reconnect()
    _assert_comes_back(farm, victim, build_id, pid)
    witness.release()
    assert farm.wait_ended(build_id).outcome is Outcome.PASSED
    assert farm.attempts(build_id) == [(1, Outcome.LOST), (2, Outcome.PASSED)]
    witness.assert_output_is_its_own(farm, build_id)


def test_f05_deploy_on_a_server_cut_off_is_lost_and_not_repeated(island: Island, witness: Witness) -> None:
    """Guards: as above, and `deploy_begun_at`."""
    farm = island.farm
    victim = island.victim()
    build_id = submit_deploy(farm, witness.held())
    witness.wait_alive(build_id, 1)
    farm.agent("rescuer")
    island.isolate("cut")
    assert farm.wait_ended(build_id, LEASE_S + 20).outcome is Outcome.LOST
    assert witness.is_still(build_id, 1)
    island.reconnect()
    _assert_comes_back(farm, victim, build_id, victim.pid)
    assert farm.attempts(build_id) == [(1, Outcome.LOST)]
    assert witness.runs(build_id) == [1]


def test_f05_server_cut_off_while_it_gives_back_is_still_fenced(island: Island, witness: Witness) -> None:
    """Guards: fencing goes on while the agent ends: the grace of a step must not outlast the lease."""
    farm = island.farm
    victim = island.victim(lease_s=9, kill_grace_s=4.5, heartbeat_s=1)
    build_id = farm.submit(f"trap '' TERM\n{witness.held()}")
    witness.wait_alive(build_id, 1)
    farm.agent("rescuer", lease_s=9)
    island.isolate("cut")
    wait_until(lambda: victim.status()["lease_age_s"] > 6.5, 20, "the lease to be nearly over")
    victim.signal(signal.SIGTERM)
    wait_until(lambda: "agent.draining" in victim.log(), message="the first signal to be heard")
    victim.signal(signal.SIGTERM)
    witness.wait_alive(build_id, 2, 40)
    assert witness.is_still(build_id, 1)
    witness.assert_alone(build_id, 2)
    island.reconnect()
    assert victim.wait_exit(40) == 0
    assert farm.attempts(build_id) == [(1, Outcome.LOST), (2, None)]


@pytest.mark.parametrize("reach", ["both", "redis"])
def test_f05_server_that_was_suspended_ends_its_steps_when_it_wakes(
    island: Island, witness: Witness, reach: str
) -> None:
    """Guards: a lease that has run out stays so; only the database can say that nobody has taken over.

    With Redis alone in reach the first heartbeat after waking would otherwise renew what others have ended.
    """
    farm = island.farm
    victim = island.victim()
    pid = victim.pid
    build_id = farm.submit(f"trap '' TERM\n{witness.held()}")
    witness.wait_alive(build_id, 1)
    farm.agent("rescuer")
    with _suspended(victim):
        witness.wait_alive(build_id, 2, LEASE_S + 20)
        if reach == "redis":
            island.database.cut()
        fell_asleep = witness.lives(build_id)[1][1]
    # A machine that wakes runs on until its agent has looked at the clock: a moment, no grace.
    wait_until(lambda: witness.is_still(build_id, 1), 5, "attempt 1 to be dead")
    began_again = witness.lives(build_id)[2][0]
    assert witness.lives(build_id)[1][1] < began_again + 3 or witness.lives(build_id)[1][1] == fell_asleep
    island.reconnect()
    _assert_comes_back(farm, victim, build_id, pid)
    witness.release()
    assert farm.wait_ended(build_id).outcome is Outcome.PASSED
    assert farm.attempts(build_id) == [(1, Outcome.LOST), (2, Outcome.PASSED)]
    witness.assert_output_is_its_own(farm, build_id)


def test_f05_server_whose_agent_alone_hangs_loses_its_steps(island: Island, witness: Witness) -> None:
    """Guards: the guardian, which hears nothing of the agent for a lease and ends the steps in its stead."""
    farm = island.farm
    victim = island.victim()
    pid = victim.pid
    build_id = farm.submit(f"trap '' TERM\n{witness.held()}")
    witness.wait_alive(build_id, 1)
    farm.agent("rescuer")
    os.kill(victim.pid, signal.SIGSTOP)
    try:
        witness.wait_alive(build_id, 2, LEASE_S + 20)
        assert witness.is_still(build_id, 1)
        witness.assert_alone(build_id, 2)
    finally:
        os.kill(victim.pid, signal.SIGCONT)
    _assert_comes_back(farm, victim, build_id, pid)
    witness.release()
    assert farm.wait_ended(build_id).outcome is Outcome.PASSED
    assert farm.attempts(build_id) == [(1, Outcome.LOST), (2, Outcome.PASSED)]


def test_f05_lease_that_has_run_out_is_renewed_by_the_database_alone() -> None:
    """Guards: as above, where the race between a woken heartbeat and the woken fence can't hide it."""
    lease = Lease(0.3)
    wait_until(lambda: lease.must_fence, 5, "the lease to run out")
    lease.renewed(mono(), is_confirmed=False)
    assert lease.must_fence
    lease.renewed(mono(), is_confirmed=True)
    assert not lease.must_fence


def test_f05_agent_that_hung_tells_what_its_guardian_ended_from_a_failure(
    sqlite_farm: Farm, witness: Witness
) -> None:
    """Guards: no step that was killed because of a lease is a failure of the user's, whoever killed it.

    A single server: nobody takes over, so the agent itself says, when it is awake, how the attempt has ended.
    """
    farm = sqlite_farm
    agent = farm.agent()
    build_id = farm.submit(witness.held())
    witness.wait_alive(build_id, 1)
    os.kill(agent.pid, signal.SIGSTOP)
    try:
        wait_until(lambda: witness.is_still(build_id, 1), LEASE_S + 10, "the step to be dead")
    finally:
        os.kill(agent.pid, signal.SIGCONT)
    witness.assert_alone(build_id, 2)
    witness.release()
    assert farm.wait_ended(build_id).outcome is Outcome.PASSED
    assert farm.attempts(build_id) == [(1, Outcome.LOST), (2, Outcome.PASSED)]


@pytest.mark.parametrize("gone", ["database", "redis"])
def test_f05_server_that_reaches_one_of_both_keeps_its_builds(
    island: Island, witness: Witness, gone: str
) -> None:
    """Guards: the reaper takes a server for lost only when its heartbeat stands still in both places."""
    farm = island.farm
    island.victim()
    build_id = farm.submit(witness.held())
    witness.wait_alive(build_id, 1)
    farm.agent("rescuer")
    getattr(island, gone).cut()
    beaten_until = witness.lives(build_id)[1][1] + 2.5 * LEASE_S
    wait_until(lambda: witness.lives(build_id)[1][1] > beaten_until, 3 * LEASE_S + 10, "the step to go on")
    assert farm.attempts(build_id) == [(1, None)]
    island.reconnect()
    witness.release()
    assert farm.wait_ended(build_id).outcome is Outcome.PASSED
    assert farm.attempts(build_id) == [(1, Outcome.PASSED)]
    assert witness.runs(build_id) == [1]
    witness.assert_output_is_its_own(farm, build_id)


def test_f10_server_that_drains_a_long_build_is_never_taken_for_lost(farm: Farm, witness: Witness) -> None:
    """Guards: the heartbeats run in loops of their own, until the last build has ended."""
    draining = farm.agent("draining")
    build_id = farm.submit(witness.held())
    witness.wait_alive(build_id, 1)
    farm.agent("other")
    draining.signal(signal.SIGTERM)
    beaten_until = witness.lives(build_id)[1][1] + 3 * LEASE_S
    wait_until(lambda: witness.lives(build_id)[1][1] > beaten_until, 4 * LEASE_S, "the step to go on")
    assert servers.get(farm.store, "draining").state is ServerState.DRAINING
    witness.release()
    assert draining.wait_exit() == 0
    assert farm.build(build_id).outcome is Outcome.PASSED
    assert farm.attempts(build_id) == [(1, Outcome.PASSED)]
    assert "server.lost" not in "".join(agent.log() for agent in farm.agents)


def test_f10_server_is_measured_by_its_own_lease(sqlite_farm: Farm, witness: Witness) -> None:
    """Guards: the lease in the record. While a new `lease_s` is rolled out, servers run with both."""
    farm = sqlite_farm
    # First, so that it leads; it serves another queue.
    farm.agent("hasty", lease_s=3, heartbeat_s=0.5, kill_grace_s=1, queues="other")
    farm.agent("patient", lease_s=15, heartbeat_s=5)
    build_id = farm.submit(witness.held())
    witness.wait_alive(build_id, 1)
    beaten_until = witness.lives(build_id)[1][1] + 12.0
    wait_until(lambda: witness.lives(build_id)[1][1] > beaten_until, 20, "the step to go on")
    assert farm.attempts(build_id) == [(1, None)]


def test_f10_server_starved_of_cpu_is_never_taken_for_lost(farm: Farm, witness: Witness) -> None:
    """Guards: a heartbeat costs so little, and a lease allows for so many, that eight busy loops stop none."""
    lease_s = 3.0
    starved = farm.agent("starved", lease_s=lease_s, heartbeat_s=0.5, kill_grace_s=1)
    farm.agent("other", lease_s=lease_s, heartbeat_s=0.5, kill_grace_s=1)
    build_id = farm.submit(witness.held())
    witness.wait_alive(build_id, 1)
    with _busy(8):
        beaten_until = witness.lives(build_id)[1][1] + 5 * lease_s
        wait_until(lambda: witness.lives(build_id)[1][1] > beaten_until, 10 * lease_s, "the step to go on")
        assert farm.attempts(build_id) == [(1, None)]
    witness.release()
    assert farm.wait_ended(build_id).outcome is Outcome.PASSED
    assert farm.attempts(build_id) == [(1, Outcome.PASSED)]
    assert "fenc" not in starved.log()
    assert "server.lost" not in "".join(agent.log() for agent in farm.agents)


@contextmanager
def _suspended(agent: AgentProcess) -> Iterator[None]:
    """Freeze an agent with all its steps, as a suspended machine is."""
    tree = [psutil.Process(agent.pid), *psutil.Process(agent.pid).children(recursive=True)]
    for process in tree:
        process.suspend()
    try:
        yield
    finally:
        # The steps first: what they do before their agent is awake is what has to be ended.
        for process in reversed(tree):
            process.resume()


@contextmanager
def _busy(count: int) -> Iterator[None]:
    """Keep the machine busy with so many processes at normal priority."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()
