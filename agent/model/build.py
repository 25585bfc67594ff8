"""Builds, attempts, steps and their output, as they stand in the database."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from agent.model.outcome import Outcome


class BuildState(StrEnum):
    """Where a build stands."""

    QUEUED = "queued"
    RUNNING = "running"
    ENDED = "ended"


@dataclass(frozen=True, kw_only=True, slots=True)
class NewBuild:
    """What `submit` writes: everything that is known before a server has seen the build."""

    id: str
    project: str
    queue: str
    definition: Mapping[str, Any]
    branch: str | None = None
    commit: str | None = None
    message: str | None = None
    created_by: str = ""
    attempts_allowed: int = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Build:
    """One row of `builds`. `attempt` is the number of the newest attempt, 0 before the first."""

    id: str
    project: str
    queue: str
    state: BuildState
    outcome: Outcome | None
    detail: str | None
    definition: Mapping[str, Any]
    branch: str | None
    commit: str | None
    message: str | None
    created_by: str
    created_at: datetime
    queued_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    attempt: int
    attempts_allowed: int
    cancel_requested_at: datetime | None
    cancel_by: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Attempt:
    """One row of `attempts`; (build_id, number) is the fencing token of every write about it."""

    build_id: str
    number: int
    server_id: str
    session: str
    slot: int
    state: str
    outcome: Outcome | None
    detail: str | None
    exit_code: int | None
    deploy_begun_at: datetime | None
    started_at: datetime
    ended_at: datetime | None


@dataclass(frozen=True, kw_only=True, slots=True)
class AttemptRef:
    """The name of an attempt, carried by every record about it."""

    build_id: str
    number: int
    session: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Claim:
    """What a slot gets when it has won a build: the attempt is written and its lease runs."""

    ref: AttemptRef
    definition: Mapping[str, Any]
    queue: str
    project: str
    branch: str | None
    commit: str | None
    queued_at: datetime


@dataclass(frozen=True, kw_only=True, slots=True)
class OutputAccount:
    """What became of a step's output. Bytes and lines; `cut` is output that was dropped on purpose.

    `lines` counts line ends, and one more for a last line without one.
    """

    bytes_produced: int = 0
    lines_produced: int = 0
    bytes_stored: int = 0
    lines_stored: int = 0
    bytes_cut: int = 0
    lines_cut: int = 0
    masked_count: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class StepStarted:
    """A step has begun. `step` counts from 0 (the checkout) in the order of the definition."""

    step: int
    pipeline: str
    pipeline_class: str
    name: str
    command: str
    started_at: datetime


@dataclass(frozen=True, kw_only=True, slots=True)
class StepEnded:
    """A step has ended, with its reason and the account of its output."""

    step: int
    outcome: Outcome
    detail: str | None
    exit_code: int | None
    ended_at: datetime
    account: OutputAccount


@dataclass(frozen=True, kw_only=True, slots=True)
class AttemptEnded:
    """An attempt has ended."""

    outcome: Outcome
    detail: str | None
    exit_code: int | None
    ended_at: datetime
    commit: str | None = None
    message: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One row of `steps`."""

    build_id: str
    attempt: int
    step: int
    pipeline: str
    pipeline_class: str
    name: str
    command: str
    state: str
    outcome: Outcome | None
    detail: str | None
    exit_code: int | None
    started_at: datetime
    ended_at: datetime | None
    account: OutputAccount


@dataclass(frozen=True, kw_only=True, slots=True)
class OutputChunk:
    """Up to 64 KiB of one step's redacted bytes.

    `seq` counts from 0 without gaps within a step. `first_line` is the number (from 1) of the line that the
    first byte belongs to; `line_count` is how many line ends (`\\n`) the bytes hold. A chunk may begin and
    end in the middle of a line.
    """

    build_id: str
    attempt: int
    step: int
    seq: int
    first_line: int
    line_count: int
    at: datetime
    data: bytes
