"""Pools: servers of one kind. Which image they are started from decides which images are `current` and `previous`."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, RowMapping, delete, null, select, update

from agent.errors import NotFound, StateConflict
from agent.model import policy as policies
from agent.model.fleet import Pool
from agent.model.image import Image, ImageState
from agent.model.policy import Policy
from agent.store import audit, images
from agent.store.engine import Store
from agent.store.tables import images as image_table
from agent.store.tables import insert_new, now
from agent.store.tables_fleet import machines, pools

_LED = frozenset({ImageState.CURRENT, ImageState.PREVIOUS})


def create(store: Store, *, name: str, provider: str, queues: Sequence[str], policy: Policy, by: str) -> Pool:
    """Make a pool. Raises: StateConflict when the name is taken, or another pool serves one of its queues."""
    with store.begin() as connection:
        _check_queues(connection, name, queues)
        at = now(connection)
        made = connection.execute(
            insert_new(connection, pools).values(
                name=name,
                provider=provider,
                queues=list(queues),
                policy=policy.model_dump(mode="json"),
                created_at=at,
                created_by=by,
                changed_at=at,
                changed_by=by,
            )
        )
        if made.rowcount == 0:
            raise StateConflict(f"there is a pool {name!r} already")
        _audit(connection, name, by, "create", {"provider": provider, "queues": list(queues)})
        return read(connection, name)


def change(
    store: Store,
    name: str,
    *,
    by: str,
    why: str | None = None,
    policy: Mapping[str, Any] | None = None,
    queues: Sequence[str] | None = None,
) -> Pool:
    """Change parts of a pool's policy, or its queues. Raises: NotFound; SettingsError; StateConflict."""
    with store.begin() as connection:
        pool = read(connection, name, is_locked=True)
        values: dict[str, Any] = {}
        if policy:
            made = policies.read({**pool.policy.model_dump(mode="json"), **policy})
            values["policy"] = made.model_dump(mode="json")
        if queues is not None:
            _check_queues(connection, name, queues)
            values["queues"] = list(queues)
        _write(connection, name, by, values)
        _audit(connection, name, by, "change", {"policy": policy, "queues": queues, "why": why})
        return read(connection, name)


def pause(store: Store, name: str, *, by: str, why: str) -> Pool:
    """Keep the controller from starting and draining servers of a pool by itself. Raises: NotFound."""
    with store.begin() as connection:
        read(connection, name, is_locked=True)
        _write(connection, name, by, {"paused_why": why, "paused_by": by})
        _audit(connection, name, by, "pause", {"why": why})
        return read(connection, name)


def resume(store: Store, name: str, *, by: str) -> Pool:
    """Let the controller act again. Raises: NotFound."""
    with store.begin() as connection:
        read(connection, name, is_locked=True)
        _write(connection, name, by, {"paused_why": null(), "paused_by": null()})
        _audit(connection, name, by, "resume", {})
        return read(connection, name)


def remove(store: Store, name: str, *, by: str) -> None:
    """Remove a pool without machines. Raises: NotFound; StateConflict."""
    with store.begin() as connection:
        pool = read(connection, name, is_locked=True)
        left = connection.execute(
            select(machines.c.id).where(machines.c.pool == name, machines.c.state != "gone").limit(1)
        ).first()
        if left is not None:
            raise StateConflict(
                f"pool {name} has machines yet; first: build-agent fleet scale {name} --floor 0 --ceiling 0"
            )
        connection.execute(delete(pools).where(pools.c.name == name))
        settle_images(connection, [pool.image_id, pool.previous_image_id], by=by)
        _audit(connection, name, by, "remove", {})


def set_image(connection: Connection, name: str, image_id: str, *, by: str, why: str | None = None) -> Pool:
    """Start a pool's servers from another image from now on; the one before becomes the way back.

    Raises: NotFound; StateConflict for an image that may not start servers, or is another provider's.
    """
    pool = read(connection, name, is_locked=True)
    if pool.image_id == image_id:
        return pool
    check_image(images.read(connection, image_id, is_locked=True), pool)
    values = {"image_id": image_id, "previous_image_id": pool.image_id}
    _write(connection, name, by, values)
    touched = [image_id, pool.image_id, pool.previous_image_id]
    settle_images(connection, touched, by=by)
    _audit(connection, name, by, "image", {"image": image_id, "was": pool.image_id, "why": why})
    return read(connection, name)


def forget_previous(connection: Connection, name: str, image_id: str, *, by: str) -> None:
    """Let an image be no way back: it was just found bad."""
    pool = read(connection, name, is_locked=True)
    if pool.previous_image_id == image_id:
        _write(connection, name, by, {"previous_image_id": null()})
    settle_images(connection, [image_id], by=by)


def check_image(image: Image, pool: Pool) -> None:
    """Raise StateConflict unless a pool's servers may be started from an image."""
    if image.provider != pool.provider:
        raise StateConflict(
            f"image {image.version} is at provider {image.provider}, pool {pool.name} at {pool.provider}"
        )
    if image.state not in images.USABLE or image.provider_image_id is None:
        told = f": {image.reason}" if image.reason else ""
        raise StateConflict(f"image {image.version} is {image.state}{told}: no server is started from it")


def settle_images(connection: Connection, image_ids: Collection[str | None], *, by: str) -> None:
    """Make images current, previous or verified, as the pools say."""
    rows = connection.execute(select(pools.c.image_id, pools.c.previous_image_id)).all()
    current = {row.image_id for row in rows}
    previous = {row.previous_image_id for row in rows}
    for image_id in sorted({it for it in image_ids if it is not None}):
        state = connection.execute(
            select(image_table.c.state).where(image_table.c.id == image_id)
        ).scalar_one_or_none()
        wanted = (
            ImageState.CURRENT
            if image_id in current
            else ImageState.PREVIOUS
            if image_id in previous
            else ImageState.VERIFIED
        )
        if state is not None and state != wanted and state in images.USABLE:
            images.change(connection, image_id, to=wanted, only_from=images.USABLE, by=by)


def get(store: Store, name: str) -> Pool:
    """Return a pool. Raises: NotFound."""
    with store.read() as connection:
        return read(connection, name)


def list_pools(store: Store) -> list[Pool]:
    """Return every pool, by name."""
    with store.read() as connection:
        return read_all(connection)


def read_all(connection: Connection) -> list[Pool]:
    """Do what `list_pools` does, inside a transaction."""
    return [_pool(row) for row in connection.execute(select(pools).order_by(pools.c.name)).mappings()]


def read(connection: Connection, name: str, *, is_locked: bool = False) -> Pool:
    """Do what `get` does, inside a transaction; locked, nobody else changes it before its end."""
    query = select(pools).where(pools.c.name == name)
    row = connection.execute(query.with_for_update() if is_locked else query).mappings().one_or_none()
    if row is None:
        known = ", ".join(connection.execute(select(pools.c.name).order_by(pools.c.name)).scalars())
        more = f"there are {known}" if known else "make one: build-agent fleet create NAME --image IMAGE"
        raise NotFound(f"no pool {name!r}; {more}")
    return _pool(row)


def _check_queues(connection: Connection, name: str, queues: Sequence[str]) -> None:
    if not queues:
        raise StateConflict("a pool serves at least one queue")
    for other in read_all(connection):
        shared = sorted(set(other.queues) & set(queues))
        if other.name != name and shared:
            raise StateConflict(
                f"queue {shared[0]} is served by pool {other.name}: its builds would count twice"
            )


def _write(connection: Connection, name: str, by: str, values: Mapping[str, Any]) -> None:
    stamped = {**values, "changed_at": now(connection), "changed_by": by}
    connection.execute(update(pools).where(pools.c.name == name).values(**stamped))


def _audit(connection: Connection, name: str, by: str, action: str, detail: Mapping[str, Any]) -> None:
    audit.write(
        connection, actor=by, action=f"pool.{action}", subject_kind="pool", subject_id=name, detail=detail
    )


def _pool(row: RowMapping) -> Pool:
    return Pool(**dict(row) | {"policy": policies.read(row["policy"])})
