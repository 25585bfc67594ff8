"""The ground that everything is measured on: a PostgreSQL, a Redis, agents as their service would start them."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import psutil
import psycopg
from rq.version import VERSION as RQ_VERSION

from agent import __version__, clock
from agent.clock import Deadline
from agent.queue.connection import connect
from agent.queue.private import PrivateRedis
from tests.acceptance.farm import AgentProcess, Farm
from tests.services import PostgresServer

# What the package's own configuration has; the tests' server is smaller.
_POSTGRES_DEFAULTS = {"shared_buffers": "128MB", "max_wal_size": "1GB"}
# Half a per cent of the shortest time measured so, and few enough questions to cost the database nothing.
_POLL_S = 0.005
_LIMIT_S = 300.0


class Ground:
    """Started once a run. Each subject asks for a farm of its own: an empty database, an empty Redis."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="ba-bench-", dir="/tmp"))
        # Steps and PostgreSQL's user read what lies here; secrets have a folder of their own.
        self.folder.chmod(0o755)
        self.postgres = PostgresServer(fsync=True, settings=_POSTGRES_DEFAULTS)
        self.redis = PrivateRedis(self.folder / "redis")
        self._count = 0

    def __enter__(self) -> Self:
        self.postgres.start()
        self.redis.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.redis.stop()
        self.postgres.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    @contextlib.contextmanager
    def farm(self) -> Iterator[Farm]:
        """Make a farm without agents; whatever is started in it ends with it."""
        self._count += 1
        url = self.postgres.create_database()
        farm = Farm(self.folder / f"farm-{self._count}", redis_url=self.redis.url, database_url=url)
        farm.carrier.connection.flushall()
        try:
            yield farm
        finally:
            farm.close()
            self.postgres.drop_database(url)

    def circumstances(self) -> str:
        """Return in words what machine this is, and what runs on it; no names of it."""
        with psycopg.connect(self.postgres.url()) as connection:
            found = connection.execute("show server_version").fetchone()
        cores = len(os.sched_getaffinity(0))
        memory_gib = psutil.virtual_memory().total / (1 << 30)
        kernel = platform.release().partition("-")[
            0
        ]  # what follows names a distribution's or a cloud's build
        return (
            f"{cores} cores ({_processor()}), {memory_gib:.0f} GiB of memory, Linux {kernel}, "
            f"Python {platform.python_version()}, PostgreSQL {str(found[0]).split()[0] if found else ''}, "
            f"Redis {self._redis_version()}, RQ {RQ_VERSION}, build-agent {__version__}"
        )

    def _redis_version(self) -> str:
        with contextlib.closing(connect(self.redis.url)) as client:
            return str(client.info("server")["redis_version"])


def start_agent(farm: Farm, *, wait_ready: bool = True, **settings: object) -> AgentProcess:
    """Start an agent with default settings but for `settings` and what names its places."""
    places = {"redis_url": farm.redis_url, "database_url": farm.database_url}
    agent = AgentProcess(farm.folder / f"agent-{len(farm.agents) + 1}", places | settings)
    farm.agents.append(agent)
    return agent.start(wait_ready=wait_ready)


def wait_ended(farm: Farm, build_id: str, *, poll_s: float = _POLL_S) -> None:
    """Wait until the database has a build's end, which is seen `poll_s` late at most.

    Raises: RuntimeError when the build did not pass; what was measured would mean nothing.
    """
    query = "select state, outcome, detail from builds where id = %s"
    deadline = Deadline.after(_LIMIT_S)
    with psycopg.connect(farm.database_url, autocommit=True) as connection:
        while not deadline.is_passed:
            state, outcome, detail = connection.execute(query, [build_id]).fetchone() or ("", "", "")
            if state == "ended":
                if outcome != "passed":
                    raise RuntimeError(f"the build {outcome}: {detail}")
                return
            clock.sleep(poll_s)
    raise RuntimeError(f"the build has not ended within {_LIMIT_S:g} s")


def environment() -> dict[str, str]:
    """Return what a peer is started with: as a service, without what this run says to its interpreter."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "RQ_"))}


def program(name: str) -> str:
    """Return the path of a program that was installed beside this interpreter."""
    return str(Path(sys.executable).parent / name)


def peak_rss_bytes(pid: int) -> int:
    """Return the most memory a process has had resident so far, as the kernel counts it."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/{pid}/status has no VmHWM")


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
