"""Machines that the fleet has asked for: on record before they are launched, moved from state to state, accounted for."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, RowMapping, delete, insert, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite

from agent.errors import NotFound, StateConflict
from agent.model.fleet import FleetMachine, Hours, MachineState, Purpose
from agent.store import audit, fleet_events
from agent.store.engine import Store
from agent.store.tables import now
from agent.store.tables_fleet import machines, server_hours

_COLUMNS = [it for it in machines.c if it.name != "accounted_at"]
_HOUR = timedelta(hours=1)
_KEPT = timedelta(days=90)
# What the hours of a machine that leaves a state count as, those since the last account.
_SPENT = {
    MachineState.WANTED: "booting",
    MachineState.BOOTING: "booting",
    MachineState.SERVING: "accepting",
    MachineState.LEAVING: "leaving",
    MachineState.TERMINATING: "ending",
}


def ask(
    connection: Connection,
    *,
    pool: str,
    provider: str,
    image_id: str,
    count: int,
    purpose: Purpose,
    by: str,
    launch_limit_s: float,
    reason: str | None = None,
    rollout_id: str | None = None,
) -> list[str]:
    """Put machines on record that are to be launched; return their ids."""
    at = connection.execute(select(now(connection))).scalar_one()
    ids = [uuid.uuid4().hex for _ in range(count)]
    if not ids:
        return []
    connection.execute(
        insert(machines),
        [
            {
                "id": it,
                "pool": pool,
                "provider": provider,
                "name": f"{pool[:40]}-{it[:8]}",
                "image_id": image_id,
                "state": MachineState.WANTED,
                "purpose": purpose,
                "reason": reason,
                "rollout_id": rollout_id,
                "created_at": at,
                "created_by": by,
                "changed_at": at,
                "deadline_at": at + timedelta(seconds=launch_limit_s),
                "accounted_at": at,
            }
            for it in ids
        ],
    )
    for it in ids:
        fleet_events.write(connection, "machine", it, f"asked for by {by}: {reason or purpose}", pool=pool)
    audit.write(
        connection,
        actor=by,
        action="machine.start",
        subject_kind="pool",
        subject_id=pool,
        detail={"count": count, "image": image_id, "purpose": purpose, "why": reason, "machines": ids[:100]},
    )
    return ids


def adopt(
    connection: Connection,
    *,
    pool: str,
    provider: str,
    name: str,
    provider_machine_id: str,
    image_id: str | None,
    boot_limit_s: float,
) -> str:
    """Put on record a machine that something else has started for a pool, as an Auto Scaling group does."""
    at = connection.execute(select(now(connection))).scalar_one()
    machine_id = uuid.uuid4().hex
    connection.execute(
        insert(machines).values(
            id=machine_id,
            pool=pool,
            provider=provider,
            name=name,
            provider_machine_id=provider_machine_id,
            image_id=image_id,
            state=MachineState.BOOTING,
            purpose=Purpose.GROUP,
            created_at=at,
            created_by="group",
            changed_at=at,
            deadline_at=at + timedelta(seconds=boot_limit_s),
            accounted_at=at,
        )
    )
    fleet_events.write(connection, "machine", machine_id, "started by the group", pool=pool)
    return machine_id


def move(
    connection: Connection,
    machine: FleetMachine,
    to: MachineState,
    *,
    reason: str | None = None,
    fault: str | None = None,
    limit_s: float | None = None,
    provider_machine_id: str | None = None,
    server_id: str | None = None,
) -> bool:
    """Move a machine from the state it was seen in to another; whether it still was in that state.

    Args:
        limit_s: how long the new state may last.
    """
    at = connection.execute(select(now(connection))).scalar_one()
    values: dict[str, Any] = {
        "state": to,
        "changed_at": at,
        "deadline_at": None if limit_s is None else at + timedelta(seconds=limit_s),
    }
    given = {
        "reason": reason,
        "fault": fault,
        "provider_machine_id": provider_machine_id,
        "server_id": server_id,
    }
    values |= {name: value for name, value in given.items() if value is not None}
    if to is MachineState.SERVING and machine.served_at is None:
        values["served_at"] = at
    if to is not machine.state and machine.state in _SPENT:
        # Only one that stands idle is told to leave.
        account(connection, {machine.id: (_SPENT[machine.state], to is MachineState.LEAVING)})
    if to is MachineState.GONE:
        values["ended_at"] = at
    moved = connection.execute(
        update(machines)
        .where(machines.c.id == machine.id, machines.c.state == machine.state)
        .values(**values)
    )
    if moved.rowcount == 0:
        return False
    if to is not machine.state:
        told = fault or reason
        text = f"{machine.state} -> {to}" + (f": {told}" if told else "")
        fleet_events.write(connection, "machine", machine.id, text, pool=machine.pool)
    return True


def link(connection: Connection, machine_id: str, server_id: str) -> None:
    """Note which server a machine has become."""
    connection.execute(update(machines).where(machines.c.id == machine_id).values(server_id=server_id))


def end_trial(connection: Connection, rollout_id: str) -> None:
    """Take the machines that tried a roll-out's image for servers like others."""
    connection.execute(
        update(machines)
        .where(machines.c.rollout_id == rollout_id, machines.c.purpose == Purpose.CANARY)
        .values(purpose=Purpose.SCALE)
    )


def get(store: Store, key: str) -> FleetMachine:
    """Return the newest machine of that id or name, or that is that server. Raises: NotFound."""
    fits = or_(machines.c.id == key, machines.c.name == key, machines.c.server_id == key)
    query = select(*_COLUMNS).where(fits).order_by(machines.c.created_at.desc()).limit(1)
    with store.read() as connection:
        row = connection.execute(query).mappings().one_or_none()
    if row is None:
        raise NotFound(f"no machine {key!r}")
    return _machine(row)


def list_machines(
    store: Store, *, pool: str | None = None, with_gone: bool = False, limit: int = 10_000
) -> list[FleetMachine]:
    """Return machines, newest first."""
    with store.read() as connection:
        return read_machines(connection, pool=pool, with_gone=with_gone, limit=limit)


def read_machines(
    connection: Connection, *, pool: str | None = None, with_gone: bool = False, limit: int = 100_000
) -> list[FleetMachine]:
    """Do what `list_machines` does, inside a transaction."""
    query = select(*_COLUMNS).order_by(machines.c.created_at.desc(), machines.c.id).limit(limit)
    if pool is not None:
        query = query.where(machines.c.pool == pool)
    if not with_gone:
        query = query.where(machines.c.state != MachineState.GONE)
    return [_machine(row) for row in connection.execute(query).mappings()]


def failures_since(
    connection: Connection, pool: str, image_id: str, *, limit: int
) -> tuple[int, datetime | None]:
    """Return how many of an image's newest machines in a pool never served, one after the other, and when the last."""
    query = (
        select(machines.c.fault, machines.c.served_at, machines.c.changed_at)
        .where(
            machines.c.pool == pool,
            machines.c.image_id == image_id,
            or_(machines.c.fault.is_not(None), machines.c.served_at.is_not(None)),
        )
        .order_by(machines.c.created_at.desc(), machines.c.id)
        .limit(limit)
    )
    count, last_at = 0, None
    for row in connection.execute(query):
        if row.served_at is not None:
            break
        count += 1
        last_at = max(row.changed_at, last_at) if last_at else row.changed_at
    return count, last_at


def request_end(connection: Connection, machine: FleetMachine, *, by: str, why: str) -> None:
    """Have a machine ended by the controller, whatever it does. Raises: StateConflict when it is gone."""
    if machine.state is MachineState.GONE:
        raise StateConflict(f"machine {machine.name} is gone")
    if machine.state is not MachineState.TERMINATING:
        move(connection, machine, MachineState.TERMINATING, reason=f"asked by {by}: {why}", limit_s=0)
    audit.write(
        connection,
        actor=by,
        action="machine.terminate",
        subject_kind="machine",
        subject_id=machine.id,
        detail={"name": machine.name, "why": why},
    )


def forget(connection: Connection) -> int:
    """Delete what has been gone for longer than anything is judged by; return how many went. Hours stay."""
    at = connection.execute(select(now(connection))).scalar_one()
    old = (machines.c.state == MachineState.GONE) & (machines.c.ended_at < at - _KEPT)
    return connection.execute(delete(machines).where(old)).rowcount


# Hours.


def account(connection: Connection, states: Mapping[str, tuple[str, bool]]) -> None:
    """Add the time since the last account to the hours of machines.

    Args:
        states: of each machine, by id, what it has been, and whether it stood idle.
    """
    at: datetime = connection.execute(select(now(connection))).scalar_one()
    sums: dict[tuple[datetime, str, str, str], list[float]] = {}
    ids = list(states)
    for some in (ids[start : start + 500] for start in range(0, len(ids), 500)):
        of_some = machines.c.id.in_(some)
        query = select(machines.c.id, machines.c.pool, machines.c.image_id, machines.c.accounted_at)
        for row in connection.execute(query.where(of_some)):
            state, is_idle = states[row.id]
            for hour, seconds in _by_hour(row.accounted_at, at):
                key = (hour, row.pool, row.image_id or "", state)
                held = sums.setdefault(key, [0.0, 0.0])
                held[0] += seconds
                held[1] += seconds if is_idle else 0.0
        connection.execute(update(machines).where(of_some).values(accounted_at=at))
    for (hour, pool, image_id, state), (seconds, idle) in sorted(sums.items()):
        _add_hours(connection, Hours(
            hour=hour, pool=pool, image_id=image_id, state=state, seconds=seconds, idle_seconds=idle
        ))  # fmt: skip


def list_hours(store: Store, *, since: datetime, pool: str | None = None) -> list[Hours]:
    """Return what machines have spent since an instant, by hour, pool, image and state."""
    query = select(server_hours).where(server_hours.c.hour >= since)
    if pool is not None:
        query = query.where(server_hours.c.pool == pool)
    order = (server_hours.c.hour, server_hours.c.pool, server_hours.c.image_id, server_hours.c.state)
    with store.read() as connection:
        return [
            Hours(**dict(row) | {"image_id": row["image_id"] or None})
            for row in connection.execute(query.order_by(*order)).mappings()
        ]


def sum_hours(found: Sequence[Hours], *by: str) -> dict[tuple[str, ...], tuple[float, float]]:
    """Return (hours, idle hours) by fields of `Hours`."""
    sums: dict[tuple[str, ...], tuple[float, float]] = {}
    for it in found:
        key = tuple(str(getattr(it, name) or "-") for name in by)
        hours, idle = sums.get(key, (0.0, 0.0))
        sums[key] = (hours + it.seconds / 3600, idle + it.idle_seconds / 3600)
    return sums


def _by_hour(start: datetime, end: datetime) -> list[tuple[datetime, float]]:
    parts = []
    while start < end:
        hour = start.replace(minute=0, second=0, microsecond=0)
        until = min(end, hour + _HOUR)
        parts.append((hour, (until - start).total_seconds()))
        start = until
    return parts


def _add_hours(connection: Connection, it: Hours) -> None:
    make = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    statement: Any = make(server_hours).values(
        hour=it.hour, pool=it.pool, image_id=it.image_id, state=it.state,
        seconds=it.seconds, idle_seconds=it.idle_seconds,
    )  # fmt: skip
    connection.execute(
        statement.on_conflict_do_update(
            index_elements=["hour", "pool", "image_id", "state"],
            set_={
                "seconds": server_hours.c.seconds + it.seconds,
                "idle_seconds": server_hours.c.idle_seconds + it.idle_seconds,
            },
        )
    )


def _machine(row: RowMapping) -> FleetMachine:
    return FleetMachine(
        **dict(row) | {"state": MachineState(row["state"]), "purpose": Purpose(row["purpose"])}
    )
