"""A large fleet put on record at once: its machines, servers, attempts that run, builds that wait and that have ended."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from agent import clock
from agent.fleet.provider import TAG_FLEET, TAG_IMAGE, TAG_MACHINE, TAG_OWNER, TAG_POOL, Machine, MachineState
from agent.store import lead, tables, tables_fleet
from tests.integration.fleet_world import World

_BATCH = 5000
_SLOTS = 4
_PROJECTS = 40


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """How much is on record: servers that accept builds, half of their slots in use, and builds that have ended."""

    servers: int
    builds: int

    @property
    def running(self) -> int:
        """Builds that run."""
        return self.servers * _SLOTS // 2

    @property
    def waiting(self) -> int:
        """Builds that wait."""
        return self.servers // 2


def fill(world: World, record: Record) -> None:
    """Put it on record, with the machines at the provider."""
    ceiling = record.servers * 2
    world.pool("1", floor=0, ceiling=ceiling, slots=_SLOTS, scale_in_after_s=86_400, boot_limit_s=600)
    now = clock.utc_now()
    fleet_id = lead.look(world.store).fleet_id
    for number in range(record.servers):
        machine = _machine(number, fleet_id)
        world.provider.machines[machine.id] = machine
    _insert(world, tables.servers, (_server(it, now) for it in range(record.servers)))
    _insert(world, tables_fleet.machines, (_fleet_machine(it, now) for it in range(record.servers)))
    _insert(world, tables.builds, _builds(record, now))
    _insert(world, tables.attempts, _attempts(record, now))


def _insert(world: World, table: Any, rows: Iterator[dict[str, Any]]) -> None:
    batch: list[dict[str, Any]] = []
    with world.store.begin(limit_s=300) as connection:
        for row in rows:
            batch.append(row)
            if len(batch) == _BATCH:
                connection.execute(table.insert(), batch)
                batch = []
        if batch:
            connection.execute(table.insert(), batch)


def _machine(number: int, fleet_id: str) -> Machine:
    tags = {
        TAG_FLEET: fleet_id,
        TAG_MACHINE: f"machine-{number:05}",
        TAG_POOL: "linux",
        TAG_OWNER: "build-agent",
        TAG_IMAGE: "img-1",
    }
    return Machine(
        id=f"i-{number:05}",
        name=f"linux-{number:05}",
        state=MachineState.RUNNING,
        image="p-1",
        address="127.0.0.1",
        tags=tags,
    )


def _server(number: int, now: datetime) -> dict[str, Any]:
    return {
        "id": f"i-{number:05}",
        "name": f"linux-{number:05}",
        "session": f"session-{number:05}",
        "state": "accepting",
        "wanted": "resume",
        "slots": _SLOTS,
        "queues": ["builds"],
        "tags": {},
        "image_version": "1",
        "agent_version": "1",
        "host": {"cores": 8},
        "status": {"load": 1.5, "busy": 2},
        "beat": 1000,
        "beat_at": now,
        "registered_at": now - timedelta(hours=1),
        "lease_s": 30.0,
    }


def _fleet_machine(number: int, now: datetime) -> dict[str, Any]:
    began_at = now - timedelta(hours=1, seconds=number)
    return {
        "id": f"machine-{number:05}",
        "pool": "linux",
        "provider": "local",
        "name": f"linux-{number:05}",
        "provider_machine_id": f"i-{number:05}",
        "image_id": "img-1",
        "state": "serving",
        "purpose": "scale",
        "server_id": f"i-{number:05}",
        "created_at": began_at,
        "created_by": "fleet",
        "changed_at": began_at,
        "served_at": began_at,
        "accounted_at": now,
    }


def _builds(record: Record, now: datetime) -> Iterator[dict[str, Any]]:
    for number in range(record.builds + record.running + record.waiting):
        state = _state(record, number)
        began_at = _began_at(record, number, now)
        yield {
            "id": f"build-{number:07}",
            "project": f"project-{number % _PROJECTS}",
            "queue": "builds",
            "state": state,
            "outcome": "passed" if state == "ended" else None,
            "definition": {"version": 1, "steps": ["make test"]},
            "created_by": "ann",
            "created_at": began_at,
            "queued_at": began_at,
            "started_at": None if state == "queued" else began_at,
            "ended_at": began_at + timedelta(minutes=5) if state == "ended" else None,
            "attempt": 0 if state == "queued" else 1,
            "attempts_allowed": 3,
        }


def _attempts(record: Record, now: datetime) -> Iterator[dict[str, Any]]:
    chance = random.Random(1)
    for number in range(record.builds + record.running):
        is_running = _state(record, number) == "running"
        began_at = _began_at(record, number, now)
        server = number % record.servers if is_running else chance.randrange(record.servers)
        yield {
            "build_id": f"build-{number:07}",
            "number": 1,
            "server_id": f"i-{server:05}",
            "session": f"session-{server:05}",
            "slot": 1 + number // record.servers % _SLOTS,
            "state": "running" if is_running else "ended",
            "outcome": None if is_running else "passed",
            "started_at": began_at,
            "ended_at": None if is_running else began_at + timedelta(minutes=5),
        }


def _state(record: Record, number: int) -> str:
    if number < record.builds:
        return "ended"
    return "running" if number < record.builds + record.running else "queued"


def _began_at(record: Record, number: int, now: datetime) -> datetime:
    """Return when a build came: those that have ended over two days, the others lately."""
    if number >= record.builds:
        return now - timedelta(seconds=60)
    return now - timedelta(days=2) * (1 - number / record.builds) - timedelta(minutes=10)
