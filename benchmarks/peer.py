"""The peer: stock `rq worker` processes with default settings, one job at a time each."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import redis
from rq import Queue, Worker

from agent import clock
from agent.clock import Deadline
from benchmarks.ground import environment, program

QUEUE = "peer"
_ROOT = Path(__file__).parents[1]
_LIMIT_S = 120.0


class Peer:
    """RQ's side of a comparison, on the Redis of the agent beside it."""

    def __init__(self, connection: redis.Redis, *, url: str) -> None:
        self._connection = connection
        self._url = url
        self.queue = Queue(QUEUE, connection=connection)

    @contextlib.contextmanager
    def workers(self, count: int) -> Iterator[list[psutil.Process]]:
        """Run `count` workers, ready; they are gone afterwards."""
        argv = [program("rq"), "worker", "--url", self._url, "--path", str(_ROOT), QUEUE]
        started = [
            subprocess.Popen(
                argv,
                env=environment(),
                cwd=_ROOT,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            for _ in range(count)
        ]
        try:
            self._until(lambda: Worker.count(queue=self.queue) >= count)
            yield [psutil.Process(process.pid) for process in started]
        finally:
            for process in started:
                process.terminate()
            for process in started:
                process.wait(30)

    def run_all(self, count: int, *, worker_count: int) -> float:
        """Run `count` jobs with so many workers; return jobs a second, from the first start to the last end."""
        jobs = [self.queue.enqueue("benchmarks.peer_job.run_true") for _ in range(count)]
        with self.workers(worker_count):
            self._until(lambda: self.queue.finished_job_registry.get_job_count(cleanup=False) >= count)
        for job in jobs:
            job.refresh()  # type: ignore[no-untyped-call]
        started = min(job.started_at for job in jobs if job.started_at)
        ended = max(job.ended_at for job in jobs if job.ended_at)
        self.queue.delete(delete_jobs=True)
        return count / (ended - started).total_seconds()

    def _until(self, is_so: object) -> None:
        deadline = Deadline.after(_LIMIT_S)
        while not is_so():  # type: ignore[operator]
            if deadline.is_passed:
                raise RuntimeError(f"rq has not done it within {_LIMIT_S:g} s")
            clock.sleep(0.05)
