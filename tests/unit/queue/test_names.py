"""Queue names: a build with tags waits where only servers with those tags look."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.errors import SettingsError
from agent.queue.names import MAX_TAGS, queue_for, queues_of_server

# A machine under load takes its time; what is found has to hold at any speed.
patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

_tags = st.dictionaries(st.sampled_from("abcd"), st.text("xy,=+:%\n ä", max_size=6), max_size=4)


def test_build_without_tags_waits_in_the_plain_queue() -> None:
    assert queue_for("builds", {}) == "builds"


def test_tags_are_part_of_the_name_in_their_order() -> None:
    assert queue_for("builds", {"gpu": "yes", "arch": "arm64"}) == "builds+arch=arm64,gpu=yes"


def test_server_reads_what_needs_most_tags_first_and_the_plain_queue_last() -> None:
    assert queues_of_server(["builds"], {"gpu": "yes", "arch": "arm64"}) == [
        "builds+arch=arm64,gpu=yes",
        "builds+arch=arm64",
        "builds+gpu=yes",
        "builds",
    ]


def test_configured_order_of_queues_goes_before_tags() -> None:
    assert queues_of_server(["urgent", "builds"], {"a": "1"}) == [
        "urgent+a=1",
        "urgent",
        "builds+a=1",
        "builds",
    ]


def test_server_without_tags_reads_its_queues_alone() -> None:
    assert queues_of_server(["urgent", "builds"], {}) == ["urgent", "builds"]


def test_too_many_tags_are_refused_by_name() -> None:
    tags = {f"tag{number}": "x" for number in range(MAX_TAGS + 1)}
    with pytest.raises(SettingsError, match=r"can have 5 tags, this one has 6: .*tag0"):
        queues_of_server(["builds"], tags)
    assert len(queues_of_server(["builds"], dict(list(tags.items())[:MAX_TAGS]))) == 2**MAX_TAGS


@patient
@given(server=_tags, asked=_tags)
def test_server_reads_a_builds_queue_exactly_when_it_has_all_the_tags(
    server: dict[str, str], asked: dict[str, str]
) -> None:
    has_all = asked.items() <= server.items()
    assert (queue_for("builds", asked) in queues_of_server(["builds"], server)) == has_all


@patient
@given(first=_tags, second=_tags)
def test_different_tags_are_different_queues(first: dict[str, str], second: dict[str, str]) -> None:
    assert (queue_for("builds", first) == queue_for("builds", second)) == (first == second)


@patient
@given(tags=_tags)
def test_base_queue_of_a_name_is_what_stands_before_the_plus(tags: dict[str, str]) -> None:
    assert queue_for("builds", tags).partition("+")[0] == "builds"


@patient
@given(tags=_tags)
def test_no_name_is_another_queues_intermediate_list(tags: dict[str, str]) -> None:
    """RQ's list for what is in hand is named after the queue, with `:intermediate` behind it."""
    names = [queue_for("builds", dict(some)) for some in combinations(tags.items(), len(tags))]
    assert not any(":" in name for name in names)
