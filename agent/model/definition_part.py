"""The parts of a build definition: source, steps, pipelines, deploys, artifacts and caches.

Owns which keys each part has. The whole, and what the parts must be to each other, is `definition`'s.
"""

from __future__ import annotations

from typing import Annotated, Any, Final

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    GetJsonSchemaHandler,
    SerializerFunctionWrapHandler,
    StrictBool,
    StrictInt,
    Tag,
    model_serializer,
)
from pydantic_core import CoreSchema

from agent.model.cache_key import CacheKey
from agent.model.definition_field import (
    AbsolutePath,
    Branch,
    BranchPattern,
    Command,
    Commit,
    Duration,
    Env,
    GitUrl,
    InsidePath,
    KeyTemplate,
    Label,
    Name,
)

MAX_STEPS: Final = 500


class Part(BaseModel):
    """What every part is: immutable, and without keys nobody knows."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class GitSource(Part):
    """A Git repository, checked out at one commit."""

    git: GitUrl
    """The repository's address, without a password."""
    commit: Commit | None = None
    """The whole id of the commit to build. Without it, what `branch` points at when the build starts."""
    branch: Branch | None = None
    """The branch the commit is on; deploys are chosen by it. Without both, the remote's default."""
    depth: Annotated[StrictInt, Field(ge=1, le=1_000_000)] | None = None
    """Fetch only so many commits of history; all of it by default."""
    submodules: StrictBool = False
    """Check out submodules as well."""


class DirectorySource(Part):
    """A directory on the server, copied into the workspace."""

    directory: AbsolutePath
    """An absolute path."""


def _source_kind(value: Any) -> str | None:
    if isinstance(value, GitSource | DirectorySource):
        return "git" if isinstance(value, GitSource) else "directory"
    if not isinstance(value, dict) or ("git" in value) == ("directory" in value):
        return None
    return "git" if "git" in value else "directory"


Source = Annotated[
    Annotated[GitSource, Tag("git")] | Annotated[DirectorySource, Tag("directory")],
    Discriminator(
        _source_kind,
        custom_error_type="definition",
        custom_error_message="expected a mapping with either `git: ADDRESS` or `directory: /PATH`",
    ),
]


def _words(value: Any) -> Any:
    return value.split() if isinstance(value, str) else value


class Step(Part):
    """One command line, run by a shell in its own processes."""

    run: Command
    """The command line; several lines run as one script."""
    name: Label | None = None
    """What the step is called in the output; the command's first line by default."""
    timeout: Duration | None = None
    """End the step after so long; `step_timeout` by default."""
    no_output_timeout: Duration | None = None
    """End the step when it prints nothing for so long; the build's `no_output_timeout` by default."""
    always: StrictBool = False
    """Run the step even when one before it in its pipeline has failed."""
    pty: StrictBool = False
    """Give the step a terminal, for programs that behave differently without one."""
    env: Env = Field(default_factory=dict)
    """Variables of this step alone, over those of its pipeline."""
    workdir: InsidePath | None = None
    """Where it runs, relative to the workspace; the pipeline's `workdir` by default."""
    shell: (
        Annotated[
            tuple[Label, ...],
            Field(min_length=1, max_length=20),
            BeforeValidator(_words, json_schema_input_type=str | list[str]),
        ]
        | None
    ) = None
    """The program that is given `run` as its last argument, such as `python3 -c`; the server's by default."""

    @model_serializer(mode="wrap")
    def _serialize(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any] | str:
        # The short form where it says the same.
        document: dict[str, Any] = handler(self)
        return self.run if document.keys() == {"run"} else document


class _ShortStep:
    """Annotates a step that may be written as its command alone."""

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {"anyOf": [{"type": "string", "minLength": 1}, handler(schema)]}


def _step_of_command(value: Any) -> Any:
    return {"run": value} if isinstance(value, str) else value


Steps = tuple[Annotated[Step, BeforeValidator(_step_of_command), _ShortStep()], ...]


class Pipeline(Part):
    """Steps that run one after the other; pipelines run beside each other in the same workspace."""

    steps: Annotated[Steps, Field(min_length=1, max_length=MAX_STEPS)]
    """The steps, in order; the first that fails ends the pipeline, save for steps that run `always`."""
    env: Env = Field(default_factory=dict)
    """Variables of this pipeline, over the build's."""
    workdir: InsidePath | None = None
    """Where its steps run, relative to the workspace; the workspace itself by default."""


class Deploy(Pipeline):
    """A pipeline that runs after all others have passed, if the build's branch matches."""

    branches: Annotated[tuple[BranchPattern, ...], Field(min_length=1, max_length=50)]
    """Patterns of branches it runs for; `*` stands for any text, slashes included."""
    environment: Name | None = None
    """What it deploys to, one deploy at a time for a project; the deploy's own name by default."""
    retry_safe: StrictBool = False
    """Whether the system may run it again after a server was lost in its midst."""


class Artifact(Part):
    """Files to keep after the build."""

    path: InsidePath
    """A pattern of files in the workspace; `**` reaches into folders."""
    name: Name | None = None
    """What they are kept as; the path of each file by default."""


class Cache(Part):
    """Files to find again in a later build."""

    key: KeyTemplate
    """The name it is kept under: text with `{{ hash('GLOB') }}`, `{{ branch }}`, `{{ os }}`, `{{ arch }}`."""
    paths: Annotated[tuple[InsidePath, ...], Field(min_length=1, max_length=50)]
    """Files and folders in the workspace."""
    restore_keys: Annotated[tuple[KeyTemplate, ...], Field(max_length=10)] = ()
    """Beginnings of keys to fall back to, the first that matches, its newest entry."""

    @property
    def key_template(self) -> CacheKey:
        """The key, read."""
        return CacheKey.read(self.key)

    @property
    def restore_key_templates(self) -> tuple[CacheKey, ...]:
        """The keys to fall back to, read."""
        return tuple(CacheKey.read(key) for key in self.restore_keys)
