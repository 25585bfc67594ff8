"""Cuts one step's output into chunks and keeps its account.

Bytes come in as the step wrote them; they are redacted, numbered by lines and handed to the spool in chunks
that end at a line end where that is possible. Nothing is lost and nothing altered but for the masks, so the
chunks of a step, joined, are its output.

When to flush: after a pause at once, so that a line that stands alone is seen within milliseconds; under load
no oftener than every `flush_gap_s`, so that a step that prints without end makes full chunks, not many.
"""

from __future__ import annotations

from typing import Protocol

from agent import clock
from agent.model.build import OutputAccount, OutputChunk
from agent.output.redact import RedactorStream
from agent.output.spool import AttemptLog, Spool


class OutputSink(Protocol):
    """Where a process's output goes; what the process runner knows of everything behind it."""

    @property
    def has_room(self) -> bool:
        """Whether more output may be read now."""
        ...

    @property
    def is_over_limit(self) -> bool:
        """Whether the step has printed more than it may."""
        ...

    def feed(self, data: bytes) -> None:
        """Take the next bytes."""
        ...

    def flush_due_s(self) -> float | None:
        """Seconds until `flush` should be called, `None` when nothing waits."""
        ...

    def flush(self) -> None:
        """Hand over what waits."""
        ...


class StepOutput:
    """The output of one step. Used by one thread."""

    def __init__(
        self,
        *,
        spool: Spool,
        attempt_log: AttemptLog,
        step: int,
        redactor: RedactorStream,
        chunk_bytes: int,
        flush_gap_s: float,
        limit_bytes: int,
    ) -> None:
        self._spool = spool
        self._attempt_log = attempt_log
        self._step = step
        self._redactor = redactor
        self._chunk_bytes = chunk_bytes
        self._flush_gap_s = flush_gap_s
        self._limit_bytes = limit_bytes or None
        self._pieces: list[bytes] = []
        self._size = 0
        self._seq = 0
        self._line = 1
        self._flushed_at_mono = 0.0
        self._bytes_produced = 0
        self._bytes_within = 0  # redacted bytes that the limit has let through
        self._bytes_stored = 0
        self._bytes_cut = 0
        self._lines_cut = 0
        # The last byte kept, and the last one cut: whether a line is open there.
        self._last_kept = b"\n"
        self._last_cut = b"\n"

    @property
    def has_room(self) -> bool:
        """Whether the spool takes more; `OutputSink.has_room`."""
        return self._spool.has_room

    @property
    def is_over_limit(self) -> bool:
        """Whether output has been cut since the limit was reached; `OutputSink.is_over_limit`."""
        return self._bytes_cut > 0

    def feed(self, data: bytes) -> None:
        """Take the next bytes as the step wrote them."""
        self._bytes_produced += len(data)
        self._take(self._redactor.feed(data))

    def note(self, text: str) -> None:
        """Add a line of the agent's own to the output, on a line of its own.

        It goes over the limit: a step that is ended for what it printed says so where its output ends.
        """
        self._take(self._redactor.finish())
        start = "" if self._last_kept == b"\n" else "\n"
        line = f"{start}{text}\n".encode()
        self._bytes_produced += len(line)
        self._keep(self._redactor.feed(line) + self._redactor.finish())
        self.flush()

    def flush_due_s(self) -> float | None:
        """Seconds until what waits is to be flushed; `OutputSink.flush_due_s`."""
        if not self._size:
            return None
        return max(0.0, self._flushed_at_mono + self._flush_gap_s - clock.mono())

    def flush(self) -> None:
        """Hand what waits to the spool, whole lines or not."""
        if self._size:
            self._emit(b"".join(self._pieces))
            self._pieces.clear()
            self._size = 0
        self._flushed_at_mono = clock.mono()

    def finish(self) -> OutputAccount:
        """Flush everything, what the redactor held back too, and return the account."""
        self._take(self._redactor.finish())
        self.flush()
        # Masks keep line ends, so what was let out has as many as what came in.
        lines_stored = self._line - 1 + (self._last_kept != b"\n")
        lines_cut = self._lines_cut + (self._last_cut != b"\n")
        return OutputAccount(
            bytes_produced=self._bytes_produced,
            lines_produced=lines_stored + lines_cut,
            bytes_stored=self._bytes_stored,
            lines_stored=lines_stored,
            bytes_cut=self._bytes_cut,
            lines_cut=lines_cut,
            masked_count=self._redactor.masked_count,
        )

    def _take(self, clean: bytes) -> None:
        """Keep what the limit lets through.

        The limit comes behind the redactor: a cut through a secret would leave its beginning unmasked.
        """
        room = len(clean)
        if self._limit_bytes is not None:
            room = min(room, self._limit_bytes - self._bytes_within)
        self._bytes_within += room
        self._keep(clean[:room])
        if cut := clean[room:]:
            if not self._bytes_cut and self._last_kept != b"\n":
                self._lines_cut -= 1  # its beginning is stored: it counts there
            self._bytes_cut += len(cut)
            self._lines_cut += cut.count(b"\n")
            self._last_cut = cut[-1:]

    def _keep(self, clean: bytes) -> None:
        if not clean:
            return
        self._last_kept = clean[-1:]
        self._pieces.append(clean)
        self._size += len(clean)
        if self._size < self._chunk_bytes:
            return
        data = b"".join(self._pieces)
        start = 0
        while len(data) - start >= self._chunk_bytes:
            # A line longer than a chunk is the only one that is cut where the chunk is full.
            end = data.rfind(b"\n", start, start + self._chunk_bytes) + 1 or start + self._chunk_bytes
            self._emit(data[start:end])
            start = end
        self._pieces = [data[start:]]
        self._size = len(data) - start
        self._flushed_at_mono = clock.mono()

    def _emit(self, data: bytes) -> None:
        line_count = data.count(b"\n")
        ref = self._attempt_log.ref
        self._attempt_log.append(
            OutputChunk(
                build_id=ref.build_id,
                attempt=ref.number,
                step=self._step,
                seq=self._seq,
                first_line=self._line,
                line_count=line_count,
                at=clock.utc_now(),
                data=data,
            )
        )
        self._seq += 1
        self._line += line_count
        self._bytes_stored += len(data)
