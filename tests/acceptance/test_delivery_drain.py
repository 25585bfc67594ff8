"""F06, F07: a drain takes nothing more and loses nothing; signals drain, and then give back."""

from __future__ import annotations

import signal
from collections import Counter
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import text

from agent.clock import utc_now
from agent.model.build import BuildState
from agent.model.outcome import Outcome
from agent.model.server import Order, OrderKind, ServerState
from agent.queue.listen import nudge
from agent.store import attempts, orders, servers
from tests import size
from tests.acceptance.delivery import Witness, proxied_database, submit_deploy
from tests.acceptance.farm import AgentProcess, Farm
from tests.services import wait_until

pytestmark = pytest.mark.slow


@pytest.fixture
def witness(tmp_path: Path) -> Witness:
    """A witness of what steps really did."""
    return Witness(tmp_path / "witness")


def _order(farm: Farm, agent: AgentProcess, kind: OrderKind) -> Order:
    """Give an order as the console does: on record, and a nudge."""
    server = servers.get(farm.store, agent.folder.name)
    order = orders.give(farm.store, server_id=server.id, kind=kind, by="operator")
    nudge(farm.carrier.connection, server.id)
    return order


def _wait_done(farm: Farm, order: Order) -> str:
    """Wait until an order is carried out; return how it ended."""

    def result() -> str:
        nudge(farm.carrier.connection, order.server_id)  # or the next look would come with the next heartbeat
        with farm.store.read() as connection:
            row = connection.execute(text("SELECT result FROM orders WHERE id = :id"), {"id": order.id})
            return str(row.scalar() or "")

    return wait_until(result, 30, f"order {order.id} to be done")


@pytest.mark.timeout(900 if size.IS_FULL else 180)
def test_f06_drain_raced_against_dispatch(postgres_farm: Farm, witness: Witness) -> None:
    """Guards: the gate, one lock for "is it open" and "one more in hand"; the claim, which one slot wins.

    Two servers are drained and resumed in turn, as quickly as they obey, while builds come one after the other.
    """
    farm = postgres_farm
    agents = [farm.agent(name, slots=2, heartbeat_s=0.5) for name in ("one", "two")]
    submitted: list[str] = []
    spans = []
    for turn in range(size.of(200, 1000)):
        agent = agents[turn % 2]
        submitted.append(farm.submit(witness.ran()))
        drain = _order(farm, agent, OrderKind.DRAIN)
        submitted.append(farm.submit(witness.ran()))
        assert _wait_done(farm, drain) == "drained"
        drained_at = utc_now()
        submitted.append(farm.submit(witness.ran()))
        resumed_at = utc_now()
        _order(farm, agent, OrderKind.RESUME)
        spans.append((agent.folder.name, drained_at, resumed_at))
    for build_id in submitted:
        assert farm.wait_ended(build_id).outcome is Outcome.PASSED
    runs = Counter(line.split()[0] for line in witness.runs_path.read_text().splitlines())
    assert runs == Counter(submitted)
    with farm.store.read() as connection:
        rows = connection.execute(text("SELECT build_id, server_id, started_at FROM attempts")).all()
    assert Counter(row.build_id for row in rows) == Counter(submitted)
    ids = {servers.get(farm.store, name).id: name for name in ("one", "two")}
    began_drained = [
        row
        for row in rows
        for name, drained_at, resumed_at in spans
        if ids[row.server_id] == name and drained_at < row.started_at < resumed_at
    ]
    assert began_drained == []
    assert farm.carrier.in_hand("builds") == []


def test_f06_stop_raced_against_dispatch(postgres_farm: Farm, witness: Witness) -> None:
    """Guards: what a slot has popped and may not begin goes back to the head of its queue, not into the void."""
    farm = postgres_farm
    agent = farm.agent("stopped", slots=2)
    submitted: list[str] = []
    for _ in range(5):
        # Some before, some after: the signal falls between a pop and its claim sooner or later.
        submitted += [farm.submit(witness.ran()) for _ in range(10)]
        agent.signal(signal.SIGTERM)
        submitted += [farm.submit(witness.ran()) for _ in range(10)]
        assert agent.wait_exit() == 0
        assert farm.carrier.in_hand("builds") == []
        agent.start()
    for build_id in submitted:
        assert farm.wait_ended(build_id).outcome is Outcome.PASSED
    runs = Counter(line.split()[0] for line in witness.runs_path.read_text().splitlines())
    assert runs == Counter(submitted)
    assert {number for build_id in submitted for number, _ in farm.attempts(build_id)} == {1}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_f07_first_signal_drains(farm: Farm, witness: Witness, number: signal.Signals) -> None:
    """Guards: the handler only counts; the drain lets what runs end, and takes nothing more."""
    agent = farm.agent(slots=1)
    running = farm.submit(witness.held())
    witness.wait_alive(running, 1)
    waiting = farm.submit(witness.ran())
    agent.signal(number)
    wait_until(lambda: agent.get("/readyz")[0] == 503, message="the gate to close")
    assert "stopping" in agent.get("/readyz")[1]
    assert agent.get("/healthz")[0] == 200
    wait_until(
        lambda: servers.get(farm.store, "server-1").state is ServerState.DRAINING,
        message="the record to say so",
    )
    witness.release()
    assert agent.wait_exit() == 0
    assert farm.build(running).outcome is Outcome.PASSED
    assert farm.text(running).endswith("line end\n")
    assert servers.get(farm.store, "server-1").state is ServerState.STOPPED
    assert farm.build(waiting).state is BuildState.QUEUED
    assert farm.carrier.waiting("builds") == [waiting]
    assert witness.runs(waiting) == []
    farm.agent("next")
    assert farm.wait_ended(waiting).outcome is Outcome.PASSED


def _assert_given_back(farm: Farm, witness: Witness, build_id: str, why: str) -> None:
    """Fail unless the build waits again with no attempt used up, and passes elsewhere."""
    assert farm.build(build_id).state is BuildState.QUEUED
    assert farm.build(build_id).attempts_allowed == 4
    [ended] = attempts.list_attempts(farm.store, build_id)
    assert ended.outcome is Outcome.PREEMPTED
    assert why in (ended.detail or "")
    assert farm.carrier.waiting("builds") == [build_id]
    assert witness.is_still(build_id, 1)
    farm.agent("next")
    witness.assert_alone(build_id, 2)
    witness.release()
    assert farm.wait_ended(build_id).outcome is Outcome.PASSED
    assert farm.attempts(build_id) == [(1, Outcome.PREEMPTED), (2, Outcome.PASSED)]
    witness.assert_output_is_its_own(farm, build_id)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_f07_second_signal_gives_back(farm: Farm, witness: Witness, number: signal.Signals) -> None:
    """Guards: the end of the attempt is in the database, and the id in the queue, before the agent goes."""
    agent = farm.agent()
    build_id = farm.submit(witness.held())
    witness.wait_alive(build_id, 1)
    agent.signal(number)
    wait_until(lambda: "agent.draining" in agent.log(), message="the first signal to be heard")
    agent.signal(number)
    assert agent.wait_exit() == 0
    _assert_given_back(farm, witness, build_id, "the agent is stopping")


def test_f07_stop_limit_gives_back(farm: Farm, witness: Witness) -> None:
    """Guards: `stop_limit_s`, after which a drain is over whatever still runs."""
    agent = farm.agent(stop_limit_s=2)
    build_id = farm.submit(witness.held())
    witness.wait_alive(build_id, 1)
    agent.signal(signal.SIGTERM)
    assert agent.wait_exit() == 0
    _assert_given_back(farm, witness, build_id, "the agent is stopping")


def test_f07_deadline_of_a_drain_counts_after_the_signal_too(farm: Farm, witness: Witness) -> None:
    """Guards: whichever limit comes first; a machine that goes at a set time can't wait for `stop_limit_s`."""
    agent = farm.agent()
    build_id = farm.submit(witness.held())
    witness.wait_alive(build_id, 1)
    server = servers.get(farm.store, agent.folder.name)
    deadline_at = utc_now() + timedelta(seconds=6)
    orders.give(farm.store, server_id=server.id, kind=OrderKind.DRAIN, by="operator", deadline_at=deadline_at)
    nudge(farm.carrier.connection, server.id)
    wait_until(lambda: agent.get("/readyz")[0] == 503, message="the gate to close")
    agent.signal(signal.SIGTERM)
    assert agent.wait_exit() == 0
    assert utc_now() >= deadline_at
    _assert_given_back(farm, witness, build_id, "the agent is stopping")


def test_f07_agent_goes_away_while_the_step_cleans_up(farm: Farm, witness: Witness) -> None:
    """Guards: the grace of a step also when it is given back, its last words in the stored output."""
    agent = farm.agent(kill_grace_s=3)
    command = f"trap 'echo cleaned; exit 1' TERM\n{witness.held()}"
    build_id = farm.submit(command)
    witness.wait_alive(build_id, 1)
    agent.signal(signal.SIGTERM)
    wait_until(lambda: "agent.draining" in agent.log(), message="the first signal to be heard")
    agent.signal(signal.SIGTERM)
    assert agent.wait_exit() == 0
    assert "cleaned\n" in farm.text(build_id, attempt=1)
    assert farm.attempts(build_id) == [(1, Outcome.PREEMPTED)]
    assert farm.build(build_id).state is BuildState.QUEUED


def test_f02_deploy_given_back_in_its_midst_is_lost(farm: Farm, witness: Witness) -> None:
    """Guards: preempted or not, a deploy that has begun is not begun again by the system."""
    agent = farm.agent()
    build_id = submit_deploy(farm, witness.held())
    witness.wait_alive(build_id, 1)
    agent.signal(signal.SIGTERM)
    wait_until(lambda: "agent.draining" in agent.log(), message="the first signal to be heard")
    agent.signal(signal.SIGTERM)
    assert agent.wait_exit() == 0
    assert farm.build(build_id).outcome is Outcome.LOST
    assert farm.carrier.waiting("builds") == []
    farm.agent("next")
    after = farm.submit("true")
    assert farm.wait_ended(after).outcome is Outcome.PASSED
    assert witness.runs(build_id) == [1]


@pytest.mark.parametrize("away", ["before", "after"])
def test_f07_given_back_without_a_database_is_told_by_the_next_life(
    postgres_farm: Farm, witness: Witness, away: str
) -> None:
    """Guards: the spool; an agent that may wait no longer leaves the end of its attempts to its next life."""
    farm = postgres_farm
    with proxied_database(farm.database_url) as (proxy, url):
        agent = farm.agent("leaving", database_url=url)
        build_id = farm.submit(witness.held())
        witness.wait_alive(build_id, 1)
        if away == "before":
            proxy.cut()
        agent.signal(signal.SIGTERM)
        wait_until(lambda: "agent.draining" in agent.log(), message="the first signal to be heard")
        proxy.cut()
        agent.signal(signal.SIGTERM)
        assert agent.wait_exit(60) == 0
        assert witness.is_still(build_id, 1)
        assert farm.attempts(build_id) == [(1, None)]
        proxy.restore()
        agent.start()
        witness.assert_alone(build_id, 2)
        witness.release()
        assert farm.wait_ended(build_id).outcome is Outcome.PASSED
        assert farm.attempts(build_id) == [(1, Outcome.PREEMPTED), (2, Outcome.PASSED)]
        witness.assert_output_is_its_own(farm, build_id)


def test_f07_signal_while_the_agent_still_waits_for_its_servers(postgres_farm: Farm) -> None:
    """Guards: the way up asks for signals at each turn: an agent that waits for a database can be stopped."""
    agent = postgres_farm.agent(wait_ready=False, redis_url="redis://127.0.0.1:1/0")
    wait_until(lambda: "Redis" in agent.get("/readyz")[1], 20, "the agent to say what it waits for")
    agent.signal(signal.SIGTERM)
    assert agent.wait_exit(20) == 0
