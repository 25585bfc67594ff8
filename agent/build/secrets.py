"""The secrets of a build: those kept on the server and those a step registers while it runs.

Owns how both are read and what is refused. Knows nothing of how they are masked, and never puts a value into
an error, a log line or its own representation.
"""

from __future__ import annotations

import errno
import os
import re
import shlex
import stat
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from agent.errors import SecretError, WorkspaceError
from agent.output.redact import Redactor

SECRET_LIMIT_BYTES: Final = 64 * 1024

# What one secrets file may register. Each line becomes some twenty needles, so this bounds the redactor's
# memory (40-byte secrets: 15 MiB) and the time that a step can make it spend on an automaton (0.2 s).
FILE_LIMIT_BYTES: Final = 256 * 1024
FILE_LIMIT_LINES: Final = 512
_READ_BYTES: Final = 64 * 1024
_SEAM_BYTES: Final = 64

# O_NONBLOCK: opening a FIFO must not wait for a writer.
_OPEN_FLAGS: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
# Steps get a secret as the variable of that name; so the pattern is that of variables.
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")


class SecretDirectory:
    """A folder with one file a secret, named like it; read anew each time, so a change needs no restart."""

    def __init__(self, path: Path) -> None:
        """Name the folder; it is looked at when secrets are asked for, not before."""
        self._path = path

    def get(self, names: Iterable[str]) -> dict[str, str]:
        """Return the secrets by name, without a line end that closes the file.

        Symbolic links are followed inside the folder only, as Kubernetes lays its secrets out.
        Raises: SecretError naming every secret that can't be had, and why.
        """
        found: dict[str, str] = {}
        problems: list[str] = []
        missing: list[str] = []
        for name in dict.fromkeys(names):
            try:
                found[name] = self._read(name)
            except FileNotFoundError:
                missing.append(name)
            except OSError as error:
                problems.append(f"secret {name!r}: can't be read: {error.strerror} ({self._path / name})")
            except SecretError as error:
                problems.append(f"secret {name!r}: {error}")
        if missing:
            listed = ", ".join(map(repr, missing))
            problems.insert(0, f"not on this server: {listed} (looked in {self._path})")
        if problems:
            raise SecretError("; ".join(problems))
        return found

    def _read(self, name: str) -> str:
        if not _NAME.fullmatch(name):
            raise SecretError("not a name of a secret: up to 128 letters, digits and '_', no digit first")
        path = self._path / name
        try:
            target = path.resolve(strict=True)
        except RuntimeError as error:  # a loop of links; Python 3.13 raises OSError for it
            raise SecretError(f"{path} is a link that leads to itself") from error
        if not target.is_relative_to(self._path.resolve()):
            raise SecretError(f"{path} is a link that leads out of {self._path}")
        descriptor = os.open(target, _OPEN_FLAGS)
        try:
            info = os.fstat(descriptor)
            if not stat.S_ISREG(info.st_mode):
                raise SecretError(f"{path} is not a regular file")
            if info.st_mode & 0o007:
                fix = f"chmod o= {shlex.quote(str(target))}"
                raise SecretError(f"{path} is open to every user of this server; run: {fix}")
            with open(descriptor, "rb", closefd=False) as file:
                return _text_of(file.read(SECRET_LIMIT_BYTES + 1), path)
        finally:
            os.close(descriptor)


def _text_of(data: bytes, path: Path) -> str:
    """Return a secret file's bytes as what an environment variable can hold."""
    if len(data) > SECRET_LIMIT_BYTES:
        raise SecretError(f"{path} is larger than {SECRET_LIMIT_BYTES // 1024} KiB")
    try:
        text = data.decode()
    except UnicodeDecodeError:
        # Without `from`: the error and its chain would carry the bytes.
        raise SecretError(f"{path} is not UTF-8 text; store binary secrets as base64") from None
    if "\0" in text:
        raise SecretError(f"{path} holds a NUL byte; store binary secrets as base64")
    text = text.removesuffix("\n").removesuffix("\r")
    if not text:
        raise SecretError(f"{path} is empty")
    return text


class SecretsFile:
    """The file that steps know as $BUILD_SECRETS_FILE: every line appended to it is a secret from then on.

    The steps own the file and may do anything to it: cut it, fill it, replace it with a link or a pipe. None
    of that may stop the build, grow memory or make the agent read another file.
    """

    def __init__(self, path: Path, redactor: Redactor) -> None:
        """Create the file, empty, for its owner only; one that is there already is used as it is.

        Raises: WorkspaceError when it can't be created.
        """
        self.path = path
        # Why lines are passed over, for the build's log; `None` while every line is taken.
        self.refused: str | None = None
        self._redactor = redactor
        self._lock = threading.Lock()
        self._lookup = os.fsencode(path)
        self._seen = (0, 0, 0)
        self._offset = 0
        self._seam = b""
        self._taken: set[bytes] = set()
        self._taken_bytes = 0
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            os.close(os.open(path, flags, 0o600))
        except FileExistsError:
            pass
        except OSError as error:
            raise WorkspaceError(f"{path} can't be created: {error.strerror}") from error

    def poll(self) -> None:
        """Add what complete lines are new to the redactor; any thread, never raises for what a step did.

        To be called between reading output and redacting it: a step writes the line first and prints after,
        so what it prints can't have been read before the line was there. A stat when nothing has changed.
        """
        try:
            info = os.lstat(self._lookup)
        except OSError:
            return  # removed by the step; what it has registered stays so
        # Compared without the lock: it is set only when the lines it stands for are with the redactor.
        if (info.st_size, info.st_mtime_ns, info.st_ino) != self._seen:
            with self._lock:
                self._look(info)

    def _look(self, info: os.stat_result) -> None:
        if not stat.S_ISREG(info.st_mode):
            self.refused = f"{self.path} is no longer a regular file"
            self._seen = _signature(info)
            return
        try:
            descriptor = os.open(self._lookup, _OPEN_FLAGS)
        except OSError as error:
            if error.errno != errno.ENOENT:
                self.refused = f"{self.path} can't be opened: {error.strerror}"
            return
        try:
            # Before reading: lines that come meanwhile change the file again, and the next poll sees that.
            info = os.fstat(descriptor)
            # A hard link to a file of the agent's would let a step find out its lines by what gets masked.
            if stat.S_ISREG(info.st_mode) and info.st_nlink <= 1:
                self._take_lines(descriptor, info.st_size)
            else:
                self.refused = f"{self.path} is no longer a regular file with one name"
            self._seen = _signature(info)
        except OSError as error:
            self.refused = f"{self.path} can't be read: {error.strerror}"
        finally:
            os.close(descriptor)

    def _take_lines(self, descriptor: int, size: int) -> None:
        seam_at = self._offset - len(self._seam)
        if size < self._offset or os.pread(descriptor, len(self._seam), seam_at) != self._seam:
            # Cut or written anew (`>` in place of `>>`); lines known already cost nothing.
            self._offset, self._seam = 0, b""
        while self._offset < FILE_LIMIT_BYTES:
            data = os.pread(descriptor, _READ_BYTES, self._offset)
            # A line longer than that is taken in pieces, which mask it as well.
            length = data.rfind(b"\n") + 1 or (len(data) if len(data) == _READ_BYTES else 0)
            if not length:
                return
            for line in data[:length].split(b"\n"):
                # NUL: what a hole reads as that a writer left which didn't notice that the file was cut.
                self._take(line.strip(b"\0\r"))
            self._offset += length
            self._seam = data[max(0, length - _SEAM_BYTES) : length]
        self.refused = f"{self.path} holds more than {FILE_LIMIT_BYTES // 1024} KiB; the rest is not read"

    def _take(self, line: bytes) -> None:
        if not line or line in self._taken:
            return
        if len(self._taken) >= FILE_LIMIT_LINES or self._taken_bytes + len(line) > FILE_LIMIT_BYTES:
            self.refused = f"{self.path} has registered as many secrets as it may; more are not masked"
            return
        self._redactor.add(line)
        self._taken.add(line)
        self._taken_bytes += len(line)


def _signature(info: os.stat_result) -> tuple[int, int, int]:
    return info.st_size, info.st_mtime_ns, info.st_ino
