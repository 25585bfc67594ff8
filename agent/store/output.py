"""Output: chunks of bytes, written in batches and read from either end. Bytes go in and out unchanged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import CTE, ColumnElement, Connection, RowMapping, Select, and_, case, func, literal, select

from agent.model.build import AttemptRef, OutputChunk, StepEnded, StepStarted
from agent.store import steps
from agent.store.engine import Store
from agent.store.tables import insert_new, output_chunks, printable

# What an attempt has to say, and which one it is.
Entry = tuple[AttemptRef, StepStarted | StepEnded | OutputChunk]

_FOLLOW_LIMIT_BYTES = 4 << 20
_TAIL_LIMIT_BYTES = 4 << 20
# Rows whose size is looked at in one go. Their data, which lies apart, isn't touched by that.
_PAGE_ROWS = 4096
_TAIL_PAGE_ROWS = 512

# One statement of many rows in binary form (%b). ON CONFLICT makes a batch that is sent again harmless, which
# COPY has no way to say. A list of rows takes a million lines half as long as arrays to unnest, which the
# server has to build first. A statement holds at most 65,535 parameters.
_INSERT = "INSERT INTO output_chunks (build_id, attempt, step, seq, first_line, line_count, at, data) VALUES "
_ROW = "(%b, %b, %b, %b, %b, %b, %b, %b)"
_STATEMENT_ROWS = 1000
_COLUMNS = tuple(column.name for column in output_chunks.c)
_chunk = output_chunks.c


def append_chunks(store: Store, chunks: Sequence[OutputChunk]) -> int:
    """Store one batch of output in one transaction.

    Args:
        chunks: of any attempts, redacted, ascending `seq` within a step; some MiB at most.
    Returns: chunks inserted; those already present are passed over, so 0 is a success.
    Raises: StoreUnavailable (send the same again); StoreRejected (set the batch aside).
    """
    with store.begin() as connection:
        return _insert(connection, chunks)


def apply(store: Store, records: Sequence[Entry]) -> None:
    """Store a mixed batch in one transaction; sent again, it changes nothing.

    Steps are recorded in the order given. Nobody sees a part of the batch.
    Raises: as `append_chunks`.
    """
    with store.begin() as connection:
        write(connection, records)


def write(connection: Connection, records: Sequence[Entry]) -> None:
    """Do what `apply` does, inside a transaction."""
    _insert(connection, [record for _, record in records if isinstance(record, OutputChunk)])
    for ref, record in records:
        if isinstance(record, StepStarted):
            steps.started(connection, ref, record)
        elif isinstance(record, StepEnded):
            steps.ended(connection, ref, record)


def read_chunks(
    store: Store, build_id: str, attempt: int, step: int, *, after_seq: int = -1, limit_bytes: int = 1 << 20
) -> list[OutputChunk]:
    """Return a step's chunks behind `after_seq`: up to `limit_bytes`, but one at least if there is one."""
    query = select(output_chunks).where(*_of_step(build_id, attempt, step), _chunk.seq > after_seq)
    with store.read() as connection:
        return _page(connection, query, limit_bytes)


def follow(store: Store, build_id: str, attempt: int, cursors: Mapping[int, int]) -> list[OutputChunk]:
    """Return what an attempt has said since, in all its steps: up to 4 MiB, ordered by (step, seq).

    Args:
        cursors: step -> last `seq` seen. A step that is not in it is read from its beginning.
    """
    found = _steps_with_output(build_id, attempt)
    seen = case(dict(cursors), value=found.c.step, else_=-1) if cursors else literal(-1)
    query = select(output_chunks).join(found, and_(_chunk.step == found.c.step, _chunk.seq > seen))
    with store.read() as connection:
        return _page(connection, query.where(*_of_attempt(build_id, attempt)), _FOLLOW_LIMIT_BYTES)


def tail(store: Store, build_id: str, attempt: int, step: int, *, lines: int) -> tuple[int, bytes]:
    """Return a step's last lines, as (number of the first of them, their bytes): up to some 4 MiB.

    A last line without a line end counts as one. Output that goes over the limit begins in the middle of a
    line.
    """
    where = _of_step(build_id, attempt, step)
    with store.read() as connection:
        first_seq = _tail_start(connection, where, lines)
        query = select(output_chunks).where(*where, _chunk.seq >= first_seq).order_by(_chunk.seq)
        chunks = [_record(row) for row in connection.execute(query).mappings()]
    if not chunks:
        return 1, b""
    data = b"".join(chunk.data for chunk in chunks)
    begin = len(data) - data.endswith(b"\n")
    for _ in range(lines):
        begin = data.rfind(b"\n", 0, begin)
        if begin < 0:
            return chunks[0].first_line, data
    return chunks[0].first_line + data.count(b"\n", 0, begin + 1), data[begin + 1 :]


def _insert(connection: Connection, chunks: Sequence[OutputChunk]) -> int:
    if not chunks:
        return 0
    rows = [
        (printable(it.build_id), it.attempt, it.step, it.seq, it.first_line, it.line_count, it.at, it.data)
        for it in chunks
    ]
    if connection.dialect.name == "postgresql":
        return sum(
            _insert_rows(connection, rows[start : start + _STATEMENT_ROWS])
            for start in range(0, len(rows), _STATEMENT_ROWS)
        )
    values = [dict(zip(_COLUMNS, row, strict=True)) for row in rows]
    return connection.execute(insert_new(connection, output_chunks), values).rowcount


def _insert_rows(connection: Connection, rows: Sequence[tuple[object, ...]]) -> int:
    statement = f"{_INSERT}{', '.join([_ROW] * len(rows))} ON CONFLICT DO NOTHING"
    return connection.exec_driver_sql(statement, tuple(value for row in rows for value in row)).rowcount


def _of_attempt(build_id: str, attempt: int) -> tuple[ColumnElement[bool], ...]:
    return _chunk.build_id == build_id, _chunk.attempt == attempt


def _of_step(build_id: str, attempt: int, step: int) -> tuple[ColumnElement[bool], ...]:
    return *_of_attempt(build_id, attempt), _chunk.step == step


def _steps_with_output(build_id: str, attempt: int) -> CTE:
    """Return the steps that have chunks, found by leaping through the key's index: one probe a step.

    Source: "Loose indexscan" of the PostgreSQL wiki. DISTINCT would read the index from end to end, and a
        reader that follows a build asks several times a second.
    """
    first = select(func.min(_chunk.step).label("step")).where(*_of_attempt(build_id, attempt))
    found = first.cte("found", recursive=True)
    following = select(func.min(_chunk.step)).where(
        *_of_attempt(build_id, attempt), _chunk.step > found.c.step
    )
    return found.union_all(
        select(following.correlate(found).scalar_subquery()).where(found.c.step.is_not(None))
    )


def _page(connection: Connection, query: Select[Any], limit_bytes: int) -> list[OutputChunk]:
    """Read the first chunks of `query` that fit into `limit_bytes`: sizes first, then just their data."""
    query = query.order_by(_chunk.step, _chunk.seq)
    sizes = connection.execute(query.with_only_columns(func.length(_chunk.data)).limit(_PAGE_ROWS)).scalars()
    count, total = 0, 0
    for size in sizes:
        total += size
        if count and total > limit_bytes:
            break
        count += 1
    if not count:
        return []
    return [_record(row) for row in connection.execute(query.limit(count)).mappings()]


def _tail_start(connection: Connection, where: Sequence[ColumnElement[bool]], lines: int) -> int:
    """Return the `seq` from which on the last `lines` lines lie, newest chunks looked at first."""
    sizes = select(_chunk.seq, _chunk.line_count, func.length(_chunk.data)).where(*where)
    first_seq, line_ends, total = (1 << 31) - 1, 0, 0
    while True:
        page = connection.execute(
            sizes.where(_chunk.seq < first_seq).order_by(_chunk.seq.desc()).limit(_TAIL_PAGE_ROWS)
        ).all()
        for seq, line_count, size in page:
            total += size
            # One line end more than lines: it is the end of the line before the first one wanted.
            if line_ends > lines or (total > _TAIL_LIMIT_BYTES and total > size):
                return first_seq
            first_seq = seq
            line_ends += line_count
        if len(page) < _TAIL_PAGE_ROWS:
            return first_seq


def _record(row: RowMapping) -> OutputChunk:
    return OutputChunk(**row)
