"""Signals: each is counted, whatever the main thread does when it comes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from agent.clock import mono
from agent.daemon.signals import STOP_SIGNALS, Signals


@pytest.fixture
def signals() -> Iterator[Signals]:
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    made = Signals()
    made.install()
    yield made
    signal.set_wakeup_fd(-1)
    for number, handler in before.items():
        signal.signal(number, handler)
    os.close(made._reader)
    os.close(made._writer)


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_signal_ends_a_wait_and_is_counted(signals: Signals, number: signal.Signals) -> None:
    threading.Timer(0.1, os.kill, (os.getpid(), number)).start()
    began_mono = mono()
    signals.wait(30)
    assert signals.stop_count == 1
    assert mono() - began_mono < 20


def test_each_of_several_signals_counts(signals: Signals) -> None:
    """The second SIGTERM means another thing than the first."""
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGTERM)
        signals.wait(10)
    assert signals.stop_count == 2


def test_signals_that_came_before_the_wait_are_counted_together(signals: Signals) -> None:
    for number in STOP_SIGNALS:
        os.kill(os.getpid(), number)
    signals.wait(10)
    assert signals.stop_count == 2


def test_signal_is_not_missed_while_other_threads_start_processes(signals: Signals) -> None:
    stop = threading.Event()

    def start() -> None:
        while not stop.is_set():
            subprocess.run([sys.executable, "-c", ""], check=True)

    starters = [threading.Thread(target=start) for _ in range(2)]
    for starter in starters:
        starter.start()
    for expected in range(1, 21):
        os.kill(os.getpid(), signal.SIGTERM)
        signals.wait(10)
        assert signals.stop_count == expected
    stop.set()
    for starter in starters:
        starter.join(20)


def test_wake_ends_a_wait_and_is_no_signal(signals: Signals) -> None:
    threading.Timer(0.05, signals.wake).start()
    began_mono = mono()
    signals.wait(30)
    assert mono() - began_mono < 20
    assert signals.stop_count == 0


def test_wait_without_a_signal_ends(signals: Signals) -> None:
    signals.wait(0.01)
    assert signals.stop_count == 0


def test_wakes_that_nobody_reads_block_nobody(signals: Signals) -> None:
    """A main thread that hangs must not take the heartbeat with it."""
    for _ in range(200_000):
        signals.wake()
    signals.wait(0)
    assert signals.stop_count == 0
