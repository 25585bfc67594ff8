"""The command line as people and scripts use it: as processes, in a pipe or on a terminal of their own."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any, Protocol, Self

import psutil

from agent.clock import Deadline
from tests.services import wait_until

COLUMNS = 100


class Served(Protocol):
    """Whatever has a queue and a database."""

    @property
    def redis_url(self) -> str:
        """The address of its Redis."""

    @property
    def database_url(self) -> str:
        """The address of its database."""


class Cli:
    """`build-agent` with the settings of a farm."""

    def __init__(self, farm: Served, folder: Path, **settings: str) -> None:
        self.folder = folder
        self.environment = {name: value for name, value in os.environ.items() if "BUILD" not in name}
        given = {"redis_url": farm.redis_url, "database_url": farm.database_url, **settings}
        self.environment |= {f"BUILD_AGENT_{name.upper()}": value for name, value in given.items()}

        self._started: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        """End what a test that failed has left under way."""
        for process in self._started:
            if process.poll() is None:
                process.kill()
                process.wait(10)

    def run(self, *words: str, stdin: str = "", timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
        """Run a command to its end, in a pipe."""
        return subprocess.run(
            self.argv(*words),
            input=stdin,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            cwd=self.folder,
            env=self.environment,
            timeout=timeout_s,
        )

    def start(self, *words: str) -> Running:
        """Start a command in a pipe."""
        running = Running(self.argv(*words), self)
        self._started.append(running.process)
        return running

    def argv(self, *words: str) -> list[str]:
        """Return a command line."""
        return [sys.executable, "-m", "agent.cli", *words]

    def on_terminal(self, *words: str) -> Terminal:
        """Start a command on a terminal of its own."""
        terminal = Terminal(self.argv(*words), self)
        self._started.append(terminal.process)
        return terminal


class Running:
    """A command under way; its output goes to files, so that it can be read at any time."""

    def __init__(self, argv: list[str], cli: Cli) -> None:
        number = len(list(cli.folder.glob("out-*")))
        self._out, self._err = (cli.folder / f"{name}-{number}" for name in ("out", "err"))
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                cwd=cli.folder,
                env=cli.environment,
                start_new_session=True,
            )

    @property
    def out(self) -> str:
        """Standard output so far."""
        return self._out.read_text(errors="replace")

    @property
    def err(self) -> str:
        """Standard error so far."""
        return self._err.read_text(errors="replace")

    def wait_for(self, text: str, timeout_s: float = 30.0) -> None:
        """Wait until something was printed, wherever."""
        wait_until(
            lambda: text in self.out + self.err, timeout_s, lambda: f"{text!r} in {self.out}{self.err}"
        )

    def interrupt(self) -> int:
        """Press Ctrl-C; return the exit code."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(20)

    def wait(self, timeout_s: float = 60.0) -> int:
        """Wait for the end; return the exit code."""
        return self.process.wait(timeout_s)


class Terminal:
    """A command on a pseudo-terminal, and what stands on its screen."""

    def __init__(self, argv: list[str], cli: Cli) -> None:
        self._main, other = pty.openpty()
        fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("HHHH", 40, COLUMNS, 0, 0))
        self.process = subprocess.Popen(
            argv,
            stdin=other,
            stdout=other,
            stderr=other,
            cwd=cli.folder,
            env={**cli.environment, "TERM": "xterm-256color"},
            start_new_session=True,
            preexec_fn=_take_terminal,  # noqa: PLW1509 - one system call, and no lock of any thread
        )
        os.close(other)
        self.sent = b""

    def read(self, timeout_s: float) -> bool:
        """Read what was written, waiting for it; false at the end."""
        if not select.select([self._main], [], [], timeout_s)[0]:
            return True
        try:
            data = os.read(self._main, 65536)
        except OSError:
            return False  # how Linux says that the other end is closed
        self.sent += data
        return bool(data)

    def wait_for(self, text: str, timeout_s: float = 30.0) -> None:
        """Wait until a text was written, even if it has been overwritten since."""
        deadline = Deadline.after(timeout_s)
        while text.encode() not in self.sent:
            assert not deadline.is_passed, f"{text!r} is not in {self.sent!r}"
            assert self.read(0.1), f"ended without {text!r}: {self.sent!r}"

    def wait_asked(self, question: str) -> None:
        """Wait until a question was asked, and its answer is waited for.

        Python hears a Ctrl-C that comes between the two with the next key only: nobody is so quick but a test.
        """
        self.wait_for(question)
        process = psutil.Process(self.process.pid)
        wait_until(lambda: process.status() == psutil.STATUS_SLEEPING, 30, "the answer to be waited for")

    def type(self, keys: bytes) -> None:
        """Press keys."""
        os.write(self._main, keys)

    def wait(self, timeout_s: float = 60.0) -> int:
        """Read to the end; return the exit code."""
        deadline = Deadline.after(timeout_s)
        while self.read(0.2):
            assert not deadline.is_passed, f"still running: {self.sent!r}"
        os.close(self._main)
        return self.process.wait(10)

    @property
    def lines(self) -> list[str]:
        """What stands on the screen and above it."""
        return screen_of(self.sent.decode("utf-8", "replace"))


def screen_of(sent: str) -> list[str]:
    """Return the lines that a terminal shows of what it was sent.

    Knows what our display uses, and fails on anything else: carriage return, line feed, colours, erase the line.
    """
    lines, column = [""], 0
    for token in re.findall(r"\x1b\[[0-?]*[ -/]*[@-~]|[\r\n]|[^\x1b\r\n]+|\x1b", sent):
        if token == "\n":
            lines.append("")
        elif token == "\r":
            column = 0
        elif token == "\x1b[2K":
            lines[-1] = ""
        elif token.startswith("\x1b"):
            assert token.endswith("m"), f"the display uses {token!r}"
        else:
            # What a terminal wraps would be a line that can't be erased.
            lines[-1] = lines[-1][:column] + token + lines[-1][column + len(token) :]
            column += len(token)
    return lines


def _take_terminal() -> None:
    """Make the pseudo-terminal the session's own, so that Ctrl-C is a signal."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def json_lines(text: str) -> list[dict[str, Any]]:
    """Read one object a line."""
    import json

    return [json.loads(line) for line in text.splitlines()]
