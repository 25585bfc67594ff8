"""Arguments and options that several commands share, and how the shell completes them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from agent.errors import AgentError

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from agent.cli.context import Context

_COMPLETED = 200

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")


def _complete_build(context: click.Context, _parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    from click.shell_completion import CompletionItem

    from agent.model import wording
    from agent.store import builds

    obj = _context_of(context)
    found = builds.list_builds(obj.store, limit=_COMPLETED) if obj else []
    return [
        CompletionItem(it.id, help=f"{wording.state(it)} {it.project} {it.branch or ''}".rstrip())
        for it in found
        if it.id.startswith(begun)
    ]


def _complete_server(context: click.Context, _parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    from click.shell_completion import CompletionItem

    from agent.store import servers

    obj = _context_of(context)
    found = servers.list_servers(obj.store) if obj else []
    return [CompletionItem(it.name, help=f"{it.state} {it.id}") for it in found if it.name.startswith(begun)]


def _complete_image(context: click.Context, _parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    from click.shell_completion import CompletionItem

    from agent.store import images

    obj = _context_of(context)
    found = images.list_images(obj.store, limit=_COMPLETED) if obj else []
    return [
        CompletionItem(it.version, help=f"{it.state} {it.profile}, {it.provider}")
        for it in found
        if it.version.startswith(begun)
    ]


def _complete_pool(context: click.Context, _parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    from click.shell_completion import CompletionItem

    from agent.store import pools

    obj = _context_of(context)
    found = pools.list_pools(obj.store) if obj else []
    return [CompletionItem(it.name, help=", ".join(it.queues)) for it in found if it.name.startswith(begun)]


def _quietly(complete: Any) -> Any:
    """Make a completion that offers nothing where there is no database: a tab key must print no error."""

    def offer(context: click.Context, parameter: click.Parameter, begun: str) -> list[CompletionItem]:
        try:
            found: list[CompletionItem] = complete(context, parameter, begun)
        except (AgentError, OSError, click.ClickException):
            return []
        return found

    return offer


def _context_of(context: click.Context) -> Context | None:
    """Return the commands' context; while completing, click parses and runs nothing that would have made it."""
    from agent.cli.context import Context

    given = context.find_root().params
    return Context(given.get("config_path"), given.get("settings") or ())


build = click.argument("build", metavar="BUILD", shell_complete=_quietly(_complete_build))
server = click.argument("server", metavar="SERVER", shell_complete=_quietly(_complete_server))
complete_image = _quietly(_complete_image)
complete_pool = _quietly(_complete_pool)
image = click.argument("image", metavar="IMAGE", shell_complete=complete_image)

PROFILES = ("minimal", "full")
scripts = click.option(
    "--scripts",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="Folder of the set-up scripts, if not this version's own.",
)
deb = click.option(
    "--deb",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="Package of the agent, if not the newest in dist/.",
)
