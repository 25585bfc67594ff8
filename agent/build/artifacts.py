"""Artifacts: files of a workspace that are kept after it is gone.

Owns a directory with content-addressed blobs and one manifest an attempt. Reads workspaces only through
`workspace`, never through a symlink. Knows nothing of uploads and of who may read what.

A hard link can't be told from the file it names; what keeps foreign files out is the kernel's
`fs.protected_hardlinks` (on by default in Debian): only what one may write can be linked.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import stat
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from agent import log
from agent.build.workspace import Entry, directory_name, find_files, open_regular
from agent.errors import DefinitionError, NotFound, WorkspaceError

_log = log.get(__name__)
_COPY_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class ArtifactRecord:
    """One kept file: its name relative to the source directory and the blob that holds it.

    `name` is always text: bytes that are not UTF-8 stand in it as `\\xNN`. It may hold newlines and control
    characters; escape it before showing it. `path` is absolute, `sha256` lower-case hex.
    """

    name: str
    path: str
    size_bytes: int
    sha256: str


class Artifacts:
    """All artifacts of a server, below one root; threads and processes may share it."""

    def __init__(self, root: Path, *, limit_bytes: int = 1 << 30, limit_files: int = 10_000) -> None:
        """Make the root. The limits are for one attempt: bytes of its files, and their number."""
        self._root = root
        self._limit_bytes = limit_bytes
        self._limit_files = limit_files
        for name in ("blobs", "manifests", "temporary"):
            (root / name).mkdir(mode=0o700, parents=True, exist_ok=True)

    def collect(
        self, build_id: str, attempt: int, patterns: Sequence[str], source_dir: Path
    ) -> list[ArtifactRecord]:
        """Keep the regular files that match; symlinks are passed over, whatever they point to.

        Args:
            patterns: globs relative to `source_dir`, see `workspace.find_files`.
        Returns: records sorted by name; all of them or, on an error, none and no manifest. Collecting again
            replaces the manifest.
        Raises: DefinitionError for a pattern that leaves the source directory, or when a limit is exceeded;
            WorkspaceError when a file can't be read or stored.
        """
        records: list[ArtifactRecord] = []
        used_bytes = 0
        with self._locked(fcntl.LOCK_SH), _explained():
            for entry in find_files(source_dir, patterns, "artifact pattern"):
                if stat.S_ISLNK(entry.stat.st_mode):
                    _log.info("artifact.symlink_skipped", build=build_id, name=entry.name)
                    continue
                if len(records) >= self._limit_files:
                    raise DefinitionError(
                        f"more than {self._limit_files} files match the artifact patterns; narrow them "
                        "or keep one archive"
                    )
                record = self._keep(entry, self._limit_bytes - used_bytes)
                used_bytes += record.size_bytes
                records.append(record)
            records.sort(key=lambda record: record.name)
            self._publish(build_id, attempt, records)
        return records

    def records(self, build_id: str, attempt: int) -> list[ArtifactRecord]:
        """Return what `collect` kept. Raises: NotFound when it kept nothing or it has been pruned."""
        try:
            manifest = json.loads(self._manifest(build_id, attempt).read_bytes())
        except FileNotFoundError:
            raise NotFound(
                f"no artifacts of build {build_id}, attempt {attempt} are on this server"
            ) from None
        return [
            ArtifactRecord(**fields, path=str(self._blob(fields["sha256"])))
            for fields in manifest["artifacts"]
        ]

    def prune(self, limit_bytes: int) -> int:
        """Delete the oldest manifests until the blobs of the rest fit, then every blob nobody names.

        Waits for collections that run. Also deletes what a crash left half written. Returns: bytes freed.
        """
        with self._locked(fcntl.LOCK_EX):
            for leftover in (self._root / "temporary").iterdir():
                leftover.unlink()
            sizes: dict[str, int] = {}
            newest_first = sorted(
                (self._root / "manifests").iterdir(), key=lambda path: path.stat().st_mtime_ns, reverse=True
            )
            is_full = False
            for path in newest_first:
                artifacts = json.loads(path.read_bytes())["artifacts"]
                wanted = sizes | {fields["sha256"]: fields["size_bytes"] for fields in artifacts}
                is_full = is_full or sum(wanted.values()) > limit_bytes
                if is_full:
                    path.unlink()
                else:
                    sizes = wanted
            freed = 0
            for blob in self._root.glob("blobs/*/*"):
                if blob.name not in sizes:
                    freed += blob.stat().st_size
                    blob.unlink()
            return freed

    def _keep(self, entry: Entry, left_bytes: int) -> ArtifactRecord:
        """Copy a file to a blob while hashing it; what was read counts, not what stat said."""
        temporary = self._root / "temporary" / uuid.uuid4().hex
        digest, size_bytes = hashlib.sha256(), 0
        try:
            with os.fdopen(open_regular(entry), "rb", buffering=0) as file, temporary.open("xb") as out:
                while data := file.read(_COPY_BYTES):
                    size_bytes += len(data)
                    if size_bytes > left_bytes:
                        raise DefinitionError(
                            f"the artifacts exceed {self._limit_bytes} bytes at {entry.name!r}; keep less"
                        )
                    digest.update(data)
                    out.write(data)
                out.flush()
                os.fsync(out.fileno())
            blob = self._blob(digest.hexdigest())
            blob.parent.mkdir(mode=0o700, exist_ok=True)
            temporary.rename(blob)  # over an equal blob: the same bytes
        finally:
            temporary.unlink(missing_ok=True)
        name = os.fsencode(entry.name).decode("utf-8", "backslashreplace")
        return ArtifactRecord(name=name, path=str(blob), size_bytes=size_bytes, sha256=blob.name)

    def _publish(self, build_id: str, attempt: int, records: Sequence[ArtifactRecord]) -> None:
        artifacts = [asdict(record) for record in records]
        for fields in artifacts:
            del fields["path"]  # the root may move; a blob is found by its digest
        manifest = {"build_id": build_id, "attempt": attempt, "artifacts": artifacts}
        temporary = self._root / "temporary" / uuid.uuid4().hex
        try:
            with temporary.open("x") as file:
                json.dump(manifest, file)
                file.flush()
                os.fsync(file.fileno())
            temporary.rename(self._manifest(build_id, attempt))
        finally:
            temporary.unlink(missing_ok=True)

    def _blob(self, sha256: str) -> Path:
        return self._root / "blobs" / sha256[:2] / sha256

    def _manifest(self, build_id: str, attempt: int) -> Path:
        return self._root / "manifests" / f"{directory_name(build_id, attempt)}.json"

    @contextmanager
    def _locked(self, kind: int) -> Iterator[None]:
        with (self._root / "lock").open("ab") as lock:
            fcntl.flock(lock, kind)
            yield


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        where = f" at {error.filename!r}" if error.filename else ""
        raise WorkspaceError(
            f"cannot keep the artifacts{where}: {error.strerror}; see to the disk"
        ) from error
