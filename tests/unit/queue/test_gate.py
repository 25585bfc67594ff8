"""The gate: a build is in hand and waited for, or it is not taken; there is nothing between."""

from __future__ import annotations

import threading

import pytest

from agent.clock import Deadline
from agent.queue.gate import Gate
from tests.services import wait_until


@pytest.fixture
def gate() -> Gate:
    made = Gate()
    made.set_reasons([])
    return made


def test_gate_is_closed_until_somebody_has_judged() -> None:
    gate = Gate()
    assert (gate.is_open, gate.reasons) == (False, ("starting",))
    assert not gate.try_enter()


def test_closed_gate_lets_nothing_in_and_says_why(gate: Gate) -> None:
    gate.set_reasons(["disk full", "held"])
    assert gate.reasons == ("disk full", "held")
    assert not gate.try_enter()
    assert gate.in_hand == 0


def test_close_adds_a_reason_once(gate: Gate) -> None:
    gate.close("suspended")
    gate.close("suspended")
    gate.close("database")
    assert gate.reasons == ("suspended", "database")
    gate.set_reasons([])
    assert gate.is_open


def test_what_is_in_hand_stays_so_when_the_gate_closes(gate: Gate) -> None:
    assert gate.try_enter()
    gate.close("draining")
    assert gate.in_hand == 1
    assert not gate.wait_idle(0.01)
    gate.leave()
    assert gate.wait_idle(0)


def test_judgement_older_than_a_close_does_not_open_the_gate(gate: Gate) -> None:
    before = gate.reasons
    gate.close("drain asked by ann")  # while somebody judges by what was known before
    assert not gate.set_reasons([], instead_of=before)
    assert gate.reasons == ("drain asked by ann",)
    assert gate.set_reasons([], instead_of=gate.reasons)
    assert gate.is_open


def test_waiting_for_the_gate_ends_when_it_opens(gate: Gate) -> None:
    gate.close("starting")
    assert not gate.wait_open(0.01)
    opened: list[bool] = []
    waiter = threading.Thread(target=lambda: opened.append(gate.wait_open(30)))
    waiter.start()
    gate.set_reasons([])
    waiter.join(10)
    assert opened == [True]


def test_waiting_for_idle_ends_when_the_last_has_left(gate: Gate) -> None:
    assert gate.try_enter()
    assert gate.try_enter()
    idle: list[bool] = []
    waiter = threading.Thread(target=lambda: idle.append(gate.wait_idle(30)))
    waiter.start()
    gate.leave()
    gate.leave()
    waiter.join(10)
    assert idle == [True]


def test_drain_raced_against_slots_never_finds_idle_with_a_build_inside(gate: Gate) -> None:
    """Whoever closes the gate and then sees nothing in hand may end the machine (F06)."""
    stop = threading.Event()
    entered = 0
    inside = 0
    lock = threading.Lock()
    faults: list[str] = []

    def serve() -> None:
        nonlocal entered, inside
        while not stop.is_set():
            if not gate.try_enter():
                continue
            with lock:
                entered += 1
                inside += 1
            with lock:
                inside -= 1
            gate.leave()

    slots = [threading.Thread(target=serve) for _ in range(4)]
    for slot in slots:
        slot.start()
    deadline = Deadline.after(20)
    for round_number in range(40):
        gate.close("drain")
        assert gate.wait_idle(10)
        before = entered
        with lock:
            if inside or gate.in_hand or entered != before:
                faults.append(f"round {round_number}: {inside} inside, {gate.in_hand} in hand")
        gate.set_reasons([])
        assert not deadline.is_passed
        wait_until(lambda seen=before: entered > seen, 10, "a slot to enter again")  # type: ignore[misc]
    stop.set()
    for slot in slots:
        slot.join(10)
    assert faults == []
    assert gate.in_hand == 0
