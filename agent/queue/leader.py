"""What one agent does for all: closes the attempts of the dead and queues what Redis has lost.

The leader holds a key in Redis for a few seconds at a time. Leading decides only who does the work: each step
is guarded in the database, so two leaders do no harm. Both databases must be there for it: who can't read the
heartbeats in both must not take anybody for dead.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rq.registry import clean_registries

from agent import clock, log
from agent.errors import QueueUnavailable, StateConflict
from agent.metrics import catalogue as gauge
from agent.metrics.registry import Metrics
from agent.model.build import AttemptRef
from agent.queue import lease
from agent.queue.carrier import Carrier
from agent.queue.connection import reaching
from agent.queue.listen import nudge
from agent.store import attempts, builds, orders, servers, survey
from agent.store.engine import Store

LEADER_KEY = "build-agent:leader"
# An id must be missing, or in hand, in two looks so far apart before anything is done about it: between the pop
# and the claim, and between the record and the queue, a healthy build is nowhere for some milliseconds.
PATIENCE_S = 5.0
RQ_CLEANING_S = 120.0

_RELEASE = """
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0
"""

_log = log.get("leader")


@dataclass(slots=True)
class _Sighting:
    """A value, and since when it has not changed."""

    value: object
    since_mono: float


class Leader:
    """Reaper and sweeper in one loop; `cycle` every `sweep_s` seconds on every server, at work on one.

    Args:
        lease_s: for servers that have not said their own, as those from before schema 0002.
    """

    def __init__(
        self,
        *,
        store: Store,
        carrier: Carrier,
        metrics: Metrics,
        lease_s: float,
        sweep_s: float,
        session: Callable[[], str],
    ) -> None:
        self._store = store
        self._carrier = carrier
        self._metrics = metrics
        self._lease_s = lease_s
        self._key_ttl_ms = int(max(2.0, sweep_s * 2.4) * 1000)
        self._session = session
        self._name = uuid.uuid4().hex.encode()
        self._release = carrier.connection.register_script(_RELEASE)
        self._beats: dict[str, _Sighting] = {}
        self._missing: dict[str, float] = {}
        self._in_hand: dict[tuple[str, str], float] = {}
        self._look_again_mono = clock.mono()
        self._queues: set[str] = set()
        self._cleaned_at_mono = clock.mono()
        self.is_leading = False

    def cycle(self) -> None:
        """Lead if nobody else does, and then do the leader's work.

        Raises: QueueUnavailable, StoreUnavailable.
        """
        with reaching():
            held = self._hold()
        if bool(held) != self.is_leading:
            self.is_leading = bool(held)
            self._forget_sightings()
            _log.info("leader.elected" if held else "leader.lost")
        if self.is_leading:
            found = self.reap()
            self.sweep(found)
            if found.has_expired:
                self._end_quarantines()
            self._clean_rq()

    def resign(self) -> None:
        """Let another lead at once."""
        with reaching():
            self._release(keys=[LEADER_KEY], args=[self._name])
        self.is_leading = False

    def _hold(self) -> bool:
        """Take the leader's key or keep it, with one command: a script would cost three, all day long."""
        connection = self._carrier.connection
        if self.is_leading:
            holder = connection.set(LEADER_KEY, self._name, xx=True, px=self._key_ttl_ms, get=True)
            if holder == self._name:
                return True
            if holder is not None:
                # This leader had been away for too long, and another has the key: it gets it back.
                connection.set(LEADER_KEY, holder, xx=True, px=self._key_ttl_ms)
                return False
        # Also for a leader whose key is gone: Redis came back empty, or nobody else was quicker.
        return bool(connection.set(LEADER_KEY, self._name, nx=True, px=self._key_ttl_ms))

    def _forget_sightings(self) -> None:
        """A new leader has seen nothing yet: it gives everybody a whole lease from now."""
        self._beats.clear()
        self._missing.clear()
        self._in_hand.clear()

    # The reaper.

    def reap(self) -> survey.Survey:
        """Take servers for lost whose heartbeat has stood still in both places for their lease; close their attempts.

        Return what was found on record before.
        """
        found = survey.look(self._store)
        running = found.running
        for it in self._silent(found.beats):
            # The last word is the database's: a beat that came in meanwhile keeps the server alive.
            if servers.mark_lost(self._store, server_id=it.server_id, session=it.session, beat=it.beat):
                _log.warning("server.lost", server=it.server_id, silent_s=self._lease_of(it))
                running = attempts.running(self._store)
        for attempt in running:
            if attempt.beat is None:
                self._close(attempt.ref, attempt.server_id)
        return found

    def _silent(self, beats: Sequence[servers.Beat]) -> list[servers.Beat]:
        # Whoever leads is alive; with a single server Redis need not be asked.
        beats = [beat for beat in beats if beat.session != self._session()]
        in_redis = lease.beats(self._carrier.connection, [beat.session for beat in beats])
        now_mono = clock.mono()
        sightings: dict[str, _Sighting] = {}
        silent = []
        for beat in beats:
            value = (beat.beat, in_redis.get(beat.session))
            seen = self._beats.get(beat.session)
            if seen is None or seen.value != value:
                seen = _Sighting(value, now_mono)
            elif now_mono - seen.since_mono >= self._lease_of(beat):
                silent.append(beat)
            sightings[beat.session] = seen
        self._beats = sightings
        return silent

    def _lease_of(self, beat: servers.Beat) -> float:
        """Return the lease that this server itself goes by: it fences itself by no other (F10)."""
        return self._lease_s if beat.lease_s is None else beat.lease_s

    def _close(self, ref: AttemptRef, server_id: str) -> None:
        why = f"server {server_id} was lost, or its agent began a new life"
        result = attempts.close_lost(self._store, ref, why=why)
        if not result.applied:
            return
        _log.warning("attempt.lost", why, build=ref.build_id, attempt=ref.number, requeued=result.requeued)
        self._metrics.add(gauge.ATTEMPTS_INFRASTRUCTURE, 1, reason="lost")
        if result.requeued:
            self._carrier.publish(ref.build_id, result.queue)

    def _end_quarantines(self) -> None:
        for server_id in orders.resume_expired(self._store):
            _log.info("server.quarantine_over", server=server_id)
            nudge(self._carrier.connection, server_id)

    # The sweeper.

    def sweep(self, found: survey.Survey) -> None:
        """Queue what is on record as queued and in no list; put back what was taken and never begun."""
        on_record = found.queued
        self._queues |= {queue for _, queue, _ in on_record}
        now_mono = clock.mono()
        in_hand = self._look_in_hand(now_mono)
        waiting = {queue: set(self._carrier.waiting(queue)) for queue in {queue for _, queue, _ in on_record}}
        self._sweep_missing(on_record, waiting, in_hand, now_mono)
        for queue in self._queues:
            count = len(waiting[queue]) if queue in waiting else 0
            self._metrics.set(gauge.QUEUE_WAITING, count, queue=queue)

    def watch_queues(self, names: list[str]) -> None:
        """Look after these queues even while nothing on record names them."""
        self._queues |= set(names)

    def _sweep_missing(
        self,
        on_record: Sequence[builds.QueuedBuild],
        waiting: dict[str, set[str]],
        in_hand: set[tuple[str, str]],
        now_mono: float,
    ) -> None:
        missing = [
            (build_id, queue)
            for build_id, queue, _ in on_record
            if build_id not in waiting[queue] and (queue, build_id) not in in_hand
        ]
        self._missing = {item: self._missing.get(item, now_mono) for item, _ in missing}
        for build_id, queue in missing:
            if now_mono - self._missing[build_id] < PATIENCE_S:
                continue
            if self._carrier.is_cancelled(build_id):
                self._record_cancel(build_id, queue)
            elif self._carrier.publish(build_id, queue):
                _log.warning("build.queued_again", "on record, not in Redis", build=build_id, queue=queue)

    def _record_cancel(self, build_id: str, queue: str) -> None:
        """Put on record that a build that waited was cancelled with RQ's own tools."""
        try:
            builds.request_cancel(self._store, build_id, by="rq")
        except StateConflict:
            # Somebody was quicker: it has ended.
            return
        _log.info("build.cancelled_in_rq", build=build_id, queue=queue)
        self._carrier.note_cancel(build_id)

    def _look_in_hand(self, now_mono: float) -> set[tuple[str, str]]:
        """Return (queue, id) of what was in hand at the last look, a moment ago; put back what has been for long."""
        if now_mono >= self._look_again_mono:
            self._look_again_mono = now_mono + PATIENCE_S / 2
            in_hand = {(queue, item) for queue in self._queues for item in self._carrier.in_hand(queue)}
            self._sweep_in_hand(in_hand, now_mono)
        return set(self._in_hand)

    def _sweep_in_hand(self, in_hand: set[tuple[str, str]], now_mono: float) -> None:
        self._in_hand = {item: self._in_hand.get(item, now_mono) for item in in_hand}
        for (queue, build_id), since_mono in list(self._in_hand.items()):
            if now_mono - since_mono >= PATIENCE_S and self._carrier.give_back(queue, build_id):
                # If it runs after all, the claim finds it running and drops the second copy.
                _log.warning("build.put_back", "taken and never begun", build=build_id, queue=queue)
                del self._in_hand[(queue, build_id)]

    def _clean_rq(self) -> None:
        """Do what an RQ worker does every ten minutes: drop what has expired from RQ's registries."""
        if clock.mono() - self._cleaned_at_mono < RQ_CLEANING_S:
            return
        self._cleaned_at_mono = clock.mono()
        for name in self._queues:
            try:
                with reaching():
                    clean_registries(self._carrier.queue(name), [])
            except QueueUnavailable:
                raise
            except Exception as error:  # noqa: BLE001 - RQ reads job hashes here, which anybody may have written
                _log.warning("leader.rq_cleaning_failed", f"{type(error).__name__}: {error}", queue=name)
