"""A simulated pool: builds come, servers boot, build and leave as the scaling rule wants it, in simulated seconds.

The rule is the real one, asked every two seconds, as the controller asks it. Simulated are servers, queue and time; every
build is taken by one of the free servers, by chance, which is the hardest case for a pool that is to shrink.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from agent.fleet import scale
from agent.fleet.scale import Inputs, Peaks

LOOK_S = 2


class Moment(NamedTuple):
    """How the pool stood at a look, in servers; `needed` is what demand alone would want."""

    at_s: int
    needed: int
    accepting: int
    booting: int


@dataclass(slots=True, eq=False)
class Server:
    """One server; `place` is where it stands among those that are free, -1 when it is not."""

    free: int
    place: int = -1


@dataclass(kw_only=True)
class Simulation:
    """A pool that is empty at first.

    waits: seconds that each begun build has waited. changes: (second, servers started, or drained as a negative).
    moments: each look. server_s, build_s: seconds of servers that were there, and of builds.
    """

    seed: int
    slots: int
    floor: int
    ceiling: int
    boot_s: int
    scale_in_after_s: int
    spare_slots: int = 0
    waits: list[int] = field(default_factory=list)
    changes: list[tuple[int, int]] = field(default_factory=list)
    moments: list[Moment] = field(default_factory=list)
    server_s: int = 0
    build_s: int = 0

    def __post_init__(self) -> None:
        self._chance = random.Random(self.seed)
        self._peaks = Peaks()
        self._waiting: deque[int] = deque()
        self._boots: deque[int] = deque()
        self._ends: list[tuple[int, int, Server]] = []
        self._begun = 0
        self.servers: list[Server] = []
        self._free: list[Server] = []

    @property
    def running(self) -> int:
        """How many builds run."""
        return len(self._ends)

    @property
    def most(self) -> int:
        """The most servers that were there or on the way."""
        return max((it.accepting + it.booting for it in self.moments), default=0)

    @property
    def turns(self) -> int:
        """How often a start followed on a drain: what flapping would be made of."""
        pairs = zip(self.changes, self.changes[1:], strict=False)
        return sum(before < 0 < after for (_, before), (_, after) in pairs)

    def run(
        self,
        seconds: int,
        arrivals: Callable[[int, random.Random], int],
        duration: Callable[[random.Random], int],
    ) -> None:
        """Let time go by: `arrivals` says how many builds come in a second, `duration` how long one takes."""
        for now in range(seconds):
            self._end_some(now)
            while self._boots and self._boots[0] <= now:
                self._boots.popleft()
                self._join(Server(free=self.slots))
            self._waiting.extend([now] * arrivals(now, self._chance))
            while self._waiting and self._free:
                self._begin(now, duration(self._chance))
            if now % LOOK_S == 0:
                self._look(now)
            self.server_s += len(self.servers) + len(self._boots)

    def _end_some(self, now: int) -> None:
        while self._ends and self._ends[0][0] <= now:
            server = heapq.heappop(self._ends)[2]
            server.free += 1
            self._offer(server)

    def _begin(self, now: int, seconds: int) -> None:
        self.waits.append(now - self._waiting.popleft())
        self.build_s += seconds
        server = self._chance.choice(self._free)
        server.free -= 1
        if server.free == 0:
            self._withhold(server)
        self._begun += 1
        heapq.heappush(self._ends, (now + seconds, self._begun, server))

    def _join(self, server: Server) -> None:
        self.servers.append(server)
        self._offer(server)

    def _offer(self, server: Server) -> None:
        if server.place < 0:
            server.place = len(self._free)
            self._free.append(server)

    def _withhold(self, server: Server) -> None:
        last = self._free.pop()
        if last is not server:
            self._free[server.place] = last
            last.place = server.place
        server.place = -1

    def _look(self, now: int) -> None:
        inputs = Inputs(
            waiting=len(self._waiting),
            running=len(self._ends),
            slots=self.slots,
            spare_slots=self.spare_slots,
            floor=self.floor,
            ceiling=self.ceiling,
            accepting=len(self.servers),
            booting=len(self._boots),
            peak=self._peaks.peak(now, self.scale_in_after_s),
        )
        answer = scale.decide(inputs)
        self._peaks.note(now, answer.wanted, self.scale_in_after_s)
        self.moments.append(Moment(now, answer.needed, len(self.servers), len(self._boots)))
        self._boots.extend([now + self.boot_s] * answer.start)
        if answer.start:
            self.changes.append((now, answer.start))
        if answer.drain:
            self._drain(now, answer.drain)

    def _drain(self, now: int, at_most: int) -> None:
        idle = [it for it in self.servers if it.free == self.slots][:at_most]
        for it in idle:
            self._withhold(it)
            self.servers.remove(it)
        if idle:
            self.changes.append((now, -len(idle)))
