"""Where the last lines begin."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.cli import tail
from agent.model.build import AttemptRef
from agent.store import output
from agent.store.engine import Store
from tests.unit.cli.history import ID, History


@pytest.fixture
def store(sqlite_url: str) -> Iterator[Store]:
    store = Store(sqlite_url)
    yield store
    store.dispose()


def last_lines(data: bytes, lines: int) -> bytes:
    """The plain way."""
    kept = data.splitlines(keepends=True)[-lines:] if lines else []
    return b"".join(kept)


_STEPS = iter(range(1, 100_000))


# One database for all examples: each has a step of its own.
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(chunks=st.lists(st.sampled_from([b"x", b"x\n", b"\n", b"a\nb\nc", b"\n\n", b"yy\nz"]), max_size=12))
def test_tail_is_what_the_plain_way_gives(store: Store, chunks: list[bytes]) -> None:
    history = History(store)
    store_step = next(_STEPS)
    ref = _ref(history)
    if chunks:
        history.print(ref, store_step, *chunks)
    whole = b"".join(chunks)
    for lines in range(6):
        start = tail.locate(store, ID, ref.number, store_step, lines=lines)
        found = output.read_chunks(store, ID, ref.number, store_step, after_seq=start.after_seq)
        data = b"".join(it.data for it in found)[start.skip_bytes :]
        assert data == last_lines(whole, lines)
        assert start.line_count == min(lines, len(whole.splitlines()))


def _ref(history: History) -> AttemptRef:
    return AttemptRef(build_id=history.build_id, number=1, session="one")


def test_looks_grow_with_the_logarithm_of_the_output(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    history = History(store)
    ref = _ref(history)
    history.print(ref, 1, *(b"%d\n" % number for number in range(5000)))
    looks = []
    real = output.read_chunks
    monkeypatch.setattr(output, "read_chunks", lambda *a, **k: looks.append(1) or real(*a, **k))
    start = tail.locate(store, ID, 1, 1, lines=10)
    assert start.after_seq == 4989
    assert len(looks) < 60
