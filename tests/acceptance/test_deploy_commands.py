"""Servers started and ended by hand, and deployments, as operators ask for them; the controller is played."""

from __future__ import annotations

import json

import pytest

from agent import clock
from agent.model.fleet import DeploymentState, MachineState, Purpose, StageName, StageState
from agent.model.image import ImageState
from agent.model.server import OrderKind
from agent.store import deployments, images, machines, servers
from agent.store.engine import Store
from tests.acceptance.fleet_record import (
    ACTOR,
    NO_LEADER,
    Refusal,
    audit_size,
    audited,
    check_refused,
    put_machine,
    put_pool,
    put_server,
    say,
    serve,
)
from tests.acceptance.terminal import Cli

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPOSITORY = "https://git.example.org/build-agent.git"

pytestmark = pytest.mark.slow


@pytest.fixture
def deploying(fleet_cli: Cli, fleet_store: Store) -> Cli:
    """The command line where the pool `linux` is deployed to."""
    put_pool(fleet_store)
    fleet_cli.environment |= {
        "BUILD_AGENT_DEPLOY_REPOSITORY": REPOSITORY,
        "BUILD_AGENT_DEPLOY_POOL": "linux",
    }
    return fleet_cli


def begin(store: Store) -> str:
    """Put a deployment on record."""
    return deployments.begin(
        store, pool="linux", repository=REPOSITORY, commit=COMMIT, branch=None, by="bob"
    ).id


def fail_test(store: Store, deployment_id: str) -> None:
    """Play the controller: the commit's own tests fail."""
    with store.begin() as connection:
        deployments.begin_stage(connection, deployment_id, StageName.TEST, output_id="deploy-1")
        deployments.end_stage(
            connection, deployment_id, StageName.TEST, StageState.FAILED, detail="build deploy-1: failed"
        )


# Servers by hand.


def test_servers_are_started_as_asked_with_who_and_why(fleet_cli: Cli, fleet_store: Store) -> None:
    put_pool(fleet_store)
    words = ("servers", "start", "--count", "2", "--image", "new", "--why", "a load test")
    done = fleet_cli.run(*words)
    made = machines.list_machines(fleet_store)
    assert done.returncode == 0
    assert sorted(done.stdout.splitlines()) == sorted(f"server {it.name} is to start" for it in made)
    assert NO_LEADER in done.stderr
    assert {(it.pool, it.image_id, it.state, it.purpose, it.reason, it.created_by) for it in made} == {
        ("linux", "img-new", MachineState.WANTED, Purpose.MANUAL, "a load test", ACTOR)
    }
    detail = audited(fleet_store, "machine.start", "linux")
    assert (detail["count"], detail["image"], detail["why"]) == (2, "img-new", "a load test")
    assert set(detail["machines"]) == {it.id for it in made}
    listed = say(fleet_cli, "servers")
    assert all(it.name in listed for it in made)
    own = json.loads(say(fleet_cli, "servers start --pool linux --json"))
    assert [(it["image_id"], it["purpose"], it["state"]) for it in own] == [("img-old", "scale", "wanted")]


def test_servers_that_cannot_be_started_are_refused(fleet_cli: Cli, fleet_store: Store) -> None:
    check_refused(fleet_cli, Refusal("servers start", 66, "say which pool", "build-agent fleet create"))
    put_pool(fleet_store)
    put_pool(fleet_store, "bare", None, queue="bare")
    with fleet_store.begin() as connection:
        images.change(connection, "img-new", to=ImageState.BAD, only_from=images.USABLE, by="bob")
    check_refused(
        fleet_cli,
        Refusal("servers start", 66, "say which pool: bare, linux"),
        Refusal("servers start --pool nix", 66, "no pool 'nix'", "there are bare, linux"),
        Refusal("servers start --pool linux --image nope", 66, "no image 'nope'", "images list --all"),
        Refusal("servers start --pool linux --image new", 73, "image new is bad"),
        Refusal("servers start --pool bare", 73, "pool bare has no image", "name one"),
        Refusal("servers start --pool linux --count 0", 2, "'--count'", "1<=x<=1000"),
    )
    assert machines.list_machines(fleet_store) == []


def test_servers_over_the_ceiling_are_not_started(fleet_cli: Cli, fleet_store: Store) -> None:
    put_pool(fleet_store, ceiling=3)
    put_machine(fleet_store)
    check_refused(
        fleet_cli, Refusal("servers start --count 3", 73, "pool linux", "fleet scale linux --ceiling 4")
    )
    assert len(machines.list_machines(fleet_store)) == 1


def test_waiting_for_servers_names_each_and_ctrl_c_starts_them_all_the_same(
    fleet_cli: Cli, fleet_store: Store
) -> None:
    put_pool(fleet_store)
    terminal = fleet_cli.on_terminal("servers", "start", "--count", "2", "--wait")
    terminal.wait_for("0 of 2 servers ready")
    first, second = machines.list_machines(fleet_store)
    serve(fleet_store, first)
    terminal.wait_for("1 of 2 servers ready")
    terminal.type(b"\x03")
    assert terminal.wait() == 130
    assert "build-agent: stopped waiting; the servers are started all the same" in terminal.lines
    assert [it for it in terminal.lines if it.endswith(f"machine {first.id[:8]}  wanted -> serving")]
    assert not [it for it in terminal.lines if "servers ready" in it]
    assert machines.get(fleet_store, second.id).state is MachineState.WANTED


def test_waiting_for_a_server_that_never_comes_ends_with_1_and_its_fault(
    fleet_cli: Cli, fleet_store: Store
) -> None:
    put_pool(fleet_store)
    waiting = fleet_cli.start("servers", "start", "--wait")
    waiting.wait_for("asked for by")
    machine = machines.list_machines(fleet_store)[0]
    with fleet_store.begin() as connection:
        machines.move(connection, machine, MachineState.TERMINATING, fault="refused: no such size")
    assert waiting.wait() == 1
    assert waiting.out.endswith("  wanted -> terminating: refused: no such size\n")


def test_quarantine_has_its_end_on_record(fleet_cli: Cli, fleet_store: Store) -> None:
    put_server(fleet_store, "web-1")
    given = json.loads(say(fleet_cli, "quarantine web-1 --for 2h --note 'a look' --json"))
    server = servers.get(fleet_store, "web-1")
    assert (server.wanted, server.wanted_by) == (OrderKind.QUARANTINE, ACTOR)
    assert server.drain_deadline_at is not None
    in_s = (server.drain_deadline_at - clock.utc_now()).total_seconds()
    assert 7200 - 60 < in_s <= 7200
    assert given["order"]["deadline_at"] == given["server"]["drain_deadline_at"]
    detail = audited(fleet_store, "server.quarantine", server.id)
    assert (detail["note"], detail["deadline_at"]) == ("a look", server.drain_deadline_at.isoformat())
    assert say(fleet_cli, "quarantine web-1").startswith("server web-1 is in quarantine")
    assert servers.get(fleet_store, "web-1").drain_deadline_at is None


def test_quarantine_for_what_is_no_duration_is_refused(fleet_cli: Cli, fleet_store: Store) -> None:
    put_server(fleet_store, "web-1")
    size = audit_size(fleet_store)
    check_refused(
        fleet_cli,
        Refusal("quarantine web-1 --for soon", 2, "'--for'", "such as `90s`, `10min` or `1h30m`"),
        Refusal("quarantine web-1 --for 0", 2, "'--for'", "more than 0 seconds"),
        Refusal("quarantine web-1 --for 31d", 2, "'--for'", "at most 30 days"),
        Refusal("quarantine nobody --for 2h", 66, "no server 'nobody'", "build-agent servers --all"),
    )
    assert audit_size(fleet_store) == size


def test_machine_that_no_server_has_come_of_is_ended_at_once(fleet_cli: Cli, fleet_store: Store) -> None:
    put_pool(fleet_store)
    machine = put_machine(fleet_store)
    told = say(fleet_cli, f"terminate {machine.name} --note 'too dear'")
    assert told == f"machine {machine.name} is to end\n"
    ending = machines.get(fleet_store, machine.id)
    assert (ending.state, ending.reason) == (MachineState.TERMINATING, f"asked by {ACTOR}: too dear")
    assert audited(fleet_store, "machine.terminate", machine.id) == {"name": machine.name, "why": "too dear"}
    assert json.loads(say(fleet_cli, f"terminate {machine.name} --json"))["state"] == "terminating"
    with fleet_store.begin() as connection:
        machines.move(connection, ending, MachineState.GONE)
    check_refused(
        fleet_cli,
        Refusal(f"terminate {machine.name}", 73, f"machine {machine.name} is gone"),
        Refusal("terminate nobody", 66, "no server 'nobody'", "build-agent servers --all"),
    )


# Deployments.


def test_no_deployment_yet_is_no_error(fleet_cli: Cli) -> None:
    done = fleet_cli.run("deployments")
    assert (done.returncode, done.stdout) == (0, "")
    assert "no deployment yet: build-agent deploy COMMIT" in done.stderr


def test_deployment_that_cannot_be_is_refused(fleet_cli: Cli, fleet_store: Store) -> None:
    put_pool(fleet_store)
    begin(fleet_store)
    at = f"--repository {REPOSITORY}"
    check_refused(
        fleet_cli,
        Refusal(f"deploy HEAD {at}", 2, "COMMIT: 'HEAD' is no whole commit id", "git rev-parse"),
        Refusal(f"deploy {COMMIT[:12]} {at}", 2, f"'{COMMIT[:12]}' is no whole commit id"),
        Refusal(f"deploy {COMMIT}", 78, "deploy_repository is not set", "--repository"),
        Refusal(f"deploy {COMMIT} {at}", 66, "no pool 'default'; there are linux", "--pool or the setting"),
        Refusal(f"deploy {COMMIT} {at} --pool nix", 66, "no pool 'nix'; there are linux"),
        Refusal(f"deploy {COMMIT} {at} --pool linux", 73, "to pool linux already, asked for by bob", "show"),
        Refusal("deployments show nix", 66, "no deployment 'nix'", "build-agent deployments"),
        Refusal("deployments cancel nix --why x", 66, "no deployment 'nix'"),
        Refusal(f"deployments cancel {COMMIT[:6]}", 2, "Missing option '--why'"),
    )
    assert len(deployments.list_deployments(fleet_store)) == 1


def test_deployment_is_begun_listed_and_shown(deploying: Cli, fleet_store: Store) -> None:
    done = deploying.run("deploy", COMMIT)
    made = deployments.list_deployments(fleet_store)[0]
    assert done.stdout == f"deployment {made.id[:8]} of {COMMIT[:12]} to pool linux begun\n"
    assert NO_LEADER in done.stderr
    assert audited(fleet_store, "deployment.begin", made.id) == {"commit": COMMIT, "pool": "linux"}
    [listed] = json.loads(say(deploying, "deployments --json"))
    assert {"id", "pool", "repository", "commit", "branch", "state", "image_id", "detail"} < set(listed)
    assert (listed["repository"], listed["created_by"]) == (REPOSITORY, ACTOR)
    assert made.id[:8] in say(deploying, "deployments")
    fail_test(fleet_store, made.id)
    # The commit names it as well; what had not begun never will.
    shown = say(deploying, f"deployments show {COMMIT[:8]}").splitlines()
    assert "state       failed: test: build deploy-1: failed" in shown
    stages = {line.split()[0]: line.split()[1:] for line in shown if line.startswith(tuple(StageName))}
    assert stages["test"][0] == "failed"
    assert stages["test"][3:5] == ["logs", "deploy-1"]
    assert [stages[name] for name in ("package", "bake", "rollout")] == [["skipped", "-", "-", "-"]] * 3
    as_json = json.loads(say(deploying, f"deployments show {made.id[:8]} --json"))
    assert [it["name"] for it in as_json["stages"]] == ["test", "package", "bake", "rollout"]


def test_deployment_is_cancelled_once_with_who_and_why(deploying: Cli, fleet_store: Store) -> None:
    deployment_id = begin(fleet_store)
    with fleet_store.begin() as connection:
        deployments.begin_stage(connection, deployment_id, StageName.TEST, output_id="deploy-1")
    cancelled = json.loads(say(deploying, f"deployments cancel {deployment_id[:8]} --why 'not now' --json"))
    assert (cancelled["state"], cancelled["detail"]) == ("cancelled", f"by {ACTOR}: not now")
    assert audited(fleet_store, "deployment.cancelled") == {"detail": f"by {ACTOR}: not now"}
    shown = say(deploying, f"deployments show {deployment_id[:8]}").splitlines()
    assert f"state       cancelled: by {ACTOR}: not now" in shown
    assert next(line for line in shown if line.startswith("test ")).split()[1] == "cancelled"
    check_refused(
        deploying,
        Refusal(f"deployments cancel {deployment_id[:8]} --why x", 73, "has been cancelled already"),
    )
    # It is no longer in the way.
    again = json.loads(say(deploying, f"deploy {COMMIT} --json"))
    assert (again["state"], again["commit"]) == ("running", COMMIT)


def test_waiting_for_a_deployment_shows_its_stages_and_ctrl_c_ends_the_waiting_alone(
    deploying: Cli, fleet_store: Store
) -> None:
    terminal = deploying.on_terminal("deploy", COMMIT, "--wait")
    terminal.wait_for("test waiting, package waiting, bake waiting, rollout waiting")
    made = deployments.list_deployments(fleet_store)[0]
    with fleet_store.begin() as connection:
        deployments.begin_stage(connection, made.id, StageName.TEST, output_id="deploy-1")
    terminal.wait_for("test: begun")
    terminal.wait_for("test running, package waiting")
    terminal.type(b"\x03")
    assert terminal.wait() == 130
    assert f"build-agent: stopped following; deployment {made.id[:8]} goes on" in terminal.lines
    assert deployments.get(fleet_store, made.id).state is DeploymentState.RUNNING


def test_exit_code_of_the_waiting_tells_how_the_deployment_ended(deploying: Cli, fleet_store: Store) -> None:
    waiting = deploying.start("deploy", COMMIT, "--wait")
    waiting.wait_for(f"{COMMIT[:12]} by {ACTOR}")
    made = deployments.list_deployments(fleet_store)[0]
    following = deploying.start("deployments", "show", made.id, "--follow", "--json")
    fail_test(fleet_store, made.id)
    assert (waiting.wait(), following.wait()) == (1, 1)
    assert "test: failed: build deploy-1: failed" in waiting.out
    assert json.loads(following.out)["state"] == "failed"
    passed = begin(fleet_store)
    with fleet_store.begin() as connection:
        for name in StageName:
            deployments.end_stage(connection, passed, name, StageState.PASSED, detail="good")
    assert deploying.run("deployments", "show", passed, "--follow").returncode == 0
