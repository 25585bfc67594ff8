"""Submits builds: on record first, then queued. What is on record and not queued, the sweep queues."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from agent import log
from agent.errors import DefinitionError, JobRefused, QueueUnavailable
from agent.model.build import Build, NewBuild
from agent.queue.carrier import Carrier
from agent.queue.names import queue_for
from agent.store import builds
from agent.store.engine import Store

_log = log.get("submit")


@dataclass(frozen=True, kw_only=True, slots=True)
class Submitted:
    """A build on record. Not `is_queued`: Redis was away, and the sweep queues it when it is back."""

    build: Build
    is_queued: bool


def new_build(
    document: Mapping[str, Any],
    *,
    build_id: str | None = None,
    queue: str = "",
    by: str = "",
    max_attempts: int = 3,
) -> NewBuild:
    """Return the record of a build from its definition.

    Raises: JobRefused when the definition is none; the text names what is wrong, where, and what was expected.
    """
    # Only here: it brings pydantic, 10 MB that an agent without a build to read does not need.
    from agent.model import definition as definitions

    try:
        definition = definitions.from_document(document, origin="job")
    except DefinitionError as error:
        raise JobRefused(str(error)) from error
    source = definition.source
    git = source if isinstance(source, definitions.GitSource) else None
    base_queue = (queue or definition.queue or "builds").partition("+")[0]
    return NewBuild(
        id=build_id or str(uuid.uuid4()),
        project=definition.project,
        queue=queue_for(base_queue, definition.tags),
        definition=document,
        branch=git.branch if git else None,
        commit=git.commit if git else None,
        created_by=by,
        attempts_allowed=definition.max_attempts or max_attempts,
    )


def submit(store: Store, carrier: Carrier, new: NewBuild) -> Submitted:
    """Write a build and queue it. Submitting the same id again changes nothing.

    Raises: StoreUnavailable, and then nothing was written or queued.
    """
    builds.create(store, new)
    build = builds.get(store, new.id)
    return Submitted(build=build, is_queued=queue_if_possible(carrier, build))


def queue_if_possible(carrier: Carrier, build: Build) -> bool:
    """Queue a build that stands on record as queued; whether Redis took it."""
    try:
        carrier.publish(build.id, build.queue)
    except QueueUnavailable as error:
        _log.warning("submit.redis_away", str(error), build=build.id)
        return False
    return True
