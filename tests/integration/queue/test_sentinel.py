"""Redis behind a sentinel: the agent's connections follow the master."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis

from agent.errors import QueueUnavailable
from agent.queue.carrier import Carrier, Waiter
from agent.queue.connection import connect
from agent.queue.private import spawn_bound
from tests.services import free_port, wait_until


@dataclass
class Cluster:
    """Two servers, the second a copy of the first, and a sentinel that watches them."""

    folder: Path

    def __post_init__(self) -> None:
        self.ports = [free_port() for _ in range(3)]
        self.processes: list[subprocess.Popen[bytes]] = []
        first, second, sentinel = self.ports
        self.url = f"sentinel://127.0.0.1:{sentinel}/builds/0"
        self._spawn(first, [])
        self._spawn(second, ["--replicaof", "127.0.0.1", str(first)])
        self._wait_for_copy(second)
        config = self.folder / "sentinel.conf"
        config.write_text(
            f"port {sentinel}\n"
            f"bind 127.0.0.1\n"
            f"dir {self.folder}\n"
            f"sentinel monitor builds 127.0.0.1 {first} 1\n"
            "sentinel down-after-milliseconds builds 500\n"
            "sentinel failover-timeout builds 5000\n"
        )
        self._start(["redis-server", str(config), "--sentinel"])
        wait_until(lambda: self._sentinel_knows_copy(sentinel), 20, "the sentinel to know both servers")

    def _spawn(self, port: int, more: list[str]) -> None:
        common = ["--port", str(port), "--bind", "127.0.0.1", "--dir", str(self.folder), "--save", ""]
        self._start(["redis-server", *common, "--repl-diskless-sync-delay", "0", *more])

    def _start(self, argv: list[str]) -> None:
        with (self.folder / "log").open("ab") as log:
            self.processes.append(spawn_bound(argv, env={"PATH": os.environ["PATH"]}, log=log))

    def _wait_for_copy(self, port: int) -> None:
        with redis.Redis(port=port) as client:

            def is_linked() -> bool:
                with contextlib.suppress(redis.RedisError):
                    return bool(client.info("replication").get("master_link_status") == "up")
                return False

            wait_until(is_linked, 20, "the second server to copy the first")

    def _sentinel_knows_copy(self, port: int) -> bool:
        with redis.Redis(port=port, decode_responses=True) as client, contextlib.suppress(redis.RedisError):
            answer = client.execute_command("SENTINEL", "REPLICAS", "builds")
            return len(answer) == 1
        return False

    def kill_master(self) -> None:
        self.processes[0].kill()
        self.processes[0].wait()

    def close(self) -> None:
        for process in reversed(self.processes):
            process.kill()
            process.wait()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    if shutil.which("redis-server") is None:
        pytest.skip("needs redis-server: make test installs it")
    cluster = Cluster(tmp_path)
    yield cluster
    cluster.close()


@pytest.mark.slow
def test_connections_follow_the_master_after_a_failover(cluster: Cluster) -> None:
    carrier = Carrier(connect(cluster.url))
    waiter = Waiter(cluster.url, longest_wait_s=20)
    carrier.publish("build-1", "builds")
    assert waiter.wait("builds", 5) == "build-1"
    assert int(carrier.connection.wait(1, 5000)) == 1
    cluster.kill_master()
    with pytest.raises(QueueUnavailable):
        carrier.ping()

    def publishes() -> bool:
        with contextlib.suppress(QueueUnavailable):
            carrier.publish("build-2", "builds")
            return True
        return False

    wait_until(publishes, 60, "the new master")
    # The take is atomic and was copied: what was in hand still is.
    assert carrier.in_hand("builds") == ["build-1"]

    def waits() -> str | None:
        with contextlib.suppress(QueueUnavailable):
            return waiter.wait("builds", 5)
        return None

    assert wait_until(waits, 60, "the waiter to find the new master") == "build-2"
    carrier.connection.close()
    waiter.close()


def test_sentinels_that_are_away_are_told_as_an_absent_redis() -> None:
    client = connect(f"sentinel://127.0.0.1:{free_port()}/builds")
    with pytest.raises(QueueUnavailable, match="Redis can't be used"):
        Carrier(client).ping()
    client.close()
