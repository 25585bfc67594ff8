"""Runs the steps of one pipeline in order, and pipelines beside each other."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from agent.build import environment, step
from agent.build.attempt import AttemptContext
from agent.model.outcome import Outcome
from agent.model.plan import PlannedPipeline, PlannedStep


@dataclass(frozen=True, kw_only=True, slots=True)
class PipelineResult:
    """How a pipeline ended: the first step that did not pass decides; `step` is its number, 0 when all passed."""

    outcome: Outcome
    detail: str | None = None
    exit_code: int | None = None
    step: int = 0


PASSED = PipelineResult(outcome=Outcome.PASSED)


def run(context: AttemptContext, pipeline: PlannedPipeline, secrets: Mapping[str, str]) -> PipelineResult:
    """Run a pipeline's steps until one fails; after that only those that run `always`.

    After a cancel nothing more runs, `always` or not: the slot has to be free within the grace.
    """
    result = PASSED
    for planned in pipeline.steps:
        if context.token.cancel is not None:
            break
        if result is not PASSED and not planned.always:
            continue
        ended = _run_step(context, pipeline, planned, secrets)
        if ended.outcome is not Outcome.PASSED and result is PASSED:
            result = PipelineResult(
                outcome=ended.outcome,
                detail=f"step {planned.step} ({planned.name}): {ended.detail or ended.outcome}",
                exit_code=ended.exit_code,
                step=planned.step,
            )
    return result


def run_beside(
    context: AttemptContext, pipelines: Sequence[PlannedPipeline], secrets: Mapping[str, str]
) -> PipelineResult:
    """Run pipelines beside each other, each to its end; return how the worst of them ended.

    Raises: what a pipeline raised, after all have ended.
    """
    results: dict[str, PipelineResult] = {}
    failures: list[BaseException] = []

    def body(pipeline: PlannedPipeline) -> None:
        try:
            results[pipeline.name] = run(context, pipeline, secrets)
        except BaseException as error:  # noqa: BLE001 - a thread's error belongs to the build: raised below
            fail(pipeline.name, error)

    def fail(name: str, error: BaseException) -> None:
        failures.append(error)
        context.token.request(Outcome.INFRASTRUCTURE, f"the agent failed in pipeline {name}")

    # The first runs in this thread: most builds have one pipeline and need no other.
    threads = [
        threading.Thread(target=body, args=(pipeline,), name=f"pipeline-{pipeline.name}")
        for pipeline in pipelines[1:]
    ]
    started = []
    for thread in threads:
        try:
            thread.start()
        except RuntimeError as error:  # the machine has no thread to give: those that run are ended first
            fail(thread.name.removeprefix("pipeline-"), error)
            break
        started.append(thread)
    if pipelines and not failures:
        body(pipelines[0])
    for thread in started:
        thread.join()
    if failures:
        raise failures[0]
    return worst(list(results.values()))


def worst(results: Sequence[PipelineResult]) -> PipelineResult:
    """Return the result that decides: the system's failures before the user's, then the earliest step.

    A disk that filled up in one pipeline makes tests fail in another: that is no test failure.
    """
    bad = [result for result in results if result.outcome is not Outcome.PASSED]
    return min(bad, key=lambda result: (not result.outcome.is_infrastructure, result.step), default=PASSED)


def _run_step(
    context: AttemptContext, pipeline: PlannedPipeline, planned: PlannedStep, secrets: Mapping[str, str]
) -> step.StepResult:
    settings = context.settings
    head = step.StepHead(
        step=planned.step,
        pipeline=pipeline.name,
        pipeline_class=pipeline.pipeline_class,
        name=planned.name,
        command=planned.run,
    )
    invocation = step.Invocation(
        argv=[*(planned.shell or settings.shell), planned.run],
        cwd=context.path(planned.workdir),
        env=environment.of_step(context, pipeline, planned, secrets),
        timeout_s=planned.timeout_s or settings.step_timeout_s,
        no_output_s=planned.no_output_timeout_s or settings.no_output_timeout_s or None,
        use_pty=planned.pty,
    )

    return step.record(context, head, lambda output: step.invoke(context, head, invocation, output))
