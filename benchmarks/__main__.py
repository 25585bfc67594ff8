"""`python -m benchmarks [names] [--rounds N] [--quick] [--write]`: measure, print, and write docs/benchmarks.md."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import click

from agent import clock
from benchmarks import (
    boot,
    dispatch,
    fleet,
    fleet_day,
    idle,
    jobs,
    latency,
    overhead,
    page,
    recovery,
    start,
    throughput,
)
from benchmarks.figure import Effort
from benchmarks.ground import Ground

_PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
_SUBJECTS: dict[str, ModuleType] = {
    "throughput": throughput,
    "latency": latency,
    "dispatch": dispatch,
    "jobs": jobs,
    "overhead": overhead,
    "idle": idle,
    "start": start,
    "recovery": recovery,
    "boot": boot,
    "fleet": fleet,
    "fleet-day": fleet_day,
}
# A quick look leaves out what takes a whole lease, or machines.
_SLOW = frozenset({"recovery", "boot", "fleet"})


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(list(_SUBJECTS)))
@click.option(
    "--rounds", type=click.IntRange(1), help="How often each is measured; 5, or 1 for a quick look."
)
@click.option(
    "--quick",
    is_flag=True,
    help="Under two minutes: smaller sizes, one round, without recovery, boot and fleet.",
)
@click.option(
    "--write", is_flag=True, help="Write docs/benchmarks.md; subjects that did not run keep their section."
)
def main(names: tuple[str, ...], rounds: int | None, quick: bool, write: bool) -> None:
    """Measure the agent side by side with its peers."""
    effort = Effort(rounds=rounds or (1 if quick else 5), is_quick=quick)
    chosen = names or tuple(name for name in _SUBJECTS if not (quick and name in _SLOW))
    sections: dict[str, str] = {}
    with Ground() as ground:
        machine = ground.circumstances()
        for name in chosen:
            began_mono = clock.mono()
            subject = _SUBJECTS[name]
            report = subject.run(ground, effort)
            kind = "a quick look, " if quick else ""
            circumstances = f"{kind}{clock.utc_now():%Y-%m-%d}; {machine}"
            sections[subject.TITLE] = page.section(
                subject.TITLE, report, circumstances=f"Measured: {circumstances}."
            )
            click.echo(f"\n{subject.TITLE} ({clock.mono() - began_mono:.0f} s)")
            click.echo("\n".join(page.table(report)))
    click.echo(f"\n{machine}")
    if write:
        _write(sections)
        click.echo(f"written: {_PAGE}")


def _write(sections: dict[str, str]) -> None:
    old = _PAGE.read_text() if _PAGE.exists() else ""
    merged = page.merge(old, sections, order=[subject.TITLE for subject in _SUBJECTS.values()])
    _PAGE.write_text(page.whole(merged, subjects=list(_SUBJECTS)))


if __name__ == "__main__":
    main()
