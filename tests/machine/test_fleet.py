"""The fleet on booted servers: it grows and shrinks, rolls out and back, whatever dies meanwhile."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest

from agent.fleet.local.provider import LocalProvider
from agent.fleet.provider import TAG_MACHINE
from agent.model.fleet import (
    DeploymentState,
    MachineState,
    RolloutState,
    StageName,
    StageState,
)
from agent.model.image import ImageState
from agent.model.outcome import Outcome
from agent.queue.private import PrivateRedis
from agent.store import attempts, builds, deployments, images, machines, pools, rollouts
from tests.integration.fleet_world import put_image
from tests.machine.bakery import write_small_scripts
from tests.machine.fleet_site import Site, changed_image
from tests.services import wait_until

# Builds on it fail by the server's fault, though it boots and joins as it should: its workspaces go away a moment later.
BROKEN = """
mkdir -p /etc/systemd/system/build-agent.service.d
printf '[Service]\\nExecStartPost=+/bin/sh -c "chattr +i /var/lib/build-agent/workspaces || mount -t tmpfs -o ro none \
/var/lib/build-agent/workspaces"\\n' >/etc/systemd/system/build-agent.service.d/broken.conf
"""
NEVER_BOOTS = "systemctl mask build-agent.service"
POLICY = (
    "slots=2",
    "scale_in_after_s=3",
    "boot_limit_s=20",
    "canary_limit_s=60",
    "ceiling=3",
    "drain_limit_s=60",
)


@pytest.fixture
def site(
    provider: LocalProvider, redis_server: PrivateRedis, postgres_url: str, server_image: str, tmp_path: Path
) -> Iterator[Site]:
    """A fleet with an image `1` and no pool; no machine is left after the test."""
    with Site(provider, redis=redis_server, database_url=postgres_url, folder=tmp_path) as made:
        put_image(made.store, "1", server_image)
        yield made
        if made.controller is not None:
            made.kill_controller()
        for machine in provider.list_machines({}):
            if TAG_MACHINE in machine.tags:
                provider.terminate(machine.id)


def test_queue_grows_servers_start_builds_run_servers_leave(site: Site) -> None:
    site.say("fleet", "create", "linux", "--image", "1", *(word for it in POLICY for word in ("--set", it)))
    site.lead()
    ids = site.submit("sleep 2", "hostname", count=5)
    site.until_passed(ids)
    names = {it.name for it in machines.list_machines(site.store, with_gone=True)}
    assert len(names) == 3
    site.until(lambda: not machines.list_machines(site.store))
    assert not [it for it in site.provider.list_machines({}) if TAG_MACHINE in it.tags]
    assert "wanted" in site.say("fleet", "explain", "linux").lower()
    assert "DIFFERS" not in site.say("fleet", "explain", "linux", "--limit", "100")


def test_image_is_rolled_out_and_back_with_the_controller_killed_in_between(
    site: Site, server_image: str
) -> None:
    second = changed_image(site.provider, server_image, "second", "echo second >/etc/second")
    site.say("fleet", "create", "linux", "--image", "1", "--set", "floor=2", *_policy())
    site.lead()
    site.until(lambda: len(site.serving("1")) == 2)
    put_image(site.store, "2", second)
    site.say("fleet", "rollout", "linux", "2", "--yes")
    site.until(lambda: site.serving("2"))
    site.kill_controller()
    site.lead()
    ids: list[str] = []

    def is_done() -> bool:
        if len(builds.queued(site.store)) < 4:
            ids.extend(site.submit("hostname", count=4))
        return rollouts.list_rollouts(site.store)[0].state is RolloutState.DONE

    site.until(is_done, 90)
    site.until_passed(ids)
    assert site.serving("1") == []
    assert images.get(site.store, "img-2").state is ImageState.CURRENT
    said = site.say("fleet", "rollback", "linux", "--yes", "--wait")
    assert "rollback" in said
    assert {it.image_id for it in site.serving()} == {"img-1"}
    site.until_passed(site.submit("test ! -e /etc/second"))


def test_image_whose_builds_fail_by_infrastructure_goes_back_and_no_build_is_lost(
    site: Site, server_image: str
) -> None:
    broken = changed_image(site.provider, server_image, "broken", BROKEN)
    site.say("fleet", "create", "linux", "--image", "1", "--set", "floor=1", *_policy())
    site.lead()
    site.until(lambda: site.serving("1"))
    put_image(site.store, "bad", broken)
    site.say("fleet", "rollout", "linux", "bad", "--yes")
    ids: list[str] = []

    def is_back() -> bool:
        if len(builds.queued(site.store)) < 3:
            ids.extend(site.submit("sleep 0.3", count=3))
        return rollouts.list_rollouts(site.store)[0].state is RolloutState.ROLLED_BACK

    site.until(is_back, 90)
    site.until_passed(ids, 90)
    tries = [it for build_id in ids for it in attempts.list_attempts(site.store, build_id)]
    assert sum(it.outcome is Outcome.INFRASTRUCTURE for it in tries) >= 2
    assert images.get(site.store, "img-bad").state is ImageState.BAD
    assert pools.get(site.store, "linux").image_id == "img-1"


def test_image_that_never_boots_is_given_up_with_its_consoles_words(site: Site, server_image: str) -> None:
    mute = changed_image(site.provider, server_image, "mute", NEVER_BOOTS)
    site.say("fleet", "create", "linux", "--image", "1", "--set", "floor=1", *_policy("boot_limit_s=5"))
    site.lead()
    site.until(lambda: site.serving("1"))
    put_image(site.store, "mute", mute)
    done = site.cli.run("fleet", "rollout", "linux", "mute", "--yes", "--wait", timeout_s=90)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "never took builds" in done.stdout
    faults = [
        it.fault for it in machines.list_machines(site.store, with_gone=True) if it.image_id == "img-mute"
    ]
    assert all(
        "no builds within 5 s (no server has registered); its console ends:" in str(it) for it in faults
    )
    assert len(site.serving("1")) == 1


def test_server_killed_behind_the_controllers_back_is_replaced_and_its_build_runs_again(site: Site) -> None:
    site.say("fleet", "create", "linux", "--image", "1", "--set", "floor=1", *_policy())
    # The lease of the servers is what their builds wait for.
    config = site.server_config.read_text()
    site.server_config.write_text(f'{config}lease_s = "6s"\nheartbeat_s = "1s"\nkill_grace_s = "1s"\n')
    site.lead()
    site.until(site.serving)
    [first] = site.serving()
    marker = "test $BUILD_ATTEMPT = 2 || sleep 600"
    [build_id] = site.submit(marker)
    site.until(lambda: builds.get(site.store, build_id).attempt == 1)
    site.provider.terminate(str(first.provider_machine_id))
    site.until_passed([build_id], 90)
    assert [it.outcome for it in attempts.list_attempts(site.store, build_id)] == [
        Outcome.LOST,
        Outcome.PASSED,
    ]
    site.until(lambda: machines.get(site.store, first.id).state is MachineState.GONE)
    assert machines.get(site.store, first.id).reason == "the provider has it no more"
    site.until(lambda: len(site.serving()) == 1)


def _policy(*changed: str) -> list[str]:
    return [word for it in (*POLICY, *changed) for word in ("--set", it)]


# Deployments.

BUILD_YML = """
version: 1
project: fleet
steps:
  - name: tests
    run: test -e setup_scripts/setup.sh && ! test -e broken
"""


def _git(folder: Path, *words: str) -> str:
    done = subprocess.run(
        ["git", "-c", "user.name=Ann", "-c", "user.email=ann@test", *words],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


@contextmanager
def _served(folder: Path, site: Site) -> Iterator[str]:
    """Serve the repositories in a folder to machines; yield the address."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    options = ["--listen=127.0.0.1", f"--port={port}", f"--base-path={folder}", "--export-all", "--reuseaddr"]
    with subprocess.Popen(
        ["git", "-c", "safe.directory=*", "-c", "uploadpack.allowAnySHA1InWant=true", "daemon", *options],
        start_new_session=True,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            wait_until(lambda: _is_open("127.0.0.1", port), 10)
            yield f"git://{site.reachable(('127.0.0.1', port))}"
        finally:
            os.killpg(process.pid, signal.SIGTERM)


def _is_open(host: str, port: int) -> bool:
    with suppress(OSError):
        socket.create_connection((host, port), timeout=1).close()
        return True
    return False


def test_commit_is_tested_baked_tried_and_rolled_out_with_the_controller_killed_in_every_stage(
    site: Site, package: Path, tmp_path: Path
) -> None:
    repository = tmp_path / "served" / "ci" / "fleet"
    write_small_scripts(
        repository / "setup_scripts",
        setup="touch /etc/deployed",
        scrub="[ $# = 1 ] || { rm -f /etc/ssh/ssh_host_* /var/lib/build-agent/server-id; : >/etc/machine-id; }",
    )
    (repository / "build.yml").write_text(BUILD_YML)
    _git(repository, "init", "--quiet", "--initial-branch=main")
    _git(repository, "add", "--all")
    _git(repository, "commit", "--quiet", "--message=First")
    good = _git(repository, "rev-parse", "HEAD")
    (repository / "broken").write_text("")
    _git(repository, "add", "--all")
    _git(repository, "commit", "--quiet", "--message=Second")
    bad = _git(repository, "rev-parse", "HEAD")
    with _served(tmp_path / "served", site) as url:
        site.cli.environment |= {
            "BUILD_AGENT_DEPLOY_REPOSITORY": f"{url}/ci/fleet",
            "BUILD_AGENT_DEPLOY_PROFILE": "minimal",
            "BUILD_AGENT_DEPLOY_BASE": "1",
            "BUILD_AGENT_DEPLOY_POOL": "linux",
            "BUILD_AGENT_DEPLOY_PACKAGE_COMMAND": f"mkdir -p dist; sleep 1; cp {package} dist/",
            "BUILD_AGENT_STATE_DIR": str(tmp_path / "state"),
        }
        site.say("fleet", "create", "linux", "--image", "1", "--set", "floor=1", *_policy("canary_limit_s=2"))
        site.lead()
        site.until(lambda: site.serving("1"))
        refused = site.cli.run("deploy", bad, "--wait", timeout_s=90)
        assert refused.returncode == 1, refused.stdout + refused.stderr
        assert "test: failed" in refused.stdout
        assert {it.image_id for it in site.serving()} == {"img-1"}
        deployment = json.loads(site.say("deploy", good, "--json"))["id"]
        for name in StageName:
            site.until(partial(_has_begun, site, deployment, name), 120)
            site.kill_controller()
            site.lead()
        site.until(lambda: deployments.get(site.store, deployment).state is not DeploymentState.RUNNING, 180)
        found = deployments.get(site.store, deployment)
        assert found.state is DeploymentState.PASSED, found.detail
        site.until_passed(site.submit("test -e /etc/deployed"))
        assert images.get(site.store, str(found.image_id)).state is ImageState.CURRENT
        assert good[:12] in site.say("deployments")
        shown = site.say("deployments", "show", deployment[:8])
        assert [line.split()[:2] for line in shown.splitlines()[-4:]] == [[it, "passed"] for it in StageName]


def _has_begun(site: Site, deployment: str, name: StageName) -> bool:
    stages = {it.name: it.state for it in deployments.list_stages(site.store, deployment)}
    return stages[name] is not StageState.WAITING
