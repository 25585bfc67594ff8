"""The function that every build's job names, and the slot it runs in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Any

from agent.errors import JobRefused

# What the slot of this thread does with the job in hand; set by the slot around each job.
in_slot: ContextVar[Callable[[], Mapping[str, Any]] | None] = ContextVar("in_slot", default=None)


def build(definition: Mapping[str, Any] | None = None) -> Mapping[str, Any]:  # noqa: ARG001 - RQ's side of it
    """Run the build that this job carries; enqueue it by name from any program, with RQ's JSON serializer.

        Queue("builds", connection=redis, serializer="json").enqueue("agent.queue.intake.build", definition)

    The slot has read the definition, and written the build and the attempt, before it comes here.

    Returns: {"build": id, "attempt": number, "outcome": "passed", "detail": ...}.
    Raises: JobRefused outside a slot of build-agent (a stock `rq worker` has none).
    """
    run = in_slot.get()
    if run is None:
        raise JobRefused(
            "a build runs in a slot of build-agent, not in this RQ worker: run `build-agent run`"
        )
    return run()
