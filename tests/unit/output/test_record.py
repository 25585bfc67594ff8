"""Spool records: what is written comes back exactly, and what is torn or altered is never taken for whole."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from agent.model.build import (
    AttemptEnded,
    AttemptRef,
    OutputAccount,
    OutputChunk,
    StepEnded,
    StepStarted,
)
from agent.model.outcome import Outcome
from agent.output.record import HEADER_BYTES, Record, decode, encode, scan

# A machine under load takes its time; what is found has to hold at any speed.
patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

REF = AttemptRef(build_id="build-1", number=7, session="life-1")
AT = datetime(2026, 5, 4, 3, 2, 1, 987654, tzinfo=UTC)

_instants = st.datetimes(timezones=st.sampled_from([UTC, timezone(timedelta(hours=-9, minutes=-30))]))
_text = st.text(st.characters(exclude_categories=()), max_size=30)  # surrogates too: names come from anywhere
_sizes = st.integers(0, 2**32 - 1)
_wide = st.integers(0, 2**63 - 1)
_exit_codes = st.none() | st.integers(-255, 255)
_outcomes = st.sampled_from(Outcome)

_chunks = st.builds(
    OutputChunk,
    build_id=st.just(REF.build_id),
    attempt=st.just(REF.number),
    step=_sizes,
    seq=_sizes,
    first_line=_wide,
    line_count=_sizes,
    at=_instants,
    data=st.binary(max_size=300),
)
_started = st.builds(
    StepStarted,
    step=_sizes,
    pipeline=_text,
    pipeline_class=_text,
    name=_text,
    command=_text,
    started_at=_instants,
)
_accounts = st.builds(
    OutputAccount,
    bytes_produced=_wide,
    lines_produced=_wide,
    bytes_stored=_wide,
    lines_stored=_wide,
    bytes_cut=_wide,
    lines_cut=_wide,
    masked_count=_wide,
)
_step_ended = st.builds(
    StepEnded,
    step=_sizes,
    outcome=_outcomes,
    detail=st.none() | _text,
    exit_code=_exit_codes,
    ended_at=_instants,
    account=_accounts,
)
_attempt_ended = st.builds(
    AttemptEnded,
    outcome=_outcomes,
    detail=st.none() | _text,
    exit_code=_exit_codes,
    ended_at=_instants,
    commit=st.none() | _text,
    message=st.none() | _text,
)
_records: st.SearchStrategy[Record] = st.one_of(_chunks, _started, _step_ended, _attempt_ended)

SAMPLES: list[Record] = [
    StepStarted(step=1, pipeline="main", pipeline_class="build", name="n", command="c", started_at=AT),
    OutputChunk(
        build_id="build-1", attempt=7, step=1, seq=0, first_line=1, line_count=1, at=AT, data=b"one\nt"
    ),
    StepEnded(
        step=1,
        outcome=Outcome.FAILED,
        detail="exit code 3",
        exit_code=3,
        ended_at=AT,
        account=OutputAccount(bytes_produced=5, lines_produced=2),
    ),
    AttemptEnded(outcome=Outcome.FAILED, detail=None, exit_code=3, ended_at=AT, commit="abc"),
]


def whole(record: Record) -> bytes:
    return b"".join(encode(record))


@patient
@given(record=_records)
@example(record=SAMPLES[1])
def test_record_comes_back_exactly(record: Record) -> None:
    assert decode(whole(record), REF) == record


@patient
@given(at=st.datetimes(timezones=st.just(UTC)))
def test_instant_of_a_chunk_keeps_its_microseconds(at: datetime) -> None:
    chunk = OutputChunk(
        build_id="build-1", attempt=7, step=0, seq=0, first_line=1, line_count=0, at=at, data=b"x"
    )
    back = decode(whole(chunk), REF)
    assert isinstance(back, OutputChunk)
    assert back.at == at


@patient
@given(records=st.lists(_records, max_size=6), junk=st.binary(max_size=2))
def test_scan_finds_every_record_where_it_lies(records: list[Record], junk: bytes) -> None:
    data = b"".join(map(whole, records)) + junk
    found = list(scan(data, REF))
    assert [record for _, _, record in found] == records
    assert all(decode(data[offset : offset + size], REF) == record for offset, size, record in found)


@pytest.mark.parametrize("record", SAMPLES, ids=lambda record: type(record).__name__)
def test_torn_record_is_refused_at_every_length(record: Record) -> None:
    data = whole(record)
    for length in range(len(data)):
        with pytest.raises(ValueError, match="torn"):
            decode(data[:length], REF)


@pytest.mark.parametrize("record", SAMPLES, ids=lambda record: type(record).__name__)
def test_record_with_any_single_bit_turned_is_refused(record: Record) -> None:
    data = whole(record)
    for place in range(len(data)):
        for bit in range(8):
            altered = bytearray(data)
            altered[place] ^= 1 << bit
            with pytest.raises(ValueError, match=r"torn|checksum"):
                decode(bytes(altered), REF)


def test_scan_ends_at_the_first_altered_record() -> None:
    parts = [whole(record) for record in SAMPLES]
    start = len(parts[0])
    for place in range(start, start + len(parts[1])):
        data = bytearray(b"".join(parts))
        data[place] ^= 0x10
        assert [record for _, _, record in scan(bytes(data), REF)] == SAMPLES[:1]


@patient
@given(data=st.binary(max_size=200))
def test_scan_of_anything_finds_nothing_and_raises_nothing(data: bytes) -> None:
    assert list(scan(data, REF)) == []


def test_header_is_small_beside_a_full_chunk() -> None:
    """A spool of full chunks costs the disk what the output is, and next to nothing more."""
    assert HEADER_BYTES * 1000 < 65536
