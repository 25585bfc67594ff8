"""The lease of one life of the agent on all its attempts.

A lease is renewed along two ways, a heartbeat in the database and one in Redis, and either is enough: while the
database is away nobody can take a build over, and while Redis is away nobody can queue it again. Whoever can
renew on neither must take it that others can do both, and ends its own steps *before* they may conclude that it
is dead. The reaper measures on its own monotonic clock how long it has seen neither heartbeat move, so no wall
clock takes part on either side.

    renewal sent ----------------------------- lease_s --------------------------> reaper may act
    |  self-fencing at 5/6 of lease_s  |  TERM, half of what is left and 1 s at most, KILL

A lease that has run out stays so for Redis: others may have taken over meanwhile, and only the database knows.
"""

from __future__ import annotations

import threading
import uuid

import redis

from agent import clock
from agent.queue.connection import reaching

# TERM and KILL take at most 1 s of the 5 s that a default lease leaves; the rest is for a machine so starved that
# a thread which should wake five times a second wakes after two.
FENCE_MARGIN_SHARE = 1 / 6
FENCE_GRACE_S = 1.0


class Lease:
    """How long this life of the agent may take its attempts for its own. Thread-safe."""

    def __init__(self, lease_s: float) -> None:
        self._lease_s = lease_s
        self._fence_after_s = lease_s * (1 - FENCE_MARGIN_SHARE)
        self._lock = threading.Lock()
        self._renewed_at_mono = clock.mono()
        self.session = ""
        self.begin()

    def begin(self) -> str:
        """Begin a new life, with a new session; return it. Every attempt of the former one is lost."""
        with self._lock:
            self.session = uuid.uuid4().hex
            self._renewed_at_mono = clock.mono()
            return self.session

    def renewed(self, sent_mono: float, *, is_confirmed: bool) -> None:
        """Note a renewal that was *sent* at `sent_mono`; when the answer came doesn't matter.

        Args:
            is_confirmed: the database says that this life is not taken for lost. Only that renews a lease that
                had run out, as one has when a suspended machine wakes.
        """
        with self._lock:
            if is_confirmed or sent_mono - self._renewed_at_mono < self._fence_after_s:
                self._renewed_at_mono = max(self._renewed_at_mono, sent_mono)

    @property
    def age_s(self) -> float:
        """Seconds since the last renewal that succeeded was sent."""
        return clock.mono() - self._renewed_at_mono

    @property
    def must_fence(self) -> bool:
        """Whether the time has come to end everything that runs."""
        return self.age_s >= self._fence_after_s

    @property
    def fence_due_s(self) -> float:
        """Seconds until everything has to end, if no renewal comes; 0.0 when the time has come."""
        return max(0.0, self._fence_after_s - self.age_s)

    @property
    def fence_reserve_s(self) -> float:
        """Seconds between the moment when everything has to end and the lease's own end."""
        return self._lease_s - self._fence_after_s

    @property
    def fence_grace_s(self) -> float:
        """Seconds from TERM to KILL when everything has to end: none when the lease is over already."""
        return min(FENCE_GRACE_S, max(0.0, self._lease_s - self.age_s) / 2)


def beat_key(session: str) -> str:
    """Return the Redis key of a session's heartbeat."""
    return f"build-agent:beat:{session}"


def beat(connection: redis.Redis, session: str, count: int, *, lease_s: float) -> bool:
    """Write one heartbeat to Redis; the value only has to differ from the last.

    Returns: whether Redis still had the one before. If not, it has lost everything else as well.
    Raises: QueueUnavailable.
    """
    with reaching():
        return connection.set(beat_key(session), count, ex=int(lease_s * 4) + 1, get=True) is not None


def beats(connection: redis.Redis, sessions: list[str]) -> dict[str, bytes | None]:
    """Return what stands under each session's heartbeat key.

    Raises: QueueUnavailable.
    """
    if not sessions:
        return {}
    with reaching():
        values = connection.mget([beat_key(session) for session in sessions])
    return dict(zip(sessions, values, strict=True))  # type: ignore[arg-type]
