"""Builds a second through one slot and four, against as many `rq worker` processes."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.figure import Effort, Report, Row, Samples, at_least, ratios
from benchmarks.ground import Ground, start_agent, wait_ended
from benchmarks.peer import Peer

TITLE = "Builds a second"
_WORDS = """\
{count} builds of one step, `true`, wait in the queue when the agent starts; as many jobs that run `bash -c
true` in a subprocess wait for `rq worker`. Both are counted from the first start to the last end. A build
leaves a record of its attempt and its step in the database, a job a result in Redis."""


def run(ground: Ground, effort: Effort) -> Report:
    """Measure with one and with four at a time, turn by turn."""
    count = effort.pick(300, 80)
    found = Samples()
    for _ in range(effort.rounds):
        for slots in (1, 4):
            found.add(**{f"peer{slots}": _peer_rate(ground, count, slots)})
            found.add(**{f"agent{slots}": _agent_rate(ground, count, slots)})
    return Report(words=_WORDS.format(count=count), rows=list(_rows(found)))


def _rows(found: Samples) -> Iterator[Row]:
    for slots, ours, theirs in ((1, "one slot", "one `rq worker`"), (4, "four slots", "four `rq worker`s")):
        yield Row(
            name=f"agent, {ours}",
            unit="builds/s",
            samples=found[f"agent{slots}"],
            meaning="builds by the time from the first claim to the last end on record",
        )
        yield Row(
            name=theirs,
            unit="jobs/s",
            samples=found[f"peer{slots}"],
            meaning="jobs by the time from the first `started_at` to the last `ended_at`",
        )
        yield Row(
            name=f"{ours} / {theirs}",
            unit="x",
            samples=ratios(found[f"agent{slots}"], found[f"peer{slots}"]),
            meaning="the two above, round by round",
            target=at_least(1.0),
        )


def _agent_rate(ground: Ground, count: int, slots: int) -> float:
    with ground.farm() as farm:
        ids = [farm.submit("true") for _ in range(count)]
        start_agent(farm, slots=slots)
        for build_id in reversed(ids):
            # As seldom as the peer is asked: questions take processor time away from both. The last one ends last.
            wait_ended(farm, build_id, poll_s=0.05)
        done = [farm.build(build_id) for build_id in ids]
    started = min(build.started_at for build in done if build.started_at)
    ended = max(build.ended_at for build in done if build.ended_at)
    return count / (ended - started).total_seconds()


def _peer_rate(ground: Ground, count: int, workers: int) -> float:
    with ground.farm() as farm:
        return Peer(farm.carrier.connection, url=farm.redis_url).run_all(count, worker_count=workers)
