"""Real servers for tests, free ports, and polling.

Owns a PostgreSQL started as a child; passes on the proxy that puts faults between us and a server. Whatever
is started here ends with the test process, however that ends.
"""

from __future__ import annotations

import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from itertools import count
from pathlib import Path
from typing import Self, TypeVar

import psutil
import psycopg
from psycopg import sql

from agent.clock import Deadline, sleep
from agent.queue.private import spawn_bound
from tests.proxy import TcpProxy

__all__ = ["PostgresServer", "TcpProxy", "free_port", "postgres_programs", "wait_until"]

T = TypeVar("T")
_POLL_S = 0.02
_LOG_TAIL_BYTES = 2000


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(
    predicate: Callable[[], T], timeout_s: float = 10.0, message: str | Callable[[], str] = "the condition"
) -> T:
    """Ask until the answer is true, and return it.

    Raises: AssertionError after `timeout_s` with `message` (a function is called then, to say how things
        stood) and the last answer.
    """
    deadline = Deadline.after(timeout_s)
    while True:
        answer = predicate()
        if answer:
            return answer
        if deadline.is_passed:
            text = message() if callable(message) else message
            raise AssertionError(f"waited {timeout_s:g} s in vain for {text}; the last answer was {answer!r}")
        sleep(_POLL_S)


def postgres_programs() -> Path | None:
    """Return the folder of the newest PostgreSQL's server programs, `None` when there is none."""
    found = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    if on_path := shutil.which("initdb"):
        found.append(Path(on_path).resolve().parent)
    return max(found, key=_major, default=None)


def _major(programs: Path) -> int:
    match = re.search(r"/(\d+)/bin$", str(programs))
    return int(match[1]) if match else 0


class PostgresServer:
    """One PostgreSQL in a temporary folder, on a unix socket and a free TCP port that stays over restarts.

    PostgreSQL refuses to run as root, so then it runs as the user `postgres` that its package makes.
    Durability is off unless asked for: each commit still reaches the kernel, so a killed *server* loses
    nothing, only a killed machine would. `settings` come before the small ones here.
    """

    def __init__(self, *, fsync: bool = False, settings: Mapping[str, str] | None = None) -> None:
        programs = postgres_programs()
        if programs is None:
            raise RuntimeError("no PostgreSQL server programs in /usr/lib/postgresql/*/bin nor on the PATH")
        self._programs = programs
        self._fsync = fsync
        self._settings = dict(settings or {})
        self._user = "postgres" if os.geteuid() == 0 else None
        # Not pytest's temporary folders: closed to other users, and their paths too long for a socket.
        self.folder = Path(tempfile.mkdtemp(prefix="ba-pg-", dir="/tmp"))
        self._data = self.folder / "data"
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._names = count(1)
        self._template: str | None = None

    @property
    def is_running(self) -> bool:
        """Whether the postmaster is there; a paused one is."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int | None:
        """The postmaster's process id, `None` while it does not run."""
        return self._process.pid if self._process is not None and self.is_running else None

    def url(self, database: str = "postgres") -> str:
        """Return the TCP address of a database."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}"

    def start(self, *, timeout_s: float = 60.0) -> Self:
        """Make the cluster if there is none yet, start it and wait until it takes connections."""
        if self.is_running:
            return self
        if not self._data.exists():
            self._init()
        deadline = Deadline.after(timeout_s)
        self._spawn()
        while True:
            try:
                psycopg.connect(self.url(), connect_timeout=5).close()
            except psycopg.OperationalError as error:
                if deadline.is_passed:
                    self.kill()
                    raise RuntimeError(f"PostgreSQL did not start: {error}\n{self._log_tail()}") from error
                if not self.is_running:
                    # After a kill the old life's last backend may still hold the shared memory.
                    self._spawn()
                sleep(_POLL_S)
            else:
                return self

    def stop(self, *, timeout_s: float = 15.0) -> None:
        """End the server in order: connections are closed, nothing is lost."""
        if self._process is None:
            return
        self.resume()
        self._process.send_signal(signal.SIGINT)  # "fast": does not wait for clients to leave
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
        self._process = None

    def kill(self) -> None:
        """Kill the postmaster and every backend with SIGKILL, as a crash would."""
        tree = self._tree()
        for process in tree:
            _send(process, signal.SIGKILL)
        psutil.wait_procs(tree[1:], timeout=10)
        if self._process is not None:
            self._process.wait()
            self._process = None

    def restart(self) -> None:
        """Stop in order and start again, on the same port."""
        self.stop()
        self.start()

    def pause(self) -> None:
        """Freeze the server with all its backends: connections stay open, nothing is answered."""
        for process in self._tree():
            _send(process, signal.SIGSTOP)

    def resume(self) -> None:
        """Thaw a frozen server."""
        for process in reversed(self._tree()):
            _send(process, signal.SIGCONT)

    def close(self) -> None:
        """Stop and delete everything; the object is of no use afterwards."""
        self.stop()
        self._release_shared_memory()
        shutil.rmtree(self.folder, ignore_errors=True)

    def create_database(self, *, is_migrated: bool = True) -> str:
        """Make a database and return its address; with the project's schema unless told otherwise.

        The schema is built once a server and copied as a template: some 50 ms in place of a run of every
        migration.
        """
        if is_migrated and self._template is None:
            self._template = self._make_template()
        template = self._template if is_migrated and self._template else "template0"
        return self.url(self._create(f"test_{next(self._names)}", template))

    def drop_database(self, url: str) -> None:
        """Drop a database that `create_database` made, whoever is still connected."""
        self._execute(
            sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(url.rpartition("/")[2]))
        )

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def _make_template(self) -> str:
        # Here, because tests without a schema need no store.
        from agent.store.engine import Store
        from agent.store.migrate import upgrade

        url = self.url("template_schema")
        self.drop_database(url)  # a try that failed half-way
        name = self._create("template_schema", "template0")
        store = Store(url)
        try:
            upgrade(store)
        finally:
            store.dispose()
        return name

    def _create(self, name: str, template: str) -> str:
        self._execute(
            sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(template))
        )
        return name

    def _execute(self, statement: sql.Composed) -> None:
        with psycopg.connect(self.url(), autocommit=True, connect_timeout=10) as connection:
            connection.execute(statement)

    def _init(self) -> None:
        if self._user is not None:
            owner = pwd.getpwnam(self._user)
            os.chown(self.folder, owner.pw_uid, owner.pw_gid)
        self._run_to_end(
            [
                str(self._programs / "initdb"),
                *("--pgdata", str(self._data), "--username", "postgres", "--auth", "trust"),
                *("--encoding", "UTF8", "--locale", "C.UTF-8", "--no-sync", "--no-instructions"),
            ]
        )

    def _run_to_end(self, argv: list[str]) -> None:
        with (self.folder / "postgres.log").open("ab") as log:
            process = spawn_bound(argv, env=_environment(), log=log, user=self._user)
        if process.wait(120) != 0:
            raise RuntimeError(f"{argv[0]} failed:\n{self._log_tail()}")

    def _spawn(self) -> None:
        durable = "on" if self._fsync else "off"
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": str(self.folder),
            "fsync": durable,
            "full_page_writes": durable,
            "shared_buffers": "32MB",
            "max_connections": "100",
            "max_wal_size": "256MB",
            **self._settings,
        }
        arguments = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        with (self.folder / "postgres.log").open("ab") as log:
            self._process = spawn_bound(
                [str(self._programs / "postgres"), "-D", str(self._data), *arguments],
                env=_environment(),
                log=log,
                on_parent_death="QUIT",  # an immediate shutdown, which takes the backends along
                user=self._user,
            )

    def _tree(self) -> list[psutil.Process]:
        """Return the postmaster and its backends; it comes first, for once stopped it forks no more."""
        if self._process is None or not self.is_running:
            return []
        try:
            postmaster = psutil.Process(self._process.pid)
            return [postmaster, *postmaster.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def _release_shared_memory(self) -> None:
        """Free what a killed server left: one small System V segment, named in its pid file."""
        pid_file = self._data / "postmaster.pid"
        if pid_file.exists() and (match := re.search(r"^ *\d+ +(\d+)$", pid_file.read_text(), re.MULTILINE)):
            subprocess.run(["ipcrm", "-m", match[1]], check=False, capture_output=True)

    def _log_tail(self) -> str:
        return (self.folder / "postgres.log").read_bytes()[-_LOG_TAIL_BYTES:].decode(errors="replace")


def _environment() -> dict[str, str]:
    """A clean environment: no PG* variable of the caller's may reach a server of ours."""
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C.UTF-8", "TZ": "UTC"}


def _send(process: psutil.Process, number: signal.Signals) -> None:
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return  # a backend that ended by itself meanwhile is what was wanted
