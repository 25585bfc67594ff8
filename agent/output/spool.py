"""The spool: what builds have to say to the database, kept on local disk until the database has it.

One log per attempt, appended in order: step started, output, step ended, ..., attempt ended. The order of a
log is the order in which the database sees it. A log is a folder of segment files; a segment is deleted when
the database has all of it. The spool survives `kill -9` (the page cache does) and a torn tail after a power
cut (records carry a checksum); it doesn't call fsync: a machine that loses power loses the build as well.

The spool never blocks: a producer asks `has_room` before it reads more from its step, so a full spool slows
the step through its own pipe while time-outs and cancels go on being watched.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import threading
import urllib.parse
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent import clock, log
from agent.model.build import AttemptRef
from agent.output import record as disk
from agent.output.record import Record

# A segment is the grain in which disk space comes back. 8 MiB: 128 full chunks, a few batches of the shipper.
SEGMENT_BYTES = 8 << 20
# Records stay in memory too while they are fewer than this, so that the usual way, where the database keeps
# up, reads nothing back from disk. Some batches of the shipper: one under way, the others filling.
CACHE_BYTES = 4 << 20
BATCH_BYTES = 1 << 20
# The same while several attempts run. A line waits for the batch under way and for its own, and a MiB of a
# neighbour's output takes a busy machine 50 ms: the bound on a quiet step's latency costs a noisy one a few commits.
SHARED_BATCH_BYTES = 256 << 10

_log = log.get("spool")


@dataclass(slots=True)
class _Entry:
    """One record waiting: where it lies on disk, and the record itself while the cache has room."""

    segment: int | None  # None: the disk refused it, so it lives in memory alone
    offset: int
    size: int
    record: Record | None


@dataclass(frozen=True, slots=True)
class Batch:
    """Records of one attempt, in order, that the database may get next."""

    log: AttemptLog
    records: Sequence[Record]
    size_bytes: int


class AttemptLog:
    """The log of one attempt. Appending is thread-safe: parallel pipelines write to one log."""

    def __init__(self, spool: Spool, ref: AttemptRef, folder: Path) -> None:
        self.ref = ref
        self._spool = spool
        self._folder = folder
        self._entries: deque[_Entry] = deque()
        self._segment = 0
        self._segment_size = 0
        self._descriptor: int | None = None
        self._oldest_segment = 1
        self._ended = threading.Event()
        self.is_former = False  # of a former life of the agent: nothing is appended to it any more
        self.result: Any = None  # what the database said to the attempt's end

    def append(self, record: Record) -> None:
        """Write `record` at the end; it is safe from a crash of the agent when this returns."""
        header, payload = disk.encode(record)
        size = len(header) + len(payload)
        with self._spool.lock:
            entry = self._write(header, payload, size)
            if entry.segment is None or self._spool.cached_bytes + size <= CACHE_BYTES:
                entry.record = record
                self._spool.cached_bytes += size
            self._entries.append(entry)
            self._spool.added(self, size, is_on_disk=entry.segment is not None)

    def wait_ended(self, timeout_s: float | None) -> bool:
        """Wait until the database has the attempt's end; whether it has."""
        return self._ended.wait(timeout_s)

    def set_ended(self, result: Any) -> None:
        """Note that the database has the attempt's end, and what it answered."""
        self.result = result
        self._ended.set()

    @property
    def is_empty(self) -> bool:
        """Whether the database has everything appended so far."""
        return not self._entries

    def _write(self, header: bytes, payload: bytes, size: int) -> _Entry:
        if self._descriptor is None or self._segment_size >= SEGMENT_BYTES:
            try:
                self._next_segment()
            except OSError as error:
                return self._refused(error, size)
        descriptor = self._descriptor
        if descriptor is None:  # the log's folder could not be opened before: see _refused
            return _Entry(None, 0, size, None)
        try:
            written = os.writev(descriptor, (header, payload))
        except OSError as error:
            return self._refused(error, size)
        if written != size:
            # A short write is the disk filling up in the middle of a record.
            self._cut_back(descriptor)
            return self._refused(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), size)
        entry = _Entry(self._segment, self._segment_size, size, None)
        self._segment_size += size
        return entry

    def _cut_back(self, descriptor: int) -> None:
        """Take half a record off the segment's end; on a disk that won't, the next one begins a segment."""
        try:
            os.ftruncate(descriptor, self._segment_size)
        except OSError:
            os.close(descriptor)
            self._descriptor = None

    def _refused(self, error: OSError, size: int) -> _Entry:
        """Keep a record that the disk won't take in memory; `has_room` stays false until it is shipped."""
        _log.warning("spool.disk_refused", str(error), build=self.ref.build_id, attempt=self.ref.number)
        return _Entry(None, 0, size, None)

    def _next_segment(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
        self._segment += 1
        path = self._folder / f"{self._segment:06d}.seg"
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._segment_size = 0

    def recover(self) -> None:
        """Read what a former life of the agent left in this log's folder."""
        self.is_former = True
        for path in sorted(self._folder.glob("*.seg")):
            number = int(path.stem)
            data = path.read_bytes()
            end = 0
            for offset, size, _ in disk.scan(data, self.ref):
                self._entries.append(_Entry(number, offset, size, None))
                self._spool.added(self, size, is_on_disk=True)
                end = offset + size
            if end < len(data):
                _log.warning("spool.torn_tail", f"{len(data) - end} bytes dropped", build=self.ref.build_id)
            self._oldest_segment = min(self._oldest_segment or number, number)
            self._segment = number
        self._segment_size = SEGMENT_BYTES  # never append behind a torn tail: start a segment of our own

    def peek(self, limit_bytes: int) -> Batch | None:
        """Return the oldest records, at least one, as many as fit `limit_bytes`; called with the lock."""
        taken: list[_Entry] = []
        total = 0
        for entry in self._entries:
            if taken and total + entry.size > limit_bytes:
                break
            taken.append(entry)
            total += entry.size
        if not taken:
            return None
        return Batch(self, [entry.record or self._read(entry) for entry in taken], total)

    def _read(self, entry: _Entry) -> Record:
        path = self._folder / f"{entry.segment:06d}.seg"
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return disk.decode(os.pread(descriptor, entry.size, entry.offset), self.ref)
        finally:
            os.close(descriptor)

    def drop(self, count: int) -> None:
        """Forget the oldest `count` records, which the database has; frees disk; called with the lock."""
        for _ in range(count):
            entry = self._entries.popleft()
            if entry.record is not None:
                self._spool.cached_bytes -= entry.size
            self._spool.removed(entry.size, is_on_disk=entry.segment is not None)
        first = next((entry.segment for entry in self._entries if entry.segment is not None), self._segment)
        for number in range(self._oldest_segment, first):
            # A disk that has gone read-only keeps it; to ship the rest from memory matters more.
            with contextlib.suppress(OSError):
                (self._folder / f"{number:06d}.seg").unlink()
        self._oldest_segment = max(self._oldest_segment, first)

    def remove(self) -> None:
        """Delete the log from disk: everything in it is in the database; called with the lock."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
        shutil.rmtree(self._folder, ignore_errors=True)


class Spool:
    """All attempt logs of this server, bounded by `limit_bytes` on disk."""

    def __init__(self, root: Path, *, limit_bytes: int) -> None:
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._root = root
        self._limit_bytes = limit_bytes
        self.lock = threading.RLock()
        self._filled = threading.Condition(self.lock)
        self._turn: deque[AttemptLog] = deque()
        self._live: set[AttemptLog] = set()
        self.cached_bytes = 0
        self.used_bytes = 0
        self.record_count = 0
        self._memory_only_bytes = 0

    @property
    def has_room(self) -> bool:
        """Whether a producer may read more output: below the limit, and the disk takes what it is given."""
        return self.used_bytes < self._limit_bytes and self._memory_only_bytes == 0

    @property
    def used_share(self) -> float:
        """How full the spool is, 0.0 to 1.0 and a little more."""
        return self.used_bytes / self._limit_bytes

    def open(self, ref: AttemptRef) -> AttemptLog:
        """Begin the log of an attempt.

        Raises: OSError when the spool's folder takes nothing.
        """
        folder = self._root / _folder_name(ref)
        folder.mkdir(mode=0o700)
        # Written whole before the first record: a folder without it holds nothing that could be shipped.
        partial = folder / "ref.json.partial"
        fields = {"build": ref.build_id, "attempt": ref.number, "session": ref.session}
        try:
            partial.write_text(json.dumps(fields))
            partial.rename(folder / "ref.json")
        except OSError:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        attempt_log = AttemptLog(self, ref, folder)
        with self.lock:
            self._live.add(attempt_log)
        return attempt_log

    def recover(self) -> list[AttemptLog]:
        """Take over the logs of a former life; they are shipped like new ones, in their order."""
        logs = []
        for folder in sorted(self._root.iterdir()):
            try:
                fields = json.loads((folder / "ref.json").read_text())
                ref = AttemptRef(
                    build_id=fields["build"], number=fields["attempt"], session=fields["session"]
                )
            except (OSError, ValueError, KeyError, TypeError):
                shutil.rmtree(folder, ignore_errors=True)
                continue
            with self.lock:
                attempt_log = AttemptLog(self, ref, folder)
                attempt_log.recover()
                if attempt_log.is_empty:
                    attempt_log.remove()
                    continue
            logs.append(attempt_log)
        return logs

    def added(self, attempt_log: AttemptLog, size: int, *, is_on_disk: bool) -> None:
        """Account for a new record and wake the shipper; called with the lock."""
        self.record_count += 1
        if is_on_disk:
            self.used_bytes += size
        else:
            self._memory_only_bytes += size
        if attempt_log not in self._turn:
            self._turn.append(attempt_log)
        self._filled.notify()

    def removed(self, size: int, *, is_on_disk: bool) -> None:
        """Account for a record that the database has; called with the lock."""
        self.record_count -= 1
        if is_on_disk:
            self.used_bytes -= size
        else:
            self._memory_only_bytes -= size

    def take(self, timeout_s: float) -> list[Batch]:
        """Wait for records and return up to `BATCH_BYTES` of them, each attempt with the same share.

        Only the shipper calls it. What it returns stays in the spool until `done`.
        """
        with self.lock:
            if not self._turn:
                self._filled.wait(timeout_s)
            batches: list[Batch] = []
            room = BATCH_BYTES if len(self._live) < 2 else SHARED_BATCH_BYTES
            share = room // max(1, len(self._turn))
            for attempt_log in list(self._turn):
                batch = attempt_log.peek(max(share, 1))
                if batch is not None:
                    batches.append(batch)
                    room -= batch.size_bytes
                if room <= 0:
                    break
            return batches

    def wake(self) -> None:
        """End a `take` that waits."""
        with self.lock:
            self._filled.notify_all()

    def done(self, batch: Batch) -> None:
        """Forget a batch that the database has; the attempt goes to the end of the turn."""
        with self.lock:
            batch.log.drop(len(batch.records))
            self._turn.remove(batch.log)
            if not batch.log.is_empty:
                self._turn.append(batch.log)
            elif batch.log.is_former:
                # A crash may have come before the attempt's end was written: nothing else would delete it.
                batch.log.remove()

    def close_log(self, attempt_log: AttemptLog) -> None:
        """Delete a log whose every record, its end included, is in the database."""
        with self.lock:
            if attempt_log in self._turn:
                self._turn.remove(attempt_log)
            self._live.discard(attempt_log)
            attempt_log.remove()

    def wait_empty(self, timeout_s: float) -> bool:
        """Wait until the database has everything; whether it has. For start and stop, not for builds."""
        deadline = clock.Deadline.after(timeout_s)
        while self.record_count:
            if deadline.is_passed:
                return False
            clock.sleep(0.01)
        return True


def _folder_name(ref: AttemptRef) -> str:
    """A build id is anything another program chose: quote it, and keep it within a file name's 255 bytes."""
    name = urllib.parse.quote(ref.build_id, safe="")
    if len(name) > 150:
        name = f"{name[:80]}~{hashlib.sha256(name.encode()).hexdigest()}"
    return f"{name}~{ref.number}~{ref.session}"
