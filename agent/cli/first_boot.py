"""`build-agent first-boot`: what a server started from an image does before its agent."""

from __future__ import annotations

import click

from agent.cli.context import Context


@click.command("first-boot")
@click.pass_obj
def first_boot(obj: Context) -> None:
    """Take the settings a server was launched with from its user data; refuse one that is set up in part.

    The unit build-agent-first-boot.service runs it at each boot, as root, before the agent.
    """
    from agent import log
    from agent.config_load import DEFAULT_FILE
    from agent.host import first_boot as boot

    loaded = obj.load()
    log.setup(loaded.settings.log_format, loaded.settings.log_level)
    if boot.run(loaded.settings, loaded.path or DEFAULT_FILE):
        click.echo("settings come from user data")
    else:
        click.echo("settings stay as they are")
