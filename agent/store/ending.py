"""The statements of an attempt's end, in the order they run; `attempts.close` decides what they say.

They are put together once, which takes SQLAlchemy longer than to run them, and every build ends this way.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from sqlalchemy import ColumnElement, Connection, bindparam, delete, func, or_, select, update

from agent.store.tables import Text, attempts, builds, deploy_locks, servers, steps
from agent.store.tables_fleet import machines

# Rows of `builds` by id, locked: what an end has to know of its build.
Held = Mapping[str, Any]

_build: ColumnElement[str] = bindparam("of_build")
_number: ColumnElement[int] = bindparam("of_attempt")
_session: ColumnElement[str] = bindparam("of_session")
_HOLD = (
    select(builds.c.id, builds.c.queue, builds.c.attempts_allowed, builds.c.cancel_requested_at)
    .where(builds.c.id.in_(bindparam("of_builds", expanding=True)))
    .order_by(builds.c.id)
    .with_for_update()
)
CLOSE = (
    update(attempts)
    .where(attempts.c.build_id == _build, attempts.c.number == _number, attempts.c.session == _session)
    .where(attempts.c.state == "running")
    .values(state="ended")
    .returning(attempts.c.deploy_begun_at, attempts.c.deploy_retry_safe, attempts.c.server_id)
)
CLOSE_STEPS = (
    update(steps)
    .where(steps.c.build_id == _build, steps.c.attempt == _number, steps.c.state == "running")
    .values(state="ended")
)
FREE_LOCKS = delete(deploy_locks).where(deploy_locks.c.build_id == _build, deploy_locks.c.attempt == _number)
# By the name that the server was launched with: it may end a build before the controller has linked the two.
_ON_TRIAL = (
    select(machines.c.id)
    .join(servers, or_(servers.c.name == machines.c.name, servers.c.id == machines.c.provider_machine_id))
    .where(servers.c.id == bindparam("of_server"), machines.c.purpose == "canary")
    .limit(1)
)
CHANGE_BUILD = (
    update(builds)
    .where(builds.c.id == _build)
    .values(
        commit=func.coalesce(bindparam("new_commit", type_=Text), builds.c.commit),
        message=func.coalesce(bindparam("new_message", type_=Text), builds.c.message),
    )
)


def hold(connection: Connection, build_ids: Collection[str]) -> Held:
    """Hold builds for their attempts' ends: a cancel, a retry or another end waits until this transaction is over.

    First in its transaction, for all builds that it will end: locks are taken in the order builds, attempts, steps.
    """
    return {row[0]: row for row in connection.execute(_HOLD, {"of_builds": sorted(build_ids)})}


def is_on_trial(connection: Connection, server_id: str) -> bool:
    """Whether a server was started to try a new image."""
    return connection.execute(_ON_TRIAL, {"of_server": server_id}).first() is not None
