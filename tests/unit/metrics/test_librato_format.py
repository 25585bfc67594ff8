"""Librato's rules: what may stand in a request."""

from __future__ import annotations

import json
import math
import re
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.metrics.catalogue import BUILDS_ENDED, BUILDS_RUNNING, QUEUE_WAITING, STEP_SECONDS
from agent.metrics.librato_format import (
    DESCRIPTION_LIMIT,
    NAME_LIMIT,
    TITLE_LIMIT,
    clean_name,
    clean_source,
    encode_annotation,
    encode_gauges,
    join_gauges,
    retry_after_s,
)
from agent.metrics.reading import CounterValue, GaugeValue, Reading, TimingInterval

AT = datetime(2026, 3, 1, 12, 0, 0, 700_000, tzinfo=UTC)
STAMP = 1772366400


def timing(*, sum_squares: float = 9.0125) -> TimingInterval:
    return TimingInterval(
        metric=STEP_SECONDS, labels=(), count=3, sum=3.15, min=0.05, max=3.0,
        sum_squares=sum_squares, samples=(0.05, 0.1, 3.0),
    )  # fmt: skip


def encoded(*readings: Reading) -> list[dict[str, object]]:
    """The measurements as Librato would read them."""
    body = join_gauges(encode_gauges(readings, source="web-1", at=AT))
    gauges = json.loads(body)["gauges"]
    assert isinstance(gauges, list)
    return gauges


@given(st.text())
def test_every_name_and_source_is_one_librato_takes(text: str) -> None:
    for cleaned in (clean_name(text), clean_source(text)):
        assert re.fullmatch(r"[A-Za-z0-9.:_-]{1,255}", cleaned)


def test_long_names_stay_apart() -> None:
    first, second = clean_name("a" * 300 + "1"), clean_name("a" * 300 + "2")
    assert first != second
    assert len(first) == len(second) == NAME_LIMIT


@pytest.mark.parametrize("name", ["all", "ALL", "All"])
def test_reserved_source_is_not_used(name: str) -> None:
    assert clean_source(name).lower() != "all"


def test_readings_become_the_measurements_librato_documents() -> None:
    gauge = GaugeValue(metric=QUEUE_WAITING, labels=("my queue",), value=7)
    counter = CounterValue(metric=BUILDS_ENDED, labels=("passed",), total=12, increase=2)
    common = {"source": "web-1", "measure_time": STAMP}
    assert encoded(gauge, counter, timing()) == [
        {"name": "queue.waiting.my_queue", "value": 7, **common},
        {
            "name": "builds.ended.passed",
            "value": 2,
            "attributes": {"summarize_function": "sum"},
            **common,
        },
        {
            "name": "steps.duration",
            "count": 3,
            "sum": 3.15,
            "min": 0.05,
            "max": 3.0,
            "sum_squares": 9.0125,
            **common,
        },
    ]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e127])
def test_number_that_would_abort_the_request_is_left_out_alone(value: float) -> None:
    bad = GaugeValue(metric=BUILDS_RUNNING, labels=(), value=value)
    good = GaugeValue(metric=BUILDS_RUNNING, labels=(), value=1)
    assert [it["value"] for it in encoded(bad, good)] == [1]
    assert encoded(timing(sum_squares=value)) == []


def test_annotation_is_cut_to_limits_and_never_ends_before_its_start() -> None:
    body = encode_annotation(
        title="t" * 1000,
        description="d" * 10_000,
        source="web-1",
        start_at=AT,
        end_at=AT - timedelta(hours=1),
    )
    assert json.loads(body) == {
        "title": "t" * TITLE_LIMIT,
        "description": "d" * DESCRIPTION_LIMIT,
        "source": "web-1",
        "start_time": STAMP,
        "end_time": STAMP,
    }


def test_annotation_without_end_and_words_says_only_what_it_knows() -> None:
    body = encode_annotation(title="", description="", source="web-1", start_at=AT, end_at=None)
    assert json.loads(body) == {"title": "untitled", "source": "web-1", "start_time": STAMP}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("120", 120.0),
        (" 0 ", 0.0),
        ("9" * 5000, 999_999_999.0),
        ("Sun, 01 Mar 2026 12:00:30 GMT", 29.3),
        ("Sun, 01 Mar 2026 12:00:30 -0000", 29.3),
        ("Sun, 01 Mar 2026 11:00:00 GMT", 0.0),
        ("", None),
        ("soon", None),
        ("-5", None),
        ("nan", None),
        ("٣", None),
        ("Sun, 99 Foo", None),
    ],
)
def test_retry_after_is_read_as_number_or_date(text: str, expected: float | None) -> None:
    wait_s = retry_after_s({"Retry-After": text} if text else {}, now=AT)
    assert wait_s == (None if expected is None else pytest.approx(expected))


@given(st.text(max_size=40))
def test_retry_after_of_any_text_is_a_wait_or_nothing(text: str) -> None:
    wait_s = retry_after_s({"Retry-After": text}, now=AT)
    assert wait_s is None or (math.isfinite(wait_s) and wait_s >= 0)
