"""How times, sizes, outcomes and ids read to people. Pure functions; knows no database and no terminal."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from agent.model.build import Build, OutputAccount
from agent.model.outcome import Outcome, TimeoutKind

_TIMEOUTS = {
    TimeoutKind.NO_OUTPUT: "it printed nothing for too long",
    TimeoutKind.STEP: "the step ran longer than it may",
    TimeoutKind.BUILD: "the build ran longer than it may",
}
_WORDS = {
    Outcome.PASSED: "passed",
    Outcome.FAILED: "failed",
    Outcome.TIMED_OUT: "timed out",
    Outcome.CANCELLED: "cancelled",
    Outcome.SKIPPED: "skipped",
    Outcome.LOST: "was lost with its server",
    Outcome.PREEMPTED: "was given back by its server",
    Outcome.REFUSED: "refused",
    Outcome.OUT_OF_MEMORY: "ran out of memory",
    Outcome.DISK_FULL: "met a full disk",
    Outcome.OUTPUT_LIMIT: "printed more than it may",
    Outcome.INFRASTRUCTURE: "failed by the server's fault",
}
_SHORT_ID = 8


def duration(seconds: float) -> str:
    """Return a span as people say it: `0.3 s`, `41 s`, `3 min 07 s`, `2 h 05 min`, `3 d 4 h`."""
    seconds = max(0.0, seconds)
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    minutes = whole // 60
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60:02} min"
    return f"{minutes // 1440} d {minutes % 1440 // 60} h"


def ago(at: datetime, now: datetime) -> str:
    """Return how long ago an instant was, in one unit."""
    seconds = max(0.0, (now - at).total_seconds())
    for limit, size, unit in ((90, 1, "s"), (5400, 60, "min"), (129_600, 3600, "h")):
        if seconds < limit:
            return f"{round(seconds / size)} {unit} ago"
    return f"{round(seconds / 86_400)} d ago"


def local(at: datetime, *, has_date: bool = True) -> str:
    """Return an instant in the zone of whoever reads it."""
    return at.astimezone().strftime("%Y-%m-%d %H:%M:%S" if has_date else "%H:%M:%S")


def clock_face(seconds: float) -> str:
    """Return seconds as a stopwatch shows them: `0:07`, `12:40`, `1:02:03`."""
    whole = int(max(0.0, seconds))
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"


def size(count: int) -> str:
    """Return bytes in the unit that gives the shortest number."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{count} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def count(number: int, noun: str) -> str:
    """Return a number with its noun, in the plural unless it is one."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def outcome(result: Outcome, detail: str | None) -> str:
    """Return a reason in plain words: what happened, and to what."""
    words = _WORDS[result]
    if not detail or detail == result:
        return words
    place, _, kind = detail.rpartition(": ")
    if result is Outcome.TIMED_OUT and kind in _TIMEOUTS:
        why = _TIMEOUTS[TimeoutKind(kind)]
        return f"{words}: {place}: {why}" if place else f"{words}: {why}"
    if result is Outcome.CANCELLED and detail.startswith(("by ", words)):
        return detail if detail.startswith(words) else f"{words} {detail}"
    return f"{words}: {detail}"


def state(build: Build) -> str:
    """Return how a build stands in a word or two."""
    if build.outcome is not None:
        return build.outcome.replace("_", " ")
    if build.cancel_requested_at is not None:
        return "cancelling"
    return build.state


def source(build: Build) -> str:
    """Return where a build's source comes from: repository or folder, branch, commit."""
    found = build.definition.get("source")
    where = (found.get("git") or found.get("directory") or "") if isinstance(found, dict) else ""
    branch = f"branch {build.branch}" if build.branch else ""
    commit = f"commit {build.commit}" if build.commit else ""
    return ", ".join(part for part in (where, branch, commit) if part)


def account(it: OutputAccount) -> str:
    """Return what became of a step's output; what was masked or cut only if anything was."""
    if not it.bytes_produced:
        return "no output"
    parts = [count(it.lines_produced, "line"), size(it.bytes_produced)]
    if it.masked_count:
        parts.append(f"{it.masked_count:,} masked")
    if it.bytes_cut:
        parts.append(f"{size(it.bytes_cut)} cut in {count(it.lines_cut, 'line')}")
    return ", ".join(parts)


def one_line(text: str, limit: int = 0) -> str:
    """Return text in one line that steers no terminal, cut to `limit` characters if that is not 0."""
    shown = "".join(c if c.isprintable() else " " for c in " ".join(text.split()))
    return shown if not limit or len(shown) <= limit else shown[: limit - 1] + "\N{HORIZONTAL ELLIPSIS}"


def short_ids(ids: Sequence[str]) -> dict[str, str]:
    """Return for each id the shortest beginning, of 8 characters or more, that tells it from the others."""
    ordered = sorted(ids)
    short = {}
    for i, it in enumerate(ordered):
        neighbours = ordered[max(0, i - 1) : i] + ordered[i + 1 : i + 2]
        shared = max((_shared(it, other) for other in neighbours if other != it), default=0)
        short[it] = it[: max(_SHORT_ID, shared + 1)]
    return short


def short_id(build_id: str) -> str:
    """Return an id as people type it."""
    return build_id[:_SHORT_ID]


def _shared(one: str, other: str) -> int:
    return next(
        (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )
