"""The fleet's controller on both databases: it scales, replaces, rolls out, goes back, and settles what went wrong."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from agent import clock
from agent.errors import StateConflict
from agent.fleet import report, retire, scale, start
from agent.fleet.group import Group
from agent.fleet.provider import (
    TAG_FLEET,
    TAG_MACHINE,
    TAG_OWNER,
    Machine,
    MachineState,
    Provider,
    ProviderError,
)
from agent.fleet.view import Condition
from agent.model.build import BuildState
from agent.model.fleet import RolloutKind, RolloutState
from agent.model.image import ImageState
from agent.model.outcome import Outcome
from agent.model.server import OrderKind, ServerState
from agent.store import (
    audit,
    builds,
    decisions,
    fleet_events,
    images,
    lead,
    machines,
    orders,
    pools,
    rollouts,
    servers,
    usage,
)
from agent.store.engine import Store
from tests.integration.fleet_world import World, away


@pytest.fixture
def world(store: Store, tmp_path: Path) -> Iterator[World]:
    """An empty world with one controller."""
    made = World(store, tmp_path)
    yield made
    made.close()


def state_of(world: World, rollout_id: str) -> RolloutState:
    return rollouts.get(world.store, rollout_id).state


def events(world: World) -> str:
    return "\n".join(it.text for it in fleet_events.list_events(world.store))


# Size.


def test_queue_grows_servers_start_builds_run_servers_leave(world: World) -> None:
    world.pool()
    world.run(0.1)
    assert world.all_machines() == []
    ids = world.submit(20)
    world.until(lambda: world.ended() == 20, what="all builds")
    assert 1 < world.provider.launches <= 6
    world.until(lambda: all(it.state == "gone" for it in world.all_machines()), what="every server has left")
    assert not world.provider.machines
    assert {builds.get(world.store, it).outcome for it in ids} == {Outcome.PASSED}
    assert all(it.fault is None for it in world.all_machines())
    # Each was idle when it was told to leave, and told by the fleet, on record.
    told = audit.list_entries(world.store, actor="fleet", limit=1000)
    assert sum(it.action == "server.terminate" for it in told) == world.provider.launches


def test_floor_is_kept_and_ceiling_is_not_passed(world: World) -> None:
    world.pool(floor=2, ceiling=3)
    world.until(lambda: len(world.serving()) == 2)
    world.slow["1"] = 0.3
    world.submit(30)
    most = 0

    def look() -> bool:
        nonlocal most
        most = max(most, len(world.provider.machines))
        return world.ended() == 30

    world.until(look)
    assert most == 3
    world.until(lambda: len(world.serving()) == 2)
    world.run(0.5)
    assert len(world.serving()) == 2


def test_server_with_a_build_is_never_told_to_leave_for_want_of_work(world: World) -> None:
    world.pool(scale_in_after_s=0.0)
    world.slow["1"] = 1.0
    world.submit(8)
    world.until(lambda: len(world.serving()) == 4)
    world.slow["1"] = 0.02
    world.until(lambda: world.ended() == 8)
    world.until(lambda: not world.provider.machines)
    assert {outcome for _, _, outcome in world.ran} == {Outcome.PASSED}
    assert len(world.ran) == 8  # none was begun twice


def test_drain_is_proved_under_the_same_lock_that_claims_take(world: World) -> None:
    world.pool(floor=1)
    world.until(world.serving)
    [machine] = world.serving()
    world.submit()
    world.slow["1"] = 60.0
    server_id = str(machine.server_id or machine.provider_machine_id)
    world.until(lambda: world.agents[server_id].running)
    with world.store.begin() as connection:
        assert orders.leave_idle(connection, server_id, by="fleet", note="x") is None
    assert servers.get(world.store, server_id).wanted is OrderKind.RESUME


def test_order_holds_from_the_moment_it_is_given(world: World) -> None:
    world.pool(floor=1)
    world.until(world.serving)
    agent = next(iter(world.agents.values()))
    [build_id] = world.submit(queue="other")
    orders.give(world.store, server_id=agent.server_id, kind=OrderKind.DRAIN, by="ann")
    won = builds.claim(world.store, build_id, server_id=agent.server_id, session=agent.session, slot=1)
    assert won is None
    assert builds.is_waiting(world.store, build_id)
    orders.give(world.store, server_id=agent.server_id, kind=OrderKind.RESUME, by="ann")
    assert builds.claim(world.store, build_id, server_id=agent.server_id, session=agent.session, slot=1)


def test_draining_and_quarantined_servers_are_no_capacity(world: World) -> None:
    world.pool(floor=2)
    world.until(lambda: len(world.serving()) == 2)
    first, second = world.serving()
    orders.give(world.store, server_id=str(first.server_id), kind=OrderKind.QUARANTINE, by="ann", note="look")
    orders.give(world.store, server_id=str(second.server_id), kind=OrderKind.DRAIN, by="ann")
    world.until(lambda: len(world.serving()) == 4)
    world.run(0.4)
    # Neither is ended: a person looks at the one, and holds the other.
    assert {first.id, second.id} <= {it.id for it in world.serving()}
    view = report.look(world.store).pool("linux")
    assert sorted(str(it.condition) for it in view.members) == [
        "accepting",
        "accepting",
        "disabled",
        "quarantined",
    ]


def test_quarantine_with_an_end_is_over_then(world: World) -> None:
    world.pool(floor=1)
    world.until(world.serving)
    server_id = str(world.serving()[0].server_id or world.serving()[0].provider_machine_id)
    at = clock.utc_now() + timedelta(seconds=0.2)
    orders.give(world.store, server_id=server_id, kind=OrderKind.QUARANTINE, by="ann", deadline_at=at)
    assert orders.resume_expired(world.store) == []
    clock.sleep(0.25)
    with world.store.read() as connection:
        assert orders.has_expired(connection)
    assert orders.resume_expired(world.store) == [server_id]
    server = servers.get(world.store, server_id)
    assert (server.wanted, server.wanted_by) == (OrderKind.RESUME, "build-agent")


def test_decision_is_kept_with_its_inputs_and_replays_to_the_same(world: World) -> None:
    world.pool()
    world.submit(7)
    world.until(lambda: world.ended() == 7)
    world.until(lambda: not world.provider.machines)
    found = decisions.list_decisions(world.store, "linux", limit=1000)
    assert any(it.start for it in found)
    assert any(it.drain for it in found)
    assert all(report.replay(it).is_same for it in found)
    started = next(it for it in reversed(found) if it.start)
    assert started.inputs["waiting"] == 7
    assert "7 waiting + 0 running, 2 a server: 4 needed" in started.reason


def test_paused_pool_is_left_alone(world: World) -> None:
    world.pool(floor=1)
    world.until(world.serving)
    pools.pause(world.store, "linux", by="ann", why="a look")
    world.submit(10)
    world.run(0.4)
    assert world.provider.launches == 1
    pools.resume(world.store, "linux", by="ann")
    world.until(lambda: world.ended() == 10)


def test_two_pools_serve_their_own_queues(world: World) -> None:
    world.pool()
    world.pool(name="large", queues=["large"])
    with pytest.raises(StateConflict, match="served by pool large"):
        pools.change(world.store, "linux", by="ann", queues=["builds", "large"])
    world.submit(3, queue="large")
    world.until(lambda: world.ended() == 3)
    assert {it.pool for it in world.all_machines()} == {"large"}


def test_builds_that_nobody_serves_are_told(world: World) -> None:
    world.pool()
    world.submit(2, queue="elsewhere")
    world.until(lambda: lead.look(world.store).status.get("problems"))
    [problem] = lead.look(world.store).status["problems"]
    assert problem == "2 builds wait in queue elsewhere, which no pool and no server serves"


def test_server_that_somebody_else_started_counts_and_is_not_ours_to_end(world: World) -> None:
    from tests.integration.conftest_store import make_server

    world.pool()
    make_server(world.store, "own", name="own", slots=4)
    servers.beat(
        world.store, server_id="own", session="life-1", state=ServerState.ACCEPTING, reason=None, status={}
    )
    world.submit(2)
    world.run(0.6)
    assert world.provider.launches == 0
    assert servers.get(world.store, "own").wanted is OrderKind.RESUME


# Roll-outs.


def test_good_image_is_tried_and_rolled_out_new_before_old(world: World) -> None:
    world.pool(floor=3, canary_share=0.3)
    world.until(lambda: len(world.serving("1")) == 3)
    world.image("2")
    rollout_id = world.roll("2")
    fewest = 3

    def look() -> bool:
        nonlocal fewest
        view = report.look(world.store).pool("linux")
        fewest = min(fewest, sum(str(it.condition) == "accepting" for it in view.members))
        if len(builds.queued(world.store)) < 2:
            world.submit(2)
        return state_of(world, rollout_id) is RolloutState.DONE

    world.until(look, 40, "the roll-out")
    assert fewest >= 3
    assert {it.image_id for it in world.serving()} == {"img-2"}
    found = rollouts.get(world.store, rollout_id)
    assert found.evidence["tried"] >= 11
    assert images.get(world.store, "img-2").state is ImageState.CURRENT
    assert images.get(world.store, "img-1").state is ImageState.PREVIOUS
    assert all(
        it.outcome is Outcome.PASSED for it in builds.list_builds(world.store, limit=500) if it.outcome
    )


def test_image_whose_builds_fail_by_infrastructure_goes_back_and_no_build_is_lost(world: World) -> None:
    world.pool(floor=2)
    world.until(lambda: len(world.serving("1")) == 2)
    world.image("2")
    world.broken["2"] = Outcome.INFRASTRUCTURE
    rollout_id = world.roll("2")
    ids = []

    def look() -> bool:
        if len(builds.queued(world.store)) < 3:
            ids.extend(world.submit(3))
        return state_of(world, rollout_id) is RolloutState.ROLLED_BACK

    world.until(look, 30, "it goes back")
    world.until(lambda: world.ended() == len(ids))
    assert {builds.get(world.store, it).outcome for it in ids} == {Outcome.PASSED}
    assert sum(outcome is Outcome.INFRASTRUCTURE for _, _, outcome in world.ran) >= 2
    image = images.get(world.store, "img-2")
    assert image.state is ImageState.BAD
    assert "ended by infrastructure" in str(image.reason)
    assert pools.get(world.store, "linux").image_id == "img-1"
    assert images.get(world.store, "img-1").state is ImageState.CURRENT
    with pytest.raises(StateConflict, match="is bad"):
        world.roll("2")


def test_image_that_fails_builds_which_passed_before_goes_back(world: World) -> None:
    world.pool(floor=2)
    world.until(lambda: len(world.serving("1")) == 2)
    world.submit(20)
    world.until(lambda: world.ended() == 20)
    world.image("2")
    world.broken["2"] = Outcome.FAILED
    rollout_id = world.roll("2")

    def look() -> bool:
        if len(builds.queued(world.store)) < 3:
            world.submit(3)
        return state_of(world, rollout_id) is RolloutState.ROLLED_BACK

    world.until(look, 30)
    assert "failed" in str(rollouts.get(world.store, rollout_id).reason)


def test_image_that_never_boots_goes_back_with_the_last_words_of_its_console(world: World) -> None:
    world.pool(floor=1, boot_limit_s=1.0)
    world.until(lambda: world.serving("1"))
    world.image("2")
    world.never_boots.add("2")
    rollout_id = world.roll("2")
    world.until(lambda: state_of(world, rollout_id) is RolloutState.ROLLED_BACK, 20)
    faults = [str(it.fault) for it in world.all_machines() if it.image_id == "img-2"]
    assert len(faults) == 2
    assert all("no builds within 1 s (no server has registered)" in it for it in faults)
    assert all("last words of m-" in it for it in faults)
    assert "2 servers in a row" in str(images.get(world.store, "img-2").reason)
    world.until(lambda: len(world.provider.machines) == 1)


def test_trial_without_builds_ends_with_its_time(world: World) -> None:
    world.pool(canary_limit_s=0.3)
    world.image("2")
    rollout_id = world.roll("2")
    world.until(lambda: state_of(world, rollout_id) is RolloutState.DONE)
    reasons = [it.text for it in fleet_events.list_events(world.store, kind="rollout")]
    assert any("the trial's time is over, and nothing speaks against it" in it for it in reasons)


def test_roll_back_is_one_step_and_ends_a_roll_out(world: World) -> None:
    world.pool(floor=2)
    world.until(lambda: len(world.serving("1")) == 2)
    for version in ("2", "3"):
        world.image(version)
    hastened = world.roll("2")
    rollouts.steer(world.store, "linux", by="ann", hastened=True)
    world.until(lambda: state_of(world, hastened) is RolloutState.DONE)
    trying = world.roll("3")
    world.until(lambda: world.serving("3"))
    back = world.roll("1", RolloutKind.ROLLBACK)
    assert state_of(world, trying) is RolloutState.ABORTED
    world.until(lambda: state_of(world, back) is RolloutState.DONE)
    assert {it.image_id for it in world.serving()} == {"img-1"}
    world.until(lambda: {it.image for it in world.provider.machines.values()} == {"p-1"})
    assert images.get(world.store, "img-3").state is ImageState.VERIFIED


def test_roll_out_is_paused_and_goes_on_and_is_aborted(world: World) -> None:
    world.pool(floor=1)
    world.until(lambda: world.serving("1"))
    world.image("2")
    rollout_id = world.roll("2")
    rollouts.steer(world.store, "linux", by="ann", paused=True, why="lunch")
    world.run(0.3)
    assert world.serving("2") == []
    rollouts.steer(world.store, "linux", by="ann", paused=False)
    world.until(lambda: world.serving("2"))
    rollouts.abort(world.store, "linux", by="ann", why="not today")
    world.until(lambda: state_of(world, rollout_id) is RolloutState.ABORTED)
    assert images.get(world.store, "img-2").state is ImageState.VERIFIED
    assert [it.image_id for it in world.serving()] == ["img-1"]
    with pytest.raises(StateConflict, match="already"):
        world.roll("1")


def test_one_roll_out_at_a_time(world: World) -> None:
    world.pool(floor=1)
    world.until(lambda: world.serving("1"))
    for version in ("2", "3"):
        world.image(version)
    world.roll("2")
    with pytest.raises(StateConflict, match="fleet abort linux"):
        world.roll("3")


def test_old_servers_are_replaced_a_few_at_a_time(world: World) -> None:
    world.pool(floor=4, max_age_s=1.0, surge=0.25)
    world.until(lambda: len(world.serving()) == 4)
    first = {it.id for it in world.serving()}
    fewest, most = 4, 4

    def look() -> bool:
        nonlocal fewest, most
        accepting = report.look(world.store).pool("linux").count(Condition.ACCEPTING)
        fewest, most = min(fewest, accepting), max(most, accepting)
        return not first & {it.id for it in world.serving()}

    world.until(look, 30)
    assert fewest >= 4
    assert most <= 5


# What goes wrong.


def test_server_killed_behind_the_controllers_back_is_replaced(world: World) -> None:
    world.pool(floor=1)
    world.until(world.serving)
    [first] = world.serving()
    with world.store.begin() as connection:
        # It has been there for long enough for a provider to show it.
        from agent.store.tables_fleet import machines as table

        connection.execute(table.update().values(created_at=first.created_at - timedelta(seconds=60)))
    world.kill(first)
    world.until(lambda: [it for it in world.serving() if it.id != first.id])
    gone = machines.get(world.store, first.id)
    assert gone.reason == "the provider has it no more"


def test_server_that_died_is_ended_and_replaced(world: World) -> None:
    world.pool(floor=1)
    world.until(world.serving)
    [first] = world.serving()
    world.agents[str(first.provider_machine_id)].leave(ServerState.FAILED, "the disk is gone")
    world.until(lambda: [it for it in world.serving() if it.id != first.id])
    world.until(lambda: machines.get(world.store, first.id).state == "gone")
    assert machines.get(world.store, first.id).reason == "its server is failed: the disk is gone"
    assert len(world.provider.machines) == 1


def test_server_that_cannot_build_for_long_is_replaced(world: World) -> None:
    world.pool(floor=1, unready_limit_s=0.3)
    world.until(world.serving)
    [first] = world.serving()
    agent = world.agents[str(first.provider_machine_id)]
    agent.state, agent.reason = ServerState.NOT_READY, "disk: 1 GiB free"
    world.until(lambda: machines.get(world.store, first.id).state == "gone")
    assert "not ready for 0.3 s: disk: 1 GiB free" in str(machines.get(world.store, first.id).reason)
    world.until(lambda: len(world.serving()) == 1)


def test_server_that_the_cloud_takes_back_leaves_with_its_reason(world: World) -> None:
    world.pool(floor=1)
    world.until(world.serving)
    [first] = world.serving()
    agent = world.agents[str(first.provider_machine_id)]
    agent.state, agent.reason = ServerState.DRAINED, "spot notice: terminate at 2026-11-26 08:00:00 UTC"
    agent.tick = lambda _world: servers.beat(  # type: ignore[method-assign, assignment]
        world.store,
        server_id=agent.server_id,
        session=agent.session,
        state=agent.state,
        reason=agent.reason,
        status={},
    )
    world.until(lambda: machines.get(world.store, first.id).state == "gone")
    assert str(machines.get(world.store, first.id).reason).startswith("spot notice")


def test_launch_that_was_answered_twice_or_late_makes_one_machine(world: World) -> None:
    world.pool(floor=1)
    world.provider.fail("launch", away("timed out after it was done"), away("timed out after it was done"))
    world.until(world.serving)
    assert world.provider.launches == 1
    assert len(world.provider.machines) == 1
    assert "timed out after it was done; asked again" in events(world)


def test_provider_that_refuses_is_told_and_asked_ever_more_seldom(world: World) -> None:
    world.pool(floor=2)
    world.provider.fail("launch", *[ProviderError("no such subnet") for _ in range(20)])
    world.until(lambda: any(it.fault for it in world.all_machines()))
    world.run(0.5)
    assert len(world.all_machines()) <= 3
    assert "refused: no such subnet" in str(world.all_machines()[-1].fault)
    plan = report.plan(report.look(world.store).pool("linux"))
    assert plan.answer.start == 0
    assert "launches came to nothing lately" in plan.answer.reason


def test_provider_that_is_away_is_no_reason_to_take_anything_for_gone(world: World) -> None:
    world.pool(floor=1)
    world.until(world.serving)
    world.provider.fail("list_machines", *[away("throttled") for _ in range(5)])
    world.until(lambda: lead.look(world.store).status.get("problems"))
    assert lead.look(world.store).status["problems"] == ["provider local: throttled"]
    world.until(lambda: not lead.look(world.store).status.get("problems"))
    assert len(world.serving()) == 1
    assert world.provider.launches == 1


def test_termination_that_does_not_happen_is_asked_for_again(world: World) -> None:
    world.pool(floor=1)
    world.until(world.serving)
    [first] = world.serving()
    world.provider.refuses_to_end.add(str(first.provider_machine_id))
    world.agents[str(first.provider_machine_id)].leave(ServerState.TERMINATED, "asked")
    world.until(lambda: machines.get(world.store, first.id).state == "terminating")
    world.run(0.3)
    assert machines.get(world.store, first.id).state == "terminating"
    world.provider.refuses_to_end.clear()
    world.until(lambda: machines.get(world.store, first.id).state == "gone")


def test_orphan_of_this_fleet_is_ended_and_anothers_is_left_alone(world: World) -> None:
    world.pool()
    ours = {TAG_OWNER: "build-agent", TAG_FLEET: lead.look(world.store).fleet_id, TAG_MACHINE: "long-gone"}
    for name, tags in {
        "orphan": ours,
        "another fleet's": {**ours, TAG_FLEET: "other"},
        "a bake's": {TAG_OWNER: "build-agent"},
    }.items():
        world.provider.machines[name] = Machine(
            id=name, name=name, state=MachineState.RUNNING, image="p-x", address=None, tags=tags
        )
    world.never_boots.add("x")
    world.until(lambda: "orphan" not in world.provider.machines)
    world.run(0.2)
    assert set(world.provider.machines) == {"another fleet's", "a bake's"}
    assert "orphan is at provider local and not on record any more: ended" in events(world)


# Controllers.


def test_of_two_controllers_one_leads_and_the_other_takes_over(world: World) -> None:
    world.pool()
    world.controllers.append(world.make_controller())
    world.submit(6)
    world.until(lambda: world.ended() == 6)
    assert [it.is_leading for it in world.controllers] == [True, False]
    launches = world.provider.launches
    assert len({it.id for it in world.all_machines()}) == launches
    # As after kill -9: nothing is resigned, nothing is said.
    world.controllers.pop(0)
    world.until(lambda: world.controllers[0].is_leading)
    world.submit(6)
    world.until(lambda: world.ended() == 12)


def test_leader_that_was_taken_for_dead_writes_nothing_more(world: World) -> None:
    world.pool(floor=1)
    [first] = world.controllers
    world.until(world.serving)
    second = world.make_controller()
    second.cycle()
    clock.sleep(world.lease_s + 0.1)
    second.cycle()
    assert second.is_leading
    first.cycle()
    assert not first.is_leading
    world.controllers.append(second)


@pytest.mark.parametrize("kill_every", [1, 2, 3])
def test_controller_killed_over_and_over_loses_nothing(world: World, kill_every: int) -> None:
    world.lease_s = 0.05
    world.pool(floor=2, canary_limit_s=0.5)
    world.image("2")
    ids = world.submit(12)
    rollout_id = ""
    for number in range(400):
        world.tick()
        if number == 40:
            rollout_id = world.roll("2")
        if number % kill_every == 0:
            # Gone in the midst of whatever it had asked the provider for.
            world.controllers = [world.make_controller()]
            clock.sleep(0.01)
        if rollout_id and state_of(world, rollout_id).is_over:
            break
    world.controllers = [world.make_controller()]
    world.until(lambda: world.ended() == 12)
    world.until(lambda: state_of(world, rollout_id).is_over, 30)
    world.until(lambda: len(world.provider.machines) == 2)
    assert {builds.get(world.store, it).state for it in ids} == {BuildState.ENDED}
    assert len(world.ran) == 12
    world.until(
        lambda: (
            set(world.provider.machines)
            == {it.provider_machine_id for it in machines.list_machines(world.store)}
        )
    )


# Books.


def test_hours_are_counted_by_image_and_state(world: World) -> None:
    world.pool(floor=1)
    world.until(world.serving)
    [machine] = world.serving()
    from agent.store.tables_fleet import machines as table

    since = clock.utc_now().replace(minute=30, second=0, microsecond=0) - timedelta(hours=2)
    with world.store.begin() as connection:
        connection.execute(table.update().values(accounted_at=since))
        machines.account(connection, {machine.id: ("accepting", True)})
    found = machines.list_hours(world.store, since=since - timedelta(hours=1))
    # What it was until it served, counted when it did.
    assert [it.idle_seconds for it in found if it.state == "booting"] == [0.0]
    found = [it for it in found if it.state == "accepting"]
    assert [round(it.seconds) for it in found][:2] == [1800, 3600]
    [(key, (hours, idle))] = machines.sum_hours(found, "pool", "image_id", "state").items()
    assert key == ("linux", "img-1", "accepting")
    assert hours == idle
    assert hours == pytest.approx((clock.utc_now() - since).total_seconds() / 3600, abs=0.01)


def test_old_images_go_and_those_in_use_stay(world: World) -> None:
    for number in range(1, 7):
        world.image(f"{number}")
    world.pool("1", floor=1)
    world.provider.images["p-2"] = world.provider.images.pop("p-2")
    world.image("7", tags={"somebody": "else"})
    world.image("8")
    world.image("9")
    world.images_kept = 2
    world.until(lambda: images.get(world.store, "img-6").state is ImageState.RETIRED)
    world.run(0.2)
    states = {it.version: str(it.state) for it in images.list_images(world.store)}
    assert states == {
        "1": "current",
        **dict.fromkeys("23456", "retired"),
        "7": "verified",
        "8": "verified",
        "9": "verified",
    }
    assert set(world.provider.images) == {"p-1", "p-7", "p-8", "p-9"}


def test_image_in_use_is_not_retired_and_not_deleted_under_a_server(world: World) -> None:
    world.pool(floor=1)
    world.until(world.serving)
    first = world.image("2").id
    second = world.image("3").id
    roll = rollouts.begin(world.store, "linux", first, kind=RolloutKind.ROLLOUT, by="ann")

    def told_of(image_id: str) -> str:
        with pytest.raises(StateConflict) as caught:
            retire.retire(world.store, images.get(world.store, image_id), by="ann", reason=None)
        return str(caught.value)

    assert "image 1 is in use: pool linux starts its servers from it; the rollout under way" in told_of(
        "img-1"
    )
    assert f"image 2 is in use: the rollout under way in pool linux ({roll.id[:8]})" in told_of(first)
    rollouts.abort(world.store, "linux", by="ann", why="enough")
    rollouts.begin(world.store, "linux", second, kind=RolloutKind.ROLLBACK, by="ann")
    assert "pool linux would go back to it" in told_of("img-1")
    with world.store.read() as connection:
        [member] = world.serving()
        assert f"server {member.name}" in usage.of(connection, "img-1")


def test_retired_image_is_deleted_once_no_server_and_no_template_uses_it(world: World) -> None:
    world.pool()
    old = world.image("2")
    [machine_id] = start.start(
        world.store, pool_name="linux", image_id=old.id, count=1, by="ann", why="a look"
    )
    world.until(lambda: world.serving("2"))
    image = retire.retire(world.store, old, by="ann", reason="old")
    assert image.state is ImageState.RETIRED

    def delete(group: Group | None = None) -> None:
        retire.delete(world.store, image, cast("Provider", world.provider), lambda _: group, by="ann")

    with pytest.raises(StateConflict, match="image 2 is not deleted while it is in use: server linux-"):
        delete()
    start.end(world.store, machines.get(world.store, machine_id), by="ann", why="seen enough")
    world.until(lambda: not world.serving() and world.all_machines()[0].state == "gone")
    with pytest.raises(StateConflict, match="launch template of group builders"):
        delete(cast("Group", SimpleNamespace(name="builders", image=lambda: "p-2")))
    delete()
    assert "p-2" not in world.provider.images
    assert images.get(world.store, old.id).provider_image_id is None


def test_rule_is_the_one_that_decisions_name(world: World) -> None:
    world.pool(floor=1)
    world.until(lambda: decisions.list_decisions(world.store, "linux"))
    assert {it.rule for it in decisions.list_decisions(world.store, "linux")} == {scale.RULE}
