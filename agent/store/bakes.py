"""Bakes: begun, owned by one session at a time, recorded phase by phase, settled.

The owner of a bake is on record as a server of its own that takes no builds: its heartbeat is the lease, its attempt
at the bake's build holds the log, and the reaper closes that attempt when the owner dies, as it does for every server.
A write about a bake changes nothing unless it is its owner's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, RowMapping, and_, case, insert, null, select, update

from agent.errors import NotFound, StateConflict
from agent.model.build import AttemptRef, BuildState
from agent.model.image import Bake, BakeState, ImageState, NewImage, Owner, Phase
from agent.store import audit, images
from agent.store import prefix as by_prefix
from agent.store.engine import Store
from agent.store.servers import OVER
from agent.store.tables import attempts, bakes, builds, insert_new, now, servers

# Where the log of a bake stands among builds. No server serves this queue.
PROJECT = "images"
QUEUE = "images"

_is_owned = and_(servers.c.session == bakes.c.session, servers.c.state.not_in(OVER))
_WITH_BEAT = select(bakes, case((_is_owned, servers.c.beat), else_=null()).label("owner_beat")).outerjoin(
    servers, servers.c.id == bakes.c.server_id
)
_UNSETTLED = (BakeState.RUNNING, BakeState.INTERRUPTED)


def server_of(bake_id: str) -> str:
    """Return the id of the server that a bake's owner is on record as."""
    return f"bake-{bake_id}"


def create(store: Store, bake_id: str, image: NewImage, options: Mapping[str, Any]) -> None:
    """Record a bake and its image, owned by nobody yet. Raises: StateConflict when the version is taken."""
    with store.begin() as connection:
        images.create(connection, image)
        at = now(connection)
        connection.execute(
            insert(bakes).values(
                id=bake_id,
                image_id=image.id,
                provider=image.provider,
                phase=Phase.LAUNCH,
                state=BakeState.INTERRUPTED,
                options=dict(options),
                made={},
                owner_process={},
                created_at=at,
                created_by=image.by,
                changed_at=at,
            )
        )


def take(store: Store, bake_id: str, owner: Owner, *, by: str) -> AttemptRef:
    """Become the owner of a bake, and begin the next attempt at the build that holds its log.

    The owner's session must be the newest that registered as the bake's server: of two who take over at once one gets
    it, and the session before can write nothing more.

    Raises: NotFound; StateConflict when the bake is settled, or another has it.
    """
    server_id = server_of(bake_id)
    with store.begin() as connection:
        is_mine = connection.execute(
            select(servers.c.id)
            .where(servers.c.id == server_id, servers.c.session == owner.session)
            .where(servers.c.state.not_in(OVER))
            .with_for_update()
        ).first()
        if is_mine is None:
            raise StateConflict(f"another works at bake {bake_id} now")
        row = _lock(connection, bake_id)
        if row["state"] not in _UNSETTLED:
            raise StateConflict(f"bake {bake_id} has ended: {row['state']}")
        number = _begin_attempt(connection, row, server_id, owner.session)
        connection.execute(
            update(bakes)
            .where(bakes.c.id == bake_id)
            .values(
                state=BakeState.RUNNING,
                error=null(),
                server_id=server_id,
                session=owner.session,
                owner_name=owner.name,
                owner_process=dict(owner.process),
                changed_at=now(connection),
            )
        )
        if number > 1:
            _audit(connection, bake_id, by, "resume", {"phase": row["phase"], "attempt": number})
        return AttemptRef(build_id=bake_id, number=number, session=owner.session)


def record(
    store: Store,
    bake_id: str,
    session: str,
    *,
    phase: Phase | None = None,
    made: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
) -> None:
    """Note how far a bake has come and what it has made. Raises: StateConflict when another owns it now."""
    given = {"phase": phase, "made": made, "options": options}
    with store.begin() as connection:
        changed = connection.execute(
            update(bakes)
            .where(bakes.c.id == bake_id, bakes.c.session == session, bakes.c.state == BakeState.RUNNING)
            .values(
                changed_at=now(connection),
                **{name: value for name, value in given.items() if value is not None},
            )
        )
        if changed.rowcount == 0:
            raise StateConflict(f"another works at bake {bake_id} now, or it has been settled")


def note_image(
    store: Store, bake_id: str, session: str, provider_image_id: str, made: Mapping[str, Any]
) -> None:
    """Note that the provider has begun to make the image, in the bake and in the catalogue. Raises as `record`."""
    record(store, bake_id, session, made=made)
    with store.begin() as connection:
        images.note_provider_image(connection, _lock(connection, bake_id)["image_id"], provider_image_id)


def interrupt(store: Store, bake_id: str, session: str, *, error: str, by: str) -> None:
    """Let go of a bake that can be resumed; nothing when it is another's."""
    with store.begin() as connection:
        changed = connection.execute(
            update(bakes)
            .where(bakes.c.id == bake_id, bakes.c.session == session, bakes.c.state == BakeState.RUNNING)
            .values(state=BakeState.INTERRUPTED, error=error, session=null(), changed_at=now(connection))
        )
        if changed.rowcount == 1:
            _audit(connection, bake_id, by, "interrupt", {"why": error})


def succeed(store: Store, bake_id: str, session: str, *, provenance: Mapping[str, Any], by: str) -> None:
    """Settle a bake whose image has passed everything: the one way to `verified`.

    Raises: StateConflict when the bake is another's.
    """
    with store.begin() as connection:
        image_id = _settle(connection, bake_id, session, BakeState.PASSED, None)
        images.change(
            connection,
            image_id,
            to=ImageState.VERIFIED,
            only_from={ImageState.BAKING},
            by=by,
            provenance=provenance,
        )
        _audit(connection, bake_id, by, "pass", {"image": image_id})


def fail(
    store: Store, bake_id: str, session: str | None, *, error: str, provenance: Mapping[str, Any], by: str
) -> None:
    """Settle a bake that has failed, and its image with it; `session` `None`: one that nobody works at.

    Raises: StateConflict when the bake is another's.
    """
    with store.begin() as connection:
        image_id = _settle(connection, bake_id, session, BakeState.FAILED, error)
        images.change(
            connection,
            image_id,
            to=ImageState.FAILED,
            only_from={ImageState.BAKING},
            by=by,
            reason=error,
            provenance=provenance,
        )
        _audit(connection, bake_id, by, "fail", {"why": error})


def note_swept(store: Store, bake_id: str, *, removed: Sequence[str], by: str) -> None:
    """Put on record that what a bake had made was removed."""
    with store.begin() as connection:
        _audit(connection, bake_id, by, "sweep", {"removed": list(removed)})


def get(store: Store, bake_id: str) -> Bake:
    """Return a bake by its whole id. Raises: NotFound."""
    with store.read() as connection:
        row = connection.execute(_WITH_BEAT.where(bakes.c.id == bake_id)).mappings().one_or_none()
    if row is None:
        raise NotFound(f"no bake {bake_id!r}")
    return _bake(row)


def find(store: Store, word: str) -> Bake:
    """Return the bake whose id begins with `word` (4 characters or more), or that of an image of that id.

    Raises: NotFound; StateConflict when several fit, naming them.
    """
    fits = bakes.c.image_id == word
    if len(word) >= by_prefix.LENGTH_MIN:
        fits |= by_prefix.begins(bakes.c.id, word)
    with store.read() as connection:
        rows = connection.execute(_WITH_BEAT.where(fits).order_by(bakes.c.id)).mappings().all()
    if not rows:
        raise NotFound(f"no bake {word!r} (give {by_prefix.LENGTH_MIN} characters of its id or more)")
    if len(rows) > 1:
        raise StateConflict(f"several bakes fit {word!r}: {by_prefix.listed([it['id'] for it in rows])}")
    return _bake(rows[0])


def list_bakes(store: Store, *, is_settled: bool | None = None, provider: str | None = None) -> list[Bake]:
    """Return bakes, newest first; only those that have ended, or have not."""
    query = _WITH_BEAT.order_by(bakes.c.created_at.desc(), bakes.c.id)
    if is_settled is not None:
        is_open = bakes.c.state.in_(_UNSETTLED)
        query = query.where(~is_open if is_settled else is_open)
    if provider is not None:
        query = query.where(bakes.c.provider == provider)
    with store.read() as connection:
        return [_bake(row) for row in connection.execute(query).mappings()]


def _settle(
    connection: Connection, bake_id: str, session: str | None, state: BakeState, error: str | None
) -> str:
    row = _lock(connection, bake_id)
    if row["state"] not in _UNSETTLED:
        raise StateConflict(f"bake {bake_id} has ended: {row['state']}")
    if session != row["session"]:
        raise StateConflict(f"another works at bake {bake_id} now")
    at = now(connection)
    connection.execute(
        update(bakes)
        .where(bakes.c.id == bake_id)
        .values(state=state, error=error, session=null(), changed_at=at, ended_at=at)
    )
    image_id: str = row["image_id"]
    return image_id


def _begin_attempt(connection: Connection, bake: RowMapping, server_id: str, session: str) -> int:
    """Make the bake's build a running one, made if it is not there, with one attempt more; return its number.

    It never waits in a queue: nobody but the bake's owner could run it.
    """
    at = now(connection)
    options = bake["options"]
    made = connection.execute(
        insert_new(connection, builds).values(
            id=bake["id"],
            project=PROJECT,
            queue=QUEUE,
            state=BuildState.RUNNING,
            definition={"project": PROJECT, "bake": {"image": bake["image_id"], **options}},
            commit=options.get("commit"),
            message=f"image {options.get('version')}, profile {options.get('profile')}, {bake['provider']}",
            created_by=bake["created_by"],
            created_at=at,
            queued_at=at,
            started_at=at,
            attempt=1,
            attempts_allowed=1,
        )
    )
    number = 1
    if made.rowcount == 0:
        following = connection.execute(
            update(builds)
            .where(builds.c.id == bake["id"], builds.c.state != BuildState.RUNNING)
            .values(
                state=BuildState.RUNNING,
                outcome=null(),
                detail=null(),
                ended_at=null(),
                attempt=builds.c.attempt + 1,
                # None is left: an attempt that is lost ends the build, and the bake waits for `--resume`.
                attempts_allowed=builds.c.attempt + 1,
                cancel_requested_at=null(),
                cancel_by=null(),
            )
            .returning(builds.c.attempt)
        ).scalar_one_or_none()
        if following is None:
            raise StateConflict(f"another works at bake {bake['id']} now: its log goes on")
        number = int(following)
    connection.execute(
        insert(attempts).values(
            build_id=bake["id"],
            number=number,
            server_id=server_id,
            session=session,
            slot=0,
            state="running",
            deploy_retry_safe=False,
            started_at=at,
        )
    )
    return number


def _lock(connection: Connection, bake_id: str) -> RowMapping:
    row = connection.execute(select(bakes).where(bakes.c.id == bake_id).with_for_update()).mappings()
    found = row.one_or_none()
    if found is None:
        raise NotFound(f"no bake {bake_id!r}")
    return found


def _audit(connection: Connection, bake_id: str, by: str, action: str, detail: Mapping[str, Any]) -> None:
    audit.write(
        connection, actor=by, action=f"bake.{action}", subject_kind="bake", subject_id=bake_id, detail=detail
    )


def _bake(row: RowMapping) -> Bake:
    values = dict(row)
    values.pop("server_id")
    return Bake(**values | {"phase": Phase(values["phase"]), "state": BakeState(values["state"])})
