"""Masks secrets in the bytes that steps print, before anything else sees them.

Owns which forms of a secret are looked for and how they are found in a stream that arrives in pieces. Knows
nothing of where secrets come from or of lines and chunks.

How it works. Every form of every secret is a *needle*. A byte of the stream is masked when an occurrence of
any needle covers it, and each longest run of masked bytes becomes one mask; line ends within a run are kept,
so that the lines of the redacted output are the lines of the output. That rule looks at bytes only, never at
the pieces they came in, so the result is the same for every split (F23).

The automaton (Aho-Corasick, as a DFA) knows only the first `ANCHOR_BYTES` of each needle and the few places
it finds are then compared with the needles whole. So its size does not depend on how long the needles are,
and the same search finds the tail that must be held back: the earliest place from where on the buffer is a
beginning of some needle.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable, Iterator
from typing import Final

from ahocorasick_rs import BytesAhoCorasick, Implementation, MatchKind

from agent.output.needle import is_common, needles_of

# Long enough that ordinary text seldom holds the beginning of a needle, short enough that the automaton of 50
# secrets (some 500 needles, 5,000 states) stays in the processor's cache. 8, 12 and 16 measured alike.
ANCHOR_BYTES: Final = 12
# Bounds the list of places the search returns: a secret of one repeated character is found at every byte.
PIECE_BYTES: Final = 65536
# How many patterns one quick search takes, and how many such searches are quicker than the automaton.
QUICK_PATTERNS: Final = 60
QUICK_SEARCHES: Final = 8
# Raw bytes remembered after they were let out, for a secret registered between its first byte and its last.
LOOKBACK_BYTES: Final = 4096

MASKS: Final = (b"[masked]", b"(masked)", b"<masked>", b"{masked}", b"***", b"|masked|", b"~~~", b"///")


class Redactor:
    """The secrets of one build. Serves any number of streams; every method may be called from any thread."""

    def __init__(self, secrets: Iterable[str | bytes] = (), *, min_length: int = 6) -> None:
        """Begin with `secrets`; those shorter than `min_length` bytes (1 or more) are never masked."""
        if min_length < 1:
            raise ValueError("min_length is 1 or more")
        self._min_length = min_length
        self._lock = threading.Lock()
        self._known: set[bytes] = set()
        self._needles: set[bytes] = set()
        self._unmaskable: set[bytes] = set()
        self._matcher: _Matcher | None = None
        for secret in secrets:
            self.add(secret)

    def add(self, secret: str | bytes) -> bool:
        """Mask `secret` from now on in every stream; what a stream has let out already stays as it is.

        Line ends around the secret don't belong to it.
        Returns: whether it is masked; not so when it is too short or so common that masking it would make the
        log unreadable, and then it is listed in `unmaskable`.
        """
        raw = secret.encode("utf-8", "surrogateescape") if isinstance(secret, str) else bytes(secret)
        text = raw.strip(b"\r\n")
        with self._lock:
            if text in self._known:
                return True
            if len(text) < self._min_length or is_common(text):
                self._unmaskable.update((raw, text))
                return False
        needles = needles_of(text, self._min_length)
        with self._lock:
            self._known.add(text)
            if not needles <= self._needles:
                self._needles |= needles
                # Built at the next use: many secrets that come together cost one automaton.
                self._matcher = None
        return True

    @property
    def unmaskable(self) -> frozenset[bytes]:
        """The secrets that are not masked, as UTF-8: as they were given and without line ends around them."""
        with self._lock:
            return frozenset(self._unmaskable)

    def stream(self) -> RedactorStream:
        """Begin a stream: one step's output, fed by one thread at a time."""
        return RedactorStream(self)

    def _current_matcher(self) -> _Matcher:
        matcher = self._matcher
        if matcher is None:
            with self._lock:
                matcher = self._matcher
                if matcher is None:
                    matcher = self._matcher = _Matcher(self._needles)
        return matcher


class RedactorStream:
    """One stream of bytes through a `Redactor`.

    Keeps less than the longest needle, and `LOOKBACK_BYTES`; a call takes a few times `PIECE_BYTES` on top.
    """

    def __init__(self, redactor: Redactor) -> None:
        self._redactor = redactor
        self._matcher = redactor._current_matcher()
        # The raw bytes from the earliest place on where a needle may have begun that is not complete. The
        # first `_out` of them are let out already: they are masked however the stream goes on.
        self._buffer = b""
        self._out = 0
        # The raw bytes right before the buffer.
        self._recent = b""
        self._in_mask = False
        self._masked_count = 0

    @property
    def masked_count(self) -> int:
        """Masks let out so far."""
        return self._masked_count

    @property
    def held_bytes(self) -> int:
        """Bytes taken that are not let out yet, masked or not."""
        return len(self._buffer) - self._out

    def feed(self, data: bytes) -> bytes:
        """Take the next bytes and return what may be stored now: all but a tail that may begin a secret."""
        if len(data) <= PIECE_BYTES or self._redactor._current_matcher().is_empty:
            return self._advance(data)
        pieces = range(0, len(data), PIECE_BYTES)
        return b"".join([self._advance(data[start : start + PIECE_BYTES]) for start in pieces])

    def finish(self) -> bytes:
        """Return what is still held back; the stream is as new afterwards."""
        rest = self._advance(b"", is_last=True)
        self._recent = b""
        self._in_mask = False
        return rest

    def _advance(self, data: bytes, *, is_last: bool = False) -> bytes:
        matcher = self._redactor._current_matcher()
        buffer, out = self._buffer + data if self._buffer else data, self._out
        if matcher is not self._matcher:
            # A secret has come since: one that began in what is let out already must still not end unmasked.
            buffer, out = self._recent + buffer, out + len(self._recent)
            self._matcher, self._recent = matcher, b""
        spans, hold = matcher.scan(buffer)
        if is_last:
            hold = len(buffer)
        # Every occurrence that begins before `hold` is complete and among the spans, so the bytes before it
        # are decided. Behind it, what is covered without a gap is decided too: it stays masked.
        end = max(hold, out)
        for span_start, span_end in spans:
            if span_start <= end < span_end:
                end = span_end
        clean = self._render(buffer, spans, out, end)
        if hold >= LOOKBACK_BYTES:
            self._recent = buffer[hold - LOOKBACK_BYTES : hold]
        else:
            self._recent = (self._recent + buffer[:hold])[-LOOKBACK_BYTES:]
        self._buffer, self._out = buffer[hold:], end - hold
        return clean

    def _render(self, buffer: bytes, spans: list[tuple[int, int]], start: int, end: int) -> bytes:
        """Return buffer[start:end] with what `spans` (ascending, apart) cover masked."""
        parts = []
        for span_start, span_end in spans:
            if span_start >= end:
                break
            if span_end <= start:
                continue
            if span_start > start:
                parts.append(buffer[start:span_start])
                self._in_mask = False
                start = span_start
            parts.extend(self._mask(buffer[start:span_end]))
            start = span_end
        if start < end:
            parts.append(buffer[start:end])
            self._in_mask = False
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _mask(self, secret: bytes) -> Iterator[bytes]:
        """Yield a mask for each line of `secret` that isn't empty; none for a first that goes on a mask."""
        for number, line in enumerate(secret.split(b"\n")):
            if number:
                yield b"\n"
                self._in_mask = False
            if line and not self._in_mask:
                yield self._matcher.mask
                self._in_mask = True
                self._masked_count += 1


class _Matcher:
    """Finds a fixed set of needles; never changes, so streams share it without a lock."""

    def __init__(self, needles: Collection[bytes]) -> None:
        groups: dict[bytes, list[bytes]] = {}
        for needle in needles:
            groups.setdefault(needle[:ANCHOR_BYTES], []).append(needle)
        self.is_empty = not groups
        self.mask = _mask_for(needles)
        self._groups = list(groups.values())
        # The library's own choice above 100 patterns is an automaton half as fast.
        self._search = BytesAhoCorasick(list(groups), implementation=Implementation.DFA)
        self._quick = _quick_searches(list(groups))
        self._beginnings = frozenset(anchor[:size] for anchor in groups for size in range(1, len(anchor)))

    def scan(self, buffer: bytes) -> tuple[list[tuple[int, int]], int]:
        """Return what needles cover, as (start, end) ascending and apart, and where the tail to hold begins.

        The tail is the longest one that is a beginning of a needle and not the whole of it.
        """
        size = len(buffer)
        if self.is_empty:
            return [], size
        spans: list[tuple[int, int]] = []
        hold = size
        span_start = span_end = 0
        for index, start, _ in self._matches(buffer):
            for needle in self._groups[index]:
                end = start + len(needle)
                if end > size:
                    if start < hold and needle.startswith(buffer[start:]):
                        hold = start
                elif span_start <= start and end <= span_end:
                    continue  # covered already; a self-overlapping secret is found at every byte
                elif buffer.startswith(needle, start):
                    if span_start <= start <= span_end:
                        span_end = end
                    else:
                        spans.append((span_start, span_end))
                        span_start, span_end = start, end
        spans.append((span_start, span_end))
        if hold == size:
            # A tail shorter than an anchor; a longer one has been found above and begins earlier than these.
            for length in range(min(ANCHOR_BYTES - 1, size), 0, -1):
                if buffer[-length:] in self._beginnings:
                    hold = size - length
                    break
        return _union(spans), hold

    def _matches(self, buffer: bytes) -> list[tuple[int, int, int]]:
        """Return (index, start, end) of every anchor in `buffer`; most often there is none, and that is quick."""
        if self._quick and not any(search.find_matches_as_indexes(buffer) for search in self._quick):
            return []
        return self._search.find_matches_as_indexes(buffer, overlapping=True)


def _quick_searches(anchors: list[bytes]) -> list[BytesAhoCorasick]:
    """Return searches that together say whether any anchor occurs, or none where they would not be quicker.

    For few patterns and non-overlapping matches the library compares 16 or 32 bytes at a time (its "Teddy"):
    ten times the speed of the automaton, so up to QUICK_SEARCHES of them are worth it.
    """
    if len(anchors) > QUICK_SEARCHES * QUICK_PATTERNS:
        return []
    return [
        BytesAhoCorasick(anchors[start : start + QUICK_PATTERNS], matchkind=MatchKind.LeftmostFirst)
        for start in range(0, len(anchors), QUICK_PATTERNS)
    ]


def _union(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return what the spans cover, as spans that neither overlap nor touch, ascending; none is empty."""
    union: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if union and start <= union[-1][1]:
            union[-1] = (union[-1][0], max(end, union[-1][1]))
        elif start < end:
            union.append((start, end))
    return union


def _mask_for(needles: Collection[bytes]) -> bytes:
    """Return a mask that can't make up a needle with what stands beside it, nor be one or a part of one.

    The rest of the output is free of needles, so with such a mask all of it is.
    """
    single = (bytes([byte]) * 3 for byte in (*range(0x21, 0x7F), *range(0x80, 0x100), *range(1, 9)))
    for mask in (*MASKS, *single):
        ends = tuple(mask[start:] for start in range(len(mask)))
        beginnings = tuple(mask[: len(mask) - start] for start in range(len(mask)))
        if not any(
            needle.startswith(ends) or needle.endswith(beginnings) or mask in needle or needle in mask
            for needle in needles
        ):
            return mask
    return MASKS[0]
