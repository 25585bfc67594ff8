"""A small world for the fleet's controller: real store, real controller; provider and agents are ours, in memory.

Fake are the provider, which starts "machines" at once and fails as it is told to, and the agents on them, which do in the
database what real ones do: register, beat, claim, end, obey. Machine tests have real ones (tests/machine/test_fleet.py).
"""

from __future__ import annotations

import random
import threading
import tomllib
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, cast

import fakeredis

from agent import clock
from agent.fleet.controller import Controller
from agent.fleet.deploy import Deployer, Plan
from agent.fleet.ground import Ground
from agent.fleet.group import Group
from agent.fleet.provider import (
    ImageState,
    LaunchSpec,
    Leftover,
    Machine,
    MachineState,
    Provider,
    ProviderImage,
    ProviderUnavailable,
)
from agent.model import policy as policies
from agent.model.build import AttemptEnded, AttemptRef, BuildState, NewBuild
from agent.model.fleet import FleetMachine, Pool, RolloutKind
from agent.model.image import Image, NewImage, Owner
from agent.model.outcome import Outcome
from agent.model.server import Identity, OrderKind, Registration, ServerState
from agent.queue.carrier import Carrier
from agent.store import attempts, bakes, builds, images, machines, orders, pools, rollouts, servers
from agent.store.engine import Store
from tests.services import wait_until

QUICK = {"scale_in_after_s": 0.3, "boot_limit_s": 1.5, "canary_limit_s": 30.0, "slots": 2, "ceiling": 6}


def put_image(store: Store, version: str, provider_image_id: str, *, provider: str = "local") -> str:
    """Put a verified image into the catalogue, as a bake does; return its id."""
    image_id, bake_id = f"img-{version}", f"bake-{version}"
    new = NewImage(
        id=image_id, version=version, provider=provider, profile="minimal", base="debian-12", by="ann"
    )
    bakes.create(store, bake_id, new, {"version": version})
    server_id, session = bakes.server_of(bake_id), uuid.uuid4().hex
    join(store, server_id, session, name=server_id, slots=1, queues=[])
    bakes.take(store, bake_id, Owner(session=session, name="ann"), by="ann")
    with store.begin() as connection:
        images.note_provider_image(connection, image_id, provider_image_id)
    bakes.succeed(store, bake_id, session, provenance={}, by="ann")
    servers.leave(store, server_id=server_id, session=session, state=ServerState.STOPPED, reason=None)
    return image_id


def join(
    store: Store,
    server_id: str,
    session: str,
    *,
    name: str,
    slots: int,
    queues: Sequence[str],
    image: str | None = None,
) -> None:
    """Register a server."""
    servers.register(
        store,
        Registration(
            identity=Identity(id=server_id, name=name, image_version=image),
            session=session,
            slots=slots,
            queues=queues,
            tags={},
            agent_version="1",
            lease_s=30.0,
        ),
    )


class FakeProvider:
    """Machines in memory. `faults` are raised by the next calls of a method, one each."""

    name: ClassVar[str] = "local"
    ssh_user: ClassVar[str] = "root"

    def __init__(self) -> None:
        self.machines: dict[str, Machine] = {}
        self.images: dict[str, ProviderImage] = {}
        self.user_data: dict[str, dict[str, Any]] = {}
        self.by_token: dict[str, str] = {}
        self.faults: dict[str, list[Exception]] = {}
        self.launches = 0
        self.refuses_to_end: set[str] = set()
        self._lock = threading.Lock()

    def launch(self, spec: LaunchSpec) -> Machine:
        """Start a machine; a fault that is `after` comes when it is there."""
        fault = self._fault("launch")
        if fault is not None and "after" not in str(fault):
            raise fault
        with self._lock:
            machine_id = self.by_token.get(spec.token)
            if machine_id is None:
                machine_id = f"m-{uuid.uuid4().hex[:12]}"
                self.by_token[spec.token] = machine_id
                self.launches += 1
                self.user_data[machine_id] = tomllib.loads(spec.user_data)
                self.machines[machine_id] = Machine(
                    id=machine_id,
                    name=spec.name,
                    state=MachineState.RUNNING,
                    image=spec.image,
                    address="127.0.0.1",
                    tags=dict(spec.tags),
                )
        if fault is not None:
            raise fault
        return self.machines[machine_id]

    def get(self, machine_id: str) -> Machine | None:
        """Return a machine."""
        self._raise("get")
        return self.machines.get(machine_id)

    def list_machines(self, tags: Mapping[str, str]) -> Sequence[Machine]:
        """Return the machines with these tags."""
        self._raise("list_machines")
        with self._lock:
            return [it for it in self.machines.values() if tags.items() <= it.tags.items()]

    def terminate(self, machine_id: str) -> None:
        """End a machine."""
        self._raise("terminate")
        if machine_id not in self.refuses_to_end:
            with self._lock:
                self.machines.pop(machine_id, None)

    def console_output(self, machine_id: str) -> str:
        """Return last words."""
        self._raise("console_output")
        return f"last words of {machine_id}"

    def get_image(self, image_id: str) -> ProviderImage | None:
        """Return an image."""
        return self.images.get(image_id)

    def delete_image(self, image_id: str) -> None:
        """Delete an image."""
        self._raise("delete_image")
        self.images.pop(image_id, None)

    def leftovers(self, tags: Mapping[str, str]) -> Sequence[Leftover]:
        """Return the machines."""
        return [Leftover(kind="machine", id=it.id, tags=it.tags) for it in self.list_machines(tags)]

    def fail(self, method: str, *faults: Exception) -> None:
        """Have the next calls of a method fail."""
        self.faults.setdefault(method, []).extend(faults)

    def _fault(self, method: str) -> Exception | None:
        found = self.faults.get(method)
        return found.pop(0) if found else None

    def _raise(self, method: str) -> None:
        fault = self._fault(method)
        if fault is not None:
            raise fault


@dataclass
class FakeAgent:
    """An agent in the database: what a real one does there, and nothing else."""

    store: Store
    server_id: str
    name: str
    image: str
    slots: int
    queues: Sequence[str]
    session: str = field(default_factory=lambda: uuid.uuid4().hex)
    running: list[tuple[AttemptRef, float]] = field(default_factory=list)
    state: ServerState = ServerState.STARTING
    is_dead: bool = False
    reason: str | None = None

    def register(self) -> None:
        """Join."""
        join(
            self.store,
            self.server_id,
            self.session,
            name=self.name,
            slots=self.slots,
            queues=self.queues,
            image=self.image,
        )
        self.state = ServerState.ACCEPTING

    def tick(self, world: World) -> None:
        """Beat, obey, end what is done, take what waits."""
        if self.is_dead:
            return
        reply = servers.beat(
            self.store,
            server_id=self.server_id,
            session=self.session,
            state=self.state,
            reason=self.reason,
            status={},
        )
        if not reply.is_current:
            self.is_dead = True
            return
        wanted = servers.get(self.store, self.server_id).wanted
        for order in reply.orders:
            orders.take(self.store, order.id)
            orders.done(self.store, order.id, "done")
        self._end_some(world)
        if wanted in (OrderKind.DRAIN, OrderKind.TERMINATE):
            self.state = ServerState.DRAINING if self.running else ServerState.DRAINED
            if wanted is OrderKind.TERMINATE and not self.running:
                self.leave(ServerState.TERMINATED, "terminate asked for")
        elif wanted is OrderKind.QUARANTINE:
            self.state = ServerState.QUARANTINED
        elif self.state is not ServerState.NOT_READY:
            self.state = ServerState.ACCEPTING
            self._take_some(world)

    def leave(self, state: ServerState, reason: str) -> None:
        """Sign off."""
        servers.leave(self.store, server_id=self.server_id, session=self.session, state=state, reason=reason)
        self.is_dead = True

    def _take_some(self, world: World) -> None:
        for build in builds.queued(self.store):
            if len(self.running) >= self.slots:
                return
            if build[1] in self.queues:
                claim = builds.claim(
                    self.store,
                    build[0],
                    server_id=self.server_id,
                    session=self.session,
                    slot=len(self.running) + 1,
                )
                if claim is not None:
                    self.running.append((claim.ref, clock.mono() + world.build_s(self.image)))

    def _end_some(self, world: World) -> None:
        for ref, until_mono in list(self.running):
            if clock.mono() >= until_mono:
                outcome = world.outcome(self.image)
                ended = AttemptEnded(
                    outcome=outcome, detail=f"by {self.image}", exit_code=None, ended_at=clock.utc_now()
                )
                attempts.end(self.store, ref, ended)
                world.ran.append((ref.build_id, self.image, outcome))
                self.running.remove((ref, until_mono))


class World:
    """A database, a provider, agents on its machines, and one controller or several."""

    def __init__(self, store: Store, folder: Path, *, lease_s: float = 0.6) -> None:
        self.store = store
        self.folder = folder
        self.provider = FakeProvider()
        self.carrier = Carrier(fakeredis.FakeRedis())
        self.agents: dict[str, FakeAgent] = {}
        self.lease_s = lease_s
        self.controllers = [self.make_controller()]
        self.never_boots: set[str] = set()
        self.broken: dict[str, Outcome] = {}
        self.slow: dict[str, float] = {}
        self.ran: list[tuple[str, str, Outcome]] = []
        self.groups: dict[str, Group] = {}
        self.images_kept = 0
        self._submitted = 0

    def make_controller(self, *, list_s: float = 0.05) -> Controller:
        """Make a controller that may lead."""
        return Controller(self.store, self._ground, self._deployer, lease_s=self.lease_s, list_s=list_s)

    # What there is.

    def image(self, version: str, **provider_image: Any) -> Image:
        """Put a verified image into the catalogue."""
        image_id = put_image(self.store, version, f"p-{version}")
        tags = {"build-agent:owner": "build-agent", "build-agent:image": image_id}
        made = ProviderImage(id=f"p-{version}", name=version, state=ImageState.AVAILABLE, tags=tags)
        self.provider.images[made.id] = replace(made, **provider_image)
        return images.get(self.store, image_id)

    def pool(
        self,
        image: str | None = "1",
        *,
        name: str = "linux",
        queues: Sequence[str] = ("builds",),
        **policy: Any,
    ) -> Pool:
        """Make a pool, and its image unless it is there."""
        made = policies.read({**QUICK, **policy})
        pools.create(self.store, name=name, provider="local", queues=list(queues), policy=made, by="ann")
        if image is not None:
            if not any(it.version == image for it in images.list_images(self.store)):
                self.image(image)
            with self.store.begin() as connection:
                pools.set_image(connection, name, f"img-{image}", by="ann")
        return pools.get(self.store, name)

    def submit(self, count: int = 1, *, queue: str = "builds", project: str = "shop") -> list[str]:
        """Queue builds."""
        ids = []
        for _ in range(count):
            self._submitted += 1
            ids.append(f"build-{self._submitted:05}")
            builds.create(
                self.store,
                NewBuild(id=ids[-1], project=project, queue=queue, definition={"version": 1}),
            )
        return ids

    def roll(self, version: str, kind: RolloutKind = RolloutKind.ROLLOUT, pool: str = "linux") -> str:
        """Begin a roll-out."""
        return rollouts.begin(self.store, pool, f"img-{version}", kind=kind, by="ann").id

    def build_s(self, image: str) -> float:
        """Return how long a build takes on an image."""
        return self.slow.get(image, 0.02)

    def outcome(self, image: str) -> Outcome:
        """Return how a build ends on an image."""
        return self.broken.get(image, Outcome.PASSED)

    # How it goes on.

    def tick(self) -> None:
        """Let everything happen once: machines boot, agents work, controllers look."""
        for machine in list(self.provider.machines.values()):
            if machine.id not in self.agents and self._boots(machine):
                self._start_agent(machine)
        agents = list(self.agents.items())
        random.shuffle(agents)  # none is the first at the queue for ever
        for machine_id, agent in agents:
            if machine_id not in self.provider.machines:
                agent.is_dead = True
            agent.tick(self)
        for controller in self.controllers:
            controller.cycle()
        clock.sleep(0.005)

    def until(self, condition: Callable[[], Any], limit_s: float = 20.0, what: str = "it") -> None:
        """Tick until something is so."""

        def look() -> bool:
            self.tick()
            return bool(condition())

        wait_until(look, limit_s, lambda: f"{what}: {self.explain()}")

    def run(self, seconds: float) -> None:
        """Tick for a while."""
        deadline = clock.Deadline.after(seconds)
        while not deadline.is_passed:
            self.tick()

    def serving(self, version: str | None = None, pool: str = "linux") -> list[FleetMachine]:
        """Return the machines of a pool that serve, of one image or any."""
        return [
            it
            for it in machines.list_machines(self.store, pool=pool)
            if it.state == "serving" and version in (None, (it.image_id or "").removeprefix("img-"))
        ]

    def all_machines(self) -> list[FleetMachine]:
        """Return every machine there ever was."""
        return machines.list_machines(self.store, with_gone=True)

    def ended(self) -> int:
        """Return how many of the submitted builds have ended; bakes are builds, too."""
        found = builds.list_builds(self.store, state=BuildState.ENDED, limit=10_000)
        return sum(it.id.startswith("build-") for it in found)

    def kill(self, machine: FleetMachine) -> None:
        """End a machine behind the controller's back."""
        self.provider.machines.pop(str(machine.provider_machine_id))

    def close(self) -> None:
        """Stop the controllers."""
        for controller in self.controllers:
            controller.close()

    def explain(self) -> str:
        """Say how everything stands."""
        from agent.store import fleet_events

        told = [f"{it.name} {it.state} {it.image_id} {it.reason} {it.fault}" for it in self.all_machines()]
        events = [it.text for it in fleet_events.list_events(self.store, limit=40)]
        agents = [f"{it.name} {it.state} dead={it.is_dead} {len(it.running)}" for it in self.agents.values()]
        return "\n".join([*told, *agents, *events])

    def _boots(self, machine: Machine) -> bool:
        return machine.image.removeprefix("p-") not in self.never_boots

    def _start_agent(self, machine: Machine) -> None:
        data = self.provider.user_data.get(machine.id, {})
        agent = FakeAgent(
            store=self.store,
            server_id=machine.id,
            name=str(data.get("server_name", machine.name)),
            image=machine.image.removeprefix("p-"),
            slots=2,
            queues=list(data.get("queues", ["builds"])),
        )
        self.agents[machine.id] = agent
        agent.register()

    def _ground(self, holder: str, fleet_id: str) -> Ground:
        return Ground(
            store=self.store,
            carrier=self.carrier,
            holder=holder,
            fleet_id=fleet_id,
            owner_tag="build-agent",
            provider_of=lambda _name: cast(Provider, self.provider),
            group_of=lambda pool: self.groups.get(pool.policy.group),
            server_config=lambda: {
                "redis_url": "redis://10.0.0.1:6379/0",
                "database_url": "postgresql://x@10.0.0.1/x",
            },
            images_kept=self.images_kept,
        )

    def _deployer(self, ground: Ground) -> Deployer:
        plan = Plan(folder=self.folder / "deployments", profile="minimal", package="true", environment={})
        return Deployer(ground, plan)


def away(words: str = "throttled") -> ProviderUnavailable:
    """A fault that may pass."""
    return ProviderUnavailable(words)
