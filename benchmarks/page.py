"""The results as Markdown: a section for each subject, which a later run replaces one by one."""

from __future__ import annotations

import re
from collections.abc import Mapping

from benchmarks.figure import Report, Row, Target

_HEAD = """\
# Benchmarks

How fast the agent is, measured beside what it competes with: in one run, on one machine, turn by turn. Times and rates
belong to the machine they were taken on; the ratios travel better. Each number is the median of the rounds, with
the least and the greatest beside it.

```
make bench                          # everything, with every number explained
make bench ARGS="--quick"           # a look in under two minutes
make bench ARGS="throughput idle"   # some subjects: {subjects}
make bench ARGS="--rounds 9 --write"  # and write this page; subjects not run keep their section
```

A run starts a PostgreSQL and a Redis of its own, both with their default settings (`fsync` on, no tuning; Redis with
an append-only file, as the agent's documentation asks for), and agents with theirs unless a section says otherwise.
"""
_SECTION = re.compile(r"^## ", re.MULTILINE)


def section(title: str, report: Report, *, circumstances: str) -> str:
    """Return one subject's section: words, table, the meaning of each row, and where it was measured."""
    lines = [f"## {title}", "", report.words, "", *table(report), ""]
    lines += [f"- **{row.name}**: {row.meaning}" for row in report.rows]
    lines += ["", f"*{circumstances}*", ""]
    return "\n".join(lines)


def table(report: Report) -> list[str]:
    """Return the lines of a report's table, its columns aligned for those who read the source."""
    head = ("what", "median", "least to greatest", "target", "")
    cells = [head, *(_cells(row) for row in report.rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(head))]
    rule = tuple(
        "-" * (width - 1) + ":" if 0 < column < 3 else "-" * width for column, width in enumerate(widths)
    )
    return [_line(line, widths) for line in (head, rule, *cells[1:])]


def merge(page: str, sections: Mapping[str, str], *, order: list[str]) -> str:
    """Return a page with `sections` (title -> text) put in, in `order`; what it had of others stays."""
    parts = _SECTION.split(page)[1:]
    kept = {part.partition("\n")[0].strip(): f"## {part.rstrip()}\n" for part in parts}
    kept |= {title: f"{text.rstrip()}\n" for title, text in sections.items()}
    return "\n".join(kept[title] for title in order if title in kept)


def whole(sections: str, *, subjects: list[str]) -> str:
    """Return the page with its head."""
    return f"{_HEAD.format(subjects=', '.join(subjects))}\n{sections}"


def number(value: float) -> str:
    """Return a number in three figures or so: no run is good for more."""
    rounded = float(f"{value:.3g}")
    if abs(rounded) >= 100:
        return f"{rounded:,.0f}"
    return f"{rounded:.1f}" if abs(rounded) >= 10 else f"{rounded:.2f}"


def _cells(row: Row) -> tuple[str, ...]:
    unit = "" if row.unit == "" else f" {row.unit}"
    spread = (
        f"{number(min(row.samples))} to {number(max(row.samples))}" if len(row.samples) > 1 else "one round"
    )
    return (row.name, f"{number(row.median)}{unit}", spread, _target(row.target, unit), _verdict(row))


def _target(target: Target | None, unit: str) -> str:
    if target is None:
        return ""
    return f"{'≤' if target.is_upper else '≥'} {target.limit:g}{unit}"


def _verdict(row: Row) -> str:
    return {None: "", True: "met", False: "missed"}[row.is_met]


def _line(cells: tuple[str, ...], widths: list[int]) -> str:
    padded = [
        cell.rjust(width) if 0 < column < 3 else cell.ljust(width)
        for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    return f"| {' | '.join(padded)} |"
