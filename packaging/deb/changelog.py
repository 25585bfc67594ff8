"""Print debian/changelog, made from CHANGELOG.md: changelog.py CHANGELOG.md VERSION.

VERSION is the package's own, and stands for what is [Unreleased] when no section has its name.
"""

from __future__ import annotations

import os
import re
import sys
import textwrap
from collections.abc import Iterator
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path

SECTION = re.compile(r"^## \[(?P<version>.+?)\](?: - (?P<date>\S+))?$", re.MULTILINE)
MAINTAINER = re.compile(r"^Maintainer: (.+)$", re.MULTILINE)


def points(text: str) -> Iterator[str]:
    """Yield the points of a section as one line of plain text each, with the kind of change before its first."""
    kind = ""
    for block in re.split(r"\n(?=- |### |\n)", text):
        line = " ".join(block.split())
        if line.startswith("### "):
            kind = line.removeprefix("### ")
        elif line.startswith("- "):
            plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", line.removeprefix("- ")).replace("**", "")
            yield f"{kind}: {plain.replace('`', '')}" if kind else plain
            kind = ""


def entry(version: str, text: str, at: datetime, maintainer: str) -> str:
    """Return one entry of debian/changelog, as deb-changelog(5) wants it."""
    lines = [
        textwrap.fill(
            point,
            78,
            initial_indent="  * ",
            subsequent_indent="    ",
            break_long_words=False,
            break_on_hyphens=False,
        )
        for point in points(text)
    ]
    body = "\n".join(lines) or "  * Nothing that operators notice."
    return f"build-agent ({version}) stable; urgency=medium\n\n{body}\n\n -- {maintainer}  {format_datetime(at)}\n"


def convert(text: str, version: str, now: datetime, maintainer: str) -> str:
    """Return the whole of debian/changelog; an empty section of what is unreleased is passed over."""
    found = list(SECTION.finditer(text))
    ends = [match.start() for match in found[1:]] + [len(text)]
    entries = []
    for match, end in zip(found, ends, strict=True):
        section = text[match.end() : end]
        if match["date"]:
            at = datetime.fromisoformat(match["date"]).replace(tzinfo=UTC)
            entries.append(entry(match["version"], section, at, maintainer))
        elif version not in {it["version"] for it in found}:
            entries.append(entry(version, section, now, maintainer))
    return "\n".join(entries)


def main() -> None:
    """Read the two arguments, print the result."""
    path, version = Path(sys.argv[1]), sys.argv[2]
    now = datetime.fromtimestamp(int(os.environ["SOURCE_DATE_EPOCH"]), UTC)
    control = (path.parent / "debian/control").read_text("utf-8")
    maintainer = MAINTAINER.findall(control)[0]
    sys.stdout.write(convert(path.read_text("utf-8"), version, now, maintainer))


if __name__ == "__main__":
    main()
