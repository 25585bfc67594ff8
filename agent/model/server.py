"""Servers and the orders operators give them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any


class ServerState(StrEnum):
    """What a server does now, as it said with its last heartbeat (or the reaper found)."""

    STARTING = "starting"
    ACCEPTING = "accepting"
    NOT_READY = "not_ready"
    DRAINING = "draining"
    DRAINED = "drained"
    QUARANTINED = "quarantined"
    STOPPED = "stopped"
    FAILED = "failed"
    TERMINATED = "terminated"
    LOST = "lost"


class OrderKind(StrEnum):
    """What an operator may say to a server."""

    DRAIN = "drain"
    RESUME = "resume"
    QUARANTINE = "quarantine"
    TERMINATE = "terminate"


@dataclass(frozen=True, kw_only=True, slots=True)
class Identity:
    """Who a server is, from the instance's metadata or the machine itself; `id` survives restarts."""

    id: str
    name: str
    image_id: str | None = None
    image_version: str | None = None
    host: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Registration:
    """What a server writes when its agent starts.

    `session` names this one life of the agent, `lease_s` says how long it lives on without a heartbeat.
    """

    identity: Identity
    session: str
    slots: int
    queues: Sequence[str]
    tags: Mapping[str, str]
    agent_version: str
    lease_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Server:
    """One row of `servers`. `wanted` is the operator's last word, `state` what the agent does.

    `lease_s` is `None` for a server that has not registered since schema 0002.
    """

    id: str
    name: str
    session: str
    state: ServerState
    state_reason: str | None
    wanted: OrderKind
    wanted_note: str | None
    wanted_by: str | None
    drain_deadline_at: datetime | None
    slots: int
    queues: Sequence[str]
    tags: Mapping[str, str]
    image_id: str | None
    image_version: str | None
    agent_version: str
    host: Mapping[str, Any]
    status: Mapping[str, Any]
    beat: int
    beat_at: datetime
    registered_at: datetime
    lease_s: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """One row of `orders`."""

    id: int
    server_id: str
    kind: OrderKind
    note: str | None
    by: str
    created_at: datetime
    deadline_at: datetime | None
    taken_at: datetime | None
    done_at: datetime | None
    result: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Cancellation:
    """A running attempt of this server that somebody wants ended."""

    build_id: str
    attempt: int
    by: str


@dataclass(frozen=True, kw_only=True, slots=True)
class BeatReply:
    """What the database answers to a heartbeat.

    `is_current` is false when another life of the agent has registered or the reaper has taken this one for
    lost: every attempt of the session is then closed already and must be ended without a word. `live` names
    (build id, attempt) of the session's attempts that the database still takes for running.
    """

    is_current: bool
    orders: Sequence[Order]
    cancellations: Sequence[Cancellation]
    live: frozenset[tuple[str, int]]
