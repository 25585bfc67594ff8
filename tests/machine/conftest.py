"""Booted machines for tests, by the local provider itself: what the tests stand on is tested with them.

The base is made once and kept in /var/cache/build-agent-tests; each pytest worker has a provider on a subnet of its own,
whose base is that one.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from agent import clock
from agent.fleet.local import debian
from agent.fleet.local.provider import LocalProvider
from tests.machine.machine import BootedMachine

ROOT = Path(__file__).parents[2]
CACHE = Path("/var/cache/build-agent-tests")
# Not in /tmp, which may lie in memory; overlayfs wants a real file system below it.
PLACE = Path("/var/tmp")
_PREFIX = "build-agent-test-"
_KEPT_S = 86400


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything here needs a booted machine."""
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker(pytest.mark.machine)
            item.add_marker(pytest.mark.root)
            item.add_marker(pytest.mark.timeout(600))  # the first to ask makes base and package


@contextmanager
def cache_locked(name: str) -> Iterator[None]:
    """Be the only worker that makes this; the others wait, and then find it."""
    CACHE.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (CACHE / f"lock-{name}").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def forget_old(pattern: str) -> None:
    """Remove what no run has used for a day; another run on this machine may use what is newer."""
    for old in CACHE.glob(pattern):
        if old.stat().st_mtime < clock.utc_now().timestamp() - _KEPT_S:
            shutil.rmtree(old)


@contextmanager
def own_subnet() -> Iterator[str]:
    """Hold a subnet that no other worker has, of this run or another."""
    CACHE.mkdir(mode=0o700, parents=True, exist_ok=True)
    for number in range(250):
        with (CACHE / f"lock-subnet-{number}").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            yield f"10.213.{number}.0/24"
            return
    raise AssertionError("all subnets are taken")


def cached_base() -> Path:
    """Return the folder of the base image, which the first that asks makes."""
    kept = CACHE / f"base-{debian.recipe(debian.DEFAULT_BASE)}"
    made = kept / "images" / debian.DEFAULT_BASE
    with cache_locked("base"):
        if not made.exists():
            forget_old("base-*")
            LocalProvider(kept, "10.213.255.0/24").base_image(debian.DEFAULT_BASE)
    os.utime(kept)
    return made


def sources_digest() -> str:
    """Return a checksum over all that goes into the Debian package."""
    digest = hashlib.sha256()
    roots = ("agent", "docs", "packaging", "setup_scripts", "systemd")
    files = [path for root in roots for path in (ROOT / root).rglob("*") if path.is_file()]
    files += [ROOT / name for name in ("CHANGELOG.md", "LICENSE", "README.md", "pyproject.toml")]
    for path in sorted(files):
        if path.suffix != ".pyc":
            digest.update(f"{path.relative_to(ROOT)} {path.stat().st_mode:o}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


@pytest.fixture(scope="session")
def package() -> Path:
    """The Debian package of these sources, built once."""
    return cached_package()


def cached_package() -> Path:
    """Return the Debian package of these sources, which the first that asks builds."""
    kept = CACHE / f"deb-{sources_digest()}"
    with cache_locked("deb"):
        if not kept.exists():
            forget_old("deb-*")
            making = CACHE / "deb-making"
            done = subprocess.run(
                [ROOT / "packaging/deb/build.sh", "--output", making],
                capture_output=True, text=True, timeout=600, check=False,
            )  # fmt: skip
            assert done.returncode == 0, done.stdout + done.stderr
            making.rename(kept)
    os.utime(kept)
    (made,) = kept.glob("build-agent_*.deb")
    return made


def link_image(image: Path, local_dir: Path) -> None:
    """Give a provider an image that lies elsewhere, by hard links: a lower layer is never written to."""
    images = local_dir / "images"
    images.mkdir(mode=0o700, parents=True, exist_ok=True)
    # cp, not shutil: a layer has devices in it (what it removes from the layer below).
    subprocess.run(["cp", "--archive", "--link", image, images], check=True, timeout=60)


def remove_what_dead_runs_left() -> None:
    """End the machines of a run that was killed: they hold its subnet, and nobody else would."""
    with cache_locked("sweep"):
        for folder in PLACE.glob(f"{_PREFIX}*"):
            pid = folder.name.removeprefix(_PREFIX).partition("-")[0]
            if not pid.isdecimal() or psutil.pid_exists(int(pid)):
                continue
            left = LocalProvider(folder, "10.213.253.0/24")
            for machine in left.list_machines({}):
                left.terminate(machine.id)
            shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def provider() -> Iterator[LocalProvider]:
    """A provider of this worker's own, with the base."""
    with own_provider() as made:
        yield made


@contextmanager
def own_provider() -> Iterator[LocalProvider]:
    """Make a provider with the base on a subnet that no other has; nothing of it is left."""
    remove_what_dead_runs_left()
    local_dir = PLACE / f"{_PREFIX}{os.getpid()}-{uuid.uuid4().hex[:8]}"
    link_image(cached_base(), local_dir)
    with own_subnet() as subnet:
        made = LocalProvider(local_dir, subnet)
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


def cached_image(
    provider: LocalProvider, kind: str, made_from: str, make: Callable[[LocalProvider], str], *below: str
) -> str:
    """Return an image that the first who asks makes, for this provider; `below` are the images that it stands on."""
    kept = CACHE / f"{kind}-{hashlib.sha256(made_from.encode()).hexdigest()[:16]}"
    with cache_locked(kind):
        if not (kept / "made").exists():
            forget_old(f"{kind}-*")
            shutil.rmtree(kept, ignore_errors=True)
            for image in below:
                link_image(provider.local_dir / "images" / image, kept)
            with own_subnet() as subnet:
                (kept / "made").write_text(make(LocalProvider(kept, subnet)))
    os.utime(kept)
    image = (kept / "made").read_text()
    link_image(kept / "images" / image, provider.local_dir)
    return image


@pytest.fixture(scope="session")
def server_image(provider: LocalProvider, package: Path) -> str:
    """An image of a server: the agent's package, Redis at boot, an SQLite database with its schema, `image.json`.

    Less than the set-up scripts make (test_setup.py has those), and in a third of the time; made once.
    """
    return cached_server_image(provider, package)


def cached_server_image(provider: LocalProvider, package: Path) -> str:
    """Return that image, made by the first who asks."""
    return cached_image(
        provider,
        "server",
        f"{debian.recipe(debian.DEFAULT_BASE)} {package}",
        lambda maker: make_server_image(maker, package),
        debian.DEFAULT_BASE,
    )


def make_server_image(provider: LocalProvider, package: Path) -> str:
    """Make the image and return its id."""
    machine = BootedMachine.launch(provider, debian.DEFAULT_BASE)
    try:
        machine.write("/root/agent.deb", package.read_bytes())
        apt = "DEBIAN_FRONTEND=noninteractive apt-get -qq -o Dpkg::Use-Pty=0"
        machine.run(
            f"{apt} update && {apt} install --yes --no-install-recommends redis-server /root/agent.deb && "
            "rm /root/agent.deb && apt-get clean",
            limit_s=300,
        )
        machine.run("runuser -u build-agent -- build-agent db upgrade")
        machine.write("/etc/build-agent/image.json", '{"id": "image-of-tests", "version": "7"}')
        own = "/etc/ssh/ssh_host_* /var/lib/build-agent/server-id"
        machine.run(f"systemctl enable redis-server; : >/etc/machine-id; rm -f {own}")
        provider.stop(machine.id)
        machine.wait_stopped()
        image = provider.create_image(machine.id, name="server", tags={}, token=f"image-{machine.id}")
    finally:
        machine.terminate()
    return image.id
