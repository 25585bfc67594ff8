"""F04: the database is slow, gone for longer than a lease, silent; builds go on, and their output arrives whole."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from agent.model.build import BuildState
from agent.model.outcome import Outcome
from agent.model.server import OrderKind
from agent.store import builds, orders, servers
from tests.acceptance.delivery import Witness, proxied_database, submit_deploy
from tests.acceptance.farm import LEASE_S, AgentProcess, Farm
from tests.services import TcpProxy, wait_until

# What a silent database costs before anybody gives up on it: a statement's limit of 15 s and a quarter.
SILENCE_S = 20.0

pytestmark = pytest.mark.slow


@pytest.fixture
def witness(tmp_path: Path) -> Witness:
    """A witness of what steps really did."""
    return Witness(tmp_path / "witness")


@dataclass(frozen=True)
class Outage:
    """A farm whose agents reach the database through a proxy; the test itself reaches it always."""

    farm: Farm
    proxy: TcpProxy
    url: str

    def agent(self, name: str = "", **settings: Any) -> AgentProcess:
        """Start an agent behind the proxy."""
        return self.farm.agent(name, database_url=self.url, **settings)


@pytest.fixture
def outage(postgres_farm: Farm) -> Iterator[Outage]:
    """A farm whose database can be taken away from its agents."""
    with proxied_database(postgres_farm.database_url) as (proxy, url):
        yield Outage(postgres_farm, proxy, url)


def _wait_beats(witness: Witness, build_id: str, seconds: float) -> None:
    """Wait until the step of attempt 1 has gone on for so long."""
    until = witness.lives(build_id)[1][1] + seconds
    wait_until(lambda: witness.lives(build_id)[1][1] > until, seconds + 20, "the step to go on")


@pytest.mark.parametrize("how", ["cut", "hang"])
def test_f04_database_gone_in_mid_build(outage: Outage, witness: Witness, how: str) -> None:
    """Guards: the spool, and the heartbeat in Redis, which holds the lease; a gate that names the fault."""
    farm, proxy = outage.farm, outage.proxy
    agent = outage.agent(slots=2)
    outage.agent("other", slots=2)
    pid = agent.pid
    proxy.delay(0.05)
    held = [farm.submit(witness.held()) for _ in range(4)]
    for build_id in held:
        witness.wait_alive(build_id, 1)
    getattr(proxy, how)()
    wait_until(lambda: agent.get("/readyz")[0] == 503, SILENCE_S + 10, "the agent to close its gate")
    assert "database" in agent.get("/readyz")[1]
    waiting = farm.submit(witness.ran())
    _wait_beats(witness, held[0], 2 * LEASE_S)
    assert witness.runs(waiting) == []
    assert farm.build(waiting).state is BuildState.QUEUED
    # Ends while the database is away, like every build here: it is told when there is somebody to tell.
    witness.release()
    ending = agent.status()["spool_records"]
    assert ending > 0
    proxy.restore()
    proxy.delay(0.05)
    for build_id in held:
        assert farm.wait_ended(build_id).outcome is Outcome.PASSED
        assert farm.attempts(build_id) == [(1, Outcome.PASSED)]
        assert witness.runs(build_id) == [1]
        witness.assert_output_is_its_own(farm, build_id)
    agent.wait_ready()
    assert farm.wait_ended(waiting).outcome is Outcome.PASSED
    assert farm.attempts(waiting) == [(1, Outcome.PASSED)]
    assert agent.pid == pid
    assert "server.lost" not in "".join(each.log() for each in farm.agents)


def test_f04_output_of_a_flood_while_the_database_is_gone(outage: Outage, witness: Witness) -> None:
    """Guards: the spool's order, and batches that are harmless when sent twice: the cuts fall where they may."""
    farm, proxy = outage.farm, outage.proxy
    outage.agent()
    flood = f'for i in $(seq 0 399999); do echo "attempt $BUILD_ATTEMPT line $i"; done\n{witness.held()}'
    build_id = farm.submit(flood.replace("i=0\n", "i=400000\n"))
    for printed in (1000, 50_000, 120_000):
        farm.wait_running(build_id, printed=f"line {printed}\n")
        proxy.cut()
        wait_until(lambda: not proxy.connection_count, message="every connection to be broken")
        proxy.restore()
    witness.wait_alive(build_id, 1)
    witness.release()
    assert farm.wait_ended(build_id).outcome is Outcome.PASSED
    lines = farm.text(build_id, step=1).splitlines()
    assert len(lines) > 400_000
    witness.assert_output_is_its_own(farm, build_id)


def test_f04_deploy_waits_for_a_database_that_is_gone(outage: Outage, witness: Witness) -> None:
    """Guards: a deploy begins on the record before its first step, or a lost server could run it twice."""
    farm, proxy = outage.farm, outage.proxy
    outage.agent()
    build_id = submit_deploy(
        farm, 'echo deployed >"$BUILD_WORKSPACE/../deployed"; ' + witness.ran(), steps=[witness.held()]
    )
    witness.wait_alive(build_id, 1)
    proxy.cut()
    witness.release()
    # The build's own step ends; what follows is the deploy.
    wait_until(lambda: "deploy.database_away" in farm.agents[0].log(), 20, "the deploy to wait")
    _wait_still(witness, build_id)
    assert witness.runs(build_id) == [1]
    proxy.restore()
    assert farm.wait_ended(build_id).outcome is Outcome.PASSED
    assert witness.runs(build_id) == [1, 1]
    assert farm.attempts(build_id) == [(1, Outcome.PASSED)]


def _wait_still(witness: Witness, build_id: str) -> None:
    """See that nothing of a build runs, for a while."""
    assert witness.is_still(build_id, 1, 2.0)


def test_f04_deploy_that_has_begun_goes_on_without_the_database(outage: Outage, witness: Witness) -> None:
    """Guards: as any build; the lock that can't be freed then is freed with the attempt's end."""
    farm, proxy = outage.farm, outage.proxy
    outage.agent()
    build_id = submit_deploy(farm, witness.held())
    witness.wait_alive(build_id, 1)
    proxy.cut()
    _wait_beats(witness, build_id, 1.5 * LEASE_S)
    witness.release()
    proxy.restore()
    assert farm.wait_ended(build_id).outcome is Outcome.PASSED
    assert farm.attempts(build_id) == [(1, Outcome.PASSED)]
    following = submit_deploy(farm, witness.ran())
    assert farm.wait_ended(following).outcome is Outcome.PASSED


def test_f04_cancel_and_order_given_during_the_outage_are_heard_after_it(
    outage: Outage, witness: Witness
) -> None:
    """Guards: orders and cancels stand in the database; whoever comes back reads them with the first heartbeat."""
    farm, proxy = outage.farm, outage.proxy
    agent = outage.agent()
    build_id = farm.submit(witness.held())
    witness.wait_alive(build_id, 1)
    proxy.cut()
    assert builds.request_cancel(farm.store, build_id, by="operator") == "requested"
    server = servers.get(farm.store, agent.folder.name)
    orders.give(farm.store, server_id=server.id, kind=OrderKind.QUARANTINE, by="operator", note="look at it")
    _wait_beats(witness, build_id, 1.0)
    proxy.restore()
    assert farm.wait_ended(build_id).outcome is Outcome.CANCELLED
    wait_until(lambda: "look at it" in agent.get("/readyz")[1], 20, "the quarantine to be in force")


def test_f04_agent_killed_while_the_database_is_gone(outage: Outage, witness: Witness) -> None:
    """Guards: the spool outlives the agent: its next life ships the tail before it takes anything."""
    farm, proxy = outage.farm, outage.proxy
    victim = outage.agent("victim")
    build_id = farm.submit(witness.held())
    witness.wait_alive(build_id, 1)
    proxy.cut()
    _wait_beats(witness, build_id, 2.0)
    stored = len(farm.text(build_id, attempt=1, step=1).splitlines())
    victim.kill()
    victim.start(wait_ready=False)
    wait_until(lambda: "database" in victim.get("/readyz")[1], 20, "the next life to say what it waits for")
    assert farm.attempts(build_id) == [(1, None)]
    proxy.restore()
    victim.wait_ready()
    witness.wait_alive(build_id, 2)
    assert len(farm.text(build_id, attempt=1, step=1).splitlines()) > stored + 10
    witness.assert_alone(build_id, 2)
    witness.release()
    assert farm.wait_ended(build_id).outcome is Outcome.PASSED
    assert farm.attempts(build_id) == [(1, Outcome.LOST), (2, Outcome.PASSED)]
    witness.assert_output_is_its_own(farm, build_id)


def test_f04_claim_whose_answer_is_lost_is_given_back(postgres_farm: Farm, witness: Witness) -> None:
    """Guards: the heartbeat releases what is its server's on record and in no slot; no step of it ever ran."""
    farm = postgres_farm
    farm.agent("server")
    server = servers.get(farm.store, "server")
    build_id = farm.submit(witness.ran(), queue="elsewhere")
    # As if the commit had gone through and the connection broken before the answer.
    assert builds.claim(farm.store, build_id, server_id=server.id, session=server.session, slot=0) is not None
    farm.agent("second", queues="elsewhere")
    build = farm.wait_ended(build_id, 75)
    assert build.outcome is Outcome.PASSED
    assert farm.attempts(build_id) == [(1, Outcome.PREEMPTED), (2, Outcome.PASSED)]
    assert witness.runs(build_id) == [2]
