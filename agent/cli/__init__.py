"""The command line. One module per command or group, imported when it is called.

`build-agent --help` must not wait for SQLAlchemy: this module knows only names, and the first line of help each.
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from typing import Any

import click

from agent import __version__
from agent.cli.screen import INTERRUPTED, ReaderGone
from agent.errors import AgentError

NAME = "build-agent"

# name -> (module of agent.cli, first line of its help). A test holds the lines equal to the commands' own.
COMMANDS = {
    "run": ("run", "Run the agent until it is told to stop."),
    "submit": ("submit", "Submit a build."),
    "logs": ("logs", "Print the output of a build."),
    "builds": ("builds", "List builds, the newest first."),
    "show": ("show", "Show a build with its attempts and steps."),
    "cancel": ("cancel", "Cancel a build that waits or runs."),
    "retry": ("retry", "Queue an ended build again, as its next attempt."),
    "servers": ("servers", "List servers, or start some."),
    "drain": ("order", "Let a server finish what runs and take nothing new."),
    "resume": ("order", "Let a server take builds again."),
    "quarantine": ("order", "Keep a server from taking builds until it is resumed, over restarts too."),
    "terminate": (
        "order",
        "Drain a server and end its agent; a machine of the fleet ends with it, one that has not come up at once.",
    ),
    "fleet": ("fleet", "Keep pools of servers: their size, their image, what they cost."),
    "deploy": ("deploy", "Deploy a commit to the fleet itself: its tests, a package, an image, a roll-out."),
    "deployments": (
        "deploy",
        "List deployments of the fleet, the newest first; show one, follow it, cancel it.",
    ),
    "images": ("images", "Bake, compare and retire machine images."),
    "dev": ("dev", "Have a build server to develop with, on this machine."),
    "console": ("console", "Serve the operators' console, until SIGTERM or Ctrl-C."),
    "users": ("users", "Say who may sign in to the console."),
    "tokens": ("tokens", "Make and revoke tokens of programs."),
    "db": ("db", "Create, upgrade and check the database."),
    "config": ("config", "Check and show the settings."),
    "schema": ("schema", "Print the JSON schema of build definitions, or check one."),
    "first-boot": (
        "first_boot",
        "Take the settings a server was launched with from its user data; refuse one that is set up in part.",
    ),
    "unfit": (
        "unfit",
        "Say on the console why this server takes no builds, and power it off if it was started from an image.",
    ),
    "completion": (
        "completion",
        "Print the script that makes a shell complete commands, builds and servers.",
    ),
    "demo": ("demo", "Show a whole build farm on this machine, with nothing left behind."),
}


class _LazyGroup(click.Group):
    """A group whose commands are imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:  # noqa: ARG002
        if name not in COMMANDS:
            return None
        module = importlib.import_module(f"agent.cli.{COMMANDS[name][0]}")
        command: click.Command = getattr(module, name.replace("-", "_"))
        return command

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[Any]:
        """Offer the commands without importing each of them."""
        from click.shell_completion import CompletionItem

        found = [
            CompletionItem(name, help=text)
            for name, (_, text) in COMMANDS.items()
            if name.startswith(incomplete)
        ]
        return [*found, *click.Command.shell_complete(self, ctx, incomplete)]

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; a reader that has gone is told apart from a fault, which click would not do."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise ReaderGone from error

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[Any, Any, list[str]]:
        """Name the nearest command for one that is not there."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            import difflib

            near = difflib.get_close_matches(args[0], COMMANDS, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            ctx.fail(f"No such command {args[0]!r}.{hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="build-agent")
@click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path, dir_okay=False),
    envvar="BUILD_AGENT_CONFIG",
    help="Settings file; /etc/build-agent/agent.toml if it is there.",
)
@click.option(
    "--set", "settings", metavar="NAME=VALUE", multiple=True, help="A setting, over all other sources."
)
@click.pass_context
def cli(ctx: click.Context, config_path: Path | None, settings: tuple[str, ...]) -> None:
    """Immutable build servers: an agent that takes builds from a queue, and what operators need around it."""
    from agent.cli.context import Context

    ctx.obj = Context(config_path, settings)


def main() -> None:
    """Run the command line; errors made for people are printed as such, with their exit code."""
    try:
        code = cli.main(prog_name=NAME, standalone_mode=False)
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except ReaderGone:
        # As `head` does: no error, and nothing more to say.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except Exception as error:  # noqa: BLE001 - Python would end with 1, which says that a build did not pass
        code = _tell(error)
    sys.exit(code if isinstance(code, int) else 0)


def _tell(error: Exception) -> int:
    """Say on standard error why a command did not come to its end; return its exit code."""
    if _is_interrupted(error):
        click.echo("interrupted", err=True)
        return INTERRUPTED
    if isinstance(error, AgentError):
        click.echo(f"build-agent: {error}", err=True)
        return error.exit_code
    import traceback

    traceback.print_exception(error)
    click.echo("build-agent: this is a fault of build-agent itself: please report the lines above", err=True)
    return AgentError.exit_code


def _is_interrupted(error: BaseException | None) -> bool:
    """Whether an error is Ctrl-C, or what click or another library in whose midst it came has made of it."""
    while error is not None and not isinstance(error, KeyboardInterrupt | click.exceptions.Abort):
        error = error.__cause__ or error.__context__
    return error is not None
