"""The fleet's commands as operators use them; who carries their orders out is played, or is another test's matter."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from moto.server import ThreadedMotoServer
from sqlalchemy import insert

from agent import clock
from agent.fleet import scale
from agent.model.build import NewBuild
from agent.model.fleet import MachineState, Purpose, RolloutKind
from agent.model.image import ImageState, NewImage
from agent.store import bakes, builds, decisions, images, machines, pools, rollouts
from agent.store.engine import Store
from agent.store.tables_fleet import server_hours
from tests.acceptance.farm import Farm
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
from tests.acceptance.terminal import Cli, json_lines
from tests.integration.fleet_world import put_image
from tests.services import wait_until

MOTO_AMI = "ami-12c6146b"

pytestmark = pytest.mark.slow


@pytest.fixture
def aws() -> Iterator[dict[str, str]]:
    """The environment of whoever is to take moto's server for EC2."""
    server = ThreadedMotoServer("127.0.0.1", 0)
    server.start()
    host, port = server.get_host_and_port()
    yield {
        "BUILD_AGENT_EC2_ENDPOINT_URL": f"http://{host}:{port}",
        "BUILD_AGENT_EC2_REGION": "eu-west-1",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
    }
    server.stop()


# Where nothing is yet.


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("fleet status", "no pool yet: build-agent fleet create NAME --image IMAGE"),
        ("fleet log", "nothing has happened yet"),
        ("fleet costs", "no hours on record"),
    ],
)
def test_empty_fleet_says_so_and_is_no_error(fleet_cli: Cli, words: str, told: str) -> None:
    done = fleet_cli.run(*words.split())
    assert (done.returncode, done.stdout) == (0, "")
    assert told in done.stderr


def test_pool_that_is_not_there_is_named_with_what_to_do(fleet_cli: Cli, fleet_store: Store) -> None:
    size = audit_size(fleet_store)
    commands = (
        "status nix", "plan nix", "explain nix", "log nix", "log nix --follow", "costs --pool nix",
        "scale nix --floor 1", "pause nix --why x", "resume nix", "hasten nix", "abort nix --why x",
        "rollout nix new", "rollback nix", "remove nix",
    )  # fmt: skip
    check_refused(
        fleet_cli,
        *(Refusal(f"fleet {it}", 66, "no pool 'nix'", "build-agent fleet create") for it in commands),
    )
    assert audit_size(fleet_store) == size


# Pools.


def test_pool_is_made_with_image_queues_and_policy(fleet_cli: Cli, fleet_store: Store) -> None:
    words = "fleet create linux --image old --queue fast --queue slow --queue fast --set ceiling=20 --json"
    made = json.loads(say(fleet_cli, words))
    pool = pools.get(fleet_store, "linux")
    assert {"name", "provider", "queues", "image_id", "previous_image_id", "policy", "paused_why"} < set(made)
    assert made["policy"]["ceiling"] == pool.policy.ceiling == 20
    assert (made["image_id"], made["queues"]) == ("img-old", ["fast", "slow"])
    assert images.get(fleet_store, "img-old").state is ImageState.CURRENT
    assert audited(fleet_store, "pool.create", "linux") == {"provider": "local", "queues": ["fast", "slow"]}
    assert audited(fleet_store, "rollout.begin")["to"] == "img-old"


def test_pool_without_an_image_says_how_it_gets_one(fleet_cli: Cli) -> None:
    done = fleet_cli.run("fleet", "create", "bare")
    assert (done.returncode, done.stdout) == (0, "pool bare is made; it serves builds\n")
    assert "build-agent fleet rollout bare IMAGE" in done.stderr
    assert "no image" not in say(fleet_cli, "fleet status bare")
    assert "image     none: build-agent fleet rollout bare IMAGE" in say(fleet_cli, "fleet plan bare")


def test_pool_that_cannot_be_is_refused_and_leaves_nothing(fleet_cli: Cli, fleet_store: Store) -> None:
    put_pool(fleet_store)
    base = NewImage(id="img-raw", version="raw", provider="local", profile="minimal", base="b", by="bob")
    bakes.create(fleet_store, "bake-raw", base, {})
    with fleet_store.begin() as connection:
        images.change(
            connection, "img-new", to=ImageState.BAD, only_from=images.USABLE, by="bob", reason="it burns"
        )
    check_refused(
        fleet_cli,
        Refusal("fleet create a --queue a --image nope", 66, "no image 'nope'", "images list --all"),
        Refusal("fleet create b --queue b --image new", 73, "image new is bad: it burns"),
        Refusal("fleet create c --queue c --image raw", 73, "image raw is baking"),
        Refusal("fleet create d --queue d --image old --provider ec2", 73, "image old is at provider local"),
        Refusal("fleet create linux --queue e", 73, "there is a pool 'linux' already"),
        Refusal("fleet create f", 73, "queue builds is served by pool linux"),
        Refusal("fleet create g --queue g --set ceiling=many", 78, "policy: ceiling"),
        Refusal("fleet create h --queue h --set floor=20", 78, "floor 20 is over ceiling 10"),
        Refusal("fleet create i --queue i --set colour=red", 78, "policy: colour", "it has slots, floor"),
        Refusal("fleet create j --queue j --set floor", 2, "--set': 'floor'", "expected NAME=VALUE"),
        Refusal("fleet create 'k l' --queue k", 2, "'k l'", "expected letters, digits"),
        Refusal("fleet create m --queue ''", 2, "'--queue'", "expected letters, digits"),
    )
    assert [it.name for it in pools.list_pools(fleet_store)] == ["linux"]


def test_status_for_programs_has_pools_servers_and_lead(fleet_cli: Cli, fleet_store: Store) -> None:
    put_pool(fleet_store)
    machine = put_machine(fleet_store, reason="two more are needed")
    builds.create(fleet_store, NewBuild(id="b-1", project="x", queue="builds", definition={"version": 1}))
    told = json.loads(say(fleet_cli, "fleet status linux --json"))
    assert set(told) == {"lead", "unserved", "pools"}
    pool = told["pools"][0]
    assert (pool["name"], pool["image"], pool["waiting"], pool["rollout"]) == ("linux", "old", 1, None)
    assert pool["counts"]["booting"] == 1
    assert pool["machines"][0]["reason"] == "two more are needed"
    assert pool["machines"][0]["machine"]["id"] == machine.id


def test_status_reads_as_people_need_it(fleet_cli: Cli, fleet_store: Store) -> None:
    put_pool(fleet_store, ceiling=7)
    serve(fleet_store, put_machine(fleet_store))
    for queue in ("builds", "nobody"):
        builds.create(fleet_store, NewBuild(id=queue, project="x", queue=queue, definition={"version": 1}))
    done = fleet_cli.run("fleet", "status")
    assert done.stdout.splitlines()[:3] == [
        "pool      linux, local, serves builds",
        "image     old",
        "servers   1 accepting; from 0 to 7",
    ]
    assert "0 running, 1 waiting, the oldest for " in done.stdout
    # Nobody leads, so nobody else has found that out.
    assert "! queue nobody is served by no pool and no server: 1 build waiting there" in done.stdout
    assert NO_LEADER in done.stderr


def test_pool_is_removed_once_it_has_no_servers(fleet_cli: Cli, fleet_store: Store) -> None:
    put_pool(fleet_store)
    machine = put_machine(fleet_store)
    check_refused(
        fleet_cli,
        Refusal("fleet remove linux", 2, "nobody can be asked here", "say --yes to remove pool linux"),
        Refusal(
            "fleet remove linux --yes", 73, "has machines yet", "fleet scale linux --floor 0 --ceiling 0"
        ),
    )
    with fleet_store.begin() as connection:
        machines.move(connection, machine, MachineState.GONE)
    assert json.loads(say(fleet_cli, "fleet remove linux --yes --json")) == {"removed": "linux"}
    assert pools.list_pools(fleet_store) == []
    assert audited(fleet_store, "pool.remove", "linux") == {}


# Size.


def test_dry_run_of_a_new_size_shows_old_and_new_and_changes_nothing(
    fleet_cli: Cli, fleet_store: Store
) -> None:
    put_pool(fleet_store, schedule=[{"days": ["mon"], "floor": 1}])
    before, size = pools.get(fleet_store, "linux"), audit_size(fleet_store)
    words = "fleet scale linux --ceiling 4 --spare 2 --set size=m6i.xlarge --set schedule=[] --dry-run"
    window = '{"days": ["mon"], "start": "00:00", "end": "00:00", "zone": "UTC", "floor": 1, "ceiling": null}'
    assert say(fleet_cli, words).splitlines() == [
        "ceiling: 10 -> 4",
        "spare_slots: 0 -> 2",
        f"schedule: [{window}] -> []",
        'size: "" -> "m6i.xlarge"',
    ]
    assert json.loads(say(fleet_cli, f"{words} --json"))["policy"]["ceiling"] == 4
    assert (pools.get(fleet_store, "linux"), audit_size(fleet_store)) == (before, size)


def test_new_size_is_on_record_with_who_and_why(fleet_cli: Cli, fleet_store: Store) -> None:
    put_pool(fleet_store)
    done = say(fleet_cli, "fleet scale linux --floor 2 --set max_age_s=86400 --why 'a busy week'")
    assert done.splitlines() == ["floor: 0 -> 2", "max_age_s: 0.0 -> 86400.0"]
    assert pools.get(fleet_store, "linux").changed_by == ACTOR
    assert audited(fleet_store, "pool.change", "linux") == {
        "policy": {"floor": 2, "max_age_s": 86400},
        "why": "a busy week",
    }
    changed = json.loads(say(fleet_cli, "fleet scale linux --ceiling 3 --yes --json"))
    assert (changed["policy"]["floor"], changed["policy"]["ceiling"]) == (2, 3)
    assert say(fleet_cli, "fleet scale linux --ceiling 3") == "nothing changes\n"


def test_size_that_cannot_be_is_refused_and_changes_nothing(fleet_cli: Cli, fleet_store: Store) -> None:
    put_pool(fleet_store)
    before, size = pools.get(fleet_store, "linux"), audit_size(fleet_store)
    check_refused(
        fleet_cli,
        Refusal("fleet scale linux", 2, "say what to change", "--floor, --ceiling, --spare or --set"),
        Refusal("fleet scale linux --ceiling 5", 2, "say --yes to have at most 5 servers in pool linux"),
        Refusal("fleet scale linux --floor 11", 78, "floor 11 is over ceiling 10"),
        Refusal("fleet scale linux --floor=-1 --dry-run", 78, "policy: floor"),
        Refusal("fleet scale linux --set =5", 2, "'=5'", "expected NAME=VALUE"),
        Refusal("fleet scale linux --set surge=2", 78, "policy: surge"),
    )
    assert (pools.get(fleet_store, "linux"), audit_size(fleet_store)) == (before, size)


def test_waiting_for_a_size_shows_it_and_ctrl_c_leaves_the_policy(fleet_cli: Cli, fleet_store: Store) -> None:
    put_pool(fleet_store)
    pools.pause(fleet_store, "linux", by="bob", why="a look")
    terminal = fleet_cli.on_terminal("fleet", "scale", "linux", "--floor", "2", "--wait")
    terminal.wait_for("0 of 2 servers ready; paused by bob: a look")
    assert NO_LEADER in terminal.sent.decode()
    serve(fleet_store, put_machine(fleet_store))
    terminal.wait_for("1 of 2 servers ready")
    terminal.type(b"\x03")
    assert terminal.wait() == 130
    assert terminal.lines[-2] == (
        "build-agent: stopped waiting; the policy stands: build-agent fleet status linux"
    )
    assert pools.get(fleet_store, "linux").policy.floor == 2


def test_waiting_for_fewer_servers_is_over_though_those_of_others_stay(
    fleet_cli: Cli, fleet_store: Store
) -> None:
    put_pool(fleet_store)
    put_server(fleet_store, "of-bob")
    serve(fleet_store, put_machine(fleet_store, "new", purpose=Purpose.MANUAL))
    serve(fleet_store, put_machine(fleet_store))
    waiting = fleet_cli.start("fleet", "scale", "linux", "--ceiling", "9", "--yes", "--wait")
    waiting.wait_for(NO_LEADER)
    assert waiting.process.poll() is None
    machine = machines.list_machines(fleet_store)[0]
    assert machine.purpose is Purpose.SCALE
    with fleet_store.begin() as connection:
        machines.move(connection, machine, MachineState.LEAVING)
    assert waiting.wait() == 0


# Decisions.


def test_plan_says_what_the_rule_makes_of_now_and_does_nothing(fleet_cli: Cli, fleet_store: Store) -> None:
    put_pool(fleet_store, slots=2)
    for number in range(3):
        builds.create(
            fleet_store, NewBuild(id=f"b-{number}", project="x", queue="builds", definition={"version": 1})
        )
    told = say(fleet_cli, "fleet plan linux")
    assert told.startswith("wanted    2: 3 waiting + 0 running, 2 a server: 2 needed")
    assert "start     2\ndrain     0\n" in told
    planned = json.loads(say(fleet_cli, "fleet plan linux --json"))
    assert set(planned) == {"pool", "inputs", "answer", "replace", "leave"}
    assert (planned["inputs"]["waiting"], planned["answer"]["start"]) == (3, 2)
    assert machines.list_machines(fleet_store) == []
    assert decisions.list_decisions(fleet_store, "linux") == []


def test_decisions_are_explained_by_their_inputs_and_replayed(fleet_cli: Cli, fleet_store: Store) -> None:
    put_pool(fleet_store)
    put_pool(fleet_store, "idle", queue="idle")
    inputs = scale.Inputs(
        waiting=9, running=0, slots=2, spare_slots=0, floor=0, ceiling=3, accepting=1, booting=0
    )
    answer = scale.decide(inputs)
    with fleet_store.begin() as connection:
        for rule, start in ((scale.RULE - 1, answer.start), (scale.RULE, 7), (scale.RULE, answer.start)):
            decisions.write(
                connection, pool="linux", rule=rule, inputs=inputs.plain(),
                wanted=answer.wanted, start=start, drain=0, reason=answer.reason,
            )  # fmt: skip
    rows = say(fleet_cli, "fleet explain linux").splitlines()[1:]
    assert [row.split(maxsplit=5)[5].split("  ")[0] for row in rows] == ["same", "DIFFERS", "another rule"]
    assert "9 waiting + 0 running, 2 a server: 5 needed; no more than 3" in rows[0]
    newest = json.loads(say(fleet_cli, "fleet explain linux --limit 1 --json"))
    assert [(it["inputs"]["waiting"], it["start"], it["is_same"]) for it in newest] == [(9, 2, True)]
    none = fleet_cli.run("fleet", "explain", "idle")
    assert (none.returncode, none.stdout) == (0, "")
    assert "no decision yet" in none.stderr


# What happened, and what it costs.


def test_log_prints_the_newest_last_of_a_pool_or_of_all(fleet_cli: Cli, fleet_store: Store) -> None:
    put_pool(fleet_store)
    put_pool(fleet_store, "other", queue="other")
    machine = put_machine(fleet_store, by="bob", reason="a look")
    rollouts.begin(fleet_store, "other", "img-new", kind=RolloutKind.ROLLOUT, by="bob")
    lines = say(fleet_cli, "fleet log").splitlines()
    assert lines[0].endswith(f"  machine {machine.id[:8]}  asked for by bob: a look")
    assert lines[1].endswith("rollout of image new begun by bob")
    # A log goes over days.
    assert lines[0].startswith(f"{clock.utc_now().astimezone():%Y-%m-%d }")
    assert say(fleet_cli, "fleet log linux").splitlines() == lines[:1]
    events = json_lines(say(fleet_cli, "fleet log --limit 1 --json"))
    assert [(it["subject_kind"], it["pool"]) for it in events] == [("rollout", "other")]


def test_log_is_followed_from_the_first_event_until_ctrl_c(fleet_cli: Cli, fleet_store: Store) -> None:
    put_pool(fleet_store)
    following = fleet_cli.start("fleet", "log", "linux", "--follow", "--json")
    following.wait_for("nothing has happened yet")
    machine = put_machine(fleet_store)
    following.wait_for(machine.id)
    with fleet_store.begin() as connection:
        machines.move(connection, machine, MachineState.GONE, reason="enough")
    following.wait_for("wanted -> gone: enough")
    assert following.interrupt() == 130
    assert [it["subject_id"] for it in json_lines(following.out)] == [machine.id] * 2
    assert "stopped following" in following.err
    assert "Traceback" not in following.err
    with pytest.raises(ProcessLookupError):
        os.killpg(following.process.pid, 0)


def test_costs_are_told_by_pool_image_and_state(fleet_cli: Cli, fleet_store: Store) -> None:
    hour = clock.utc_now().replace(minute=0, second=0, microsecond=0)
    rows = [
        (hour, "linux", "img-old", "accepting", 5400.0, 1800.0),
        (hour - timedelta(hours=1), "linux", "img-old", "accepting", 3600.0, 0.0),
        (hour, "other", "img-new", "booting", 900.0, 0.0),
        (hour - timedelta(days=9), "linux", "img-old", "accepting", 3600.0, 0.0),
    ]
    with fleet_store.begin() as connection:
        for row in rows:
            connection.execute(
                insert(server_hours).values(dict(zip(server_hours.c.keys(), row, strict=True)))
            )
    assert [line.split() for line in say(fleet_cli, "fleet costs").splitlines()[1:]] == [
        ["linux", "old", "accepting", "2.50", "0.50"],
        ["other", "new", "booting", "0.25", "0.00"],
        ["all", "2.75", "0.50"],
    ]
    # A pool that was removed has cost something all the same.
    found = json.loads(say(fleet_cli, "fleet costs --days 30 --pool linux --json"))
    assert [it["seconds"] for it in found] == [3600.0, 3600.0, 5400.0]
    assert set(found[0]) == {"hour", "pool", "image_id", "state", "seconds", "idle_seconds"}


# The controller.


def test_controller_without_the_settings_of_servers_says_which_are_missing(fleet_cli: Cli) -> None:
    check_refused(fleet_cli, Refusal("fleet run", 78, "fleet_server_config is not set", "database_url"))
    assert NO_LEADER in fleet_cli.run("fleet", "status").stderr


def test_controller_starts_and_ends_what_commands_ask_for(
    postgres_farm: Farm, tmp_path: Path, aws: dict[str, str]
) -> None:
    store, config = postgres_farm.store, tmp_path / "servers.toml"
    config.write_text('redis_url = "redis://10.0.0.1:6379/0"\ndatabase_url = "postgresql://x@10.0.0.1/x"\n')
    put_image(store, "old", MOTO_AMI, provider="ec2")
    quick = {"fleet_cycle_s": "0.1", "fleet_list_s": "0.5"}
    with Cli(postgres_farm, tmp_path, fleet_server_config=str(config), **quick) as cli:
        cli.environment |= aws
        say(cli, "fleet create linux --image old")
        controller = cli.start("fleet", "run")
        starting = cli.start("servers", "start", "--wait", "--json")

        def booting() -> str | None:
            found = [it for it in machines.list_machines(store) if it.state is MachineState.BOOTING]
            return found[0].name if found else None

        put_server(store, wait_until(booting, 30, lambda: controller.err) or "")
        assert starting.wait() == 0, starting.err
        assert json.loads(starting.out)[0]["state"] == "serving"
        status = cli.run("fleet", "status", "linux")
        assert "1 accepting" in status.stdout
        assert NO_LEADER not in status.stderr
        wait_until(lambda: "rolling -> done" in say(cli, "fleet log linux"), 30, lambda: controller.err)
        assert "DIFFERS" not in say(cli, "fleet explain linux")
        say(cli, "servers start")
        name = wait_until(booting, 30) or ""
        assert say(cli, f"terminate {name}") == f"machine {name} is to end\n"
        wait_until(lambda: machines.get(store, name).state is MachineState.GONE, 30, lambda: controller.err)
        assert controller.interrupt() == 0, controller.err
        assert NO_LEADER in cli.run("fleet", "status").stderr
