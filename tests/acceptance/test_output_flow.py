"""Output under load: seen soon (F24), bounded on its way (F19, F20), ended at its limit (F21)."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from textwrap import dedent
from urllib.parse import urlsplit, urlunsplit

import psutil
import pytest

from agent import clock
from agent.model.outcome import Outcome
from agent.output.spool import SEGMENT_BYTES
from agent.queue.private import PrivateRedis
from agent.store import builds, output, steps
from agent.store.engine import Store
from tests.acceptance.farm import AgentProcess, Farm
from tests.services import TcpProxy, wait_until

MIB = 1 << 20
LINES = 400
STEADY = dedent(f"""
    import sys, time
    for number in range({LINES}):
        sys.stdout.write("%d %.6f\\n" % (number, time.time()))
        sys.stdout.flush()
        time.sleep(0.01)
""")


class Reader:
    """Follows a build's output over a connection of its own and notes when it saw which line."""

    def __init__(self, database_url: str, build_id: str) -> None:
        self._store = Store(database_url, pool_size=1)
        self._build_id = build_id
        self.seen: list[tuple[datetime, bytes]] = []
        self._is_done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        cursors: dict[int, int] = {}
        rest = b""
        while not self._is_done.wait(0.005):
            chunks = output.follow(self._store, self._build_id, 1, cursors)
            now = clock.utc_now()
            for chunk in chunks:
                cursors[chunk.step] = chunk.seq
                *lines, rest = (rest + chunk.data).split(b"\n")
                self.seen += [(now, line) for line in lines]

    def delays_s(self) -> list[float]:
        """Return how long after it was printed each line was seen, the shortest first."""
        wait_until(lambda: len(self.seen) >= LINES, 60, lambda: f"{len(self.seen)} lines")
        self._is_done.set()
        self._thread.join(10)
        self._store.dispose()
        assert [int(line.split()[0]) for _, line in self.seen] == list(range(LINES))
        return sorted(now.timestamp() - float(line.split()[1]) for now, line in self.seen)


def assert_seen_in_time(delays_s: list[float]) -> None:
    p99 = delays_s[int(len(delays_s) * 0.99) - 1]
    assert delays_s[-1] < 1.0, f"the slowest line took {delays_s[-1]:.3f} s, p99 {p99:.3f} s"
    assert p99 <= 0.25, f"p99 is {p99:.3f} s"


@contextmanager
def watched(agent: AgentProcess) -> Iterator[dict[str, int]]:
    """Watch what the agent takes: the most memory and the most spool."""
    most = {"rss": 0, "spool": 0}
    is_done = threading.Event()
    process = psutil.Process(agent.pid)

    def watch() -> None:
        while not is_done.wait(0.05):
            most["rss"] = max(most["rss"], process.memory_info().rss)
            files = (agent.state_dir / "spool").rglob("*.seg")
            most["spool"] = max(most["spool"], sum(size_of(path) for path in files))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield most
    finally:
        is_done.set()
        thread.join(10)


def size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0  # shipped meanwhile


@pytest.mark.slow
def test_f24_each_line_of_a_steady_step_is_seen_within_a_quarter_second(farm: Farm, tmp_path: Path) -> None:
    farm.agent()
    (tmp_path / "steady.py").write_text(STEADY)
    build_id = farm.submit(f"python3 {tmp_path / 'steady.py'}")
    delays_s = Reader(farm.database_url, build_id).delays_s()
    assert farm.wait_ended(build_id).outcome is Outcome.PASSED
    assert_seen_in_time(delays_s)


@pytest.mark.slow
def test_f24_steady_step_is_seen_in_time_beside_one_that_prints_as_fast_as_it_can(
    postgres_farm: Farm, tmp_path: Path
) -> None:
    farm = postgres_farm
    farm.agent(slots=2, spool_limit_bytes=64 * MIB)
    go = tmp_path / "go"
    (tmp_path / "steady.py").write_text(STEADY)
    build_id = farm.submit(f"until [ -e {go} ]; do sleep 0.05; done; python3 {tmp_path / 'steady.py'}")
    farm.wait_running(build_id)
    flood = farm.submit("yes 'a line of a step that prints as fast as it can'")
    wait_until(lambda: output.read_chunks(farm.store, flood, 1, 1, limit_bytes=1), 30, "the flood")
    go.touch()
    delays_s = Reader(farm.database_url, build_id).delays_s()
    assert farm.wait_ended(build_id).outcome is Outcome.PASSED
    builds.request_cancel(farm.store, flood, by="ann")
    assert farm.wait_ended(flood).outcome is Outcome.CANCELLED
    assert_seen_in_time(delays_s)


@pytest.mark.slow
def test_f19_line_without_end_is_stored_whole_in_little_memory(farm: Farm) -> None:
    agent = farm.agent()
    size = 64 * MIB
    with watched(agent) as most:
        build_id = farm.submit(f"head -c {size} /dev/zero | tr '\\0' x")
        assert farm.wait_ended(build_id).outcome is Outcome.PASSED
    assert most["rss"] < 100 * MIB
    account = steps.list_steps(farm.store, build_id, 1)[0].account
    assert (account.bytes_produced, account.bytes_stored, account.lines_stored) == (size, size, 1)
    digest, total, after = hashlib.sha256(), 0, -1
    while chunks := output.read_chunks(farm.store, build_id, 1, 1, after_seq=after, limit_bytes=4 * MIB):
        for chunk in chunks:
            assert (chunk.first_line, chunk.line_count) == (1, 0)
            digest.update(chunk.data)
            total += len(chunk.data)
        after = chunks[-1].seq
    assert total == size
    expected = hashlib.sha256()
    for _ in range(64):
        expected.update(b"x" * MIB)
    assert digest.hexdigest() == expected.hexdigest()


@pytest.mark.slow
def test_f20_flood_against_a_slow_database_is_slowed_and_nothing_is_lost(
    tmp_path: Path, redis_server: PrivateRedis, postgres_url: str
) -> None:
    parts = urlsplit(postgres_url)
    limit = 8 * MIB
    stop = tmp_path / "stop"
    (tmp_path / "flood.py").write_text(
        dedent(f"""
            import os
            number = 0
            while not os.path.exists({str(stop)!r}):
                os.write(1, b"".join(b"%011d\\n" % n for n in range(number, number + 1000)))
                number += 1000
        """)
    )
    with TcpProxy(("127.0.0.1", parts.port or 5432)) as proxy:
        farm = Farm(tmp_path / "farm", redis_url=redis_server.url, database_url=postgres_url)
        try:
            slow_url = urlunsplit(parts._replace(netloc=f"postgres@127.0.0.1:{proxy.port}"))
            agent = farm.agent(
                database_url=slow_url, spool_limit_bytes=limit, no_output_timeout_s=2, lease_s=20
            )
            with watched(agent) as most:
                build_id = farm.submit(f"python3 {tmp_path / 'flood.py'}")
                farm.wait_running(build_id, printed="0\n")
                proxy.delay(0.1)
                wait_until(lambda: most["spool"] >= limit, 30, lambda: f"a full spool; it held {most}")
                full = clock.Deadline.after(4.0)
                wait_until(lambda: full.is_passed, 10)
                stop.touch()
                proxy.restore()
                assert farm.wait_ended(build_id).outcome is Outcome.PASSED
            assert most["rss"] < 100 * MIB
            # On disk a segment stays until all of it is shipped; then the last read before it was full.
            assert most["spool"] < limit + SEGMENT_BYTES + MIB
            data = farm.output(build_id)
            count = len(data) // 12
            assert count % 1000 == 0
            assert data == b"".join(b"%011d\n" % number for number in range(count))
        finally:
            farm.close()


def test_f21_output_limit_ends_the_step_and_the_account_says_what_was_cut(farm: Farm) -> None:
    limit = 256 * 1024
    farm.agent(output_limit_bytes=limit)
    document = {
        "steps": [
            "echo the beginning; yes",
            "echo never",
            {"run": "echo cleaned", "always": True},
        ]
    }
    build = farm.wait_ended(farm.submit(document))
    assert build.outcome is Outcome.OUTPUT_LIMIT
    assert "printed more than it may" in (build.detail or "")
    assert farm.attempts(build.id) == [(1, Outcome.OUTPUT_LIMIT)]
    data = farm.output(build.id, step=1)
    reason = b"build-agent: the step was ended: output limit: the step printed more than it may\n"
    assert data.startswith(b"the beginning\ny\ny\n")
    assert data.endswith(reason)
    assert limit <= len(data) <= limit + len(reason) + 1
    account = steps.list_steps(farm.store, build.id, 1)[0].account
    assert account.bytes_stored == len(data)
    assert account.bytes_cut > 0
    assert account.bytes_produced == account.bytes_stored + account.bytes_cut
    assert account.lines_produced == account.lines_stored + account.lines_cut
    assert farm.text(build.id, step=3) == "cleaned\n"


def test_f21_limit_is_each_steps_own(sqlite_farm: Farm) -> None:
    farm = sqlite_farm
    farm.agent(output_limit_bytes=100_000)
    build = farm.wait_ended(farm.submit({"steps": ["head -c 90000 /dev/zero"] * 3}))
    assert build.outcome is Outcome.PASSED
    assert len(farm.output(build.id)) == 270_000
