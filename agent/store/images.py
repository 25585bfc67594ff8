"""The catalogue of images: recorded when a bake begins, verified or failed at its end, retired by operators.

An image's state is changed by one guarded update, with its row in the audit, so that two who change it at once
do not both succeed.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, RowMapping, delete, insert, null, or_, select, update

from agent.errors import NotFound, StateConflict
from agent.model.image import Image, ImageReport, ImageState, NewImage, ReportWhen
from agent.store import audit, usage
from agent.store import prefix as by_prefix
from agent.store.engine import Store
from agent.store.tables import image_reports, images, insert_new, now

# An image in one of these may start servers.
USABLE = frozenset({ImageState.VERIFIED, ImageState.CURRENT, ImageState.PREVIOUS})


def create(connection: Connection, new: NewImage) -> None:
    """Record an image whose bake begins. Raises: StateConflict when its version is taken."""
    at = now(connection)
    made = connection.execute(
        insert_new(connection, images).values(
            id=new.id,
            version=new.version,
            provider=new.provider,
            profile=new.profile,
            base=new.base,
            state=ImageState.BAKING,
            provenance={},
            created_at=at,
            created_by=new.by,
            changed_at=at,
            changed_by=new.by,
        )
    )
    if made.rowcount == 0:
        raise StateConflict(
            f"there is an image {new.version} of profile {new.profile} at {new.provider} already; "
            "give another with --version"
        )
    _audit(connection, new.id, new.by, "bake", {"version": new.version, "provider": new.provider})


def note_provider_image(connection: Connection, image_id: str, provider_image_id: str) -> None:
    """Note what the provider calls an image, as soon as that is known."""
    connection.execute(
        update(images).where(images.c.id == image_id).values(provider_image_id=provider_image_id)
    )


def change(
    connection: Connection,
    image_id: str,
    *,
    to: ImageState,
    only_from: Collection[ImageState],
    by: str,
    reason: str | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> None:
    """Move an image to another state. Raises: NotFound; StateConflict unless it is in one of `only_from`."""
    state = connection.execute(
        select(images.c.state).where(images.c.id == image_id).with_for_update()
    ).scalar_one_or_none()
    if state is None:
        raise NotFound(f"no image {image_id!r}")
    if state not in only_from:
        raise StateConflict(
            f"image {image_id} is {state}; {to} follows only on {', '.join(sorted(only_from))}"
        )
    at = now(connection)
    values: dict[str, Any] = {"state": to, "reason": reason, "changed_at": at, "changed_by": by}
    if to is ImageState.VERIFIED:
        values["verified_at"] = at
    if provenance is not None:
        values["provenance"] = dict(provenance)
    connection.execute(update(images).where(images.c.id == image_id).values(**values))
    _audit(connection, image_id, by, str(to), {"was": state, "reason": reason})


def retire(store: Store, image_id: str, *, by: str, reason: str | None = None) -> Image:
    """Take an image out of use: no server is started from it any more.

    Raises: NotFound; StateConflict for one that a pool or a roll-out uses, or whose bake goes on.
    """
    with store.begin() as connection:
        image = read(connection, image_id, is_locked=True)
        if users := usage.to_start_from(connection, image_id):
            raise StateConflict(f"image {image.version} is in use: {'; '.join(users)}")
        change(
            connection,
            image_id,
            to=ImageState.RETIRED,
            only_from={ImageState.VERIFIED, ImageState.FAILED, ImageState.BAD},
            by=by,
            reason=reason,
        )
    return get(store, image_id)


def note_deleted(store: Store, image_id: str, *, by: str) -> None:
    """Note that the provider has an image no more."""
    with store.begin() as connection:
        connection.execute(update(images).where(images.c.id == image_id).values(provider_image_id=null()))
        _audit(connection, image_id, by, "delete", {})


def store_report(store: Store, report: ImageReport) -> None:
    """Keep what the checks said of an image; of a run that was repeated, the last."""
    key = (image_reports.c.image_id == report.image_id, image_reports.c.ran == report.ran)
    with store.begin() as connection:
        connection.execute(delete(image_reports).where(*key))
        connection.execute(
            insert(image_reports).values(
                image_id=report.image_id,
                ran=report.ran,
                junit=report.junit,
                report=dict(report.report),
                stored_at=now(connection),
            )
        )


def list_reports(store: Store, image_id: str) -> list[ImageReport]:
    """Return what the checks said of an image: on the server it was made of first."""
    query = select(image_reports).where(image_reports.c.image_id == image_id).order_by(image_reports.c.ran)
    with store.read() as connection:
        return [
            ImageReport(**dict(row) | {"ran": ReportWhen(row["ran"])})
            for row in connection.execute(query).mappings()
        ]


def get(store: Store, image_id: str) -> Image:
    """Return an image by its whole id. Raises: NotFound."""
    with store.read() as connection:
        return read(connection, image_id)


def read(connection: Connection, image_id: str, *, is_locked: bool = False) -> Image:
    """Do what `get` does, inside a transaction; locked, nobody else changes it before its end."""
    query = select(images).where(images.c.id == image_id)
    row = connection.execute(query.with_for_update() if is_locked else query).mappings().one_or_none()
    if row is None:
        raise NotFound(f"no image {image_id!r}")
    return _image(row)


def find(store: Store, word: str) -> Image:
    """Return the image whose id or version `word` is, or else whose id begins so (4 characters or more).

    A version may come again: one that failed yields to one that did not.
    Raises: NotFound; StateConflict when several fit, naming them.
    """
    fits = or_(images.c.id == word, images.c.version == word, images.c.provider_image_id == word)
    if len(word) >= by_prefix.LENGTH_MIN:
        fits |= by_prefix.begins(images.c.id, word)
    with store.read() as connection:
        rows = connection.execute(select(images).where(fits).order_by(images.c.id)).mappings().all()
    found = [_image(row) for row in rows]
    named = [image for image in found if word in (image.version, image.provider_image_id)]
    for choice in (
        [image for image in found if image.id == word],
        [image for image in named if image.state is not ImageState.FAILED],
        named,
        found,
    ):
        if len(choice) == 1:
            return choice[0]
        if choice:
            names = [f"{it.id} ({it.provider}, {it.profile})" for it in choice]
            raise StateConflict(f"several images fit {word!r}: {by_prefix.listed(names)}")
    raise NotFound(
        f"no image {word!r} (give its version, or {by_prefix.LENGTH_MIN} characters of its id or more)"
    )


def list_images(
    store: Store,
    *,
    provider: str | None = None,
    profile: str | None = None,
    states: Sequence[ImageState] = (),
    limit: int = 1000,
) -> list[Image]:
    """Return images, newest first."""
    query = select(images).order_by(images.c.created_at.desc(), images.c.id.desc()).limit(limit)
    for column, value in ((images.c.provider, provider), (images.c.profile, profile)):
        if value is not None:
            query = query.where(column == value)
    if states:
        query = query.where(images.c.state.in_(states))
    with store.read() as connection:
        return [_image(row) for row in connection.execute(query).mappings()]


def _audit(connection: Connection, image_id: str, by: str, action: str, detail: Mapping[str, Any]) -> None:
    audit.write(
        connection,
        actor=by,
        action=f"image.{action}",
        subject_kind="image",
        subject_id=image_id,
        detail=detail,
    )


def _image(row: RowMapping) -> Image:
    return Image(**dict(row) | {"state": ImageState(row["state"])})
