"""One life of the daemon: starts the parts in order, watches them, and takes them apart.

Start order: what a former life left running is ended, its spool is shipped, and only then does the server register:
so nothing runs twice, and a build that had ended before the crash ends as it had.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from agent import clock, log
from agent.config import Settings
from agent.daemon import canary
from agent.daemon.health import HealthEndpoint
from agent.daemon.link import Link
from agent.daemon.loop import Loop
from agent.daemon.parts import Parts
from agent.daemon.signals import Signals
from agent.daemon.status import Status
from agent.daemon.vitals import Vitals
from agent.errors import AgentError, AgentFailed
from agent.host import memory, processes
from agent.host.guardian import Guardian
from agent.host.identity import identify
from agent.host.sdnotify import Notifier
from agent.metrics import catalogue as gauge
from agent.model.outcome import Outcome
from agent.model.server import ServerState
from agent.store import schema

T = TypeVar("T")

# A loop that has not come round for so long hangs: it is a few statements at their limit of 15 s, one by one.
HANG_S = 90.0
WATCH_S = 1.0  # between two looks of the main thread at everything; signals and orders wake it
# A small part of the sixth of a lease that fencing has. While the lease can't be due yet the looks are rarer, to
# let an idle processor sleep; but a wait stands still while the machine is suspended, and the lease does not.
FENCE_LOOK_S = 0.2
FENCE_FIRST_LOOK_S = 1.0
# At the end: how long the database may take for what is in the spool, and the sinks for the last gauges.
FLUSH_S = 10.0
SINKS_S = 3.0

_log = log.get("agent")


def run(settings: Settings) -> int:
    """Run the daemon until it is told to stop; return its exit code.

    Raises: AgentError that a person has to mend: settings, schema, an address in use.
    """
    return Agent(settings).run()


class Agent:
    """`run` is called once, by the main thread."""

    def __init__(self, settings: Settings) -> None:
        for folder in (settings.state_dir, settings.spool_dir, settings.workspace_dir):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._settings = settings
        self._signals = Signals()
        self._notifier = Notifier()
        self._vitals = Vitals(settings, on_change=self._signals.wake)
        self._guardian = Guardian(settings.state_dir)
        self._loops: list[Loop] = []
        self._slot_loops: list[Loop] = []
        self._beat: Loop | None = None
        self._parts: Parts | None = None
        self._is_fencing = False
        self._status = Status(self._vitals, dead=self._dead_loops)
        self._endpoint: HealthEndpoint | None = None

    def run(self) -> int:
        """Live."""
        self._signals.install()
        processes.set_child_subreaper()
        memory.use_one_arena()
        if self._settings.health_address:
            self._endpoint = HealthEndpoint(self._settings.health_address, self._status.views())
            self._endpoint.start()
        self._guardian.end_former_life()
        self._guardian.start()
        try:
            canary.admit(self._settings, life=self._guardian.life)
            if self._come_up():
                self._watch()
        finally:
            self._go_down()
        return 0 if self._vitals.failure is None else AgentFailed.exit_code

    # Start.

    def _come_up(self) -> bool:
        """Start everything in order; whether nobody said stop meanwhile."""
        vitals = self._vitals
        # Who the server is comes from the metadata service on EC2, which may be late at boot.
        identity = self._await(None, partial(identify, self._settings))
        if identity is None:
            return False
        self._parts = parts = Parts(
            vitals,
            identity,
            guardian=self._guardian,
            status=self._status.summary,
            read_gauges=self._status.set_gauges,
        )
        self._status.parts = parts
        if self._await(vitals.database, partial(_true, partial(schema.check, parts.store))) is None:
            return False
        vitals.spool.recover()
        self._add_loop("shipper", parts.shipper.cycle, interval_s=0).start()
        if not self._former_spool_is_shipped():
            return False
        if self._await(vitals.database, partial(_true, parts.heartbeat.register)) is None:
            return False
        if self._await(vitals.redis, partial(_true, parts.carrier.ping)) is None:
            return False
        with contextlib.suppress(AgentError):
            # What resists is in the log; it blocks no build, and preflight watches the disk.
            parts.shop.workspaces.sweep(keep=set())
        parts.shop.caches.sweep()
        self._start_loops(parts)
        self._announce(parts)
        return True

    def _await(self, link: Link | None, ask: Callable[[], T]) -> T | None:
        """Ask until answered; `None` when a signal to stop came first.

        Raises: AgentError that waiting does not help.
        """
        waits = clock.backoff(limit_s=5.0)
        while not self._signals.stop_count:
            try:
                answer = ask()
            except AgentError as error:
                if not error.is_retriable:
                    raise
                if link is not None:
                    link.fail(str(error))
                self._decide()
                self._notifier.status(f"waiting: {error}")
                self._notifier.extend_timeout(HANG_S)
                self._signals.wait(next(waits))
            else:
                if link is not None:
                    link.succeed()
                return answer
        return None

    def _former_spool_is_shipped(self) -> bool:
        """Wait until the database has what a former life left; whether nobody said stop meanwhile."""
        spool = self._vitals.spool
        while not spool.wait_empty(0.2):
            self._signals.wait(0.0)
            self._notifier.status(f"shipping {spool.record_count} records of the former life")
            self._notifier.extend_timeout(HANG_S)
            if self._signals.stop_count or self._has_failed():
                return False
        return True

    def _start_loops(self, parts: Parts) -> None:
        settings = self._settings
        self._beat = beat = self._add_loop(
            "database-heartbeat", parts.heartbeat.cycle, interval_s=settings.heartbeat_s
        )
        listener = parts.make_listener(on_nudge=beat.wake)
        self._add_loop("redis-heartbeat", parts.redis_heartbeat.cycle, interval_s=settings.heartbeat_s)
        self._add_loop("fence", self._fence_if_due, interval_s=FENCE_LOOK_S)
        self._add_loop("leader", self._lead, interval_s=settings.sweep_s)
        self._add_loop("listener", listener.cycle, interval_s=0)
        self._add_loop("gauges", parts.pump.cycle, interval_s=settings.gauges_interval_s)
        if parts.identity.host["cloud"] == "ec2":
            self._add_loop("host-notices", parts.read_notice, interval_s=settings.notice_s)
        for slot in parts.slots:
            # A slot's thread ends when the slot is stopped, and only then.
            loop = Loop(slot.name, slot.serve, interval_s=0, is_endless=False)
            self._slot_loops.append(loop)
        for loop in [*self._loops, *self._slot_loops]:
            if not loop.is_alive:
                loop.start()

    def _add_loop(self, name: str, cycle: Callable[[], float | None], *, interval_s: float) -> Loop:
        loop = Loop(name, cycle, interval_s=interval_s)
        self._loops.append(loop)
        return loop

    def _announce(self, parts: Parts) -> None:
        vitals = self._vitals
        vitals.condition.started()
        self._decide()
        vitals.metrics.set(gauge.START_TO_READY, vitals.uptime_s)
        vitals.metrics.set(gauge.BOOT_TO_READY, clock.mono())
        self._notifier.ready("; ".join(vitals.gate.reasons) or "taking builds")
        _log.info(
            "agent.started",
            server=parts.identity.id,
            name=parts.identity.name,
            slots=len(parts.slots),
            queues=",".join(parts.queues),
            seconds=round(vitals.uptime_s, 3),
        )

    # Run.

    def _watch(self) -> None:
        """The main thread's life: signals, fencing, the gate, dead loops, the watchdog."""
        vitals, parts = self._vitals, self._parts
        housekeeping = clock.Deadline.after(0)
        while parts is not None:
            self._signals.wait(WATCH_S)
            if self._signals.stop_count:
                self._drain()
                return
            self._decide()
            if self._has_failed():
                return
            # Time and again: a wake that comes just before the wait it is to end is lost.
            parts.carrier.wake(
                slot.waiter
                for slot, loop in zip(parts.slots, self._slot_loops, strict=True)
                if slot.is_stopping and loop.is_alive
            )
            if not any(loop.is_alive for loop in self._slot_loops):
                _log.info("agent.all_slots_shut", "every slot was shut down through RQ")
                return
            if vitals.condition.is_draining:
                if vitals.condition.drain_deadline.is_passed:
                    self._end_all(Outcome.PREEMPTED, vitals.condition.give_back_words, grace_s=None)
                if vitals.condition.is_leaving_asked and not vitals.gate.in_hand:
                    _log.info("agent.terminated", vitals.condition.wanted.words)
                    return
            if housekeeping.is_passed:
                housekeeping = clock.Deadline.after((self._notifier.watchdog_interval_s or 10.0) / 2)
                self._notifier.alive()
                if not self._guardian.is_alive:
                    # An agent that is killed without a guardian would leave its steps behind.
                    self._guardian.start()
                guardian = self._guardian.pid
                processes.reap_orphans([guardian] if guardian else [], grace_s=10.0)

    def _lead(self) -> None:
        if self._parts is not None and self._vitals.redis.is_up and self._vitals.database.is_up:
            self._parts.leader.cycle()

    def _decide(self) -> None:
        """Open or close the gate by what is known now, and end the slots' waits when it closes."""
        gate = self._vitals.gate
        while True:
            before = gate.reasons
            reasons = tuple(self._vitals.judge().reasons)
            if reasons == before:
                return
            if gate.set_reasons(reasons, instead_of=before):
                break
        was_open = not before
        self._notifier.status("; ".join(reasons) or "taking builds")
        if was_open != gate.is_open and self._beat is not None:
            self._beat.wake()  # the record says at once whether the server takes builds, and why not
        if was_open and self._parts is not None:
            self._parts.wake_slots()

    def _fence_if_due(self) -> float:
        """End every step before others may take this server for dead.

        In a loop of its own that waits for nobody: the others speak with Redis and the database, and either may
        hang for longer than the lease has left (F05). It goes on while the agent drains and ends.

        Return when to look again: before then the lease can't be due, for a renewal only puts it off.
        """
        lease = self._vitals.lease
        if not lease.must_fence:
            # Should all of this process hang, the guardian does it, just behind the KILL sent from here.
            self._guardian.hold_for(lease.fence_due_s + lease.fence_reserve_s / 2)
        was_fencing = self._is_fencing
        self._is_fencing = lease.must_fence and self._vitals.gate.in_hand > 0
        if not self._is_fencing:
            return min(FENCE_FIRST_LOOK_S, max(FENCE_LOOK_S, lease.fence_due_s))
        if not was_fencing:
            _log.error("agent.fencing", f"no heartbeat got through for {lease.age_s:.0f} s")
        why = "the server could reach neither the database nor Redis"
        self._end_all(Outcome.LOST, why, grace_s=lease.fence_grace_s)
        return FENCE_LOOK_S

    def _end_all(self, outcome: Outcome, why: str, *, grace_s: float | None) -> None:
        for slot in self._parts.slots if self._parts is not None else ():
            slot.end(outcome, why, build=None, grace_s=grace_s)

    def _has_failed(self) -> bool:
        """Whether a part of the agent is dead, which the agent does not survive."""
        dead = self._dead_loops()
        if dead and self._vitals.failure is None:
            self._vitals.failure = f"failed: {'; '.join(dead)}"
            _log.error("agent.failed", self._vitals.failure)
        return bool(dead)

    def _dead_loops(self) -> list[str]:
        """Name the loops that have died, or have not come round for far too long."""
        dead = [
            f"loop {loop.name} died: {type(loop.failure).__name__}: {loop.failure}"
            for loop in [*self._loops, *self._slot_loops]
            if loop.failure is not None
        ]
        return dead + [
            f"loop {loop.name} has hung for {loop.silent_s:.0f} s"
            for loop in self._loops
            if loop.is_alive and loop.silent_s > HANG_S + loop.interval_s
        ]

    # End.

    def _drain(self) -> None:
        """After the first signal: finish what runs, up to the limit; after the second: give it back."""
        vitals = self._vitals
        vitals.condition.stop("the agent is stopping")
        self._notifier.stopping("draining")
        _log.info("agent.draining", builds=vitals.gate.in_hand, limit_s=self._settings.stop_limit_s)
        limit = clock.Deadline.after(self._settings.stop_limit_s)
        for slot in self._parts.slots if self._parts is not None else ():
            slot.stop()  # now, or one that has yet to tell RQ of an end would wait for a Redis that is away
        self._decide()
        while vitals.gate.in_hand and self._signals.stop_count < 2 and not limit.is_passed:
            self._notifier.extend_timeout(30.0)
            self._notifier.alive()
            self._signals.wait(0.2)
            self._decide()
            if self._has_failed() or vitals.condition.drain_deadline.is_passed:
                return

    def _go_down(self) -> None:
        """Take everything apart, slots first, so that what they hold is given back while all else still works."""
        vitals = self._vitals
        why = vitals.failure or "the agent is stopping"
        # The service manager's watchdog ends with this, and it gives the hand-over the time it may take.
        self._notifier.stopping(why)
        self._notifier.extend_timeout(HANG_S)
        vitals.condition.stop(why)
        vitals.gate.set_reasons([why])
        limit = clock.Deadline.after(self._settings.kill_grace_s + FLUSH_S)
        while True:
            # Over and over: a slot between the gate and its claim has nothing that could be ended yet.
            self._end_all(Outcome.PREEMPTED, why, grace_s=None)
            if vitals.gate.wait_idle(0.2) or limit.is_passed:
                break
        if self._parts is not None:
            for slot in self._parts.slots:
                slot.stop()
            self._parts.wake_slots()
            if vitals.database.is_up:
                vitals.spool.wait_empty(FLUSH_S)
        # What the database could not be told stays in the spool, for the next life.
        vitals.leaving.set()
        vitals.gate.wait_idle(2.0)
        for loop in [*self._slot_loops, *self._loops]:
            loop.stop()
        if self._parts is not None:
            self._parts.end_waits()
        self._join_loops()
        if self._parts is not None:
            self._sign_off(self._parts)
        if self._endpoint is not None:
            self._endpoint.close()
        if not vitals.gate.in_hand:  # or it stays, and ends what this process could not
            self._guardian.dismiss()
        _log.info("agent.ended", vitals.failure or "")

    def _join_loops(self) -> None:
        deadline = clock.Deadline.after(2.0)
        while any(loop.is_alive for loop in self._slot_loops) and not deadline.is_passed:
            # Time and again: one that comes just before the wait it is to end is lost.
            if self._parts is not None:
                self._parts.wake_slots()
            clock.sleep(0.02)
        for loop in self._loops:
            loop.join(2.0)

    def _sign_off(self, parts: Parts) -> None:
        """Tell the others; each stage is guarded alone, so that one that fails costs no other."""
        vitals = self._vitals
        state = ServerState.STOPPED
        if vitals.failure:
            state = ServerState.FAILED
        elif vitals.condition.is_leaving_asked:
            state = ServerState.TERMINATED
        stages = (partial(parts.heartbeat.leave, state, vitals.failure), parts.leader.resign)
        for stage in stages:
            try:
                stage()
            except AgentError as error:
                _log.warning("agent.sign_off_failed", str(error))
        parts.pump.close(SINKS_S)


def _true(ask: Callable[[], object]) -> bool:
    ask()
    return True
