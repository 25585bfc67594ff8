"""`build-agent users`: who may sign in to the console, and as what."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence

import click

from agent.cli import argument
from agent.cli.confirm import confirm
from agent.cli.context import Context
from agent.model.person import Role, User

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,99}")


def _read_name(_context: click.Context, _parameter: click.Parameter, name: str) -> str:
    if not _NAME.fullmatch(name):
        raise click.BadParameter(f"{name!r}: expected letters, digits and . _ @ + -, such as ann")
    return name


_name = click.argument("name", metavar="NAME", callback=_read_name)
_role = click.option(
    "--role",
    type=click.Choice([it.value for it in Role]),
    required=True,
    help="viewer sees everything, operator acts, admin looks after people as well.",
)


@click.group()
def users() -> None:
    """Say who may sign in to the console."""


@users.command()
@_name
@_role
@argument.as_json
@click.pass_obj
def add(obj: Context, *, name: str, role: str, as_json: bool) -> None:
    """Add somebody; asks for the password, or reads it from standard input where that is no terminal."""
    from agent.store import users as store_users

    made = store_users.add(obj.store, name, Role(role), by=obj.actor, password_hash=_ask(name))
    _tell(made, f"{name} may sign in as {role}", as_json=as_json)


@users.command("list")
@argument.as_json
@click.pass_obj
def list_(obj: Context, *, as_json: bool) -> None:
    """List everybody."""
    from agent.cli import record
    from agent.store import users as store_users

    found = store_users.list_users(obj.store)
    if as_json:
        record.echo(found)
    elif found:
        _print(found)
    else:
        click.echo("nobody may sign in yet: build-agent users add NAME --role admin", err=True)


@users.command()
@_name
@click.argument("new", metavar="ROLE", type=click.Choice([it.value for it in Role]))
@argument.as_json
@click.pass_obj
def role(obj: Context, *, name: str, new: str, as_json: bool) -> None:
    """Let somebody do more or less."""
    from agent.store import users as store_users

    changed = store_users.change_role(obj.store, name, Role(new), by=obj.actor)
    _tell(changed, f"{name} is {new} now", as_json=as_json)


@users.command()
@_name
@argument.as_json
@click.pass_obj
def password(obj: Context, *, name: str, as_json: bool) -> None:
    """Give somebody another password; wherever they are signed in, they no longer are."""
    from agent.store import users as store_users

    store_users.get(obj.store, name)
    changed = store_users.change_password(obj.store, name, _ask(name), by=obj.actor)
    _tell(changed, f"{name} has another password", as_json=as_json)


@users.command()
@_name
@argument.as_json
@click.pass_obj
def disable(obj: Context, *, name: str, as_json: bool) -> None:
    """Let somebody in no more, from now on, and their tokens neither."""
    from agent.store import users as store_users

    changed = store_users.disable(obj.store, name, by=obj.actor)
    _tell(
        changed, f"{name} may sign in no more; to undo it: build-agent users enable {name}", as_json=as_json
    )


@users.command()
@_name
@argument.as_json
@click.pass_obj
def enable(obj: Context, *, name: str, as_json: bool) -> None:
    """Let somebody in again."""
    from agent.store import users as store_users

    _tell(store_users.enable(obj.store, name, by=obj.actor), f"{name} may sign in again", as_json=as_json)


@users.command()
@_name
@click.option("--yes", "-y", is_flag=True, help="Don't ask.")
@argument.as_json
@click.pass_obj
def remove(obj: Context, *, name: str, yes: bool, as_json: bool) -> None:
    """Remove somebody, with sessions and tokens; the audit keeps the name."""
    from agent.cli import record
    from agent.store import users as store_users

    store_users.get(obj.store, name)
    confirm(f"remove {name}", yes=yes)
    store_users.remove(obj.store, name, by=obj.actor)
    if as_json:
        record.echo({"removed": name})
    else:
        click.echo(f"{name} is removed")


def _ask(name: str) -> str:
    """Return the hash of a password that is typed, twice where people type. Raises: SettingsError."""
    from agent.cli.need import needing

    with needing("passwords", "console"):
        from agent.console import password as passwords
    if sys.stdin.isatty():
        typed = click.prompt(f"Password of {name}", hide_input=True, confirmation_prompt=True, err=True)
    else:
        typed = sys.stdin.readline().rstrip("\n")
    return passwords.make(typed)


def _tell(user: User, words: str, *, as_json: bool) -> None:
    from agent.cli import record

    if as_json:
        record.echo(user)
    else:
        click.echo(words)


def _print(found: Sequence[User]) -> None:
    from agent.cli import table
    from agent.model import wording

    columns = [table.Column(it) for it in ("name", "role", "signs in", "since", "by")]
    rows = []
    for it in found:
        how = (
            "no more"
            if it.disabled_at
            else it.issuer or ("with a password" if it.has_password else "not yet")
        )
        rows.append([it.name, it.role, how, wording.local(it.created_at), it.created_by])
    table.show(columns, rows)
