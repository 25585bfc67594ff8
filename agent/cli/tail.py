"""Finds where the last lines of a step's output begin, by a few looks at single chunks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agent.model.build import OutputChunk
    from agent.store.engine import Store


@dataclass(frozen=True, kw_only=True, slots=True)
class Start:
    """Where to read on: behind chunk `after_seq`, less the first `skip_bytes`; `line_count` lines follow."""

    after_seq: int
    skip_bytes: int
    line_count: int


def locate(store: Store, build_id: str, attempt: int, step: int, *, lines: int) -> Start:
    """Return where the last `lines` lines begin; a last line without its end counts as one.

    Chunks count their lines, and sequence numbers have no gaps, so both the newest chunk and the one with a
    given line are found by halving: some thirty looks at most, whatever the step has printed.
    """

    from agent.store import output

    def chunk(seq: int) -> OutputChunk | None:
        found = output.read_chunks(store, build_id, attempt, step, after_seq=seq - 1, limit_bytes=1)
        return found[0] if found else None

    end = _first(lambda seq: chunk(seq) is None)
    newest = chunk(end - 1) if end else None
    if newest is None or not lines:
        return Start(after_seq=end - 1, skip_bytes=0, line_count=0)
    line_ends = newest.first_line - 1 + newest.line_count
    total = line_ends + (not newest.data.endswith(b"\n"))
    wanted = total - lines + 1
    if wanted <= 1:
        return Start(after_seq=-1, skip_bytes=0, line_count=total)

    def holds_begin(seq: int) -> bool:
        it = chunk(seq)
        return it is None or it.first_line + it.line_count >= wanted

    seq = _first(holds_begin)
    found = chunk(seq)
    skip = 0 if found is None else _after_line_end(found.data, wanted - found.first_line)
    if found is not None and skip == len(found.data):
        # The line before the first one wanted ends with this chunk.
        return Start(after_seq=seq, skip_bytes=0, line_count=lines)
    return Start(after_seq=seq - 1, skip_bytes=skip, line_count=lines)


def _first(holds: Callable[[int], bool]) -> int:
    """Return the smallest number from 0 on for which `holds`, which stays true from there on."""
    high = 1
    while not holds(high - 1):
        high *= 2
    low = high // 2
    high -= 1
    while low < high:
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle + 1
    return low


def _after_line_end(data: bytes, count: int) -> int:
    """Return the offset behind the `count`th line end."""
    at = 0
    for _ in range(count):
        at = data.find(b"\n", at) + 1
    return at
