"""The fleet as the controller sees it in one cycle: machines and servers joined, each with what it is good for."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from functools import cached_property
from typing import cast

from agent.model.fleet import FleetMachine, MachineState, Pool, Purpose, Rollout
from agent.model.server import OrderKind, ServerState
from agent.store.fleet_survey import FleetSurvey, SeenServer
from agent.store.servers import GONE


class Condition(StrEnum):
    """What a member of a pool is good for."""

    BOOTING = "booting"
    ACCEPTING = "accepting"
    UNREADY = "unready"
    QUARANTINED = "quarantined"
    DISABLED = "disabled"
    LEAVING = "leaving"
    ENDING = "ending"
    DEAD = "dead"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Member:
    """A machine, the server it has become, or a server that nobody here has started (`machine` is `None`).

    Two are the same only if they are one: pools of a thousand are searched time and again.
    """

    machine: FleetMachine | None
    server: SeenServer | None
    condition: Condition

    @property
    def running(self) -> int:
        """Builds that run on it."""
        return self.server.running if self.server else 0

    @property
    def name(self) -> str:
        """Its name."""
        if self.machine is not None:
            return self.machine.name
        return self.server.name if self.server else "-"

    @property
    def began_at(self) -> datetime:
        """When it was asked for, or has registered."""
        if self.machine is not None:
            return self.machine.created_at
        return cast("SeenServer", self.server).registered_at


@dataclass(frozen=True, kw_only=True, eq=False)
class PoolView:
    """One pool in one cycle."""

    pool: Pool
    at: datetime
    members: Sequence[Member]
    queues: frozenset[str]
    waiting: int
    waiting_since: datetime | None
    rollout: Rollout | None
    failures: Mapping[str, tuple[int, datetime | None]]

    def of(self, *conditions: Condition) -> list[Member]:
        """Return the members in some conditions."""
        return [it for it in self.members if it.condition in conditions]

    def count(self, *conditions: Condition) -> int:
        """Return how many members are in some conditions."""
        return len(self.of(*conditions))

    @cached_property
    def capacity(self) -> list[Member]:
        """The members that accept builds or soon will, the oldest first."""
        return self.of(Condition.ACCEPTING, Condition.BOOTING)

    @cached_property
    def trial(self) -> frozenset[Member]:
        """The members that try the image of the roll-out under way, as long as it is tried."""
        rollout = self.rollout
        if rollout is None:
            return frozenset()
        return frozenset(
            it
            for it in self.capacity
            if it.machine and it.machine.purpose is Purpose.CANARY and it.machine.rollout_id == rollout.id
        )

    @property
    def slots(self) -> int:
        """Slots of a server: what those that accept builds have, the fewest of them; else as the policy says."""
        told = [it.server.slots for it in self.of(Condition.ACCEPTING) if it.server and it.machine]
        return max(1, min(told)) if told else self.pool.policy.slots


def pools_of(survey: FleetSurvey) -> list[PoolView]:
    """Join what is on record; every server and every waiting build belongs to one pool at most."""
    members = _members(survey)
    ours = survey.former | {it.server.id for own in members.values() for it in own if it.server}
    taken: set[str] = set()
    views = []
    for pool in survey.pools:
        own = members[pool.name]
        queues = set(pool.queues) | {
            name for it in own if it.server and it.machine for name in it.server.queues
        }
        own = [*own, *_strangers(survey, pool, ours)]
        queues -= taken
        taken |= queues
        waits = [survey.waiting[name] for name in queues if name in survey.waiting]
        views.append(
            PoolView(
                pool=pool,
                at=survey.at,
                members=sorted(own, key=lambda it: (it.began_at, it.name)),
                queues=frozenset(queues),
                waiting=sum(it.count for it in waits),
                waiting_since=min((it.since for it in waits), default=None),
                rollout=survey.rollouts.get(pool.name),
                failures={
                    image: told for (name, image), told in survey.failures.items() if name == pool.name
                },
            )
        )
    return views


def unserved(survey: FleetSurvey, views: Sequence[PoolView]) -> dict[str, int]:
    """Return how many builds wait in queues that no pool and no server serves."""
    served = {name for view in views for name in view.queues}
    served |= {name for it in survey.servers if it.state not in GONE for name in it.queues}
    return {name: it.count for name, it in survey.waiting.items() if name not in served}


def server_of(machine: FleetMachine, servers: Sequence[SeenServer]) -> SeenServer | None:
    """Return the server that a machine has become: by the instance's id, or the name that it was launched with."""
    fits = [
        it
        for it in servers
        if it.id in (machine.provider_machine_id, machine.server_id)
        or (it.name == machine.name and it.registered_at >= machine.created_at)
    ]
    return fits[-1] if fits else None


def condition_of(machine: FleetMachine, server: SeenServer | None, at: datetime) -> Condition:
    """Say what a machine is good for."""
    match machine.state:
        case MachineState.WANTED | MachineState.BOOTING:
            is_late = machine.deadline_at is not None and machine.deadline_at <= at
            return Condition.DEAD if is_late else Condition.BOOTING
        case MachineState.LEAVING:
            return Condition.LEAVING
        case MachineState.TERMINATING | MachineState.GONE:
            return Condition.ENDING
    return Condition.DEAD if server is None else _serving(server)


def _serving(server: SeenServer) -> Condition:
    if server.state in GONE:
        return Condition.DEAD
    if server.wanted is OrderKind.QUARANTINE or server.state is ServerState.QUARANTINED:
        return Condition.QUARANTINED
    if server.wanted in (OrderKind.DRAIN, OrderKind.TERMINATE):
        return Condition.DISABLED
    if server.state in (ServerState.DRAINING, ServerState.DRAINED):
        # Nobody here asked for it: the cloud takes it back, or its agent is being stopped.
        return Condition.LEAVING
    return Condition.ACCEPTING if server.state is ServerState.ACCEPTING else Condition.UNREADY


def _members(survey: FleetSurvey) -> defaultdict[str, list[Member]]:
    by_id: dict[str, list[SeenServer]] = defaultdict(list)
    for it in survey.servers:
        by_id[it.id].append(it)
        by_id[it.name].append(it)
    found: defaultdict[str, list[Member]] = defaultdict(list)
    for machine in survey.machines:
        keys = (machine.provider_machine_id, machine.server_id, machine.name)
        server = server_of(machine, [it for key in keys if key for it in by_id.get(key, ())])
        condition = condition_of(machine, server, survey.at)
        found[machine.pool].append(Member(machine=machine, server=server, condition=condition))
    return found


def _strangers(survey: FleetSurvey, pool: Pool, ours: Set[str]) -> Iterator[Member]:
    """Yield the servers that serve a pool's queues and were started by somebody else: capacity, and not ours to end."""
    for server in survey.servers:
        if server.id not in ours and server.state not in GONE and set(server.queues) & set(pool.queues):
            yield Member(machine=None, server=server, condition=_serving(server))
