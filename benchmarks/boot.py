"""From an image to a server that builds, and from a bare machine to an image; on this host, by the local provider."""

from __future__ import annotations

import os
import tempfile
import uuid
from pathlib import Path

from agent import clock
from agent.clock import Deadline
from agent.fleet import user_data
from agent.fleet.provider import LaunchSpec
from agent.model.build import BuildState
from agent.queue.carrier import Carrier
from agent.queue.connection import connect
from agent.queue.submit import new_build, submit
from agent.store import builds, images
from benchmarks.figure import Effort, Report, Row, Samples, at_most
from benchmarks.ground import Ground
from tests.machine.bakery import Bakery
from tests.machine.conftest import cached_package, own_provider

TITLE = "Boot and bake"
_POLL_S = 0.005
_LIMIT_S = 60.0
_WORDS = """\
`build-agent images bake --profile minimal` from a warm base, with the checks on a fresh server and the build there; then
servers from that image, each with a build that waits for it. Machines of the local provider: systemd-nspawn on this host,
so packages come from this host's mirror and the kernel is up already. Needs root."""


def run(ground: Ground, effort: Effort) -> Report:
    """Measure bakes, then boots of what the last has made."""
    if os.geteuid() != 0:
        raise RuntimeError("boot: needs root, for machines on this host")
    found = Samples()
    package = cached_package()
    url = ground.postgres.create_database()
    with (
        tempfile.TemporaryDirectory() as folder,
        own_provider() as provider,
        Bakery(provider, redis=ground.redis, database_url=url, folder=Path(folder)) as bakery,
    ):
        for _ in range(effort.pick(max(1, effort.rounds // 2), 1)):
            began_mono = clock.mono()
            running = bakery.bake("--deb", package)
            if running.wait(_LIMIT_S * 10) != 0:
                raise RuntimeError(f"the bake failed: {running.out}{running.err}")
            found.add(bake=clock.mono() - began_mono)
        image = images.list_images(bakery.store)[0]
        for _ in range(effort.rounds):
            found.add(boot=_boot_s(bakery, str(image.provider_image_id)))
    ground.postgres.drop_database(url)
    rows = [
        Row(
            name="image to first build",
            unit="s",
            samples=found["boot"],
            meaning="from the launch of a server to the start of a build that waited for it",
            target=at_most(10.0),
        ),
        Row(
            name="bake, `minimal`",
            unit="s",
            samples=found["bake"],
            meaning="the whole command: set-up, both runs of the checks, image, fresh server, its build",
            target=at_most(240.0),
        ),
    ]
    return Report(words=_WORDS, rows=rows)


def _boot_s(bakery: Bakery, image: str) -> float:
    """Return how long a server takes from its launch to its first build."""
    carrier = Carrier(connect(bakery.redis_url))
    queue = f"boot-{uuid.uuid4().hex[:8]}"
    definition = {"project": "boot", "queue": queue, "steps": ["true"]}
    build_id = submit(bakery.store, carrier, new_build(definition)).build.id
    data = user_data.render(user_data.read(bakery.server_config), queues=[queue])
    began_mono = clock.mono()
    spec = LaunchSpec(image=image, name="boot", token=uuid.uuid4().hex, user_data=data)
    machine = bakery.provider.launch(spec)
    deadline = Deadline.after(_LIMIT_S)
    try:
        while builds.get(bakery.store, build_id).state is BuildState.QUEUED:
            if deadline.is_passed:
                raise RuntimeError(
                    f"no build within {_LIMIT_S:g} s: {bakery.provider.console_output(machine.id)}"
                )
            clock.sleep(_POLL_S)
        return clock.mono() - began_mono
    finally:
        bakery.provider.terminate(machine.id)
