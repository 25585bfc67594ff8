"""The scaling rule: how many servers a pool should have. Its inputs alone decide, so each decision can be replayed.

    needed = ceil((waiting + running + spare slots) / slots of a server)
    wanted = needed, between floor and ceiling
    start  = wanted - capacity, while that is more than nothing
    drain  = accepting - the most that was wanted lately, while that is more than nothing, of those that stand idle

Capacity is what accepts work, and what boots until its deadline. What drains, is in quarantine or can't build is none:
its builds are counted, as they will need no new slot, and it costs money, so it counts towards the ceiling.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

# Written with each decision: one that was made by another rule is not replayed by this one.
RULE = 1
# Starts that are allowed while launches succeed.
ANY_NUMBER = 1_000_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Inputs:
    """What the rule goes by, all counts.

    waiting: builds in the pool's queues. running: builds on servers that accept work or come up. slots: of one server.
    accepting, booting: capacity. unready, leaving, quarantined: servers that are there and take nothing.
    trial: servers that try an image, which come on top of all these.
    peak: the most servers that were wanted within the scale-in time, this look left out; -1 while that time has not
    been watched in full. starts_allowed: how many may be started now; fewer after launches that came to nothing.
    """

    waiting: int
    running: int
    slots: int
    spare_slots: int
    floor: int
    ceiling: int
    accepting: int
    booting: int
    unready: int = 0
    leaving: int = 0
    quarantined: int = 0
    trial: int = 0
    peak: int = -1
    starts_allowed: int = ANY_NUMBER
    is_paused: bool = False

    def plain(self) -> dict[str, Any]:
        """Return the inputs as JSON holds them."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What the rule says: servers wanted, how many to start, how many may be drained, and why."""

    needed: int
    wanted: int
    start: int
    drain: int
    reason: str


def decide(inputs: Inputs) -> Answer:
    """Apply the rule."""
    demand = inputs.waiting + inputs.running + inputs.spare_slots
    needed = math.ceil(demand / max(1, inputs.slots))
    wanted = min(max(needed, inputs.floor), inputs.ceiling)
    capacity = inputs.accepting + inputs.booting
    if inputs.is_paused:
        return Answer(needed=needed, wanted=wanted, start=0, drain=0, reason="the pool is paused")
    if wanted > capacity:
        return _out(inputs, needed, wanted, capacity)
    return _in(inputs, needed, wanted, capacity)


def _out(inputs: Inputs, needed: int, wanted: int, capacity: int) -> Answer:
    # What leaves is on its way out, and a new server may take its place; what stays and can't build takes room.
    room = inputs.ceiling - capacity - inputs.unready - inputs.quarantined
    start = max(0, min(wanted - capacity, room, inputs.starts_allowed))
    words = [_demand(inputs, needed)]
    if needed > inputs.ceiling:
        words.append(f"no more than {inputs.ceiling}")
    elif needed < inputs.floor:
        words.append(f"at least {inputs.floor}")
    words.append(f"{capacity} there or on the way: {start} to start")
    if start < wanted - capacity:
        held = (
            "launches came to nothing lately"
            if inputs.starts_allowed < room
            else "the rest is unfit or in quarantine"
        )
        words.append(f"{wanted - capacity - start} held back: {held}")
    return Answer(needed=needed, wanted=wanted, start=start, drain=0, reason="; ".join(words))


def _in(inputs: Inputs, needed: int, wanted: int, capacity: int) -> Answer:
    surplus = capacity - wanted
    words = [_demand(inputs, needed), f"{capacity} there or on the way"]
    if surplus == 0:
        return Answer(needed=needed, wanted=wanted, start=0, drain=0, reason="; ".join(words))
    if inputs.peak < 0:
        words.append(f"{surplus} more than needed, not for long enough yet")
        return Answer(needed=needed, wanted=wanted, start=0, drain=0, reason="; ".join(words))
    # Not for those that boot: they have not shown yet that they can take over.
    lately = max(wanted, inputs.peak)
    drain = max(0, inputs.accepting - lately)
    words.append(f"{lately} were wanted lately: {drain} may be drained if idle")
    return Answer(needed=needed, wanted=wanted, start=0, drain=drain, reason="; ".join(words))


def _demand(inputs: Inputs, needed: int) -> str:
    spare = f" + {inputs.spare_slots} spare" if inputs.spare_slots else ""
    return f"{inputs.waiting} waiting + {inputs.running} running{spare}, {inputs.slots} a server: {needed} needed"


def read(document: Mapping[str, Any]) -> Inputs:
    """Read inputs as `plain` gives them."""
    known = {it.name for it in fields(Inputs)}
    return Inputs(**{name: value for name, value in document.items() if name in known})


class Peaks:
    """The most servers that were wanted within a time: what keeps a pool from shrinking and growing by turns."""

    def __init__(self) -> None:
        self._seen: list[tuple[float, int]] = []
        self._since_s: float | None = None

    def peak(self, at_s: float, span_s: float) -> int:
        """Return the most that was wanted in the `span_s` before; -1 while that has not been watched so long."""
        if self._since_s is None or at_s - self._since_s < span_s:
            return -1
        return max((wanted for seen_s, wanted in self._seen if seen_s >= at_s - span_s), default=0)

    def note(self, at_s: float, wanted: int, span_s: float) -> None:
        """Remember what was wanted. `at_s` is on a clock that never goes back."""
        if self._since_s is None:
            self._since_s = at_s
        # Of those before that were lower none can be the peak any more.
        while self._seen and self._seen[-1][1] <= wanted:
            self._seen.pop()
        self._seen.append((at_s, wanted))
        while self._seen and self._seen[0][0] < at_s - span_s:
            self._seen.pop(0)
