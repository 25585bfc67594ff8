"""Deployments of the fleet's own sources: a commit, its stages, and how each ended."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, RowMapping, insert, select, update

from agent.errors import NotFound, StateConflict
from agent.model.fleet import Deployment, DeploymentState, Stage, StageName, StageState
from agent.store import audit, fleet_events, pools
from agent.store import prefix as by_prefix
from agent.store.engine import Store
from agent.store.tables import insert_new, now
from agent.store.tables_fleet import deployment_stages, deployments


def begin(
    store: Store,
    *,
    pool: str,
    repository: str,
    commit: str,
    branch: str | None,
    by: str,
    delivery_id: str | None = None,
) -> Deployment:
    """Put a deployment on record; the one there is for a delivery that was sent again. Raises: NotFound."""
    deployment_id = uuid.uuid4().hex
    with store.begin() as connection:
        pools.read(connection, pool)
        at = now(connection)
        made = connection.execute(
            insert_new(connection, deployments).values(
                id=deployment_id,
                pool=pool,
                repository=repository,
                commit=commit,
                branch=branch,
                state=DeploymentState.RUNNING,
                delivery_id=delivery_id,
                created_at=at,
                created_by=by,
                changed_at=at,
            )
        )
        if made.rowcount == 0:
            query = select(deployments).where(deployments.c.delivery_id == delivery_id)
            return _deployment(connection.execute(query).mappings().one())
        connection.execute(
            insert(deployment_stages),
            [
                {"deployment_id": deployment_id, "number": number, "name": name, "state": StageState.WAITING}
                for number, name in enumerate(StageName)
            ],
        )
        fleet_events.write(connection, "deployment", deployment_id, f"{commit[:12]} by {by}", pool=pool)
        _audit(connection, deployment_id, by, "begin", {"commit": commit, "branch": branch, "pool": pool})
        return read(connection, deployment_id)


def begin_stage(
    connection: Connection, deployment_id: str, name: StageName, *, output_id: str | None
) -> None:
    """Note that a stage runs, and what has its output."""
    _change_stage(
        connection, deployment_id, name,
        {"state": StageState.RUNNING, "output_id": output_id, "started_at": now(connection)},
        only_from=(StageState.WAITING, StageState.RUNNING),
    )  # fmt: skip
    fleet_events.write(connection, "deployment", deployment_id, f"{name}: begun")


def end_stage(
    connection: Connection, deployment_id: str, name: StageName, state: StageState, *, detail: str | None
) -> None:
    """Note how a stage ended; one that failed ends the deployment, the last that passes too."""
    _change_stage(
        connection, deployment_id, name,
        {"state": state, "detail": detail, "ended_at": now(connection)},
        only_from=(StageState.WAITING, StageState.RUNNING),
    )  # fmt: skip
    told = f"{name}: {state}" + (f": {detail}" if detail else "")
    fleet_events.write(connection, "deployment", deployment_id, told)
    if state is StageState.FAILED:
        end(connection, deployment_id, DeploymentState.FAILED, detail=f"{name}: {detail}")
    elif name is list(StageName)[-1]:
        end(connection, deployment_id, DeploymentState.PASSED, detail=detail)


def end(
    connection: Connection,
    deployment_id: str,
    state: DeploymentState,
    *,
    detail: str | None,
    by: str = "fleet",
) -> None:
    """End a deployment. Raises: StateConflict when it has ended."""
    changed = connection.execute(
        update(deployments)
        .where(deployments.c.id == deployment_id, deployments.c.state == DeploymentState.RUNNING)
        .values(state=state, detail=detail, changed_at=now(connection), ended_at=now(connection))
    )
    if changed.rowcount == 0:
        raise StateConflict(f"deployment {deployment_id[:8]} has ended")
    _audit(connection, deployment_id, by, str(state), {"detail": detail})
    fleet_events.write(connection, "deployment", deployment_id, f"{state}: {detail or ''}".rstrip(": "))


def note_image(connection: Connection, deployment_id: str, image_id: str) -> None:
    """Note which image a deployment has made."""
    connection.execute(
        update(deployments)
        .where(deployments.c.id == deployment_id)
        .values(image_id=image_id, changed_at=now(connection))
    )


def get(store: Store, word: str) -> Deployment:
    """Return a deployment by its id, or the beginning of its id or commit. Raises: NotFound; StateConflict."""
    fits = by_prefix.begins(deployments.c.id, word) | by_prefix.begins(deployments.c.commit, word)
    query = select(deployments).where(fits).order_by(deployments.c.created_at.desc())
    with store.read() as connection:
        found = [_deployment(row) for row in connection.execute(query).mappings()] if word else []
    exact = [it for it in found if it.id.startswith(word)] or found[:1]
    if not exact:
        raise NotFound(f"no deployment {word!r}; build-agent deployments lists them")
    if len(exact) > 1:
        raise StateConflict(f"several deployments fit {word!r}: {by_prefix.listed([it.id for it in exact])}")
    return exact[0]


def read(connection: Connection, deployment_id: str) -> Deployment:
    """Return a deployment by its whole id."""
    query = select(deployments).where(deployments.c.id == deployment_id)
    return _deployment(connection.execute(query).mappings().one())


def list_deployments(store: Store, *, only_open: bool = False, limit: int = 50) -> list[Deployment]:
    """Return deployments, newest first."""
    query = select(deployments).order_by(deployments.c.created_at.desc(), deployments.c.id).limit(limit)
    if only_open:
        query = query.where(deployments.c.state == DeploymentState.RUNNING)
    with store.read() as connection:
        return [_deployment(row) for row in connection.execute(query).mappings()]


def list_stages(store: Store, deployment_id: str) -> list[Stage]:
    """Return the stages of a deployment, in order."""
    query = (
        select(deployment_stages)
        .where(deployment_stages.c.deployment_id == deployment_id)
        .order_by(deployment_stages.c.number)
    )
    with store.read() as connection:
        return [_stage(row) for row in connection.execute(query).mappings()]


def _change_stage(
    connection: Connection,
    deployment_id: str,
    name: StageName,
    values: Mapping[str, Any],
    *,
    only_from: tuple[StageState, ...],
) -> None:
    table = deployment_stages
    changed = connection.execute(
        update(table)
        .where(table.c.deployment_id == deployment_id, table.c.name == name, table.c.state.in_(only_from))
        .values(**values)
    )
    if changed.rowcount == 0:
        raise StateConflict(f"stage {name} of deployment {deployment_id[:8]} has ended")


def _audit(
    connection: Connection, deployment_id: str, by: str, action: str, detail: Mapping[str, Any]
) -> None:
    audit.write(
        connection,
        actor=by,
        action=f"deployment.{action}",
        subject_kind="deployment",
        subject_id=deployment_id,
        detail=detail,
    )


def _deployment(row: RowMapping) -> Deployment:
    return Deployment(**dict(row) | {"state": DeploymentState(row["state"])})


def _stage(row: RowMapping) -> Stage:
    values = {key: value for key, value in row.items() if key != "number"}
    return Stage(**values | {"name": StageName(row["name"]), "state": StageState(row["state"])})
