"""The scaling rule: by examples, by properties, against a simulated queue; and peaks, policies, replayed decisions."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.errors import SettingsError
from agent.fleet import scale
from agent.fleet.scale import Inputs, Peaks
from agent.model import policy as policies
from tests.unit.fleet.simulation import LOOK_S, Simulation

NEUTRAL = Inputs(
    waiting=0,
    running=0,
    slots=2,
    spare_slots=0,
    floor=0,
    ceiling=10,
    accepting=0,
    booting=0,
    peak=0,
)
COUNTS = st.integers(0, 500)


@st.composite
def inputs(draw: st.DrawFn) -> Inputs:
    """Any inputs that can be."""
    floor = draw(st.integers(0, 50))
    return Inputs(
        waiting=draw(COUNTS),
        running=draw(COUNTS),
        slots=draw(st.integers(1, 16)),
        spare_slots=draw(st.integers(0, 20)),
        floor=floor,
        ceiling=floor + draw(st.integers(0, 100)),
        accepting=draw(st.integers(0, 120)),
        booting=draw(st.integers(0, 60)),
        unready=draw(st.integers(0, 10)),
        leaving=draw(st.integers(0, 10)),
        quarantined=draw(st.integers(0, 10)),
        trial=draw(st.integers(0, 5)),
        peak=draw(st.integers(-1, 150)),
        starts_allowed=draw(st.sampled_from([0, 1, scale.ANY_NUMBER])),
        is_paused=draw(st.booleans()),
    )


@pytest.mark.parametrize(
    ("changed", "wanted", "start", "drain"),
    [
        ({}, 0, 0, 0),
        ({"waiting": 1}, 1, 1, 0),
        ({"waiting": 7}, 4, 4, 0),
        ({"waiting": 7, "booting": 3}, 4, 1, 0),
        ({"waiting": 7, "accepting": 1, "running": 2, "booting": 4}, 5, 0, 0),
        ({"waiting": 100}, 10, 10, 0),
        ({"waiting": 100, "quarantined": 3}, 10, 7, 0),
        ({"waiting": 100, "leaving": 3}, 10, 10, 0),
        ({"floor": 2}, 2, 2, 0),
        ({"spare_slots": 3}, 2, 2, 0),
        ({"accepting": 5, "running": 2}, 1, 0, 4),
        ({"accepting": 5, "running": 2, "peak": 3}, 1, 0, 2),
        ({"accepting": 5, "running": 2, "peak": -1}, 1, 0, 0),
        ({"accepting": 3, "booting": 2, "running": 2, "peak": 3}, 1, 0, 0),
        ({"waiting": 9, "starts_allowed": 1}, 5, 1, 0),
        ({"waiting": 9, "starts_allowed": 0}, 5, 0, 0),
        ({"waiting": 9, "is_paused": True}, 5, 0, 0),
        ({"accepting": 12, "running": 24, "peak": 12}, 10, 0, 0),
    ],
)
def test_examples(changed: dict[str, Any], wanted: int, start: int, drain: int) -> None:
    answer = scale.decide(replace(NEUTRAL, **changed))
    assert (answer.wanted, answer.start, answer.drain) == (wanted, start, drain), answer.reason


@given(inputs())
def test_bounds_are_kept_whatever_comes(given_inputs: Inputs) -> None:
    answer = scale.decide(given_inputs)
    it = given_inputs
    assert it.floor <= answer.wanted <= it.ceiling
    assert not (answer.start and answer.drain)
    there = it.accepting + it.booting + it.unready + it.quarantined
    assert answer.start == 0 or there + answer.start <= it.ceiling
    assert answer.start <= it.starts_allowed
    assert answer.drain == 0 or it.accepting - answer.drain >= answer.wanted
    assert answer.reason


@given(inputs(), st.integers(0, 100))
def test_more_demand_never_means_fewer_servers(given_inputs: Inputs, more: int) -> None:
    less = scale.decide(given_inputs)
    assert scale.decide(replace(given_inputs, waiting=given_inputs.waiting + more)).wanted >= less.wanted


@given(inputs())
def test_decision_replays_from_what_is_kept_of_it(given_inputs: Inputs) -> None:
    assert scale.decide(scale.read(given_inputs.plain())) == scale.decide(given_inputs)


@given(
    st.lists(st.tuples(st.floats(0.01, 5), st.integers(0, 50)), min_size=1, max_size=60), st.floats(0.5, 20)
)
def test_peak_is_the_greatest_within_the_time(steps: list[tuple[float, int]], span_s: float) -> None:
    peaks, at_s = Peaks(), 100.0
    seen: list[tuple[float, int]] = []
    for pause_s, wanted in steps:
        at_s += pause_s
        expected = -1
        if seen and at_s - seen[0][0] >= span_s:
            expected = max([it for when, it in seen if when >= at_s - span_s], default=0)
        assert peaks.peak(at_s, span_s) == expected
        peaks.note(at_s, wanted, span_s)
        seen.append((at_s, wanted))


# A simulated queue.


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10_000),
    slots=st.integers(1, 4),
    floor=st.integers(0, 3),
    boot_s=st.integers(1, 60),
    rate=st.floats(0.01, 0.5),
    build_s=st.integers(5, 120),
)
def test_simulated_queue_is_served_without_flapping(
    seed: int, slots: int, floor: int, boot_s: int, rate: float, build_s: int
) -> None:
    ceiling = floor + math.ceil(rate * build_s * 3 / slots) + 3
    made = Simulation(
        seed=seed, slots=slots, floor=floor, ceiling=ceiling, boot_s=boot_s, scale_in_after_s=300
    )
    shortest, longest = build_s // 2 + 1, build_s + 1
    made.run(
        3600,
        lambda _now, chance: int(chance.random() < rate),
        lambda chance: chance.randint(shortest, longest),
    )
    assert made.most <= ceiling
    assert made.moments[-1].accepting + made.moments[-1].booting >= floor
    # Whatever has begun has ended, or runs on a server that is there: none was drained while it built.
    assert made.running == sum(made.slots - it.free for it in made.servers)
    # A build waits for a boot and a look, and for what was ahead of it while the ceiling held.
    assert max(made.waits, default=0) <= boot_s + LOOK_S + longest
    # No flapping: whoever was drained had not been needed for the whole scale-in time, so a start follows a drain of the
    # same server only after demand has grown anew; in an hour that can't be more often than the time allows.
    assert made.turns <= 3600 / 300


# Policies.


def test_window_of_the_week_gives_other_bounds() -> None:
    made = policies.read({
        "floor": 1,
        "ceiling": 5,
        "schedule": [
            {"days": ["mon", "tue"], "start": "08:00", "end": "18:00", "zone": "Europe/Berlin", "floor": 4},
            {"days": ["fri"], "start": "22:00", "end": "02:00", "ceiling": 1},
        ],
    })  # fmt: skip
    monday = datetime(2026, 11, 23, 7, 30, tzinfo=UTC)  # 08:30 in Berlin
    assert made.bounds(monday) == (4, 5)
    assert made.bounds(monday.replace(hour=17, minute=0)) == (1, 5)
    friday = datetime(2026, 11, 27, 23, 0, tzinfo=UTC)
    assert made.bounds(friday) == (1, 1)
    assert made.bounds(datetime(2026, 11, 28, 1, 59, tzinfo=UTC)) == (1, 1)
    assert made.bounds(datetime(2026, 11, 28, 2, 0, tzinfo=UTC)) == (1, 5)
    assert made.bounds(datetime(2026, 11, 27, 1, 0, tzinfo=UTC)) == (1, 5)


@pytest.mark.parametrize(
    ("document", "told"),
    [
        ({"floor": 5, "ceiling": 2}, "floor 5 is over ceiling 2"),
        ({"schedule": [{"floor": 50}]}, "floor 50 is over ceiling 10"),
        ({"flor": 5}, "flor: there is no such thing in a policy; it has slots, floor"),
        ({"floor": -1}, "floor: Input should be greater than or equal to 0"),
        ({"schedule": [{"days": ["someday"]}]}, "schedule.0.days: days are mon"),
        ({"schedule": [{"start": "8"}]}, "schedule.0.start: '8' is no time of the day such as 08:30"),
        ({"schedule": [{"zone": "Mars"}]}, "schedule.0.zone: 'Mars' is no time zone"),
        ({"canary_share": 0}, "canary_share: "),
    ],
)
def test_policy_that_makes_no_sense_is_refused_by_name(document: dict[str, object], told: str) -> None:
    with pytest.raises(SettingsError) as caught:
        policies.read(document)
    assert told in str(caught.value)


def test_policy_is_read_as_people_type_it() -> None:
    assert policies.parse(["floor=3", "group=builders", 'schedule=[{"floor": 1}]']) == {
        "floor": 3,
        "group": "builders",
        "schedule": [{"floor": 1}],
    }
    with pytest.raises(SettingsError, match="expected NAME=VALUE"):
        policies.parse(["floor"])
