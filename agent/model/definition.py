"""The build definition: what a user asks for, read from YAML, JSON or a queue's job, wholly or not at all.

Owns the document's top level, what its parts must be to each other, and how a job's definition and the
repository's become one. Reads no files and runs nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Final

from pydantic import Field, StrictInt, ValidationError

from agent.model.cache_key import CacheKey
from agent.model.definition_field import (
    Duration,
    Env,
    EnvName,
    EnvValue,
    InsidePath,
    Marker,
    Name,
    ProjectName,
)
from agent.model.definition_issue import (
    Issue,
    Locate,
    Path,
    check_shape,
    describe,
    from_pydantic,
    is_echo,
    refusal,
    show,
)
from agent.model.definition_merge import merge_documents
from agent.model.definition_part import (
    MAX_STEPS,
    Artifact,
    Cache,
    Deploy,
    DirectorySource,
    GitSource,
    Part,
    Pipeline,
    Source,
    Step,
    Steps,
)
from agent.model.definition_text import read
from agent.model.plan import PipelineClass, PlannedPipeline, PlannedStep, plan

__all__ = [
    "VERSION",
    "Artifact",
    "Cache",
    "CacheKey",
    "Definition",
    "Deploy",
    "DirectorySource",
    "GitSource",
    "Pipeline",
    "PipelineClass",
    "PlannedPipeline",
    "PlannedStep",
    "Step",
    "from_document",
    "json_schema",
    "parse",
    "plan",
]

VERSION: Final = 1
DEFAULT_SKIP: Final = ("[skip ci]", "[ci skip]")

_MAX_TRANSLATED = 200  # of which the first 20 in the text's order are shown: a hint costs 0.1 ms


class Definition(Part):
    """A whole build definition."""

    version: Annotated[StrictInt, Field(ge=1, le=VERSION)] = VERSION
    """The version of this format."""
    project: ProjectName
    """What the build belongs to. A repository's file may leave it to the job."""
    source: Source | None = None
    """Where the code comes from; without it the workspace is empty."""
    definition_file: InsidePath = "build.yml"
    """The repository's file that is read when the job itself says nothing to run."""
    env: Env = Field(default_factory=dict)
    """Variables of every step."""
    secrets: Annotated[tuple[EnvName, ...], Field(max_length=100)] = ()
    """Names of secrets that every step is given as variables."""
    setup: Annotated[Steps, Field(max_length=MAX_STEPS)] = ()
    """Steps that run before all pipelines."""
    steps: Annotated[Steps, Field(max_length=MAX_STEPS)] = ()
    """Short for one pipeline called `main`; `plan` knows both forms."""
    pipelines: dict[Name, Pipeline] = Field(default_factory=dict, max_length=100)
    """Pipelines by name; they run beside each other."""
    deploy: dict[Name, Deploy] = Field(default_factory=dict, max_length=50)
    """Deploys by name; each runs after all pipelines have passed, if the branch matches."""
    artifacts: Annotated[tuple[Artifact, ...], Field(max_length=100)] = ()
    """Files to keep after the build."""
    caches: Annotated[tuple[Cache, ...], Field(max_length=20)] = ()
    """Files to find again in a later build."""
    timeout: Duration | None = None
    """End the build after so long; the server's setting by default."""
    step_timeout: Duration | None = None
    """End a step after so long, unless it says otherwise; the server's setting by default."""
    no_output_timeout: Duration | None = None
    """End a step that prints nothing for so long; the server's setting by default."""
    skip: Annotated[tuple[Marker, ...], Field(max_length=20)] = DEFAULT_SKIP
    """A commit whose message holds one of these is not built; capitals don't matter."""
    max_attempts: Annotated[StrictInt, Field(ge=1, le=20)] | None = None
    """How many servers may try when the infrastructure fails; the server's setting by default."""
    tags: dict[Name, EnvValue] = Field(default_factory=dict, max_length=50)
    """Tags a server must have to run the build."""
    queue: Name | None = None
    """The queue the build waits in."""

    @property
    def needs_repository_file(self) -> bool:
        """Whether nothing to run is said here, so that `definition_file` is read after the checkout."""
        return not (self.steps or self.pipelines or self.deploy)

    def should_skip(self, message: str | None) -> bool:
        """Whether a commit's message asks not to be built."""
        folded = (message or "").casefold()
        return any(marker.casefold() in folded for marker in self.skip)

    def to_document(self) -> dict[str, Any]:
        """Return a JSON-ready document of what was said and nothing more; `from_document` reads it back."""
        return self.model_dump(mode="json", exclude_unset=True)

    def merge_from_repository(self, text: str | bytes, origin: str) -> Definition:
        """Fill in what this job leaves to the repository's own file.

        What the job says wins, whole key by whole key; only `env` is joined name by name, and a variable of
        the job also wins over the pipelines and steps of the file. The server, the source and the secrets
        are the job's alone.

        Raises: DefinitionError when the file can't be read, has nothing to run, or asks for a secret that
            the job does not grant.
        """
        file, locate = _read_text(text, origin, self.project)
        issues = [
            Issue(("secrets", i), f"the job does not grant {show(name)}: name it in the job's own `secrets`")
            for i, name in enumerate(file.secrets)
            if name not in self.secrets
        ]
        merged = merge_documents(file.to_document(), self.to_document())
        if not any(merged.get(key) for key in ("steps", "pipelines", "deploy")):
            issues.append(Issue((), "nothing to run: expected `steps`, `pipelines` or `deploy`"))
        if issues:
            raise refusal(origin, issues, locate)
        return _validate(merged, f"{origin} with the job's definition", None)


def parse(text: str | bytes, *, origin: str, project: str | None = None) -> Definition:
    """Read a definition from YAML or JSON text.

    Args:
        origin: what the reader knows the text by, for messages: a file's name.
        project: stands in where the text names no project.
    Raises: DefinitionError with every fault, up to 20, each with line and column.
    """
    return _read_text(text, origin, project)[0]


def from_document(document: object, *, origin: str) -> Definition:
    """Read a definition from the values of a job; faults are named by paths like `setup[2].timeout`.

    Raises: DefinitionError with every fault, up to 20, whatever the document is.
    """
    return _validate(document, origin, None)


def json_schema() -> dict[str, Any]:
    """Return the JSON schema (draft 2020-12) of definitions, for editors and other checkers."""
    schema = Definition.model_json_schema()
    for part in (schema, *schema["$defs"].values()):
        for key in part["properties"].values():
            if "patternProperties" in key:  # pydantic says which names are right, not that others are wrong
                key["additionalProperties"] = False
    # A repository's file is a definition too, and leaves this to the job.
    schema["required"] = [key for key in schema.pop("required", []) if key != "project"]
    if not schema["required"]:
        del schema["required"]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": "build-agent build definition",
    }


def _read_text(text: str | bytes, origin: str, project: str | None) -> tuple[Definition, Locate]:
    read_text = read(text, origin=origin)
    document = read_text.plain()
    if project is not None and isinstance(document, dict):
        document = {"project": project, **document}
    return _validate(document, origin, read_text.locate, read_text.issues), read_text.locate


def _validate(
    document: object, origin: str, locate: Locate | None, found: list[Issue] | None = None
) -> Definition:
    """Make a definition of a document, or one error of all its faults and those found before."""
    issues = [*(found or ()), *check_shape(document)]
    if not isinstance(document, dict):
        issues.append(Issue((), f"expected a mapping with `project` and `steps`, not {describe(document)}"))
    if issues:
        raise refusal(origin, issues, locate)
    _refuse_later_version(document, origin, locate)
    try:
        definition = Definition.model_validate(document)
    except ValidationError as error:
        faults = [fault for fault in error.errors(include_url=False) if not is_echo(fault)]
        issues = [from_pydantic(fault, document, _keys_at) for fault in faults[:_MAX_TRANSLATED]]
        raise refusal(origin, issues, locate, unsaid=len(faults) - len(issues)) from None
    if contradictions := list(_contradictions(definition)):
        raise refusal(origin, contradictions, locate)
    return definition


def _refuse_later_version(document: Any, origin: str, locate: Locate | None) -> None:
    # Alone and first: what else is wrong with it may well be right in that version.
    version = document.get("version")
    if isinstance(version, int) and not isinstance(version, bool) and version > VERSION:
        text = f"definition version {version} is newer than this agent reads ({VERSION})"
        raise refusal(origin, [Issue(("version",), text)], locate)


def _contradictions(definition: Definition) -> Iterator[Issue]:
    """Find keys that are right alone and wrong together."""
    if definition.steps and definition.pipelines:
        text = "`steps` is short for one pipeline: with `pipelines`, put it there as `main`"
        yield Issue(("steps",), text, is_about_key=True)
    if definition.needs_repository_file and definition.source is None:
        text = "nothing to run: expected `steps`, `pipelines` or `deploy`, or a `source` that holds them"
        yield Issue((), text)
    for i, name in enumerate(definition.secrets):
        if name in definition.secrets[:i]:
            yield Issue(("secrets", i), f"{show(name)} stands here twice")
    for path, env in _all_envs(definition):
        for name in env.keys() & set(definition.secrets):
            text = f"{show(name)} is one of `secrets` already: it can't be a variable too"
            yield Issue((*path, "env", name), text, is_about_key=True)
    pipelines = [*definition.pipelines.values(), *definition.deploy.values()]
    count = sum(len(pipeline.steps) for pipeline in pipelines) + len(definition.setup) + len(definition.steps)
    if count > MAX_STEPS:
        yield Issue((), f"{count} steps: expected at most {MAX_STEPS} in one definition")


def _all_envs(definition: Definition) -> Iterator[tuple[Path, Mapping[str, str]]]:
    yield (), definition.env
    lists: list[tuple[Path, tuple[Step, ...]]] = [
        (("setup",), definition.setup),
        (("steps",), definition.steps),
    ]
    for group in ("pipelines", "deploy"):
        members: Mapping[str, Pipeline] = getattr(definition, group)
        for name, pipeline in members.items():
            yield (group, name), pipeline.env
            lists.append(((group, name, "steps"), pipeline.steps))
    for path, steps in lists:
        for i, step in enumerate(steps):
            yield (*path, i), step.env


def _keys_at(path: Path) -> list[str]:
    """Return the keys that the part at a path knows."""
    if path[:1] == ("source",):
        return sorted({*GitSource.model_fields, *DirectorySource.model_fields})
    part: type[Part] = Definition
    if path and isinstance(path[-1], int):
        lists: dict[str | int, type[Part]] = {"artifacts": Artifact, "caches": Cache}
        part = lists.get(path[-2], Step)
    elif path:
        part = Deploy if path[0] == "deploy" else Pipeline
    return list(part.model_fields)
