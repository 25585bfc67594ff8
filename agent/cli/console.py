"""`build-agent console`: the operators' console on the web."""

from __future__ import annotations

import click

from agent.cli.context import Context


@click.command()
@click.pass_obj
def console(obj: Context) -> int:
    """Serve the operators' console, until SIGTERM or Ctrl-C.

    Who may sign in: build-agent users add.
    """
    from agent import log
    from agent.cli.need import needing

    settings = obj.settings
    log.setup(settings.log_format, settings.log_level)
    with needing("the console", "console"):
        from agent.console import service
    return service.run(settings)
