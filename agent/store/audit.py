"""The audit: who did what to which server or build, kept for good. Rows are only ever added."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, insert, select

from agent.store.engine import Store
from agent.store.tables import audit, now, printable


@dataclass(frozen=True, kw_only=True, slots=True)
class AuditEntry:
    """One row of `audit`."""

    id: int
    at: datetime
    actor: str
    action: str
    subject_kind: str
    subject_id: str
    detail: Mapping[str, Any]


def write(
    connection: Connection,
    *,
    actor: str,
    action: str,
    subject_kind: str,
    subject_id: str,
    detail: Mapping[str, Any] | None = None,
) -> None:
    """Add an entry in the transaction that does the thing, so that neither stands without the other.

    Args:
        action: what was done, as `build.cancel` or `server.drain`.
        detail: what JSON can hold; `None` values are left out.
    """
    connection.execute(
        insert(audit).values(
            at=now(connection),
            actor=actor,
            action=action,
            subject_kind=subject_kind,
            subject_id=subject_id,
            detail={key: _printable(value) for key, value in (detail or {}).items() if value is not None},
        )
    )


def _printable(value: Any) -> Any:
    """Return a value whose texts PostgreSQL can hold: reasons come from people, and from whoever sends a form."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, Mapping):
        return {printable(str(key)): _printable(it) for key, it in value.items()}
    if isinstance(value, list | tuple):
        return [_printable(it) for it in value]
    return value


def list_entries(
    store: Store,
    *,
    subject_kind: str | None = None,
    subject_id: str | None = None,
    actor: str | None = None,
    before_id: int | None = None,
    limit: int = 100,
) -> list[AuditEntry]:
    """Return entries, newest first; `before_id` is the last id of the page before."""
    query = select(audit).order_by(audit.c.id.desc()).limit(limit)
    wanted = {"subject_kind": subject_kind, "subject_id": subject_id, "actor": actor}
    for name, value in wanted.items():
        if value is not None:
            query = query.where(audit.c[name] == value)
    if before_id is not None:
        query = query.where(audit.c.id < before_id)
    with store.read() as connection:
        return [AuditEntry(**row) for row in connection.execute(query).mappings()]
