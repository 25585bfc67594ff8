"""The cancel token: the first word decides, a later one only hastens, and everybody who watches sees it."""

from __future__ import annotations

import os
import select
import threading
from pathlib import Path

import pytest

from agent.build.cancel import Cancel, CancelToken
from agent.model.outcome import Outcome
from tests.integration.conftest_store import race


def is_readable(token: CancelToken) -> bool:
    return bool(select.select([token], [], [], 0)[0])


def test_nothing_is_said_at_first() -> None:
    token = CancelToken()
    assert token.cancel is None
    assert not is_readable(token)
    assert not token.wait(0.01)
    token.close()


def test_word_is_seen_by_every_way_of_watching_for_good() -> None:
    token = CancelToken()
    token.request(Outcome.CANCELLED, "by ann", grace_s=3)
    for _ in range(3):
        assert is_readable(token)
        assert token.wait(0)
    assert token.cancel == Cancel(Outcome.CANCELLED, "by ann", 3)
    token.close()


def test_first_word_decides() -> None:
    token = CancelToken()
    token.request(Outcome.CANCELLED, "by ann")
    token.request(Outcome.LOST, "fenced", grace_s=1)
    assert token.cancel == Cancel(Outcome.CANCELLED, "by ann", 1)
    token.close()


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [(None, None, None), (None, 5, 5), (5, None, 5), (5, 1, 1), (1, 5, 1), (5, 0, 0), (0, 5, 0)],
)
def test_later_word_only_shortens_the_grace(
    first: float | None, second: float | None, expected: float | None
) -> None:
    token = CancelToken()
    token.request(Outcome.PREEMPTED, "stop", grace_s=first)
    token.request(Outcome.PREEMPTED, "stop now", grace_s=second)
    assert token.cancel == Cancel(Outcome.PREEMPTED, "stop", expected)
    token.close()


def test_wait_ends_with_the_word() -> None:
    token = CancelToken()
    waited: list[bool] = []
    waiter = threading.Thread(target=lambda: waited.append(token.wait(30)))
    waiter.start()
    token.request(Outcome.CANCELLED, "by ann")
    waiter.join(10)
    assert waited == [True]
    token.close()


def test_word_after_the_end_does_no_harm() -> None:
    """A cancel may come in the moment in which the build ends; its descriptor may be another's by then."""
    token = CancelToken()
    number = token.fileno()
    token.close()
    reader, writer = os.pipe()
    token.request(Outcome.CANCELLED, "late")
    assert token.fileno() == -1
    assert number in (reader, writer) or number >= 0
    assert not select.select([reader], [], [], 0)[0]
    os.close(reader)
    os.close(writer)


def test_words_raced_against_each_other_leave_one_outcome_and_the_shortest_grace() -> None:
    for _ in range(20):
        token = CancelToken()
        words = [(Outcome.CANCELLED, 5.0), (Outcome.LOST, 1.0), (Outcome.PREEMPTED, 3.0)]
        race(*[lambda it=it, t=token: t.request(it[0], it[0].value, grace_s=it[1]) for it in words])
        assert token.cancel is not None
        assert token.cancel.detail == token.cancel.outcome.value
        assert token.cancel.grace_s == 1.0
        token.close()


def test_closed_tokens_leave_no_descriptor() -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(100):
        CancelToken().close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_steps_do_not_inherit_the_descriptor() -> None:
    token = CancelToken()
    assert not os.get_inheritable(token.fileno())
    token.close()
