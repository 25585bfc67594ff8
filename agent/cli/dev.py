"""`build-agent dev`: a build server to develop with, on this machine, by the local provider."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from agent.cli import argument
from agent.cli.context import Context
from agent.errors import NotFound

if TYPE_CHECKING:
    from agent.fleet.dev import DevMachine

_name = click.argument("name", default="dev", metavar="[NAME]")


@click.group()
def dev() -> None:
    """Have a build server to develop with, on this machine."""


@dev.command()
@_name
@click.option(
    "--profile",
    type=click.Choice(argument.PROFILES),
    default="minimal",
    show_default=True,
    help="What is set up on it.",
)
@click.option("--from", "base", metavar="BASE", default="", help="What to start from, if not Debian 12.")
@argument.scripts
@argument.deb
@click.option("--output", "-o", "has_output", is_flag=True, help="Print all that the machine prints.")
@argument.as_json
@click.pass_obj
def up(
    obj: Context,
    *,
    name: str,
    profile: str,
    base: str,
    scripts: Path | None,
    deb: Path | None,
    has_output: bool,
    as_json: bool,
) -> None:
    """Start a machine, set it up and check it; it is a build farm by itself then."""
    from agent.cli import record
    from agent.cli.bake_display import BakeDisplay, Silent
    from agent.cli.screen import Screen

    machine = _machine(obj, name)
    from agent.fleet import bundle
    from agent.fleet.dev import STEPS

    screen = Screen(is_live=not as_json)
    listener = Silent() if as_json else BakeDisplay(screen, has_output=has_output, phases=STEPS)
    inputs = bundle.read(bundle.find_scripts(scripts), bundle.find_deb(deb))
    try:
        made = machine.up(base=base, profile=profile, bundle=inputs, listener=listener)
    finally:
        screen.close()
    if as_json:
        record.echo(made)
        return
    click.echo(f"machine {name} builds, at {made.address}: build-agent dev ssh {name}")


@dev.command(context_settings={"ignore_unknown_options": True})
@_name
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@click.pass_obj
def ssh(obj: Context, *, name: str, command: tuple[str, ...]) -> None:
    """Log in to the machine as root, or run a command there."""
    words = _machine(obj, name).ssh_words(command)
    try:
        os.execvp(words[0], words)  # noqa: S606 - it takes the terminal over
    except FileNotFoundError as error:
        raise NotFound("ssh is not here: apt-get install openssh-client") from error


@dev.command()
@_name
@argument.as_json
@click.pass_obj
def down(obj: Context, *, name: str, as_json: bool) -> None:
    """End the machine, with all that is on it."""
    from agent.cli import record

    was_there = _machine(obj, name).down()
    if as_json:
        record.echo({"name": name, "was_there": was_there})
        return
    click.echo(f"machine {name} is gone" if was_there else f"there was no machine {name}")


def _machine(obj: Context, name: str) -> DevMachine:
    try:
        from agent.fleet import key, providers
        from agent.fleet.dev import DevMachine
    except ModuleNotFoundError as error:
        raise NotFound(
            f"{error.name} is needed, which is not here: pip install 'build-agent[fleet]'"
        ) from error
    return DevMachine(
        provider=providers.make(obj.settings, "local"),
        name=name,
        owner_tag=obj.settings.fleet_owner,
        key_folder=key.default_folder(),
    )
