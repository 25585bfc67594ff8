"""Ids by their first characters, as people type them."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import ColumnElement

LENGTH_MIN = 4
# One more is fetched, to say that there are more.
SHOWN = 5


def begins(column: ColumnElement[str], prefix: str) -> ColumnElement[bool]:
    """Return the condition that a column begins with `prefix`: a range, for an index ordered by bytes."""
    return column.between(prefix, prefix + chr(0x10FFFF))


def listed(ids: Sequence[str]) -> str:
    """Name the first few of several ids, for a person to choose from."""
    return ", ".join([*ids[:SHOWN], "..."] if len(ids) > SHOWN else ids)
