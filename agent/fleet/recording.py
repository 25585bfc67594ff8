"""The log of a bake: its phases as steps of an attempt at the bake's build, by way of the same spool and shipper.

So `build-agent logs`, `show` and `builds` show a bake as they show a build, and lines are visible as they come. Secrets
that the servers are given are masked. The spool lies in a folder of its own that goes with the process.
"""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import unquote, urlsplit

from agent import clock, log
from agent.errors import AgentError, StoreUnavailable
from agent.metrics.registry import Metrics
from agent.model.build import AttemptEnded, AttemptRef, StepEnded, StepStarted
from agent.model.image import Phase
from agent.model.outcome import Outcome
from agent.output.lines import StepOutput
from agent.output.redact import Redactor
from agent.output.shipper import Shipper
from agent.output.spool import Spool
from agent.store.engine import Store

PIPELINE = "bake"
_SPOOL_BYTES = 256 << 20
_CHUNK_BYTES = 64 << 10
_FLUSH_GAP_S = 0.01
# The last lines of a bake wait so long for a database that is away.
_LAST_WORDS_S = 60.0
_TAIL_BYTES = 16 << 10

_log = log.get("bake")


def secrets_of(settings: Iterable[str]) -> list[str]:
    """Return what must not be shown of settings: each text, and of each URL its password, as it is and as it means."""
    found = []
    for text in settings:
        password = urlsplit(text).password if "://" in text else text
        found += [password, unquote(password)] if password else []
    return found


class Recording:
    """One life's log of a bake. `feed` and what is around it are for one thread."""

    def __init__(self, store: Store, ref: AttemptRef, *, secrets: Iterable[str]) -> None:
        self._ref = ref
        self._folder = Path(tempfile.mkdtemp(prefix="build-agent-bake-"))
        self._spool = Spool(self._folder / "spool", limit_bytes=_SPOOL_BYTES)
        self._log = self._spool.open(ref)
        self._redactor = Redactor(secrets)
        self._shipper = Shipper(
            spool=self._spool,
            store=store,
            metrics=Metrics(),
            rejected_dir=self._folder / "rejected",
            on_ended=lambda _ref, _result: None,
        )
        self._output: StepOutput | None = None
        self._shown = self._redactor.stream()
        self._step = 0
        self._tail = b""
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._ship, name="bake-shipper", daemon=True)
        self._thread.start()

    @property
    def tail(self) -> str:
        """The last lines of the phase that runs, or ran last."""
        return self._tail.decode(errors="replace")

    def begin(self, phase: Phase, what: str) -> None:
        """Begin a phase; `what` says what it does."""
        self._step, self._tail = phase.number, b""
        self._shown = self._redactor.stream()
        started = StepStarted(
            step=phase.number,
            pipeline=PIPELINE,
            pipeline_class="build",
            name=phase.value,
            command=what,
            started_at=clock.utc_now(),
        )
        self._log.append(started)
        self._output = StepOutput(
            spool=self._spool,
            attempt_log=self._log,
            step=phase.number,
            redactor=self._redactor.stream(),
            chunk_bytes=_CHUNK_BYTES,
            flush_gap_s=_FLUSH_GAP_S,
            limit_bytes=0,
        )

    def feed(self, data: bytes) -> bytes:
        """Take output of the phase and return it masked, for whoever looks on; empty bytes let out what has waited."""
        output = self._output
        if output is None:
            return b""
        if data:
            self._tail = (self._tail + data)[-_TAIL_BYTES:]
            output.feed(data)
        if output.flush_due_s() == 0.0:
            output.flush()
        return self._shown.feed(data) if data else b""

    def say(self, text: str) -> None:
        """Add a line of the bake's own."""
        if self._output is not None:
            self._tail = (self._tail + f"{text}\n".encode())[-_TAIL_BYTES:]
            self._output.note(text)

    def end(self, outcome: Outcome, detail: str | None) -> None:
        """End the phase that runs, if one does."""
        output, self._output = self._output, None
        if output is not None:
            ended = StepEnded(
                step=self._step,
                outcome=outcome,
                detail=self._clean(detail),
                exit_code=None,
                ended_at=clock.utc_now(),
                account=output.finish(),
            )
            self._log.append(ended)

    def close(self, outcome: Outcome, detail: str | None) -> bool:
        """End the attempt, and wait until the database has all of it; whether it has."""
        self.end(outcome, detail)
        now = clock.utc_now()
        self._log.append(
            AttemptEnded(outcome=outcome, detail=self._clean(detail), exit_code=None, ended_at=now)
        )
        is_stored = self._log.wait_ended(_LAST_WORDS_S)
        self._ended.set()
        self._spool.wake()
        self._thread.join(10)
        shutil.rmtree(self._folder, ignore_errors=True)
        return is_stored

    def mask(self, text: str) -> str:
        """Return a text with its secrets masked."""
        stream = self._redactor.stream()
        return (stream.feed(text.encode(errors="replace")) + stream.finish()).decode(errors="replace")

    def _clean(self, text: str | None) -> str | None:
        return None if text is None else self.mask(text)

    def _ship(self) -> None:
        waits = clock.backoff()
        while not self._ended.is_set():
            try:
                self._shipper.cycle()
                waits = clock.backoff()
            except StoreUnavailable as error:
                _log.warning("bake.output_waits", str(error), bake=self._ref.build_id)
                self._ended.wait(next(waits))
            except AgentError:
                _log.exception("bake.output_lost", bake=self._ref.build_id)
                return
