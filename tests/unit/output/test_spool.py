"""The spool: order, accounts, bounds, and what a crash at any byte leaves."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest

from agent.model.build import (
    AttemptEnded,
    AttemptRef,
    OutputAccount,
    OutputChunk,
    StepEnded,
    StepStarted,
)
from agent.model.outcome import Outcome
from agent.output import spool as spools
from agent.output.record import Record
from agent.output.spool import AttemptLog, Spool
from tests.services import wait_until

AT = datetime(2026, 5, 4, 3, 2, 1, 987654, tzinfo=UTC)
REF = AttemptRef(build_id="build-1", number=1, session="life-1")
BIG = 1 << 30
ENDED = AttemptEnded(outcome=Outcome.PASSED, detail=None, exit_code=0, ended_at=AT)
STEP_ENDED = StepEnded(
    step=1, outcome=Outcome.PASSED, detail=None, exit_code=0, ended_at=AT, account=OutputAccount()
)


def begun(step: int = 1) -> StepStarted:
    return StepStarted(
        step=step, pipeline="main", pipeline_class="build", name="n", command="c", started_at=AT
    )


def chunk(seq: int, data: bytes = b"line\n", ref: AttemptRef = REF, step: int = 1) -> OutputChunk:
    return OutputChunk(
        build_id=ref.build_id,
        attempt=ref.number,
        step=step,
        seq=seq,
        first_line=seq + 1,
        line_count=data.count(b"\n"),
        at=AT,
        data=data,
    )


def fill(log: AttemptLog, records: Sequence[Record]) -> list[Record]:
    for record in records:
        log.append(record)
    return list(records)


def empty(spool: Spool) -> dict[str, list[Record]]:
    """Take all that is in the spool, as the shipper does; records by build."""
    taken: dict[str, list[Record]] = {}
    while spool.record_count:
        for batch in spool.take(0):
            taken.setdefault(batch.log.ref.build_id, []).extend(batch.records)
            spool.done(batch)
    return taken


def segments(root: Path) -> list[Path]:
    return sorted(root.glob("*/*.seg"))


def disk_bytes(root: Path) -> int:
    return sum(path.stat().st_size for path in segments(root))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "spool"


@pytest.fixture
def spool(root: Path) -> Spool:
    return Spool(root, limit_bytes=BIG)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Give a real file system of 256 KiB."""
    if os.geteuid() != 0 or not shutil.which("mount"):
        pytest.skip("needs root to mount a small file system")
    path = tmp_path / "disk"
    path.mkdir()
    options = ["-t", "tmpfs", "-o", "size=256k", "spool-test", str(path)]
    if subprocess.run(["mount", *options], capture_output=True, check=False).returncode != 0:
        pytest.skip("needs root and the right to mount a small file system")
    yield path
    subprocess.run(["umount", "--lazy", str(path)], check=True)


# Order and turns.


def test_records_come_out_in_the_order_they_went_in(spool: Spool) -> None:
    records = fill(spool.open(REF), [begun(), *(chunk(seq) for seq in range(50)), STEP_ENDED, ENDED])
    assert empty(spool) == {"build-1": records}


def test_records_of_threads_are_all_there_and_each_threads_in_order(spool: Spool) -> None:
    log = spool.open(REF)
    writers = [
        threading.Thread(target=fill, args=(log, [chunk(seq, step=step) for seq in range(200)]))
        for step in range(4)
    ]
    for writer in writers:
        writer.start()
    taken: list[Record] = []
    while any(writer.is_alive() for writer in writers) or spool.record_count:
        for batch in spool.take(0.05):
            taken += batch.records
            spool.done(batch)
    chunks = [record for record in taken if isinstance(record, OutputChunk)]
    for step in range(4):
        assert [item.seq for item in chunks if item.step == step] == list(range(200))


def test_batches_take_turns(spool: Spool) -> None:
    """A quiet build's line waits for no more than a turn of the loud ones, however many they are."""
    loud = [AttemptRef(build_id=f"loud-{number}", number=1, session="life-1") for number in range(12)]
    for ref in loud:
        fill(spool.open(ref), [chunk(seq, b"x" * 60_000, ref) for seq in range(12)])
    quiet = AttemptRef(build_id="quiet", number=1, session="life-1")
    fill(spool.open(quiet), [chunk(0, b"hello\n", quiet)])
    shipped: list[str] = []
    for _ in range(4):
        for batch in spool.take(0):
            shipped.append(batch.log.ref.build_id)
            spool.done(batch)
    assert "quiet" in shipped
    assert set(shipped) > {ref.build_id for ref in loud}
    assert set(empty(spool)) == {ref.build_id for ref in loud}


def test_batches_are_small_while_several_attempts_run(spool: Spool) -> None:
    """A line waits for the batch under way: a neighbour's must be over soon, also if it alone has something to say."""
    loud = AttemptRef(build_id="loud", number=1, session="life-1")
    loud_log, other_log = spool.open(loud), spool.open(REF)
    fill(loud_log, [chunk(seq, b"x" * 60_000, loud) for seq in range(40)])
    [batch] = spool.take(0)
    assert batch.size_bytes <= spools.SHARED_BATCH_BYTES
    spool.close_log(other_log)
    [batch] = spool.take(0)
    assert batch.size_bytes > spools.SHARED_BATCH_BYTES


def test_batch_holds_at_least_one_record_however_large(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spools, "BATCH_BYTES", 100)
    fill(spool.open(REF), [chunk(0, b"x" * 5000), chunk(1, b"y" * 5000)])
    [batch] = spool.take(0)
    assert batch.records == [chunk(0, b"x" * 5000)]


def test_what_is_taken_and_not_done_is_taken_again(spool: Spool) -> None:
    records = fill(spool.open(REF), [begun(), chunk(0)])
    [first] = spool.take(0)
    [again] = spool.take(0)
    assert list(first.records) == list(again.records) == records
    assert spool.record_count == 2


def test_record_that_comes_while_a_batch_ships_stays(spool: Spool) -> None:
    log = spool.open(REF)
    fill(log, [chunk(0)])
    [batch] = spool.take(0)
    log.append(chunk(1))
    spool.done(batch)
    assert not log.is_empty
    assert empty(spool) == {"build-1": [chunk(1)]}


def test_take_is_woken_by_a_record(spool: Spool) -> None:
    log = spool.open(REF)
    taken: list[Record] = []

    def take() -> None:
        for batch in spool.take(30):
            taken.extend(batch.records)

    taker = threading.Thread(target=take)
    taker.start()
    log.append(begun())
    taker.join(10)
    assert not taker.is_alive()
    assert taken == [begun()]


def test_take_of_an_empty_spool_ends_with_nothing(spool: Spool) -> None:
    spool.open(REF)
    assert spool.take(0.01) == []


# Bounds and accounts.


def test_accounts_are_zero_again_when_all_is_shipped(spool: Spool) -> None:
    fill(spool.open(REF), [begun(), *(chunk(seq, b"x" * 1000) for seq in range(100)), ENDED])
    assert spool.record_count == 102
    assert spool.used_bytes > 100_000
    empty(spool)
    assert (spool.record_count, spool.used_bytes, spool.cached_bytes) == (0, 0, 0)


def test_room_ends_at_the_limit_and_comes_back(root: Path) -> None:
    spool = Spool(root, limit_bytes=10_000)
    log = spool.open(REF)
    count = 0
    while spool.has_room:
        log.append(chunk(count, b"x" * 900))
        count += 1
    assert 10_000 <= spool.used_bytes < 11_000
    assert spool.used_share >= 1.0
    [batch] = spool.take(0)
    spool.done(batch)
    assert spool.has_room
    assert len(batch.records) == count


def test_cache_is_bounded_and_the_rest_is_read_from_disk(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spools, "CACHE_BYTES", 5000)
    records = fill(spool.open(REF), [chunk(seq, bytes([seq]) * 1000) for seq in range(40)])
    assert 0 < spool.cached_bytes <= 5000
    assert empty(spool) == {"build-1": records}
    assert spool.cached_bytes == 0


def test_segments_are_freed_as_they_are_shipped(
    spool: Spool, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spools, "SEGMENT_BYTES", 4000)
    monkeypatch.setattr(spools, "BATCH_BYTES", 4000)
    records = fill(spool.open(REF), [chunk(seq, b"x" * 1000) for seq in range(40)])
    before = len(segments(root))
    assert before >= 8
    taken: list[Record] = []
    left = []
    while spool.record_count:
        [batch] = spool.take(0)
        taken += batch.records
        spool.done(batch)
        left.append(len(segments(root)))
    assert left == sorted(left, reverse=True)
    assert left[-1] == 1  # the one that is written to
    assert taken == records


def test_closed_log_leaves_nothing_on_disk_and_no_descriptor(spool: Spool, root: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for number in range(1, 21):
        log = spool.open(AttemptRef(build_id="build-1", number=number, session="life-1"))
        fill(log, [begun(), ENDED])
        [batch] = spool.take(0)
        spool.done(batch)
        spool.close_log(log)
    assert list(root.iterdir()) == []
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_log_closed_with_records_in_it_is_not_taken_any_more(spool: Spool) -> None:
    log = spool.open(REF)
    fill(log, [begun()])
    spool.close_log(log)
    assert spool.take(0.01) == []


def test_waiting_for_an_empty_spool_tells_whether_it_is(spool: Spool) -> None:
    fill(spool.open(REF), [begun()])
    assert not spool.wait_empty(0.02)
    empty(spool)
    assert spool.wait_empty(0.02)


def test_end_is_waited_for_with_what_the_database_said(spool: Spool) -> None:
    log = spool.open(REF)
    assert not log.wait_ended(0.01)
    log.set_ended("requeued")
    assert log.wait_ended(0.01)
    assert log.result == "requeued"


# Names.


@pytest.mark.parametrize(
    "build_id",
    ["../../etc/passwd", ".", "a/b", "x" * 5000, "ä" * 200, "-rf", "a~1~life", "new\nline"],
    ids=range(8),
)
def test_any_build_id_makes_a_folder_inside_the_spool(root: Path, build_id: str) -> None:
    ref = AttemptRef(build_id=build_id, number=3, session="0123456789abcdef" * 2)
    log = Spool(root, limit_bytes=BIG).open(ref)
    fill(log, [begun(), ENDED])
    [folder] = root.iterdir()
    assert len(os.fsencode(folder.name)) <= 255
    [found] = Spool(root, limit_bytes=BIG).recover()
    assert found.ref == ref


def test_long_build_ids_that_begin_alike_have_logs_of_their_own(spool: Spool, root: Path) -> None:
    for end in "ab":
        spool.open(AttemptRef(build_id="x" * 400 + end, number=1, session="life-1"))
    assert len(list(root.iterdir())) == 2


# Recovery.


def test_next_life_ships_what_the_former_left_and_deletes_it(spool: Spool, root: Path) -> None:
    records = fill(spool.open(REF), [begun(), chunk(0), STEP_ENDED, ENDED])
    second = Spool(root, limit_bytes=BIG)
    [log] = second.recover()
    assert (log.ref, log.is_former) == (REF, True)
    assert second.record_count == 4
    assert second.used_bytes == disk_bytes(root)
    assert empty(second) == {"build-1": records}
    assert list(root.iterdir()) == []


def test_former_log_without_an_end_is_shipped_once_not_at_every_start(spool: Spool, root: Path) -> None:
    """A crash in mid build leaves no end; the log must not stay on disk for good because of that."""
    fill(spool.open(REF), [begun(), chunk(0)])
    second = Spool(root, limit_bytes=BIG)
    second.recover()
    assert len(empty(second)["build-1"]) == 2
    assert Spool(root, limit_bytes=BIG).recover() == []
    assert list(root.iterdir()) == []


def test_former_log_without_a_record_is_deleted(spool: Spool, root: Path) -> None:
    spool.open(REF)
    assert Spool(root, limit_bytes=BIG).recover() == []
    assert list(root.iterdir()) == []


def test_folder_without_its_ref_is_deleted(root: Path) -> None:
    for name, text in (("torn~1~life", '{"build": "b'), ("empty~1~life", ""), ("odd~1~life", "[1]")):
        (root / name).mkdir(parents=True)
        (root / name / "ref.json").write_text(text)
    (root / "bare~1~life").mkdir()
    assert Spool(root, limit_bytes=BIG).recover() == []
    assert list(root.iterdir()) == []


def test_two_lives_of_one_build_are_kept_apart(root: Path) -> None:
    first = AttemptRef(build_id="build-1", number=1, session="life-1")
    second = AttemptRef(build_id="build-1", number=2, session="life-2")
    fill(Spool(root, limit_bytes=BIG).open(first), [chunk(0, b"first\n", first)])
    spool = Spool(root, limit_bytes=BIG)
    spool.recover()
    fill(spool.open(second), [chunk(0, b"second\n", second)])
    taken = {}
    while spool.record_count:
        for batch in spool.take(0):
            chunks = [record for record in batch.records if isinstance(record, OutputChunk)]
            taken[batch.log.ref] = [item.data for item in chunks]
            spool.done(batch)
    assert taken == {first: [b"first\n"], second: [b"second\n"]}


def test_crash_at_any_byte_keeps_every_record_that_was_whole(tmp_path: Path) -> None:
    source = tmp_path / "source"
    records: list[Record] = [begun(), chunk(0, b"one\n"), chunk(1, b"two\n"), STEP_ENDED, ENDED]
    spool = Spool(source, limit_bytes=BIG)
    log = spool.open(REF)
    ends = []
    for record in records:
        log.append(record)
        ends.append(disk_bytes(source))
    [segment] = segments(source)
    data = segment.read_bytes()
    assert len(data) == ends[-1]
    for length in range(len(data) + 1):
        root = tmp_path / str(length)
        folder = root / segment.parent.name
        folder.mkdir(parents=True)
        shutil.copyfile(segment.parent / "ref.json", folder / "ref.json")
        (folder / segment.name).write_bytes(data[:length])
        expected = [record for record, end in zip(records, ends, strict=True) if end <= length]
        found = Spool(root, limit_bytes=BIG)
        found.recover()
        assert empty(found).get("build-1", []) == expected, length


def test_altered_segment_loses_what_follows_in_it_and_nothing_else(
    spool: Spool, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spools, "SEGMENT_BYTES", 3000)
    fill(spool.open(REF), [chunk(seq, b"x" * 1000) for seq in range(9)])
    paths = segments(root)
    assert len(paths) == 3
    data = bytearray(paths[1].read_bytes())
    data[len(data) // 2] ^= 1
    paths[1].write_bytes(data)
    found = Spool(root, limit_bytes=BIG)
    found.recover()
    taken = [record.seq for record in empty(found)["build-1"] if isinstance(record, OutputChunk)]
    assert taken == [0, 1, 2, 3, 6, 7, 8]


# A disk that is full.


def test_record_that_the_disk_refuses_is_kept_and_stops_the_producers(
    spool: Spool, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = spool.open(REF)
    fill(log, [begun()])
    with monkeypatch.context() as patch:
        patch.setattr(os, "writev", _refuse)
        log.append(chunk(0))
        assert not spool.has_room
    log.append(chunk(1))
    assert not spool.has_room  # what lives in memory alone has to go first
    assert empty(spool) == {"build-1": [begun(), chunk(0), chunk(1)]}
    assert spool.has_room
    assert (spool.used_bytes, spool.cached_bytes) == (0, 0)
    assert disk_bytes(root) > 0


def _refuse(_descriptor: int, _buffers: object) -> int:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_record_half_written_is_taken_off_the_disk_again(
    spool: Spool, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = spool.open(REF)
    fill(log, [begun()])
    before = disk_bytes(root)
    with monkeypatch.context() as patch:
        patch.setattr(os, "writev", lambda descriptor, buffers: os.write(descriptor, buffers[0]))
        log.append(chunk(0))
    assert disk_bytes(root) == before
    log.append(chunk(1))
    found = Spool(root, limit_bytes=BIG)
    found.recover()
    assert empty(found) == {"build-1": [begun(), chunk(1)]}


def test_real_full_disk_loses_nothing_while_the_agent_lives(small_disk: Path) -> None:
    root = small_disk / "spool"
    spool = Spool(root, limit_bytes=BIG)
    log = spool.open(REF)
    records: list[Record] = []
    while spool.has_room:
        assert len(records) < 1000
        records += fill(log, [chunk(len(records), os.urandom(5000))])
    records += fill(log, [STEP_ENDED, ENDED])
    # The space is back, and the last record takes its place behind those that live in memory.
    assert not spool.has_room
    assert empty(spool) == {"build-1": records}
    assert spool.has_room
    spool.close_log(log)
    assert list(root.iterdir()) == []


def test_full_disk_refuses_a_new_log_and_leaves_no_folder(small_disk: Path) -> None:
    root = small_disk / "spool"
    spool = Spool(root, limit_bytes=BIG)
    descriptor = os.open(small_disk / "ballast", os.O_WRONLY | os.O_CREAT)
    while os.statvfs(small_disk).f_bavail:
        os.write(descriptor, b"x" * 4096)
    os.close(descriptor)
    with pytest.raises(OSError, match="No space") as caught:
        spool.open(REF)
    assert caught.value.errno == errno.ENOSPC
    assert list(root.iterdir()) == []


def test_segment_that_can_not_be_made_is_tried_again_with_the_next_record(spool: Spool, root: Path) -> None:
    log = spool.open(REF)
    [folder] = root.iterdir()
    (folder / "000001.seg").mkdir()
    log.append(begun())
    assert not spool.has_room
    log.append(chunk(0))
    assert [path.name for path in segments(root) if path.is_file()] == ["000002.seg"]
    assert empty(spool) == {"build-1": [begun(), chunk(0)]}
    assert spool.has_room


def test_shipper_and_producers_share_the_spool_without_losing_count(spool: Spool) -> None:
    """Four attempts write, one reader ships; at the end every account is zero."""
    refs = [AttemptRef(build_id=f"build-{number}", number=1, session="life-1") for number in range(4)]

    def produce(ref: AttemptRef) -> None:
        log = spool.open(ref)
        for seq in range(300):
            log.append(chunk(seq, b"x" * 100, ref))

    writers = [threading.Thread(target=produce, args=(ref,)) for ref in refs]
    for writer in writers:
        writer.start()
    seen: dict[str, list[int]] = {ref.build_id: [] for ref in refs}

    def is_all_there() -> bool:
        for batch in spool.take(0.01):
            seen[batch.log.ref.build_id] += [
                record.seq for record in batch.records if isinstance(record, OutputChunk)
            ]
            spool.done(batch)
        return sum(map(len, seen.values())) == 1200

    wait_until(is_all_there, 30, "all records")
    for writer in writers:
        writer.join()
    assert all(seqs == list(range(300)) for seqs in seen.values())
    assert (spool.record_count, spool.used_bytes, spool.cached_bytes) == (0, 0, 0)
