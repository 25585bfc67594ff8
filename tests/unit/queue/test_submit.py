"""The record of a build, from its definition."""

from __future__ import annotations

import pytest

from agent.errors import JobRefused
from agent.queue.submit import new_build

DEFINITION = {"project": "shop", "steps": ["make"]}


@pytest.mark.parametrize(
    ("definition", "queue", "expected"),
    [
        ({}, "", "builds"),
        ({"queue": "nightly"}, "", "nightly"),
        ({"queue": "nightly"}, "urgent", "urgent"),
        ({"tags": {"gpu": "yes", "arch": "arm64"}}, "", "builds+arch=arm64,gpu=yes"),
        ({"tags": {"gpu": "yes"}}, "builds+arch=arm64", "builds+gpu=yes"),
        ({}, "builds+arch=arm64", "builds"),
    ],
)
def test_queue_is_the_callers_or_the_definitions_with_its_tags(
    definition: dict[str, object], queue: str, expected: str
) -> None:
    assert new_build(DEFINITION | definition, queue=queue).queue == expected


@pytest.mark.parametrize(("definition", "expected"), [({}, 4), ({"max_attempts": 2}, 2)])
def test_attempts_are_the_definitions_or_the_servers(definition: dict[str, object], expected: int) -> None:
    assert new_build(DEFINITION | definition, max_attempts=4).attempts_allowed == expected


def test_what_git_builds_is_known_beforehand() -> None:
    source = {"git": "https://example.com/shop.git", "branch": "main", "commit": "a" * 40}
    new = new_build(DEFINITION | {"source": source})
    assert (new.branch, new.commit) == ("main", "a" * 40)
    assert new_build(DEFINITION).branch is None


def test_definition_that_is_none_is_refused_with_its_place() -> None:
    with pytest.raises(JobRefused, match="stepz"):
        new_build({"project": "shop", "stepz": ["make"]})


def test_every_build_has_an_id_of_its_own() -> None:
    assert new_build(DEFINITION).id != new_build(DEFINITION).id
