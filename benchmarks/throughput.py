"""A step that prints a million lines, against `psql \\copy` of the same lines into a table."""

from __future__ import annotations

import secrets
import subprocess
from collections.abc import Iterator
from pathlib import Path

from agent import clock
from agent.store import steps
from benchmarks.figure import Effort, Report, Row, Samples, at_least, at_most, ratios
from benchmarks.ground import Ground, environment, peak_rss_bytes, start_agent, wait_ended
from tests.acceptance.farm import AgentProcess, Farm

TITLE = "Throughput of output"
_SECRET_COUNT = 10
_TABLE = """\
create table lines (build text, line bigint, at timestamptz default now(), text text, primary key (build, line))"""
_WORDS = """\
One step prints {count:,} lines (`cat` of a file). The agent redacts ten secrets from them, spools them on
disk and stores them in the database; the time runs from the submit to the build's end, so until the last
row is committed. `\\copy` loads the same lines into a table with one row a line and a primary key, which is
the quickest way that PostgreSQL's own tools have, and has no step, no redaction, no spool and no line that
can be seen before all are there."""


def run(ground: Ground, effort: Effort) -> Report:
    """Measure lines of 80 and of 10 bytes, turn by turn with their `\\copy`."""
    count = effort.pick(1_000_000, 300_000)
    found = Samples()
    paths = {width: _write_lines(ground.folder / f"lines-{width}.txt", width, count) for width in (80, 10)}
    with ground.farm() as farm:
        names = _write_secrets(farm.folder / "secrets")
        agent = start_agent(farm, secrets_dir=farm.folder / "secrets")
        idle_bytes = peak_rss_bytes(agent.pid)
        for _ in range(effort.rounds):
            for width, path in paths.items():
                found.add(**{f"copy{width}": count / _copy(ground, path)})
                found.add(**{f"agent{width}": count / _build(farm, path, names, count)})
            found.add(peak=peak_rss_bytes(agent.pid) / 1e6)
        found.add(growth=(_peak(agent) - idle_bytes) / 1e6)
    for path in paths.values():
        path.unlink()
        path.with_suffix(".copy").unlink()
    return Report(words=_WORDS.format(count=count), rows=list(_rows(found)))


def _rows(found: Samples) -> Iterator[Row]:
    for width in (80, 10):
        ours, theirs = found[f"agent{width}"], found[f"copy{width}"]
        yield Row(
            name=f"{width}-byte lines, agent",
            unit="lines/s",
            samples=ours,
            meaning="submitted to ended, everything included",
        )
        yield Row(
            name=f"{width}-byte lines, `\\copy`",
            unit="lines/s",
            samples=theirs,
            meaning="start to end of `psql -c '\\copy ...'`",
        )
        yield Row(
            name=f"{width}-byte lines, agent / `\\copy`",
            unit="x",
            samples=ratios(ours, theirs),
            meaning="the two above, round by round",
            target=at_least(2.5) if width == 80 else None,
        )
    yield Row(
        name="memory of the agent, peak",
        unit="MB",
        samples=found["peak"],
        meaning="the greatest resident size (VmHWM) of the agent's process since its start, after each round",
        target=at_most(100),
    )
    yield Row(
        name="of that, for the step",
        unit="MB",
        samples=found["growth"],
        meaning="by how much the peak was above the agent's when it had just become ready",
    )


def _peak(agent: AgentProcess) -> int:
    return peak_rss_bytes(agent.pid)


def _build(farm: Farm, path: Path, names: list[str], count: int) -> float:
    began_mono = clock.mono()
    build_id = farm.submit({"steps": [f"cat {path}"], "secrets": names})
    wait_ended(farm, build_id)
    seconds = clock.mono() - began_mono
    account = steps.list_steps(farm.store, build_id, 1)[0].account
    if account is None or account.lines_stored != count:
        raise RuntimeError(f"lines were lost: {account}")
    return seconds


def _copy(ground: Ground, path: Path) -> float:
    url = ground.postgres.create_database(is_migrated=False)
    try:
        _psql(url, _TABLE)
        began_mono = clock.mono()
        _psql(url, f"\\copy lines (build, line, text) from '{path.with_suffix('.copy')}'")
        return clock.mono() - began_mono
    finally:
        ground.postgres.drop_database(url)


def _psql(url: str, command: str) -> None:
    argv = ["psql", url, "--no-psqlrc", "--quiet", "--command", command]
    subprocess.run(argv, check=True, env=environment())


def _write_lines(path: Path, width: int, count: int) -> Path:
    """Write the lines, and the same as `\\copy` takes them: build, line number, text."""
    with path.open("w") as lines, path.with_suffix(".copy").open("w") as rows:
        for number in range(count):
            text = f"{number:07d} compiling src/module_{number % 997:04d}.c with -O2 -Wall -Wextra -g and {number:x}"
            text = text[: width - 1].ljust(width - 1, ".")
            lines.write(f"{text}\n")
            rows.write(f"build\t{number}\t{text}\n")
    return path


def _write_secrets(folder: Path) -> list[str]:
    folder.mkdir(mode=0o700, parents=True)
    names = [f"SECRET_{number}" for number in range(_SECRET_COUNT)]
    for name in names:
        path = folder / name
        path.touch(mode=0o600)
        path.write_text(secrets.token_urlsafe(24))
    return names
