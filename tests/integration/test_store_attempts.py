"""Attempts: only one that runs can be ended, only once, and what becomes of its build follows from how."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from agent.errors import StateConflict
from agent.model.build import AttemptRef, BuildState
from agent.model.outcome import Outcome
from agent.model.server import ServerState
from agent.store import attempts, builds, output, servers, steps
from agent.store.attempts import EndResult
from agent.store.engine import Store
from tests.integration.conftest_store import (
    AT,
    beat,
    begun,
    claim,
    counted,
    ended,
    lose,
    make_build,
    make_server,
    race,
    running,
)

ROUNDS = 25
INFRASTRUCTURE = [outcome for outcome in Outcome if outcome.is_infrastructure]
DEPLOY = {"project": "shop", "environment": "production"}


def begin_deploy(store: Store, ref: AttemptRef, *, retry_safe: bool = False, **fields: str) -> bool:
    return attempts.begin_deploy(store, ref, retry_safe=retry_safe, **(DEPLOY | fields))


def test_end_closes_the_attempt_and_the_build(store: Store) -> None:
    ref = running(store, commit="old", message="said before")
    result = attempts.end(store, ref, ended(Outcome.FAILED, exit_code=3, commit="new"))
    assert result == EndResult(
        build_id="build-1", applied=True, requeued=False, queue="builds", build_state=BuildState.ENDED
    )
    [attempt] = attempts.list_attempts(store, "build-1")
    assert (attempt.state, attempt.outcome, attempt.exit_code, attempt.ended_at) == ("ended", "failed", 3, AT)
    build = builds.get(store, "build-1")
    assert (build.state, build.outcome, build.detail, build.ended_at) == ("ended", "failed", "because", AT)
    assert (build.commit, build.message) == ("new", "said before")


@pytest.mark.parametrize("change", [{"session": "life-0"}, {"number": 2}, {"build_id": "build-2"}])
def test_end_by_anyone_else_changes_nothing(store: Store, change: dict[str, Any]) -> None:
    ref = running(store)
    result = attempts.end(store, replace(ref, **change), ended())
    assert (result.applied, result.requeued) == (False, False)
    assert builds.get(store, "build-1").state is BuildState.RUNNING
    assert attempts.list_attempts(store, "build-1")[0].state == "running"


def test_end_of_a_former_attempt_leaves_the_next_one_alone(store: Store) -> None:
    stale = running(store)
    lose(store)
    attempts.close_lost(store, stale, why="silent")
    make_server(store, session="life-2")
    assert claim(store, session="life-2") is not None
    result = attempts.end(store, stale, ended(Outcome.PASSED))
    assert (result.applied, result.build_state) == (False, BuildState.RUNNING)
    assert [it.outcome for it in attempts.list_attempts(store, "build-1")] == [Outcome.LOST, None]


def test_end_sent_again_counts_as_applied(store: Store) -> None:
    ref = running(store)
    first = attempts.end(store, ref, ended(Outcome.LOST))
    again = attempts.end(store, ref, ended(Outcome.LOST))
    assert first.requeued
    assert again == first
    assert claim(store) is not None
    late = attempts.end(store, ref, ended(Outcome.LOST))
    assert (late.applied, late.requeued) == (True, False)
    assert builds.get(store, "build-1").state is BuildState.RUNNING


def test_end_races_reaper_and_only_one_is_applied(store: Store) -> None:
    winners = set()
    for number in range(ROUNDS):
        make_server(store, session=f"life-{number}")
        build_id = f"build-{number}"
        builds_ref = _running_as(store, build_id, f"life-{number}")
        lose(store)
        calls = [
            lambda ref=builds_ref: attempts.end(store, ref, ended(Outcome.PASSED)),
            lambda ref=builds_ref: attempts.close_lost(store, ref, why="silent"),
        ]
        mine, reapers = race(*calls) if number % 2 else reversed(race(*reversed(calls)))
        assert [mine.applied, reapers.applied].count(True) == 1
        build = builds.get(store, build_id)
        [attempt] = attempts.list_attempts(store, build_id)
        if mine.applied:
            assert (build.state, build.outcome, attempt.outcome) == ("ended", "passed", "passed")
        else:
            assert (build.state, build.outcome, attempt.outcome) == ("queued", None, "lost")
            assert reapers.requeued
        winners.add(mine.applied)
    assert winners <= {True, False}


def _running_as(store: Store, build_id: str, session: str) -> AttemptRef:
    make_build(store, build_id)
    won = claim(store, build_id, session=session)
    assert won is not None
    return won.ref


def test_many_ends_of_one_attempt_are_applied_once(store: Store) -> None:
    ref = running(store)
    outcomes = [Outcome.PASSED, Outcome.FAILED, Outcome.LOST, Outcome.CANCELLED] * 3
    ends = [ended(outcome, ended_at=AT.replace(minute=n)) for n, outcome in enumerate(outcomes)]
    results = race(*(lambda end=end: attempts.end(store, ref, end) for end in ends))
    [winner] = [n for n, result in enumerate(results) if result.applied]
    assert attempts.list_attempts(store, "build-1")[0].outcome is outcomes[winner]


@pytest.mark.parametrize("outcome", INFRASTRUCTURE)
def test_infrastructure_is_tried_again(store: Store, outcome: Outcome) -> None:
    ref = running(store)
    result = attempts.end(store, ref, ended(outcome))
    build = builds.get(store, "build-1")
    assert (result.requeued, result.queue) == (True, "builds")
    assert (build.state, build.outcome, build.ended_at, build.detail) == (BuildState.QUEUED, None, None, None)


@pytest.mark.parametrize("outcome", [it for it in Outcome if not it.is_infrastructure])
def test_what_the_user_did_is_final(store: Store, outcome: Outcome) -> None:
    ref = running(store)
    result = attempts.end(store, ref, ended(outcome))
    assert (result.requeued, builds.get(store, "build-1").outcome) == (False, outcome)


def test_attempts_are_used_up(store: Store) -> None:
    running(store, attempts_allowed=2)
    first = attempts.running(store)[0].ref
    assert attempts.end(store, first, ended(Outcome.LOST)).requeued
    second = claim(store)
    assert second is not None
    assert not attempts.end(store, second.ref, ended(Outcome.LOST)).requeued
    assert builds.get(store, "build-1").outcome is Outcome.LOST


def test_preemption_uses_up_no_attempt(store: Store) -> None:
    ref = running(store, attempts_allowed=1)
    assert attempts.end(store, ref, ended(Outcome.PREEMPTED)).requeued
    assert builds.get(store, "build-1").attempts_allowed == 2
    second = claim(store)
    assert second is not None
    assert not attempts.end(store, second.ref, ended(Outcome.LOST)).requeued


def test_cancelled_build_whose_attempt_is_lost_ends_cancelled(store: Store) -> None:
    ref = running(store)
    builds.request_cancel(store, "build-1", by="ann")
    assert not attempts.end(store, ref, ended(Outcome.LOST)).requeued
    assert builds.get(store, "build-1").outcome is Outcome.CANCELLED


@pytest.mark.parametrize("outcome", INFRASTRUCTURE)
@pytest.mark.parametrize("is_cancelled", [False, True])
def test_f02_begun_deploy_is_never_run_again_by_the_system(
    store: Store, outcome: Outcome, is_cancelled: bool
) -> None:
    ref = running(store)
    assert begin_deploy(store, ref)
    if is_cancelled:
        builds.request_cancel(store, "build-1", by="ann")
    assert not attempts.end(store, ref, ended(outcome)).requeued
    assert builds.get(store, "build-1").outcome is Outcome.LOST
    assert builds.retry(store, "build-1", by="ann", max_attempts=1).state is BuildState.QUEUED


def test_deploy_that_is_safe_to_repeat_is_run_again(store: Store) -> None:
    ref = running(store)
    assert begin_deploy(store, ref, retry_safe=True)
    assert attempts.end(store, ref, ended(Outcome.LOST)).requeued


@pytest.mark.parametrize("order", [(True, False), (False, True)])
def test_one_unsafe_deploy_makes_the_attempt_unsafe(store: Store, order: tuple[bool, bool]) -> None:
    ref = running(store)
    for number, retry_safe in enumerate(order):
        assert begin_deploy(store, ref, retry_safe=retry_safe, environment=f"stage-{number}")
    assert not attempts.end(store, ref, ended(Outcome.LOST)).requeued


def test_deploy_races_reaper_and_is_either_refused_or_never_run_again(store: Store) -> None:
    for number in range(ROUNDS):
        make_server(store, session=f"life-{number}")
        ref = _running_as(store, f"build-{number}", f"life-{number}")
        lose(store)
        begun_deploy, closed = race(
            lambda ref=ref, number=number: begin_deploy(store, ref, environment=f"stage-{number}"),
            lambda ref=ref: attempts.close_lost(store, ref, why="silent"),
        )
        assert closed.applied
        if begun_deploy is True:
            assert builds.get(store, ref.build_id).outcome is Outcome.LOST
        else:
            assert isinstance(begun_deploy, StateConflict)
            assert closed.requeued


def test_environment_is_deployed_to_by_one_attempt_at_a_time(store: Store) -> None:
    refs = [running(store, f"build-{number}") for number in range(8)]
    taken = race(*(lambda ref=ref: begin_deploy(store, ref) for ref in refs))
    assert taken.count(True) == 1
    assert taken.count(False) == 7
    holder = refs[taken.index(True)]
    other = refs[taken.index(False)]
    assert begin_deploy(store, holder)
    assert begin_deploy(store, other, environment="staging")
    assert not begin_deploy(store, other)
    attempts.end_deploy(store, other, **DEPLOY)
    assert not begin_deploy(store, other)
    attempts.end_deploy(store, holder, **DEPLOY)
    assert begin_deploy(store, other)


def test_lock_of_an_ended_attempt_is_free(store: Store) -> None:
    first, second = running(store, "build-1"), running(store, "build-2")
    assert begin_deploy(store, first)
    attempts.end(store, first, ended(Outcome.FAILED))
    assert begin_deploy(store, second)
    with pytest.raises(StateConflict, match="no longer runs"):
        begin_deploy(store, first)


def test_end_closes_open_steps_and_leaves_ended_ones(store: Store) -> None:
    ref = running(store)
    output.apply(store, [(ref, begun(0)), (ref, begun(1))])
    attempts.end(store, ref, ended(Outcome.CANCELLED))
    found = steps.list_steps(store, "build-1", 1)
    assert [(it.step, it.state, it.outcome, it.ended_at) for it in found] == [
        (0, "ended", Outcome.CANCELLED, AT),
        (1, "ended", Outcome.CANCELLED, AT),
    ]


def test_step_that_begins_while_its_attempt_ends_does_not_stay_open(store: Store) -> None:
    for number in range(ROUNDS):
        ref = running(store, f"build-{number}")
        race(
            lambda ref=ref: output.apply(store, [(ref, begun(0))]),
            lambda ref=ref: attempts.end(store, ref, ended(Outcome.CANCELLED)),
        )
        assert [it.state for it in steps.list_steps(store, ref.build_id, 1)] == ["ended"]


def test_attempt_of_a_server_that_beats_is_not_closed_as_lost(store: Store) -> None:
    ref = running(store)
    beat(store)
    result = attempts.close_lost(store, ref, why="a mistake")
    assert (result.applied, result.build_state) == (False, BuildState.RUNNING)
    assert beat(store).live == {("build-1", 1)}


def test_attempts_of_a_server_that_left_can_be_closed_those_of_a_failed_one_must_wait(store: Store) -> None:
    ref = running(store)
    fields = {"server_id": "server-1", "session": "life-1", "reason": "dead loop"}
    servers.leave(store, state=ServerState.FAILED, **fields)
    assert attempts.running(store)[0].beat is not None
    assert [it.server_id for it in servers.beats(store)] == ["server-1"]
    assert not attempts.close_lost(store, ref, why="too soon").applied
    servers.leave(store, state=ServerState.STOPPED, **fields)
    assert attempts.running(store)[0].beat is None
    assert attempts.close_lost(store, ref, why="it has left").requeued
    assert attempts.running(store) == []


def test_new_life_closes_what_the_former_left(store: Store) -> None:
    refs = [running(store, f"build-{number}") for number in range(2)]
    make_server(store, session="life-2")
    assert [it.beat for it in attempts.running(store)] == [None, None]
    results = attempts.close_orphans(store, server_id="server-1", session="life-2", why="a new life")
    assert [(it.build_id, it.applied, it.requeued) for it in results] == [
        (ref.build_id, True, True) for ref in refs
    ]
    assert attempts.list_attempts(store, "build-0")[0].detail == "a new life"


def test_former_life_closes_nothing_of_the_new_one(store: Store) -> None:
    make_server(store, session="life-2")
    ref = _running_as(store, "build-1", "life-2")
    assert attempts.close_orphans(store, server_id="server-1", session="life-1", why="confused") == []
    assert attempts.running(store)[0].ref == ref


def test_release_gives_an_untouched_attempt_back(store: Store) -> None:
    ref = running(store)
    assert attempts.release(store, ref, why="draining")
    assert not attempts.release(store, ref, why="draining")
    build = builds.get(store, "build-1")
    assert (build.state, build.attempt, build.attempts_allowed) == (BuildState.QUEUED, 1, 4)
    assert attempts.list_attempts(store, "build-1")[0].outcome is Outcome.PREEMPTED


def test_release_keeps_an_attempt_that_has_begun_a_step(store: Store) -> None:
    ref = running(store)
    output.apply(store, [(ref, begun(0))])
    assert not attempts.release(store, ref, why="draining")
    assert builds.get(store, "build-1").state is BuildState.RUNNING


def test_end_takes_four_statements(store: Store) -> None:
    ref = running(store)
    with counted(store) as statements:
        attempts.end(store, ref, ended())
    assert len(statements) == 4
