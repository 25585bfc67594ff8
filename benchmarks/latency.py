"""How long it takes a printed line to be seen by a reader of the database."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg

from agent import clock
from agent.clock import Deadline
from benchmarks.figure import Effort, Report, Row, Samples, at_most, percentile
from benchmarks.ground import Ground, start_agent, wait_ended
from tests.acceptance.farm import Farm

TITLE = "Latency of a line"
_RATE = 50
_POLL_S = 0.001
# Prints the time at which each line is written, in a steady rhythm.
_PRINTER = """
import sys, time
count, rate = int(sys.argv[1]), float(sys.argv[2])
begin = time.monotonic()
for number in range(count):
    time.sleep(max(0.0, begin + number / rate - time.monotonic()))
    sys.stdout.write(f"{time.time()!r}\\n")
    sys.stdout.flush()
"""
_NEW_CHUNKS = """\
select seq, data from output_chunks where build_id = %s and attempt = 1 and step = 1 and seq > %s order by seq"""
_WORDS = """\
A step prints {rate} lines a second, in each the time at which it was written. A second connection asks the
database for new rows about every millisecond; a line's latency is from that time to the moment the reader
has the row in hand. Each round is {count} lines. In the second half of the rounds another slot of the same
agent runs a step that prints as fast as it can, without end."""


def run(ground: Ground, effort: Effort) -> Report:
    """Measure p50 and p99 of each round, in quiet and beside a noisy neighbour."""
    count = effort.pick(10, 3) * _RATE
    found = Samples()
    with ground.farm() as farm:
        # No limit on a step's output: the noisy one would be ended by it.
        start_agent(farm, slots=2, output_limit_bytes=0)
        # All quiet rounds first: what noise leaves behind, the kernel is still writing to disk for a while.
        for _ in range(effort.rounds):
            lags = _lags_ms(farm, count)
            found.add(p50=percentile(lags, 0.5), p99=percentile(lags, 0.99))
        for _ in range(effort.rounds):
            with _Noise(farm, ground.folder):
                lags = _lags_ms(farm, count)
            found.add(noisy_p50=percentile(lags, 0.5), noisy_p99=percentile(lags, 0.99))
    return Report(words=_WORDS.format(rate=_RATE, count=count), rows=list(_rows(found)))


def _rows(found: Samples) -> Iterator[Row]:
    for prefix, where in (("", "alone"), ("noisy_", "beside a noisy slot")):
        for name, limit, share in (("p50", 20, "half"), ("p99", 100, "99 of 100")):
            yield Row(
                name=f"line latency {name}, {where}",
                unit="ms",
                samples=found[f"{prefix}{name}"],
                meaning=f"{share} of a round's lines were seen within this time",
                target=at_most(limit),
            )


def _lags_ms(farm: Farm, count: int) -> list[float]:
    words = (sys.executable, "-I", "-S", "-c", _PRINTER, str(count), str(_RATE))
    build_id = farm.submit({"steps": [shlex.join(words)]})
    lags: list[float] = []
    pending, after = b"", -1
    deadline = Deadline.after(60 + count / _RATE)
    with psycopg.connect(farm.database_url, autocommit=True) as connection:
        while len(lags) < count:
            rows = connection.execute(_NEW_CHUNKS, [build_id, after]).fetchall()
            seen_at = clock.utc_now().timestamp()
            for seq, data in rows:
                *lines, pending = (pending + bytes(data)).split(b"\n")
                lags += [(seen_at - float(line)) * 1000 for line in lines]
                after = seq
            if deadline.is_passed:
                raise RuntimeError(f"{len(lags)} of {count} lines have come")
            clock.sleep(_POLL_S)
    wait_ended(farm, build_id)
    return lags


class _Noise:
    """A build that prints without end while the context lasts."""

    def __init__(self, farm: Farm, folder: Path) -> None:
        self._farm = farm
        self._stop = folder / "stop"
        self._lines = folder / "noise.txt"

    def __enter__(self) -> None:
        self._stop.unlink(missing_ok=True)
        # 8 MB that no compression makes nothing of, and cat prints in milliseconds.
        with self._lines.open("w") as file:
            file.writelines(
                f"{number:07d} linking {number * 2654435761 % (1 << 32):08x}\n" for number in range(300_000)
            )
        loop = f"while [ ! -e {self._stop} ]; do cat {self._lines}; done"
        self._build_id = self._farm.submit({"steps": [loop]})
        self._farm.wait_running(self._build_id)

    def __exit__(self, *_exc: object) -> None:
        self._stop.touch()
        wait_ended(self._farm, self._build_id)
