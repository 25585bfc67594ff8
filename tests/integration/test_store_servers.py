"""Servers and orders: lives that follow each other, heartbeats that count, words that are not lost."""

from __future__ import annotations

from typing import Any

import pytest

from agent.errors import NotFound, StateConflict
from agent.model.server import OrderKind, ServerState
from agent.store import audit, builds, orders, servers
from agent.store.engine import Store
from tests.integration.conftest_store import AT, beat, counted, lose, make_server, race, running


def give(store: Store, kind: OrderKind, **fields: Any) -> int:
    return orders.give(store, server_id="server-1", kind=kind, by="ann", **fields).id


def test_registration_begins_a_life(store: Store) -> None:
    server = make_server(store, queues=["a", "b"], tags={"gpu": "no"}, slots=3)
    assert server == servers.get(store, "server-1")
    assert (server.state, server.wanted, server.beat) == (ServerState.STARTING, OrderKind.RESUME, 0)
    assert (server.queues, server.tags, server.slots) == (["a", "b"], {"gpu": "no"}, 3)
    beat(store)
    again = make_server(store, session="life-2")
    assert (again.session, again.beat, len(servers.list_servers(store))) == ("life-2", 0, 1)
    assert [entry.action for entry in audit.list_entries(store, subject_id="server-1")] == [
        "server.register"
    ] * 2


def test_two_lives_at_once_leave_one(store: Store) -> None:
    results = race(*(lambda n=n: make_server(store, session=f"life-{n}") for n in range(6)))
    assert not [result for result in results if isinstance(result, Exception)]
    [server] = servers.list_servers(store)
    current = [n for n in range(6) if beat(store, session=f"life-{n}").is_current]
    assert [f"life-{n}" for n in current] == [server.session]


def test_quarantine_survives_a_restart(store: Store) -> None:
    make_server(store)
    orders.take(store, give(store, OrderKind.QUARANTINE, note="noisy disk"))
    server = make_server(store, session="life-2")
    assert (server.wanted, server.wanted_note, server.wanted_by) == (
        OrderKind.QUARANTINE,
        "noisy disk",
        "ann",
    )


@pytest.mark.parametrize("kind", [OrderKind.DRAIN, OrderKind.TERMINATE])
def test_order_that_a_former_life_took_is_done_with(store: Store, kind: OrderKind) -> None:
    make_server(store)
    orders.take(store, give(store, kind))
    server = make_server(store, session="life-2")
    assert (server.wanted, server.wanted_by, server.drain_deadline_at) == (OrderKind.RESUME, None, None)
    assert beat(store, session="life-2").orders == []


@pytest.mark.parametrize("kind", [OrderKind.DRAIN, OrderKind.TERMINATE])
def test_order_that_no_life_has_seen_still_stands(store: Store, kind: OrderKind) -> None:
    make_server(store)
    number = give(store, kind)
    server = make_server(store, session="life-2")
    assert server.wanted is kind
    assert [order.id for order in beat(store, session="life-2").orders] == [number]


def test_order_is_on_record_until_it_is_done(store: Store) -> None:
    make_server(store)
    order = orders.give(
        store, server_id="server-1", kind=OrderKind.DRAIN, by="ann", note="new image", deadline_at=AT
    )
    server = servers.get(store, "server-1")
    assert (server.wanted, server.wanted_note, server.drain_deadline_at) == (OrderKind.DRAIN, "new image", AT)
    assert beat(store).orders == [order]
    orders.take(store, order.id)
    [taken] = beat(store).orders
    assert taken.taken_at is not None
    orders.done(store, order.id, "drained")
    orders.done(store, order.id, "said twice")
    assert beat(store).orders == []
    [entry] = audit.list_entries(store, actor="ann")
    assert (entry.action, entry.detail["note"], entry.detail["order"]) == (
        "server.drain",
        "new image",
        order.id,
    )


def test_order_for_nobody_is_refused(store: Store) -> None:
    with pytest.raises(NotFound):
        give(store, OrderKind.DRAIN)
    with pytest.raises(NotFound):
        orders.done(store, 4711, "never given")


def test_beat_counts_and_tells_what_there_is_to_do(store: Store) -> None:
    ref, _ = running(store), running(store, "build-2")
    builds.request_cancel(store, "build-1", by="ann")
    reply = servers.beat(
        store,
        server_id="server-1",
        session="life-1",
        state=ServerState.NOT_READY,
        reason="no space",
        status={"disk": {"free": 1}},
    )
    assert reply.is_current
    assert reply.live == {("build-1", 1), ("build-2", 1)}
    assert [(it.build_id, it.attempt, it.by) for it in reply.cancellations] == [
        ("build-1", ref.number, "ann")
    ]
    server = servers.get(store, "server-1")
    assert (server.beat, server.state, server.state_reason) == (1, ServerState.NOT_READY, "no space")
    assert server.status == {"disk": {"free": 1}}


def test_beat_of_a_former_or_lost_life_is_told_so_and_changes_nothing(store: Store) -> None:
    make_server(store)
    make_server(store, session="life-2")
    assert not beat(store, session="life-1").is_current
    assert lose(store)
    before = servers.get(store, "server-1")
    assert not beat(store, session="life-2").is_current
    assert servers.get(store, "server-1") == before
    assert before.state is ServerState.LOST


def test_straggling_beat_does_not_bring_a_stopped_server_back(store: Store) -> None:
    make_server(store)
    servers.leave(
        store, server_id="server-1", session="life-1", state=ServerState.STOPPED, reason="by systemd"
    )
    assert not beat(store).is_current
    server = servers.get(store, "server-1")
    assert (server.state, server.state_reason, servers.beats(store)) == (
        ServerState.STOPPED,
        "by systemd",
        [],
    )


def test_server_that_beat_meanwhile_is_not_taken_for_lost(store: Store) -> None:
    make_server(store)
    [seen] = servers.beats(store)
    beat(store)
    assert not servers.mark_lost(store, server_id=seen.server_id, session=seen.session, beat=seen.beat)
    assert servers.get(store, "server-1").state is ServerState.ACCEPTING


def test_beat_races_reaper_and_both_agree(store: Store) -> None:
    for number in range(25):
        make_server(store, session=f"life-{number}")
        reply, is_lost = race(lambda n=number: beat(store, session=f"life-{n}"), lambda: lose(store))
        if is_lost:
            assert servers.get(store, "server-1").state is ServerState.LOST
            assert not beat(store, session=f"life-{number}").is_current
        else:
            assert reply.is_current
            assert servers.get(store, "server-1").state is ServerState.ACCEPTING


def test_beat_takes_three_statements(store: Store) -> None:
    running(store)
    with counted(store) as statements:
        beat(store)
    assert len(statements) == 3


def test_server_is_found_by_id_name_and_prefix(store: Store) -> None:
    make_server(store, "i-0abc1", name="red")
    make_server(store, "i-0abc2", name="blue")
    assert servers.get(store, "i-0abc1").id == "i-0abc1"
    assert servers.get(store, "blue").id == "i-0abc2"
    assert servers.get(store, "i-0abc2").name == "blue"
    with pytest.raises(StateConflict, match="i-0abc1, i-0abc2"):
        servers.get(store, "i-0a")
    for unknown in ("i-0", "green", "i-0abc_"):
        with pytest.raises(NotFound):
            servers.get(store, unknown)


def test_name_that_came_again_means_the_server_that_is_there(store: Store) -> None:
    make_server(store, "i-old", name="red")
    lose(store, "i-old")
    make_server(store, "i-new", name="red")
    assert servers.get(store, "red").id == "i-new"
    make_server(store, "i-two", name="red")
    with pytest.raises(StateConflict, match="i-new, i-two"):
        servers.get(store, "red")


def test_audit_pages_from_the_newest(store: Store) -> None:
    for number in range(5):
        make_server(store, session=f"life-{number}")
    first = audit.list_entries(store, limit=2)
    rest = audit.list_entries(store, before_id=first[-1].id)
    assert [entry.detail["session"] for entry in first + rest] == [f"life-{n}" for n in (4, 3, 2, 1, 0)]
