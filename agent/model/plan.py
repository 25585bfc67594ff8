"""The order a definition's steps run in: which pipelines, and the number each step is known by.

Owns numbering and branch matching. Reads definitions, never text.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # definition.py exports this module's names
    from agent.model.definition import Definition
    from agent.model.definition_part import Pipeline, Step


class PipelineClass(StrEnum):
    """When a pipeline runs: setup before all, build pipelines in parallel, deploys after all passed."""

    SETUP = "setup"
    BUILD = "build"
    DEPLOY = "deploy"


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedStep:
    """One command to run. Everything said further out is filled in; what nobody said is None.

    `env` is whole: the definition's, the pipeline's and the step's own, the nearest winning. `workdir` is
    relative to the workspace, "." its root. `shell` is the program and its arguments before the command.
    """

    step: int
    name: str
    run: str
    timeout_s: float | None
    no_output_timeout_s: float | None
    always: bool
    pty: bool
    env: Mapping[str, str]
    workdir: str
    shell: tuple[str, ...] | None


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedPipeline:
    """Steps that run one after the other. `environment` is a deploy's lock, None for the others."""

    name: str
    pipeline_class: PipelineClass
    environment: str | None
    retry_safe: bool
    env: Mapping[str, str]
    workdir: str
    steps: tuple[PlannedStep, ...]


def plan(definition: Definition, *, branch: str | None) -> tuple[PlannedPipeline, ...]:
    """Number every step that will run for a branch.

    The checkout, which the agent does itself, is step 0. The setup begins at 1 and the build pipelines
    follow in the order of the definition, then the deploys that match, without gaps. The numbers depend on
    the definition and the branch alone, so each attempt at a build has the same.

    Args:
        branch: of the commit that is built; None, unknown, lets no deploy run, not even that of `*`.
    """
    planner = _Planner(definition)
    if definition.setup:
        planner.add("setup", PipelineClass.SETUP, definition.setup)
    if definition.steps:
        planner.add("main", PipelineClass.BUILD, definition.steps)
    for name, pipeline in definition.pipelines.items():
        planner.add(name, PipelineClass.BUILD, pipeline.steps, pipeline)
    for name, deploy in definition.deploy.items():
        if branch is not None and any(fnmatchcase(branch, pattern) for pattern in deploy.branches):
            environment = deploy.environment or name
            planner.add(
                name,
                PipelineClass.DEPLOY,
                deploy.steps,
                deploy,
                environment=environment,
                retry_safe=deploy.retry_safe,
            )
    return tuple(planner.pipelines)


class _Planner:
    def __init__(self, definition: Definition) -> None:
        self._definition = definition
        self._next_step = 1
        self.pipelines: list[PlannedPipeline] = []

    def add(
        self,
        name: str,
        pipeline_class: PipelineClass,
        steps: Iterable[Step],
        pipeline: Pipeline | None = None,
        *,
        environment: str | None = None,
        retry_safe: bool = False,
    ) -> None:
        env = {**self._definition.env, **(pipeline.env if pipeline else {})}
        workdir = (pipeline.workdir if pipeline else None) or "."
        self.pipelines.append(
            PlannedPipeline(
                name=name,
                pipeline_class=pipeline_class,
                environment=environment,
                retry_safe=retry_safe,
                env=env,
                workdir=workdir,
                steps=tuple(self._step(step, env, workdir) for step in steps),
            )
        )

    def _step(self, step: Step, env: Mapping[str, str], workdir: str) -> PlannedStep:
        number, self._next_step = self._next_step, self._next_step + 1
        return PlannedStep(
            step=number,
            name=step.name or first_line(step.run),
            run=step.run,
            timeout_s=step.timeout or self._definition.step_timeout,
            no_output_timeout_s=step.no_output_timeout or self._definition.no_output_timeout,
            always=step.always,
            pty=step.pty,
            env={**env, **step.env},
            workdir=step.workdir or workdir,
            shell=step.shell,
        )


def first_line(command: str) -> str:
    """Name a step that has no name: its first line with anything on it, cut to 100 characters."""
    line = next((line.strip() for line in command.splitlines() if line.strip()), "(empty command)")
    return line if len(line) <= 100 else line[:97] + "..."
