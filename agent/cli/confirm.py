"""Asks a person before something large is done; where nobody can be asked, `--yes` has to say it."""

from __future__ import annotations

import sys

import click

# Whoever says no gets no 0: what was to come after it must not come.
_DECLINED = 1


def confirm(what: str, *, yes: bool) -> None:
    """Ask whether to go on, beside standard output, which may go to a file.

    Raises: UsageError where nobody can be asked; Exit when the answer is no; Abort on Ctrl-C.
    """
    if yes:
        return
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise click.UsageError(f"nobody can be asked here; say --yes to {what}")
    if not click.confirm(f"{what[0].upper()}{what[1:]}?", err=True):
        click.echo("nothing was done", err=True)
        raise click.exceptions.Exit(_DECLINED)
