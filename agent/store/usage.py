"""Who uses an image: what must end, or go over to another, before it can be taken away."""

from __future__ import annotations

from sqlalchemy import Connection, select

from agent.model.fleet import MachineState
from agent.store.tables_fleet import machines, pools, rollouts


def of(connection: Connection, image_id: str) -> list[str]:
    """Return in words who uses an image: pools, roll-outs, and servers that are there."""
    query = (
        select(machines.c.name)
        .where(machines.c.image_id == image_id, machines.c.state != MachineState.GONE)
        .order_by(machines.c.name)
    )
    servers = connection.execute(query).scalars()
    return [*to_start_from(connection, image_id), *(f"server {name}" for name in servers)]


def to_start_from(connection: Connection, image_id: str) -> list[str]:
    """Return in words who starts servers from an image or may do so again: pools and roll-outs."""
    of_pools = connection.execute(
        select(pools.c.name, pools.c.image_id)
        .where((pools.c.image_id == image_id) | (pools.c.previous_image_id == image_id))
        .order_by(pools.c.name)
    )
    used = [
        f"pool {row.name} starts its servers from it"
        if row.image_id == image_id
        else f"pool {row.name} would go back to it"
        for row in of_pools
    ]
    of_rollouts = connection.execute(
        select(rollouts.c.id, rollouts.c.pool, rollouts.c.kind)
        .where(
            rollouts.c.ended_at.is_(None),
            (rollouts.c.to_image_id == image_id) | (rollouts.c.from_image_id == image_id),
        )
        .order_by(rollouts.c.pool)
    )
    return used + [f"the {row.kind} under way in pool {row.pool} ({row.id[:8]})" for row in of_rollouts]
