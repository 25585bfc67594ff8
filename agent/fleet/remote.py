"""SSH into a machine: commands, files, and a connection that is made again when it was cut.

Logs in with one key and to one host key, which the provider has told: whoever answers with another is refused. Knows
nothing of bakes.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import paramiko
from paramiko.ssh_exception import AuthenticationException, BadHostKeyException, SSHException

from agent import clock, log
from agent.clock import Deadline
from agent.errors import AgentError

# What a connection that was cut raises, wherever it is noticed.
CUT = (SSHException, EOFError, OSError)
_CONNECT_S = 10.0
_READ_BYTES = 32 << 10
_ANSWER_LIMIT_BYTES = 64 << 20
_POLL_S = 0.25

_log = log.get("remote")


class RemoteError(AgentError):
    """A command on a machine failed, or what answers there is not the machine."""


class RemoteGone(RemoteError):
    """A machine can't be reached by SSH for longer than it may take."""

    is_retriable = True
    exit_code = 69


class RemoteRefused(RemoteError):
    """A machine answers and doesn't let us in: the key is not, or no longer, there."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Login:
    """Where SSH answers, as whom to log in, with what, and the host keys (`type base64`) of which one must answer."""

    address: str
    user: str
    private_key: str
    host_keys: Sequence[str]
    port: int = 22


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """How a command ended and what it printed, errors included."""

    exit_code: int
    output: str


class Remote:
    """One machine. Used by one thread.

    Args:
        check: called several times a second while something is waited for; what it raises ends the waiting.
        reconnect_s: for how long a connection is tried to be made before the machine counts as gone.
    """

    def __init__(self, login: Login, *, check: Callable[[], None], reconnect_s: float = 600.0) -> None:
        self._login = login
        self._check = check
        self._reconnect_s = reconnect_s
        self._client: paramiko.SSHClient | None = None

    def connect(self, *, wait_s: float | None = None) -> None:
        """Connect, trying again until it succeeds.

        Raises: RemoteGone after `wait_s`; RemoteRefused when the machine doesn't know the key; RemoteError when
            another host key answers.
        """
        self.close()
        wait_s = self._reconnect_s if wait_s is None else wait_s
        deadline, waits = Deadline.after(wait_s), clock.backoff(0.2, 3.0)
        fault: Exception | None = None
        while fault is None or not deadline.is_passed:
            self._check()
            try:
                self._client = self._open()
            except AuthenticationException as error:
                raise RemoteRefused(f"{self._login.address} refuses the key of {self._login.user}") from error
            except BadHostKeyException as error:
                raise RemoteError(
                    f"{self._login.address} answers with a host key that is not its own"
                ) from error
            except CUT as error:
                fault = error
                self._pause(next(waits))
            else:
                return
        raise RemoteGone(
            f"{self._login.address}:{self._login.port} does not answer by SSH for {wait_s:g} s: {fault}"
        ) from fault

    def close(self) -> None:
        """Close the connection, if there is one."""
        if self._client is not None:
            with contextlib.suppress(*CUT):
                self._client.close()
            self._client = None

    def run(self, script: str, *, timeout_s: float = 60.0, has_to_pass: bool = True) -> Answer:
        """Run a bash script as root; one that is harmless when run twice, for a cut connection runs it again.

        Raises: RemoteError when it fails, unless that is allowed; RemoteGone; RemoteRefused.
        """
        for is_last in (False, False, True):
            try:
                answer = self._run(script, timeout_s)
            except CUT as error:
                if is_last:
                    raise RemoteGone(f"{self._login.address}: {error or 'the connection was cut'}") from error
                self.connect()
                continue
            if has_to_pass and answer.exit_code != 0:
                said = answer.output.strip()[-2000:]
                raise RemoteError(f"a command on {self._login.address} ended with {answer.exit_code}: {said}")
            return answer
        raise RemoteGone(self._login.address)  # not reached: the last round returns or raises

    def put(self, data: bytes, path: str, *, mode: int = 0o600) -> None:
        """Write a file as root, whole or not at all; folders above it are made.

        Raises: RemoteError, as on a full disk; RemoteGone; RemoteRefused.
        """
        # By way of a file of our own: SFTP has the rights of whoever logs in, who need not be root.
        name = hashlib.sha256(f"{path} {len(data)}".encode()).hexdigest()[:16]
        staged = f"/tmp/build-agent-{name}"  # noqa: S108 - made with O_EXCL, by SFTP's "x"
        for is_last in (False, False, True):
            try:
                self._put(data, staged)
                break
            except CUT as error:
                if is_last:
                    raise RemoteGone(f"{self._login.address}: {error or 'the connection was cut'}") from error
                if isinstance(error, OSError) and not isinstance(error, SSHException) and self.is_alive():
                    raise RemoteError(f"{path} can't be written on {self._login.address}: {error}") from error
                self.connect()
        where, here = shlex.quote(path), shlex.quote(staged)
        self.run(
            f'if [ -e {here} ]; then mkdir -p "$(dirname {where})"; '
            f"install -m {mode:o} {here} {where}.partial; mv {where}.partial {where}; rm -f {here}; fi; [ -e {where} ]"
        )

    def stream(self, script: str, sink: Callable[[bytes], None], *, silence_s: float = 10.0) -> int:
        """Run a bash script as root and hand over what it prints as it comes; return its exit code.

        Raises: one of `CUT` when the connection is cut, or dead: after `silence_s` without a byte the machine is
            asked for a sign of life.
        """
        channel = self._channel(script)
        try:
            heard_mono = clock.mono()
            while True:
                self._check()
                try:
                    data = channel.recv(_READ_BYTES)
                except TimeoutError:
                    if clock.mono() - heard_mono >= silence_s:
                        self._knock()
                        heard_mono = clock.mono()
                    sink(b"")
                    continue
                heard_mono = clock.mono()
                if not data:
                    return self._exit_code(channel)
                sink(data)
        finally:
            channel.close()

    def is_alive(self) -> bool:
        """Whether the connection there is still answers."""
        try:
            self._knock()
        except CUT:
            return False
        return True

    def _open(self) -> paramiko.SSHClient:
        client = paramiko.SSHClient()
        known = client.get_host_keys()
        name = (
            self._login.address if self._login.port == 22 else f"[{self._login.address}]:{self._login.port}"
        )
        for line in self._login.host_keys:
            entry = paramiko.hostkeys.HostKeyEntry.from_line(f"{name} {line}")
            if entry is not None and entry.key is not None:
                known.add(name, entry.key.get_name(), entry.key)
        client.set_missing_host_key_policy(paramiko.RejectPolicy())
        key = paramiko.Ed25519Key.from_private_key(io.StringIO(self._login.private_key))
        client.connect(
            self._login.address,
            port=self._login.port,
            username=self._login.user,
            pkey=key,
            look_for_keys=False,
            allow_agent=False,
            timeout=_CONNECT_S,
            banner_timeout=_CONNECT_S,
            auth_timeout=_CONNECT_S,
        )
        return client

    def _run(self, script: str, timeout_s: float) -> Answer:
        channel = self._channel(script)
        deadline, parts, size = Deadline.after(timeout_s), list[bytes](), 0
        try:
            while True:
                self._check()
                if deadline.is_passed:
                    raise RemoteError(f"a command on {self._login.address} took longer than {timeout_s:g} s")
                try:
                    data = channel.recv(_READ_BYTES)
                except TimeoutError:
                    continue
                if not data:
                    break
                size += len(data)
                if size > _ANSWER_LIMIT_BYTES:
                    raise RemoteError(f"a command on {self._login.address} printed more than it may")
                parts.append(data)
            return Answer(exit_code=self._exit_code(channel), output=b"".join(parts).decode(errors="replace"))
        finally:
            channel.close()

    def _channel(self, script: str) -> Any:
        client = self._client
        transport = client.get_transport() if client is not None else None
        if transport is None or not transport.is_active():
            raise SSHException("not connected")
        channel = transport.open_session(timeout=_CONNECT_S)
        channel.settimeout(_POLL_S)
        channel.set_combine_stderr(True)
        as_root = "" if self._login.user == "root" else "sudo -n "
        channel.exec_command(f"{as_root}bash -c {shlex.quote(script)}")
        return channel

    def _exit_code(self, channel: Any) -> int:
        # The end of the output comes before the exit code, and after a cut there is none: -1.
        deadline = Deadline.after(_CONNECT_S)
        while not channel.exit_status_ready() and not channel.closed and not deadline.is_passed:
            self._check()
            clock.sleep(0.01)
        code = int(channel.recv_exit_status()) if channel.exit_status_ready() else -1
        if code == -1:
            raise SSHException("the connection was cut")
        return code

    def _knock(self) -> None:
        """Raise one of `CUT` unless the machine answers within some seconds."""
        channel = self._channel("true")
        try:
            deadline = Deadline.after(_CONNECT_S)
            while not channel.exit_status_ready():
                self._check()
                if deadline.is_passed or channel.closed:
                    raise SSHException("the machine gives no sign of life")
                clock.sleep(0.02)
        finally:
            channel.close()

    def _put(self, data: bytes, staged: str) -> None:
        client = self._client
        if client is None:
            raise SSHException("not connected")
        with client.open_sftp() as sftp:
            sftp.get_channel().settimeout(_CONNECT_S)
            with contextlib.suppress(FileNotFoundError):
                sftp.remove(staged)
            with sftp.open(staged, "wx") as file:
                file.set_pipelined(True)
                for start in range(0, len(data), _READ_BYTES):
                    self._check()
                    file.write(data[start : start + _READ_BYTES])
            if sftp.stat(staged).st_size != len(data):
                raise OSError("it was not written whole")

    def _pause(self, seconds: float) -> None:
        deadline = Deadline.after(seconds)
        while not deadline.is_passed:
            self._check()
            clock.sleep(min(0.1, deadline.remaining_s or 0.0))
