"""Calls of providers beside the controller: one a thing at a time, none waited for, none lost."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from agent.fleet.hands import Done, Hands
from tests.services import wait_until


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """What calls wait for that are to hang; open at the end."""
    made = threading.Event()
    yield made
    made.set()


def collected(hands: Hands, count: int) -> list[Done]:
    """Return the next calls that end."""
    found: list[Done] = []

    def look() -> bool:
        found.extend(hands.collect())
        return len(found) >= count

    wait_until(look, 10)
    return found


def test_answer_and_fault_come_back_once_with_what_they_are_about() -> None:
    hands, fault = Hands(), OSError("throttled")

    def fail() -> None:
        raise fault

    hands.do("launch", "m-1", lambda: "i-1")
    hands.do("launch", "m-2", fail)
    found = {it.key: (it.answer, it.fault) for it in collected(hands, 2)}
    assert found == {("launch", "m-1"): ("i-1", None), ("launch", "m-2"): (None, fault)}
    assert list(hands.collect()) == []


def test_thing_is_asked_about_once_until_its_answer_is_collected(gate: threading.Event) -> None:
    hands, calls = Hands(), []

    def call() -> None:
        calls.append(1)
        gate.wait(10)

    for _ in range(3):
        hands.do("end", "m-1", call)
    assert hands.is_busy("end", "m-1")
    gate.set()
    collected(hands, 1)
    assert not hands.is_busy("end", "m-1")
    hands.do("end", "m-1", call)
    collected(hands, 1)
    assert len(calls) == 2


def test_calls_beyond_the_threads_wait_for_their_turn(gate: threading.Event) -> None:
    hands, begun = Hands(threads=2), []

    def call(number: int) -> int:
        begun.append(number)
        gate.wait(10)
        return number

    for number in range(5):
        hands.do("launch", f"m-{number}", lambda number=number: call(number))
    wait_until(lambda: len(begun) == 2, 10)
    assert list(hands.collect()) == []
    assert sorted(begun) == [0, 1]
    gate.set()
    assert sorted(it.answer for it in collected(hands, 5)) == [0, 1, 2, 3, 4]


def test_what_has_not_begun_when_hands_let_go_never_begins(gate: threading.Event) -> None:
    hands, begun = Hands(threads=1), []

    def call(number: int) -> None:
        begun.append(number)
        gate.wait(10)

    hands.do("launch", "m-1", lambda: call(1))
    hands.do("launch", "m-2", lambda: call(2))
    hands.close()
    gate.set()
    collected(hands, 1)
    assert list(hands.collect()) == []
    assert begun == [1]


def test_provider_that_hangs_does_not_hold_up_the_end_of_the_process() -> None:
    script = (
        "import threading\n"
        "from agent.fleet.hands import Hands\n"
        "hands = Hands()\n"
        "hands.do('launch', 'm-1', threading.Event().wait)\n"
        "hands.close()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], timeout=20, check=False)
    assert done.returncode == 0
