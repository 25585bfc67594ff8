"""What everything in the controller stands on: the store, the lead, the providers, the settings of servers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from agent import log
from agent.errors import QueueUnavailable
from agent.fleet import user_data
from agent.fleet.group import Group
from agent.fleet.provider import (
    TAG_FLEET,
    TAG_IMAGE,
    TAG_MACHINE,
    TAG_OWNER,
    TAG_POOL,
    LaunchSpec,
    Machine,
    Provider,
)
from agent.fleet.view import Member
from agent.model.fleet import FleetMachine, MachineState, Pool
from agent.model.image import Image
from agent.model.server import OrderKind
from agent.queue.carrier import Carrier
from agent.queue.listen import nudge
from agent.store import fleet_events, lead, machines, orders
from agent.store.engine import Store, Transaction

# Who orders come from that nobody gave.
FLEET = "fleet"
# After the drain's own limit, for the agent to hand back what is left and sign off.
_SIGN_OFF_S = 120.0

_log = log.get("fleet")


@dataclass(frozen=True, kw_only=True, slots=True)
class Ground:
    """The same for a whole life as leader; `holder` names that life.

    `server_config` reads the settings that servers are started with; `group_of` makes the Auto Scaling group of a pool.
    `images_kept` is how many good images of a kind are kept; 0: all.
    """

    store: Store
    carrier: Carrier
    holder: str
    fleet_id: str
    owner_tag: str
    provider_of: Callable[[str], Provider]
    group_of: Callable[[Pool], Group | None]
    server_config: Callable[[], Mapping[str, Any]]
    images_kept: int = 0

    @contextlib.contextmanager
    def writing(self) -> Iterator[Transaction]:
        """Open a transaction of the leader's. Raises: LeadLost."""
        with lead.writing(self.store, self.holder) as connection:
            yield connection

    def event(self, kind: str, subject_id: str, text: str, *, pool: str | None = None) -> None:
        """Write down that something happened."""
        with self.writing() as connection:
            fleet_events.write(connection, kind, subject_id, text, pool=pool)
        _log.info("fleet.event", text, kind=kind, subject=subject_id, pool=pool or "")

    def move(self, machine: FleetMachine, to: MachineState, **more: Any) -> bool:
        """Move a machine in a transaction of its own."""
        with self.writing() as connection:
            moved = machines.move(connection, machine, to, **more)
        if moved and to is not machine.state:
            why = more.get("fault") or more.get("reason") or ""
            _log.info("fleet.machine", why, machine=machine.name, pool=machine.pool, state=str(to))
        return moved

    def leave(self, member: Member, *, note: str, drain_limit_s: float, only_idle: bool) -> bool:
        """Have a member finish what it runs and leave; whether it was told so.

        Args:
            only_idle: only if nothing runs there, which is proved in the same transaction.
        """
        machine, server = member.machine, member.server
        if machine is None or server is None:
            return False
        with self.writing() as connection:
            if only_idle:
                order = orders.leave_idle(connection, server.id, by=FLEET, note=note)
                if order is None:
                    return False
            else:
                at = orders.instant(connection)
                orders.give_in(
                    connection,
                    server_id=server.id,
                    kind=OrderKind.TERMINATE,
                    by=FLEET,
                    note=note,
                    deadline_at=at + timedelta(seconds=drain_limit_s),
                )
            machines.move(
                connection, machine, MachineState.LEAVING, reason=note, limit_s=drain_limit_s + _SIGN_OFF_S
            )
        _log.info("fleet.machine", note, machine=machine.name, pool=machine.pool, state="leaving")
        self.nudge(server.id)
        return True

    def nudge(self, server_id: str) -> None:
        """Have a server look at its orders now; without Redis it does with its next heartbeat."""
        with contextlib.suppress(QueueUnavailable):
            nudge(self.carrier.connection, server_id)

    def launch(self, machine: FleetMachine, pool: Pool, image: Image) -> Machine:
        """Start a machine at its provider; the same again finds the first."""
        spec = LaunchSpec(
            image=str(image.provider_image_id),
            name=machine.name,
            token=machine.id,
            tags=self.tags(pool.name) | {TAG_MACHINE: machine.id, TAG_IMAGE: image.id},
            user_data=self.user_data(pool, server_name=machine.name),
            size=pool.policy.size,
        )
        return self.provider_of(machine.provider).launch(spec)

    def user_data(self, pool: Pool, **special: Any) -> str:
        """Return the user data of a pool's servers."""
        return user_data.render(dict(self.server_config()), queues=list(pool.queues), **special)

    def tags(self, pool: str) -> dict[str, str]:
        """Return the tags of a pool's machines."""
        return {TAG_OWNER: self.owner_tag, TAG_FLEET: self.fleet_id, TAG_POOL: pool}
