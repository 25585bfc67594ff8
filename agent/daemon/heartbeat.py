"""The two heartbeats, each in a loop of its own so that neither waits for the other's server.

The one in the database renews the lease and brings back what operators want: orders, cancels, and which attempts
are still this session's. The one in Redis renews the lease too, and what `rq info` shows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from agent import clock, log
from agent.daemon.condition import Wanted
from agent.daemon.vitals import Vitals
from agent.metrics import catalogue as gauge
from agent.model.build import AttemptRef
from agent.model.outcome import Outcome
from agent.model.server import BeatReply, Order, OrderKind, Registration, ServerState
from agent.queue import lease as leases
from agent.queue.carrier import Carrier
from agent.queue.lease import FENCE_GRACE_S
from agent.queue.slot import Slot
from agent.store import attempts, builds, orders, servers
from agent.store.engine import Store

# RQ's view of a slot lasts three minutes; it is renewed every minute, all slots in one turn of the loop.
RQ_LIFE_S = 60.0
# The database's clock is compared with ours this often.
SKEW_S = 60.0
# Longer than a claim can be under way: a statement's limit of 15 s, twice.
GHOST_S = 30.0

_log = log.get("heartbeat")


class DatabaseHeartbeat:
    """`cycle` once every `heartbeat_s`, and at once on a nudge.

    Args:
        status: what the server has to show, for the record.
        requeue: brings a build that waits again to Redis.
    """

    def __init__(
        self,
        *,
        store: Store,
        registration: Callable[[], Registration],
        vitals: Vitals,
        slots: Sequence[Slot],
        status: Callable[[], Mapping[str, Any]],
        requeue: Callable[[attempts.EndResult], None],
    ) -> None:
        self._store = store
        self._registration = registration
        self._vitals = vitals
        self._link = vitals.database
        self._lease = vitals.lease
        self._gate = vitals.gate
        self._condition = vitals.condition
        self._slots = slots
        self._status = status
        self._requeue = requeue
        self._open_orders: dict[int, Order] = {}
        self._ghosts: dict[tuple[str, int], float] = {}
        self._is_registered = False
        self._skew_at_mono = clock.mono() - SKEW_S

    def register(self) -> None:
        """Begin a new life on record, and close what former ones left open.

        Raises: StoreUnavailable.
        """
        registration = self._registration()
        sent_mono = clock.mono()
        with self._link.trying():
            server = servers.register(self._store, registration)
            orphans = attempts.close_orphans(
                self._store,
                server_id=server.id,
                session=registration.session,
                why="the agent on this server began a new life",
            )
        # An agent that was out of reach for a while goes on draining, though the record forgets drains when
        # it registers anew; whoever resumes it meanwhile has given an order, which still stands.
        is_draining = self._condition.wanted.kind in (OrderKind.DRAIN, OrderKind.TERMINATE)
        if not (is_draining and server.wanted is OrderKind.RESUME):
            self._condition.want_as_registered(server)
        self._is_registered = True
        self._vitals.fenced = None
        self._lease.renewed(sent_mono, is_confirmed=True)
        for orphan in orphans:
            _log.warning("attempt.orphan_closed", build=orphan.build_id, requeued=orphan.requeued)
            self._requeue(orphan)
        _log.info("server.registered", server=server.id, name=server.name, session=registration.session)

    def cycle(self) -> float | None:
        """Beat once, and do what the answer says.

        Returns: 0 when an order was taken, to beat again at once: who gave it waits to see the server obey.
        Raises: StoreUnavailable.
        """
        if not self._is_registered:
            if self._gate.in_hand:
                return None  # the steps of the life that was taken for lost are still being ended
            self._lease.begin()
            self.register()
        held = self._held()
        verdict = self._vitals.judge()
        sent_mono = clock.mono()
        with self._link.trying():
            reply = servers.beat(
                self._store,
                server_id=self._registration().identity.id,
                session=self._lease.session,
                state=verdict.state,
                reason="; ".join(verdict.reasons) or None,
                status=self._status(),
            )
        if not reply.is_current:
            self._fenced()
            return None
        self._lease.renewed(sent_mono, is_confirmed=True)
        has_taken = self._settle(reply, held)
        self._release_ghosts(reply.live)
        self._expect_ends()
        self._look_at_clock()
        return 0.0 if has_taken else None

    def _held(self) -> set[tuple[str, int]]:
        """Return the attempts of this session that are in a slot."""
        claims = [slot.claim for slot in self._slots]
        return {
            (claim.ref.build_id, claim.ref.number)
            for claim in claims
            if claim is not None and claim.ref.session == self._lease.session
        }

    def _fenced(self) -> None:
        """Somebody has taken this life for lost: end all it runs, then begin anew."""
        _log.error("server.fenced", "taken for lost, or another agent has registered as this server")
        self._is_registered = False
        # In this order: the gate is judged anew when somebody has closed it.
        self._vitals.fenced = "this life of the agent was taken for lost; its steps are being ended"
        self._gate.close(self._vitals.fenced)
        for slot in self._slots:
            slot.end(Outcome.LOST, "the server was taken for lost", build=None, grace_s=FENCE_GRACE_S)

    def _settle(self, reply: BeatReply, held: set[tuple[str, int]]) -> bool:
        """Do what the answer asks for; whether there was an order that was not known yet."""
        for cancellation in reply.cancellations:
            build = (cancellation.build_id, cancellation.attempt)
            for slot in self._slots:
                slot.end(Outcome.CANCELLED, f"by {cancellation.by}", build=build, grace_s=None)
        # Only attempts that were held before the question was asked: one that was claimed since is not in the answer.
        for build in held - reply.live:
            for slot in self._slots:
                slot.end(Outcome.LOST, "closed by others", build=build, grace_s=FENCE_GRACE_S)
        new = [order for order in reply.orders if order.id not in self._open_orders]
        for order in new:
            self._take(order)
        self._finish_orders()
        return bool(new)

    def _take(self, order: Order) -> None:
        _log.info("order.taken", order=order.id, kind=order.kind, by=order.by, note=order.note)
        if order.taken_at is None:
            orders.take(self._store, order.id)
        wanted = Wanted(kind=order.kind, note=order.note, by=order.by, deadline_at=order.deadline_at)
        self._condition.want(wanted)
        if order.kind is not OrderKind.RESUME:
            # At once: a server that answers "drained" must not take a build a moment later.
            self._gate.close(wanted.words)
        self._open_orders[order.id] = order

    def _finish_orders(self) -> None:
        """Close the orders that are carried out; a drain is when nothing is in hand any more."""
        newest = max(self._open_orders, default=0)
        for number, order in sorted(self._open_orders.items()):
            if number < newest:
                result = "replaced by a later order"
            elif order.kind in (OrderKind.RESUME, OrderKind.QUARANTINE):
                result = "done"
            elif not self._gate.is_open and not self._gate.in_hand:
                result = "drained"
            else:
                continue
            orders.done(self._store, number, result)
            self._vitals.metrics.add(gauge.ORDERS_DONE, 1, kind=order.kind)
            del self._open_orders[number]

    def _release_ghosts(self, live: frozenset[tuple[str, int]]) -> None:
        """Give back attempts that are ours on record and in no slot.

        A claim whose commit succeeded and whose answer was lost makes one: the slot has put the id back, and
        nobody would ever end the attempt. Old enough means that no claim can still be under way.
        """
        now_mono = clock.mono()
        unheld = live - self._held()
        self._ghosts = {build: self._ghosts.get(build, now_mono) for build in unheld}
        for build, since_mono in list(self._ghosts.items()):
            if now_mono - since_mono < GHOST_S:
                continue
            ref = AttemptRef(build_id=build[0], number=build[1], session=self._lease.session)
            if attempts.release(self._store, ref, why="claimed by this server, which never heard of it"):
                _log.warning("attempt.released", build=ref.build_id, attempt=ref.number)
            del self._ghosts[build]

    def _expect_ends(self) -> None:
        """While the server drains, learn how long what runs in it usually takes."""
        if self._gate.is_open:
            return
        for slot in self._slots:
            claim = slot.claim
            if claim is not None and slot.typical_s is None:
                slot.typical_s = builds.typical_duration_s(self._store, claim.project)

    def _look_at_clock(self) -> None:
        if clock.mono() - self._skew_at_mono < SKEW_S:
            return
        self._skew_at_mono = clock.mono()
        self._link.skew_s = self._store.clock_skew_s()

    def leave(self, state: ServerState, reason: str | None) -> None:
        """Sign off; a drain that ends with the agent is done.

        Raises: StoreUnavailable.
        """
        if not self._is_registered:
            return  # never signed on, as when the database has no schema yet, or taken for lost
        servers.leave(
            self._store,
            server_id=self._registration().identity.id,
            session=self._lease.session,
            state=state,
            reason=reason,
        )
        self._finish_orders()


class RedisHeartbeat:
    """`cycle` once every `heartbeat_s`."""

    def __init__(self, *, carrier: Carrier, vitals: Vitals, slots: Sequence[Slot]) -> None:
        self._carrier = carrier
        self._vitals = vitals
        self._link = vitals.redis
        self._lease = vitals.lease
        self._lease_s = vitals.settings.lease_s
        self._slots = slots
        self._count = 0
        self._showed_at_mono = clock.mono() - RQ_LIFE_S  # the first beat compares the clocks
        self._was_up = True

    def cycle(self) -> None:
        """Beat once; once a minute, and when Redis was away or is empty, renew what RQ shows.

        Raises: QueueUnavailable.
        """
        sent_mono = clock.mono()
        self._count += 1
        was_up, self._was_up = self._was_up, False
        with self._link.trying():
            was_known = leases.beat(
                self._carrier.connection, self._lease.session, self._count, lease_s=self._lease_s
            )
            self._was_up = True
            self._lease.renewed(sent_mono, is_confirmed=False)
            self._vitals.is_suspended = self._carrier.is_suspended()
            if not was_up or not was_known or sent_mono - self._showed_at_mono >= RQ_LIFE_S:
                self._showed_at_mono = sent_mono
                self._show_life()

    def _show_life(self) -> None:
        for slot in self._slots:
            slot.show_life()
        before = clock.utc_now().timestamp()
        there = self._carrier.clock()
        after = clock.utc_now().timestamp()
        self._link.skew_s = there - (before + after) / 2
