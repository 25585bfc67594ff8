"""Decisions of the scaling rule, each with its inputs: kept when they differ from the one before, and once in a while."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from sqlalchemy import Connection, delete, insert, select

from agent.model.fleet import Decision
from agent.store.engine import Store
from agent.store.tables import now
from agent.store.tables_fleet import decisions

_KEPT = timedelta(days=14)


def write(
    connection: Connection,
    *,
    pool: str,
    rule: int,
    inputs: Mapping[str, Any],
    wanted: int,
    start: int,
    drain: int,
    reason: str,
) -> None:
    """Record a decision."""
    connection.execute(
        insert(decisions).values(
            pool=pool,
            at=now(connection),
            rule=rule,
            inputs=dict(inputs),
            wanted=wanted,
            start=start,
            drain=drain,
            reason=reason,
        )
    )


def list_decisions(
    store: Store, pool: str, *, limit: int = 20, before_id: int | None = None
) -> list[Decision]:
    """Return a pool's decisions, newest first."""
    query = select(decisions).where(decisions.c.pool == pool)
    if before_id is not None:
        query = query.where(decisions.c.id < before_id)
    with store.read() as connection:
        rows = connection.execute(query.order_by(decisions.c.id.desc()).limit(limit)).mappings()
        return [Decision(**row) for row in rows]


def forget(connection: Connection) -> int:
    """Delete what is older than two weeks; return how many went."""
    at = connection.execute(select(now(connection))).scalar_one()
    return connection.execute(delete(decisions).where(decisions.c.at < at - _KEPT)).rowcount
