"""How one spool record lies on disk: a fixed header, then the payload.

Owns the bytes and nothing else: no files, no threads. A record that a crash tore, or that the disk changed,
is told from a whole one by its CRC-32, so that recovery stops exactly at the first byte it can't trust.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any

from agent.model.build import (
    AttemptEnded,
    AttemptRef,
    OutputAccount,
    OutputChunk,
    StepEnded,
    StepStarted,
)
from agent.model.outcome import Outcome

Record = StepStarted | StepEnded | AttemptEnded | OutputChunk

# CRC of all that follows it, magic, kind, 1 pad byte, payload bytes; step, seq, first line, line ends, µs.
_HEADER = struct.Struct("<I2sBxIIIQIq")
_MAGIC = b"BA"
_CHECKED_FROM = 4
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
HEADER_BYTES = _HEADER.size
_CHUNK, _STEP_STARTED, _STEP_ENDED, _ATTEMPT_ENDED = 1, 2, 3, 4
_EVENT_KINDS: dict[type[Record], int] = {
    StepStarted: _STEP_STARTED,
    StepEnded: _STEP_ENDED,
    AttemptEnded: _ATTEMPT_ENDED,
}


def encode(record: Record) -> tuple[bytes, bytes]:
    """Return header and payload of `record`, ready for one `writev`."""
    if isinstance(record, OutputChunk):
        payload = record.data
        # In whole numbers, exact for every instant: floats are so by luck.
        at_us = (record.at - _EPOCH) // _MICROSECOND
        fields = (record.step, record.seq, record.first_line, record.line_count, at_us)
        kind = _CHUNK
    else:
        payload = json.dumps(asdict(record), default=_plain).encode()
        fields = (0, 0, 0, 0, 0)
        kind = _EVENT_KINDS[type(record)]
    head = _HEADER.pack(0, _MAGIC, kind, len(payload), *fields)
    check = zlib.crc32(payload, zlib.crc32(head[_CHECKED_FROM:]))
    return _HEADER.pack(check, _MAGIC, kind, len(payload), *fields), payload


def decode(data: bytes, ref: AttemptRef) -> Record:
    """Return the one whole record that `data` holds.

    Raises: ValueError when it is torn, altered or of a form this version doesn't know.
    """
    if len(data) < HEADER_BYTES:
        raise ValueError("torn spool record")
    check, magic, kind, size, step, seq, first_line, line_count, at_us = _HEADER.unpack_from(data)
    payload = data[HEADER_BYTES:]
    if magic != _MAGIC or len(payload) != size:
        raise ValueError("torn spool record")
    if zlib.crc32(payload, zlib.crc32(data[_CHECKED_FROM:HEADER_BYTES])) != check:
        raise ValueError("spool record with a wrong checksum")
    if kind == _CHUNK:
        return OutputChunk(
            build_id=ref.build_id,
            attempt=ref.number,
            step=step,
            seq=seq,
            first_line=first_line,
            line_count=line_count,
            at=_EPOCH + at_us * _MICROSECOND,
            data=payload,
        )
    return _event(kind, json.loads(payload))


def scan(data: bytes, ref: AttemptRef) -> Iterator[tuple[int, int, Record]]:
    """Yield (offset, size, record) of each whole record in `data`; end at the first that is not whole."""
    offset = 0
    while offset + HEADER_BYTES <= len(data):
        size = HEADER_BYTES + _HEADER.unpack_from(data, offset)[3]
        try:
            record = decode(data[offset : offset + size], ref)
        except (ValueError, KeyError, TypeError):
            return
        yield offset, size, record
        offset += size


def _event(kind: int, fields: dict[str, Any]) -> Record:
    for name in ("started_at", "ended_at"):
        if name in fields:
            fields[name] = datetime.fromisoformat(fields[name])
    if "outcome" in fields:
        fields["outcome"] = Outcome(fields["outcome"])
    if kind == _STEP_STARTED:
        return StepStarted(**fields)
    if kind == _STEP_ENDED:
        return StepEnded(**{**fields, "account": OutputAccount(**fields["account"])})
    if kind == _ATTEMPT_ENDED:
        return AttemptEnded(**fields)
    raise ValueError(f"spool record of an unknown kind {kind}")


def _plain(value: object) -> str:
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(type(value).__name__)
