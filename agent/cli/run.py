"""`build-agent run`: the daemon in the foreground, as systemd starts it."""

from __future__ import annotations

import click

from agent.cli.context import Context


@click.command()
@click.pass_obj
def run(obj: Context) -> int:
    """Run the agent until it is told to stop.

    SIGTERM or Ctrl-C drains: what runs is finished, up to the setting stop_limit_s. A second one stops now and
    gives the builds back to the queue.
    """
    from agent import log
    from agent.daemon import lean

    settings = obj.settings
    log.setup(settings.log_format, settings.log_level)
    lean.install()
    with lean.without_collector():
        from agent.daemon import agent

    return agent.run(settings)
