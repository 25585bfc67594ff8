"""When Ctrl-C is acted on."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from agent import clock
from agent.cli.interrupt import Interrupt


def press() -> None:
    """Press Ctrl-C; the handler has run when this returns."""
    os.kill(os.getpid(), signal.SIGINT)


def test_work_under_way_is_finished_before_the_command_ends() -> None:
    interrupt = Interrupt()
    done = []
    with interrupt.heard():
        press()
        done.append("work")
        with pytest.raises(KeyboardInterrupt):
            interrupt.check()
    assert done == ["work"]


def test_wait_ends_at_once() -> None:
    interrupt = Interrupt()
    began = clock.mono()
    with interrupt.heard():
        threading.Timer(0.2, press).start()
        with pytest.raises(KeyboardInterrupt), interrupt.waiting():
            clock.sleep(30)
    assert clock.mono() - began < 10


def test_wait_that_begins_afterwards_does_not_begin() -> None:
    interrupt = Interrupt()
    with interrupt.heard():
        press()
        with pytest.raises(KeyboardInterrupt), interrupt.waiting():
            clock.sleep(30)


def test_second_press_ends_what_is_under_way() -> None:
    interrupt = Interrupt()
    with interrupt.heard():
        press()
        with pytest.raises(KeyboardInterrupt):
            press()


def test_what_hangs_is_interrupted_after_a_moment() -> None:
    interrupt = Interrupt()
    with interrupt.heard():
        press()
        with pytest.raises(KeyboardInterrupt):
            threading.Event().wait(30)


def test_former_handling_is_back_afterwards() -> None:
    former = signal.getsignal(signal.SIGINT)
    timer = signal.setitimer(signal.ITIMER_REAL, 90)
    with Interrupt().heard():
        assert signal.getsignal(signal.SIGINT) is not former
    assert signal.getsignal(signal.SIGINT) is former
    assert signal.getitimer(signal.ITIMER_REAL)[0] > 60
    signal.setitimer(signal.ITIMER_REAL, *timer)


def test_signal_that_the_shell_keeps_from_us_stays_ignored() -> None:
    former = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        interrupt = Interrupt()
        with interrupt.heard():
            press()
        assert not interrupt.is_pending
    finally:
        signal.signal(signal.SIGINT, former)
