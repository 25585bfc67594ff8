"""What operators do to builds and servers: on record first, then whoever it concerns is told over Redis.

The command line and the console do it by the same functions. Where Redis can't be reached it is done all the same: the
record is read with the next heartbeat, and the sweep queues.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from agent import clock
from agent.errors import QueueUnavailable, StateConflict
from agent.model.build import Build
from agent.model.outcome import Outcome
from agent.model.server import Order, OrderKind
from agent.queue.carrier import Carrier
from agent.queue.listen import nudge
from agent.queue.submit import queue_if_possible
from agent.store import attempts, builds, orders
from agent.store.engine import Store


@dataclass(frozen=True, kw_only=True, slots=True)
class Cancelled:
    """`result` is `cancelled` for a build that had not begun, else `cancelling`. Not `is_told`: Redis was away."""

    result: str
    is_told: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Retried:
    """The build as it stands now. Not `is_queued`: Redis was away, and the sweep queues it."""

    build: Build
    is_queued: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Ordered:
    """The order as it stands on record. Not `is_told`: Redis was away."""

    order: Order
    is_told: bool


def cancel(store: Store, carrier: Carrier, build_id: str, *, by: str, why: str = "") -> Cancelled:
    """Cancel a build that waits or runs. Raises: NotFound; StateConflict when it has ended."""
    result = builds.request_cancel(store, build_id, by=by, why=why)
    # One at most, by the database's own word.
    runs_on = [it.server_id for it in attempts.list_attempts(store, build_id) if it.state == "running"]
    return Cancelled(result=result, is_told=all(tell(carrier, server_id) for server_id in runs_on))


def retry(
    store: Store, carrier: Carrier, build: Build, *, by: str, max_attempts: int, force: bool = False
) -> Retried:
    """Queue an ended build again, as its next attempt.

    Args:
        max_attempts: allowed further ones, where the definition does not say.
        force: even if it has passed.
    Raises: StateConflict.
    """
    if build.outcome is Outcome.PASSED and not force:
        raise StateConflict(f"build {build.id} has passed; to run it again all the same: --force")
    allowed = int(build.definition.get("max_attempts") or max_attempts)
    again = builds.retry(store, build.id, by=by, max_attempts=allowed, force=force)
    return Retried(build=again, is_queued=queue_if_possible(carrier, again))


def order(
    store: Store,
    carrier: Carrier,
    server_id: str,
    kind: OrderKind,
    *,
    by: str,
    note: str | None = None,
    limit: timedelta | None = None,
) -> Ordered:
    """Give a server an order.

    Args:
        limit: a drain or a termination gives back what still runs after it; a quarantine ends by itself.
    Raises: NotFound; StateConflict.
    """
    deadline_at = clock.utc_now() + limit if limit else None
    given = orders.give(store, server_id=server_id, kind=kind, by=by, note=note, deadline_at=deadline_at)
    return Ordered(order=given, is_told=tell(carrier, server_id))


def tell(carrier: Carrier, server_id: str) -> bool:
    """Ask a server to look at its orders and cancels now; whether Redis took it."""
    try:
        nudge(carrier.connection, server_id)
    except QueueUnavailable:
        return False
    return True
