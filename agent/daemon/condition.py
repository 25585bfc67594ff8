"""What the agent is about to do and whether it takes builds: operators, signals, the cloud, what it sees itself.

Owns the order of precedence between them. It decides; others act.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from agent import clock
from agent.host.notices import Notice
from agent.model.server import OrderKind, Server, ServerState


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """An operator's word, with its note and the time it is to be done by."""

    kind: OrderKind = OrderKind.RESUME
    note: str | None = None
    by: str | None = None
    deadline_at: datetime | None = None

    @property
    def words(self) -> str:
        """The word as a reason for people."""
        note = f": {self.note}" if self.note else ""
        return f"{self.kind.value} asked by {self.by or 'somebody'}{note}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What follows: the state to report, and every reason not to take a build."""

    state: ServerState
    reasons: Sequence[str]


class Condition:
    """Thread-safe. `judge` is called with what the machine says now; `on_change` when an operator has spoken."""

    def __init__(self, on_change: Callable[[], None]) -> None:
        self._on_change = on_change
        self._lock = threading.Lock()
        self._wanted = Wanted()
        self._deadline = clock.Deadline(None)
        self._notice: Notice | None = None
        self._notice_deadline = clock.Deadline(None)
        self._stop_reason: str | None = None
        self._is_started = False

    def started(self) -> None:
        """Note that everything is up."""
        self._is_started = True

    def want(self, wanted: Wanted) -> None:
        """Take an operator's word; the newest counts.

        The deadline is turned into monotonic time here, once: a wall clock that is set later moves it no more.
        """
        with self._lock:
            self._wanted = wanted
            remaining_s = (
                None
                # A quarantine's is when it ends, which is not ours to do.
                if wanted.deadline_at is None or wanted.kind is OrderKind.QUARANTINE
                else max(0.0, (wanted.deadline_at - clock.utc_now()).total_seconds())
            )
            self._deadline = clock.Deadline.after(remaining_s)
        self._on_change()

    def want_as_registered(self, server: Server) -> None:
        """Take over what the record says the operator wants, a quarantine that survived a restart."""
        self.want(
            Wanted(
                kind=server.wanted,
                note=server.wanted_note,
                by=server.wanted_by,
                deadline_at=server.drain_deadline_at,
            )
        )

    def notice(self, notice: Notice | None, *, margin_s: float) -> bool:
        """Take what the cloud says of the server's end, or that it says nothing any more; whether that is news.

        Args:
            margin_s: how long before the end what still runs is given back.
        """
        with self._lock:
            if notice == self._notice:
                return False
            self._notice = notice
            remaining_s = None
            if notice is not None and notice.at is not None:
                remaining_s = max(0.0, (notice.at - clock.utc_now()).total_seconds() - margin_s)
            self._notice_deadline = clock.Deadline.after(remaining_s)
        self._on_change()
        return True

    def stop(self, reason: str) -> None:
        """Take nothing more, whatever operators say: the agent is on its way out."""
        with self._lock:
            self._stop_reason = self._stop_reason or reason

    @property
    def wanted(self) -> Wanted:
        """The operator's last word."""
        return self._wanted

    @property
    def is_stopping(self) -> bool:
        """Whether the agent is on its way out."""
        return self._stop_reason is not None

    @property
    def is_leaving_asked(self) -> bool:
        """Whether an operator wants the server gone."""
        return self._wanted.kind is OrderKind.TERMINATE

    @property
    def is_draining(self) -> bool:
        """Whether an operator or the cloud wants the server empty."""
        return self._wanted.kind in (OrderKind.DRAIN, OrderKind.TERMINATE) or self._notice is not None

    @property
    def drain_deadline(self) -> clock.Deadline:
        """When what still runs is to be given back, if the operator has set a limit or the cloud has."""
        return self._deadline.earlier(self._notice_deadline)

    @property
    def give_back_words(self) -> str:
        """Why what still runs is given back at the deadline."""
        notice = self._notice
        return "the drain's deadline has passed" if notice is None else notice.words

    def judge(self, *, in_hand: int, faults: Sequence[str]) -> Verdict:
        """Return the state and the reasons; `faults` are what links, preflight and RQ say against a build."""
        wanted = self._wanted
        if self._stop_reason is not None:
            return Verdict(state=ServerState.DRAINING, reasons=[self._stop_reason, *faults])
        if wanted.kind is OrderKind.QUARANTINE:
            return Verdict(state=ServerState.QUARANTINED, reasons=[wanted.words, *faults])
        if self.is_draining:
            is_asked = wanted.kind in (OrderKind.DRAIN, OrderKind.TERMINATE)
            why = wanted.words if is_asked or self._notice is None else self._notice.words
            return Verdict(
                state=ServerState.DRAINING if in_hand else ServerState.DRAINED, reasons=[why, *faults]
            )
        if not self._is_started:
            return Verdict(state=ServerState.STARTING, reasons=["starting", *faults])
        if faults:
            return Verdict(state=ServerState.NOT_READY, reasons=list(faults))
        return Verdict(state=ServerState.ACCEPTING, reasons=[])
