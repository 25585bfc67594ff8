"""Runs a deploy: one at a time for each environment of a project, begun on the record before its first step.

That a deploy has begun must be in the database before anything of it runs, or a lost server could be taken for
one that had not begun. So a deploy waits for the database, where other steps go on without it.
"""

from __future__ import annotations

from collections.abc import Mapping

from agent import clock, log
from agent.build import pipeline
from agent.build.attempt import AttemptContext
from agent.build.pipeline import PipelineResult
from agent.errors import StateConflict, StoreUnavailable
from agent.model.outcome import Outcome, TimeoutKind
from agent.model.plan import PlannedPipeline
from agent.store import attempts

_log = log.get("deploy")


def run(context: AttemptContext, planned: PlannedPipeline, secrets: Mapping[str, str]) -> PipelineResult:
    """Wait for the environment's lock, run the deploy's steps, free the lock."""
    environment = planned.environment or planned.name
    refused = _begin(context, environment, retry_safe=planned.retry_safe)
    if refused is not None:
        return refused
    _log.info("deploy.begun", build=context.ref.build_id, environment=environment)
    began_at = clock.utc_now()
    try:
        result = pipeline.run(context, planned, secrets)
        context.shop.annotate(
            f"deploys.{environment}",
            title=f"{context.claim.project} {(context.commit or '')[:12]}: {result.outcome}".strip(),
            description=f"build {context.ref.build_id}, attempt {context.ref.number}",
            start_at=began_at,
            end_at=clock.utc_now(),
        )
        return result
    finally:
        try:
            attempts.end_deploy(
                context.shop.store, context.ref, project=context.claim.project, environment=environment
            )
        except StoreUnavailable as error:
            # The end of the attempt frees it too.
            _log.warning("deploy.lock_kept", str(error), build=context.ref.build_id, environment=environment)


def _begin(context: AttemptContext, environment: str, *, retry_safe: bool) -> PipelineResult | None:
    """Take the lock and write that the deploy has begun; return why not, `None` when it has."""
    waits = clock.backoff(limit_s=2.0)
    while True:
        try:
            if attempts.begin_deploy(
                context.shop.store,
                context.ref,
                project=context.claim.project,
                environment=environment,
                retry_safe=retry_safe,
            ):
                return None
            _log.info("deploy.waiting", build=context.ref.build_id, environment=environment)
        except StateConflict as error:
            return PipelineResult(outcome=Outcome.LOST, detail=str(error))
        except StoreUnavailable as error:
            _log.warning("deploy.database_away", str(error), build=context.ref.build_id)
        if context.token.wait(next(waits)):
            cancel = context.token.cancel
            return PipelineResult(
                outcome=cancel.outcome if cancel else Outcome.CANCELLED,
                detail=cancel.detail if cancel else None,
            )
        if context.deadline.is_passed:
            return PipelineResult(outcome=Outcome.TIMED_OUT, detail=TimeoutKind.BUILD)
