"""What happens in the fleet, in plain words and in order: the log of a machine, a roll-out or a deployment."""

from __future__ import annotations

from sqlalchemy import Connection, delete, insert, select

from agent.model.fleet import FleetEvent
from agent.store.engine import Store
from agent.store.tables import now
from agent.store.tables_fleet import fleet_events


def write(connection: Connection, kind: str, subject_id: str, text: str, *, pool: str | None = None) -> None:
    """Add an event. `kind`: `machine`, `rollout`, `deployment` or `pool`."""
    connection.execute(
        insert(fleet_events).values(
            at=now(connection), subject_kind=kind, subject_id=subject_id, pool=pool, text=text
        )
    )


def list_events(
    store: Store,
    *,
    kind: str | None = None,
    subject_id: str | None = None,
    pool: str | None = None,
    after_id: int = 0,
    limit: int = 1000,
) -> list[FleetEvent]:
    """Return the newest events after `after_id`, oldest first."""
    query = select(fleet_events).where(fleet_events.c.id > after_id)
    wanted = {"subject_kind": kind, "subject_id": subject_id, "pool": pool}
    for name, value in wanted.items():
        if value is not None:
            query = query.where(fleet_events.c[name] == value)
    query = query.order_by(fleet_events.c.id.desc()).limit(limit)
    with store.read() as connection:
        rows = connection.execute(query).mappings().all()
    return [FleetEvent(**row) for row in reversed(rows)]


def forget(connection: Connection, *, keep: int) -> int:
    """Delete all but the newest `keep` events; return how many went."""
    oldest = select(fleet_events.c.id).order_by(fleet_events.c.id.desc()).offset(keep).limit(1)
    limit = connection.execute(oldest).scalar_one_or_none()
    if limit is None:
        return 0
    return connection.execute(delete(fleet_events).where(fleet_events.c.id <= limit)).rowcount
