"""A build on record, made step by step as an agent would, for what reads it."""

from __future__ import annotations

from datetime import UTC, datetime

from agent.model.build import (
    AttemptEnded,
    AttemptRef,
    Claim,
    NewBuild,
    OutputAccount,
    OutputChunk,
    StepEnded,
    StepStarted,
)
from agent.model.outcome import Outcome
from agent.model.server import Identity, Registration
from agent.store import attempts, builds, output, servers
from agent.store.engine import Store

AT = datetime(2026, 5, 1, 12, 0, tzinfo=UTC)
ID = "0b5e7f3a-0000-4000-8000-000000000001"


class History:
    """One build on one server; each method writes what an agent would have written."""

    def __init__(self, store: Store, build_id: str = ID) -> None:
        self.store = store
        self.build_id = build_id
        self._seqs: dict[int, int] = {}
        self._lines: dict[int, int] = {}
        servers.register(
            store,
            Registration(
                identity=Identity(id="server-id", name="server-1"),
                session="one",
                slots=1,
                queues=["builds"],
                tags={},
                agent_version="1",
                lease_s=30.0,
            ),
        )
        builds.create(store, NewBuild(id=build_id, project="test", queue="builds", definition={}))

    def claim(self) -> AttemptRef:
        """Begin the next attempt."""
        claim = builds.claim(self.store, self.build_id, server_id="server-id", session="one", slot=0)
        assert isinstance(claim, Claim)
        self._seqs.clear()
        self._lines.clear()
        return claim.ref

    def begin(self, ref: AttemptRef, step: int, pipeline: str = "main", name: str = "") -> None:
        """Begin a step."""
        begun = StepStarted(
            step=step,
            pipeline=pipeline,
            pipeline_class="build",
            name=name or f"name {step}",
            command="true",
            started_at=AT,
        )
        output.apply(self.store, [(ref, begun)])

    def chunk(self, ref: AttemptRef, step: int, data: bytes) -> OutputChunk:
        """Make the next chunk of a step."""
        seq, line = self._seqs.get(step, 0), self._lines.get(step, 1)
        count = data.count(b"\n")
        self._seqs[step], self._lines[step] = seq + 1, line + count
        return OutputChunk(
            build_id=ref.build_id,
            attempt=ref.number,
            step=step,
            seq=seq,
            first_line=line,
            line_count=count,
            at=AT,
            data=data,
        )

    def print(self, ref: AttemptRef, step: int, *datas: bytes) -> None:
        """Print, a chunk each."""
        output.append_chunks(self.store, [self.chunk(ref, step, data) for data in datas])

    def end(self, ref: AttemptRef, step: int, outcome: Outcome = Outcome.PASSED) -> None:
        """End a step."""
        ended = StepEnded(
            step=step, outcome=outcome, detail=None, exit_code=0, ended_at=AT, account=OutputAccount()
        )
        output.apply(self.store, [(ref, ended)])

    def close(self, ref: AttemptRef, outcome: Outcome = Outcome.PASSED) -> None:
        """End the attempt."""
        attempts.end(self.store, ref, AttemptEnded(outcome=outcome, detail=None, exit_code=None, ended_at=AT))
