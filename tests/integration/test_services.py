"""The servers the other tests stand on: they come, break as told, come back, and leave nothing behind."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import psycopg
import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from agent import clock
from agent.errors import NotFound, QueueUnavailable, StateConflict
from agent.queue.private import SOCKET_PATH_LIMIT_BYTES, PrivateRedis, spawn_bound
from tests.conftest import skip_complaint
from tests.services import PostgresServer, TcpProxy, free_port, wait_until

ROOT = Path(__file__).parents[2]


def connect(url: str) -> redis.Redis:
    """A client that waits a second at most and tries once."""
    return redis.Redis.from_url(url, socket_timeout=1, retry=Retry(NoBackoff(), 0), decode_responses=True)


@pytest.fixture
def proxied_postgres(postgres_server: PostgresServer) -> Iterator[TcpProxy]:
    """A proxy before the worker's PostgreSQL."""
    with TcpProxy(("127.0.0.1", postgres_server.port)) as proxy:
        yield proxy


def test_redis_keeps_what_it_acknowledged_over_a_crash(private_redis: PrivateRedis) -> None:
    with connect(private_redis.url) as client:
        client.set("job", "1")
        # The append-only file reaches the kernel with the reply; the one second is the disk's.
        private_redis.kill()
        assert not private_redis.is_running
        with pytest.raises(redis.ConnectionError):
            client.get("job")
        private_redis.start()
        assert client.get("job") == "1"


def test_redis_comes_back_empty_after_a_wipe(private_redis: PrivateRedis) -> None:
    with connect(private_redis.url) as client:
        client.set("job", "1")
        with pytest.raises(StateConflict, match="stop it"):
            private_redis.wipe()
        private_redis.stop()
        private_redis.wipe()
        private_redis.start()
        assert client.get("job") is None


def test_a_paused_redis_is_silent_and_answers_again(private_redis: PrivateRedis) -> None:
    with connect(private_redis.url) as client:
        private_redis.pause()
        with pytest.raises(redis.TimeoutError):
            client.ping()
        private_redis.resume()
        wait_until(lambda: connect(private_redis.url).ping(), 5, "the thawed Redis")
        assert private_redis.is_running


def test_a_paused_redis_stops_when_told(private_redis: PrivateRedis) -> None:
    private_redis.pause()
    private_redis.stop()
    assert not private_redis.is_running


def test_redis_has_a_tcp_port_only_when_asked(tmp_path: Path, private_redis: PrivateRedis) -> None:
    assert private_redis.pid is not None
    listening = psutil.Process(private_redis.pid).net_connections(kind="inet")
    assert listening == []
    port = free_port()
    with PrivateRedis(tmp_path / "tcp", port=port) as server, connect(server.url) as client:
        assert server.url == f"redis://127.0.0.1:{port}/0"
        assert client.ping()


def test_a_deep_folder_gets_a_short_socket_path(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 60) / ("e" * 60)
    server = PrivateRedis(deep)
    with server, connect(server.url) as client:
        assert len(os.fsencode(server.socket_path)) <= SOCKET_PATH_LIMIT_BYTES
        client.set("job", "1")
        url = server.url
        server.stop()
        server.start()
        assert server.url == url
        assert client.get("job") == "1"


def test_a_folder_with_odd_letters_works(tmp_path: Path) -> None:
    server = PrivateRedis(tmp_path / 'a "b" %20 ü')
    with server, connect(server.url) as client:
        assert client.ping()


def test_two_servers_never_share_a_folder(tmp_path: Path) -> None:
    with PrivateRedis(tmp_path), pytest.raises(StateConflict, match="another Redis"):
        PrivateRedis(tmp_path).start(timeout_s=0.2)


def test_a_taken_port_is_told_with_the_servers_own_words(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        server = PrivateRedis(tmp_path, port=taken.getsockname()[1])
        with pytest.raises(QueueUnavailable, match="Address already in use"):
            server.start()
    assert not server.is_running


def test_a_missing_redis_says_how_to_get_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NotFound, match="apt-get install redis-server"):
        PrivateRedis(tmp_path / "redis").start()


def test_a_child_outlives_the_thread_that_asked_for_it(tmp_path: Path) -> None:
    server = PrivateRedis(tmp_path)
    starter = threading.Thread(target=server.start)
    starter.start()
    starter.join()
    with server, connect(server.url) as client:
        # The kernel signals at the thread's exit, which join may run ahead of: the answer is asked for twice.
        first = client.info("server")["process_id"]
        assert client.ping()
        assert server.pid == first


@pytest.mark.parametrize("kind", ["redis", "postgres"])
def test_servers_die_with_a_killed_parent(tmp_path: Path, kind: str) -> None:
    script = {
        "redis": "server = PrivateRedis(Path(sys.argv[1])).start(); print(server.pid, flush=True)",
        "postgres": "server = PostgresServer().start(); print(server.pid, server.folder, flush=True)",
    }[kind]
    source = (
        "import sys; from pathlib import Path; from agent.queue.private import PrivateRedis; "
        f"from tests.services import PostgresServer; {script}; sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", source, str(tmp_path)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as parent:
        assert parent.stdout is not None
        pid, *folder = parent.stdout.readline().split()
        family = [psutil.Process(int(pid))]
        family += family[0].children(recursive=True)
        parent.send_signal(signal.SIGKILL)
    try:
        _, alive = psutil.wait_procs(family, timeout=15)
        assert alive == []
    finally:
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        for left in folder:
            shutil.rmtree(left, ignore_errors=True)


def test_a_child_of_a_dead_parent_never_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    witness = tmp_path / "witness"
    # Another's number stands for a parent that died between fork and prctl.
    monkeypatch.setattr(os, "getpid", lambda: 1)
    with (tmp_path / "log").open("ab") as log:
        child = spawn_bound(["touch", str(witness)], env={"PATH": os.defpath}, log=log)
    assert child.wait(10) == 1
    assert not witness.exists()


def test_postgres_keeps_committed_rows_over_a_crash(postgres_server: PostgresServer) -> None:
    url = postgres_server.create_database(is_migrated=False)
    with psycopg.connect(url) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")
    postgres_server.kill()
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(url, connect_timeout=2)
    postgres_server.start()
    with psycopg.connect(url) as connection:
        assert connection.execute("SELECT answer FROM kept").fetchone() == (42,)
    postgres_server.drop_database(url)


def test_postgres_restarts_on_the_same_port(postgres_server: PostgresServer) -> None:
    before = postgres_server.url()
    postgres_server.restart()
    assert postgres_server.url() == before
    with psycopg.connect(before) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_a_paused_postgres_freezes_open_connections_too(postgres_server: PostgresServer) -> None:
    with psycopg.connect(postgres_server.url(), autocommit=True) as connection:
        postgres_server.pause()
        answer = threading.Event()

        def ask() -> None:
            connection.execute("SELECT 1")
            answer.set()

        asker = threading.Thread(target=ask)
        asker.start()
        assert not answer.wait(0.5)
        postgres_server.resume()
        assert answer.wait(10)
        asker.join()


def test_databases_of_two_tests_are_apart(postgres_server: PostgresServer) -> None:
    one, two = (postgres_server.create_database(is_migrated=False) for _ in range(2))
    with psycopg.connect(one) as connection:
        connection.execute("CREATE TABLE mine (id int)")
    with psycopg.connect(two) as connection:
        assert connection.execute("SELECT to_regclass('mine')").fetchone() == (None,)
    for url in (one, two):
        postgres_server.drop_database(url)


def test_durability_is_off_unless_asked_for(postgres_server: PostgresServer) -> None:
    with psycopg.connect(postgres_server.url()) as connection:
        assert connection.execute("SHOW fsync").fetchone() == ("off",)
    with PostgresServer(fsync=True) as durable, psycopg.connect(durable.url()) as connection:
        assert connection.execute("SHOW fsync").fetchone() == ("on",)
        folder = durable.folder
        connection.close()
    assert not folder.exists()


def test_each_database_comes_with_the_schema(database_url: str) -> None:
    if database_url.startswith("sqlite"):
        with sqlite3.connect(database_url.removeprefix("sqlite:///")) as file:
            found = file.execute("SELECT count(*) FROM builds").fetchone()
        file.close()
    else:
        with psycopg.connect(database_url) as connection:
            found = connection.execute("SELECT count(*) FROM builds").fetchone()
    assert found == (0,)


def test_a_cut_proxy_drops_and_refuses_until_restored(proxied_postgres: TcpProxy) -> None:
    url = f"postgresql://postgres@127.0.0.1:{proxied_postgres.port}/postgres"
    with psycopg.connect(url, autocommit=True) as connection:
        proxied_postgres.cut()
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")
    with pytest.raises(psycopg.OperationalError, match="refused"):
        psycopg.connect(url, connect_timeout=5)
    proxied_postgres.restore()
    with psycopg.connect(url) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
    wait_until(lambda: proxied_postgres.connection_count == 0, 5, "the proxy's connections to end")


def test_a_hanging_proxy_is_silent_and_loses_nothing(private_redis: PrivateRedis) -> None:
    with TcpProxy(private_redis.socket_path) as proxy, socket.create_connection(proxy.address) as client:
        client.settimeout(0.5)
        client.sendall(b"PING\r\n")
        assert client.recv(100) == b"+PONG\r\n"
        proxy.hang()
        client.sendall(b"PING\r\n")
        with pytest.raises(TimeoutError):
            client.recv(100)
        proxy.restore()
        client.settimeout(5)
        assert client.recv(100) == b"+PONG\r\n"


def test_a_slow_proxy_delays_each_way(private_redis: PrivateRedis) -> None:
    with TcpProxy(private_redis.socket_path) as proxy, socket.create_connection(proxy.address) as client:
        proxy.delay(0.2)
        began = clock.mono()
        client.sendall(b"PING\r\n")
        assert client.recv(100) == b"+PONG\r\n"
        assert clock.mono() - began >= 0.4


def test_a_proxy_passes_much_data_whole() -> None:
    payload = os.urandom(1 << 20) * 8
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        TcpProxy(server.getsockname()) as proxy,
        socket.create_connection(proxy.address) as client,
    ):
        accepted, _ = server.accept()

        def send() -> None:
            client.sendall(payload)
            client.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=send)
        sender.start()
        with accepted:
            received = b"".join(iter(lambda: accepted.recv(1 << 16), b""))
        sender.join()
    assert received == payload


def test_waiting_says_for_what_and_how_things_stood() -> None:
    with pytest.raises(AssertionError, match=r"in vain for the moon; the last answer was \[\]"):
        wait_until(list, 0.05, lambda: "the moon")
    assert wait_until(lambda: "here", 1) == "here"


@pytest.mark.parametrize(
    ("reason", "environ", "is_complaint"),
    [
        ("could not import 'x'", {"CI": "true"}, True),
        ("could not import 'x'", {}, False),
        ("needs root", {"CI": "true"}, os.geteuid() == 0),
    ],
)
def test_an_unlisted_skip_fails_in_ci(reason: str, environ: dict[str, str], is_complaint: bool) -> None:
    assert (skip_complaint(reason, environ) is not None) == is_complaint


def test_skips_of_functions_and_modules_become_failures_in_ci(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text("from tests.conftest import *\n")
    (tmp_path / "test_one.py").write_text(
        "import pytest\n"
        "def test_skips(): pytest.skip('no mood')\n"
        "@pytest.mark.xfail\n"
        "def test_fails(): assert False\n"
    )
    (tmp_path / "test_two.py").write_text("import pytest\npytest.importorskip('no_such_module')\n")
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--continue-on-collection-errors", "."],
        cwd=tmp_path,
        env={**os.environ, "CI": "true", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode != 0
    assert "'no mood' is not on the list" in run.stdout
    assert "no_such_module" in run.stdout
    assert "1 failed, 1 xfailed, 1 error" in run.stdout
