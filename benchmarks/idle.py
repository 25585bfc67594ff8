"""What an agent with four slots costs while there is nothing to do, against four idle `rq worker` processes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import psutil
import psycopg

from agent import clock
from benchmarks.figure import Effort, Report, Row, Samples, at_most, ratios
from benchmarks.ground import Ground, start_agent, wait_ended
from benchmarks.peer import Peer
from tests.acceptance.farm import Farm

TITLE = "Idle"
_SLOTS = 4
# One turn of every loop, the first ones included, which do more than the later ones.
_SETTLE_S = 5.0
# What the server's log says of a statement; its further lines begin with a tab.
_STATEMENT = re.compile(r"LOG:  (?:statement|execute [^:]*): *(\w+)")
_FRAME = frozenset({"BEGIN", "COMMIT", "ROLLBACK", "SET"})
_WORDS = """\
An agent with four slots, alone and therefore leading (so it also looks for lost servers and lost builds),
{seconds} seconds long, with nothing to do; then four `rq worker`s. Redis and the database count what
reaches them. What only builds need, pydantic above all, is loaded with the first build, so the agent is
measured once more after one. A process that only imports what the agent speaks through (SQLAlchemy,
psycopg, redis, RQ, psutil, click) has 61 MB, 11 of them Python's own: the target lies below that floor."""


def run(ground: Ground, effort: Effort) -> Report:
    """Measure the agent, then its peer, each round."""
    seconds = effort.pick(30, 10)
    found = Samples()
    for _ in range(effort.rounds):
        with ground.farm() as farm:
            _measure_agent(ground, farm, seconds, found)
        with (
            ground.farm() as farm,
            Peer(farm.carrier.connection, url=farm.redis_url).workers(_SLOTS) as workers,
        ):
            clock.sleep(_SETTLE_S)
            meter = _Meter(workers, farm)
            clock.sleep(seconds)
            found.add(**{f"peer_{name}": value for name, value in meter.read().items()})
    return Report(words=_WORDS.format(seconds=seconds), rows=_rows(found))


def _measure_agent(ground: Ground, farm: Farm, seconds: int, found: Samples) -> None:
    with psycopg.connect(ground.postgres.url(), autocommit=True) as connection:
        name = farm.database_url.rpartition("/")[2]
        connection.execute(f"alter database {name} set log_statement = 'all'")
    agent = start_agent(farm, slots=_SLOTS)
    clock.sleep(_SETTLE_S)
    log = ground.postgres.folder / "postgres.log"
    offset = log.stat().st_size
    meter = _Meter([psutil.Process(agent.pid)], farm)
    clock.sleep(seconds)
    found.add(**meter.read())
    size = log.stat().st_size
    with log.open() as file:
        file.seek(offset)
        words = _STATEMENT.findall(file.read(size - offset))
    wait_ended(farm, farm.submit("true"))
    found.add(built=psutil.Process(agent.pid).memory_info().rss / 1e6)
    found.add(
        statements=sum(word.upper() not in _FRAME for word in words) / seconds,
        transactions=sum(word.upper() == "BEGIN" for word in words) / seconds,
    )


class _Meter:
    """Reads what processes use, and what reaches Redis meanwhile."""

    def __init__(self, processes: Sequence[psutil.Process], farm: Farm) -> None:
        self._processes = processes
        self._redis: Any = farm.carrier.connection
        self._commands = self._count()
        self._cpu_s = self._cpu()
        self._began_mono = clock.mono()

    def read(self) -> dict[str, float]:
        """Return memory in MB, CPU in ms a second, commands a second."""
        seconds = clock.mono() - self._began_mono
        memory = [process.memory_full_info() for process in self._processes]
        return {
            "rss": sum(item.rss for item in memory) / 1e6,
            "uss": sum(item.uss for item in memory) / 1e6,
            "cpu": (self._cpu() - self._cpu_s) / seconds * 1000,
            "commands": (self._count() - self._commands - 1) / seconds,
        }

    def _cpu(self) -> float:
        return sum(sum(process.cpu_times()[:2]) for process in self._processes)

    def _count(self) -> int:
        return int(self._redis.info("stats")["total_commands_processed"])


def _rows(found: Samples) -> list[Row]:
    peers = "four `rq worker`s"
    named = [
        ("rss", "memory", "MB", at_most(60), "resident size (RSS); of the peers, their sum"),
        (
            "uss",
            "memory of its own",
            "MB",
            None,
            "what would be free again without it (USS): shared pages left out",
        ),
        ("cpu", "CPU", "ms/s", at_most(3), "time on a processor, user and system"),
        ("commands", "Redis commands", "/s", at_most(2), "commands that Redis has processed"),
    ]
    rows = []
    for key, name, unit, target, meaning in named:
        rows.append(Row(name=f"{name}, agent", unit=unit, samples=found[key], meaning=meaning, target=target))
        rows.append(Row(name=f"{name}, {peers}", unit=unit, samples=found[f"peer_{key}"], meaning="the same"))
    memory = ratios(found["rss"], found["peer_rss"])
    return [
        *rows,
        Row(
            name="memory, agent, after a build",
            unit="MB",
            samples=found["built"],
            meaning="resident size when one build of one step has ended",
        ),
        Row(
            name=f"memory, agent / {peers}",
            unit="x",
            samples=memory,
            meaning="resident sizes, round by round",
        ),
        Row(
            name="database statements, agent",
            unit="/s",
            samples=found["statements"],
            meaning="statements in PostgreSQL's log, without those that frame a transaction",
        ),
        Row(
            name="database transactions, agent",
            unit="/s",
            samples=found["transactions"],
            meaning="each frames one or more statements, at the cost of two round trips",
        ),
    ]
