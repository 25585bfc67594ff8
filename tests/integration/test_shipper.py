"""The shipper on real databases: everything arrives, once, in order, and nothing holds up the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from sqlalchemy import make_url, text

from agent.errors import StoreUnavailable
from agent.metrics import catalogue as gauge
from agent.metrics.reading import CounterValue
from agent.metrics.registry import Metrics
from agent.model.build import (
    AttemptEnded,
    AttemptRef,
    BuildState,
    OutputAccount,
    OutputChunk,
    StepEnded,
    StepStarted,
)
from agent.model.outcome import Outcome
from agent.output import record as disk
from agent.output import spool as spools
from agent.output.record import Record
from agent.output.shipper import Shipper
from agent.output.spool import AttemptLog, Spool
from agent.store import attempts, builds, output, shipment, steps
from agent.store.attempts import EndResult
from agent.store.engine import Store
from tests.integration.conftest_store import AT, cut, ended, lose, running
from tests.services import PostgresServer, TcpProxy


@dataclass
class Line:
    """A spool, a shipper, and what the shipper said."""

    store: Store
    folder: Path
    told: list[tuple[AttemptRef, EndResult]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.metrics = Metrics()
        self.begin_life()

    def begin_life(self) -> None:
        """Begin a life on what the former one has left on disk."""
        self.spool = Spool(self.folder / "spool", limit_bytes=1 << 30)
        self.spool.recover()
        self.shipper = Shipper(
            spool=self.spool,
            store=self.store,
            metrics=self.metrics,
            rejected_dir=self.folder / "rejected",
            on_ended=lambda ref, result: self.told.append((ref, result)),
        )

    def ship(self) -> None:
        """Ship until nothing is left."""
        for _ in range(1000):
            if not self.spool.record_count:
                return
            self.shipper.cycle(0)
        raise AssertionError("the shipper does not get through")

    def rejected(self) -> list[Path]:
        return sorted((self.folder / "rejected").glob("*"))

    def counted(self, metric: gauge.Counter) -> float:
        readings = [item for item in self.metrics.snapshot() if isinstance(item, CounterValue)]
        return sum(item.total for item in readings if item.metric is metric)


@pytest.fixture
def line(store: Store, tmp_path: Path) -> Line:
    return Line(store, tmp_path)


@pytest.fixture
def forbid(store: Store) -> Callable[[str, str], None]:
    """Have the database refuse rows of a table for what they hold."""

    def refuse(table: str, condition: str) -> None:
        with store.begin() as connection:
            if store.dialect == "postgresql":
                connection.execute(text(f"ALTER TABLE {table} ADD CHECK (NOT ({condition}))"))
                return
            for event in ("INSERT", "UPDATE"):
                columns = f"NEW.{condition}"
                connection.exec_driver_sql(
                    f"CREATE TRIGGER refuse_{table}_{event} BEFORE {event} ON {table} WHEN {columns} "
                    "BEGIN SELECT RAISE(ABORT, 'refused'); END"
                )

    return refuse


def begun(step: int) -> StepStarted:
    return StepStarted(
        step=step, pipeline="main", pipeline_class="build", name="n", command="c", started_at=AT
    )


def over(step: int, **account: int) -> StepEnded:
    return StepEnded(
        step=step,
        outcome=Outcome.PASSED,
        detail=None,
        exit_code=0,
        ended_at=AT,
        account=OutputAccount(**account),
    )


def fill(log: AttemptLog, records: list[Record]) -> None:
    for record in records:
        log.append(record)


def stored(store: Store, build_id: str = "build-1", step: int = 1) -> list[OutputChunk]:
    return output.read_chunks(store, build_id, 1, step)


def test_whole_attempt_arrives_and_its_end_decides(line: Line, store: Store) -> None:
    ref = running(store)
    log = line.spool.open(ref)
    chunks = cut(b"one\ntwo\nthree\n", 4, 4, step=1)
    fill(log, [begun(1), *chunks, over(1, lines_produced=3), ended(Outcome.PASSED, commit="abc")])
    assert not log.wait_ended(0)
    line.ship()
    assert stored(store) == chunks
    [step] = steps.list_steps(store, "build-1", 1)
    assert (step.state, step.outcome, step.account.lines_produced) == ("ended", Outcome.PASSED, 3)
    build = builds.get(store, "build-1")
    assert (build.state, build.outcome, build.commit) == (BuildState.ENDED, Outcome.PASSED, "abc")
    assert log.wait_ended(0)
    assert log.result.applied
    assert line.told == [(ref, log.result)]
    assert list((line.folder / "spool").iterdir()) == []


def test_attempt_that_goes_back_to_the_queue_is_told_so(line: Line, store: Store) -> None:
    log = line.spool.open(running(store))
    fill(log, [ended(Outcome.DISK_FULL)])
    line.ship()
    assert log.result.requeued
    assert builds.get(store, "build-1").state is BuildState.QUEUED


def test_records_shipped_twice_are_stored_once(line: Line, store: Store) -> None:
    """A crash between the commit and the spool's deletion ships all of it again."""
    ref = running(store)
    chunks = cut(b"one\ntwo\n", 4, step=1)
    log = line.spool.open(ref)
    fill(log, [begun(1), *chunks, over(1)])
    batches = line.spool.take(0)
    output.apply(store, [(ref, item) for batch in batches for item in batch.records])  # type: ignore[misc]
    line.ship()
    assert stored(store) == chunks
    assert len(steps.list_steps(store, "build-1", 1)) == 1


def test_end_shipped_twice_counts_as_applied(line: Line, store: Store) -> None:
    ref = running(store)
    fill(line.spool.open(ref), [ended(Outcome.LOST)])
    attempts.end(store, ref, ended(Outcome.LOST))
    line.ship()
    [(_, result)] = line.told
    assert (result.applied, result.requeued) == (True, True)


def test_next_life_ships_what_a_crash_left_and_ends_the_attempt(line: Line, store: Store) -> None:
    ref = running(store)
    chunks = cut(b"one\ntwo\n", 4, step=1)
    fill(line.spool.open(ref), [begun(1), *chunks, over(1), ended(Outcome.FAILED)])
    line.begin_life()
    line.ship()
    assert stored(store) == chunks
    assert builds.get(store, "build-1").outcome is Outcome.FAILED
    assert [ref for ref, _ in line.told] == [ref]
    assert list((line.folder / "spool").iterdir()) == []


def test_next_life_ships_the_output_of_an_attempt_that_has_no_end(line: Line, store: Store) -> None:
    ref = running(store)
    chunks = cut(b"last words", step=1)
    fill(line.spool.open(ref), [begun(1), *chunks])
    line.begin_life()
    line.ship()
    assert stored(store) == chunks
    assert builds.get(store, "build-1").state is BuildState.RUNNING  # for the reaper to decide
    assert line.told == []
    assert list((line.folder / "spool").iterdir()) == []


def test_end_of_an_attempt_that_was_taken_away_changes_nothing(line: Line, store: Store) -> None:
    ref = running(store)
    lose(store)
    attempts.close_lost(store, ref, why="silent")
    log = line.spool.open(ref)
    fill(log, [*cut(b"late\n", step=1), ended(Outcome.PASSED)])
    line.ship()
    assert (log.result.applied, log.result.requeued) == (False, False)
    assert builds.get(store, "build-1").state is BuildState.QUEUED
    assert [chunk.data for chunk in stored(store)] == [b"late\n"]  # evidence, of attempt 1
    assert log.wait_ended(0)


def test_refused_record_is_set_aside_and_the_rest_arrives(
    line: Line, store: Store, forbid: Callable[[str, str], None]
) -> None:
    forbid("output_chunks", "seq = 5")
    chunks = cut(b"0\n1\n2\n3\n4\n5\n6\n7\n8\n9\n", *[2] * 9, step=1)
    log = line.spool.open(running(store))
    fill(log, [begun(1), *chunks, over(1), ended()])
    line.ship()
    assert [chunk.seq for chunk in stored(store)] == [0, 1, 2, 3, 4, 6, 7, 8, 9]
    assert builds.get(store, "build-1").state is BuildState.ENDED
    [path] = line.rejected()
    assert "build-1" in path.name
    assert disk.decode(path.read_bytes(), log.ref) == chunks[5]


def test_refused_record_holds_up_no_other_build(
    line: Line, store: Store, forbid: Callable[[str, str], None]
) -> None:
    forbid("steps", "step = 7")
    first, second = running(store), running(store, "build-2")
    fill(line.spool.open(first), [begun(7), ended()])
    fill(line.spool.open(second), [begun(1), *cut(b"fine\n", build_id="build-2", step=1), ended()])
    line.ship()
    assert [chunk.data for chunk in stored(store, "build-2")] == [b"fine\n"]
    assert {builds.get(store, name).state for name in ("build-1", "build-2")} == {BuildState.ENDED}
    assert len(line.rejected()) == 1


def test_refused_end_still_ends_the_build(
    line: Line, store: Store, forbid: Callable[[str, str], None]
) -> None:
    """Nobody else could: the shipper would stop, at every start of the agent anew."""
    forbid("attempts", "detail = 'poison'")
    log = line.spool.open(running(store))
    fill(log, [ended(Outcome.FAILED, detail="poison", message="words")])
    line.ship()
    build = builds.get(store, "build-1")
    assert (build.state, build.outcome) == (BuildState.ENDED, Outcome.FAILED)
    assert "refused" in (build.detail or "")
    assert log.wait_ended(0)
    assert len(line.rejected()) == 1


def test_refused_record_is_passed_over_where_it_can_not_be_set_aside(
    line: Line, store: Store, forbid: Callable[[str, str], None]
) -> None:
    forbid("output_chunks", "seq = 1")
    (line.folder / "rejected").write_text("a file where the folder should be")
    fill(line.spool.open(running(store)), [*cut(b"0\n1\n2\n", 2, 2, step=1), ended()])
    line.ship()
    assert [chunk.seq for chunk in stored(store)] == [0, 2]
    assert builds.get(store, "build-1").state is BuildState.ENDED


def test_shipping_is_counted(line: Line, store: Store) -> None:
    fill(
        line.spool.open(running(store)),
        [begun(1), *cut(b"one\ntwo\n", 4, step=1), over(1, masked_count=3), ended()],
    )
    line.ship()
    assert line.counted(gauge.OUTPUT_BYTES) == 8
    assert line.counted(gauge.OUTPUT_LINES) == 2
    assert line.counted(gauge.OUTPUT_MASKED) == 3


def test_attempts_end_only_after_all_their_output_is_stored(
    line: Line, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In small batches, a reader that sees the end sees every line."""
    monkeypatch.setattr(spools, "BATCH_BYTES", 200)
    chunks = cut(b"".join(b"%d\n" % number for number in range(100)), *[10] * 28, step=1)
    fill(line.spool.open(running(store)), [begun(1), *chunks, ended()])
    while line.spool.record_count:
        line.shipper.cycle(0)
        if builds.get(store, "build-1").state is BuildState.ENDED:
            assert stored(store) == chunks
    assert builds.get(store, "build-1").state is BuildState.ENDED


def test_nothing_to_ship_is_no_work(line: Line) -> None:
    line.shipper.cycle(0.01)
    assert line.told == []


# A database that is away.


@pytest.fixture
def far(
    postgres_server: PostgresServer, postgres_url: str, tmp_path: Path
) -> Iterator[tuple[Line, TcpProxy]]:
    """A line whose database is behind a proxy that can be cut."""
    with TcpProxy(("127.0.0.1", postgres_server.port)) as proxy:
        store = Store(make_url(postgres_url).set(port=proxy.port).render_as_string(hide_password=False))
        yield Line(store, tmp_path), proxy
        store.dispose()


def test_database_that_is_away_costs_no_record(far: tuple[Line, TcpProxy]) -> None:
    line, proxy = far
    ref = running(line.store)
    chunks = cut(b"one\ntwo\n", 4, step=1)
    log = line.spool.open(ref)
    fill(log, [begun(1), *chunks])
    proxy.cut()
    for _ in range(3):
        with pytest.raises(StoreUnavailable):
            line.shipper.cycle(0)
    fill(log, [over(1), ended(Outcome.PASSED)])
    assert line.spool.record_count == 5
    assert line.rejected() == []
    proxy.restore()
    line.ship()
    assert stored(line.store) == chunks
    assert builds.get(line.store, "build-1").outcome is Outcome.PASSED
    assert len(line.told) == 1


def test_shipment_whose_answer_is_lost_is_sent_again_and_its_end_told(
    far: tuple[Line, TcpProxy], monkeypatch: pytest.MonkeyPatch
) -> None:
    line, proxy = far
    ref = running(line.store)
    log = line.spool.open(ref)
    fill(log, [begun(1), *cut(b"one\n", step=1), ended(Outcome.PASSED)])
    ship = shipment.ship

    def ship_then_cut(*args: object) -> None:
        ship(*args)  # type: ignore[arg-type]
        proxy.cut()
        ship(*args)  # type: ignore[arg-type]  # for the shipper the first answer never came

    with monkeypatch.context() as patch:
        patch.setattr(shipment, "ship", ship_then_cut)
        with pytest.raises(StoreUnavailable):
            line.shipper.cycle(0)
    assert not log.wait_ended(0)
    assert line.spool.record_count == 3
    proxy.restore()
    line.ship()
    assert log.result.applied
    assert [chunk.data for chunk in stored(line.store)] == [b"one\n"]


def test_ends_of_two_attempts_in_one_batch_are_both_told(line: Line, store: Store) -> None:
    refs = [running(store), running(store, "build-2")]
    for ref in refs:
        fill(line.spool.open(ref), [ended(Outcome.PASSED)])
    line.shipper.cycle(0)
    assert [ref for ref, _ in line.told] == refs
    assert line.spool.record_count == 0


def test_stale_session_says_nothing_about_steps(line: Line, store: Store) -> None:
    ref = running(store)
    fill(
        line.spool.open(replace(ref, session="life-0")),
        [begun(1), AttemptEnded(outcome=Outcome.PASSED, detail=None, exit_code=0, ended_at=AT)],
    )
    line.ship()
    assert steps.list_steps(store, "build-1", 1) == []
    assert builds.get(store, "build-1").state is BuildState.RUNNING
