"""Roll-outs as operators ask for them, pause, hasten and give them up; the controller is played."""

from __future__ import annotations

import json

import pytest

from agent.model.fleet import Purpose, RolloutKind, RolloutState
from agent.model.image import ImageState
from agent.store import fleet_events, images, pools, rollouts
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
    say,
    serve,
)
from tests.acceptance.terminal import Cli
from tests.integration.fleet_world import put_image

pytestmark = pytest.mark.slow


def open_rollout(store: Store, pool: str = "linux", kind: RolloutKind = RolloutKind.ROLLOUT) -> str:
    """Begin to bring a pool to the image `new`."""
    return rollouts.begin(store, pool, "img-new", kind=kind, by="bob").id


def move(store: Store, rollout_id: str, to: RolloutState, reason: str) -> None:
    """Move a roll-out on as the controller does."""
    with store.begin() as connection:
        rollouts.move(connection, rollouts.read(connection, rollout_id), to, reason=reason)


def test_dry_run_of_a_roll_out_says_what_would_be_done_and_does_nothing(
    fleet_cli: Cli, fleet_store: Store
) -> None:
    put_pool(fleet_store)
    for _ in range(5):
        put_machine(fleet_store)
    size = audit_size(fleet_store)
    assert say(fleet_cli, "fleet rollout linux new --dry-run") == (
        "roll out new to pool linux, which has old: 1 server to try it, 5 servers to replace, 1 at a time\n"
    )
    would = json.loads(say(fleet_cli, "fleet rollout linux new --dry-run --json"))
    assert (would["kind"], would["to_image_id"], would["state"]) == ("rollout", "img-new", "canary")
    back = say(fleet_cli, "fleet rollback linux new --dry-run")
    assert back.startswith("bring pool linux back from old to new without trial: 5 servers to replace")
    assert rollouts.list_rollouts(fleet_store) == []
    assert (audit_size(fleet_store), fleet_events.list_events(fleet_store, kind="rollout")) == (size, [])


def test_roll_out_that_cannot_be_is_refused_before_anybody_is_asked(
    fleet_cli: Cli, fleet_store: Store
) -> None:
    put_pool(fleet_store)
    put_image(fleet_store, "foul", "p-foul")
    with fleet_store.begin() as connection:
        images.change(connection, "img-foul", to=ImageState.BAD, only_from=images.USABLE, by="bob")
    check_refused(
        fleet_cli,
        Refusal(
            "fleet rollout linux new", 2, "nobody can be asked here", "say --yes to roll out new to pool"
        ),
        Refusal("fleet rollout linux nope", 66, "no image 'nope'", "images list --all"),
        Refusal("fleet rollout linux foul", 73, "image foul is bad"),
        Refusal("fleet rollout linux foul --dry-run", 73, "image foul is bad"),
        Refusal("fleet rollout linux old --dry-run", 73, "starts its servers from image old already"),
        Refusal("fleet rollback linux --yes", 66, "pool linux has no image to go back to", "images list"),
    )
    assert rollouts.list_rollouts(fleet_store) == []


def test_roll_out_is_begun_with_who_and_why_and_there_is_one_at_a_time(
    fleet_cli: Cli, fleet_store: Store
) -> None:
    put_pool(fleet_store)
    done = fleet_cli.run("fleet", "rollout", "linux", "new", "--yes", "--why", "a new compiler")
    begun = rollouts.list_rollouts(fleet_store)[0]
    assert (done.returncode, done.stdout) == (0, f"rollout {begun.id[:8]} of pool linux begun: new\n")
    assert NO_LEADER in done.stderr
    assert audited(fleet_store, "rollout.begin", begun.id) == {
        "kind": "rollout", "pool": "linux", "to": "img-new", "why": "a new compiler",
    }  # fmt: skip
    check_refused(
        fleet_cli,
        Refusal("fleet rollout linux new --yes", 73, f"under way ({begun.id[:8]}, canary)", "abort linux"),
        Refusal("fleet rollout linux new --dry-run", 73, "under way", "build-agent fleet abort linux"),
    )
    # The image that is tried is not the pool's yet: back is to the one that it has.
    back = json.loads(say(fleet_cli, "fleet rollback linux --yes --why 'it burns' --json"))
    assert (back["kind"], back["to_image_id"], back["reason"]) == ("rollback", "img-old", "it burns")
    assert audited(fleet_store, "rollout.begin", back["id"])["why"] == "it burns"
    assert audited(fleet_store, "rollout.aborted", begun.id)["was"] == "canary"


def test_roll_back_goes_to_the_image_before(fleet_cli: Cli, fleet_store: Store) -> None:
    put_pool(fleet_store)
    with fleet_store.begin() as connection:
        pools.set_image(connection, "linux", "img-new", by="bob")
    assert say(fleet_cli, "fleet rollback linux --yes").endswith(" of pool linux begun: old\n")
    assert pools.get(fleet_store, "linux").image_id == "img-old"


@pytest.mark.parametrize(
    ("key", "code", "told", "count"),
    [(b"n\n", 1, "nothing was done", 0), (b"\x03", 130, "interrupted", 0), (b"y\n", 0, "begun: new", 1)],
)
def test_person_is_asked_before_a_roll_out(
    fleet_cli: Cli, fleet_store: Store, key: bytes, code: int, told: str, count: int
) -> None:
    put_pool(fleet_store)
    terminal = fleet_cli.on_terminal("fleet", "rollout", "linux", "new")
    terminal.wait_asked(
        "Roll out new to pool linux, which has old: 1 server to try it, no server to replace? [y/N]"
    )
    terminal.type(key)
    assert terminal.wait() == code
    assert [line for line in terminal.lines if told in line], terminal.lines
    assert len(rollouts.list_rollouts(fleet_store)) == count


def test_what_makes_no_sense_now_is_refused(fleet_cli: Cli, fleet_store: Store) -> None:
    put_pool(fleet_store)
    put_pool(fleet_store, "back", queue="back")
    open_rollout(fleet_store, "back")
    rollouts.abort(fleet_store, "back", by="bob", why="it burns")
    size = audit_size(fleet_store)
    none, gone = "pool linux has no roll-out under way", "goes back already: aborted by bob: it burns"
    check_refused(
        fleet_cli,
        Refusal("fleet pause linux", 2, "Missing option '--why'"),
        Refusal("fleet resume linux", 73, "pool linux is not paused"),
        Refusal("fleet pause linux --rollout --why x", 66, none),
        Refusal("fleet hasten linux", 66, none),
        Refusal("fleet abort linux --why x", 66, none),
        Refusal("fleet pause back --rollout --why x", 73, gone),
        Refusal("fleet hasten back --yes", 73, gone),
        Refusal("fleet abort back --why x --yes", 73, gone),
    )
    assert audit_size(fleet_store) == size


def test_pool_is_paused_and_resumed_for_all_to_see(fleet_cli: Cli, fleet_store: Store) -> None:
    put_pool(fleet_store)
    assert say(fleet_cli, "fleet pause linux --why 'a look'") == (
        "pool linux is paused; to go on: build-agent fleet resume linux\n"
    )
    assert audited(fleet_store, "pool.pause", "linux") == {"why": "a look"}
    assert f"paused    by {ACTOR}: a look" in say(fleet_cli, "fleet status")
    assert f"paused    by {ACTOR}: a look" in say(fleet_cli, "fleet plan linux")
    assert json.loads(say(fleet_cli, "fleet resume linux --json"))["paused_why"] is None
    assert audited(fleet_store, "pool.resume", "linux") == {}
    assert json.loads(say(fleet_cli, "fleet pause linux --why again --json"))["paused_why"] == "again"


def test_roll_out_is_paused_resumed_hastened_and_given_up(fleet_cli: Cli, fleet_store: Store) -> None:
    put_pool(fleet_store)
    rollout_id = open_rollout(fleet_store)
    held = say(fleet_cli, "fleet pause linux --rollout --why 'wait for bob'")
    assert held == "the roll-out of pool linux is paused; to go on: build-agent fleet resume linux\n"
    assert audited(fleet_store, "rollout.steer", rollout_id) == {"what": "paused", "why": "wait for bob"}
    assert "to new: canary, paused" in say(fleet_cli, "fleet status linux")
    assert say(fleet_cli, "fleet resume linux") == "the roll-out of pool linux goes on\n"
    assert audited(fleet_store, "rollout.steer", rollout_id) == {"what": "goes on"}
    hastened = json.loads(say(fleet_cli, "fleet hasten linux --yes --why urgent --json"))
    assert (hastened["id"], hastened["is_hastened"]) == (rollout_id, True)
    assert audited(fleet_store, "rollout.steer", rollout_id) == {"what": "hastened", "why": "urgent"}
    assert "goes back" in say(fleet_cli, "fleet abort linux --yes --why 'not now'")
    assert audited(fleet_store, "rollout.going_back", rollout_id)["why"] == f"aborted by {ACTOR}: not now"
    assert images.get(fleet_store, "img-new").state is ImageState.VERIFIED


# Waits.


def test_waiting_for_a_roll_out_shows_what_happens_and_ctrl_c_ends_the_waiting_alone(
    fleet_cli: Cli, fleet_store: Store
) -> None:
    put_pool(fleet_store)
    terminal = fleet_cli.on_terminal("fleet", "rollout", "linux", "new", "--yes", "--wait")
    terminal.wait_for("canary: 0 of 0 servers of the image ready")
    begun = rollouts.list_rollouts(fleet_store)[0]
    machine = put_machine(fleet_store, "new", purpose=Purpose.CANARY, rollout_id=begun.id)
    terminal.wait_for("canary: 0 of 1 server of the image ready")
    serve(fleet_store, machine)
    terminal.wait_for("canary: 1 of 1 server of the image ready")
    move(fleet_store, begun.id, RolloutState.ROLLING, "eleven builds in a row were good")
    terminal.wait_for("canary -> rolling: eleven builds in a row were good")
    terminal.wait_for("rolling: 1 of 1 server of the image ready")
    terminal.type(b"\x03")
    assert terminal.wait() == 130
    assert terminal.lines[-2] == f"build-agent: stopped waiting; roll-out {begun.id[:8]} goes on"
    assert not [line for line in terminal.lines if line.startswith(("canary:", "rolling:"))]
    assert rollouts.get(fleet_store, begun.id).state is RolloutState.ROLLING


@pytest.mark.parametrize(("end", "code"), [(RolloutState.DONE, 0), (RolloutState.ROLLED_BACK, 1)])
def test_exit_code_of_the_waiting_tells_how_the_roll_out_ended(
    fleet_cli: Cli, fleet_store: Store, end: RolloutState, code: int
) -> None:
    put_pool(fleet_store)
    waiting = fleet_cli.start("fleet", "rollout", "linux", "new", "--yes", "--wait")
    waiting.wait_for(" begun by ")
    move(fleet_store, rollouts.list_rollouts(fleet_store)[0].id, end, "so it is")
    assert waiting.wait() == code
    assert waiting.out.endswith(f"canary -> {end}: so it is\n")
