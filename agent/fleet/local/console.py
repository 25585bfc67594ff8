"""What a machine writes to its console, kept in two files of bounded size."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType

_FILE_LIMIT_BYTES = 512 * 1024
_READ_BYTES = 64 * 1024
_NAMES = ("console.log.1", "console.log")


class Console:
    """The console of a machine that runs; a context manager. When the file is full it becomes the older of two."""

    def __init__(self, folder: Path) -> None:
        self._older, self._path = (folder / name for name in _NAMES)
        self._file = self._path.open("ab", buffering=0)

    def take(self, output: int) -> bool:
        """Copy what can be read; returns False at its end."""
        try:
            data = os.read(output, _READ_BYTES)
        except OSError:  # a pseudo-terminal's way to say that nobody writes to it any more
            return False
        self._write(data)
        return bool(data)

    def say(self, text: str) -> None:
        """Add a line of the keeper's own."""
        self._write(f"keeper: {text}\n".encode())

    def __enter__(self) -> Console:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def _write(self, data: bytes) -> None:
        try:
            self._file.write(data)
            if self._file.tell() > _FILE_LIMIT_BYTES:
                self._path.replace(self._older)
                self._file.close()
                self._file = self._path.open("ab", buffering=0)
        except OSError:
            # A full disk (F25): the machine goes on, its console has a gap.
            return


def read(folder: Path, limit_bytes: int) -> str:
    """Return the newest of a machine's console, at most so many bytes."""
    data = b"".join(path.read_bytes() for name in _NAMES if (path := folder / name).exists())
    return data[-limit_bytes:].decode("utf-8", "replace")
