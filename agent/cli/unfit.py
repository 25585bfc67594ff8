"""`build-agent unfit`: what becomes of a server whose agent will not start."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import click

from agent.cli.context import Context
from agent.config import Settings
from agent.errors import AgentError

_CONSOLE = Path("/dev/console")
_LINES = 5


@click.command()
@click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
@click.pass_obj
def unfit(obj: Context, dry_run: bool) -> None:
    """Say on the console why this server takes no builds, and power it off if it was started from an image.

    The unit build-agent-failed.service runs it when the agent's unit, or the one for the first boot, has failed for
    good. Until the power goes off `shutdown -c` keeps the server for a look.
    """
    try:
        settings = obj.settings
    except AgentError:  # that may be just what is wrong
        settings = Settings()
    reason = _reason()
    should_leave = settings.when_unfit == "poweroff" or (
        settings.when_unfit == "auto" and settings.image_file.exists()
    )
    delay_min = max(1, round(settings.unfit_delay_s / 60))
    what = (
        f"it powers off in {delay_min} min; `shutdown -c` keeps it" if should_leave else "it stays as it is"
    )
    text = f"build-agent: this server takes no builds, {what}: {reason}"
    click.echo(text)
    if dry_run:
        return
    try:
        with _CONSOLE.open("w") as console:
            console.write(f"{text}\n")
    except OSError:  # no console, as in some containers: the journal has it
        click.echo("there is no console to say it on", err=True)
    if should_leave:
        subprocess.run(["shutdown", "--poweroff", f"+{delay_min}", reason[:200]], check=True, timeout=30)


def _reason() -> str:
    """Return the last words of the unit that failed, which systemd names since version 251."""
    unit = os.environ.get("MONITOR_UNIT", "build-agent.service")
    how = os.environ.get("MONITOR_SERVICE_RESULT", "failed")
    status = os.environ.get("MONITOR_EXIT_STATUS", "")
    argv = [
        "journalctl",
        "--quiet",
        "--output=cat",
        f"--lines={_LINES}",
        f"--unit={unit}",
        "--identifier=build-agent",
    ]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=20, check=False)
        words = " / ".join(line.strip() for line in done.stdout.splitlines() if line.strip())
    except (OSError, subprocess.TimeoutExpired):
        words = ""
    return f"{unit} {how} {status}".strip() + (f": {words}" if words else "")
