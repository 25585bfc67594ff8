"""A Redis of our own: started as a child, reached by a unix socket, gone when we are gone.

Owns the server process that `build-agent demo` and the tests run on. Knows nothing of builds, jobs or RQ, and
never touches a Redis that somebody else started.
"""

from __future__ import annotations

import fcntl
import os
import queue
import shutil
import signal
import subprocess
import tempfile
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import IO, Self
from urllib.parse import quote

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from agent.clock import Deadline, sleep
from agent.errors import NotFound, QueueUnavailable, StateConflict

# sockaddr_un holds 108 bytes, the closing NUL among them (man 7 unix).
SOCKET_PATH_LIMIT_BYTES = 107
_POLL_S = 0.02
_LOG_TAIL_BYTES = 2000

# PR_SET_PDEATHSIG does nothing when the parent is dead already, so the child looks once more before it
# becomes the server: the shell reads $PPID at its start, which is after setpriv has set the signal.
_BOUND_SHELL = '[ "$PPID" = "$1" ] || exit 1; shift; exec "$@"'

_Job = tuple[Callable[[], subprocess.Popen[bytes]], "Future[subprocess.Popen[bytes]]"]
_spawner: tuple[int, queue.SimpleQueue[_Job]] | None = None
_spawner_lock = threading.Lock()


def spawn_bound(
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    log: IO[bytes],
    on_parent_death: str = "KILL",
    user: str | None = None,
    pass_fds: Sequence[int] = (),
) -> subprocess.Popen[bytes]:
    """Start a child in a session of its own that the kernel signals when this process ends, however it ends.

    Its own session keeps a terminal's Ctrl-C from it: its owner decides when it stops. May be called from
    any thread. PR_SET_PDEATHSIG fires when the *thread* that made the child ends, so one thread that lives
    as long as the process makes them all; a child made by a pool's worker would die with that worker.

    Args:
        argv: the command, found on PATH.
        env: the child's whole environment.
        log: receives standard output and standard error.
        on_parent_death: a signal as setpriv(1) names it.
        user: run as this user and its groups; only root may.
        pass_fds: descriptors the child inherits, beside the standard ones.
    Raises: NotFound when setpriv is missing.
    """
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        raise NotFound("setpriv is not on the PATH: install util-linux, it ties a server's life to ours")
    as_user = () if user is None else (f"--reuid={user}", f"--regid={user}", "--init-groups")
    shell = ("/bin/sh", "-c", _BOUND_SHELL, "sh", str(os.getpid()))
    bound = (setpriv, *as_user, "--pdeathsig", on_parent_death, "--", *shell, *argv)

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            bound,
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=tuple(pass_fds),
        )

    ticket: Future[subprocess.Popen[bytes]] = Future()
    _spawner_jobs().put((start, ticket))
    return ticket.result()


def _spawner_jobs() -> queue.SimpleQueue[_Job]:
    """Return the queue of this process's spawner thread; a forked child gets a thread of its own."""
    global _spawner  # noqa: PLW0603 - one for each process, by nature
    with _spawner_lock:
        if _spawner is None or _spawner[0] != os.getpid():
            _spawner = (os.getpid(), queue.SimpleQueue())
            threading.Thread(target=_spawn_all, args=(_spawner[1],), name="spawner", daemon=True).start()
        return _spawner[1]


def _spawn_all(jobs: queue.SimpleQueue[_Job]) -> None:
    """Start what is asked for, one after another, until the process ends."""
    while True:
        start, ticket = jobs.get()
        try:
            ticket.set_result(start())
        except BaseException as error:  # noqa: BLE001 - handed to the caller, who raises it
            ticket.set_exception(error)


class PrivateRedis:
    """One redis-server with its data in `folder`, kept over `stop`, `kill` and a new `start`.

    Append-only with an fsync each second, as the documentation asks of a real one: a killed server comes
    back with what it acknowledged. No configuration file is read and no environment is inherited. Without
    `port` there is no TCP socket at all. Not for use by several threads at once.
    """

    def __init__(self, folder: Path, *, port: int | None = None) -> None:
        self._folder = folder.absolute()
        self._port = port
        self._process: subprocess.Popen[bytes] | None = None
        self._short_folder: Path | None = None

    @property
    def url(self) -> str:
        """The address clients use; the same over restarts."""
        if self._port is not None:
            return f"redis://127.0.0.1:{self._port}/0"
        return f"unix://{quote(str(self.socket_path))}?db=0"

    @property
    def socket_path(self) -> Path:
        """The unix socket; under /tmp if its path in `folder` would be too long for the kernel."""
        path = self._folder / "redis.sock"
        if len(os.fsencode(path)) <= SOCKET_PATH_LIMIT_BYTES:
            return path
        if self._short_folder is None:
            # Not the usual temporary folder: TMPDIR may be what made the path long.
            self._short_folder = Path(tempfile.mkdtemp(prefix="build-agent-redis-", dir="/tmp"))
            # Kept over stop and start, so that `url` stays; removed with this object or at exit.
            weakref.finalize(self, shutil.rmtree, self._short_folder, ignore_errors=True)
        return self._short_folder / "redis.sock"

    @property
    def log_path(self) -> Path:
        """Where the server writes its log."""
        return self._folder / "redis.log"

    @property
    def pid(self) -> int | None:
        """The server's process id, `None` while it does not run."""
        return self._process.pid if self._process is not None and self.is_running else None

    @property
    def is_running(self) -> bool:
        """Whether the process is there; a paused one is."""
        return self._process is not None and self._process.poll() is None

    def start(self, *, timeout_s: float = 20.0) -> Self:
        """Start the server and wait until it answers PING; does nothing when it runs.

        Raises: NotFound (no redis-server here), StateConflict (another server has this folder),
            QueueUnavailable (it ended or was silent for `timeout_s`; the text ends with its log).
        """
        if self.is_running:
            return self
        program = _server_program()
        deadline = Deadline.after(timeout_s)
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock_fd = self._lock(deadline)
        try:
            with self.log_path.open("ab") as log:
                environ = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"}
                self._process = spawn_bound(
                    [program, *self._arguments()], env=environ, log=log, pass_fds=[lock_fd]
                )
        finally:
            os.close(lock_fd)
        self._wait_for_pong(deadline, timeout_s)
        return self

    def stop(self, *, timeout_s: float = 10.0) -> None:
        """End the server in order, by force after `timeout_s`; does nothing when it does not run."""
        if self._process is not None and self.is_running:
            self._process.send_signal(signal.SIGTERM)
            self.resume()
            try:
                self._process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                self._process.kill()
        self._collect()

    def kill(self) -> None:
        """Kill the server with SIGKILL, as a crash would, and wait until it is gone; its data stays."""
        if self._process is not None:
            self._process.kill()
        self._collect()

    def pause(self) -> None:
        """Freeze the server: connections stay open and nothing is answered."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Thaw a frozen server."""
        self._signal(signal.SIGCONT)

    def wipe(self) -> None:
        """Delete the data of a stopped server, so that it comes back empty.

        Raises: StateConflict while it runs.
        """
        if self.is_running:
            raise StateConflict(f"the Redis in {self._folder} runs: stop it before wiping its data")
        shutil.rmtree(self._folder / "appendonlydir", ignore_errors=True)
        for name in ("appendonly.aof", "dump.rdb"):  # the first: Redis 6
            (self._folder / name).unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_exc: object) -> None:
        self.stop()

    def _arguments(self) -> list[str]:
        options = {
            "port": str(self._port or 0),
            "bind": "127.0.0.1",
            "unixsocket": str(self.socket_path),
            "unixsocketperm": "700",
            "dir": str(self._folder),
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": "",
            "maxmemory-policy": "noeviction",
            "daemonize": "no",
        }
        return [word for name, value in options.items() for word in (f"--{name}", value)]

    def _lock(self, deadline: Deadline) -> int:
        """Take the folder for one server and return the descriptor that holds it.

        The server inherits the descriptor, so the lock lasts exactly as long as the server: two of them on
        one append-only file would ruin it, and a lock file with a number in it goes stale.
        """
        lock_fd = os.open(self._folder / "redis.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        while True:
            try:
                fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                # A killed server's rewriting child may hold it for a moment longer.
                if deadline.is_passed:
                    os.close(lock_fd)
                    raise StateConflict(
                        f"another Redis has its data in {self._folder}: stop it first"
                    ) from None
                sleep(_POLL_S)
            else:
                return lock_fd

    def _wait_for_pong(self, deadline: Deadline, timeout_s: float) -> None:
        # No retries inside the client: this loop is the retry, and it watches the process as well.
        client = redis.Redis(
            unix_socket_path=str(self.socket_path), socket_timeout=1.0, retry=Retry(NoBackoff(), 0)
        )
        try:
            while True:
                try:
                    client.ping()
                except redis.RedisError as error:
                    if not self.is_running or deadline.is_passed:
                        why = (
                            f"was silent for {timeout_s:g} s ({error})"
                            if self.is_running
                            else "ended at once"
                        )
                        self.kill()
                        raise QueueUnavailable(
                            f"the Redis in {self._folder} {why}; its log ends:\n{self._log_tail()}"
                        ) from error
                    sleep(_POLL_S)
                else:
                    return
        finally:
            client.close()

    def _log_tail(self) -> str:
        return self.log_path.read_bytes()[-_LOG_TAIL_BYTES:].decode(errors="replace")

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self.is_running:
            self._process.send_signal(number)

    def _collect(self) -> None:
        if self._process is not None:
            self._process.wait()
            self._process = None


def _server_program() -> str:
    """Return the path of redis-server, or of Valkey's, which is the same to us.

    Raises: NotFound, saying how to install it.
    """
    program = shutil.which("redis-server") or shutil.which("valkey-server")
    if program is None:
        raise NotFound(
            "redis-server is not on the PATH: install it (Debian, Ubuntu: apt-get install redis-server), "
            "or name a Redis you have in BUILD_AGENT_REDIS_URL"
        )
    return program
