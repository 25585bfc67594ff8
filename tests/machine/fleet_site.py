"""A fleet on booted servers: a real controller, real agents on real machines, real Redis and PostgreSQL."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping
from typing import Any, Self

from agent.fleet.local.provider import LocalProvider
from agent.model.fleet import FleetMachine, MachineState
from agent.model.outcome import Outcome
from agent.queue.carrier import Carrier
from agent.queue.connection import connect
from agent.queue.submit import new_build, submit
from agent.store import builds, fleet_events, machines
from tests.acceptance.terminal import Running
from tests.machine.bakery import Bakery
from tests.machine.conftest import cached_image
from tests.machine.machine import BootedMachine
from tests.services import wait_until

# A controller that dies is followed by another after its lease.
QUICK = {"FLEET_CYCLE_S": "0.5s", "FLEET_LIST_S": "1s", "LEASE_S": "6s", "KILL_GRACE_S": "1s"}


class Site(Bakery):
    """A fleet; its controller is a process of its own. `settings` are all commands', named as in their environment."""

    settings: Mapping[str, str] = QUICK

    def __enter__(self) -> Self:
        super().__enter__()
        self.carrier = Carrier(connect(self.redis_url))
        self.controller: Running | None = None
        self.cli.environment |= {f"BUILD_AGENT_{name}": value for name, value in self.settings.items()}
        return self

    def __exit__(self, *exc: object) -> None:
        if self.controller is not None:
            self.controller.process.send_signal(signal.SIGKILL)
            self.controller.wait()
        super().__exit__(*exc)

    def lead(self) -> None:
        """Start the controller."""
        self.controller = self.cli.start("fleet", "run")

    def kill_controller(self) -> None:
        """End the controller as kill -9 does."""
        assert self.controller is not None
        self.controller.process.kill()
        self.controller.wait()

    def say(self, *words: str, code: int = 0) -> str:
        """Run a command of the fleet."""
        done = self.cli.run(*words)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout

    def submit(self, *steps: str, count: int = 1) -> list[str]:
        """Queue builds."""
        document = {"project": "shop", "steps": list(steps)}
        return [submit(self.store, self.carrier, new_build(document)).build.id for _ in range(count)]

    def until(self, condition: Callable[[], Any], limit_s: float = 60.0) -> None:
        """Wait until something is so."""
        wait_until(condition, limit_s, self.explain)

    def until_passed(self, ids: list[str], limit_s: float = 60.0) -> None:
        """Wait until builds have passed."""
        self.until(lambda: all(builds.get(self.store, it).outcome for it in ids), limit_s)
        assert {builds.get(self.store, it).outcome for it in ids} == {Outcome.PASSED}, self.explain()

    def serving(self, version: str | None = None) -> list[FleetMachine]:
        """Return the machines that serve."""
        return [
            it
            for it in machines.list_machines(self.store)
            if it.state is MachineState.SERVING
            and version in (None, (it.image_id or "").removeprefix("img-"))
        ]

    def explain(self) -> str:
        """Say how the fleet stands."""
        status = self.cli.run("fleet", "status", "linux")
        events = [it.text for it in fleet_events.list_events(self.store, limit=40)]
        said = self.controller.err[-3000:] if self.controller else ""
        found = machines.list_machines(self.store, with_gone=True)
        faults = [f"{it.name} {it.state}: {it.fault or it.reason}" for it in found]
        return "\n".join([status.stdout + status.stderr, *events, *faults, said])


def changed_image(provider: LocalProvider, server_image: str, kind: str, script: str) -> str:
    """Return an image that is the servers' with something changed, made once."""

    def make(maker: LocalProvider) -> str:
        machine = BootedMachine.launch(maker, server_image)
        try:
            machine.run(script)
            machine.run("rm -f /etc/ssh/ssh_host_* /var/lib/build-agent/server-id; : >/etc/machine-id")
            maker.stop(machine.id)
            machine.wait_stopped()
            return maker.create_image(machine.id, name=kind, tags={}, token=f"image-{machine.id}").id
        finally:
            machine.terminate()

    below = [it.name for it in (provider.local_dir / "images").iterdir()]
    return cached_image(provider, f"fleet-{kind}", f"{server_image} {script}", make, *below)
