"""An agent after a thousand builds is as it was after the first few (F18)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from agent.store import builds
from tests.acceptance.farm import AgentProcess, Farm
from tests.services import wait_until

FEW = 60
MANY = 1000
# What a build may add to the agent's memory for a while: samples of gauges, fragments of the heap. A leak of one
# build's records would be tens of KiB each.
BYTES_A_BUILD = 2048
NOISE_BYTES = 4 << 20

# Passing and failing, with a daemon left behind, beside each other, on a terminal.
DOCUMENTS: tuple[dict[str, Any], ...] = (
    {"steps": ["true"]},
    {"steps": ["echo $RANDOM; exit 1"]},
    {"pipelines": {"a": {"steps": ["true"]}, "b": {"steps": ["setsid sleep 600 & true"]}}},
    {"steps": [{"run": "echo x", "pty": True}]},
)


@dataclass(frozen=True)
class Held:
    """What an agent at rest holds."""

    threads: int
    descriptors: int
    sockets: int
    children: int
    spool: int
    workspaces: int
    lists: dict[bytes, int]
    rss: int


def descriptors_of(pid: int) -> tuple[int, int]:
    """Count descriptors that are no sockets, and sockets.

    Left out are those of the database, which a pool opens when it first needs them; the pool of connections to Redis
    does the same, so sockets are held to the number of threads that may each want one.
    """
    places = []
    for path in Path(f"/proc/{pid}/fd").iterdir():
        try:
            places.append(str(path.readlink()))
        except FileNotFoundError:
            continue  # closed meanwhile
    sockets = sum(place.startswith("socket:") for place in places)
    return sum("build-agent.db" not in place for place in places) - sockets, sockets


def hold_of(farm: Farm, agent: AgentProcess) -> Held:
    process = psutil.Process(agent.pid)
    redis = farm.carrier.connection
    # The jobs that ended stay for an hour for those who look through RQ.
    kept = (b"rq:job:", b"rq:results:", b"rq:finished:", b"rq:failed:")
    descriptors, sockets = descriptors_of(agent.pid)
    sizes = {b"lists": redis.llen("rq:queue:builds"), b"in hand": redis.llen("rq:queue:builds:intermediate")}
    keys = [key for key in redis.scan_iter("*", count=1000) if not key.startswith(kept)]
    return Held(
        threads=process.num_threads(),
        descriptors=descriptors,
        sockets=sockets,
        children=len(process.children(recursive=True)),
        spool=len(list((agent.state_dir / "spool").iterdir())),
        workspaces=sum(1 for _ in (agent.state_dir / "workspaces").rglob("*")),
        lists={name: int(size) for name, size in sizes.items()} | {b"keys": len(keys)},
        rss=process.memory_info().rss,
    )


def run_builds(farm: Farm, count: int) -> None:
    """Run that many builds to their ends."""
    for number in range(count):
        farm.submit(DOCUMENTS[number % len(DOCUMENTS)])
    wait_until(lambda: not any(builds.count_by_state(farm.store).values()), 100, "the end of the builds")


def at_rest(farm: Farm, agent: AgentProcess, wanted: Held | None = None) -> Held:
    """Return what the agent holds once it is still; orphans are collected in ten seconds."""

    def is_still() -> bool:
        now = hold_of(farm, agent)
        if wanted is None:
            return now.spool == 0 and now.children == 1
        return now.children <= wanted.children and now.descriptors <= wanted.descriptors

    wait_until(is_still, 30, lambda: f"rest; it holds {hold_of(farm, agent)}, before {wanted}")
    return hold_of(farm, agent)


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_f18_agent_holds_no_more_after_a_thousand_builds(sqlite_farm: Farm) -> None:
    farm = sqlite_farm
    agent = farm.agent(slots=2, log_level="warning", kill_grace_s=1)
    run_builds(farm, FEW)
    before = at_rest(farm, agent)
    run_builds(farm, MANY)
    after = at_rest(farm, agent, before)
    assert after.threads <= before.threads
    assert after.descriptors <= before.descriptors
    assert after.sockets <= after.threads
    # The guardian alone: no sleeper, no zombie.
    assert after.children == 1
    assert (after.spool, after.workspaces) == (0, before.workspaces)
    assert after.lists == before.lists
    assert after.rss - before.rss < NOISE_BYTES + MANY * BYTES_A_BUILD
