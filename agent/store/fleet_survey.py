"""Everything the fleet controller looks at in a cycle, in one transaction, and what builds say of an image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, func, or_, select

from agent.model.fleet import FleetMachine, Pool, Rollout
from agent.model.outcome import Outcome
from agent.model.server import OrderKind, ServerState
from agent.store import machines as machine_store
from agent.store import pools as pool_store
from agent.store import rollouts as rollout_store
from agent.store.engine import Store
from agent.store.servers import GONE
from agent.store.tables import attempts, builds, now, servers
from agent.store.tables_fleet import machines

_COLUMNS = (
    servers.c.id,
    servers.c.name,
    servers.c.state,
    servers.c.state_reason,
    servers.c.wanted,
    servers.c.wanted_by,
    servers.c.drain_deadline_at,
    servers.c.slots,
    servers.c.queues,
    servers.c.image_version,
    servers.c.registered_at,
    servers.c.beat_at,
)

_FORMER = (
    select(servers.c.id)
    .join(machines, machines.c.server_id == servers.c.id)
    .where(servers.c.state.not_in(GONE), machines.c.state == "gone")
)


@dataclass(frozen=True, kw_only=True, slots=True)
class SeenServer:
    """A server as the controller needs it; `running` counts its attempts."""

    id: str
    name: str
    state: ServerState
    state_reason: str | None
    wanted: OrderKind
    wanted_by: str | None
    drain_deadline_at: datetime | None
    slots: int
    queues: Sequence[str]
    image_version: str | None
    registered_at: datetime
    beat_at: datetime
    running: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Waiting:
    """What waits in a queue: how many builds, the oldest since when."""

    count: int
    since: datetime


@dataclass(frozen=True, kw_only=True, slots=True)
class FleetSurvey:
    """What is on record at one instant, `at`, by the database's clock.

    `failures` counts launches in a row that came to nothing, by pool and image. `former` are servers whose machine is
    gone, though nobody has found them lost yet.
    """

    at: datetime
    pools: Sequence[Pool]
    machines: Sequence[FleetMachine]
    servers: Sequence[SeenServer]
    waiting: Mapping[str, Waiting]
    rollouts: Mapping[str, Rollout]
    failures: Mapping[tuple[str, str], tuple[int, datetime | None]]
    former: frozenset[str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """An attempt that has ended: what a trial is judged by. `seconds` is how long it ran."""

    project: str
    outcome: Outcome
    detail: str | None
    seconds: float


def look(store: Store) -> FleetSurvey:
    """Return what is on record now."""
    with store.read() as connection:
        found = pool_store.read_all(connection)
        open_rollouts = {
            it.name: rollout
            for it in found
            if (rollout := rollout_store.read_open(connection, it.name)) is not None
        }
        tried = {(it.name, it.image_id) for it in found if it.image_id}
        tried |= {(name, it.to_image_id) for name, it in open_rollouts.items()}
        return FleetSurvey(
            at=connection.execute(select(now(connection))).scalar_one(),
            pools=found,
            machines=machine_store.read_machines(connection),
            servers=_read_servers(connection),
            waiting=_read_waiting(connection),
            rollouts=open_rollouts,
            failures={key: machine_store.failures_since(connection, *key, limit=10) for key in sorted(tried)},
            former=frozenset(connection.execute(_FORMER).scalars()),
        )


def read_samples(
    connection: Connection, pool: str, image_id: str, *, since: datetime | None = None, limit: int = 1000
) -> list[Sample]:
    """Return the newest attempts that have ended on servers of a pool's machines of an image."""
    query = (
        select(
            builds.c.project,
            attempts.c.outcome,
            attempts.c.detail,
            attempts.c.started_at,
            attempts.c.ended_at,
        )
        .join(builds, builds.c.id == attempts.c.build_id)
        .join(machines, machines.c.server_id == attempts.c.server_id)
        .where(machines.c.pool == pool, machines.c.image_id == image_id, attempts.c.state == "ended")
        .order_by(attempts.c.ended_at.desc(), attempts.c.build_id)
        .limit(limit)
    )
    if since is not None:
        query = query.where(attempts.c.ended_at >= since)
    return [
        Sample(
            project=row.project,
            outcome=Outcome(row.outcome),
            detail=row.detail,
            seconds=max(0.0, (row.ended_at - row.started_at).total_seconds()),
        )
        for row in connection.execute(query)
    ]


def _read_servers(connection: Connection) -> list[SeenServer]:
    running = (
        select(attempts.c.server_id, func.count().label("running"))
        .where(attempts.c.state == "running")
        .group_by(attempts.c.server_id)
    )
    counts = {row.server_id: row.running for row in connection.execute(running)}
    kept = machines.c.state != "gone"
    query = select(*_COLUMNS).where(
        or_(
            servers.c.state.not_in(GONE),
            servers.c.name.in_(select(machines.c.name).where(kept)),
            servers.c.id.in_(select(machines.c.provider_machine_id).where(kept)),
        )
    )
    return [
        SeenServer(
            **dict(row)
            | {
                "state": ServerState(row["state"]),
                "wanted": OrderKind(row["wanted"]),
                "running": counts.get(row["id"], 0),
            }
        )
        for row in connection.execute(query.order_by(servers.c.registered_at)).mappings()
    ]


def _read_waiting(connection: Connection) -> dict[str, Waiting]:
    query = (
        select(builds.c.queue, func.count().label("builds"), func.min(builds.c.queued_at).label("since"))
        .where(builds.c.state == "queued")
        .group_by(builds.c.queue)
    )
    return {row.queue: Waiting(count=row.builds, since=row.since) for row in connection.execute(query)}
