"""Attempts: how they end and what becomes of the build then; deploys and their locks.

The fence: an attempt is closed by whoever first moves its row from running to ended, and the row is moved
only by its own session, or by a reaper once that session is over. All else hangs on that one guarded update.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import (
    ColumnElement,
    Connection,
    and_,
    case,
    delete,
    func,
    literal,
    null,
    select,
    update,
)

from agent.errors import StateConflict
from agent.model.build import Attempt, AttemptEnded, AttemptRef, BuildState
from agent.model.outcome import Outcome
from agent.store import ending
from agent.store.engine import Store
from agent.store.servers import OVER
from agent.store.tables import attempts, builds, deploy_locks, insert_new, now, servers, steps

# A trial that nobody ends must not run a build for ever.
_ALLOWED_MAX_ON_TRIAL = 20
_is_over = (servers.c.session != attempts.c.session) | servers.c.state.in_(OVER)
_RUNNING = (
    select(
        attempts.c.build_id,
        attempts.c.number,
        attempts.c.session,
        attempts.c.server_id,
        case((_is_over, null()), else_=servers.c.beat).label("beat"),
    )
    .join(servers, servers.c.id == attempts.c.server_id)
    .where(attempts.c.state == "running")
    .order_by(attempts.c.build_id)
)


@dataclass(frozen=True, kw_only=True, slots=True)
class EndResult:
    """What became of an attempt's end.

    `applied` is false when the attempt was ended otherwise before; then nothing has changed, and
    `build_state` tells how the build stands (`None`: there is no such build). `requeued` says that the build
    waits again, in `queue`, and has to be put there.
    """

    build_id: str
    applied: bool
    requeued: bool
    queue: str
    build_state: BuildState | None


@dataclass(frozen=True, kw_only=True, slots=True)
class RunningAttempt:
    """An attempt that runs, as a reaper needs it.

    `beat` is how far its server's heartbeat has counted; `None` when the session is over, because another has
    registered, or the server has left or is taken for lost: the attempt can be closed at once.
    """

    ref: AttemptRef
    server_id: str
    beat: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Fate:
    """What becomes of a build whose attempt has ended."""

    is_requeued: bool
    outcome: Outcome | None
    attempts_allowed: int


def decide(
    outcome: Outcome,
    *,
    number: int,
    attempts_allowed: int,
    is_cancelled: bool,
    is_deploy_open: bool,
    is_on_trial: bool = False,
) -> Fate:
    """Decide whether a build runs again.

    Args:
        outcome: of attempt `number`, the newest.
        is_cancelled: somebody has asked for the build's end.
        is_deploy_open: a deploy that must not be run twice has begun.
        is_on_trial: the server tries a new image.
    """
    if not outcome.is_infrastructure:
        return Fate(is_requeued=False, outcome=outcome, attempts_allowed=attempts_allowed)
    if is_deploy_open:
        # Nobody knows how far it came. That goes before a cancel, too: a person has to look.
        return Fate(is_requeued=False, outcome=Outcome.LOST, attempts_allowed=attempts_allowed)
    if is_cancelled:
        return Fate(is_requeued=False, outcome=Outcome.CANCELLED, attempts_allowed=attempts_allowed)
    if outcome is Outcome.PREEMPTED or (is_on_trial and attempts_allowed < _ALLOWED_MAX_ON_TRIAL):
        # Given back in good order, or tried on an image that may be bad: that says nothing against the build, and
        # doesn't use up an attempt.
        attempts_allowed += 1
    if number < attempts_allowed:
        return Fate(is_requeued=True, outcome=None, attempts_allowed=attempts_allowed)
    return Fate(is_requeued=False, outcome=outcome, attempts_allowed=attempts_allowed)


def end(store: Store, ref: AttemptRef, ended: AttemptEnded) -> EndResult:
    """Close an attempt and decide about its build, in one transaction.

    Open steps end with the attempt's outcome, its deploy locks are free. Sent again, because the first answer
    was lost, the same end counts as applied.
    """
    with store.begin() as connection:
        return close(connection, ref, ended, ending.hold(connection, [ref.build_id]))


def release(store: Store, ref: AttemptRef, *, why: str) -> bool:
    """Give back an attempt that has not run anything: it ends as preempted and its build waits again.

    Returns: False when it is closed already or a step of it is on record; nothing has changed then.
    """
    with store.begin() as connection:
        connection.execute(select(builds.c.id).where(builds.c.id == ref.build_id).with_for_update())
        is_running = connection.execute(
            select(attempts.c.number).where(_running(ref)).with_for_update()
        ).first()
        # Only now: whoever records a step holds the attempt's row, so none can come in between.
        step = select(steps.c.step).where(steps.c.build_id == ref.build_id, steps.c.attempt == ref.number)
        if is_running is None or connection.execute(step.limit(1)).first() is not None:
            return False
        return _close_now(connection, ref, Outcome.PREEMPTED, why).applied


def close_lost(store: Store, ref: AttemptRef, *, why: str) -> EndResult:
    """Close an attempt whose server is gone, as lost.

    Only where its session is over: another has registered, or the server has left or is marked lost
    (`mark_lost` comes first, then). The attempt of a server that beats is left alone, whatever the caller
    believes.
    """
    with store.begin() as connection:
        is_alive = connection.execute(
            select(servers.c.id)
            .join(attempts, attempts.c.server_id == servers.c.id)
            .where(
                attempts.c.build_id == ref.build_id,
                attempts.c.number == ref.number,
                servers.c.session == attempts.c.session,
                servers.c.state.not_in(OVER),
            )
            # Held until the end: the state can't change between this look and the close.
            .with_for_update(read=True, of=servers)
        ).first()
        if is_alive is not None:
            return _unapplied(connection, ref)
        return _close_now(connection, ref, Outcome.LOST, why)


def close_orphans(store: Store, *, server_id: str, session: str, why: str) -> list[EndResult]:
    """Close as lost what former lives of a server have left running; `session` is the life that asks.

    Returns: one result for each attempt. None when `session` is itself no longer the server's.
    """
    with store.read() as connection:
        rows = connection.execute(
            select(attempts.c.build_id, attempts.c.number, attempts.c.session)
            .join(servers, and_(servers.c.id == attempts.c.server_id, servers.c.session == session))
            .where(
                attempts.c.server_id == server_id,
                attempts.c.state == "running",
                attempts.c.session != session,
            )
        ).all()
    return [close_lost(store, AttemptRef(**row._asdict()), why=why) for row in rows]


def running(store: Store) -> list[RunningAttempt]:
    """Return every attempt that runs, with the heartbeat that carries it."""
    with store.read() as connection:
        return read_running(connection)


def read_running(connection: Connection) -> list[RunningAttempt]:
    """Do what `running` does, inside a transaction."""
    return [
        RunningAttempt(
            ref=AttemptRef(build_id=row.build_id, number=row.number, session=row.session),
            server_id=row.server_id,
            beat=row.beat,
        )
        for row in connection.execute(_RUNNING)
    ]


def list_attempts(store: Store, build_id: str) -> list[Attempt]:
    """Return a build's attempts by number; none for an unknown build."""
    columns = [column for column in attempts.c if column.name != "deploy_retry_safe"]
    query = select(*columns).where(attempts.c.build_id == build_id).order_by(attempts.c.number)
    with store.read() as connection:
        return [
            Attempt(**row | {"outcome": Outcome(row["outcome"]) if row["outcome"] else None})
            for row in map(dict, connection.execute(query).mappings())
        ]


def begin_deploy(store: Store, ref: AttemptRef, *, project: str, environment: str, retry_safe: bool) -> bool:
    """Take the lock of an environment and note that a deploy has begun, before its first step; idempotent.

    Returns: False when another attempt deploys there; ask again later. The lock of an attempt that has ended
        is taken over.
    Raises: StateConflict when this attempt no longer runs: nothing of the deploy may be started.
    """
    with store.begin() as connection:
        is_running = connection.execute(
            select(attempts.c.number).where(_running(ref)).with_for_update()
        ).first()
        if is_running is None:
            raise StateConflict(
                f"attempt {ref.number} of build {ref.build_id} no longer runs: its deploy must not begin"
            )
        if not _take_lock(connection, ref, project, environment):
            return False
        has_begun = attempts.c.deploy_begun_at.is_not(None)
        connection.execute(
            update(attempts)
            .where(_running(ref))
            .values(
                # One deploy that is not safe to repeat makes the whole attempt so.
                deploy_retry_safe=case((has_begun, attempts.c.deploy_retry_safe), else_=literal(True))
                & literal(retry_safe),
                deploy_begun_at=func.coalesce(attempts.c.deploy_begun_at, now(connection)),
            )
        )
        return True


def end_deploy(store: Store, ref: AttemptRef, *, project: str, environment: str) -> None:
    """Free an environment's lock, if this attempt holds it."""
    with store.begin() as connection:
        connection.execute(
            delete(deploy_locks).where(
                deploy_locks.c.project == project,
                deploy_locks.c.environment == environment,
                deploy_locks.c.build_id == ref.build_id,
                deploy_locks.c.attempt == ref.number,
            )
        )


def _take_lock(connection: Connection, ref: AttemptRef, project: str, environment: str) -> bool:
    mine = {"build_id": ref.build_id, "attempt": ref.number, "taken_at": now(connection)}
    lock = and_(deploy_locks.c.project == project, deploy_locks.c.environment == environment)
    made = connection.execute(
        insert_new(connection, deploy_locks).values(project=project, environment=environment, **mine)
    )
    if made.rowcount == 1:
        return True
    holder = connection.execute(
        select(deploy_locks.c.build_id, deploy_locks.c.attempt).where(lock).with_for_update()
    ).one_or_none()
    if holder is None:
        return False  # freed a moment ago: the caller asks again anyway
    if (holder.build_id, holder.attempt) == (ref.build_id, ref.number):
        return True
    # A statement of its own, after the lock's row is ours: an earlier look could miss a holder that began
    # since.
    is_held = connection.execute(
        select(attempts.c.number).where(
            attempts.c.build_id == holder.build_id,
            attempts.c.number == holder.attempt,
            attempts.c.state == "running",
        )
    ).first()
    if is_held is not None:
        return False
    connection.execute(update(deploy_locks).where(lock).values(**mine))
    return True


def _running(ref: AttemptRef) -> ColumnElement[bool]:
    """Return the fence: the attempt of that number and session, while it runs."""
    return and_(
        attempts.c.build_id == ref.build_id,
        attempts.c.number == ref.number,
        attempts.c.session == ref.session,
        attempts.c.state == "running",
    )


def _close_now(connection: Connection, ref: AttemptRef, outcome: Outcome, detail: str) -> EndResult:
    at: datetime = connection.execute(select(now(connection))).scalar_one()
    ended = AttemptEnded(outcome=outcome, detail=detail, exit_code=None, ended_at=at)
    return close(connection, ref, ended, ending.hold(connection, [ref.build_id]))


def close(connection: Connection, ref: AttemptRef, ended: AttemptEnded, held: ending.Held) -> EndResult:
    """Do what `end` does, inside a transaction that holds the build."""
    build = held.get(ref.build_id)
    how = {"outcome": ended.outcome, "detail": ended.detail, "ended_at": ended.ended_at}
    of_ref = {"of_build": ref.build_id, "of_attempt": ref.number}
    closed = connection.execute(
        ending.CLOSE, {**of_ref, "of_session": ref.session, "exit_code": ended.exit_code, **how}
    ).one_or_none()
    if build is None or closed is None:
        return _unapplied(connection, ref, ended)
    connection.execute(ending.CLOSE_STEPS, {**of_ref, **how})
    if closed.deploy_begun_at is not None:  # set with an attempt's first lock
        connection.execute(ending.FREE_LOCKS, of_ref)
    fate = decide(
        ended.outcome,
        number=ref.number,
        attempts_allowed=build.attempts_allowed,
        is_cancelled=build.cancel_requested_at is not None,
        is_deploy_open=closed.deploy_begun_at is not None and not closed.deploy_retry_safe,
        is_on_trial=ended.outcome.is_infrastructure and ending.is_on_trial(connection, closed.server_id),
    )
    of_build = {
        "of_build": ref.build_id,
        "new_commit": ended.commit,
        "new_message": ended.message,
        "attempts_allowed": fate.attempts_allowed,
    }
    if fate.is_requeued:
        state = BuildState.QUEUED
        connection.execute(
            ending.CHANGE_BUILD.values(queued_at=now(connection)), {**of_build, "state": state}
        )
    else:
        state = BuildState.ENDED
        connection.execute(ending.CHANGE_BUILD, {**of_build, "state": state, **how, "outcome": fate.outcome})
    return EndResult(
        build_id=ref.build_id, applied=True, requeued=fate.is_requeued, queue=build.queue, build_state=state
    )


def _unapplied(connection: Connection, ref: AttemptRef, ended: AttemptEnded | None = None) -> EndResult:
    """Tell how a build stands whose attempt was closed before; by this very end, if it was sent twice."""
    build = connection.execute(
        select(builds.c.state, builds.c.queue, builds.c.attempt).where(builds.c.id == ref.build_id)
    ).one_or_none()
    if build is None:
        return EndResult(build_id=ref.build_id, applied=False, requeued=False, queue="", build_state=None)
    is_ours = ended is not None and (
        connection.execute(
            select(attempts.c.number).where(
                attempts.c.build_id == ref.build_id,
                attempts.c.number == ref.number,
                attempts.c.session == ref.session,
                attempts.c.outcome == ended.outcome,
                attempts.c.ended_at == ended.ended_at,
            )
        ).first()
        is not None
    )
    return EndResult(
        build_id=ref.build_id,
        applied=is_ours,
        requeued=is_ours and build.state == BuildState.QUEUED and build.attempt == ref.number,
        queue=build.queue,
        build_state=BuildState(build.state),
    )
