"""Ships the spool into the database: batches in order, each in one transaction, deleted when they are there.

Knows the spool and the store; nothing of steps or slots. A database that is away only makes it wait; a record
that the database refuses for what it holds is set aside on disk and told, so that it can't hold up the rest.
"""

from __future__ import annotations

import urllib.parse
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from agent import clock, log
from agent.errors import StoreRejected
from agent.metrics import catalogue as gauge
from agent.metrics.registry import Metrics
from agent.model.build import AttemptEnded, AttemptRef, OutputChunk, StepEnded
from agent.output import record as disk
from agent.output.record import Record
from agent.output.spool import Batch, Spool
from agent.store import attempts, output, shipment
from agent.store.engine import Store

_log = log.get("shipper")


class Shipper:
    """The one reader of the spool. `cycle` is called by one loop, over and over.

    Args:
        on_ended: called after the database has an attempt's end, with its name and what the database decided
            (whether the build goes back to the queue).
    """

    def __init__(
        self,
        *,
        spool: Spool,
        store: Store,
        metrics: Metrics,
        rejected_dir: Path,
        on_ended: Callable[[AttemptRef, attempts.EndResult], None],
    ) -> None:
        self._spool = spool
        self._store = store
        self._metrics = metrics
        self._rejected_dir = rejected_dir
        self._on_ended = on_ended

    def cycle(self, timeout_s: float = 1.0) -> None:
        """Ship what waits, or wait up to `timeout_s` for something.

        Raises: StoreUnavailable; everything is then still in the spool.
        """
        batches = self._spool.take(timeout_s)
        if not batches:
            return
        records = [(batch.log.ref, item) for batch in batches for item in _without_end(batch)]
        ends = [(batch.log.ref, end) for batch in batches if (end := _end_of(batch)) is not None]
        try:
            results = shipment.ship(self._store, records, ends)
        except StoreRejected:
            self._apply(records)
            results = [self._end(ref, ended) for ref, ended in ends]
        of_attempt = dict(zip((ref for ref, _ in ends), results, strict=True))
        for batch in batches:
            self._finish(batch, of_attempt.get(batch.log.ref))
        self._measure(batches)

    def _apply(self, records: Sequence[output.Entry]) -> None:
        """Store what the database takes of a batch that it has refused as a whole."""
        if not records:
            return
        try:
            output.apply(self._store, records)
        except StoreRejected as error:
            if len(records) == 1:
                self._set_aside(*records[0], error)
                return
            # Halve until the one record that the database won't have stands alone; the rest goes in.
            middle = len(records) // 2
            self._apply(records[:middle])
            self._apply(records[middle:])

    def _finish(self, batch: Batch, result: attempts.EndResult | None) -> None:
        """Forget what the database has; `result` is what it said to the attempt's end, if that was in the batch."""
        self._spool.done(batch)
        if result is None:
            return
        if not result.applied:
            # The reaper closed the attempt before: what this life has to say about it changes nothing.
            _log.warning("attempt.stale_end", build=batch.log.ref.build_id, attempt=batch.log.ref.number)
        self._spool.close_log(batch.log)
        self._on_ended(batch.log.ref, result)
        batch.log.set_ended(result)

    def _end(self, ref: AttemptRef, ended: AttemptEnded) -> attempts.EndResult:
        """Close the attempt; without its words if the database won't have those, for a build has to end."""
        try:
            return attempts.end(self._store, ref, ended)
        except StoreRejected as error:
            self._set_aside(ref, ended, error)
            detail = "the database refused the detail; the agent's log and its rejected/ have it"
            return attempts.end(self._store, ref, replace(ended, detail=detail, commit=None, message=None))

    def _set_aside(self, ref: AttemptRef, item: Record, error: StoreRejected) -> None:
        """Keep a refused record in `rejected/`, where a person finds it; its build goes on without it."""
        build = urllib.parse.quote(ref.build_id, safe="")[:100]
        name = f"{clock.utc_now():%Y%m%dT%H%M%S%f}-{build}-{ref.number}.rec"
        header, payload = disk.encode(item)
        _log.error("spool.rejected", str(error), build=ref.build_id, attempt=ref.number, file=name)
        try:
            self._rejected_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
            (self._rejected_dir / name).write_bytes(header + payload)
        except OSError as failure:
            # A full disk must not stop what the database would have: one record is lost, and that is told.
            _log.error("spool.rejected_lost", str(failure), build=ref.build_id, attempt=ref.number, file=name)

    def _measure(self, batches: Sequence[Batch]) -> None:
        now = clock.utc_now()
        for batch in batches:
            for item in batch.records:
                if isinstance(item, OutputChunk):
                    self._metrics.add(gauge.OUTPUT_BYTES, len(item.data))
                    self._metrics.add(gauge.OUTPUT_LINES, item.line_count)
                    self._metrics.observe(gauge.OUTPUT_LAG_SECONDS, max(0.0, (now - item.at).total_seconds()))
                elif isinstance(item, StepEnded):
                    self._metrics.add(gauge.OUTPUT_MASKED, item.account.masked_count)


def _without_end(batch: Batch) -> Sequence[Any]:
    """An attempt's end is not part of the mixed batch: it decides what becomes of the build."""
    return batch.records if _end_of(batch) is None else batch.records[:-1]


def _end_of(batch: Batch) -> AttemptEnded | None:
    """Return the attempt's end, which is the last record of its log."""
    last = batch.records[-1]
    return last if isinstance(last, AttemptEnded) else None
