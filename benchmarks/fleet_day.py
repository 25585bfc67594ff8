"""A day of a fleet of up to 1,000 servers, simulated, by the real scaling rule; its result as a table and a chart."""

from __future__ import annotations

import math
import random
from pathlib import Path

from benchmarks import chart
from benchmarks.figure import Effort, Report, Row, at_most, percentile
from benchmarks.ground import Ground
from tests.unit.fleet.simulation import Simulation

TITLE = "A day of a fleet"
CHART = Path(__file__).parents[1] / "docs" / "fleet-day.svg"
_DAY_S = 86_400
_HOUR_S = 3600
_SEED = 20
_SLOTS = 4
_FLOOR, _CEILING = 20, 1000
_SPARE_SLOTS = 80
_BOOT_S = 45
_SCALE_IN_S = 600
# Builds a second at each full hour of a working day, from midnight to midnight.
_RATES = (0.25, 0.2, 0.15, 0.15, 0.2, 0.4, 0.9, 2.0, 4.6, 7.4, 8.2, 7.6, 5.4, 5.8, 7.8, 8.0, 7.2, 5.2, 3.2, 2.0, 1.3,
          0.9, 0.6, 0.4, 0.25)  # fmt: skip
# What comes at once: (second of the day, builds): a nightly run, a merge train, a release.
_BURSTS = ((2 * _HOUR_S, 400), (10 * _HOUR_S + 1800, 600), (19 * _HOUR_S + 900, 900))
# Five minutes in the median, a tenth over twelve; from 20 s to an hour.
_MEDIAN_S, _SPREAD = 300.0, 0.7

_WORDS = """\
{builds:,} builds on up to {most:,} servers of {slots} slots, a working day from midnight to midnight with a nightly run,
a merge train and a release as bursts. Simulated are servers, builds and time; the rule that decides is the real one
([fleet](fleet.md#how-many-servers)), asked every two seconds. Boots take {boot} s, floor is {floor}, ceiling
{ceiling:,}, {spare} slots are kept ready, and a server leaves when fewer have been enough for {scale_in} min. The same
seed gives the same day.

![Servers that were needed and servers that accepted builds, over a day]({chart})"""


def run(ground: Ground, effort: Effort) -> Report:  # noqa: ARG001 - simulated: neither ground nor rounds
    """Simulate the day, and draw it."""
    day = simulate()
    draw(day)
    fixed_s = max(it.needed for it in day.moments) * _DAY_S
    ideal_s = day.build_s / _SLOTS
    rows = [
        Row(
            name="wait, median",
            unit="s",
            samples=[percentile(day.waits, 0.5)],
            meaning="from a build's arrival to its first step",
        ),
        Row(name="wait, p99", unit="s", samples=[percentile(day.waits, 0.99)], meaning="the same"),
        Row(
            name="wait, longest",
            unit="s",
            samples=[max(day.waits)],
            meaning="a boot and a look, for builds of a burst; longer only while the ceiling holds",
            target=at_most(_BOOT_S + 2),
        ),
        Row(
            name="servers at most",
            unit="",
            samples=[day.most],
            meaning="there or on the way",
            target=at_most(_CEILING),
        ),
        Row(
            name="cost over the ideal",
            unit="x",
            samples=[day.server_s / ideal_s],
            meaning="hours of servers over those that the builds alone would fill",
        ),
        Row(
            name="cost over a fixed fleet",
            unit="x",
            samples=[day.server_s / fixed_s],
            meaning="hours of servers over those of as many as the busiest moment needs, all day",
        ),
        Row(
            name="turns",
            unit="",
            samples=[day.turns],
            meaning="starts that followed on a drain; a day has 144 times of ten minutes",
            target=at_most(_DAY_S / _SCALE_IN_S),
        ),
    ]
    return Report(words=_words(day), rows=rows)


def simulate() -> Simulation:
    """Return the pool at the end of the day."""
    day = Simulation(
        seed=_SEED,
        slots=_SLOTS,
        floor=_FLOOR,
        ceiling=_CEILING,
        boot_s=_BOOT_S,
        scale_in_after_s=_SCALE_IN_S,
        spare_slots=_SPARE_SLOTS,
    )
    day.run(_DAY_S, _arrivals, _duration)
    return day


def draw(day: Simulation) -> None:
    """Write the chart."""
    step = 60
    moments = day.moments[::step]
    chart.write(
        CHART,
        title="Servers over a day",
        needed=[(it.at_s / _HOUR_S, min(it.needed, _CEILING)) for it in moments],
        accepting=[(it.at_s / _HOUR_S, it.accepting) for it in moments],
    )


def _words(day: Simulation) -> str:
    return _WORDS.format(
        builds=len(day.waits),
        most=day.most,
        slots=_SLOTS,
        boot=_BOOT_S,
        floor=_FLOOR,
        ceiling=_CEILING,
        spare=_SPARE_SLOTS,
        scale_in=_SCALE_IN_S // 60,
        chart=CHART.name,
    )


def _arrivals(now: int, chance: random.Random) -> int:
    hour, into = divmod(now, _HOUR_S)
    rate = _RATES[hour] + (_RATES[hour + 1] - _RATES[hour]) * into / _HOUR_S
    burst = sum(count for at, count in _BURSTS if at == now)
    return burst + _poisson(rate, chance)


def _poisson(rate: float, chance: random.Random) -> int:
    """Return how many come in a second (Knuth, The Art of Computer Programming, 3.4.1)."""
    limit, product, count = math.exp(-rate), chance.random(), 0
    while product > limit:
        count += 1
        product *= chance.random()
    return count


def _duration(chance: random.Random) -> int:
    return round(min(3600.0, max(20.0, chance.lognormvariate(math.log(_MEDIAN_S), _SPREAD))))
