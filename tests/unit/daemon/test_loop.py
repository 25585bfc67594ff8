"""A loop: what may pass is waited out, all else is missed at once, and no wake is lost."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator

import pytest

from agent import clock
from agent.daemon.loop import Loop
from agent.errors import AgentError, QueueUnavailable, StoreUnavailable
from tests.services import wait_until

FOREVER_S = 3600.0


class Work:
    """A cycle that does what the test says next, and counts."""

    def __init__(self) -> None:
        self.count = 0
        self.faults: list[BaseException] = []
        self.answer: float | None = None
        self.began = threading.Event()

    def __call__(self) -> float | None:
        self.count += 1
        self.began.set()
        if self.faults:
            raise self.faults.pop(0)
        return self.answer


@pytest.fixture
def work() -> Work:
    return Work()


@pytest.fixture
def make_loop(work: Work) -> Iterator[Callable[..., Loop]]:
    made: list[Loop] = []

    def make(*, interval_s: float = 0.001, is_endless: bool = True) -> Loop:
        loop = Loop("test", work, interval_s=interval_s, is_endless=is_endless)
        made.append(loop)
        loop.start()
        return loop

    yield make
    for loop in made:
        loop.stop()
        assert loop.join(10)


def test_loop_runs_over_and_over(make_loop: Callable[..., Loop], work: Work) -> None:
    loop = make_loop()
    wait_until(lambda: work.count >= 5)
    assert loop.is_alive
    assert loop.failure is None


def test_wake_runs_the_next_cycle_now(make_loop: Callable[..., Loop], work: Work) -> None:
    loop = make_loop(interval_s=FOREVER_S)
    for expected in range(1, 50):
        wait_until(lambda expected=expected: work.count == expected)  # type: ignore[misc]
        loop.wake()
    wait_until(lambda: work.count == 50)


def test_wake_during_a_cycle_is_not_lost() -> None:
    """A nudge that comes while orders are read may be about one that this reading has missed."""
    entered, go_on = threading.Event(), threading.Event()
    cycles: list[int] = []

    def cycle() -> None:
        cycles.append(1)
        entered.set()
        go_on.wait(10)

    loop = Loop("test", cycle, interval_s=FOREVER_S)
    loop.start()
    assert entered.wait(10)
    loop.wake()
    go_on.set()
    wait_until(lambda: len(cycles) == 2)
    loop.stop()
    assert loop.join(10)


def test_cycle_may_say_when_it_wants_to_run_again(make_loop: Callable[..., Loop], work: Work) -> None:
    work.answer = 0.0
    make_loop(interval_s=FOREVER_S)
    wait_until(lambda: work.count >= 10)
    work.answer = None
    # From then on its own interval holds again, which is for ever.
    wait_until(lambda: stands_still(work))


def stands_still(work: Work) -> bool:
    """Whether no cycle comes for a while."""
    before = work.count
    clock.sleep(0.1)
    return work.count == before


def test_stop_ends_a_loop_that_waits(make_loop: Callable[..., Loop], work: Work) -> None:
    loop = make_loop(interval_s=FOREVER_S)
    assert work.began.wait(10)
    loop.stop()
    assert loop.join(10)
    assert not loop.is_alive
    assert work.count == 1


@pytest.mark.parametrize("fault", [StoreUnavailable("away"), QueueUnavailable("away")])
def test_fault_that_may_pass_is_waited_out_and_told_once(
    make_loop: Callable[..., Loop], work: Work, fault: AgentError, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    work.faults = [fault, fault, fault]
    loop = make_loop(interval_s=0)
    wait_until(lambda: work.count >= 6, 20)
    assert loop.failure is None
    events = [getattr(record, "event", "") for record in caplog.records]
    assert events.count("loop.waiting") == 1
    assert events.count("loop.recovered") == 1


def test_waiting_out_a_fault_is_no_busy_loop(make_loop: Callable[..., Loop], work: Work) -> None:
    work.faults = [StoreUnavailable("away")] * 100
    loop = make_loop(interval_s=0)
    assert work.began.wait(10)
    loop.join(0.5)
    assert work.count <= 6
    work.faults = []


@pytest.mark.parametrize(
    "fault", [AgentError("for a person"), ValueError("a mistake"), KeyboardInterrupt(), SystemExit(3)]
)
def test_any_other_fault_ends_the_loop_with_its_reason(
    make_loop: Callable[..., Loop], work: Work, fault: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    work.faults = [fault]
    loop = make_loop()
    assert loop.join(10)
    assert loop.failure is fault
    assert work.count == 1
    assert [getattr(record, "event", "") for record in caplog.records] == ["loop.died"]


def test_loop_that_is_not_endless_runs_once(make_loop: Callable[..., Loop], work: Work) -> None:
    loop = make_loop(is_endless=False)
    assert loop.join(10)
    assert (work.count, loop.failure) == (1, None)


def test_loop_that_is_not_endless_tries_again_after_a_fault_that_may_pass(
    make_loop: Callable[..., Loop], work: Work
) -> None:
    work.faults = [StoreUnavailable("away")]
    loop = make_loop(is_endless=False, interval_s=0)
    assert loop.join(10)
    assert (work.count, loop.failure) == (2, None)


def test_silence_grows_while_a_cycle_hangs_and_ends_with_it() -> None:
    go_on = threading.Event()

    def hang() -> None:
        go_on.wait(20)

    loop = Loop("test", hang, interval_s=0.001)
    loop.start()
    wait_until(lambda: loop.silent_s > 0.2)
    go_on.set()
    wait_until(lambda: loop.silent_s < 0.2)
    loop.stop()
    assert loop.join(10)


def test_failing_loop_is_not_silent(make_loop: Callable[..., Loop], work: Work) -> None:
    """It is told by its link; hanging is something else."""
    work.faults = [StoreUnavailable("away")] * 3
    loop = make_loop(interval_s=0)
    wait_until(lambda: work.count >= 2)
    assert loop.silent_s < 10
