"""The set-up scripts, the checks and the scrub on a bare machine, with the worst moments in between."""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agent.fleet.local.provider import LocalProvider
from agent.fleet.provider import SshAccess
from tests.machine.machine import BootedMachine
from tests.services import wait_until

ROOT = Path(__file__).parents[2]
PLACE = "/var/lib/build-agent-setup"
SETUP = f"{PLACE}/setup_scripts/setup.sh --profile minimal"
VERIFY = f"{PLACE}/setup_scripts/verify/run.sh --profile minimal --report {PLACE}/report"
Boot = Callable[..., BootedMachine]


def push(machine: BootedMachine, package: Path) -> None:
    """Bring scripts and package to where a bake puts them."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        tar.add(
            ROOT / "setup_scripts",
            "setup_scripts",
            filter=lambda item: None if "__pycache__" in item.name else item,
        )
        tar.add(package, f"dist/{package.name}")
    machine.run(f"mkdir -p {PLACE} && tar -x --no-same-owner -C {PLACE}", stdin=packed.getvalue())


def progress(machine: BootedMachine) -> list[dict[str, Any]]:
    """Return what the set-up has recorded."""
    return [json.loads(line) for line in machine.run(f"cat {PLACE}/progress").splitlines()]


def report(machine: BootedMachine) -> dict[str, Any]:
    """Return the report of the last checks."""
    found: dict[str, Any] = json.loads(machine.run(f"cat {PLACE}/report/report.json"))
    return found


def test_bare_machine_becomes_a_verified_server_whatever_interrupts_it(
    boot: Boot, provider: LocalProvider, package: Path
) -> None:
    # As the bake starts one: somebody may log in, so there are host keys.
    machine = boot(ssh=SshAccess(public_key="ssh-ed25519 AAAA nobody"))
    push(machine, package)
    survive_a_cut_network_and_a_full_disk(machine)
    survive_a_kill(machine)
    check(machine)
    become_an_image(machine, provider, boot)


def survive_a_cut_network_and_a_full_disk(machine: BootedMachine) -> None:
    """Fail with the reason, and stay unfinished."""
    # The network is cut before anything could be fetched.
    machine.run("ip link set eth0 down")
    code, said = machine.attempt(f"SETUP_RETRY_WAITS='1 1' {SETUP}", limit_s=200)
    assert code == 1
    assert re.search(r"10-base failed: network: .* did not get through in 3 tries", said), said[-2000:]
    assert "has not come to its good end" in machine.run(f"cat {PLACE}/unfinished")
    machine.run(
        f"ip link set eth0 up; ip route replace default via {machine.gateway}; rm -f {PLACE}/lists-read"
    )

    # A disk that is full before packages can be unpacked.
    machine.run("mount -t tmpfs -o size=512k tmpfs /var/cache/apt/archives")
    code, said = machine.attempt(SETUP, limit_s=200)
    assert code == 1
    assert "No space left on device: /var/cache/apt/archives" in machine.run(f"cat {PLACE}/unfinished"), said
    machine.run("umount /var/cache/apt/archives")


def survive_a_kill(machine: BootedMachine) -> None:
    """Go on where it was; then there is nothing left to do."""
    # Killed while it installs the agent.
    machine.run(f"setsid nohup {SETUP} >{PLACE}/log 2>&1 </dev/null & true")
    wait_until(
        lambda: machine.attempt(f"grep -q '50-agent.*started' {PLACE}/progress")[0] == 0,
        120,
        lambda: machine.attempt(f"tail -30 {PLACE}/log")[1],
    )
    machine.run(f"kill -KILL $(cat {PLACE}/pid)")
    assert machine.attempt(f"test -e {PLACE}/unfinished")[0] == 0

    # Run again, it goes on where it was.
    done_before = [it["script"] for it in progress(machine) if it["state"] == "done"]
    assert done_before == ["10-base", "20-users", "35-tools"]
    machine.run(SETUP, limit_s=300)
    assert machine.attempt(f"test -e {PLACE}/unfinished")[0] == 1
    assert machine.run(f"cat {PLACE}/result") == "0\n"
    count = len(progress(machine))
    machine.run(SETUP, limit_s=60)
    assert {it["state"] for it in progress(machine)[count:]} == {"skipped"}


def check(machine: BootedMachine) -> None:
    """Pass every check, and name one that fails."""
    machine.run(VERIFY, limit_s=200)
    found = report(machine)
    assert (found["profile"], found["failed"]) == ("minimal", 0)
    assert found["passed"] >= 35
    assert found["versions"]["python"].startswith("3.11")
    assert found["packages"]["build-agent"]
    assert machine.run(f"head -c 5 {PLACE}/report/junit.xml") == "<?xml"
    machine.run("chmod 755 /etc/build-agent")
    assert machine.attempt(f"{VERIFY} -k folder", limit_s=100)[0] == 1
    (failed,) = [it for it in report(machine)["checks"] if it["outcome"] == "failed"]
    assert failed["name"] == "test_server::test_folder_is_closed_to_others[/etc/build-agent]"
    assert "/etc/build-agent" in failed["message"]
    machine.run("chmod 750 /etc/build-agent")


def become_an_image(machine: BootedMachine, provider: LocalProvider, boot: Boot) -> None:
    """Name what must not be in an image (F28), remove it, and start from the image."""
    scrub = f"{PLACE}/setup_scripts/scrub.sh"
    machine.run("echo ls >/root/.bash_history; echo k >/var/lib/build-agent/server-id")
    code, named = machine.attempt(f"{scrub} --check")
    assert code == 1
    for path in ("/etc/machine-id", "/root/.bash_history", "/var/lib/build-agent/server-id", f"{PLACE}/dist"):
        assert f"{path}: " in named
    machine.run(
        f"cp -r {PLACE}/setup_scripts /run/scripts && /run/scripts/scrub.sh && /run/scripts/scrub.sh --check"
    )
    provider.stop(machine.id)
    machine.wait_stopped()
    image = provider.create_image(machine.id, name="server", tags={}, token=f"image-{machine.id}")
    fresh = boot(image.id, name="fresh")
    assert fresh.run("cat /etc/machine-id") != ""
    assert fresh.run("hostname") == "fresh\n"
    assert fresh.run("build-agent --version").startswith("build-agent")
    fresh.terminate()
    machine.terminate()
    provider.delete_image(image.id)
