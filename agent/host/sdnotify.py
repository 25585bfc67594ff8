"""What the agent says to the service manager: ready, status, stopping, alive (sd_notify(3)).

Knows the protocol only; when to say what is the daemon's. RELOADING is left out: an immutable server's
settings do not change under a running agent. Every call is harmless where no manager listens.
"""

from __future__ import annotations

import importlib
import os
import select
import socket
from collections.abc import Callable, Mapping

from agent import log

_log = log.get(__name__)

_SEND_LIMIT_S = 0.5  # a manager that does not read for so long misses a message; the loops go on


class Notifier:
    """A line to the service manager that NOTIFY_SOCKET names.

    It speaks through systemd-python, which knows every form of address libsystemd does (vsock of a virtual
    machine, too). A plain socket is the fallback, because systemd-python is an extra that needs libsystemd
    and a compiler: an agent in a container or a virtual environment has neither, but may still be supervised.
    """

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        """Read NOTIFY_SOCKET and the watchdog's variables; systemd-python only knows the real environment."""
        self._address = environ.get("NOTIFY_SOCKET", "")
        self._library = _library_notify() if environ is os.environ and self._address else None
        self._watchdog_s = _watchdog_s(environ)
        self._is_failing = False

    @property
    def is_supervised(self) -> bool:
        """Whether a service manager wants to hear anything."""
        return bool(self._address)

    @property
    def watchdog_interval_s(self) -> float | None:
        """Seconds between two `alive` calls: half the limit (sd_watchdog_enabled(3)); None without one."""
        return None if self._watchdog_s is None else self._watchdog_s / 2

    def ready(self, status: str = "") -> bool:
        """Say that start-up is complete; `systemctl start` returns only now (Type=notify)."""
        return self._send("READY=1", *_status(status))

    def status(self, text: str) -> bool:
        """Set the one line that `systemctl status` shows."""
        return self._send(*_status(text or " "))

    def stopping(self, status: str = "") -> bool:
        """Say that the agent is on its way out, drain included."""
        return self._send("STOPPING=1", *_status(status))

    def alive(self) -> bool:
        """Feed the watchdog."""
        return self._send("WATCHDOG=1")

    def extend_timeout(self, seconds: float) -> bool:
        """Ask for at least `seconds` more, from now, of the start or stop that is under way."""
        return self._send(f"EXTEND_TIMEOUT_USEC={max(1, round(seconds * 1_000_000))}")

    def _send(self, *fields: str) -> bool:
        """Send one message; False when nobody listens or it could not be delivered (said once in the log)."""
        if not self._address:
            return False
        try:
            self._deliver("\n".join(fields))
        except (OSError, ValueError) as error:
            if not self._is_failing:
                _log.warning("sdnotify.failed", "%s: %s", self._address, error)
            self._is_failing = True
            return False
        self._is_failing = False
        return True

    def _deliver(self, message: str) -> None:
        if self._library is not None and self._address[0] not in "/@":
            self._library(message)
            return
        with _connect(self._address) as line:
            if self._library is None:
                line.sendall(message.encode())
                return
            # systemd-python keeps the interpreter lock while the manager's queue is full: measured, every
            # thread stood for the 1.5 s in which nobody read. So room is waited for here, without the lock.
            poll = select.poll()
            poll.register(line, select.POLLOUT)
            if not poll.poll(_SEND_LIMIT_S * 1000):
                raise TimeoutError(f"the service manager did not read for {_SEND_LIMIT_S:g} s")
            self._library(message)


def _connect(address: str) -> socket.socket:
    """Connect a datagram socket; a leading @ names the abstract namespace (unix(7))."""
    if address[0] not in "/@" or len(address) < 2:
        raise ValueError("NOTIFY_SOCKET must be an absolute path or @name; other forms need systemd-python")
    line = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    try:
        line.settimeout(_SEND_LIMIT_S)
        line.connect("\0" + address[1:] if address[0] == "@" else address)
    except OSError:
        line.close()
        raise
    return line


def _status(text: str) -> tuple[str, ...]:
    """Make the STATUS field: a line break in it would begin another field."""
    return (f"STATUS={' '.join(text.split())}",) if text else ()


def _library_notify() -> Callable[[str], object] | None:
    try:
        # Not an import statement: mypy takes the repository's own folder systemd/ for the package.
        daemon = importlib.import_module("systemd.daemon")
    except ImportError:
        return None
    notify: Callable[[str], object] = daemon.notify
    return notify


def _watchdog_s(environ: Mapping[str, str]) -> float | None:
    """Return the manager's limit in seconds, None when it is off or meant for another process."""
    limit_us, pid = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", "")
    if not limit_us.isdecimal() or int(limit_us) == 0 or (pid and pid != str(os.getpid())):
        return None
    return int(limit_us) / 1_000_000
