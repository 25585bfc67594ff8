"""Booted machines for tests, by the local provider itself: what the tests stand on is tested with them.

The base is made once and kept in /var/cache/build-agent-tests; each pytest worker has a provider on a subnet of its own,
whose base is that one.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.fleet.local import debian
from agent.fleet.local.provider import LocalProvider
from tests.machine.machine import BootedMachine

CACHE = Path("/var/cache/build-agent-tests")
# Not in /tmp, which may lie in memory; overlayfs wants a real file system below it.
PLACE = Path("/var/tmp")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything here needs a booted machine."""
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker(pytest.mark.machine)
            item.add_marker(pytest.mark.root)


def cached_base() -> Path:
    """Return the folder of the base image, which the first that asks makes; others wait."""
    kept = CACHE / f"base-{debian.recipe(debian.DEFAULT_BASE)}"
    CACHE.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        made = kept / "images" / debian.DEFAULT_BASE
        if not made.exists():
            for old in CACHE.glob("base-*"):
                shutil.rmtree(old)
            LocalProvider(kept, "10.213.255.0/24").base_image(debian.DEFAULT_BASE)
    return made


@pytest.fixture(scope="session")
def provider(worker_id: str) -> Iterator[LocalProvider]:
    """A provider of this worker's own, with the base; nothing of it is left."""
    base = cached_base()
    local_dir = PLACE / f"build-agent-test-{uuid.uuid4().hex[:8]}"
    images = local_dir / "images"
    images.mkdir(mode=0o700, parents=True)
    # Hard links: a lower layer is never written to.
    shutil.copytree(base, images / debian.DEFAULT_BASE, symlinks=True, copy_function=os.link)
    number = int(worker_id.removeprefix("gw")) if worker_id.startswith("gw") else 250
    made = LocalProvider(local_dir, f"10.213.{number}.0/24")
    try:
        yield made
    finally:
        for machine in made.list_machines({}):
            made.terminate(machine.id)
        shutil.rmtree(local_dir)


@pytest.fixture
def boot(provider: LocalProvider) -> Iterator[Callable[..., BootedMachine]]:
    """Starts machines that are gone after the test."""
    machines: list[BootedMachine] = []

    def start(image: str = debian.DEFAULT_BASE, **more: Any) -> BootedMachine:
        machines.append(BootedMachine.launch(provider, image, **more))
        return machines[-1]

    yield start
    for machine in machines:
        machine.terminate()
