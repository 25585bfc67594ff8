"""Bakes on booted machines: a whole one that is killed in every phase, and what goes wrong in each."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from agent.fleet import bake as baking
from agent.fleet import bundle, user_data
from agent.fleet.local.provider import LocalProvider
from agent.fleet.provider import ImageState as ProviderImageState
from agent.fleet.provider import Provider, ProviderImage
from agent.fleet.work import BakeFailed, BakeWaits, Limits
from agent.model.build import BuildState
from agent.model.image import BakeState, ImageState, Phase, ReportWhen
from agent.model.outcome import Outcome
from agent.queue.carrier import Carrier
from agent.queue.connection import connect
from agent.queue.private import PrivateRedis
from agent.store import attempts, bakes, builds, images, servers, steps
from tests.acceptance.terminal import Running
from tests.machine.bakery import Bakery
from tests.services import wait_until


@pytest.fixture
def bakery(
    provider: LocalProvider, redis_server: PrivateRedis, postgres_url: str, tmp_path: Path
) -> Iterator[Bakery]:
    """A place to bake at; nothing that bakes have made is left after the test."""
    with Bakery(provider, redis=redis_server, database_url=postgres_url, folder=tmp_path) as made:
        yield made
        for leftover in made.left():
            provider.remove(leftover)


def ended(running: Running, code: int, limit_s: float = 200.0) -> str:
    """Wait for a command's end; return all that it said."""
    got = running.wait(limit_s)
    said = running.out + running.err
    assert got == code, said
    return said


def test_image_is_baked_whole_though_the_command_is_killed_in_every_phase(
    bakery: Bakery, package: Path
) -> None:
    running = bakery.bake("--deb", package, "--version", "v1")
    killed = []
    for phase in Phase:
        bakery.wait_phase(running, phase, 100)
        # A moment into it, so that something of the phase is under way.
        time.sleep(0.05)
        running.process.kill()
        if running.wait() != -signal.SIGKILL:
            break
        killed.append(phase)
        running = bakery.cli.start(
            "images", "bake", "--resume", bakery.last.id[:8], "--deb", str(package), "--json"
        )
    assert killed[:11] == list(Phase)[:11]
    ended(running, 0)
    the_image_is_verified(bakery)
    the_log_is_whole(bakery)
    nothing_but_the_image_is_left(bakery)
    the_next_is_made_of_it(bakery, package)
    what_it_was_made_from_can_be_seen(bakery)


def the_image_is_verified(bakery: Bakery) -> None:
    """Both runs of the checks passed, and a build ran on the fresh server."""
    image = images.find(bakery.store, "v1")
    assert (image.state, image.reason) == (ImageState.VERIFIED, None)
    assert bakery.last.state is BakeState.PASSED
    before, after = images.list_reports(bakery.store, image.id)
    assert (before.ran, after.ran) == (ReportWhen.BAKE, ReportWhen.FRESH_BOOT)
    assert before.failed_checks == after.failed_checks == []
    assert after.report["passed"] >= 35
    assert "<testcase" in after.junit
    canary = builds.get(bakery.store, image.provenance["canary_build"])
    assert canary.outcome is Outcome.PASSED
    (attempt,) = attempts.list_attempts(bakery.store, canary.id)
    on = servers.get(bakery.store, attempt.server_id)
    assert (on.image_id, on.image_version) == (image.id, "v1")


def the_log_is_whole(bakery: Bakery) -> None:
    """Each life is an attempt at the bake's build; those that were killed are lost, the last has passed."""
    bake = bakery.last
    build = builds.get(bakery.store, bake.id)
    assert (build.state, build.outcome, build.project) == (BuildState.ENDED, Outcome.PASSED, "images")
    tries = attempts.list_attempts(bakery.store, bake.id)
    assert [it.outcome for it in tries] == [Outcome.LOST] * (len(tries) - 1) + [Outcome.PASSED]
    log = "".join(
        bakery.cli.run("logs", bake.id, "--attempt", str(it.number), "--step", "setup").stdout
        for it in tries
        if any(step.name == "setup" for step in steps.list_steps(bakery.store, bake.id, it.number))
    )
    # Begun once on the server, whatever became of the command: the script says so at its beginning.
    assert "50-agent" in log


def nothing_but_the_image_is_left(bakery: Bakery) -> None:
    """No server, no key, no folder of a dead command's spool."""
    image = images.find(bakery.store, "v1")
    assert [(it.kind, it.id) for it in bakery.left()] == [("image", image.provider_image_id)]
    assert not Path("/var/lib/build-agent-bakes", bakery.last.id).exists()
    again = bakery.cli.run("images", "sweep")
    assert again.stdout == "nothing was left\n", again


def the_next_is_made_of_it(bakery: Bakery, package: Path) -> None:
    """An image whose agent would join the queue, or power the server off, is a base like any other."""
    folder = bakery.scripts(setup="systemctl is-active build-agent && exit 5; touch /etc/more; exit 6")
    running = bakery.bake("--deb", package, "--scripts", folder, "--from", "v1", "--version", "v2")
    ended(running, 1)
    image = images.find(bakery.store, "v2")
    assert image.reason == "the set-up failed with exit code 6: inactive"
    assert image.base == "v1"
    names = [it.name for it in servers.list_servers(bakery.store)]
    assert sum(not name.startswith("bake-") for name in names) == 1, names
    differing = {
        it["name"] for it in json.loads(bakery.cli.run("images", "diff", "v1", "v2", "--json").stdout)
    }
    assert {"base", "scripts_sha256"} <= differing


def what_it_was_made_from_can_be_seen(bakery: Bakery) -> None:
    """The commands show it."""
    shown = bakery.cli.run("images", "show", "v1").stdout
    assert "state               verified\n" in shown
    assert "checks, fresh boot" in shown
    listed = bakery.cli.run("images", "list").stdout.splitlines()
    assert listed[1].split()[:4] == ["v1", "verified", "minimal", "local"]
    report = json.loads(bakery.cli.run("images", "show", "v1", "--report", "json").stdout)
    assert report["versions"]["python"].startswith("3.11")
    same = bakery.cli.run("images", "diff", "v1", "v1")
    assert (same.stdout, same.stderr) == ("", "nothing differs between v1 and v1\n")
    gone = bakery.cli.run("images", "retire", "v1", "--why", "old", "--delete")
    assert gone.stdout == "image v1 is retired and deleted\n", gone
    assert bakery.left() == []
    assert images.find(bakery.store, "v1").provider_image_id is None


def fails(bakery: Bakery, package: Path, **scripts: str) -> str:
    """Bake with scripts that make it fail; the image has failed and nothing is left. Return what was said."""
    folder = bakery.scripts(**scripts)
    said = ended(bakery.bake("--deb", package, "--scripts", folder, "--version", "bad"), 1, 60)
    bake = bakery.last
    image = images.get(bakery.store, bake.image_id)
    assert (bake.state, image.state, image.verified_at) == (BakeState.FAILED, ImageState.FAILED, None)
    assert image.reason is not None
    assert image.reason in said
    assert bakery.left() == []
    assert not Path("/var/lib/build-agent-bakes", bake.id).exists()
    return image.reason


def test_check_that_fails_is_named_and_the_image_never_verified(bakery: Bakery, package: Path) -> None:
    verify = """
while [ "$1" != --report ]; do shift; done
mkdir -p "$2"
echo '<testsuites/>' >"$2/junit.xml"
echo '{"checks": [{"name": "test_go", "outcome": "failed"}, {"name": "test_c", "outcome": "passed"}]}' >"$2/report.json"
exit 1
"""
    assert fails(bakery, package, verify=verify) == "these checks did not pass: test_go"
    image = images.find(bakery.store, "bad")
    (report,) = images.list_reports(bakery.store, image.id)
    assert report.failed_checks == ["test_go"]
    shown = bakery.cli.run("images", "show", "bad").stdout
    assert "1 of 2 passed; not: test_go" in shown
    # The version is free again: the next try may have it.
    assert fails(bakery, package, setup="exit 3").startswith("the set-up failed with exit code 3")


def test_f28_what_must_not_be_in_an_image_is_named(bakery: Bakery, package: Path) -> None:
    scrub = "[ $# = 0 ] && exit 0; echo '/root/.bash_history: a history of commands'; exit 1"
    reason = fails(bakery, package, scrub=scrub)
    assert reason == "the image would hold what must not be in it: /root/.bash_history: a history of commands"


def test_full_disk_in_mid_set_up_is_said_as_such(bakery: Bakery, package: Path) -> None:
    setup = """
mkdir -p /small && mount -t tmpfs -o size=64k tmpfs /small
echo '{"script": "30-languages", "state": "failed"}' >/var/lib/build-agent-setup/progress
dd if=/dev/zero of=/small/file bs=1k count=100
"""
    reason = fails(bakery, package, setup=setup)
    assert reason == "the set-up failed in 30-languages: the server's disk is full"
    assert builds.get(bakery.store, bakery.last.id).outcome is Outcome.DISK_FULL


def test_network_cut_in_mid_set_up_loses_no_line(bakery: Bakery, package: Path) -> None:
    setup = "for i in $(seq 400); do echo line $i; sleep 0.02; done; exit 7"
    folder = bakery.scripts(setup=setup)
    running = bakery.bake("--deb", package, "--scripts", folder)
    bakery.wait_phase(running, Phase.SETUP)
    (machine,) = bakery.provider.list_machines({})
    wait_until(lambda: "line 50\n" in bakery.cli.run("logs", bakery.last.id).stdout, 30)
    # The port of the machine on the host's bridge.
    subprocess.run(["ip", "link", "set", machine.id, "down"], check=True, timeout=10)
    time.sleep(12)
    subprocess.run(["ip", "link", "set", machine.id, "up"], check=True, timeout=10)
    ended(running, 1, 90)
    printed = [
        line
        for line in bakery.cli.run("logs", bakery.last.id, "--step", "setup").stdout.splitlines()
        if line.startswith("line ")
    ]
    assert printed == [f"line {number}" for number in range(1, 401)]


def test_ctrl_c_ends_the_bake_and_removes_what_it_made(bakery: Bakery, package: Path) -> None:
    folder = bakery.scripts(setup="sleep 600")
    running = bakery.bake("--deb", package, "--scripts", folder)
    bakery.wait_phase(running, Phase.SETUP)
    code = running.interrupt()
    assert code == 130, running.err
    assert builds.get(bakery.store, bakery.last.id).outcome is Outcome.CANCELLED
    assert bakery.left() == []


def test_cancel_ends_the_bake_as_it_ends_a_build(bakery: Bakery, package: Path) -> None:
    folder = bakery.scripts(setup="sleep 600")
    running = bakery.bake("--deb", package, "--scripts", folder)
    bakery.wait_phase(running, Phase.SETUP)
    bakery.cli.run("cancel", bakery.last.id)
    assert "cancelled by" in ended(running, 1, 60)
    assert builds.get(bakery.store, bakery.last.id).outcome is Outcome.CANCELLED
    assert bakery.left() == []


def test_bake_goes_on_under_one_owner_and_can_be_swept_when_it_has_none(
    bakery: Bakery, package: Path
) -> None:
    folder = bakery.scripts(setup="sleep 600")
    running = bakery.bake("--deb", package, "--scripts", folder)
    bakery.wait_phase(running, Phase.SETUP)
    bake_id = bakery.last.id
    second = bakery.cli.run(
        "images", "bake", "--resume", bake_id, "--deb", str(package), "--scripts", str(folder)
    )
    assert second.returncode == 73, second
    assert "goes on" in second.stderr
    swept = bakery.cli.run("images", "sweep", bake_id)
    assert (swept.returncode, bakery.last.state) == (73, BakeState.RUNNING), swept
    # Other scripts would make another image than the one that was begun.
    running.process.kill()
    running.wait()
    other = bakery.cli.run("images", "bake", "--resume", bake_id, "--deb", str(package))
    assert "was begun with another scripts" in other.stderr
    swept = bakery.cli.run("images", "sweep")
    assert swept.returncode == 0, swept
    assert bakery.left() == []
    assert bakes.get(bakery.store, bake_id).state is BakeState.FAILED
    assert builds.get(bakery.store, bake_id).outcome is Outcome.LOST


class LateImages:
    """The local provider, whose images take their time, and which says how often it was asked to make one."""

    def __init__(self, provider: LocalProvider) -> None:
        self._provider = provider
        self.is_late = True
        self.made = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._provider, name)

    def create_image(self, machine_id: str, **words: Any) -> ProviderImage:
        """Make an image."""
        self.made += 1
        return self._provider.create_image(machine_id, **words)

    def get_image(self, image_id: str) -> ProviderImage | None:
        """Return an image, which is not there yet."""
        found = self._provider.get_image(image_id)
        return replace(found, state=ProviderImageState.PENDING) if found and self.is_late else found


class Listener:
    """Hears how a bake goes."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def phase_begun(self, phase: Phase) -> None:
        """Hear it."""

    def output(self, data: bytes) -> None:
        """Hear it."""

    def said(self, text: str) -> None:
        """Keep it."""
        self.heard.append(text)

    def phase_ended(self, phase: Phase, seconds: float, fault: str | None) -> None:
        """Hear it."""


def test_image_that_appears_after_its_wait_is_adopted_and_a_server_that_does_not_join_fails_it(
    bakery: Bakery, package: Path
) -> None:
    provider, listener = LateImages(bakery.provider), Listener()
    ground = baking.Ground(
        store=bakery.store,
        carrier=Carrier(connect(bakery.redis_url)),
        provider=cast(Provider, provider),
        observer=listener,
        by="test",
        server_config=user_data.read(bakery.server_config),
        key_folder=bakery.folder / "keys",
        limits=Limits(launch_s=20.0, image_s=0.5, trial_s=1.0, poll_s=0.05),
    )
    inputs = bundle.read(bakery.scripts(), package)
    request = baking.Request(profile="minimal", version="late", base="debian-12", base_id="debian-12")
    bake_id = baking.begin(ground, request, inputs)
    with pytest.raises(BakeWaits, match=r"is not there after 0.5 s; it is adopted when the bake is resumed"):
        baking.run(ground, bake_id, inputs)
    assert bakery.last.state is BakeState.INTERRUPTED
    assert images.get(bakery.store, bakery.last.image_id).state is ImageState.BAKING
    provider.is_late = False
    with pytest.raises(BakeFailed, match="did not join its queue within 1 s; its console ends:"):
        baking.run(ground, bake_id, inputs)
    assert provider.made == 1
    assert any("has been made for this bake before" in it for it in listener.heard)
    assert images.get(bakery.store, bakery.last.image_id).state is ImageState.FAILED
    assert bakery.left() == []
