"""Arguments and options that commands of the fleet share."""

from __future__ import annotations

import re
from typing import Any

import click

from agent.cli import argument

pool = click.argument("pool", metavar="POOL", shell_complete=argument.complete_pool)
why = click.option("--why", metavar="TEXT", help="Why, for the record.")
yes = click.option("--yes", "-y", is_flag=True, help="Don't ask.")
dry_run = click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")


def _read_policy(
    _context: click.Context, _parameter: click.Parameter, words: tuple[str, ...]
) -> dict[str, Any]:
    from agent.model import policy as policies

    for word in words:
        name, equals, _ = word.partition("=")
        if not (name.strip() and equals):
            raise click.BadParameter(f"{word!r}: expected NAME=VALUE, such as max_age_s=86400")
    return policies.parse(words)


def read_name(
    _context: click.Context, _parameter: click.Parameter, given: str | tuple[str, ...]
) -> str | tuple[str, ...]:
    """Check names: they become part of servers' names, tags and settings, and of other commands."""
    from agent.setting import NAME

    for name in (given,) if isinstance(given, str) else given:
        if not re.fullmatch(NAME.pattern, name):
            raise click.BadParameter(f"{name!r}: expected {NAME.words}, beginning with a letter or digit")
    return given


policy = click.option(
    "--set",
    "policy",
    metavar="NAME=VALUE",
    multiple=True,
    callback=_read_policy,
    help="A part of the policy, as JSON where it is no number or word; as often as needed.",
)
