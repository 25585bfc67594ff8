"""What revisions are written with: columns that both databases answer alike. Made for them, and never changed again."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql


def _is_postgresql() -> bool:
    return op.get_bind().dialect.name == "postgresql"


def text(name: str, *, is_needed: bool = False) -> sa.Column[str]:
    """Return a column of text, ordered by bytes as SQLite orders: keys page alike, and a prefix is a range."""
    kind = sa.String(collation="C") if _is_postgresql() else sa.String()
    return sa.Column(name, kind, nullable=not is_needed)


def instant(name: str, *, is_needed: bool = False) -> sa.Column[object]:
    """Return a column of instants."""
    kind = sa.DateTime(timezone=True) if _is_postgresql() else sa.String()
    return sa.Column(name, kind, nullable=not is_needed)


def document(name: str) -> sa.Column[object]:
    """Return a column of JSON."""
    return sa.Column(name, postgresql.JSONB() if _is_postgresql() else sa.JSON(), nullable=False)


def number(name: str) -> sa.Column[int]:
    """Return a column of whole numbers."""
    return sa.Column(name, sa.Integer(), nullable=False)


def real(name: str) -> sa.Column[float]:
    """Return a column of fractions."""
    return sa.Column(name, sa.Float(), nullable=False)


def flag(name: str) -> sa.Column[bool]:
    """Return a column of truths."""
    return sa.Column(name, sa.Boolean(), nullable=False)


def serial(name: str) -> sa.Column[int]:
    """Return a key that counts by itself."""
    kind = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    return sa.Column(name, kind, nullable=False, autoincrement=True)


def unique_where(name: str, table: str, columns: list[str], condition: str) -> None:
    """Make an index that lets no two rows be alike that meet a condition."""
    where = sa.text(condition)
    op.create_index(name, table, columns, unique=True, postgresql_where=where, sqlite_where=where)
