"""Starting servers by hand, and ending machines that never became any: what operators ask of the fleet directly."""

from __future__ import annotations

from agent import clock
from agent.errors import NotFound, StateConflict
from agent.fleet.reconcile import LAUNCH_LIMIT_S
from agent.model.fleet import FleetMachine, MachineState, Pool, Purpose
from agent.store import images, machines, pools
from agent.store.engine import Store, Transaction

_STAYING = (MachineState.WANTED, MachineState.BOOTING, MachineState.SERVING)


def start(
    store: Store, *, pool_name: str | None, image_id: str | None, count: int, by: str, why: str | None
) -> list[str]:
    """Put servers on record that the controller is to start; return the machines' ids.

    Args:
        image_id: any that may start servers; `None`: the pool's own.
    Raises: NotFound; StateConflict, also when there would be more than the pool's ceiling.
    """
    known = pools.list_pools(store)
    if pool_name is None:
        if len(known) != 1:
            names = ", ".join(it.name for it in known) or "none yet: build-agent fleet create"
            raise NotFound(f"say which pool: {names}")
        pool_name = known[0].name
    with store.begin() as connection:
        pool = pools.read(connection, pool_name, is_locked=True)
        wanted = image_id or pool.image_id
        if wanted is None:
            raise StateConflict(f"pool {pool_name} has no image: name one")
        pools.check_image(images.read(connection, wanted, is_locked=True), pool)
        _check_room(connection, pool, count)
        # Those of another image than the pool's would be replaced at once: they are tried, so to speak, by hand.
        purpose = Purpose.SCALE if wanted == pool.image_id else Purpose.MANUAL
        return machines.ask(
            connection,
            pool=pool_name,
            provider=pool.provider,
            image_id=wanted,
            count=count,
            purpose=purpose,
            by=by,
            launch_limit_s=LAUNCH_LIMIT_S,
            reason=why,
        )


def _check_room(connection: Transaction, pool: Pool, count: int) -> None:
    """Raise StateConflict when a pool would have more servers than it may."""
    _, ceiling = pool.policy.bounds(clock.utc_now())
    there = sum(it.state in _STAYING for it in machines.read_machines(connection, pool=pool.name))
    if there + count > ceiling:
        raise StateConflict(
            f"pool {pool.name} may have {ceiling} servers, and {there} are there or on the way; for more: "
            f"build-agent fleet scale {pool.name} --ceiling {there + count}"
        )


def end(store: Store, machine: FleetMachine, *, by: str, why: str) -> None:
    """Have a machine ended that is no server. Raises: StateConflict."""
    with store.begin() as connection:
        machines.request_end(connection, machine, by=by, why=why)
