"""The Librato sink: one thread, one bounded queue, and an agent that never notices either.

Owns what is waiting for Librato and when it is tried. A request that was answered too late is sent again, so
Librato may get a measurement twice: its API has no key to tell by, and a doubled point is better than a gap.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

from agent import __version__, clock, log
from agent.errors import SettingsError
from agent.metrics import librato_format
from agent.metrics.reading import Reading

if TYPE_CHECKING:
    from requests import Response

_log = log.get(__name__)

# Librato's advice: "a POST with ~300 distinct measurements takes roughly 600ms [...] a cap on request size".
BATCH_LIMIT = 300
# An hour of Librato being away: 360 cycles of 10 s with some 60 series are 21,600 measurements. The full
# queue is 6 MB (measured: 196 bytes each, 49 of them the string object).
QUEUE_LIMIT = 30_000
ANNOTATION_LIMIT = 100
# A connection is there or not; an answer takes a second. No step, build or slot waits for either.
CONNECT_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 10.0
# Librato may ask for a pause, not for silence.
LONGEST_WAIT_S = 600.0
# 401 and 403: wrong credentials or, as Librato says, "the account is rate limited": not over in a second.
REFUSED_WAIT_S = 60.0
_BODY_LIMIT = 4096


@dataclass(frozen=True, slots=True)
class _Annotation:
    stream: str
    body: bytes


@dataclass(frozen=True, slots=True)
class _Gauges:
    pieces: Sequence[str]


@dataclass(frozen=True, slots=True)
class _Answer:
    """What became of one request.

    `wait_s` is Librato's own wish, None for our back-off; `fault` names the kind of fault, `why` all of it.
    """

    is_stored: bool = False
    should_retry: bool = False
    wait_s: float | None = None
    fault: str = ""
    why: str = ""


class LibratoSink:
    """Send readings and annotations to Librato in the background.

    `publish` and `annotate` only queue and may be called on any thread. When the queue is full the oldest
    measurement is dropped and counted.
    """

    name = "librato"

    def __init__(
        self,
        *,
        url: str,
        user: str,
        token: str,
        source: str,
        queue_limit: int = QUEUE_LIMIT,
        retry_first_s: float = 1.0,
        retry_limit_s: float = 60.0,
        read_timeout_s: float = READ_TIMEOUT_S,
    ) -> None:
        """Start the sender's thread; nothing is sent yet.

        Args:
            url: of the metrics, `https://metrics-api.librato.com/v1/metrics`; that of annotations lies beside
            it. source: the server's name, in any characters.
        Raises: SettingsError when `url` is no address of an HTTP server.
        """
        # 110 ms and 4 MB: only an agent that reports to Librato pays for it.
        import requests
        from requests.auth import HTTPBasicAuth

        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise SettingsError("librato_url must be like https://metrics-api.librato.com/v1/metrics")
        self._base_url = url.rstrip("/").removesuffix("/metrics")
        self._source = librato_format.clean_source(source)
        self._transport_error = requests.RequestException
        self._session = requests.Session()
        # As bytes: requests would encode as Latin-1 and fail on anything else. Given here, ~/.netrc is not
        # asked.
        self._session.auth = HTTPBasicAuth(user.encode(), token.encode())
        self._session.headers.update(
            {"Content-Type": "application/json", "User-Agent": f"build-agent/{__version__}"}
        )
        self._read_timeout_s = read_timeout_s
        self._retry_s = (retry_first_s, retry_limit_s)
        self._queue_limit = queue_limit
        self._changed = threading.Condition()
        self._gauges: deque[str] = deque()
        self._annotations: deque[_Annotation] = deque()
        self._is_annotations_turn = True
        self._closing: clock.Deadline | None = None
        self._is_over = False
        self._had_last_try = False
        self._dropped_count = 0
        # By kind of request: annotations that fail while gauges pass are no change of fortune each time.
        self._faults = {_Annotation: "", _Gauges: ""}
        # A daemon: a Librato that drips one byte at a time must not keep the agent from ending.
        self._thread = threading.Thread(target=self._run, name="librato", daemon=True)
        self._thread.start()

    @property
    def dropped_count(self) -> int:
        """Measurements and annotations given up since the start."""
        with self._changed:
            return self._dropped_count

    @property
    def waiting_count(self) -> int:
        """Measurements and annotations in the queue, those of the request under way not counted."""
        with self._changed:
            return len(self._gauges) + len(self._annotations)

    def publish(self, readings: Sequence[Reading], at: datetime) -> None:
        """Queue readings taken at `at`."""
        pieces = librato_format.encode_gauges(readings, source=self._source, at=at)
        with self._changed:
            self._dropped_count += len(readings) - len(pieces)
            if self._closing is not None:
                self._dropped_count += len(pieces)
                return
            self._gauges.extend(pieces)
            self._trim()
            self._changed.notify_all()

    def annotate(
        self,
        stream: str,
        *,
        title: str,
        description: str = "",
        start_at: datetime,
        end_at: datetime | None = None,
    ) -> None:
        """Queue an annotation, which Librato draws over the graphs: a deployment, with its end when known."""
        body = librato_format.encode_annotation(
            title=title, description=description, source=self._source, start_at=start_at, end_at=end_at
        )
        with self._changed:
            if self._closing is not None:
                self._dropped_count += 1
                return
            self._annotations.append(_Annotation(librato_format.clean_name(stream), body))
            self._trim()
            self._changed.notify_all()

    def close(self, limit_s: float) -> None:
        """Send what is waiting, for at most `limit_s` seconds, and end; what is left counts as dropped."""
        with self._changed:
            self._closing = clock.Deadline.after(limit_s)
            self._changed.notify_all()
        self._thread.join(limit_s)
        with self._changed:
            self._is_over = True  # from here on a request still under way is not put back but counted
            left = len(self._gauges) + len(self._annotations)
            self._dropped_count += left
            self._gauges.clear()
            self._annotations.clear()
        if left:
            _log.warning("librato.left", "%d readings were not sent before the end", left)

    # Below: the sender's thread.

    def _run(self) -> None:
        waits = clock.backoff(*self._retry_s)
        while (request := self._next()) is not None:
            try:
                answer = self._send(request)
            except Exception as error:  # noqa: BLE001 - a bug or a library's surprise costs a batch, never the thread
                _log.exception("librato.broken", "a request failed in an unforeseen way")
                answer = _Answer(fault="broken", why=type(error).__name__)
            self._settle(request, answer)
            if answer.is_stored:
                waits = clock.backoff(*self._retry_s)
            elif answer.should_retry and not self._pause(answer.wait_s, next(waits)):
                break
        self._session.close()

    def _next(self) -> _Annotation | _Gauges | None:
        """Wait for something to send; None when closed and empty or out of time."""
        with self._changed:
            self._changed.wait_for(lambda: self._gauges or self._annotations or self._closing)
            if self._closing and (self._closing.is_passed or not (self._gauges or self._annotations)):
                return None
            # By turns, so that annotations Librato does not take never hold the gauges up.
            self._is_annotations_turn = not self._is_annotations_turn
            if self._annotations and (self._is_annotations_turn or not self._gauges):
                return self._annotations.popleft()
            count = min(BATCH_LIMIT, len(self._gauges))
            return _Gauges([self._gauges.popleft() for _ in range(count)])

    def _send(self, request: _Annotation | _Gauges) -> _Answer:
        if isinstance(request, _Annotation):
            url, body = f"{self._base_url}/annotations/{quote(request.stream, safe='')}", request.body
        else:
            url, body = f"{self._base_url}/metrics", librato_format.join_gauges(request.pieces)
        read_s, closing = self._read_timeout_s, self._closing
        if closing is not None and (remaining_s := closing.remaining_s) is not None:
            read_s = min(read_s, max(0.1, remaining_s))
        try:
            # Streamed, so that a foreign server can't fill memory; a redirect would turn POST into GET.
            with self._session.post(
                url,
                data=body,
                timeout=(min(CONNECT_TIMEOUT_S, read_s), read_s),
                allow_redirects=False,
                stream=True,
            ) as response:
                status = response.status_code
                wait_s = librato_format.retry_after_s(response.headers, now=clock.utc_now())
                if 200 <= status < 300:
                    self._text(response)  # read to its end, the connection serves again
                    return _Answer(is_stored=True)
                why = f"Librato answers {status}: {self._text(response)}"
        except self._transport_error as error:
            kind = type(error).__name__
            return _Answer(should_retry=True, fault=kind, why=f"Librato can't be reached: {kind}")
        if status in (401, 403):
            why += " (check librato_user and librato_token)"
            return _Answer(should_retry=True, wait_s=wait_s or REFUSED_WAIT_S, fault=str(status), why=why)
        should_retry = status in (408, 429) or status >= 500
        return _Answer(should_retry=should_retry, wait_s=wait_s, fault=str(status), why=why)

    def _text(self, response: Response) -> str:
        """Return the beginning of an answer's text on one line; the status has said what matters already."""
        try:
            text = next(response.iter_content(_BODY_LIMIT), b"").decode("utf-8", "replace")
        except self._transport_error as error:
            _log.debug("librato.answer_broken", "an answer broke off: %s", type(error).__name__)
            return ""
        return " ".join(text.split())[:200]

    def _settle(self, request: _Annotation | _Gauges, answer: _Answer) -> None:
        """Put back what is to be tried again, count what is given up, and log a change of fortune once."""
        count = len(request.pieces) if isinstance(request, _Gauges) else 1
        should_keep = answer.should_retry and not self._is_over
        with self._changed:
            if should_keep and isinstance(request, _Gauges):
                self._gauges.extendleft(reversed(request.pieces))
            elif should_keep and isinstance(request, _Annotation):
                self._annotations.appendleft(request)
            elif not answer.is_stored:
                self._dropped_count += count
            self._trim()
            before, dropped = self._faults[type(request)], self._dropped_count
            self._faults[type(request)] = answer.fault
        if answer.is_stored and before:
            _log.info("librato.back", "Librato takes readings again; %d were dropped so far", dropped)
        elif answer.fault != before:
            fate = "kept for another try" if should_keep else "dropped"
            _log.warning("librato.fault", "%s; %d readings are %s", answer.why, count, fate)

    def _pause(self, asked_s: float | None, backoff_s: float) -> bool:
        """Wait before another try; False when the end comes first.

        A close ends our own back-off at once, for a last try, but not a pause that Librato asked for.
        """
        wait_s = backoff_s if asked_s is None else max(backoff_s, min(asked_s, LONGEST_WAIT_S))
        until = clock.Deadline.after(wait_s)
        with self._changed:
            if self._closing is None:
                self._changed.wait_for(lambda: self._closing is not None, timeout=wait_s)
            closing = self._closing
            if closing is None or until.is_passed:
                return True
            if asked_s is None and not self._had_last_try:
                self._had_last_try = True
                return True
            if (until.remaining_s or 0.0) >= (closing.remaining_s or 0.0):
                return False
            self._changed.wait_for(lambda: until.is_passed, timeout=until.remaining_s)
            return True

    def _trim(self) -> None:
        """Drop the oldest beyond the limits. The caller holds the lock."""
        while len(self._gauges) > self._queue_limit:
            self._gauges.popleft()
            self._dropped_count += 1
        while len(self._annotations) > ANNOTATION_LIMIT:
            self._annotations.popleft()
            self._dropped_count += 1
