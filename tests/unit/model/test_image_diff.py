"""What differs between two images."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from agent.model.image import Image, ImageReport, ImageState, ReportWhen
from agent.model.image_diff import Difference, compare

AT = datetime(2026, 1, 1, tzinfo=UTC)


def image(**facts: Any) -> Image:
    """Return an image made from this."""
    return Image(
        id="img-1", version="v", provider="local", provider_image_id="i-1", profile="minimal", base="debian-12",
        state=ImageState.VERIFIED, reason=None, provenance=facts, created_at=AT, created_by="me", verified_at=AT,
        changed_at=AT, changed_by="me",
    )  # fmt: skip


def report(ran: ReportWhen, **document: Any) -> ImageReport:
    """Return a report."""
    return ImageReport(image_id="img-1", ran=ran, junit="", report=document)


def check(name: str, outcome: str) -> dict[str, str]:
    """Return one check of a report."""
    return {"name": name, "outcome": outcome}


def test_sources_pins_tools_packages_and_checks_are_compared() -> None:
    old = report(
        ReportWhen.BAKE,
        versions={"git": "2.39", "go": "1.19"},
        packages={"a": "1", "b": "1"},
        checks=[check("x", "passed"), check("y", "passed")],
    )
    new = report(
        ReportWhen.FRESH_BOOT,
        versions={"git": "2.40", "go": "1.19"},
        packages={"a": "1", "c": "2"},
        checks=[check("x", "failed"), check("y", "passed")],
    )
    found = compare(
        image(commit="1", pins={"GO": "1.19"}), [old], image(commit="2", pins={"GO": "1.20"}), [new]
    )
    assert found == [
        Difference(kind="made from", name="commit", before="1", after="2"),
        Difference(kind="pin", name="GO", before="1.19", after="1.20"),
        Difference(kind="tool", name="git", before="2.39", after="2.40"),
        Difference(kind="package", name="b", before="1", after=None),
        Difference(kind="package", name="c", before=None, after="2"),
        Difference(kind="check", name="x", before="passed", after="failed"),
    ]


def test_run_on_the_fresh_server_counts_where_there_was_one() -> None:
    first, second = (
        report(ReportWhen.BAKE, packages={"a": "1"}),
        report(ReportWhen.FRESH_BOOT, packages={"a": "2"}),
    )
    assert compare(image(), [first, second], image(), [second]) == []


def test_image_without_reports_has_nothing_to_say() -> None:
    assert compare(image(), [], image(), []) == []
