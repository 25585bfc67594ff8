"""Runs one attempt at a build from its claim to its end: source, set-up, pipelines, deploys, what is kept.

Whatever goes wrong here ends as an outcome with a reason on the record, never as an exception in the slot.
"""

from __future__ import annotations

import errno
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from agent import clock, log
from agent.build import deploy, pipeline, process, step
from agent.build.attempt import AttemptContext, AttemptSummary, Shop
from agent.build.cache import hash_files
from agent.build.cancel import CancelToken
from agent.build.git import secrets_in_url
from agent.build.pipeline import PASSED, PipelineResult
from agent.build.secrets import SecretsFile
from agent.build.source import SourceRequest, SourceResult, checkout
from agent.clock import Deadline
from agent.errors import (
    AgentError,
    DefinitionError,
    SecretError,
    SourceError,
    SourceUnavailable,
    StoreUnavailable,
    WorkspaceError,
)
from agent.metrics import catalogue as gauge
from agent.model import definition as definitions
from agent.model.build import AttemptEnded, Claim
from agent.model.definition import Definition, DirectorySource, GitSource
from agent.model.definition_issue import MAX_DOCUMENT_BYTES
from agent.model.outcome import Outcome, TimeoutKind
from agent.model.plan import PipelineClass, plan
from agent.output.lines import StepOutput
from agent.output.redact import Redactor
from agent.store import attempts

_log = log.get("build")


def run_attempt(shop: Shop, claim: Claim, token: CancelToken) -> AttemptSummary:
    """Run a claimed attempt to the point where the database has its end.

    Returns: what the database made of it; not applied when the attempt had been closed by others, or when the
        agent leaves before the database could be told (its next life tells it then).
    """
    started_mono = clock.mono()
    _log.info("build.started", build=claim.ref.build_id, attempt=claim.ref.number, queue=claim.queue)
    try:
        attempt_log = shop.spool.open(claim.ref)
    except OSError as error:
        return _end_without_spool(shop, claim, error)
    context = AttemptContext(
        shop=shop,
        claim=claim,
        token=token,
        attempt_log=attempt_log,
        redactor=Redactor([], min_length=shop.settings.redact_min_length),
        commit=claim.commit,
        branch=claim.branch,
    )
    shop.metrics.observe(
        gauge.QUEUE_WAIT_SECONDS, max(0.0, (clock.utc_now() - claim.queued_at).total_seconds())
    )
    result = _run(context)
    attempt_log.append(
        AttemptEnded(
            outcome=result.outcome,
            detail=result.detail,
            exit_code=result.exit_code,
            ended_at=clock.utc_now(),
            commit=context.commit,
            message=context.message,
        )
    )
    _remove_workspace(context)
    while not attempt_log.wait_ended(0.2):
        if shop.leaving.is_set():
            return AttemptSummary(applied=False, requeued=False, outcome=result.outcome, detail=result.detail)
    ended: attempts.EndResult = attempt_log.result
    seconds = clock.mono() - started_mono
    shop.metrics.observe(gauge.BUILD_SECONDS, seconds)
    shop.metrics.add(gauge.BUILDS_ENDED, 1, outcome=result.outcome)
    if result.outcome.is_infrastructure:
        shop.metrics.add(gauge.ATTEMPTS_INFRASTRUCTURE, 1, reason=result.outcome)
    _log.info(
        "build.ended",
        build=claim.ref.build_id,
        attempt=claim.ref.number,
        outcome=result.outcome,
        requeued=ended.requeued,
        seconds=round(seconds, 3),
    )
    return AttemptSummary(
        applied=ended.applied, requeued=ended.requeued, outcome=result.outcome, detail=result.detail
    )


def _run(context: AttemptContext) -> PipelineResult:
    """Run the attempt; whatever is raised becomes an outcome."""
    try:
        result = _run_stages(context)
    except (DefinitionError, SecretError) as error:
        result = PipelineResult(outcome=Outcome.REFUSED, detail=str(error))
    except SourceError as error:
        result = PipelineResult(outcome=Outcome.FAILED, detail=str(error))
    except (SourceUnavailable, WorkspaceError) as error:
        full = isinstance(error.__cause__, OSError) and error.__cause__.errno in (errno.ENOSPC, errno.EDQUOT)
        outcome = Outcome.DISK_FULL if full else Outcome.INFRASTRUCTURE
        result = PipelineResult(outcome=outcome, detail=str(error))
    except OSError as error:
        outcome = Outcome.DISK_FULL if error.errno in (errno.ENOSPC, errno.EDQUOT) else Outcome.INFRASTRUCTURE
        result = PipelineResult(outcome=outcome, detail=str(error))
    except Exception as error:  # noqa: BLE001 - a fault of the agent's own must not take the slot with it
        _log.exception("build.agent_fault", build=context.ref.build_id, attempt=context.ref.number)
        detail = f"the agent failed: {type(error).__name__}: {error}"
        result = PipelineResult(outcome=Outcome.INFRASTRUCTURE, detail=detail)
    if result.outcome is Outcome.PASSED:
        return result
    if context.shop.guardian_acted_since(context.started_mono):  # whatever its steps say of their end
        return PipelineResult(outcome=Outcome.LOST, detail="the agent hung for longer than its lease")
    cancel = context.token.cancel
    if cancel is not None:
        return PipelineResult(outcome=cancel.outcome, detail=cancel.detail, exit_code=result.exit_code)
    return result


def _run_stages(context: AttemptContext) -> PipelineResult:
    shop, claim = context.shop, context.claim
    definition = definitions.from_document(claim.definition, origin="job")
    context.deadline = Deadline.after(definition.timeout or context.settings.build_timeout_s)
    context.workspace = shop.workspaces.create(claim.ref.build_id, claim.ref.number)
    context.secrets_file = SecretsFile(context.workspace.path / "secrets", context.redactor)
    secrets = shop.secrets.get(definition.secrets)
    for secret in [*secrets.values(), *_secrets_of_source(definition)]:
        context.redactor.add(secret)
    _tell_unmaskable(context, secrets)
    if definition.source is not None:
        result = _check_out(context, definition)
        if result.outcome is not Outcome.PASSED:
            return result
        definition = _with_repository_file(context, definition)
        if definition.should_skip(context.message):
            return PipelineResult(outcome=Outcome.SKIPPED, detail="the commit's message asks for it")
    planned = plan(definition, branch=context.branch)
    _restore_caches(context, definition)
    stages = {kind: [item for item in planned if item.pipeline_class is kind] for kind in PipelineClass}
    result = PASSED
    for item in stages[PipelineClass.SETUP]:
        result = pipeline.run(context, item, secrets)
    if result is PASSED and context.token.cancel is None:
        result = pipeline.run_beside(context, stages[PipelineClass.BUILD], secrets)
    last_step = max((item.step for stage in planned for item in stage.steps), default=0)
    kept = _keep(context, definition, last_step + 1, is_passed=result is PASSED)
    result = pipeline.worst([result, kept])
    for item in stages[PipelineClass.DEPLOY]:
        if result is not PASSED or context.token.cancel is not None:
            break
        result = deploy.run(context, item, secrets)
    if result is PASSED and context.token.cancel is not None:
        # Ended between two steps: what had to follow did not run.
        return PipelineResult(outcome=context.token.cancel.outcome, detail=context.token.cancel.detail)
    return result


def _tell_unmaskable(context: AttemptContext, secrets: Mapping[str, str]) -> None:
    """Say which secrets can't be masked, being too short or too common: their names only."""
    names = [name for name, value in secrets.items() if value.encode() in context.redactor.unmaskable]
    if names:
        _log.warning("secret.unmaskable", build=context.ref.build_id, names=",".join(sorted(names)))


def _secrets_of_source(definition: Definition) -> list[str]:
    return secrets_in_url(definition.source.git) if isinstance(definition.source, GitSource) else []


# Step 0: the checkout.


@dataclass(frozen=True)
class _CheckoutDeadline(Deadline):
    """The checkout's limit, brought forward by a cancel: git is also asked where no step's process runs (F17)."""

    token: CancelToken

    @property
    def remaining_s(self) -> float | None:
        return 0.0 if self.token.cancel is not None else super().remaining_s

    @property
    def is_passed(self) -> bool:
        return self.token.cancel is not None or super().is_passed


class _CheckoutRunner:
    """Runs git for the checkout, its output in step 0."""

    def __init__(self, context: AttemptContext, head: step.StepHead, output: StepOutput) -> None:
        self._context = context
        self._head = head
        self._output = output

    def run(self, argv: Sequence[str], *, cwd: Path, env: Mapping[str, str], deadline: Deadline) -> int:
        ended = process.run(
            process.Command(
                argv=argv,
                cwd=cwd,
                env=env,
                token=self._context.step_token(self._head.step),
                life=self._context.shop.life,
            ),
            self._output,
            process.Limits(
                step=deadline,
                build=self._context.deadline,
                no_output_s=None,
                grace_s=2.0,
                leaked_pipe_wait_s=self._context.settings.leaked_pipe_wait_s,
            ),
            self._context.token,
        )
        return ended.exit_code or (1 if ended.cancel else 0)


def _check_out(context: AttemptContext, definition: Definition) -> PipelineResult:
    """Check the source out as step 0.

    Raises: SourceError, SourceUnavailable; they are in the step's output too.
    """
    head = step.StepHead(
        step=0, pipeline="checkout", pipeline_class="checkout", name="checkout", command=_told(definition)
    )
    started_mono = clock.mono()
    failed: list[AgentError] = []

    def body(output: StepOutput) -> step.StepResult:
        runner = _CheckoutRunner(context, head, output)
        limit = context.deadline.earlier(Deadline.after(context.settings.git_timeout_s))
        deadline = _CheckoutDeadline(limit.at_mono, context.token)
        try:
            found = checkout(
                context.shop.mirrors, _request(definition), context.files.source, runner, deadline
            )
        except (SourceError, SourceUnavailable) as error:
            cancel = context.token.cancel
            output.note(f"build-agent: {error}" if cancel is None else f"build-agent: {cancel.detail}")
            if cancel is not None:
                return step.StepResult(outcome=cancel.outcome, detail=cancel.detail)
            if context.deadline.is_passed:
                return step.StepResult(outcome=Outcome.TIMED_OUT, detail=TimeoutKind.BUILD)
            failed.append(error)
            is_user = isinstance(error, SourceError)
            return step.StepResult(
                outcome=Outcome.FAILED if is_user else Outcome.INFRASTRUCTURE, detail=str(error)
            )
        _take_over(context, found, output)
        return step.StepResult(outcome=Outcome.PASSED, exit_code=0)

    result = step.record(context, head, body)
    context.metrics.observe(gauge.CHECKOUT_SECONDS, clock.mono() - started_mono)
    if failed:
        raise failed[0]
    return PipelineResult(outcome=result.outcome, detail=result.detail)


def _take_over(context: AttemptContext, found: SourceResult, output: StepOutput) -> None:
    context.commit = found.commit or context.commit
    context.branch = context.branch or found.branch
    context.message = found.message
    if found.commit:
        subject = (found.message or "").partition("\n")[0]
        output.note(f"commit {found.commit[:12]} on {context.branch or 'no branch'}: {subject}")


def _request(definition: Definition) -> SourceRequest:
    source = definition.source
    if isinstance(source, GitSource):
        return SourceRequest(
            url=source.git,
            commit=source.commit,
            branch=source.branch,
            depth=source.depth,
            submodules=source.submodules,
        )
    return SourceRequest(path=Path(source.directory) if isinstance(source, DirectorySource) else None)


def _told(definition: Definition) -> str:
    source = definition.source
    if isinstance(source, DirectorySource):
        return f"copy {source.directory}"
    return f"check out {source.commit or source.branch or 'the default branch'}" if source else "nothing"


def _with_repository_file(context: AttemptContext, definition: Definition) -> Definition:
    """Read the repository's own definition, if the job leaves the work to it."""
    if not definition.needs_repository_file:
        return definition
    name = definition.definition_file
    path = context.path(name)
    if not path.resolve().is_relative_to(context.files.source.resolve()) or not path.is_file():
        raise DefinitionError(
            f"{name}: the job says nothing to run, and the repository has no such file; add one, or name "
            "another with definition_file"
        )
    with path.open("rb") as file:
        text = file.read(MAX_DOCUMENT_BYTES + 1)
    merged = definition.merge_from_repository(text, origin=name)
    if merged.timeout is not None:
        context.deadline = Deadline(context.started_mono + merged.timeout)
    return merged


# What comes from former builds and what is kept of this one.


def _restore_caches(context: AttemptContext, definition: Definition) -> None:
    for cache in definition.caches:
        key, restore_keys = _cache_keys(context, cache)
        hit = context.shop.caches.restore(
            context.claim.project, key, restore_keys, cache.paths, context.files.source
        )
        _log.info("cache.restored" if hit else "cache.missed", build=context.ref.build_id, key=hit or key)


def _cache_keys(context: AttemptContext, cache: definitions.Cache) -> tuple[str, list[str]]:
    variables = {"branch": context.branch or "", "os": platform.system().lower(), "arch": platform.machine()}

    def render(template: definitions.CacheKey) -> str:
        return template.render(variables, lambda glob: hash_files(context.files.source, [glob]))

    return render(cache.key_template), [render(item) for item in cache.restore_key_templates]


def _keep(context: AttemptContext, definition: Definition, number: int, *, is_passed: bool) -> PipelineResult:
    """Keep artifacts, and caches of a build that passed, as a step of the agent's own after the user's."""
    if not (definition.artifacts or (definition.caches and is_passed)) or context.token.cancel is not None:
        return PASSED
    head = step.StepHead(
        step=number, pipeline="keep", pipeline_class="keep", name="artifacts and caches", command=""
    )

    def body(output: StepOutput) -> step.StepResult:
        try:
            if definition.artifacts:
                kept = context.shop.artifacts.collect(
                    context.ref.build_id,
                    context.ref.number,
                    [artifact.path for artifact in definition.artifacts],
                    context.files.source,
                )
                output.note(f"{len(kept)} artifacts, {sum(item.size_bytes for item in kept)} bytes")
            for cache in definition.caches if is_passed else ():
                key, _ = _cache_keys(context, cache)
                is_new = context.shop.caches.save(
                    context.claim.project, key, cache.paths, context.files.source
                )
                output.note(f"cache {key}: {'saved' if is_new else 'unchanged'}")
        except (WorkspaceError, DefinitionError) as error:
            output.note(f"build-agent: {error}")
            is_user = isinstance(error, DefinitionError)
            return step.StepResult(
                outcome=Outcome.FAILED if is_user else Outcome.INFRASTRUCTURE, detail=str(error)
            )
        return step.StepResult(outcome=Outcome.PASSED)

    result = step.record(context, head, body)
    if result.outcome is Outcome.PASSED:
        return PASSED
    return PipelineResult(outcome=result.outcome, detail=result.detail, step=number)


def _remove_workspace(context: AttemptContext) -> None:
    if context.workspace is None or context.settings.keep_workspaces:
        return
    try:
        context.shop.workspaces.remove(context.workspace)
    except WorkspaceError as error:
        # It blocks nobody: the next start of the agent tries again, and preflight watches the disk.
        _log.warning("workspace.left", str(error), build=context.ref.build_id, attempt=context.ref.number)


def _end_without_spool(shop: Shop, claim: Claim, error: OSError) -> AttemptSummary:
    """End an attempt that can't even begin to record itself: straight in the database."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    outcome = Outcome.DISK_FULL if full else Outcome.INFRASTRUCTURE
    detail = f"the spool takes nothing: {os.strerror(error.errno or 0)} ({error.filename})"
    ended = AttemptEnded(outcome=outcome, detail=detail, exit_code=None, ended_at=clock.utc_now())
    try:
        result = attempts.end(shop.store, claim.ref, ended)
    except StoreUnavailable:
        return AttemptSummary(applied=False, requeued=False, outcome=outcome, detail=detail)
    return AttemptSummary(applied=result.applied, requeued=result.requeued, outcome=outcome, detail=detail)
