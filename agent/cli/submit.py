"""`build-agent submit`: put a build on record and into its queue."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from agent.cli import argument
from agent.cli.context import Context

if TYPE_CHECKING:
    from agent.cli.repository import Found
    from agent.queue.submit import Submitted

SWEPT = "Redis can't be reached; the build is on record, and a server queues it when Redis is back"
_FILE = "build.yml"
# A database that fails over answers again within this; the build's id makes sending twice harmless.
_TRIES = 3


@click.command()
@click.argument("file", type=click.File("rb"), required=False)
@click.option(
    "--repo", metavar="URL|PATH", help="Build this repository; its own build.yml says what, without FILE."
)
@click.option("--branch", metavar="NAME", help="Of the repository; deploys are chosen by it.")
@click.option("--commit", metavar="ID", help="Of the repository, abbreviated where git can tell the rest.")
@click.option("--project", metavar="NAME", help="What the build belongs to, whatever the definition says.")
@click.option(
    "--env", "variables", metavar="K=V", multiple=True, help="A variable of every step, over all others."
)
@click.option("--queue", metavar="NAME", help="The queue to wait in, whatever the definition says.")
@click.option(
    "-f", "--follow", is_flag=True, help="Print its output until it has ended; exit 1 unless it passes."
)
@argument.as_json
@click.pass_obj
def submit(
    obj: Context,
    *,
    file: BinaryIO | None,
    repo: str | None,
    branch: str | None,
    commit: str | None,
    project: str | None,
    variables: tuple[str, ...],
    queue: str | None,
    follow: bool,
    as_json: bool,
) -> int:
    """Submit a build.

    FILE is a build definition, - for standard input. Without FILE and --repo: the commit that is checked out here,
    as its build.yml says. Prints the build's id.
    """
    if repo is None and (branch or commit):
        raise click.UsageError("--branch and --commit are about a repository: name it with --repo.")
    env = _read_variables(variables)
    found = _find(file, repo, branch, commit)
    document = _document(file, found, project)
    document |= {"queue": queue} if queue else {}
    submitted = _submit(obj, _with_env(document, env))
    _tell(obj, submitted, found, as_json=as_json, is_followed=follow)
    if not follow:
        return 0
    from agent.cli.logs import follow_to_end

    return follow_to_end(obj.store, submitted.build.id, first=1, as_json=as_json)


def _read_variables(variables: tuple[str, ...]) -> dict[str, str]:
    env = {}
    for item in variables:
        name, equals, value = item.partition("=")
        if not equals or not name:
            raise click.BadParameter(f"{item!r}: expected NAME=VALUE", param_hint="--env")
        env[name] = value
    return env


def _find(file: BinaryIO | None, repo: str | None, branch: str | None, commit: str | None) -> Found | None:
    """Return the commit that is meant, `None` when a definition alone is submitted."""
    from agent.cli import repository
    from agent.model.definition import from_document

    if repo is not None:
        if not Path(repo).is_dir():
            # Refused before git sees it: an address may name a program to run.
            address = repository.without_password(repo)
            from_document({"project": "unnamed", "source": {"git": address}}, origin="--repo")
        return repository.of_address(repo, branch=branch, commit=commit, file=_FILE)
    return None if file is not None else repository.of_checkout(Path.cwd(), file=_FILE)


def _document(file: BinaryIO | None, found: Found | None, project: str | None) -> dict[str, Any]:
    """Return the definition, with the source that is meant. Raises: DefinitionError."""
    from agent.model.definition import parse
    from agent.model.definition_issue import MAX_DOCUMENT_BYTES

    stand_in = project or (found.project if found else None)
    text, origin = None, _FILE
    if file is not None:
        # One byte more than allowed is enough to be refused, whatever is behind it.
        text, origin = file.read(MAX_DOCUMENT_BYTES + 1), getattr(file, "name", "FILE")
    elif found is not None and found.definition is not None:
        text, origin = found.definition, f"{_FILE} of {found.commit[:12]}"
    document: dict[str, Any] = {}
    if text is not None:
        document = parse(text, origin=str(origin), project=stand_in).to_document()
    elif stand_in:
        # The agent reads the repository's own file when it has checked it out.
        document = {"project": stand_in}
    if project:
        document["project"] = project
    if found is not None:
        given = document.get("source")
        kept = (
            {key: given[key] for key in ("depth", "submodules") if key in given}
            if isinstance(given, dict)
            else {}
        )
        source = {"git": found.url, "commit": found.commit, "branch": found.branch}
        document["source"] = kept | {key: value for key, value in source.items() if value}
    return document


def _with_env(document: dict[str, Any], env: dict[str, str]) -> dict[str, Any]:
    """Return the definition with variables that also win over those of its pipelines and steps."""
    if not env:
        return document
    from agent.model.definition_merge import merge_documents

    return {**document, **merge_documents(dict(document), {"env": env})}


def _submit(obj: Context, document: dict[str, Any]) -> Submitted:
    """Put the build on record and into its queue; an answer that was lost is asked for again, with the same id."""
    from agent import clock
    from agent.errors import StoreUnavailable
    from agent.queue.submit import new_build
    from agent.queue.submit import submit as send

    new = new_build(document, by=obj.actor, max_attempts=obj.settings.max_attempts)
    store, waits = obj.store, clock.backoff()
    for _ in range(_TRIES - 1):
        try:
            return send(store, obj.carrier, new)
        except StoreUnavailable:
            clock.sleep(next(waits))
    return send(store, obj.carrier, new)


def _tell(
    obj: Context, submitted: Submitted, found: Found | None, *, as_json: bool, is_followed: bool
) -> None:
    from agent.cli import record
    from agent.cli.screen import is_terminal
    from agent.model import wording

    build = submitted.build
    if as_json:
        document = record.plain(build) | {"is_queued": submitted.is_queued}
        click.echo(record.line(document), nl=False) if is_followed else record.echo(document)
    else:
        click.echo(build.id)
    for note in found.notes if found else ():
        click.echo(f"build-agent: {note}", err=True)
    if not submitted.is_queued:
        click.echo(f"build-agent: {SWEPT}", err=True)
    if not _is_served(obj, build.queue):
        click.echo(
            f"build-agent: no server that is up takes builds from queue {build.queue}; it waits for one",
            err=True,
        )
    if not as_json and not is_followed and is_terminal():
        click.echo(f"follow it: build-agent logs --follow {wording.short_id(build.id)}", err=True)


def _is_served(obj: Context, queue: str) -> bool:
    from agent.errors import StoreUnavailable
    from agent.store import servers

    try:
        found = servers.list_servers(obj.store)
    except StoreUnavailable:
        return True  # only a hint is lost; the build is on record
    return any(queue in it.queues and it.state not in servers.GONE for it in found)
