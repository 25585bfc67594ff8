"""Steps: begun and ended by the attempt they belong to, inside the transaction of a batch.

These statements run for every step, so they are put together once: that takes SQLAlchemy longer than to run one.
"""

from __future__ import annotations

import functools
from dataclasses import fields
from typing import Any

from sqlalchemy import Connection, RowMapping, UpdateBase, and_, bindparam, exists, select, update

from agent.model.build import AttemptRef, OutputAccount, Step, StepEnded, StepStarted
from agent.model.outcome import Outcome
from agent.store.engine import Store
from agent.store.tables import attempts, insert_new_of, steps

_ACCOUNT = tuple(field.name for field in fields(OutputAccount))

_of_ref = and_(
    attempts.c.build_id == bindparam("of_build"),
    attempts.c.number == bindparam("of_attempt"),
    attempts.c.session == bindparam("of_session"),
)
# What a step has said, and how its attempt stands: `ended`, when the spool of a dead server is shipped.
_said = ("build_id", "attempt", *(field.name for field in fields(StepStarted)))
_stands = ("state", "outcome", "detail", "ended_at")
# The attempt is held until the commit: an end at the same time closes the step begun here, or is seen here. No step
# stays open.
_BEGUN = (
    select(
        *(bindparam(f"new_{name}", type_=steps.c[name].type).label(name) for name in _said),
        *(attempts.c[name] for name in _stands),
    )
    .where(_of_ref)
    .with_for_update(read=True)
)
_END = (
    update(steps)
    .where(
        steps.c.build_id == bindparam("of_build"),
        steps.c.attempt == bindparam("of_attempt"),
        steps.c.step == bindparam("of_step"),
        steps.c.state == "running",
        exists().where(_of_ref),
    )
    .values(state="ended")
)


def started(connection: Connection, ref: AttemptRef, step: StepStarted) -> None:
    """Record that a step has begun; nothing when it is on record, or when the attempt is not of that session.

    What an attempt says after it was closed (the spool of a dead server) is kept as evidence, closed like it.
    """
    said = {f"new_{field.name}": getattr(step, field.name) for field in fields(step)}
    connection.execute(
        _beginning(connection.dialect.name),
        {**_named(ref), "new_build_id": ref.build_id, "new_attempt": ref.number, **said},
    )


def ended(connection: Connection, ref: AttemptRef, step: StepEnded) -> None:
    """Close a step that is open; nothing when it is closed, or when the attempt is not of that session."""
    connection.execute(
        _END,
        {
            **_named(ref),
            "of_step": step.step,
            "outcome": step.outcome,
            "detail": step.detail,
            "exit_code": step.exit_code,
            "ended_at": step.ended_at,
            **{name: getattr(step.account, name) for name in _ACCOUNT},
        },
    )


def list_steps(store: Store, build_id: str, attempt: int) -> list[Step]:
    """Return an attempt's steps in the order of the definition."""
    query = (
        select(steps).where(steps.c.build_id == build_id, steps.c.attempt == attempt).order_by(steps.c.step)
    )
    with store.read() as connection:
        return [_step(row) for row in connection.execute(query).mappings()]


@functools.cache
def _beginning(dialect: str) -> UpdateBase:
    return insert_new_of(dialect, steps).from_select([*_said, *_stands], _BEGUN)


def _named(ref: AttemptRef) -> dict[str, Any]:
    return {"of_build": ref.build_id, "of_attempt": ref.number, "of_session": ref.session}


def _step(row: RowMapping) -> Step:
    values: dict[str, Any] = dict(row)
    account = OutputAccount(**{name: values.pop(name) for name in _ACCOUNT})
    outcome = Outcome(values["outcome"]) if values["outcome"] else None
    return Step(**values | {"account": account, "outcome": outcome})
