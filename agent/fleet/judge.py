"""The judge of a trial: what builds do on a new image, against what they do on the one in use. Pure functions.

Two sequential tests (Wald's probability ratio test), one of infrastructure failures and one of failed builds: after each
build the likelihood of "this image is bad" against "it is as the other" moves, and the trial ends at a bound. That may be
looked at after each build without loss, which a fixed test may not. A third test, of signs, is for durations: builds of a
project on the new image, each against the median of that project on the old one.

    bad when   log-likelihood ratio >= ln((1 - BETA) / ALPHA)     a good image is given up in 1 of 100 trials at most
    good when  log-likelihood ratio <= ln(BETA / (1 - ALPHA))     a bad one is kept in 5 of 100 at most

Source: A. Wald, "Sequential Tests of Statistical Hypotheses", 1945.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from statistics import median
from typing import Any

from agent.model.outcome import Outcome
from agent.store.fleet_survey import Sample

ALPHA = 0.01
BETA = 0.05
_BAD = math.log((1 - BETA) / ALPHA)
_GOOD = math.log(BETA / (1 - ALPHA))

# Durations: so many builds at least, so much slower in the median, and so unlikely by chance.
_SLOW_BUILDS_MIN = 10
_SLOW_FACTOR = 1.5
_SLOW_CHANCE = 0.001
# What a build does to itself, or people to it, says nothing about an image.
_SAYS_NOTHING = frozenset({Outcome.CANCELLED, Outcome.SKIPPED, Outcome.PREEMPTED, Outcome.REFUSED})


class Verdict(StrEnum):
    """What is known of an image by now."""

    UNDECIDED = "undecided"
    GOOD = "good"
    BAD = "bad"


@dataclass(frozen=True, kw_only=True, slots=True)
class Evidence:
    """What a verdict rests on: attempts counted on each side, the ratios, the durations."""

    verdict: Verdict
    reason: str
    tried: int
    infrastructure: int
    failed: int
    before: int
    before_infrastructure: int
    before_failed: int
    infrastructure_ratio: float
    failed_ratio: float
    slower: float | None

    def plain(self) -> dict[str, Any]:
        """Return the evidence as JSON holds it."""
        return asdict(self)


def judge(new: Sequence[Sample], old: Sequence[Sample]) -> Evidence:
    """Say what the attempts on a new image prove, against those on the old one."""
    new = [it for it in new if it.outcome not in _SAYS_NOTHING]
    old = [it for it in old if it.outcome not in _SAYS_NOTHING]
    infrastructure, failed = _count(new)
    before_infrastructure, before_failed = _count(old)
    usual, bad = _rates(before_infrastructure, len(old), low=0.01, high=0.1, bad_at_least=0.25)
    infrastructure_ratio = _ratio(infrastructure, len(new), usual, bad)
    # Of failed builds the machine is seldom the cause, so only a great difference counts.
    own, own_old = len(new) - infrastructure, len(old) - before_infrastructure
    usual_failed, bad_failed = _rates(before_failed, own_old, low=0.1, high=0.6, bad_at_least=0.6)
    failed_ratio = _ratio(failed, own, usual_failed, bad_failed)
    slower = _slower(new, old)
    verdict, reason = _verdict(
        infrastructure_ratio,
        failed_ratio,
        slower,
        f"{infrastructure} of {len(new)} ended by infrastructure "
        f"({before_infrastructure} of {len(old)} on the image in use)",
        f"{failed} of {own} failed ({before_failed} of {own_old})",
    )
    return Evidence(
        verdict=verdict,
        reason=reason,
        tried=len(new),
        infrastructure=infrastructure,
        failed=failed,
        before=len(old),
        before_infrastructure=before_infrastructure,
        before_failed=before_failed,
        infrastructure_ratio=round(infrastructure_ratio, 3),
        failed_ratio=round(failed_ratio, 3),
        slower=None if slower is None else round(slower, 3),
    )


def _verdict(
    infrastructure: float, failed: float, slower: float | None, ended: str, failures: str
) -> tuple[Verdict, str]:
    if infrastructure >= _BAD:
        return Verdict.BAD, ended
    if failed >= _BAD:
        return Verdict.BAD, failures
    if slower is not None:
        return Verdict.BAD, f"builds take {slower:.1f} times as long as on the image in use"
    if infrastructure <= _GOOD and failed <= _GOOD:
        return Verdict.GOOD, f"{ended}; {failures}"
    return Verdict.UNDECIDED, f"{ended}; {failures}"


def _count(samples: Sequence[Sample]) -> tuple[int, int]:
    infrastructure = sum(it.outcome.is_infrastructure for it in samples)
    passed = sum(it.outcome.is_success for it in samples)
    return infrastructure, len(samples) - infrastructure - passed


def _rates(hits: int, count: int, *, low: float, high: float, bad_at_least: float) -> tuple[float, float]:
    """Return (usual rate, rate of a bad image): the one seen before, drawn to `low` while little was seen."""
    usual = min(max((hits + 20 * low) / (count + 20), low), high)
    return usual, min(0.95, max(bad_at_least, 3 * usual))


def _ratio(hits: int, count: int, usual: float, bad: float) -> float:
    """Return the log-likelihood ratio of `bad` against `usual`."""
    return hits * math.log(bad / usual) + (count - hits) * math.log((1 - bad) / (1 - usual))


def _slower(new: Sequence[Sample], old: Sequence[Sample]) -> float | None:
    """Return how many times longer builds take, if that is much and no chance."""
    usual = {project: median(times) for project, times in _times(old).items() if len(times) >= 3}
    ratios = [
        seconds / usual[project]
        for project, times in _times(new).items()
        if usual.get(project)
        for seconds in times
    ]
    if len(ratios) < _SLOW_BUILDS_MIN or median(ratios) < _SLOW_FACTOR:
        return None
    slower = sum(ratio > 1 for ratio in ratios)
    by_chance = sum(math.comb(len(ratios), k) for k in range(slower, len(ratios) + 1)) / 2 ** len(ratios)
    return median(ratios) if by_chance <= _SLOW_CHANCE else None


def _times(samples: Sequence[Sample]) -> Mapping[str, list[float]]:
    times: dict[str, list[float]] = defaultdict(list)
    for it in samples:
        if it.outcome is Outcome.PASSED:
            times[it.project].append(it.seconds)
    return times
