"""Librato's rules as pure functions: names, sources, measurements, annotations, Retry-After.

Source: Librato's API for source metrics (http://api-docs-archive.librato.com/). Knows no socket and no
    thread.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from agent.metrics.reading import CounterValue, Reading, TimingInterval

# "Must be 255 or fewer characters, and may only consist of 'A-Za-z0-9.:-_'", metric names and sources alike.
NAME_LIMIT = 255
_FORBIDDEN = re.compile(r"[^A-Za-z0-9.:_-]")
# "The word all is reserved and cannot be used as user source"; the namespace is case insensitive.
_RESERVED_SOURCE = "all"
# Librato states no limit for texts. A title is one line of a graph; a description has room for a commit
# message.
TITLE_LIMIT = 255
DESCRIPTION_LIMIT = 4096
# "If the base-10 exponent of any floating point value is larger than 1 x 10^126, the request will be aborted
# with a 400": one such number would take 299 good ones with it.
_LARGEST = 1e126


def clean_name(text: str) -> str:
    """Return `text` as a metric name that Librato takes, never empty.

    A name that is too long keeps its beginning and gets a digest of the whole, so that two of them stay two.
    """
    name = _FORBIDDEN.sub("_", text) or "unnamed"
    if len(name) <= NAME_LIMIT:
        return name
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    return f"{name[: NAME_LIMIT - len(digest) - 1]}-{digest}"


def clean_source(text: str) -> str:
    """Return `text` as a source that Librato takes, never empty and never the reserved `all`."""
    source = clean_name(text)
    return f"{source}_" if source.lower() == _RESERVED_SOURCE else source


def encode_gauges(readings: Iterable[Reading], *, source: str, at: datetime) -> list[str]:
    """Return each reading as one JSON object of Librato's `gauges` list.

    A counter goes out as its growth over the interval, with the attribute that makes Librato add up instead
    of average when it rolls intervals together; so intervals and servers add up, over restarts of the agent
    too.

    Args:
        source: as `clean_source` returns it.
        at: when the readings were taken; Librato knows whole seconds.
    """
    stamp = int(at.timestamp())
    pieces: list[str] = []
    for reading in readings:
        measure: dict[str, Any] = {"name": clean_name(reading.dotted_name)}
        if isinstance(reading, TimingInterval):
            measure |= {"count": reading.count, "sum": reading.sum, "min": reading.min, "max": reading.max}
            measure["sum_squares"] = reading.sum_squares
        elif isinstance(reading, CounterValue):
            measure |= {"value": reading.increase, "attributes": {"summarize_function": "sum"}}
        else:
            measure["value"] = reading.value
        if all(_is_sendable(value) for value in measure.values()):
            measure |= {"source": source, "measure_time": stamp}
            pieces.append(json.dumps(measure, separators=(",", ":"), allow_nan=False))
    return pieces


def join_gauges(pieces: Sequence[str]) -> bytes:
    """Return the body of one POST with the measurements `encode_gauges` made."""
    return ('{"gauges":[' + ",".join(pieces) + "]}").encode("ascii")


def encode_annotation(
    *, title: str, description: str, source: str, start_at: datetime, end_at: datetime | None
) -> bytes:
    """Return the body that creates one annotation event. Texts are cut to the limits above."""
    event: dict[str, Any] = {
        "title": title[:TITLE_LIMIT] or "untitled",
        "source": source,
        "start_time": int(start_at.timestamp()),
    }
    if end_at is not None:
        # A clock that was set back in between must not make an event that ends before it starts.
        event["end_time"] = max(int(end_at.timestamp()), event["start_time"])
    if description:
        event["description"] = description[:DESCRIPTION_LIMIT]
    return json.dumps(event, separators=(",", ":")).encode("ascii")


def retry_after_s(headers: Mapping[str, str], *, now: datetime) -> float | None:
    """Return the seconds a response asks to wait, None when it does not or not readably.

    Source: RFC 9110, 10.2.3: a number of seconds or a date.
    """
    text = headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        when = parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError):  # the last two: what older email.utils raise for half a date
        return None
    if when.tzinfo is None:  # "-0000" and dates without a zone; HTTP dates are UTC
        when = when.replace(tzinfo=UTC)
    return max(0.0, (when - now).total_seconds())


def _is_sendable(value: object) -> bool:
    return not isinstance(value, float | int) or (math.isfinite(value) and abs(value) <= _LARGEST)
