"""Roll-outs and roll-backs of images: one at a time in a pool; people may pause, hasten and abort them."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, RowMapping, insert, select, update

from agent.errors import NotFound, StateConflict
from agent.model.fleet import Rollout, RolloutKind, RolloutState
from agent.store import audit, fleet_events, images, pools
from agent.store import prefix as by_prefix
from agent.store.engine import Store
from agent.store.tables import now
from agent.store.tables_fleet import rollouts


def begin(
    store: Store, pool_name: str, image_id: str, *, kind: RolloutKind, by: str, why: str | None = None
) -> Rollout:
    """Begin to bring an image to a pool. A roll-back takes the place of a roll-out that is under way.

    A pool without an image has nothing to compare with: its first image is simply taken.
    Raises: NotFound; StateConflict.
    """
    with store.begin() as connection:
        return begin_in(connection, pool_name, image_id, kind=kind, by=by, why=why)


def begin_in(
    connection: Connection, pool_name: str, image_id: str, *, kind: RolloutKind, by: str, why: str | None
) -> Rollout:
    """Do what `begin` does, inside a transaction."""
    pool = pools.read(connection, pool_name, is_locked=True)
    image = images.read(connection, image_id, is_locked=True)
    pools.check_image(image, pool)
    standing = read_open(connection, pool_name)
    if standing is not None:
        if kind is not RolloutKind.ROLLBACK:
            raise StateConflict(
                f"pool {pool_name} has a {standing.kind} under way ({standing.id[:8]}, {standing.state}); "
                f"to end it: build-agent fleet abort {pool_name}"
            )
        move(connection, standing, RolloutState.ABORTED, reason=f"a roll-back was asked for by {by}", by=by)
    elif pool.image_id == image_id:
        raise StateConflict(f"pool {pool_name} starts its servers from image {image.version} already")
    if kind is RolloutKind.ROLLBACK or pool.image_id is None:
        state = RolloutState.ROLLING
        before = pools.set_image(connection, pool_name, image_id, by=by, why=why).previous_image_id
    else:
        state, before = RolloutState.CANARY, pool.image_id
    at = now(connection)
    rollout_id = uuid.uuid4().hex
    connection.execute(
        insert(rollouts).values(
            id=rollout_id,
            pool=pool_name,
            kind=kind,
            from_image_id=before,
            to_image_id=image_id,
            state=state,
            is_paused=False,
            is_hastened=False,
            evidence={},
            reason=why,
            created_at=at,
            created_by=by,
            changed_at=at,
        )
    )
    told = f"{kind} of image {image.version} begun by {by}" + (f": {why}" if why else "")
    fleet_events.write(connection, "rollout", rollout_id, told, pool=pool_name)
    _audit(connection, rollout_id, by, "begin", {"kind": kind, "pool": pool_name, "to": image_id, "why": why})
    return read(connection, rollout_id)


def move(
    connection: Connection, rollout: Rollout, to: RolloutState, *, reason: str, by: str = "fleet"
) -> None:
    """Move a roll-out on, or end it, in the leader's or an operator's transaction.

    Raises: StateConflict when it has moved meanwhile.
    """
    ended = {"ended_at": now(connection)} if to.is_over else {}
    _change(connection, rollout, {"state": to, "reason": reason, **ended})
    told = f"{rollout.state} -> {to}: {reason}"
    fleet_events.write(connection, "rollout", rollout.id, told, pool=rollout.pool)
    _audit(connection, rollout.id, by, str(to), {"was": rollout.state, "why": reason})


def check_open(connection: Connection, rollout: Rollout) -> None:
    """Hold a roll-out as it was seen. Raises: StateConflict when it has moved."""
    _change(connection, rollout, {})


def abort(store: Store, pool_name: str, *, by: str, why: str) -> Rollout:
    """Give up a pool's roll-out: its image is not taken for bad, and the pool goes back to the one before.

    Raises: NotFound; StateConflict when it goes back already.
    """
    with store.begin() as connection:
        rollout = need_open(connection, pool_name)
        if rollout.state is RolloutState.GOING_BACK:
            raise StateConflict(f"roll-out {rollout.id[:8]} goes back already: {rollout.reason}")
        if rollout.state is RolloutState.ROLLING and rollout.from_image_id is not None:
            pools.set_image(connection, pool_name, rollout.from_image_id, by=by, why=why)
        move(connection, rollout, RolloutState.GOING_BACK, reason=f"aborted by {by}: {why}", by=by)
        return read(connection, rollout.id)


def note_evidence(
    connection: Connection, rollout: Rollout, evidence: Mapping[str, Any], told: str | None
) -> None:
    """Keep what a roll-out is judged by; `told` is news for its log."""
    _change(connection, rollout, {"evidence": dict(evidence)})
    if told is not None:
        fleet_events.write(connection, "rollout", rollout.id, told, pool=rollout.pool)


def steer(
    store: Store,
    pool_name: str,
    *,
    by: str,
    paused: bool | None = None,
    hastened: bool | None = None,
    why: str | None = None,
) -> Rollout:
    """Pause a pool's roll-out, let it go on, or let it do without further trial. Raises: NotFound."""
    with store.begin() as connection:
        rollout = need_open(connection, pool_name)
        given = {"is_paused": paused, "is_hastened": hastened}
        values = {name: value for name, value in given.items() if value is not None}
        _change(connection, rollout, values)
        words = "hastened" if paused is None else "paused" if paused else "goes on"
        told = f"{words} by {by}" + (f": {why}" if why else "")
        fleet_events.write(connection, "rollout", rollout.id, told, pool=pool_name)
        _audit(connection, rollout.id, by, "steer", {"what": words, "why": why})
        return read(connection, rollout.id)


def need_open(connection: Connection, pool_name: str) -> Rollout:
    """Return a pool's open roll-out, locked. Raises: NotFound."""
    pools.read(connection, pool_name, is_locked=True)
    rollout = read_open(connection, pool_name)
    if rollout is None:
        raise NotFound(f"pool {pool_name} has no roll-out under way")
    return rollout


def get(store: Store, rollout_id: str) -> Rollout:
    """Return a roll-out by its id or the beginning of it. Raises: NotFound; StateConflict for several."""
    with store.read() as connection:
        query = select(rollouts.c.id).where(by_prefix.begins(rollouts.c.id, rollout_id))
        found = connection.execute(query).scalars().all()
        if not rollout_id or not found:
            raise NotFound(f"no roll-out {rollout_id!r}")
        if len(found) > 1:
            raise StateConflict(f"several roll-outs fit {rollout_id!r}: {by_prefix.listed(found)}")
        return read(connection, found[0])


def list_rollouts(store: Store, *, pool: str | None = None, limit: int = 100) -> list[Rollout]:
    """Return roll-outs, newest first."""
    query = select(rollouts).order_by(rollouts.c.created_at.desc(), rollouts.c.id).limit(limit)
    if pool is not None:
        query = query.where(rollouts.c.pool == pool)
    with store.read() as connection:
        return [_rollout(row) for row in connection.execute(query).mappings()]


def read(connection: Connection, rollout_id: str) -> Rollout:
    """Return a roll-out by its whole id."""
    query = select(rollouts).where(rollouts.c.id == rollout_id)
    return _rollout(connection.execute(query).mappings().one())


def read_open(connection: Connection, pool_name: str) -> Rollout | None:
    """Return the roll-out that a pool has under way."""
    query = select(rollouts).where(rollouts.c.pool == pool_name, rollouts.c.ended_at.is_(None))
    row = connection.execute(query).mappings().one_or_none()
    return None if row is None else _rollout(row)


def _change(connection: Connection, rollout: Rollout, values: Mapping[str, Any]) -> None:
    changed = connection.execute(
        update(rollouts)
        .where(rollouts.c.id == rollout.id, rollouts.c.state == rollout.state, rollouts.c.ended_at.is_(None))
        .values(**values, changed_at=now(connection))
    )
    if changed.rowcount == 0:
        raise StateConflict(f"roll-out {rollout.id[:8]} has moved on from {rollout.state}")


def _audit(connection: Connection, rollout_id: str, by: str, action: str, detail: Mapping[str, Any]) -> None:
    audit.write(
        connection,
        actor=by,
        action=f"rollout.{action}",
        subject_kind="rollout",
        subject_id=rollout_id,
        detail=detail,
    )


def _rollout(row: RowMapping) -> Rollout:
    return Rollout(**dict(row) | {"kind": RolloutKind(row["kind"]), "state": RolloutState(row["state"])})
