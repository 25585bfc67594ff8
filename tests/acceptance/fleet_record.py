"""What the fleet's commands find on record, and what they leave there: pools, servers, refusals, the audit."""

from __future__ import annotations

import shlex
import socket
from collections.abc import Mapping
from typing import Any, NamedTuple

from agent import clock
from agent.model import policy as policies
from agent.model.fleet import FleetMachine, MachineState, Purpose
from agent.model.server import ServerState
from agent.store import audit, machines, pools, servers
from agent.store.engine import Store
from tests.acceptance.terminal import Cli
from tests.integration.fleet_world import join

NO_LEADER = "no controller leads the fleet"
USER = "ann"
ACTOR = f"{USER}@{socket.gethostname()}"
# Nothing here takes longer; what stood on record before has another minute.
_JUST_NOW_S = 60.0


def say(cli: Cli, words: str, code: int = 0) -> str:
    """Give a command that is to succeed; return what it printed."""
    done = cli.run(*shlex.split(words))
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


class Refusal(NamedTuple):
    """A command that is to be refused: the exit code, what the error names, and what it says to do."""

    words: str
    code: int
    names: str
    todo: str = ""


def check_refused(cli: Cli, *cases: Refusal) -> None:
    """Give commands beside each other; each must be refused as it is said, and print no result."""
    running = [(it, cli.start(*shlex.split(it.words))) for it in cases]
    for case, process in running:
        code, told = process.wait(), process.err
        assert code == case.code, f"{case.words}: {code}: {told}"
        assert case.names in told, f"{case.words}: {told}"
        assert case.todo in told, f"{case.words}: {told}"
        assert not process.out, case.words
        assert "Traceback" not in told, told


def audited(store: Store, action: str, subject_id: str | None = None) -> Mapping[str, Any]:
    """Return the detail of the newest entry of an action, made just now by the user of the command line."""
    entries = [it for it in audit.list_entries(store, subject_id=subject_id) if it.action == action]
    assert entries, f"no {action} of {subject_id} in the audit"
    assert entries[0].actor == ACTOR
    assert abs((clock.utc_now() - entries[0].at).total_seconds()) < _JUST_NOW_S
    return entries[0].detail


def audit_size(store: Store) -> int:
    """Return how many entries the audit has."""
    return len(audit.list_entries(store, limit=1000))


def put_pool(
    store: Store, name: str = "linux", image: str | None = "old", *, queue: str = "builds", **policy: Any
) -> None:
    """Make a pool whose first roll-out is long over."""
    made = policies.read(policy)
    pools.create(store, name=name, provider="local", queues=[queue], policy=made, by="bob")
    if image is not None:
        with store.begin() as connection:
            pools.set_image(connection, name, f"img-{image}", by="bob")


def put_machine(store: Store, image: str = "old", *, pool: str = "linux", **more: Any) -> FleetMachine:
    """Put a machine on record that is to be started; no controller does."""
    given = {"purpose": Purpose.SCALE, "by": "fleet", "launch_limit_s": 300.0, **more}
    with store.begin() as connection:
        made = machines.ask(
            connection, pool=pool, provider="local", image_id=f"img-{image}", count=1, **given
        )
    return machines.get(store, made[0])


def put_server(store: Store, name: str, *, queue: str = "builds") -> None:
    """Register a server that accepts builds."""
    join(store, f"server-{name}", name, name=name, slots=2, queues=[queue])
    servers.beat(
        store,
        server_id=f"server-{name}",
        session=name,
        state=ServerState.ACCEPTING,
        reason=None,
        status={},
    )


def serve(store: Store, machine: FleetMachine) -> None:
    """Play the controller and the server: a machine has come up and takes builds."""
    put_server(store, machine.name)
    with store.begin() as connection:
        machines.move(connection, machine, MachineState.SERVING, server_id=f"server-{machine.name}")
