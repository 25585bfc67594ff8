"""An image as a disk, under a kernel of its own where cgroup v2 is whole: it boots into the queue, and goes in order."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from agent.fleet.local import debian
from agent.fleet.local.provider import LocalProvider
from agent.fleet.local.state import State
from agent.model.build import BuildState
from agent.model.outcome import Outcome
from agent.model.server import ServerState
from agent.queue.carrier import Carrier
from agent.queue.connection import connect
from agent.queue.private import PrivateRedis
from agent.queue.submit import new_build, submit
from agent.store import builds, output, servers
from agent.store.engine import Store
from tests.machine.conftest import cached_image
from tests.machine.disk import HOST, Qemu, make_disk
from tests.machine.machine import BootedMachine
from tests.services import TcpProxy, wait_until

BOOT_S = 240.0
DHCP = "[Match]\nName=eth0\n[Network]\nDHCP=ipv4\n"


@pytest.fixture
def kernel_image(provider: LocalProvider, server_image: str) -> str:
    """The server's image with a kernel, and a network that configures itself."""
    return cached_image(
        provider,
        "kernel",
        server_image,
        lambda maker: add_kernel(maker, server_image),
        server_image,
        debian.DEFAULT_BASE,
    )


def add_kernel(provider: LocalProvider, image: str) -> str:
    """Install Debian's kernel for clouds; return the image that it is in."""
    machine = BootedMachine.launch(provider, image)
    try:
        machine.run(
            "export DEBIAN_FRONTEND=noninteractive; systemctl stop build-agent; apt-get -qq update && "
            "apt-get -qq install --yes --no-install-recommends linux-image-cloud-amd64 initramfs-tools zstd && "
            "apt-get clean",
            limit_s=400,
        )
        machine.write("/etc/systemd/network/10-eth0.network", DHCP)
        machine.run(
            "systemctl enable -q systemd-networkd; : >/etc/machine-id; rm -f /var/lib/build-agent/server-id"
        )
        provider.stop(machine.id)
        machine.wait_stopped()
        return provider.create_image(machine.id, name="kernel", tags={}, token=f"image-{machine.id}").id
    finally:
        machine.terminate()


@pytest.fixture
def agent_settings(redis_server: PrivateRedis, postgres_url: str) -> Iterator[str]:
    """Settings with which a machine of qemu reaches this worker's Redis and database."""
    database = urlsplit(postgres_url)
    with (
        TcpProxy(redis_server.socket_path) as redis,
        TcpProxy(("127.0.0.1", database.port or 5432)) as postgres,
    ):
        url = database._replace(netloc=f"postgres@{HOST}:{postgres.port}").geturl()
        yield f'redis_url = "redis://{HOST}:{redis.port}/0"\ndatabase_url = "{url}"\ncloud = "none"\n'


def test_image_boots_into_the_queue_under_a_kernel_of_its_own(
    provider: LocalProvider,
    kernel_image: str,
    agent_settings: str,
    redis_server: PrivateRedis,
    postgres_url: str,
    tmp_path: Path,
) -> None:
    if shutil.which("qemu-system-x86_64") is None:
        pytest.skip("needs qemu-system-x86_64: make test installs it")
    store, carrier = Store(postgres_url), Carrier(connect(redis_server.url))
    images = provider.local_dir / "images"
    layers = [images / name / "layer" for name in stack_of(provider, kernel_image)]
    disk = tmp_path / "disk"
    make_disk(layers, disk, {"/etc/build-agent/agent.toml": agent_settings})
    (kernel,) = (layers[0] / "boot").glob("vmlinuz-*")
    (initrd,) = (layers[0] / "boot").glob("initrd.img-*")
    steps = ["stat -fc %T /sys/fs/cgroup", "cat /proc/self/cgroup", "systemctl is-active build-agent"]
    build_id = submit(store, carrier, new_build({"project": "test", "steps": steps})).build.id
    with Qemu(disk, kernel, initrd) as machine:
        wait_until(
            lambda: not machine.is_on or builds.get(store, build_id).state is BuildState.ENDED,
            BOOT_S,
            lambda: machine.console[-4000:],
        )
        assert builds.get(store, build_id).outcome is Outcome.PASSED, machine.console[-4000:]
        kind, place = (output.tail(store, build_id, 1, step, lines=1)[1] for step in (1, 2))
        assert kind.strip() == b"cgroup2fs"
        assert place.startswith(b"0::/builds.slice/build-agent.service"), place
        (server,) = servers.list_servers(store)
        assert (server.state, server.image_version) == (ServerState.ACCEPTING, "7")
        machine.press_power()
        machine.wait_off(120)
    (server,) = servers.list_servers(store)
    assert server.state is ServerState.STOPPED
    store.dispose()


def stack_of(provider: LocalProvider, image: str) -> tuple[str, ...]:
    """Return an image's layers, the uppermost first."""
    record = State(provider.local_dir).image(image)
    assert record is not None
    return tuple(record.stack)
