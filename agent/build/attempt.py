"""What every part of one attempt shares: its name, its output, its limits and how it is ended from outside."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Protocol

from agent import clock
from agent.build.artifacts import Artifacts
from agent.build.cache import Caches
from agent.build.cancel import CancelToken
from agent.build.mirror import Mirrors
from agent.build.secrets import SecretDirectory, SecretsFile
from agent.build.workspace import Workspace, Workspaces
from agent.clock import Deadline
from agent.config import Settings
from agent.metrics.registry import Metrics
from agent.model.build import AttemptRef, Claim
from agent.model.outcome import Outcome
from agent.output.lines import OutputSink, StepOutput
from agent.output.redact import Redactor
from agent.output.spool import AttemptLog, Spool
from agent.store.engine import Store


class Annotate(Protocol):
    """Marks a span of time, such as a deploy, in the charts of the metrics service."""

    def __call__(
        self, stream: str, *, title: str, description: str, start_at: datetime, end_at: datetime | None
    ) -> None:
        """Hand one annotation on; never raises over a figure."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shop:
    """What a server lends to every attempt that runs on it."""

    settings: Settings
    store: Store
    spool: Spool
    metrics: Metrics
    workspaces: Workspaces
    mirrors: Mirrors
    caches: Caches
    artifacts: Artifacts
    secrets: SecretDirectory
    server_name: str
    life: str
    guardian_acted_since: Callable[[float], bool]
    annotate: Annotate
    leaving: threading.Event


@dataclass(frozen=True, kw_only=True, slots=True)
class AttemptSummary:
    """What became of an attempt. Not `applied`: it had been closed by others, and nothing it said counts."""

    applied: bool
    requeued: bool
    outcome: Outcome
    detail: str | None


@dataclass(slots=True, kw_only=True)
class AttemptContext:
    """One attempt while it runs. `deadline` is the build's limit, set once its definition is known."""

    shop: Shop
    claim: Claim
    token: CancelToken
    attempt_log: AttemptLog
    redactor: Redactor
    deadline: Deadline = field(default_factory=lambda: Deadline(None))
    started_mono: float = field(default_factory=clock.mono)
    workspace: Workspace | None = None
    secrets_file: SecretsFile | None = None
    commit: str | None = None
    message: str | None = None
    branch: str | None = None

    @property
    def ref(self) -> AttemptRef:
        """The attempt's name."""
        return self.claim.ref

    @property
    def settings(self) -> Settings:
        """The server's settings."""
        return self.shop.settings

    @property
    def metrics(self) -> Metrics:
        """The server's gauges."""
        return self.shop.metrics

    @property
    def files(self) -> Workspace:
        """The workspace, which every step has."""
        if self.workspace is None:
            raise RuntimeError("the attempt has no workspace yet")
        return self.workspace

    def open_output(self, step: int) -> StepOutput:
        """Begin the output of a step."""
        settings = self.settings
        return StepOutput(
            spool=self.shop.spool,
            attempt_log=self.attempt_log,
            step=step,
            redactor=self.redactor.stream(),
            chunk_bytes=settings.chunk_bytes,
            flush_gap_s=settings.flush_gap_ms / 1000,
            limit_bytes=settings.output_limit_bytes,
        )

    def watch_secrets(self, output: StepOutput) -> OutputSink:
        """Return `output` behind a look at the build's secrets file, so that a secret that a step registers is
        masked in what it prints afterwards: the file is read between reading output and redacting it."""
        return output if self.secrets_file is None else _WatchedOutput(output, self.secrets_file)

    def step_token(self, step: int) -> str:
        """Return the word that marks a step's processes; no two lives of anything share it."""
        return f"{self.ref.build_id}/{self.ref.number}/{step}/{self.ref.session}"

    def path(self, relative: str) -> Path:
        """Return a path of the definition inside the checked-out source."""
        return self.files.source / relative


class _WatchedOutput:
    """An `OutputSink` that polls the secrets file before it lets bytes on."""

    def __init__(self, output: StepOutput, secrets_file: SecretsFile) -> None:
        self._output = output
        self._secrets_file = secrets_file
        self.flush_due_s = output.flush_due_s
        self.flush = output.flush

    @property
    def has_room(self) -> bool:
        return self._output.has_room

    @property
    def is_over_limit(self) -> bool:
        return self._output.is_over_limit

    def feed(self, data: bytes) -> None:
        self._secrets_file.poll()
        self._output.feed(data)
