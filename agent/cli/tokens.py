"""`build-agent tokens`: what programs sign in to the console's API with."""

from __future__ import annotations

from datetime import timedelta

import click

from agent.cli import argument
from agent.cli.context import Context
from agent.model.person import Scope


@click.group()
def tokens() -> None:
    """Make and revoke tokens of programs."""


@tokens.command()
@click.argument("name", metavar="NAME")
@click.option("--user", metavar="USER", required=True, help="Whose token: it does no more than they may.")
@click.option(
    "--scope",
    "scopes",
    type=click.Choice([it.value for it in Scope]),
    multiple=True,
    default=(Scope.READ.value,),
    show_default=True,
    help="What it may be used for; as often as needed.",
)
@click.option(
    "--days", type=click.IntRange(1, 3660), default=90, show_default=True, help="It ends after so many."
)
@argument.as_json
@click.pass_obj
def create(obj: Context, *, name: str, user: str, scopes: tuple[str, ...], days: int, as_json: bool) -> None:
    """Make a token, and print it: it is shown this once."""
    from agent.cli import record
    from agent.cli.need import needing
    from agent.store import tokens as store_tokens

    with needing("tokens", "console"):
        from agent.console import people
    token = people.make_token()
    made = store_tokens.create(
        obj.store,
        name,
        people.digest(token),
        user_name=user,
        scopes=[*dict.fromkeys(scopes)],
        lasts_s=timedelta(days=days).total_seconds(),
        by=obj.actor,
    )
    if as_json:
        record.echo({**record.plain(made), "token": token})
        return
    click.echo(token)
    click.echo(f"token {made.id} of {user}, for {', '.join(made.scopes)}; it is not shown again", err=True)


@tokens.command("list")
@argument.as_json
@click.pass_obj
def list_(obj: Context, *, as_json: bool) -> None:
    """List tokens, the newest first."""
    from agent.cli import record, table
    from agent.model import wording
    from agent.store import tokens as store_tokens

    found = store_tokens.list_tokens(obj.store)
    if as_json:
        record.echo(found)
        return
    if not found:
        click.echo("no token yet: build-agent tokens create NAME --user USER", err=True)
        return
    columns = [table.Column(it) for it in ("id", "name", "user", "for", "used", "ends")]
    rows = [
        [
            it.id,
            it.name,
            it.user_name,
            ", ".join(it.scopes),
            wording.local(it.used_at) if it.used_at else "never",
            "revoked" if it.revoked_at else wording.local(it.expires_at) if it.expires_at else "never",
        ]
        for it in found
    ]
    table.show(columns, rows)


@tokens.command()
@click.argument("token", metavar="ID")
@argument.as_json
@click.pass_obj
def revoke(obj: Context, *, token: str, as_json: bool) -> None:
    """Let a token open nothing any more, from now on."""
    from agent.cli import record
    from agent.store import tokens as store_tokens

    done = store_tokens.revoke(obj.store, token, by=obj.actor)
    if as_json:
        record.echo(done)
    else:
        click.echo(f"token {done.id} of {done.user_name} is revoked")
