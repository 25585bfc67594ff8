"""Builds: made, claimed, cancelled, retried, found. What ends them is in `attempts`.

Every change locks the build's row first (PostgreSQL) or is alone (SQLite), so that a claim, a cancel, an end
and a retry of one build happen one after the other. Rows are locked in the order servers, builds, attempts,
steps, deploy_locks everywhere in this package; that order is why no two of its transactions wait for each
other.
"""

from __future__ import annotations

import functools
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import (
    Connection,
    RowMapping,
    UpdateBase,
    bindparam,
    func,
    insert,
    literal,
    null,
    select,
    tuple_,
    update,
)

from agent.errors import NotFound, StateConflict
from agent.model.build import AttemptRef, Build, BuildState, Claim, NewBuild
from agent.model.outcome import Outcome
from agent.model.server import OrderKind
from agent.store import audit
from agent.store import prefix as by_prefix
from agent.store.engine import Store
from agent.store.servers import GONE
from agent.store.tables import UtcDateTime, attempts, builds, insert_new, now, now_of, printable, servers

_RAW_LENGTH_MAX = 16_384


_QUEUED = (
    select(builds.c.id, builds.c.queue, builds.c.queued_at)
    .where(builds.c.state == BuildState.QUEUED)
    .order_by(builds.c.queued_at, builds.c.id)
    .limit(bindparam("at_most"))
)


class QueuedBuild(NamedTuple):
    """A build that waits, as the sweep needs it."""

    id: str
    queue: str
    queued_at: datetime


def create(store: Store, build: NewBuild) -> bool:
    """Record a build, queued.

    Returns: False when a build of that id exists already; nothing has changed then. So a submit whose answer
        was lost may be sent again.
    """
    with store.begin() as connection:
        at = now(connection)
        made = connection.execute(
            insert_new(connection, builds).values(
                id=build.id,
                project=build.project,
                queue=build.queue,
                state=BuildState.QUEUED,
                definition=dict(build.definition),
                branch=build.branch,
                commit=build.commit,
                message=build.message,
                created_by=build.created_by,
                created_at=at,
                queued_at=at,
                attempt=0,
                attempts_allowed=build.attempts_allowed,
            )
        )
        return made.rowcount == 1


def get(store: Store, build_id: str) -> Build:
    """Return a build by its whole id. Raises: NotFound."""
    with store.read() as connection:
        row = connection.execute(select(builds).where(builds.c.id == build_id)).mappings().one_or_none()
    if row is None:
        raise NotFound(f"no build {build_id!r}")
    return _build(row)


def find(store: Store, prefix: str) -> Build:
    """Return the one build whose id is, or else begins with, `prefix` (4 characters or more).

    Raises: NotFound; StateConflict when several begin so, naming them.
    """
    query = select(builds).where(by_prefix.begins(builds.c.id, prefix)).order_by(builds.c.id)
    with store.read() as connection:
        rows = connection.execute(query.limit(by_prefix.SHOWN + 1)).mappings().all()
    if rows and rows[0]["id"] == prefix:
        return _build(rows[0])
    if not rows or len(prefix) < by_prefix.LENGTH_MIN:
        raise NotFound(f"no build {prefix!r} (give {by_prefix.LENGTH_MIN} characters of its id or more)")
    if len(rows) > 1:
        raise StateConflict(
            f"several builds begin with {prefix!r}: {by_prefix.listed([row['id'] for row in rows])}"
        )
    return _build(rows[0])


def list_builds(
    store: Store,
    *,
    state: BuildState | None = None,
    outcome: Outcome | None = None,
    queue: str | None = None,
    project: str | None = None,
    before: tuple[datetime, str] | None = None,
    limit: int = 50,
) -> list[Build]:
    """Return builds, newest first; `before` is (created_at, id) of the last one on the page before."""
    query = select(builds).order_by(builds.c.created_at.desc(), builds.c.id.desc()).limit(limit)
    wanted = {"state": state, "outcome": outcome, "queue": queue, "project": project}
    for name, value in wanted.items():
        if value is not None:
            query = query.where(builds.c[name] == value)
    if before is not None:
        created_at, build_id = before
        last = tuple_(literal(created_at, UtcDateTime()), literal(build_id))
        query = query.where(tuple_(builds.c.created_at, builds.c.id) < last)
    with store.read() as connection:
        return [_build(row) for row in connection.execute(query).mappings()]


def claim(store: Store, build_id: str, *, server_id: str, session: str, slot: int) -> Claim | None:
    """Win a build for a slot, or not: of any number of callers at once, exactly one gets a `Claim`.

    The server's row is held against the reaper: a server is taken for lost either before this (no claim) or
    after it (the reaper then finds the new attempt and closes it).

    Returns: None when the build is not there, not queued or to be cancelled, or when this life of the server
        is over or has been told to take nothing new. After StoreUnavailable the claim may have been made, if the
        connection broke in the commit: the attempt then shows in `BeatReply.live` and is to be released.
    """
    with store.begin() as connection:
        win, begin = _claiming(connection.dialect.name)
        life = {"of_build": build_id, "of_server": server_id, "of_session": session}
        won = connection.execute(win, life).one_or_none()
        if won is None:
            return None
        ref = AttemptRef(build_id=build_id, number=won.attempt, session=session)
        attempt = {"build_id": build_id, "number": ref.number, "server_id": server_id, "session": session}
        connection.execute(begin, attempt | {"slot": slot})
        return Claim(
            ref=ref,
            definition=won.definition,
            queue=won.queue,
            project=won.project,
            branch=won.branch,
            commit=won.commit,
            queued_at=won.queued_at,
        )


def is_waiting(store: Store, build_id: str) -> bool:
    """Whether a build is queued and may be claimed."""
    query = select(builds.c.id).where(
        builds.c.id == build_id,
        builds.c.state == BuildState.QUEUED,
        builds.c.cancel_requested_at.is_(None),
    )
    with store.read() as connection:
        return connection.execute(query).first() is not None


def refuse(store: Store, build_id: str, *, project: str, queue: str, reason: str, raw: str | None) -> None:
    """Put on record that a job was refused, so that whoever sent it sees why.

    A queued build of that id ends as refused; one that runs or has ended is left alone: the job was a forged
    or late copy. Otherwise an ended build is made, with up to 16 KiB of `raw` in place of a definition.
    """
    with store.begin() as connection:
        at = now(connection)
        ended = {
            "state": BuildState.ENDED,
            "outcome": Outcome.REFUSED,
            "detail": reason,
            "ended_at": at,
        }
        made = connection.execute(
            insert_new(connection, builds).values(
                id=build_id,
                project=project,
                queue=queue,
                definition={} if raw is None else {"raw": printable(raw[:_RAW_LENGTH_MAX])},
                created_by="",
                created_at=at,
                queued_at=at,
                attempt=0,
                attempts_allowed=0,
                **ended,
            )
        )
        if made.rowcount == 0:
            connection.execute(
                update(builds)
                .where(builds.c.id == build_id, builds.c.state == BuildState.QUEUED)
                .values(**ended)
            )


def request_cancel(store: Store, build_id: str, *, by: str, why: str = "") -> str:
    """Cancel a build: one that is queued ends here and now, one that runs hears of it with the next beat.

    Returns: "cancelled" or "requested". Raises: NotFound; StateConflict when it has ended.
    """
    with store.begin() as connection:
        build = _lock(connection, build_id)
        if build["state"] == BuildState.ENDED:
            raise StateConflict(f"build {build_id} has already ended ({build['outcome']})")
        at = now(connection)
        values: dict[str, Any] = {}
        if build["cancel_requested_at"] is None:
            values |= {"cancel_requested_at": at, "cancel_by": by}
        if build["state"] == BuildState.QUEUED:
            detail = f"cancelled by {by} before it began" + (f": {why}" if why else "")
            values |= {
                "state": BuildState.ENDED,
                "outcome": Outcome.CANCELLED,
                "detail": detail,
                "ended_at": at,
            }
        if values:
            connection.execute(update(builds).where(builds.c.id == build_id).values(**values))
        result = "cancelled" if build["state"] == BuildState.QUEUED else "requested"
        audit.write(
            connection,
            actor=by,
            action="build.cancel",
            subject_kind="build",
            subject_id=build_id,
            detail={"why": why or None, "result": result},
        )
        return result


def retry(store: Store, build_id: str, *, by: str, max_attempts: int, force: bool = False) -> Build:
    """Queue an ended build again, with `max_attempts` attempts more; deploys that were lost included.

    Raises: NotFound; StateConflict unless it has ended, and for a passed one unless `force`.
    """
    with store.begin() as connection:
        build = _lock(connection, build_id)
        if build["state"] != BuildState.ENDED:
            raise StateConflict(f"build {build_id} is {build['state']}; only an ended build can be retried")
        if build["outcome"] == Outcome.PASSED and not force:
            raise StateConflict(f"build {build_id} has passed; retry it with force if you mean it")
        row = connection.execute(
            update(builds)
            .where(builds.c.id == build_id)
            .values(
                state=BuildState.QUEUED,
                outcome=null(),
                detail=null(),
                ended_at=null(),
                queued_at=now(connection),
                attempts_allowed=builds.c.attempt + max_attempts,
                cancel_requested_at=null(),
                cancel_by=null(),
            )
            .returning(builds)
        )
        audit.write(
            connection,
            actor=by,
            action="build.retry",
            subject_kind="build",
            subject_id=build_id,
            detail={"was": build["outcome"]},
        )
        return _build(row.mappings().one())


def queued(store: Store, *, limit: int = 10_000) -> list[QueuedBuild]:
    """Return the builds that wait, oldest first."""
    with store.read() as connection:
        return read_queued(connection, limit=limit)


def read_queued(connection: Connection, *, limit: int = 10_000) -> list[QueuedBuild]:
    """Do what `queued` does, inside a transaction."""
    return [QueuedBuild(*row) for row in connection.execute(_QUEUED, {"at_most": limit})]


def count_by_state(store: Store) -> dict[BuildState, int]:
    """Return how many builds wait and run. Ended ones are not counted: that would read all of history."""
    unfinished = (BuildState.QUEUED, BuildState.RUNNING)
    query = (
        select(builds.c.state, func.count()).where(builds.c.state.in_(unfinished)).group_by(builds.c.state)
    )
    with store.read() as connection:
        counted = {BuildState(state): count for state, count in connection.execute(query)}
    return {state: counted.get(state, 0) for state in unfinished}


def typical_duration_s(store: Store, project: str) -> float | None:
    """Return the median seconds that a project's last few passed attempts ran; `None` when there are none."""
    from statistics import median  # only here: with decimal and fractions it is larger than this module

    query = (
        select(attempts.c.started_at, attempts.c.ended_at)
        .join(builds, builds.c.id == attempts.c.build_id)
        .where(builds.c.project == project, attempts.c.outcome == Outcome.PASSED)
        .order_by(builds.c.created_at.desc())
        .limit(5)
    )
    with store.read() as connection:
        spans = [(row.ended_at - row.started_at).total_seconds() for row in connection.execute(query)]
    return median(spans) if spans else None


@functools.cache
def _claiming(dialect: str) -> tuple[UpdateBase, UpdateBase]:
    """Return the two statements of a claim, put together once: every build of every slot comes this way.

    The first makes a queued build that nobody cancelled a running one, its next attempt counted, if the server's
    life goes on; the second begins the attempt.
    """
    is_alive = (
        select(servers.c.id)
        .where(
            servers.c.id == bindparam("of_server"),
            servers.c.session == bindparam("of_session"),
            servers.c.state.not_in(GONE),
            # An order counts from the moment it is given, not from when the server hears of it.
            servers.c.wanted == OrderKind.RESUME,
        )
        # Asks for no row of `builds`, so PostgreSQL answers, and locks, this one first.
        .with_for_update(read=True)
    )
    win = (
        update(builds)
        .where(
            builds.c.id == bindparam("of_build"),
            builds.c.state == BuildState.QUEUED,
            builds.c.cancel_requested_at.is_(None),
            is_alive.exists(),
        )
        .values(
            state=BuildState.RUNNING,
            attempt=builds.c.attempt + 1,
            started_at=func.coalesce(builds.c.started_at, now_of(dialect)),
        )
        .returning(
            builds.c.attempt,
            builds.c.definition,
            builds.c.queue,
            builds.c.project,
            builds.c.branch,
            builds.c.commit,
            builds.c.queued_at,
        )
    )
    begin = insert(attempts).values(state="running", deploy_retry_safe=False, started_at=now_of(dialect))
    return win, begin


def _lock(connection: Connection, build_id: str) -> RowMapping:
    row = connection.execute(
        select(builds.c.state, builds.c.outcome, builds.c.cancel_requested_at)
        .where(builds.c.id == build_id)
        .with_for_update()
    )
    found = row.mappings().one_or_none()
    if found is None:
        raise NotFound(f"no build {build_id!r}")
    return found


def _build(row: RowMapping) -> Build:
    values = dict(row)
    values["state"] = BuildState(values["state"])
    values["outcome"] = Outcome(values["outcome"]) if values["outcome"] else None
    return Build(**values)
