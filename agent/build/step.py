"""Runs one step: its start and end on the record, its output through the redactor into the spool."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from agent import clock, log
from agent.build import process
from agent.build.attempt import AttemptContext
from agent.build.cancel import Cancel
from agent.clock import Deadline
from agent.metrics import catalogue as gauge
from agent.model.build import StepEnded, StepStarted
from agent.model.outcome import Outcome, TimeoutKind
from agent.output.lines import StepOutput

_log = log.get("step")


@dataclass(frozen=True, kw_only=True, slots=True)
class StepResult:
    """How a step ended."""

    outcome: Outcome
    detail: str | None = None
    exit_code: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class StepHead:
    """What the record says of a step before it runs."""

    step: int
    pipeline: str
    pipeline_class: str
    name: str
    command: str


def record(context: AttemptContext, head: StepHead, body: Callable[[StepOutput], StepResult]) -> StepResult:
    """Run `body` as a step: started and ended on the record whatever happens in between."""
    ref = context.ref
    started_mono = clock.mono()
    context.attempt_log.append(
        StepStarted(
            step=head.step,
            pipeline=head.pipeline,
            pipeline_class=head.pipeline_class,
            name=head.name,
            command=head.command,
            started_at=clock.utc_now(),
        )
    )
    output = context.open_output(head.step)
    try:
        result = body(output)
    except OSError as error:
        result = _of_os_error(error)
        output.note(f"build-agent: {result.detail}")
    context.attempt_log.append(
        StepEnded(
            step=head.step,
            outcome=result.outcome,
            detail=result.detail,
            exit_code=result.exit_code,
            ended_at=clock.utc_now(),
            account=output.finish(),
        )
    )
    seconds = clock.mono() - started_mono
    context.metrics.observe(gauge.STEP_SECONDS, seconds)
    _log.info(
        "step.ended",
        build=ref.build_id,
        attempt=ref.number,
        step=head.step,
        outcome=result.outcome,
        seconds=round(seconds, 3),
    )
    return result


@dataclass(frozen=True, kw_only=True, slots=True)
class Invocation:
    """A step's command with everything that it runs under."""

    argv: Sequence[str]
    cwd: Path
    env: Mapping[str, str]
    timeout_s: float
    no_output_s: float | None
    use_pty: bool = False


def invoke(context: AttemptContext, head: StepHead, invocation: Invocation, output: StepOutput) -> StepResult:
    """Run a command as the body of a step."""
    settings = context.settings
    ended = process.run(
        process.Command(
            argv=invocation.argv,
            cwd=invocation.cwd,
            env=invocation.env,
            token=context.step_token(head.step),
            life=context.shop.life,
            use_pty=invocation.use_pty,
        ),
        context.watch_secrets(output),
        process.Limits(
            step=Deadline.after(invocation.timeout_s),
            build=context.deadline,
            no_output_s=invocation.no_output_s,
            grace_s=settings.kill_grace_s,
            leaked_pipe_wait_s=settings.leaked_pipe_wait_s,
        ),
        context.token,
    )
    if context.secrets_file is not None and context.secrets_file.refused is not None:
        output.note(f"build-agent: not masked: {context.secrets_file.refused}")
    if ended.cancel is not None:
        result = _of_cancel(ended.cancel, ended.exit_code)
        output.note(f"build-agent: the step was ended: {_words(ended.cancel)}")
        return result
    if ended.exit_code == 0:
        return StepResult(outcome=Outcome.PASSED, exit_code=0)
    return StepResult(
        outcome=Outcome.FAILED, detail=f"exit code {ended.exit_code}", exit_code=ended.exit_code
    )


def _of_cancel(cancel: Cancel, exit_code: int) -> StepResult:
    return StepResult(outcome=cancel.outcome, detail=cancel.detail, exit_code=exit_code)


def _words(cancel: Cancel) -> str:
    if cancel.outcome is Outcome.TIMED_OUT:
        kinds = {
            TimeoutKind.NO_OUTPUT: "it printed nothing for too long",
            TimeoutKind.STEP: "it ran longer than a step may",
            TimeoutKind.BUILD: "the build ran longer than it may",
        }
        return f"timed out ({cancel.detail}): {kinds[TimeoutKind(cancel.detail)]}"
    return f"{cancel.outcome.value.replace('_', ' ')}: {cancel.detail}"


def _of_os_error(error: OSError) -> StepResult:
    """Tell a full disk or an exhausted machine, which another server has not, from what the user wrote."""
    text = f"{os.strerror(error.errno) if error.errno else error}: {error.filename or ''}".rstrip(": ")
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StepResult(outcome=Outcome.DISK_FULL, detail=text)
    if error.errno in (errno.ENOMEM, errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.EIO):
        return StepResult(outcome=Outcome.INFRASTRUCTURE, detail=text)
    return StepResult(outcome=Outcome.FAILED, detail=text)
