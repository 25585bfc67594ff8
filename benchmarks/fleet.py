"""The fleet: how soon a server comes when builds wait, how soon an old image is back, what a cycle costs."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from agent import clock
from agent.clock import Deadline
from agent.model.build import BuildState
from agent.store import attempts, builds, machines
from agent.store.engine import Store
from benchmarks import fleet_record
from benchmarks.figure import Effort, Report, Row, Samples, at_most
from benchmarks.ground import Ground
from tests.integration.fleet_world import World, put_image
from tests.machine.conftest import cached_package, cached_server_image, own_provider
from tests.machine.fleet_site import Site, changed_image

TITLE = "The fleet"
_POLL_S = 0.01
_LIMIT_S = 120.0
_CYCLES = 30
_WORDS = """\
`build-agent fleet run` with default settings and machines of the local provider (systemd-nspawn on this host; needs
root); agents beat every second. Then one controller before a PostgreSQL with {servers:,} servers that accept builds,
{running:,} running builds and {builds:,} that have ended. Provider and servers are simulated there, database and
controller are real."""


class _Site(Site):
    settings: dict[str, str] = {}  # noqa: RUF012 - none: the defaults are measured


def run(ground: Ground, effort: Effort) -> Report:
    """Measure machines, then cycles."""
    if os.geteuid() != 0:
        raise RuntimeError("fleet: needs root, for machines on this host")
    found = Samples()
    for _ in range(effort.rounds):
        with _site(ground) as (site, second):
            found.add(saturation=_saturation_s(site))
            found.add(back=_roll_back_s(site, second))
    record = fleet_record.Record(builds=effort.pick(100_000, 5_000), servers=effort.pick(1000, 100))
    with _filled(ground, record) as world:
        for _ in range(effort.pick(_CYCLES, 5)):
            found.add(cycle=_cycle_s(world, list_s=3600), listing=_cycle_s(world, list_s=0))
    words = _WORDS.format(servers=record.servers, running=record.running, builds=record.builds)
    return Report(words=words, rows=_rows(found))


def _rows(found: Samples) -> list[Row]:
    return [
        Row(
            name="saturation to one server more",
            unit="s",
            samples=found["saturation"],
            meaning="from a build for which no server has a slot, to its beginning on a server that was started for it",
            target=at_most(20),
        ),
        Row(
            name="roll-back to the old image",
            unit="s",
            samples=found["back"],
            meaning="from the command `fleet rollback`, while builds come, to the first on a server of that image",
            target=at_most(30),
        ),
        Row(
            name="cycle",
            unit="s",
            samples=found["cycle"],
            meaning="of the controller, from beat to beat: it reads the whole record and decides",
            target=at_most(2),
        ),
        Row(
            name="cycle with a listing",
            unit="s",
            samples=found["listing"],
            meaning="the same, and it compares what the provider has with the record",
            target=at_most(2),
        ),
    ]


@contextlib.contextmanager
def _site(ground: Ground) -> Iterator[tuple[Site, str]]:
    """Yield a fleet that is led and has one server of image 1, and what the provider calls a second image."""
    url = ground.postgres.create_database()
    with tempfile.TemporaryDirectory() as folder, own_provider() as provider:
        first = cached_server_image(provider, cached_package())
        second = changed_image(provider, first, "second", "echo second >/etc/second")
        with _Site(provider, redis=ground.redis, database_url=url, folder=Path(folder)) as site:
            put_image(site.store, "1", first)
            policy = ("--set", "floor=1", "--set", "ceiling=3", "--set", "slots=2")
            site.say("fleet", "create", "linux", "--image", "1", *policy)
            site.lead()
            site.until(lambda: site.serving("1"), _LIMIT_S)
            yield site, second
            site.kill_controller()
    ground.postgres.drop_database(url)


def _saturation_s(site: Site) -> float:
    """Return how long it takes from full slots and a build that waits to that build on a server more."""
    [first] = site.serving()
    ids = site.submit("sleep 25", count=2)
    site.until(lambda: all(builds.get(site.store, it).state is BuildState.RUNNING for it in ids))
    began_mono = clock.mono()
    [extra] = site.submit("true")
    _wait_begun(site.store, extra)
    seconds = clock.mono() - began_mono
    [attempt] = attempts.list_attempts(site.store, extra)
    if attempt.server_id == first.server_id:
        raise RuntimeError("the build ran on the first server: it did not wait for another")
    site.until_passed([*ids, extra])
    return seconds


def _roll_back_s(site: Site, second: str) -> float:
    """Return how long it takes from the command to a build on a server of the old image, with only new ones there."""
    put_image(site.store, "2", second)
    site.say("fleet", "rollback", "linux", "2", "--yes", "--wait")
    site.until(lambda: not site.serving("1"), _LIMIT_S)
    began_mono = clock.mono()
    site.say("fleet", "rollback", "linux", "--yes")
    deadline = Deadline.after(_LIMIT_S)
    begun: list[str] = []
    while not deadline.is_passed:
        if len(builds.queued(site.store)) < 2:
            begun += site.submit("sleep 0.2")
        old = {it.server_id for it in machines.list_machines(site.store) if it.image_id == "img-1"}
        for it in begun[-8:]:
            if any(attempt.server_id in old for attempt in attempts.list_attempts(site.store, it)):
                return clock.mono() - began_mono
        clock.sleep(_POLL_S)
    raise RuntimeError(f"no build on the old image within {_LIMIT_S:g} s: {site.explain()}")


def _wait_begun(store: Store, build_id: str) -> None:
    deadline = Deadline.after(_LIMIT_S)
    while builds.get(store, build_id).state is BuildState.QUEUED:
        if deadline.is_passed:
            raise RuntimeError(f"build {build_id} did not begin within {_LIMIT_S:g} s")
        clock.sleep(_POLL_S)


@contextlib.contextmanager
def _filled(ground: Ground, record: fleet_record.Record) -> Iterator[World]:
    """Yield a world with everything on record."""
    url = ground.postgres.create_database()
    store = Store(url, pool_size=12)
    with tempfile.TemporaryDirectory() as folder:
        world = World(store, Path(folder), lease_s=30.0)
        fleet_record.fill(world, record)
        try:
            yield world
        finally:
            world.close()
            store.dispose()
    ground.postgres.drop_database(url)


def _cycle_s(world: World, *, list_s: float) -> float:
    """Return what the third cycle of a life as leader takes: the first two ask for what it takes in, and settle it."""
    controller = world.make_controller(list_s=list_s)
    try:
        for _ in range(2):
            controller.cycle()
            # The provider's answer, which comes from a thread.
            clock.sleep(0.2)
        began_mono = clock.mono()
        controller.cycle()
        return clock.mono() - began_mono
    finally:
        controller.close()
