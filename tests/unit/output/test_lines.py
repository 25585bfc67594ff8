"""Chunks: joined they are the redacted output, their line numbers are exact, and so is the account."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from tempfile import mkdtemp

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from agent import clock
from agent.model.build import AttemptRef, OutputAccount, OutputChunk
from agent.output.lines import StepOutput
from agent.output.redact import Redactor
from agent.output.spool import Spool

# A machine under load takes its time; what is found has to hold at any speed.
patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

REF = AttemptRef(build_id="build-1", number=1, session="life-1")
SECRETS = ["hunter2-hunter2", "line one\nline two of it"]
CHUNK = 64
LIMIT = 40

# Parts of secrets, whole ones, line ends of every kind and other bytes, so that a split falls into each.
_piece = st.sampled_from(
    [
        b"hunter2-hunter2",
        b"hunter2-",
        b"line one\nline two of it",
        b"line one\n",
        b"\n",
        b"\r\n",
        b"a",
        b"\0\xff",
    ]
) | st.binary(max_size=2 * CHUNK)


@dataclass
class Made:
    """A step's output on a spool of its own, and what came of it."""

    limit: int = 0
    spool_limit: int = 1 << 30
    gap_s: float = 0.01
    chunk_bytes: int = CHUNK
    secrets: Sequence[str] = ()
    chunks: list[OutputChunk] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._folder = Path(mkdtemp())
        self.spool = Spool(self._folder, limit_bytes=self.spool_limit)
        self.redactor = Redactor(self.secrets)
        self.log = self.spool.open(REF)
        self.output = StepOutput(
            spool=self.spool,
            attempt_log=self.log,
            step=3,
            redactor=self.redactor.stream(),
            chunk_bytes=self.chunk_bytes,
            flush_gap_s=self.gap_s,
            limit_bytes=self.limit,
        )

    def take(self) -> list[OutputChunk]:
        """Return the chunks that have come so far."""
        for batch in self.spool.take(0):
            self.chunks += [record for record in batch.records if isinstance(record, OutputChunk)]
            self.spool.done(batch)
        return self.chunks

    @property
    def data(self) -> bytes:
        return b"".join(chunk.data for chunk in self.take())

    def finish(self) -> OutputAccount:
        account = self.output.finish()
        self.take()
        self.spool.close_log(self.log)
        shutil.rmtree(self._folder)
        return account


def lines_of(data: bytes) -> int:
    return data.count(b"\n") + (data[-1:] not in (b"", b"\n"))


def redacted(data: bytes, secrets: Sequence[str]) -> tuple[bytes, int]:
    stream = Redactor(secrets).stream()
    clean = stream.feed(data) + stream.finish()
    return clean, stream.masked_count


@patient
@given(pieces=st.lists(_piece, max_size=12), flushes=st.sets(st.integers(0, 11)))
@example(pieces=[b"x" * CHUNK, b"\n"], flushes=set())
@example(pieces=[b"hunter2-", b"hunter2"], flushes={0})
def test_chunks_joined_are_the_redacted_output_for_any_split(pieces: list[bytes], flushes: set[int]) -> None:
    made = Made(secrets=SECRETS)
    for number, piece in enumerate(pieces):
        made.output.feed(piece)
        if number in flushes:
            made.output.flush()
    account = made.finish()
    data = b"".join(pieces)
    clean, masked_count = redacted(data, SECRETS)
    assert made.data == clean
    assert account == OutputAccount(
        bytes_produced=len(data),
        lines_produced=lines_of(data),
        bytes_stored=len(clean),
        lines_stored=lines_of(data),
        masked_count=masked_count,
    )


@patient
@given(pieces=st.lists(_piece, max_size=12), flushes=st.sets(st.integers(0, 11)))
def test_chunks_are_numbered_without_gaps_and_name_their_lines(
    pieces: list[bytes], flushes: set[int]
) -> None:
    made = Made(secrets=SECRETS)
    for number, piece in enumerate(pieces):
        made.output.feed(piece)
        if number in flushes:
            made.output.flush()
    made.finish()
    assert [chunk.seq for chunk in made.chunks] == list(range(len(made.chunks)))
    before = b""
    for chunk in made.chunks:
        assert 0 < len(chunk.data) <= CHUNK
        assert chunk.first_line == before.count(b"\n") + 1
        assert chunk.line_count == chunk.data.count(b"\n")
        assert (chunk.build_id, chunk.attempt, chunk.step) == ("build-1", 1, 3)
        before += chunk.data


@patient
@given(lines=st.lists(st.binary(max_size=CHUNK - 1).map(lambda line: line.replace(b"\n", b"")), max_size=30))
def test_line_that_fits_a_chunk_is_never_cut_by_it(lines: list[bytes]) -> None:
    made = Made()
    made.output.feed(b"".join(line + b"\n" for line in lines))
    made.finish()
    assert all(chunk.data.endswith(b"\n") for chunk in made.chunks)


def test_line_longer_than_a_chunk_is_cut_where_the_chunk_is_full() -> None:
    made = Made()
    made.output.feed(b"a" * (2 * CHUNK + 5) + b"\nb")
    made.finish()
    assert [len(chunk.data) for chunk in made.chunks] == [CHUNK, CHUNK, 7]
    assert [chunk.first_line for chunk in made.chunks] == [1, 1, 1]


def test_one_gigantic_line_needs_no_memory_of_its_size() -> None:
    """What has been cut off is with the spool; nothing of it is kept here (F19)."""
    made = Made(chunk_bytes=4096)
    for _ in range(1000):
        made.output.feed(b"x" * 4096)
        made.take()
    assert sum(len(piece) for piece in made.output._pieces) <= 4096
    assert made.finish().bytes_stored == 4096 * 1000


# The limit.


@patient
@given(
    pieces=st.lists(st.sampled_from([b"a", b"bc", b"\n", b"def\n", b"x" * 30]), max_size=30),
    is_noted=st.booleans(),
)
@example(pieces=[b"x" * 39, b"\n", b"y"], is_noted=False)
@example(pieces=[b"x" * 41], is_noted=True)
@example(pieces=[b"x" * 30, b"x" * 30, b"\n", b"more"], is_noted=True)
def test_account_is_exact_at_the_limit(pieces: list[bytes], is_noted: bool) -> None:
    made = Made(limit=LIMIT)
    for piece in pieces:
        made.output.feed(piece)
    if is_noted:
        made.output.note("note")
    account = made.finish()
    data = b"".join(pieces)
    kept, cut = data[:LIMIT], data[LIMIT:]
    note = b""
    if is_noted:
        note = b"note\n" if kept[-1:] in (b"", b"\n") else b"\nnote\n"
    assert made.data == kept + note
    is_in_line = kept[-1:] not in (b"", b"\n")
    assert account == OutputAccount(
        bytes_produced=len(data) + len(note),
        lines_produced=lines_of(kept + note) + max(0, lines_of(cut) - is_in_line),
        bytes_stored=len(kept) + len(note),
        lines_stored=lines_of(kept + note),
        bytes_cut=len(cut),
        lines_cut=max(0, lines_of(cut) - is_in_line),
    )
    assert made.output.is_over_limit == bool(cut)


def test_output_up_to_the_limit_is_not_over_it() -> None:
    made = Made(limit=LIMIT)
    made.output.feed(b"x" * LIMIT)
    assert not made.output.is_over_limit
    made.output.feed(b"")
    assert not made.output.is_over_limit
    made.output.feed(b"y")
    assert made.output.is_over_limit
    assert made.finish().bytes_stored == LIMIT


def test_no_limit_is_no_limit() -> None:
    made = Made(limit=0)
    made.output.feed(b"x" * 10_000)
    assert not made.output.is_over_limit
    assert made.finish().bytes_cut == 0


def test_reason_a_step_was_ended_for_stands_behind_the_limit() -> None:
    made = Made(limit=LIMIT)
    made.output.feed(b"y\n" * 100)
    made.output.note("build-agent: the step was ended: output limit")
    made.finish()
    assert made.data == b"y\n" * (LIMIT // 2) + b"build-agent: the step was ended: output limit\n"


def test_note_does_not_use_up_the_limit() -> None:
    made = Made(limit=LIMIT)
    made.output.note("x" * 100)
    made.output.feed(b"a" * LIMIT)
    assert not made.output.is_over_limit
    made.finish()


# Notes and secrets.


@pytest.mark.parametrize("before", [b"", b"whole line\n", b"open line"])
def test_note_stands_on_a_line_of_its_own(before: bytes) -> None:
    made = Made()
    made.output.feed(before)
    made.output.note("build-agent: timed out")
    made.finish()
    assert b"build-agent: timed out" in made.data.split(b"\n")
    assert made.data.startswith(before)


def test_secret_in_a_note_is_masked() -> None:
    made = Made(secrets=SECRETS)
    made.output.note("the step was ended: by hunter2-hunter2")
    made.finish()
    assert b"hunter2" not in made.data


@pytest.mark.parametrize(
    "pieces", [[b"hunter2-hunter2\n"], [b"hunter2-hunt", b"er2\n"], [b"hunter2-hunter2", b"\n"]]
)
@pytest.mark.parametrize("room", range(20))
def test_limit_never_cuts_a_secret_into_a_part_that_is_stored(pieces: list[bytes], room: int) -> None:
    made = Made(limit=LIMIT, secrets=SECRETS)
    made.output.feed(b"x" * (LIMIT - room))
    for piece in pieces:
        made.output.feed(piece)
    made.output.note("the end")
    made.finish()
    assert made.data.startswith(b"x" * (LIMIT - room))
    assert b"h" not in made.data.replace(b"the end", b"")


# When to flush.


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def hands(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(clock, "mono", made)
    return made


def test_nothing_is_due_while_nothing_waits() -> None:
    made = Made()
    assert made.output.flush_due_s() is None
    made.output.feed(b"")
    assert made.output.flush_due_s() is None
    made.output.flush()
    made.finish()
    assert made.chunks == []


def test_line_after_a_pause_is_due_at_once(hands: Clock) -> None:
    made = Made(gap_s=0.01)
    made.output.feed(b"one\n")
    made.output.flush()
    hands.now += 0.5
    made.output.feed(b"two\n")
    assert made.output.flush_due_s() == 0.0
    made.output.flush()
    assert made.data == b"one\ntwo\n"
    made.finish()


def test_line_under_load_waits_out_the_gap_and_no_longer(hands: Clock) -> None:
    made = Made(gap_s=0.01)
    made.output.feed(b"one\n")
    made.output.flush()
    hands.now += 0.004
    made.output.feed(b"two\n")
    due_s = made.output.flush_due_s()
    assert due_s == pytest.approx(0.006)
    hands.now += 0.005
    made.output.feed(b"three\n")  # a further line does not put it off
    assert made.output.flush_due_s() == pytest.approx(0.001)
    hands.now += 0.002
    assert made.output.flush_due_s() == 0.0
    made.finish()


def test_full_chunks_count_as_flushes(hands: Clock) -> None:
    """What a full chunk leaves over waits for more: a step that prints without end makes full chunks."""
    made = Made(gap_s=0.01)
    made.output.feed(b"x" * (CHUNK + 1))
    assert made.output.flush_due_s() == pytest.approx(0.01)
    assert len(made.take()) == 1
    made.finish()


def test_steady_load_makes_full_chunks_not_many(hands: Clock) -> None:
    made = Made(gap_s=0.01, chunk_bytes=4096)
    for _ in range(2000):
        made.output.feed(b"x" * 63 + b"\n")
        if made.output.flush_due_s() == 0.0:
            made.output.flush()
        hands.now += 0.000_05  # 1.2 MiB a second
    made.finish()
    assert len(made.chunks) < 2 * (2000 * 64) // 4096
    assert all(first.at <= second.at for first, second in pairwise(made.chunks))


def test_bytes_that_may_begin_a_secret_are_not_due(hands: Clock) -> None:
    made = Made(secrets=SECRETS)
    made.output.feed(b"hunter2-")
    assert made.output.flush_due_s() is None
    made.output.feed(b"x\n")
    assert made.output.flush_due_s() == 0.0
    made.finish()
    assert made.data == b"hunter2-x\n"


def test_room_is_the_spools() -> None:
    made = Made(spool_limit=10)
    assert made.output.has_room
    made.output.feed(b"a line\n")
    made.output.flush()
    assert not made.output.has_room
    made.take()
    assert made.output.has_room
    made.finish()
