"""Claims: exactly one wins, whatever else happens to the build or the server at that moment."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from sqlalchemy import insert, select, text, update

from agent.errors import StoreRejected, StoreUnavailable
from agent.model.build import BuildState, Claim
from agent.model.outcome import Outcome
from agent.model.server import ServerState
from agent.store import attempts, builds, servers, tables
from agent.store.engine import Store
from tests.integration.conftest_store import (
    beat,
    claim,
    counted,
    ended,
    lose,
    make_build,
    make_server,
    race,
    running,
)
from tests.services import wait_until

ROUNDS = 25


def test_exactly_one_of_many_claims_wins(store: Store) -> None:
    make_server(store)
    for number in range(8):
        build_id = make_build(store, f"build-{number}")
        won = race(*(lambda it=build_id, slot=slot: claim(store, it, slot=slot) for slot in range(16)))
        assert not [result for result in won if isinstance(result, Exception)]
        assert len([result for result in won if result is not None]) == 1
        assert len(attempts.list_attempts(store, build_id)) == 1
        assert builds.get(store, build_id).attempt == 1


def test_cancel_races_claim_and_one_of_them_has_its_way(store: Store) -> None:
    make_server(store)
    seen = set()
    for number in range(ROUNDS):
        build_id = make_build(store, f"build-{number}")
        calls: list[Any] = [
            lambda it=build_id: claim(store, it),
            lambda it=build_id: builds.request_cancel(store, it, by="ann"),
        ]
        won, cancelled = race(*calls) if number % 2 else reversed(race(*reversed(calls)))
        build = builds.get(store, build_id)
        if isinstance(won, Claim):
            assert (cancelled, build.state) == ("requested", BuildState.RUNNING)
            assert (build_id, 1) in {(it.build_id, it.attempt) for it in beat(store).cancellations}
        else:
            assert (won, cancelled) == (None, "cancelled")
            assert (build.state, build.outcome, build.attempt) == (BuildState.ENDED, Outcome.CANCELLED, 0)
            assert attempts.list_attempts(store, build_id) == []
        seen.add(cancelled)
    assert seen <= {"cancelled", "requested"}


def test_claim_on_a_server_being_taken_for_lost_is_refused_or_seen_by_the_reaper(store: Store) -> None:
    for number in range(ROUNDS):
        make_server(store, session=f"life-{number}")
        build_id = make_build(store, f"build-{number}")
        won, is_lost = race(
            lambda it=build_id, n=number: claim(store, it, session=f"life-{n}"),
            lambda: lose(store),
        )
        assert is_lost is True
        orphans = attempts.running(store)
        if won is None:
            assert orphans == []
            assert builds.get(store, build_id).state is BuildState.QUEUED
        else:
            assert [(it.ref, it.beat) for it in orphans] == [(won.ref, None)]
            assert attempts.close_lost(store, won.ref, why="lost").requeued


def test_claim_holds_off_the_reaper_until_the_attempt_is_on_record(postgres_url: str) -> None:
    # On PostgreSQL alone, for SQLite has one writer at a time: the claim is stopped between its look at the
    # server and its attempt, where a reaper would find nothing to close.
    store = Store(postgres_url)
    make_server(store)
    make_build(store)
    won: list[Claim | None] = []
    claiming = threading.Thread(target=lambda: won.append(claim(store)))
    with store.begin() as connection:
        connection.execute(select(tables.builds.c.id).with_for_update())
        claiming.start()
        wait_until(lambda: _waiting(store) == 1)
        with pytest.raises(StoreUnavailable, match="timeout"), store.begin(limit_s=0.3) as reaper:
            reaper.execute(update(tables.servers).values(state=ServerState.LOST))
    claiming.join(timeout=10)
    assert lose(store)
    assert [it.beat for it in attempts.running(store)] == [None]
    store.dispose()
    assert won != [None]


def _waiting(store: Store) -> int:
    query = text("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
    with store.read() as connection:
        return int(connection.execute(query).scalar_one())


def test_claim_tells_the_slot_what_to_build(store: Store) -> None:
    make_server(store)
    make_build(store, branch="main", commit="abc", definition={"steps": [1, "ü"]})
    won = claim(store)
    assert won is not None
    assert (won.ref.number, won.branch, won.commit, won.definition) == (1, "main", "abc", {"steps": [1, "ü"]})
    build = builds.get(store, "build-1")
    assert (build.state, build.started_at is not None, won.queued_at) == (
        BuildState.RUNNING,
        True,
        build.queued_at,
    )


@pytest.mark.parametrize("state", ["running", "ended", "cancelled", "unknown"])
def test_build_that_does_not_wait_is_not_claimed(store: Store, state: str) -> None:
    ref = running(store)
    if state == "ended":
        attempts.end(store, ref, ended())
    elif state == "cancelled":
        make_build(store, "other")
        builds.request_cancel(store, "other", by="ann")
    build_id = {"cancelled": "other", "unknown": "nobody"}.get(state, "build-1")
    assert claim(store, build_id) is None
    assert len(attempts.list_attempts(store, "build-1")) == 1


def test_queued_build_that_is_to_be_cancelled_is_not_claimed(store: Store) -> None:
    make_server(store)
    make_build(store)
    with store.begin() as connection:
        connection.execute(update(tables.builds).values(cancel_requested_at=tables.builds.c.created_at))
    assert claim(store) is None


@pytest.mark.parametrize("state", sorted(servers.GONE))
def test_server_that_is_gone_claims_nothing(store: Store, state: ServerState) -> None:
    make_server(store)
    make_build(store)
    servers.leave(store, server_id="server-1", session="life-1", state=state, reason=None)
    assert claim(store) is None
    assert builds.get(store, "build-1").state is BuildState.QUEUED


def test_former_life_of_a_server_claims_nothing(store: Store) -> None:
    make_server(store)
    make_build(store)
    make_server(store, session="life-2")
    assert claim(store) is None
    assert claim(store, session="life-2") is not None


def test_next_attempt_counts_on_and_the_build_keeps_its_beginning(store: Store) -> None:
    ref = running(store)
    first = builds.get(store, "build-1")
    attempts.end(store, ref, ended(Outcome.LOST))
    second = claim(store)
    assert second is not None
    assert second.ref.number == 2
    again = builds.get(store, "build-1")
    assert (again.started_at, again.attempt) == (first.started_at, 2)
    assert again.queued_at > first.queued_at


def test_database_itself_refuses_a_second_running_attempt(store: Store) -> None:
    running(store)
    row = {
        "build_id": "build-1",
        "number": 2,
        "server_id": "server-1",
        "session": "life-1",
        "slot": 2,
        "state": "running",
        "started_at": builds.get(store, "build-1").created_at,
    }
    with pytest.raises(StoreRejected), store.begin() as connection:
        connection.execute(insert(tables.attempts).values(row))
    assert len(attempts.list_attempts(store, "build-1")) == 1


def test_claim_takes_two_statements_and_a_vain_one_one(store: Store) -> None:
    make_server(store)
    make_build(store)
    with counted(store) as statements:
        claim(store)
    assert len(statements) == 2
    with counted(store) as statements:
        claim(store)
    assert len(statements) == 1
