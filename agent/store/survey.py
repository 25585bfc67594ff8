"""Everything the leader looks at every few seconds, in one transaction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from agent.store import attempts, builds, orders, servers
from agent.store.engine import Store


@dataclass(frozen=True, kw_only=True, slots=True)
class Survey:
    """What is on record: servers that should beat, attempts that run, builds that wait; whether a quarantine is over."""

    beats: Sequence[servers.Beat]
    running: Sequence[attempts.RunningAttempt]
    queued: Sequence[builds.QueuedBuild]
    has_expired: bool


def look(store: Store) -> Survey:
    """Return what is on record now: as `servers.beats`, `attempts.running` and `builds.queued` would."""
    with store.read() as connection:
        return Survey(
            beats=servers.read_beats(connection),
            running=attempts.read_running(connection),
            queued=builds.read_queued(connection),
            has_expired=orders.has_expired(connection),
        )
