"""What differs between two images: what they were made from, tools, packages, checks. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from agent.model.image import Image, ImageReport, ReportWhen

_MADE_FROM = ("base", "profile")
_FACTS = ("base_id", "commit", "agent", "scripts_sha256", "deb")


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """One thing that differs; `None` where an image doesn't have it.

    `kind` is `made from`, `pin`, `tool`, `package` or `check`.
    """

    kind: str
    name: str
    before: str | None
    after: str | None


def compare(
    before: Image, before_reports: list[ImageReport], after: Image, after_reports: list[ImageReport]
) -> list[Difference]:
    """Return the differences of two images, ordered by kind and name.

    Tools, packages and checks are those of the newest run that each image has a report of: on a fresh server if there
    was one.
    """
    old, new = _newest(before_reports), _newest(after_reports)
    tables = (
        ("made from", _facts(before), _facts(after)),
        ("pin", before.provenance.get("pins", {}), after.provenance.get("pins", {})),
        ("tool", old.get("versions", {}), new.get("versions", {})),
        ("package", old.get("packages", {}), new.get("packages", {})),
        ("check", _outcomes(old), _outcomes(new)),
    )
    return [
        Difference(kind=kind, name=name, before=_text(was.get(name)), after=_text(now.get(name)))
        for kind, was, now in tables
        for name in sorted({*was, *now})
        if was.get(name) != now.get(name)
    ]


def _facts(image: Image) -> dict[str, Any]:
    return {
        **{name: getattr(image, name) for name in _MADE_FROM},
        **{name: image.provenance.get(name) for name in _FACTS},
    }


def _newest(reports: list[ImageReport]) -> Mapping[str, Any]:
    by_run = {it.ran: it.report for it in reports}
    return by_run.get(ReportWhen.FRESH_BOOT) or by_run.get(ReportWhen.BAKE) or {}


def _outcomes(report: Mapping[str, Any]) -> dict[str, Any]:
    return {str(it.get("name")): it.get("outcome") for it in report.get("checks", ())}


def _text(value: object) -> str | None:
    return None if value is None else str(value)
