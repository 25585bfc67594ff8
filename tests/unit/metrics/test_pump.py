"""The pump: a steady rhythm, and nobody's fault is another's."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest

from agent import clock
from agent.errors import SettingsError
from agent.metrics.catalogue import BUILDS_RUNNING, OUTPUT_BYTES, READINGS_DROPPED
from agent.metrics.pump import Pump, open_sinks
from agent.metrics.reading import CounterValue, Reading
from agent.metrics.registry import Metrics


class ListSink:
    """A sink that keeps what it gets, and fails on demand."""

    def __init__(self, name: str = "list", *, is_broken: bool = False) -> None:
        self.name = name
        self.is_broken = is_broken
        self.dropped_count = 0
        self.published: list[tuple[Sequence[Reading], datetime]] = []
        self.limits_s: list[float] = []

    def publish(self, readings: Sequence[Reading], at: datetime) -> None:
        if self.is_broken:
            raise OSError("broken sink")
        self.published.append((readings, at))

    def close(self, limit_s: float) -> None:
        self.limits_s.append(limit_s)
        if self.is_broken:
            raise OSError("broken sink")

    def growth(self) -> list[float]:
        """What OUTPUT_BYTES grew by in each cycle."""
        return [
            it.increase
            for readings, _ in self.published
            for it in readings
            if isinstance(it, CounterValue) and it.metric is OUTPUT_BYTES
        ]


def test_each_cycle_gives_every_sink_the_same_interval() -> None:
    metrics, first, second = Metrics(), ListSink("first"), ListSink("second")
    pump = Pump(metrics, [first, second], 10)
    for amount in (5, 7):
        metrics.add(OUTPUT_BYTES, amount)
        pump.cycle()
    assert first.growth() == second.growth() == [5, 7]


def test_cycle_tells_how_long_to_wait() -> None:
    pump = Pump(Metrics(), [], 10)
    waits = [pump.cycle() for _ in range(3)]
    assert all(wait_s > 0 for wait_s in waits)
    # Called early, it keeps to the rhythm instead of starting a new one.
    assert [round(wait_s) for wait_s in waits] == [10, 20, 30]


def test_broken_reader_and_sink_cost_the_others_nothing_and_are_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    metrics, broken, sound = Metrics(), ListSink("broken", is_broken=True), ListSink("sound")

    def read() -> None:
        raise RuntimeError("broken reader")

    pump = Pump(metrics, [broken, sound], 10, readers=[read, lambda: metrics.set(BUILDS_RUNNING, 2)])
    with caplog.at_level(logging.INFO):
        for _ in range(5):
            pump.cycle()
    assert len(sound.published) == 5
    assert any(it.metric is BUILDS_RUNNING for it in sound.published[0][0])
    assert len([it for it in caplog.records if it.levelno >= logging.WARNING]) == 2
    broken.is_broken = False
    pump.cycle()
    assert len(broken.published) == 1


def test_what_a_sink_drops_is_a_figure_itself() -> None:
    metrics, sink = Metrics(), ListSink()
    pump = Pump(metrics, [sink], 10)
    sink.dropped_count = 30
    pump.cycle()
    found = [it for it in metrics.snapshot() if it.metric is READINGS_DROPPED]
    assert [(it.labels, it.total) for it in found if isinstance(it, CounterValue)] == [(("list",), 30)]


def test_close_sends_the_last_readings_and_shares_its_limit() -> None:
    metrics, broken, sound = Metrics(), ListSink("broken", is_broken=True), ListSink("sound")
    metrics.add(OUTPUT_BYTES, 3)
    Pump(metrics, [broken, sound], 10).close(5.0)
    assert sound.growth() == [3]
    assert 0 < sound.limits_s[0] <= broken.limits_s[0] <= 5.0


@pytest.mark.parametrize("step", [timedelta(hours=1), timedelta(hours=-1)])
def test_f16_step_of_the_wall_clock_moves_stamps_and_not_the_rhythm(
    step: timedelta, monkeypatch: pytest.MonkeyPatch
) -> None:
    wall = [datetime(2026, 3, 1, tzinfo=UTC)]
    monkeypatch.setattr(clock, "utc_now", lambda: wall[0])
    metrics, sink = Metrics(), ListSink()
    pump = Pump(metrics, [sink], 10)
    metrics.add(OUTPUT_BYTES, 1)
    first_s = pump.cycle()
    wall[0] += step
    metrics.add(OUTPUT_BYTES, 1)
    second_s = pump.cycle()
    assert [at for _, at in sink.published] == [wall[0] - step, wall[0]]
    assert sink.growth() == [1, 1]
    assert [round(first_s), round(second_s)] == [10, 20]


def test_no_setting_opens_no_sink_and_a_wrong_one_is_named() -> None:
    nothing = {
        "librato_url": "",
        "librato_user": "",
        "librato_token": "",
        "statsd_address": "",
        "source": "s",
    }
    assert open_sinks(**nothing) == []
    with pytest.raises(SettingsError, match="librato_url"):
        open_sinks(**(nothing | {"librato_user": "u", "librato_token": "t", "librato_url": "ftp://x"}))
