"""The judge of a trial: what it says of good, broken and slow images, and how often it errs."""

from __future__ import annotations

import random

import pytest

from agent.fleet.judge import ALPHA, BETA, Verdict, judge
from agent.model.outcome import Outcome
from agent.store.fleet_survey import Sample


def samples(
    count: int, outcome: Outcome = Outcome.PASSED, *, seconds: float = 60.0, project: str = "shop"
) -> list[Sample]:
    """So many attempts that ended alike."""
    return [Sample(project=project, outcome=outcome, detail=None, seconds=seconds) for _ in range(count)]


GOOD = samples(100)


def test_nothing_is_known_without_builds() -> None:
    assert judge([], GOOD).verdict is Verdict.UNDECIDED
    assert judge(samples(5), GOOD).verdict is Verdict.UNDECIDED


def test_some_good_builds_in_a_row_are_enough() -> None:
    assert judge(samples(15), GOOD).verdict is Verdict.GOOD
    assert judge(samples(15), []).verdict is Verdict.GOOD


def test_two_infrastructure_failures_at_once_are_enough() -> None:
    found = judge(samples(2, Outcome.INFRASTRUCTURE), GOOD)
    assert found.verdict is Verdict.BAD
    assert found.reason == "2 of 2 ended by infrastructure (0 of 100 on the image in use)"


def test_one_infrastructure_failure_among_many_good_builds_is_forgiven() -> None:
    assert judge(samples(30) + samples(1, Outcome.LOST), GOOD).verdict is Verdict.GOOD


def test_failed_builds_count_only_where_builds_used_to_pass() -> None:
    assert judge(samples(6, Outcome.FAILED), GOOD).verdict is Verdict.BAD
    flaky = samples(60) + samples(60, Outcome.FAILED)
    assert judge(samples(15) + samples(15, Outcome.FAILED), flaky).verdict is not Verdict.BAD


@pytest.mark.parametrize("outcome", [Outcome.CANCELLED, Outcome.SKIPPED, Outcome.PREEMPTED, Outcome.REFUSED])
def test_what_people_did_says_nothing(outcome: Outcome) -> None:
    assert judge(samples(50, outcome), GOOD).tried == 0


def test_builds_that_take_twice_as_long_are_bad() -> None:
    found = judge(samples(12, seconds=130.0), GOOD)
    assert found.verdict is Verdict.BAD
    assert found.slower == pytest.approx(130 / 60, abs=0.01)
    assert judge(samples(12, seconds=70.0), GOOD).slower is None
    # A project that was never built before has nothing to be compared with.
    assert judge(samples(12, seconds=130.0, project="new"), GOOD).slower is None


@pytest.mark.slow
def test_errors_are_as_rare_as_is_said() -> None:
    """Looked at after each build, up to 200: a good image is given up, a bad one kept, no more often than the bounds."""
    chance = random.Random(4)
    rounds = 400

    def ends(rate: float) -> Verdict:
        tried: list[Sample] = []
        for _ in range(200):
            outcome = Outcome.INFRASTRUCTURE if chance.random() < rate else Outcome.PASSED
            tried += samples(1, outcome)
            verdict = judge(tried, GOOD).verdict
            if verdict is not Verdict.UNDECIDED:
                return verdict
        return Verdict.UNDECIDED

    given_up = sum(ends(0.005) is Verdict.BAD for _ in range(rounds)) / rounds
    kept = sum(ends(0.3) is Verdict.GOOD for _ in range(rounds)) / rounds
    # Three deviations above what the bounds allow, so that the test itself errs once in a thousand at most.
    assert given_up <= ALPHA + 3 * (ALPHA * (1 - ALPHA) / rounds) ** 0.5
    assert kept <= BETA + 3 * (BETA * (1 - BETA) / rounds) ** 0.5
