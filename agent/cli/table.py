"""Tables: with colours and cut to the width on a terminal, aligned columns of whole values in a pipe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import click

from agent.cli.screen import is_terminal
from agent.model import wording

_GOOD, _BAD, _BUSY, _DIM = "green", "bold red", "yellow", "dim"
_STYLES = {
    **dict.fromkeys(("passed", "accepting", "verified", "current"), _GOOD),
    **dict.fromkeys(
        ("running", "draining", "starting", "cancelling", "not_ready", "quarantined", "baking"), _BUSY
    ),
    **dict.fromkeys(
        ("queued", "skipped", "cancelled", "drained", "stopped", "terminated", "previous", "retired"), _DIM
    ),
    **dict.fromkeys(("lost", "failed"), _BAD),
}


@dataclass(frozen=True, slots=True)
class Column:
    """A column. `is_elastic`: it gives way, and is wrapped, where the terminal is narrow; `is_state`: painted."""

    name: str
    is_elastic: bool = False
    is_number: bool = False
    is_state: bool = False


def show(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
    """Print a table. Values may hold anything; they are shown in one line, and steer no terminal."""
    clean = [[wording.one_line(cell) for cell in row] for row in rows]
    if is_terminal():
        _show_painted(columns, clean)
        return
    widths = [
        max(len(text) for text in texts)
        for texts in zip([column.name for column in columns], *clean, strict=True)
    ]
    for row in [[column.name.upper() for column in columns], *clean]:
        cells = [
            text.rjust(width) if column.is_number else text.ljust(width)
            for column, text, width in zip(columns, row, widths, strict=True)
        ]
        click.echo("  ".join(cells).rstrip())


def style_of(state: str) -> str:
    """Return how a state is painted: in rich's words."""
    return _STYLES.get(state.replace(" ", "_"), _BAD)


def _show_painted(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(
            column.name.upper(),
            justify="right" if column.is_number else "left",
            no_wrap=not column.is_elastic,
            overflow="fold" if column.is_elastic else "ellipsis",
        )
    for row in rows:
        # As Text: brackets in a value are no markup.
        table.add_row(
            *(
                Text(text, style=style_of(text) if column.is_state else "")
                for column, text in zip(columns, row, strict=True)
            )
        )
    Console(highlight=False, soft_wrap=False).print(table)
