"""What the tests of the store need time and again: builds, servers, claims, races, counted statements."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import event

from agent.model.build import AttemptEnded, AttemptRef, Claim, NewBuild, OutputChunk, StepStarted
from agent.model.outcome import Outcome
from agent.model.server import BeatReply, Identity, Registration, Server, ServerState
from agent.store import builds, servers
from agent.store.engine import Store

AT = datetime(2026, 5, 4, 3, 2, 1, 987654, tzinfo=UTC)


def make_build(store: Store, build_id: str = "build-1", **fields: Any) -> str:
    """Queue a build."""
    defaults: dict[str, Any] = {"project": "shop", "queue": "builds", "definition": {"version": 1}}
    builds.create(store, NewBuild(id=build_id, **defaults | fields))
    return build_id


def make_server(store: Store, server_id: str = "server-1", session: str = "life-1", **fields: Any) -> Server:
    """Register a server."""
    identity = Identity(id=server_id, name=fields.pop("name", f"name of {server_id}"))
    defaults: dict[str, Any] = {
        "slots": 2,
        "queues": ["builds"],
        "tags": {},
        "agent_version": "1",
        "lease_s": 30.0,
    }
    return servers.register(store, Registration(identity=identity, session=session, **defaults | fields))


def claim(store: Store, build_id: str = "build-1", **fields: Any) -> Claim | None:
    """Claim a build for a slot."""
    defaults: dict[str, Any] = {"server_id": "server-1", "session": "life-1", "slot": 1}
    return builds.claim(store, build_id, **defaults | fields)


def running(store: Store, build_id: str = "build-1", **fields: Any) -> AttemptRef:
    """Queue a build, register a server if there is none, and claim."""
    if not servers.list_servers(store):
        make_server(store)
    make_build(store, build_id, **fields)
    won = claim(store, build_id)
    assert won is not None
    return won.ref


def ended(outcome: Outcome = Outcome.PASSED, **fields: Any) -> AttemptEnded:
    """An attempt's end."""
    defaults: dict[str, Any] = {"detail": "because", "exit_code": None, "ended_at": AT}
    return AttemptEnded(outcome=outcome, **defaults | fields)


def begun(step: int = 0) -> StepStarted:
    """A step's beginning."""
    return StepStarted(
        step=step, pipeline="test", pipeline_class="test", name=f"step {step}", command="make", started_at=AT
    )


def cut(data: bytes, *sizes: int, build_id: str = "build-1", step: int = 0) -> list[OutputChunk]:
    """Cut bytes into chunks of the given sizes, the rest into a last one."""
    chunks: list[OutputChunk] = []
    offset, line = 0, 1
    for seq, size in enumerate([*sizes, len(data)]):
        piece = data[offset : offset + size]
        if piece:
            lines = piece.count(b"\n")
            chunks.append(
                OutputChunk(
                    build_id=build_id,
                    attempt=1,
                    step=step,
                    seq=seq,
                    first_line=line,
                    line_count=lines,
                    at=AT,
                    data=piece,
                )
            )
            line += lines
        offset += size
    return chunks


def beat(store: Store, session: str = "life-1", state: ServerState = ServerState.ACCEPTING) -> BeatReply:
    """Beat once, for server-1."""
    return servers.beat(store, server_id="server-1", session=session, state=state, reason=None, status={})


def lose(store: Store, server_id: str = "server-1") -> bool:
    """Take a server for lost, as the reaper does."""
    server = servers.get(store, server_id)
    return servers.mark_lost(store, server_id=server_id, session=server.session, beat=server.beat)


def race(*calls: Callable[[], Any]) -> list[Any]:
    """Start all calls at the same moment, each in its own thread; return what each returned or raised."""
    gate = threading.Barrier(len(calls))

    def run(call: Callable[[], Any]) -> Any:
        gate.wait(timeout=10)
        try:
            return call()
        except Exception as error:  # noqa: BLE001 - the race's outcome, for the test to judge
            return error

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(run, calls))


@contextmanager
def counted(store: Store) -> Iterator[list[str]]:
    """Collect the statements sent, those that open a transaction left out."""
    statements: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        if not statement.startswith(("BEGIN", "PRAGMA")):
            statements.append(statement)

    event.listen(store._engine, "before_cursor_execute", note)
    try:
        yield statements
    finally:
        event.remove(store._engine, "before_cursor_execute", note)
