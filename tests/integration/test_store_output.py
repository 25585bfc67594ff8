"""Output: every byte back as it was, whatever is sent twice, late, or in between lines."""

from __future__ import annotations

import random
import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from agent.model.build import AttemptRef, OutputAccount, OutputChunk, StepEnded
from agent.model.outcome import Outcome
from agent.store import attempts, output, steps
from agent.store.engine import Store
from tests.integration.conftest_store import AT, begun, counted, cut, ended, lose, race, running

BYTES = bytes(range(256)) * 3
ODD = (
    b"plain\n"
    + b"back\\slash\\012\n\xff\xfe broken \x00 nul\n"
    + b"gr\xc3\xbc\xc3\x9fe\r\n10%\r20%\r\n\n\x1b[31mred\nno end"
)


def joined(chunks: list[OutputChunk]) -> bytes:
    return b"".join(chunk.data for chunk in chunks)


def lines_of(store: Store, build_id: str = "build-1", step: int = 0) -> list[tuple[int, str]]:
    query = text(
        "SELECT line_no, text FROM output_lines WHERE build_id = :id AND step = :step ORDER BY line_no"
    )
    with store.read() as connection:
        return [(no, line) for no, line in connection.execute(query, {"id": build_id, "step": step})]


def test_f22_every_byte_comes_back(store: Store) -> None:
    chunks = cut(BYTES, 1, 10, 300)
    assert output.append_chunks(store, chunks) == 4
    assert output.read_chunks(store, "build-1", 1, 0) == chunks


def test_batch_sent_again_is_passed_over(store: Store) -> None:
    chunks = cut(BYTES, 100, 100)
    assert output.append_chunks(store, chunks[:2]) == 2
    changed = [replace(chunk, data=b"other") for chunk in chunks]
    assert output.append_chunks(store, changed) == 1
    assert joined(output.read_chunks(store, "build-1", 1, 0)) == BYTES[:200] + b"other"
    assert output.append_chunks(store, []) == 0


def test_same_batch_from_two_shippers_is_stored_once(store: Store) -> None:
    chunks = cut(BYTES, *[7] * 60)
    stored = race(*(lambda: output.append_chunks(store, chunks) for _ in range(4)))
    assert sum(stored) == len(chunks)
    assert output.read_chunks(store, "build-1", 1, 0) == chunks


def test_pages_keep_to_their_size_but_always_move_on(store: Store) -> None:
    chunks = cut(bytes(1000), 100, 100, 700)
    output.append_chunks(store, chunks)
    pages, after = [], -1
    while page := output.read_chunks(store, "build-1", 1, 0, after_seq=after, limit_bytes=250):
        pages.append([chunk.seq for chunk in page])
        after = page[-1].seq
    assert pages == [[0, 1], [2], [3]]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=st.lists(st.sampled_from([b"\n", b"a", b"bc\n", b"\n\n", b"long line "])).map(b"".join),
    wanted=st.integers(1, 8),
    seed=st.integers(0, 2**32),
)
def test_tail_is_the_last_lines_however_chunks_are_cut(
    store: Store, data: bytes, wanted: int, seed: int
) -> None:
    sizes = random.Random(seed).choices([1, 2, 5, 20], k=len(data))
    build_id = f"build-{data.hex()}-{seed}"
    output.append_chunks(store, cut(data, *sizes, build_id=build_id))
    lines = data.splitlines(keepends=True)
    first, tail = output.tail(store, build_id, 1, 0, lines=wanted)
    assert tail == b"".join(lines[-wanted:])
    assert first == max(1, len(lines) - wanted + 1)


def test_tail_reads_a_few_chunks_of_many(store: Store) -> None:
    data = b"".join(b"line %d\n" % number for number in range(1, 3001))
    output.append_chunks(store, cut(data, *[9] * 2600))
    assert output.tail(store, "build-1", 1, 0, lines=2)[1] == b"line 2999\nline 3000\n"
    number, tail = output.tail(store, "build-1", 1, 0, lines=1200)
    assert (number, tail.count(b"\n"), tail[:10]) == (1801, 1200, b"line 1801\n")
    assert output.tail(store, "nobody", 1, 0, lines=2) == (1, b"")


def test_tail_of_a_line_without_end_is_bounded(store: Store) -> None:
    piece = bytes(1 << 16)
    for number in range(4):
        chunks = [replace(chunk, seq=chunk.seq + 25 * number) for chunk in cut(piece * 25, *[1 << 16] * 24)]
        output.append_chunks(store, chunks)
    first, tail = output.tail(store, "build-1", 1, 0, lines=10)
    assert (first, len(tail)) == (1, 4 << 20)


def test_follower_sees_all_steps_each_chunk_once(store: Store) -> None:
    parts = {step: cut(b"step %d\n" % step * 20, *[7] * 15, step=step) for step in (0, 2, 5)}
    output.append_chunks(store, [*parts[0], *parts[2][:3]])
    output.append_chunks(store, cut(b"another build", build_id="build-2"))
    first = output.follow(store, "build-1", 1, {})
    assert [(it.step, it.seq) for it in first] == [(0, n) for n in range(16)] + [(2, n) for n in range(3)]
    cursors = {0: 15, 2: 2}
    assert output.follow(store, "build-1", 1, cursors) == []
    output.append_chunks(store, [*parts[2][3:], *parts[5]])
    assert output.follow(store, "build-1", 1, cursors) == [*parts[2][3:], *parts[5]]


def test_follower_far_behind_gets_it_in_parts(store: Store) -> None:
    chunks = cut(random.Random(0).randbytes(5 << 20), *[1 << 16] * 80)
    output.append_chunks(store, chunks)
    first = output.follow(store, "build-1", 1, {})
    rest = output.follow(store, "build-1", 1, {0: first[-1].seq})
    assert first + rest == chunks
    assert len(joined(first)) == 4 << 20


def test_follower_that_is_up_to_date_costs_one_statement(store: Store) -> None:
    output.append_chunks(store, cut(BYTES))
    with counted(store) as statements:
        output.follow(store, "build-1", 1, {0: 0})
    assert len(statements) == 1


def test_mixed_batch_is_stored_whole_and_once(store: Store) -> None:
    ref = running(store)
    account = OutputAccount(bytes_produced=9, lines_produced=2, bytes_stored=8, masked_count=1)
    done = StepEnded(
        step=0, outcome=Outcome.FAILED, detail="exit 2", exit_code=2, ended_at=AT, account=account
    )
    batch: list[Any] = [
        (ref, begun(0)),
        *((ref, chunk) for chunk in cut(ODD, 10)),
        (ref, done),
        (ref, begun(1)),
    ]
    for _ in range(2):
        output.apply(store, batch)
    first, second = steps.list_steps(store, "build-1", 1)
    assert (first.state, first.outcome, first.detail, first.exit_code) == ("ended", "failed", "exit 2", 2)
    assert (first.account, first.name, first.command) == (account, "step 0", "make")
    assert (second.state, second.outcome, second.started_at) == ("running", None, AT)
    assert joined(output.read_chunks(store, "build-1", 1, 0)) == ODD


def test_batch_that_is_refused_leaves_nothing(store: Store) -> None:
    ref = running(store)
    bad = replace(begun(0), started_at=AT.replace(tzinfo=None))
    with pytest.raises(Exception, match="no time zone"):
        output.apply(store, [*((ref, chunk) for chunk in cut(ODD)), (ref, bad)])
    assert output.read_chunks(store, "build-1", 1, 0) == []


def test_f05_late_rows_of_a_closed_attempt_change_nothing(store: Store) -> None:
    ref = running(store)
    output.apply(store, [(ref, begun(0))])
    lose(store)
    attempts.close_lost(store, ref, why="silent")
    before = steps.list_steps(store, "build-1", 1)
    done = StepEnded(
        step=0, outcome=Outcome.PASSED, detail=None, exit_code=0, ended_at=AT, account=OutputAccount()
    )
    output.apply(store, [(ref, done), (ref, begun(1))])
    after = steps.list_steps(store, "build-1", 1)
    assert after[:1] == before
    assert (after[1].state, after[1].outcome) == ("ended", Outcome.LOST)


@pytest.mark.parametrize("change", [{"session": "life-0"}, {"number": 2}])
def test_steps_of_anybody_else_are_not_recorded(store: Store, change: dict[str, Any]) -> None:
    ref = running(store)
    output.apply(store, [(ref, begun(0))])
    other: AttemptRef = replace(ref, **change)
    done = StepEnded(
        step=0, outcome=Outcome.PASSED, detail=None, exit_code=0, ended_at=AT, account=OutputAccount()
    )
    output.apply(store, [(other, begun(1)), (other, done)])
    assert [(it.step, it.state) for it in steps.list_steps(store, "build-1", 1)] == [(0, "running")]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_view_joins_lines_over_chunks_and_takes_any_bytes(store: Store, size: int) -> None:
    output.append_chunks(store, cut(ODD, *[size] * len(ODD)))
    output.append_chunks(store, cut(b"another step\n", step=1))
    lines = lines_of(store)
    assert [no for no, _ in lines] == [1, 2, 3, 4, 5, 6, 7, 8]
    texts = [line for _, line in lines]
    assert texts[0] == "plain"
    assert texts[1] == "back\\slash\\012"
    assert " broken " in texts[2]
    assert texts[3:] == ["grüße\r", "10%\r20%\r", "", "\x1b[31mred", "no end"]
    assert lines_of(store, step=1) == [(1, "another step")]


def test_view_shows_odd_bytes_of_postgresql_escaped(postgres_url: str) -> None:
    store = Store(postgres_url)
    output.append_chunks(store, cut(b"\xff\x00\\ \xc3\xbc\n\xc3\xbc\\\n", 3, 4))
    found = lines_of(store)
    store.dispose()
    assert found == [(1, r"\377\000\\ \303\274"), (2, "ü\\")]


def test_view_ends_a_line_that_has_no_end_somewhere(store: Store) -> None:
    output.append_chunks(store, cut(b"x" * (5 << 20) + b"\nnext\n", *[1 << 16] * 80))
    lines = lines_of(store)
    assert [no for no, _ in lines] == [1, 2]
    assert (len(lines[0][1]), lines[1][1]) == (4 << 20, "next")


def test_view_reads_no_more_than_what_is_asked_for(store: Store) -> None:
    output.append_chunks(store, cut(b"a\n" * 10))
    explain = "EXPLAIN QUERY PLAN " if store.dialect == "sqlite" else "EXPLAIN "
    query = "SELECT * FROM output_lines WHERE build_id = 'build-1' AND attempt = 1 AND step = 0"
    with store.read() as connection:
        if store.dialect == "postgresql":
            connection.execute(text("SET LOCAL enable_seqscan = off"))
        plan = "\n".join(str(row) for row in connection.execute(text(explain + query)))
    found = r"SEARCH c USING .*\(build_id=\? AND attempt=\? AND step=\?\)"
    if store.dialect == "postgresql":
        found = (
            r"Index Cond: \(\(\(build_id\)::text = 'build-1'::text\) AND \(attempt = 1\) AND \(step = 0\)\)"
        )
    assert re.search(found, plan)


def test_output_is_kept_after_its_attempt_has_ended(store: Store) -> None:
    ref = running(store)
    attempts.end(store, ref, ended())
    assert output.append_chunks(store, cut(ODD)) == 1


def test_postgresql_compresses_output_with_lz4(postgres_url: str) -> None:
    store = Store(postgres_url)
    output.append_chunks(store, cut(b"the same again\n" * 4000))
    with store.read() as connection:
        method = connection.execute(text("SELECT pg_column_compression(data) FROM output_chunks")).scalar()
    store.dispose()
    assert method == "lz4"
