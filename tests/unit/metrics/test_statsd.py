"""StatsD's lines and datagrams."""

from __future__ import annotations

import pytest

from agent.errors import SettingsError
from agent.metrics.catalogue import BUILDS_ENDED, MEMORY_USED, OUTPUT_LAG_SECONDS, QUEUE_WAITING
from agent.metrics.reading import CounterValue, GaugeValue, Reading, TimingInterval
from agent.metrics.statsd import DATAGRAM_LIMIT, encode, pack, parse_address


def lines(reading: Reading) -> list[str]:
    return [line.decode() for line in encode(reading, "p.")]


def timing(count: int, samples: tuple[float, ...]) -> TimingInterval:
    return TimingInterval(
        metric=OUTPUT_LAG_SECONDS, labels=(), count=count, sum=1.0, min=0.0, max=1.0,
        sum_squares=1.0, samples=samples,
    )  # fmt: skip


def test_gauge_is_a_plain_number_of_any_size() -> None:
    assert lines(GaugeValue(metric=MEMORY_USED, labels=(), value=2.0**70)) == [
        "p.memory.used:1180591620717411303424|g"
    ]
    assert lines(GaugeValue(metric=MEMORY_USED, labels=(), value=0.00001)) == ["p.memory.used:0.00001|g"]


def test_negative_gauge_is_set_not_subtracted() -> None:
    assert lines(GaugeValue(metric=MEMORY_USED, labels=(), value=-5)) == [
        "p.memory.used:0|g\np.memory.used:-5|g"
    ]
    assert lines(GaugeValue(metric=MEMORY_USED, labels=(), value=-1e-9)) == ["p.memory.used:0|g"]


def test_counter_sends_its_growth_and_nothing_without_one() -> None:
    grown = CounterValue(metric=BUILDS_ENDED, labels=("passed",), total=9, increase=2)
    assert lines(grown) == ["p.builds.ended.passed:2|c"]
    assert lines(CounterValue(metric=BUILDS_ENDED, labels=("passed",), total=9)) == []


def test_timing_sends_milliseconds_and_the_rate_of_a_sample() -> None:
    assert lines(timing(2, (0.25, 1.0))) == ["p.output.lag:250|ms", "p.output.lag:1000|ms"]
    assert lines(timing(20, (0.25, 1.0))) == ["p.output.lag:250|ms|@0.1", "p.output.lag:1000|ms|@0.1"]


def test_label_cannot_break_out_of_its_line() -> None:
    evil = GaugeValue(metric=QUEUE_WAITING, labels=("a:1|g\nb",), value=1)
    assert lines(evil) == ["p.queue.waiting.a_1_g_b:1|g"]


def test_datagrams_are_full_but_never_too_long() -> None:
    parts = [f"name.{number:04}:{number}|g".encode() for number in range(500)]
    datagrams = list(pack(iter(parts)))
    assert b"\n".join(datagrams).split(b"\n") == parts
    assert all(len(datagram) <= DATAGRAM_LIMIT for datagram in datagrams)
    assert all(len(datagram) > DATAGRAM_LIMIT - 20 for datagram in datagrams[:-1])


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("statsd.example.com:9125", ("statsd.example.com", 9125)),
        ("statsd", ("statsd", 8125)),
        ("[::1]:8125", ("::1", 8125)),
    ],
)
def test_address_is_read(address: str, expected: tuple[str, int]) -> None:
    assert parse_address(address) == expected


@pytest.mark.parametrize(
    "address", ["", ":8125", "host:port", "host:0", "host:99999", "u@host:1", "host:1/x"]
)
def test_malformed_address_is_refused(address: str) -> None:
    with pytest.raises(SettingsError, match="statsd_address"):
        parse_address(address)
