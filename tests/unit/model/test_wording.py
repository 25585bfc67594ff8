"""How times, sizes and reasons read."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from agent.model import wording
from agent.model.build import OutputAccount
from agent.model.outcome import Outcome

NOW = datetime(2026, 5, 1, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (-1, "0.0 s"),
        (0.34, "0.3 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (187, "3 min 07 s"),
        (7500, "2 h 05 min"),
        (100_000, "1 d 3 h"),
    ],
)
def test_duration_reads_as_people_say_it(seconds: float, words: str) -> None:
    assert wording.duration(seconds) == words


def test_clock_face_and_age() -> None:
    assert [wording.clock_face(it) for it in (7.9, 760, 3723)] == ["0:07", "12:40", "1:02:03"]
    ages = [wording.ago(NOW - timedelta(seconds=it), NOW) for it in (-5, 12, 600, 10_000, 400_000)]
    assert ages == ["0 s ago", "12 s ago", "10 min ago", "3 h ago", "5 d ago"]


def test_instant_is_told_in_the_readers_zone() -> None:
    assert wording.local(NOW) == NOW.astimezone().strftime("%Y-%m-%d %H:%M:%S")


@pytest.mark.parametrize(
    ("outcome", "detail", "words"),
    [
        (Outcome.PASSED, None, "passed"),
        (Outcome.FAILED, "step 2 (make): exit code 2", "failed: step 2 (make): exit code 2"),
        (Outcome.TIMED_OUT, "no-output", "timed out: it printed nothing for too long"),
        (
            Outcome.TIMED_OUT,
            "step 2 (make): step",
            "timed out: step 2 (make): the step ran longer than it may",
        ),
        (Outcome.CANCELLED, "by ada@here", "cancelled by ada@here"),
        (Outcome.CANCELLED, "cancelled by ada before it began", "cancelled by ada before it began"),
        (Outcome.LOST, "no heartbeat", "was lost with its server: no heartbeat"),
    ],
)
def test_reason_is_told_in_words(outcome: Outcome, detail: str | None, words: str) -> None:
    assert wording.outcome(outcome, detail) == words


@pytest.mark.parametrize("outcome", Outcome)
def test_every_outcome_has_words(outcome: Outcome) -> None:
    assert "_" not in wording.outcome(outcome, None)


def test_account_tells_what_was_masked_and_cut() -> None:
    quiet = OutputAccount(bytes_produced=2048, lines_produced=1)
    assert wording.account(quiet) == "1 line, 2.0 KiB"
    loud = OutputAccount(
        bytes_produced=5000, lines_produced=1200, masked_count=2, bytes_cut=1000, lines_cut=7
    )
    assert wording.account(loud) == "1,200 lines, 4.9 KiB, 2 masked, 1000 B cut in 7 lines"
    assert wording.account(OutputAccount()) == "no output"


def test_strange_text_stays_in_its_line() -> None:
    assert wording.one_line("a\nb\x1b[31m\u202ec") == "a b [31m c"
    assert wording.one_line("x" * 20, 5) == "xxxx\N{HORIZONTAL ELLIPSIS}"


def test_short_ids_tell_builds_apart() -> None:
    ids = ["aaaaaaaa-1", "aaaaaaaa-2", "bbbbbbbb-1", "short"]
    short = wording.short_ids(ids)
    assert short == {
        "aaaaaaaa-1": "aaaaaaaa-1",
        "aaaaaaaa-2": "aaaaaaaa-2",
        "bbbbbbbb-1": "bbbbbbbb",
        "short": "short",
    }
