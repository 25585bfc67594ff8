"""The local provider on real machines: boot, network, metadata, images, and nothing left."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest

from agent.errors import NotFound
from agent.fleet.local import inside
from agent.fleet.local.provider import LocalProvider
from agent.fleet.provider import LaunchSpec, ProviderError, SshAccess
from agent.host import processes
from tests.machine.machine import BootedMachine
from tests.services import wait_until

Boot = Callable[..., BootedMachine]

ASK = """
import sys, urllib.request as u
t = u.urlopen(u.Request('http://169.254.169.254/latest/api/token', method='PUT',
    headers={'X-aws-ec2-metadata-token-ttl-seconds': '60'}), timeout=5).read().decode()
print(u.urlopen(u.Request('http://169.254.169.254/latest/' + sys.argv[1],
    headers={'X-aws-ec2-metadata-token': t}), timeout=5).read().decode(), end='')
"""


def ask(machine: BootedMachine, path: str) -> str:
    """Ask the metadata service from inside."""
    return machine.run(f"python3 - {path} <<'PYTHON'{ASK}PYTHON\n")


def test_machine_boots_with_a_name_a_network_and_its_metadata(boot: Boot) -> None:
    machine = boot(name="web-1", tags={"role": "test"}, user_data="#build-agent\nslots = 3\n")
    assert machine.run("hostname").strip() == "web-1"
    assert machine.run("systemctl --failed --no-legend") == ""
    assert len(machine.run("cat /etc/machine-id").strip()) == 32
    assert ask(machine, "meta-data/instance-id") == machine.id
    assert ask(machine, "meta-data/local-ipv4") == machine.now.address
    assert ask(machine, "meta-data/tags/instance/role") == "test"
    assert ask(machine, "user-data") == "#build-agent\nslots = 3\n"
    at = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)
    machine.provider.set_spot_notice(machine.id, "terminate", at)
    assert ask(machine, "meta-data/spot/instance-action") == (
        '{"action": "terminate", "time": "2030-01-02T03:04:05Z"}'
    )
    machine.provider.set_spot_notice(machine.id, None)
    code, _ = machine.attempt(f"python3 - meta-data/spot/instance-action <<'PYTHON'{ASK}PYTHON\n")
    assert code != 0
    machine.provider.set_target_lifecycle_state(machine.id, "Terminated")
    assert ask(machine, "meta-data/autoscaling/target-lifecycle-state") == "Terminated"


def test_machines_reach_the_host_and_each_other(boot: Boot) -> None:
    one, two = boot(name="one"), boot(name="two")
    assert one.now.address != two.now.address
    for target in (one.gateway, two.now.address):
        assert one.attempt(f"ping -c 1 -W 5 {target}")[0] == 0


def test_who_may_log_in_and_the_host_key_are_known_before_the_boot(boot: Boot, tmp_path: Path) -> None:
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True, timeout=20)
    machine = boot(ssh=SshAccess(public_key=key.with_suffix(".pub").read_text()))
    (host_key,) = machine.provider.host_keys(machine.id)
    known = tmp_path / "known_hosts"
    known.write_text(f"{machine.now.address} {host_key}\n")
    options = ["-o", f"UserKnownHostsFile={known}", "-o", "StrictHostKeyChecking=yes", "-o", "BatchMode=yes"]
    words = ["ssh", "-i", str(key), *options, f"root@{machine.now.address}", "hostname"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=30, check=False)
    assert (done.stdout, done.returncode) == ("server\n", 0), done.stderr


def test_stopped_machine_becomes_an_image_that_machines_start_from(
    boot: Boot, provider: LocalProvider
) -> None:
    machine = boot(tags={"of": "image-test"})
    machine.run(
        "echo kept >/srv/kept; rm /etc/issue; setcap cap_net_raw+ep /usr/bin/less 2>/dev/null || true"
    )
    with pytest.raises(ProviderError, match="runs; stop it first"):
        provider.create_image(machine.id, name="early", tags={}, token="early")
    provider.stop(machine.id)
    machine.wait_stopped()
    image = provider.create_image(machine.id, name="shop", tags={"of": "image-test"}, token="once")
    assert provider.create_image(machine.id, name="shop", tags={}, token="once").id == image.id
    assert [it.id for it in provider.list_images({"of": "image-test"})] == [image.id]
    child = boot(image.id)
    assert child.run("cat /srv/kept") == "kept\n"
    assert child.attempt("test -e /etc/issue")[0] == 1
    with pytest.raises(ProviderError, match=f"{child.id} stand on it"):
        provider.delete_image(image.id)
    # The machine it was made of goes on, and what it does then is no part of the image.
    provider.start(machine.id)
    machine.wait_up()
    machine.run("echo later >/srv/later")
    assert child.attempt("test -e /srv/later")[0] == 1
    child.terminate()
    provider.delete_image(image.id)
    assert provider.get_image(image.id) is None


def test_reboot_comes_back_with_its_network_and_disk(boot: Boot) -> None:
    machine = boot()
    machine.run("echo kept >/srv/kept; touch /run/before")
    machine.provider.reboot(machine.id)
    wait_until(lambda: machine.is_up() and machine.attempt("test -e /run/before")[0] == 1, 60, "another boot")
    assert machine.run("cat /srv/kept") == "kept\n"
    assert ask(machine, "meta-data/instance-id") == machine.id


def test_launches_with_one_token_at_once_are_one_machine(provider: LocalProvider) -> None:
    spec = LaunchSpec(image="debian-12", name="twin", token="twin-token", tags={"of": "twins"})
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(provider.launch(spec).id)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len(set(found)) == 1
    assert [it.id for it in provider.list_machines({"of": "twins"})] == found[:1]
    provider.terminate(found[0])
    assert provider.get(found[0]) is None
    with pytest.raises(NotFound):
        provider.stop(found[0])


def test_machine_outlives_a_killed_keeper_in_nothing(boot: Boot, provider: LocalProvider) -> None:
    machine = boot()
    uuid = str(provider._state.machine(machine.id).uuid)  # type: ignore[union-attr]
    first = inside.leader(uuid)
    keepers = inside.keepers(uuid)
    assert first
    assert keepers
    processes.kill([keepers[0]], signal.SIGKILL)
    wait_until(lambda: inside.leader(uuid) is None, 20, "the machine to end with its keeper")
    machine.wait_stopped()
    provider.start(machine.id)
    machine.wait_up()


def test_terminated_machine_leaves_nothing(boot: Boot, provider: LocalProvider) -> None:
    machine = boot()
    folder = provider._state.machine_dir(machine.id)
    machine.terminate()
    assert not folder.exists()
    assert str(folder) not in Path("/proc/mounts").read_text()
    links = subprocess.run(["ip", "-brief", "link"], capture_output=True, text=True, check=True).stdout
    assert machine.id not in links
    assert [it for it in provider.leftovers({}) if it.id == machine.id] == []


def test_machine_half_made_by_a_killed_command_is_found_and_removed(provider: LocalProvider) -> None:
    state = provider._state
    folder = state.machines / ".making-m-0123456789ab"
    folder.mkdir()
    (folder / "lock").touch()
    (folder / "machine.json").write_text('{"tags": {"of": "killed"}}')
    (left,) = provider.leftovers({"of": "killed"})
    assert left.kind == "unfinished"
    assert provider.list_machines({"of": "killed"}) == []
    provider.remove(left)
    assert not folder.exists()


def test_image_that_is_not_there_is_named(provider: LocalProvider) -> None:
    with pytest.raises(ProviderError, match="no image 'i-nothing' here"):
        provider.launch(LaunchSpec(image="i-nothing", name="x", token="none"))
    with pytest.raises(ProviderError, match="no id"):
        provider.get_image("../../etc")
    assert os.geteuid() == 0


def test_machine_restarts_at_once_though_a_command_runs_in_it(boot: Boot) -> None:
    machine = boot()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(machine.attempt, "echo begun >/run/begun; exec sleep 80", limit_s=90)
        wait_until(lambda: machine.attempt("test -e /run/begun")[0] == 0, 20)
        machine.provider.reboot(machine.id)
        # systemd waits 90 s for a child that nobody reaps.
        wait_until(
            lambda: machine.is_up() and machine.attempt("test -e /run/begun")[0] == 1, 30, "the next boot"
        )
        assert running.result(5)[0] != 0
