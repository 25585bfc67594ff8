"""Files in the root filesystem of a machine, read and written from outside without ever leaving it.

A symbolic link in an image may point anywhere, and on the host it would be followed into the host's own files (F30). So a
path is walked one folder at a time, and a link on the way is an error.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath

from agent.fleet.provider import ProviderError

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ_LIMIT_BYTES = 1 << 20


class RootFs:
    """A root filesystem at `root`, a path of the host that is followed as it is (/proc/PID/root is a link, too)."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def read(self, path: str) -> bytes | None:
        """Return a regular file's bytes, at most 1 MiB; `None` where there is none."""
        try:
            with self._folder(path, is_made=False) as (folder, name):
                handle = os.open(
                    name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder
                )
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._error(path, error) from error
        with os.fdopen(handle, "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ProviderError(f"{path} in the image is no file")
            return file.read(_READ_LIMIT_BYTES)

    def names(self, folder: str) -> list[str]:
        """Return the names in a folder; none where there is no such folder."""
        try:
            with self._folder(f"{folder}/.", is_made=False) as (handle, _):
                return sorted(os.listdir(handle))  # noqa: PTH208 - by descriptor
        except FileNotFoundError:
            return []
        except OSError as error:
            raise self._error(folder, error) from error

    def write(
        self,
        path: str,
        data: bytes,
        *,
        mode: int = 0o644,
        owner: tuple[int, int] = (0, 0),
        folder_mode: int = 0o755,
    ) -> None:
        """Put a file in place of whatever has its name; folders that are missing are made for `owner`."""
        try:
            with self._folder(path, is_made=True, owner=owner, mode=folder_mode) as (folder, name):
                temporary = f".{name}.new"
                with suppress(FileNotFoundError):
                    os.unlink(temporary, dir_fd=folder)
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
                with os.fdopen(os.open(temporary, flags, 0o600, dir_fd=folder), "wb") as file:
                    file.write(data)
                    os.fchown(file.fileno(), *owner)
                    os.fchmod(file.fileno(), mode)
                os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
        except OSError as error:
            raise self._error(path, error) from error

    @contextmanager
    def _folder(
        self, path: str, *, is_made: bool, owner: tuple[int, int] = (0, 0), mode: int = 0o755
    ) -> Iterator[tuple[int, str]]:
        """Open the folder that holds a path; with `is_made`, what is missing of it is made."""
        *folders, name = (
            PurePosixPath("/" + path.lstrip("/")).parts[1:]
            if not path.endswith("/.")
            else (
                *PurePosixPath("/" + path.lstrip("/")).parts[1:],
                ".",
            )
        )
        if ".." in (*folders, name):
            raise ProviderError(f"a path in an image must not hold '..': {path!r}")
        handle = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for part in folders:
                try:
                    inner = os.open(part, _FOLDER, dir_fd=handle)
                except FileNotFoundError:
                    if not is_made:
                        raise
                    os.mkdir(part, 0o700, dir_fd=handle)
                    inner = os.open(part, _FOLDER, dir_fd=handle)
                    os.fchown(inner, *owner)
                    os.fchmod(inner, mode)
                os.close(handle)
                handle = inner
            yield handle, name
        finally:
            os.close(handle)

    def _error(self, path: str, error: OSError) -> ProviderError:
        return ProviderError(
            f"{path} in the image: {error.strerror}; a symbolic link on the way is not followed"
        )
