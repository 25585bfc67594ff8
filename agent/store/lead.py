"""Who leads the fleet: one controller at a time, by a row with a heartbeat that is counted, as servers' are.

Whoever wants to lead sees the beat stand still for the holder's lease by its own monotonic clock, and then takes the
row from exactly that beat. Everything a leader writes is written while it holds the row: one that was taken for dead
changes nothing more.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, null, select, update

from agent.errors import StateConflict
from agent.store.engine import Store
from agent.store.tables import now
from agent.store.tables_fleet import fleet_lead


class LeadLost(StateConflict):
    """Another controller leads now."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Lead:
    """The row: `holder` is `None` when the last leader has resigned. `status` is what it told with its last beat."""

    fleet_id: str
    holder: str | None
    holder_name: str | None
    beat: int
    lease_s: float
    beat_at: datetime | None
    status: Mapping[str, Any]


def look(store: Store) -> Lead:
    """Return who leads."""
    with store.read() as connection:
        return Lead(**connection.execute(select(fleet_lead)).mappings().one())


def take(store: Store, seen: Lead, *, holder: str, name: str, lease_s: float) -> bool:
    """Lead, if nothing has changed since `seen`; whether that is so."""
    with store.begin() as connection:
        taken = connection.execute(
            update(fleet_lead)
            .where(
                fleet_lead.c.beat == seen.beat,
                fleet_lead.c.holder.is_(None) if seen.holder is None else fleet_lead.c.holder == seen.holder,
            )
            .values(
                holder=holder,
                holder_name=name,
                lease_s=lease_s,
                beat=fleet_lead.c.beat + 1,
                beat_at=now(connection),
            )
        )
        return taken.rowcount == 1


def beat(store: Store, holder: str, status: Mapping[str, Any]) -> None:
    """Say that the leader lives, and how it goes. Raises: LeadLost."""
    with store.begin() as connection:
        renewed = connection.execute(
            update(fleet_lead)
            .where(fleet_lead.c.holder == holder)
            .values(beat=fleet_lead.c.beat + 1, beat_at=now(connection), status=dict(status))
        )
        if renewed.rowcount == 0:
            raise LeadLost("another controller leads the fleet now")


def resign(store: Store, holder: str) -> None:
    """Let another lead at once; nothing if another does."""
    with store.begin() as connection:
        connection.execute(
            update(fleet_lead)
            .where(fleet_lead.c.holder == holder)
            .values(holder=null(), holder_name=null(), beat=fleet_lead.c.beat + 1)
        )


@contextmanager
def writing(store: Store, holder: str) -> Iterator[Connection]:
    """Open a transaction of the leader's: nobody can take the lead before it ends. Raises: LeadLost."""
    with store.begin() as connection:
        query = select(fleet_lead.c.fleet_id).where(fleet_lead.c.holder == holder).with_for_update()
        if connection.execute(query).first() is None:
            raise LeadLost("another controller leads the fleet now")
        yield connection
