"""F01, F02: the agent is killed at every point of a build's life; another finishes the work, and never two at once."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import psutil
import pytest

from agent.clock import utc_now
from agent.host.preflight import HOLD_FILE
from agent.model.build import BuildState
from agent.model.outcome import Outcome
from agent.queue.submit import queue_if_possible
from agent.store import attempts, builds, servers
from tests.acceptance.delivery import Witness, proxied_database, submit_deploy
from tests.acceptance.farm import LEASE_S, AgentProcess, Farm
from tests.services import TcpProxy, free_port, wait_until

# What the fault allows from the kill to the next attempt.
AGAIN_S = LEASE_S + 15.0

pytestmark = pytest.mark.slow


@pytest.fixture
def witness(tmp_path: Path) -> Witness:
    """A witness of what steps really did."""
    return Witness(tmp_path / "witness")


@pytest.fixture
def database_proxy(postgres_url: str) -> Iterator[tuple[TcpProxy, str]]:
    """A proxy in front of the database, and the URL through it."""
    with proxied_database(postgres_url) as proxied:
        yield proxied


@pytest.fixture
def git_server(tmp_path: Path) -> Iterator[TcpProxy]:
    """A proxy in front of a git server that has `repository`."""
    root, port = tmp_path / "git", free_port()
    repository = root / "repository"
    repository.mkdir(parents=True)
    (repository / "file").write_text("content\n")
    for words in (["init", "-b", "main"], ["add", "."], ["commit", "-m", "First"]):
        subprocess.run(["git", *words], cwd=repository, check=True, capture_output=True)
    command = ["git", "daemon", f"--base-path={root}", "--export-all", "--listen=127.0.0.1", f"--port={port}"]
    with (
        subprocess.Popen(command, stderr=subprocess.DEVNULL) as daemon,
        TcpProxy(("127.0.0.1", port)) as proxy,
    ):
        yield proxy
        daemon.terminate()


def _kill(farm: Farm, victim: AgentProcess, rescuer: str) -> datetime:
    """Kill the victim; another agent, or the victim's next life, is there to go on. Return when it died."""
    if rescuer == "another":
        farm.agent("rescuer")
    killed_at = utc_now()
    victim.kill()
    if rescuer == "restarted":
        victim.start()
    return killed_at


def _wait_again(farm: Farm, build_id: str, killed_at: datetime, *, attempt: int = 2) -> None:
    """Wait for the next attempt; fail if it did not begin in time."""
    # Longer than allowed: how late it was says more than that it was late.
    farm.wait_running(build_id, attempt=attempt, timeout_s=AGAIN_S + 15)
    began_at = attempts.list_attempts(farm.store, build_id)[attempt - 1].started_at
    assert (began_at - killed_at).total_seconds() <= AGAIN_S


def _assert_finished(farm: Farm, witness: Witness, build_id: str) -> None:
    """Let the build go on; fail unless it passes as attempt 2, which never met attempt 1."""
    witness.assert_alone(build_id, 2)
    witness.release()
    assert farm.wait_ended(build_id).outcome is Outcome.PASSED
    assert farm.attempts(build_id) == [(1, Outcome.LOST), (2, Outcome.PASSED)]
    witness.assert_output_is_its_own(farm, build_id)


@pytest.mark.parametrize("rescuer", ["another", "restarted"])
def test_f01_agent_killed_mid_step(farm: Farm, witness: Witness, rescuer: str) -> None:
    """Guards: the guardian ends the dead agent's steps; the reaper, or the next life, closes the attempt."""
    victim = farm.agent("victim")
    build_id = farm.submit(witness.held())
    witness.wait_alive(build_id, 1)
    killed_at = _kill(farm, victim, rescuer)
    _wait_again(farm, build_id, killed_at)
    _assert_finished(farm, witness, build_id)


@pytest.mark.parametrize("rescuer", ["another", "restarted"])
def test_f01_agent_killed_mid_output(postgres_farm: Farm, witness: Witness, rescuer: str) -> None:
    """Guards: the spool keeps the tail for the next life; every row carries its attempt's number."""
    farm = postgres_farm
    victim = farm.agent("victim")
    flood = f'for i in $(seq 0 199999); do echo "attempt $BUILD_ATTEMPT line $i"; done\n{witness.held()}'
    # Numbered on from the flood, so that a gap anywhere in an attempt's output shows.
    build_id = farm.submit(flood.replace("i=0\n", "i=200000\n"))
    farm.wait_running(build_id, printed="attempt 1 line 1000\n")
    assert not witness.lives(build_id), "the flood was over before the kill"
    killed_at = _kill(farm, victim, rescuer)
    _wait_again(farm, build_id, killed_at)
    witness.release()
    assert farm.wait_ended(build_id).outcome is Outcome.PASSED
    if rescuer == "another":
        victim.start()  # what its former life left in the spool is shipped before it is ready
    witness.assert_output_is_its_own(farm, build_id)
    assert farm.attempts(build_id) == [(1, Outcome.LOST), (2, Outcome.PASSED)]


@pytest.mark.parametrize("rescuer", ["another", "restarted"])
def test_f01_agent_killed_in_checkout(
    postgres_farm: Farm, witness: Witness, git_server: TcpProxy, rescuer: str
) -> None:
    """Guards: as mid step; git's processes carry the marker of their life, so the guardian finds them too."""
    farm = postgres_farm
    victim = farm.agent("victim")
    git_server.hang()
    source = {"git": f"git://127.0.0.1:{git_server.port}/repository", "branch": "main"}
    build_id = farm.submit({"source": source, "steps": [witness.ran(), "cat file"]})
    farm.wait_running(build_id)
    fetching = wait_until(lambda: _git_of(git_server.port), 20, "git to wait for its server")
    killed_at = _kill(farm, victim, rescuer)
    wait_until(
        lambda: not set(fetching) & set(_git_of(git_server.port)), 5, "the dead agent's git to be killed"
    )
    git_server.restore()
    wait_until(lambda: farm.build(build_id).attempt == 2, AGAIN_S + 15, "attempt 2")
    began_at = attempts.list_attempts(farm.store, build_id)[1].started_at
    assert (began_at - killed_at).total_seconds() <= AGAIN_S
    assert farm.wait_ended(build_id).outcome is Outcome.PASSED
    assert witness.runs(build_id) == [2]
    assert farm.text(build_id, step=2) == "content\n"


@pytest.mark.parametrize("rescuer", ["another", "restarted"])
def test_f01_agent_killed_at_finish(
    postgres_farm: Farm, witness: Witness, database_proxy: tuple[TcpProxy, str], rescuer: str
) -> None:
    """Guards: the spool. The end of the attempt is in it, so a next life that comes first has nothing to repeat."""
    farm, (proxy, url) = postgres_farm, database_proxy
    victim = farm.agent("victim", database_url=url)
    build_id = farm.submit(witness.held())
    witness.wait_alive(build_id, 1)
    proxy.hang()
    witness.release()
    segments = victim.state_dir / "spool"
    # The only record that tells the commit is the attempt's end.
    wait_until(
        lambda: any(b'"commit":' in path.read_bytes() for path in segments.rglob("*.seg")), message="its end"
    )
    killed_at = utc_now()
    victim.kill()
    proxy.cut()  # what the dead agent had sent is as lost as it is
    proxy.restore()
    if rescuer == "restarted":
        victim.start()
        assert farm.wait_ended(build_id).outcome is Outcome.PASSED
        assert farm.attempts(build_id) == [(1, Outcome.PASSED)]
        assert witness.runs(build_id) == [1]
        return
    farm.agent("rescuer")
    assert farm.wait_ended(build_id, AGAIN_S + 15).outcome is Outcome.PASSED
    assert farm.attempts(build_id) == [(1, Outcome.LOST), (2, Outcome.PASSED)]
    began_at = attempts.list_attempts(farm.store, build_id)[1].started_at
    assert (began_at - killed_at).total_seconds() <= AGAIN_S
    # The victim comes back with the news that attempt 1 had passed: too late, it changes nothing.
    victim.start()
    assert farm.attempts(build_id) == [(1, Outcome.LOST), (2, Outcome.PASSED)]
    assert "attempt.stale_end" in victim.log()
    assert farm.text(build_id, attempt=1, step=1).endswith("attempt 1 line end\n")
    witness.assert_output_is_its_own(farm, build_id)


@pytest.mark.parametrize("rescuer", ["another", "restarted"])
def test_f01_agent_killed_while_it_claims(
    postgres_farm: Farm, witness: Witness, database_proxy: tuple[TcpProxy, str], rescuer: str
) -> None:
    """Guards: the sweep puts back what a dead slot had in hand; a build popped and not claimed is no attempt."""
    farm, (proxy, url) = postgres_farm, database_proxy
    victim = farm.agent("victim", database_url=url)
    rescue = farm.agent("rescuer") if rescuer == "another" else victim
    hold = farm.agents[-1].state_dir / HOLD_FILE
    if rescuer == "another":
        hold.touch()
        wait_until(lambda: rescue.get("/readyz")[0] == 503, message="the rescuer to hold back")
    proxy.hang()
    build_id = farm.submit(witness.held())
    wait_until(lambda: farm.carrier.in_hand("builds") == [build_id], message="the id to be in hand")
    killed_at = utc_now()
    victim.kill()
    proxy.cut()
    proxy.restore()
    assert farm.build(build_id).state is BuildState.QUEUED
    assert farm.carrier.waiting("builds") == []
    hold.unlink(missing_ok=True)
    if rescuer == "restarted":
        victim.start()
    _wait_again(farm, build_id, killed_at, attempt=1)
    witness.release()
    assert farm.wait_ended(build_id).outcome is Outcome.PASSED
    assert farm.attempts(build_id) == [(1, Outcome.PASSED)]
    assert witness.runs(build_id) == [1]
    assert farm.carrier.in_hand("builds") == []


def test_f01_id_left_in_hand_by_a_dead_slot(farm: Farm, witness: Witness) -> None:
    """Guards: the sweep, which puts an id back that was taken and never begun."""
    build_id = farm.submit(witness.ran())
    assert farm.carrier.take(["builds"]) == ("builds", build_id)
    died_at = utc_now()
    farm.agent()
    build = farm.wait_ended(build_id, AGAIN_S)
    assert build.outcome is Outcome.PASSED
    assert build.started_at is not None
    assert (build.started_at - died_at).total_seconds() <= AGAIN_S
    assert witness.runs(build_id) == [1]
    assert farm.carrier.in_hand("builds") == []


def test_f01_second_copy_of_a_running_build_is_dropped(farm: Farm, witness: Witness) -> None:
    """Guards: the claim, which takes only what is queued; the queue may hold an id twice, the record may not."""
    farm.agent("one")
    build_id = farm.submit(witness.held())
    witness.wait_alive(build_id, 1)
    farm.agent("other")
    for _ in range(3):
        assert farm.carrier.publish(build_id, "builds")
        wait_until(
            lambda: not farm.carrier.waiting("builds") and not farm.carrier.in_hand("builds"),
            message="the copy to be dropped",
        )
    assert farm.attempts(build_id) == [(1, None)]
    witness.release()
    assert farm.wait_ended(build_id).outcome is Outcome.PASSED
    assert farm.attempts(build_id) == [(1, Outcome.PASSED)]
    assert witness.runs(build_id) == [1]


def test_f01_guardian_that_was_killed_is_replaced(sqlite_farm: Farm, witness: Witness) -> None:
    """Guards: the agent looks after its guardian: without one a killed agent would leave its steps behind."""
    victim = sqlite_farm.agent("victim")
    build_id = sqlite_farm.submit(witness.held())
    witness.wait_alive(build_id, 1)
    [first] = _guardians_of(victim)
    first.kill()
    wait_until(lambda: [each for each in _guardians_of(victim) if each != first], 20, "another guardian")
    victim.kill()
    wait_until(lambda: witness.is_still(build_id, 1), 10, "the step to be dead")
    assert sqlite_farm.attempts(build_id) == [(1, None)]


@pytest.mark.parametrize("rescuer", ["another", "restarted"])
def test_f01_agent_killed_between_claim_and_start(farm: Farm, witness: Witness, rescuer: str) -> None:
    """Guards: the reaper, or the next life: an attempt on record that nothing was ever spooled of is closed."""
    victim = farm.agent("victim")
    server = servers.get(farm.store, "victim")
    # What the victim's slot does first, done for it: nobody but the database knows of this attempt.
    build_id = farm.submit(witness.ran(), queue="elsewhere")
    assert builds.claim(farm.store, build_id, server_id=server.id, session=server.session, slot=0) is not None
    farm.carrier.forget("elsewhere", build_id)
    assert farm.carrier.waiting("elsewhere") == [build_id]
    assert farm.carrier.take(["elsewhere"]) is not None
    farm.carrier.forget("elsewhere", build_id)
    if rescuer == "another":
        farm.agent("rescuer", queues="builds,elsewhere")
    killed_at = utc_now()
    victim.kill()
    if rescuer == "restarted":
        victim.start(queues="builds,elsewhere")
    wait_until(lambda: farm.build(build_id).attempt == 2, AGAIN_S + 15, "attempt 2")
    began_at = attempts.list_attempts(farm.store, build_id)[1].started_at
    assert (began_at - killed_at).total_seconds() <= AGAIN_S
    assert farm.wait_ended(build_id).outcome is Outcome.PASSED
    assert farm.attempts(build_id) == [(1, Outcome.LOST), (2, Outcome.PASSED)]
    assert witness.runs(build_id) == [2]


def test_f01_build_that_kills_every_agent_ends_after_its_attempts(farm: Farm, witness: Witness) -> None:
    """Guards: `attempts_allowed`, without which one such build would bring down the fleet for ever."""
    agent = farm.agent("victim")
    build_id = farm.submit({"steps": [witness.held()], "max_attempts": 2})
    for number in (1, 2):
        witness.assert_alone(build_id, number)
        agent.kill()
        agent.start()
    build = farm.wait_ended(build_id)
    assert build.outcome is Outcome.LOST
    assert farm.attempts(build_id) == [(1, Outcome.LOST), (2, Outcome.LOST)]


@pytest.mark.parametrize("rescuer", ["another", "restarted"])
def test_f02_agent_killed_in_a_deploy(farm: Farm, witness: Witness, rescuer: str) -> None:
    """Guards: `deploy_begun_at`, written before the deploy's first step, keeps the system from running it again."""
    victim = farm.agent("victim")
    build_id = submit_deploy(farm, witness.held())
    witness.wait_alive(build_id, 1)
    _kill(farm, victim, rescuer)
    build = farm.wait_ended(build_id, AGAIN_S)
    assert build.outcome is Outcome.LOST
    assert farm.attempts(build_id) == [(1, Outcome.LOST)]
    _assert_never_run_again(farm, witness, build_id)
    queue_if_possible(farm.carrier, builds.retry(farm.store, build_id, by="operator", max_attempts=3))
    witness.assert_alone(build_id, 2)
    witness.release()
    assert farm.wait_ended(build_id).outcome is Outcome.PASSED
    assert farm.attempts(build_id) == [(1, Outcome.LOST), (2, Outcome.PASSED)]


def _assert_never_run_again(farm: Farm, witness: Witness, build_id: str) -> None:
    """Put the job back into the queue, as a late sweep or a person at Redis might; see that nothing comes of it."""
    assert farm.carrier.publish(build_id, "builds")
    after = farm.submit("true")
    assert farm.wait_ended(after).outcome is Outcome.PASSED
    wait_until(
        lambda: not farm.carrier.waiting("builds") and not farm.carrier.in_hand("builds"),
        message="an empty queue",
    )
    assert farm.attempts(build_id) == [(1, Outcome.LOST)]
    assert witness.runs(build_id) == [1]


@pytest.mark.parametrize("rescuer", ["another", "restarted"])
def test_f02_deploy_that_is_retry_safe_runs_again(farm: Farm, witness: Witness, rescuer: str) -> None:
    """Guards: as mid step; the lock of the dead attempt does not keep the next one from deploying."""
    victim = farm.agent("victim")
    build_id = submit_deploy(farm, witness.held(), retry_safe=True)
    witness.wait_alive(build_id, 1)
    killed_at = _kill(farm, victim, rescuer)
    _wait_again(farm, build_id, killed_at)
    witness.assert_alone(build_id, 2)
    witness.release()
    assert farm.wait_ended(build_id).outcome is Outcome.PASSED
    assert farm.attempts(build_id) == [(1, Outcome.LOST), (2, Outcome.PASSED)]


def test_f02_agent_killed_before_its_deploy_began_runs_it_as_the_next_attempt(
    sqlite_farm: Farm, witness: Witness
) -> None:
    """Guards: only a deploy that has begun is never repeated; the build before it is like any other."""
    victim = sqlite_farm.agent("victim")
    build_id = submit_deploy(sqlite_farm, witness.ran(), steps=[witness.held()])
    witness.wait_alive(build_id, 1)
    _kill(sqlite_farm, victim, "restarted")
    witness.wait_alive(build_id, 2)
    witness.release()
    assert sqlite_farm.wait_ended(build_id).outcome is Outcome.PASSED
    assert sqlite_farm.attempts(build_id) == [(1, Outcome.LOST), (2, Outcome.PASSED)]
    assert witness.runs(build_id) == [1, 2, 2]


def _guardians_of(agent: AgentProcess) -> list[psutil.Process]:
    return [child for child in psutil.Process(agent.pid).children() if _is_guardian(child)]


def _is_guardian(process: psutil.Process) -> bool:
    try:
        # One that was killed is a zombie until the agent collects it.
        return process.status() != psutil.STATUS_ZOMBIE and "build-agent-guardian" in process.cmdline()
    except psutil.NoSuchProcess:
        return False


def _git_of(port: int) -> list[int]:
    """Return the git processes that speak with the server on `port`."""
    found = subprocess.run(
        ["pgrep", "-f", f"git.*127.0.0.1:{port}/"], capture_output=True, text=True, check=False
    )
    return [int(word) for word in found.stdout.split()]
