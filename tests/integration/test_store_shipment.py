"""Output and the ends behind it in one transaction."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from agent.model.build import AttemptRef, BuildState, OutputAccount, StepEnded
from agent.model.outcome import Outcome
from agent.store import attempts, builds, output, shipment, steps
from agent.store.engine import Store
from tests.integration.conftest_store import AT, begun, counted, cut, ended, race, running

pytestmark = pytest.mark.usefixtures("store")


def _said(ref: AttemptRef) -> list[Any]:
    done = StepEnded(
        step=0, outcome=Outcome.PASSED, detail=None, exit_code=0, ended_at=AT, account=OutputAccount()
    )
    chunks = cut(b"one\ntwo\n", 4, build_id=ref.build_id)
    return [(ref, begun(0)), *((ref, chunk) for chunk in chunks), (ref, done)]


def test_shipment_stores_output_and_end_together(store: Store) -> None:
    ref = running(store)
    [result] = shipment.ship(store, _said(ref), [(ref, ended())])
    assert (result.applied, result.build_state) == (True, BuildState.ENDED)
    assert [(it.step, it.state) for it in steps.list_steps(store, "build-1", 1)] == [(0, "ended")]
    assert [chunk.data for chunk in output.read_chunks(store, "build-1", 1, 0)] == [b"one\n", b"two\n"]


def test_shipment_sent_again_changes_nothing_and_answers_the_same(store: Store) -> None:
    ref = running(store)
    first = shipment.ship(store, _said(ref), [(ref, ended())])
    before = (builds.get(store, "build-1"), steps.list_steps(store, "build-1", 1))
    assert shipment.ship(store, _said(ref), [(ref, ended())]) == first
    assert (builds.get(store, "build-1"), steps.list_steps(store, "build-1", 1)) == before


def test_shipment_that_is_refused_leaves_the_attempt_running(store: Store) -> None:
    ref = running(store)
    bad = replace(begun(1), started_at=AT.replace(tzinfo=None))
    with pytest.raises(Exception, match="no time zone"):
        shipment.ship(store, [*_said(ref), (ref, bad)], [(ref, ended())])
    assert output.read_chunks(store, "build-1", 1, 0) == []
    assert builds.get(store, "build-1").state is BuildState.RUNNING


def test_ends_of_a_shipment_are_answered_in_their_order(store: Store) -> None:
    first, second = running(store, "build-2"), running(store, "build-1")
    stale = replace(second, session="life-0")
    results = shipment.ship(store, [], [(first, ended()), (stale, ended()), (second, ended(Outcome.FAILED))])
    assert [(it.build_id, it.applied) for it in results] == [
        ("build-2", True),
        ("build-1", False),
        ("build-1", True),
    ]


def test_shipment_and_cancel_at_the_same_moment_never_wait_for_each_other(store: Store) -> None:
    """The build's row comes first in both: taken after its steps, one of a few such races would be a deadlock."""
    for number in range(15):
        ref = running(store, f"build-{number}")
        shipped, closed = race(
            lambda ref=ref: shipment.ship(store, _said(ref), [(ref, ended())]),
            lambda ref=ref: attempts.end(store, ref, ended(Outcome.CANCELLED)),
        )
        assert not isinstance(shipped, Exception), shipped
        assert not isinstance(closed, Exception), closed
        assert shipped[0].applied != closed.applied


def test_step_begins_with_one_statement(store: Store) -> None:
    ref = running(store)
    with counted(store) as statements:
        output.apply(store, [(ref, begun(0))])
    assert len(statements) == 1
