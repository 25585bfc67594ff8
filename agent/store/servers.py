"""Servers: they register, beat, leave, and are found lost. A session is one life of an agent on a server.

Liveness is counted, not timed: whoever watches sees `beat` stand still by its own monotonic clock, so no
clock of another machine, and none that jumps, makes a server look dead.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

from sqlalchemy import Connection, RowMapping, Update, bindparam, exists, null, or_, select, update

from agent.errors import NotFound, StateConflict
from agent.model.server import BeatReply, Cancellation, OrderKind, Registration, Server, ServerState
from agent.store import audit, orders
from agent.store import prefix as by_prefix
from agent.store.engine import Store
from agent.store.tables import attempts, builds, insert_new, now, now_of, servers

# A life in one of these states is over: it can neither beat nor claim, and nothing of it runs.
OVER = frozenset({ServerState.LOST, ServerState.STOPPED, ServerState.TERMINATED})
# An agent that failed may still be ending its steps, and beats until it has; it takes nothing new.
GONE = OVER | {ServerState.FAILED}


# What runs with every heartbeat, and in every look of the leader, is put together once.
_has_running = exists().where(attempts.c.server_id == servers.c.id, attempts.c.state == "running")
_BEATS = select(servers.c.id, servers.c.session, servers.c.beat, servers.c.lease_s).where(
    servers.c.state.not_in(GONE) | ((servers.c.state == ServerState.FAILED) & _has_running)
)
_MINE = (
    select(attempts.c.build_id, attempts.c.number, builds.c.cancel_requested_at, builds.c.cancel_by)
    .join(builds, builds.c.id == attempts.c.build_id)
    .where(
        attempts.c.server_id == bindparam("of_server"),
        attempts.c.session == bindparam("of_session"),
        attempts.c.state == "running",
    )
)


class Beat(NamedTuple):
    """How far a server's heartbeat has counted, and for how long it may stand still.

    `lease_s` is the server's own, of the same life as `session`; `None` when it never said.
    """

    server_id: str
    session: str
    beat: int
    lease_s: float | None


def register(store: Store, registration: Registration) -> Server:
    """Record that a new life of a server's agent begins; every former life is over with that.

    A quarantine lasts over restarts until somebody resumes the server. A drain or a termination is done with
    when the agent that had taken it has gone; one that no agent has taken yet still stands.
    """
    identity = registration.identity
    with store.begin() as connection:
        at = now(connection)
        values = {
            "name": identity.name,
            "session": registration.session,
            "state": ServerState.STARTING,
            "state_reason": null(),
            "slots": registration.slots,
            "queues": list(registration.queues),
            "tags": dict(registration.tags),
            "image_id": identity.image_id,
            "image_version": identity.image_version,
            "agent_version": registration.agent_version,
            "lease_s": registration.lease_s,
            "host": dict(identity.host),
            "status": {},
            "beat": 0,
            "beat_at": at,
            "registered_at": at,
        }
        made = connection.execute(
            insert_new(connection, servers).values(id=identity.id, wanted=OrderKind.RESUME, **values)
        )
        if made.rowcount == 0:
            _begin_anew(connection, identity.id, values)
        audit.write(
            connection,
            actor=identity.id,
            action="server.register",
            subject_kind="server",
            subject_id=identity.id,
            detail={
                "name": identity.name,
                "session": registration.session,
                "image_version": identity.image_version,
                "agent_version": registration.agent_version,
            },
        )
        query = select(servers).where(servers.c.id == identity.id)
        return _server(connection.execute(query).mappings().one())


def _begin_anew(connection: Connection, server_id: str, values: dict[str, Any]) -> None:
    # Locked before the orders are looked at: `orders.give` writes this row first, too.
    wanted = connection.execute(
        select(servers.c.wanted).where(servers.c.id == server_id).with_for_update()
    ).scalar_one()
    is_standing = orders.begin_anew(connection, server_id)
    if wanted != OrderKind.QUARANTINE and not is_standing:
        values = values | {
            "wanted": OrderKind.RESUME,
            "wanted_note": null(),
            "wanted_by": null(),
            "drain_deadline_at": null(),
        }
    connection.execute(update(servers).where(servers.c.id == server_id).values(**values))


def beat(
    store: Store,
    *,
    server_id: str,
    session: str,
    state: ServerState,
    reason: str | None,
    status: Mapping[str, Any],
) -> BeatReply:
    """Renew the lease of a server and of all its attempts, and ask what there is to do: three statements.

    Args:
        status: what the server has to show, as JSON can hold; replaces the former.
    """
    with store.begin() as connection:
        life = {"of_server": server_id, "of_session": session}
        told = {"state": state, "state_reason": reason, "status": dict(status)}
        renewed = connection.execute(_renewing(connection.dialect.name), {**life, **told})
        if renewed.rowcount == 0:
            return BeatReply(is_current=False, orders=(), cancellations=(), live=frozenset())
        mine = connection.execute(_MINE, life).all()
        return BeatReply(
            is_current=True,
            orders=orders.read_open(connection, server_id),
            cancellations=[
                Cancellation(build_id=row.build_id, attempt=row.number, by=row.cancel_by or "")
                for row in mine
                if row.cancel_requested_at is not None
            ],
            live=frozenset((row.build_id, row.number) for row in mine),
        )


@functools.cache
def _renewing(dialect: str) -> Update:
    return (
        update(servers)
        .where(
            servers.c.id == bindparam("of_server"),
            servers.c.session == bindparam("of_session"),
            servers.c.state.not_in(OVER),
        )
        .values(beat=servers.c.beat + 1, beat_at=now_of(dialect))
    )


def leave(store: Store, *, server_id: str, session: str, state: ServerState, reason: str | None) -> None:
    """Record a life's end and why; nothing when a newer life has registered meanwhile."""
    with store.begin() as connection:
        connection.execute(
            update(servers)
            .where(servers.c.id == server_id, servers.c.session == session)
            .values(state=state, state_reason=reason, beat_at=now(connection))
        )


def mark_lost(store: Store, *, server_id: str, session: str, beat: int) -> bool:
    """Take a server for lost, if its heartbeat still stands at `beat`.

    Afterwards this life can neither beat nor claim, and only then may its attempts be closed: a beat or a
    claim at the same moment comes either before this (which then answers False, or sees the attempt) or in
    vain.
    """
    with store.begin() as connection:
        marked = connection.execute(
            update(servers)
            .where(
                servers.c.id == server_id,
                servers.c.session == session,
                servers.c.beat == beat,
                servers.c.state != ServerState.LOST,
            )
            .values(state=ServerState.LOST, state_reason="no heartbeat")
        )
        return marked.rowcount == 1


def beats(store: Store) -> list[Beat]:
    """Return how far the heartbeats have counted, of the servers that should have one.

    Those are the ones that have not left, and the ones that failed while an attempt is on record as running.
    """
    with store.read() as connection:
        return read_beats(connection)


def read_beats(connection: Connection) -> list[Beat]:
    """Do what `beats` does, inside a transaction."""
    return [Beat(*row) for row in connection.execute(_BEATS)]


def get(store: Store, key: str) -> Server:
    """Return the server whose id or name is `key`, or else the one whose id begins so (4 characters or more).

    Names may come again: a server that is there goes before those that are gone.
    Raises: NotFound; StateConflict when several fit, naming them.
    """
    fits = or_(servers.c.id == key, servers.c.name == key)
    if len(key) >= by_prefix.LENGTH_MIN:
        fits |= by_prefix.begins(servers.c.id, key)
    with store.read() as connection:
        rows = connection.execute(select(servers).where(fits).order_by(servers.c.id)).mappings().all()
    found = [_server(row) for row in rows]
    named = [server for server in found if server.name == key]
    for choice in (
        [server for server in found if server.id == key],
        [server for server in named if server.state not in GONE],
        named,
        found,
    ):
        if len(choice) == 1:
            return choice[0]
        if choice:
            raise StateConflict(f"several servers fit {key!r}: {by_prefix.listed([it.id for it in choice])}")
    raise NotFound(
        f"no server {key!r} (give its name, or {by_prefix.LENGTH_MIN} characters of its id or more)"
    )


def list_servers(store: Store) -> list[Server]:
    """Return every server on record, those that are gone included, by name."""
    with store.read() as connection:
        rows = connection.execute(select(servers).order_by(servers.c.name, servers.c.id)).mappings()
        return [_server(row) for row in rows]


def _server(row: RowMapping) -> Server:
    values = dict(row)
    return Server(**values | {"state": ServerState(values["state"]), "wanted": OrderKind(values["wanted"])})
