"""`build-agent schema`: the JSON schema of build definitions, and a check of one of them."""

from __future__ import annotations

from typing import BinaryIO

import click


@click.command("schema")
@click.option(
    "--check",
    "file",
    type=click.File("rb"),
    metavar="FILE",
    help="Check a build definition (- for standard input) instead of printing the schema.",
)
@click.pass_context
def schema(context: click.Context, file: BinaryIO | None) -> None:
    """Print the JSON schema of build definitions, or check one.

    A check names every fault with its line and column, and ends with 65 if there is any.
    """
    if file is None:
        import json

        from agent.model.definition import json_schema

        click.echo(json.dumps(json_schema(), indent=2, ensure_ascii=False))
        return
    from agent.errors import DefinitionError

    try:
        click.echo(_check(file))
    except DefinitionError as error:
        click.echo(str(error), err=True)
        context.exit(error.exit_code)


def _check(file: BinaryIO) -> str:
    """Return what is in a valid definition, in one line.

    Raises: DefinitionError.
    """
    from agent.model.definition import parse
    from agent.model.definition_issue import MAX_DOCUMENT_BYTES

    # One byte more than allowed is enough to be refused, whatever is behind it.
    text = file.read(MAX_DOCUMENT_BYTES + 1)
    # A repository's file may leave the project to the job, so a missing one is no fault here.
    definition = parse(text, origin=file.name, project=_NO_PROJECT)
    pipelines = len(definition.pipelines) + bool(definition.steps)
    groups = [definition.setup, definition.steps]
    groups += [part.steps for part in (*definition.pipelines.values(), *definition.deploy.values())]
    counts = (
        _count(pipelines, "pipeline"),
        _count(len(definition.deploy), "deploy"),
        _count(sum(map(len, groups)), "step"),
    )
    note = "; it names no project, so the job has to" if definition.project == _NO_PROJECT else ""
    return f"{file.name}: valid: {', '.join(counts)}{note}"


_NO_PROJECT = "unnamed"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
