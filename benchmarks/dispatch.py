"""How long a build that is queued waits for an idle agent to begin with it, against RQ's forking worker."""

from __future__ import annotations

from pathlib import Path

from agent import clock
from agent.clock import Deadline
from agent.queue.submit import new_build, submit
from agent.store import builds
from benchmarks.figure import Effort, Report, Row, Samples, at_most, percentile, ratios
from benchmarks.ground import Ground, start_agent, wait_ended
from benchmarks.peer import Peer
from tests.acceptance.farm import Farm

TITLE = "Dispatch"
_LIMIT_S = 30.0
_WORDS = """\
An idle agent and an idle `rq worker`, both with default settings on the same Redis, are given work in turn,
{count} times a round. The agent's clock stops with the first instruction of the first step (bash writes the
time: the shell's own start is in it), RQ's when it enters a Python function. The agent has by then claimed
the build in the database, made its workspace and put its start on record."""


def run(ground: Ground, effort: Effort) -> Report:
    """Measure p50 of each round."""
    count = effort.pick(40, 15)
    found = Samples()
    with ground.farm() as farm:
        peer = Peer(farm.carrier.connection, url=farm.redis_url)
        start_agent(farm)
        with peer.workers(1):
            for _ in range(effort.rounds):
                queued, submitted, theirs = [], [], []
                for number in range(count):
                    path = ground.folder / f"stamp-{number}"
                    queued.append(_agent_ms(farm, path, is_recorded=True))
                    theirs.append(_peer_ms(peer, path))
                    submitted.append(_agent_ms(farm, path, is_recorded=False))
                found.add(queued=percentile(queued, 0.5), submitted=percentile(submitted, 0.5))
                found.add(theirs=percentile(theirs, 0.5))
    return Report(words=_WORDS.format(count=count), rows=_rows(found))


def _rows(found: Samples) -> list[Row]:
    return [
        Row(
            name="agent, p50",
            unit="ms",
            samples=found["queued"],
            meaning="from before the enqueue of a build that is on record to the step's first instruction",
        ),
        Row(
            name="`rq worker`, p50",
            unit="ms",
            samples=found["theirs"],
            meaning="from before `Queue.enqueue` to the function's first statement",
        ),
        Row(
            name="agent / `rq worker`",
            unit="x",
            samples=ratios(found["queued"], found["theirs"]),
            meaning="the two above, round by round",
            target=at_most(1.0),
        ),
        Row(
            name="agent from the submit on, p50",
            unit="ms",
            samples=found["submitted"],
            meaning="the same with the build put on record in the database first",
        ),
    ]


def _agent_ms(farm: Farm, path: Path, *, is_recorded: bool) -> float:
    new = new_build({"project": "bench", "steps": [f"echo $EPOCHREALTIME > {path}"]})
    if is_recorded:
        builds.create(farm.store, new)
    began_at = clock.utc_now().timestamp()
    if is_recorded:
        farm.carrier.publish(new.id, new.queue)
    else:
        submit(farm.store, farm.carrier, new)
    took_ms = _took_ms(path, began_at)
    wait_ended(farm, new.id)
    return took_ms


def _peer_ms(peer: Peer, path: Path) -> float:
    began_at = clock.utc_now().timestamp()
    job = peer.queue.enqueue("benchmarks.peer_job.stamp", str(path))
    took_ms = _took_ms(path, began_at)
    while job.get_status().value != "finished":
        clock.sleep(0.005)
    return took_ms


def _took_ms(path: Path, began_at: float) -> float:
    """Wait for the first instruction and read its time; the wait must cost neither server anything."""
    deadline = Deadline.after(_LIMIT_S)
    while not (path.exists() and (text := path.read_text())):
        if deadline.is_passed:
            raise RuntimeError(f"nothing has run within {_LIMIT_S:g} s")
        clock.sleep(0.005)
    path.unlink()
    clock.sleep(0.05)  # both go back to waiting
    return (float(text) - began_at) * 1000
