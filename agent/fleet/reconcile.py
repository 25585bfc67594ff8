"""Machines, servers and the provider compared, each against the others: every machine is brought one step on.

    wanted       launched; by its token, so that doing it again finds the first
    booting      serves when its server takes builds; ended with its console's last words when it doesn't in time
    serving      ended when its server has left or died, replaced when it can't build for long, gone when the provider has
                 it no more
    leaving      ended when its server has signed off, or the drain's limit is over
    terminating  asked for again until the provider has it no more

What the provider has and nobody here has asked for is ended, if it carries this fleet's own id; all else is left alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial

from agent import clock, log
from agent.errors import AgentError
from agent.fleet.ground import Ground
from agent.fleet.hands import Done, Hands
from agent.fleet.provider import TAG_MACHINE, Machine, Provider, ProviderUnavailable
from agent.fleet.provider import MachineState as Seen
from agent.fleet.view import Condition, Member, PoolView
from agent.model.fleet import FleetMachine, MachineState, Pool, Purpose
from agent.model.server import ServerState
from agent.store import images, machines

LAUNCH_LIMIT_S = 300.0
TERMINATE_LIMIT_S = 300.0
# A server whose heartbeat stood still may come back: its network was cut, or its agent was restarted.
LOST_GRACE_S = 60.0
_CONSOLE_CHARS = 400
# So many listings in a row must lack a machine, and none counts while it is new: EC2 lists what it made with a delay.
_MISSED = 2
_VISIBLE_S = 15.0
_ASKED_IN = {
    "launch": MachineState.WANTED,
    "look": MachineState.BOOTING,
    "end": MachineState.TERMINATING,
}
_ENDED = frozenset({Seen.TERMINATED, Seen.TERMINATING})

_log = log.get("fleet")


@dataclass(slots=True)
class _Listing:
    """What a provider had when it was asked last, and how often in a row each machine was not among it."""

    found: Mapping[str, Machine] = field(default_factory=dict)
    missed: dict[str, int] = field(default_factory=dict)
    fault: str | None = None
    count: int = 0


class Reconciler:
    """Used by the controller's thread, for one life as leader."""

    def __init__(self, ground: Ground, hands: Hands) -> None:
        self._ground = ground
        self._hands = hands
        self._listings: dict[str, _Listing] = {}
        self._unready: dict[str, float] = {}
        self._faults: dict[str, str] = {}

    # What came back from the providers.

    def list_all(self, providers: Sequence[str]) -> None:
        """Have the providers asked what they have."""
        tags = {key: text for key, text in self._ground.tags("").items() if text}
        for name in providers:
            self._hands.do("list", name, partial(_list, self._ground, name, tags))

    def take(self, done: Done, by_id: Mapping[str, FleetMachine]) -> None:
        """Take what a call has brought; `by_id` are the machines as they stand now."""
        kind, thing = done.key
        if kind == "list":
            self._take_listing(thing, done)
            return
        machine = by_id.get(thing)
        if machine is None or machine.state is not _ASKED_IN.get(kind):
            return  # it has moved on meanwhile; what was made is found by its tags
        if done.fault is not None:
            self._take_fault(kind, machine, done.fault)
        elif kind == "launch":
            self._ground.move(
                machine, MachineState.BOOTING,
                provider_machine_id=done.answer[0].id, limit_s=done.answer[1],
            )  # fmt: skip
        elif kind == "end" and done.answer:
            self._faults.pop(machine.id, None)
            self._ground.move(machine, MachineState.GONE)
        elif kind == "look":
            self._end(machine, done.answer)

    def _take_listing(self, provider: str, done: Done) -> None:
        listing = self._listings.setdefault(provider, _Listing())
        if done.fault is not None:
            if listing.fault is None:
                _log.warning("fleet.provider_away", str(done.fault), provider=provider)
            listing.fault = str(done.fault)
            return
        if listing.fault is not None:
            _log.info("fleet.provider_back", provider=provider)
        listing.fault = None
        listing.count += 1
        listing.found = {it.id: it for it in done.answer}

    def _take_fault(self, kind: str, machine: FleetMachine, fault: Exception) -> None:
        told = f"{fault}" if isinstance(fault, AgentError) else f"{type(fault).__name__}: {fault}"
        if kind == "look":
            self._end(machine, None)
            return
        if kind == "launch" and isinstance(fault, AgentError) and not isinstance(fault, ProviderUnavailable):
            self._ground.move(machine, MachineState.TERMINATING, fault=f"refused: {told}", limit_s=0)
            return
        if self._faults.get(machine.id) != told:
            self._faults[machine.id] = told
            self._ground.event("machine", machine.id, f"{kind}: {told}; asked again", pool=machine.pool)

    # One step of each machine.

    @property
    def faults(self) -> Mapping[str, str]:
        """Why providers can't be asked, by name."""
        return {name: it.fault for name, it in self._listings.items() if it.fault is not None}

    def settle(self, view: PoolView) -> None:
        """Bring each machine of a pool one step on."""
        for member in view.members:
            machine = member.machine
            if machine is not None:
                self._step(view, member, machine)

    def _step(self, view: PoolView, member: Member, machine: FleetMachine) -> None:
        match machine.state:
            case MachineState.WANTED:
                self._launch(view, machine)
            case MachineState.BOOTING:
                self._boot(view, member, machine)
            case MachineState.SERVING:
                self._serve(view, member, machine)
            case MachineState.LEAVING:
                self._leave(view, member, machine)
            case MachineState.TERMINATING:
                self._terminate(view, machine)

    def _launch(self, view: PoolView, machine: FleetMachine) -> None:
        if _is_late(machine, view.at):
            why = self._faults.pop(machine.id, "no answer")
            self._ground.move(
                machine,
                MachineState.TERMINATING,
                fault=f"not started in time: {why}",
                limit_s=TERMINATE_LIMIT_S,
            )
            return
        ground, pool = self._ground, view.pool

        def call() -> tuple[Machine, float]:
            image = images.get(ground.store, str(machine.image_id))
            return ground.launch(machine, pool, image), pool.policy.boot_limit_s

        self._hands.do("launch", machine.id, call)

    def _boot(self, view: PoolView, member: Member, machine: FleetMachine) -> None:
        server = member.server
        if server is not None and server.state is ServerState.ACCEPTING:
            self._ground.move(machine, MachineState.SERVING, server_id=server.id)
        elif self._has_vanished(machine):
            self._ground.move(
                machine,
                MachineState.TERMINATING,
                fault="it ended before it took builds",
                limit_s=TERMINATE_LIMIT_S,
            )
        elif _is_late(machine, view.at):
            told = (
                "no server has registered"
                if server is None
                else f"{server.state}: {server.state_reason or '?'}"
            )
            self._faults[machine.id] = f"no builds within {view.pool.policy.boot_limit_s:g} s ({told})"
            provider, seen = self._provider(machine), machine.provider_machine_id
            self._hands.do("look", machine.id, lambda: provider.console_output(str(seen))[-_CONSOLE_CHARS:])

    def _end(self, machine: FleetMachine, console: str | None) -> None:
        """End a machine that did not come up, with its last words."""
        fault = self._faults.pop(machine.id, "it did not come up")
        if console and console.strip():
            fault += f"; its console ends: {' '.join(console.split())}"
        self._ground.move(machine, MachineState.TERMINATING, fault=fault, limit_s=TERMINATE_LIMIT_S)

    def _serve(self, view: PoolView, member: Member, machine: FleetMachine) -> None:
        server = member.server
        if server is not None and machine.server_id != server.id:
            with self._ground.writing() as connection:
                machines.link(connection, machine.id, server.id)
        if self._has_vanished(machine):
            self._ground.move(
                machine,
                MachineState.TERMINATING,
                reason="the provider has it no more",
                limit_s=TERMINATE_LIMIT_S,
            )
            return
        if member.condition is Condition.DEAD:
            is_lost = server is not None and server.state is ServerState.LOST
            grace = timedelta(seconds=LOST_GRACE_S if is_lost else 0)
            if server is None or view.at - server.beat_at >= grace:
                why = (
                    "its server is not on record"
                    if server is None
                    else _left(server.state, server.state_reason)
                )
                self._ground.move(machine, MachineState.TERMINATING, reason=why, limit_s=TERMINATE_LIMIT_S)
            return
        if member.condition is Condition.LEAVING and server is not None:
            # The cloud takes it back, or its agent is being stopped; the reason is its own.
            self._ground.move(
                machine, MachineState.LEAVING,
                reason=server.state_reason or "it drains by itself", limit_s=view.pool.policy.drain_limit_s,
            )  # fmt: skip
            return
        self._watch_unready(view, member, machine)

    def _watch_unready(self, view: PoolView, member: Member, machine: FleetMachine) -> None:
        if member.condition is not Condition.UNREADY:
            self._unready.pop(machine.id, None)
            return
        since_mono = self._unready.setdefault(machine.id, clock.mono())
        policy = view.pool.policy
        if (
            policy.unready_limit_s
            and clock.mono() - since_mono >= policy.unready_limit_s
            and not view.pool.paused_why
        ):
            reason = (member.server.state_reason if member.server else None) or "it can't build"
            note = f"not ready for {policy.unready_limit_s:g} s: {reason}"
            self._ground.leave(member, note=note, drain_limit_s=policy.drain_limit_s, only_idle=False)

    def _leave(self, view: PoolView, member: Member, machine: FleetMachine) -> None:
        server = member.server
        is_over = server is None or server.state in (
            ServerState.TERMINATED,
            ServerState.STOPPED,
            ServerState.FAILED,
            ServerState.LOST,
        )
        if is_over or _is_late(machine, view.at) or self._has_vanished(machine):
            late = None if is_over else "it did not leave in time"
            self._ground.move(machine, MachineState.TERMINATING, reason=late, limit_s=TERMINATE_LIMIT_S)
        elif server is not None and server.state is ServerState.DRAINED and server.wanted_by is None:
            # Drained by the cloud's word; nothing runs there any more.
            self._ground.move(machine, MachineState.TERMINATING, limit_s=TERMINATE_LIMIT_S)

    def _terminate(self, view: PoolView, machine: FleetMachine) -> None:
        if machine.deadline_at is not None and _is_late(machine, view.at):
            with self._ground.writing() as connection:
                machines.move(connection, machine, MachineState.TERMINATING, limit_s=TERMINATE_LIMIT_S)
            if machine.changed_at < view.at - timedelta(seconds=TERMINATE_LIMIT_S / 2):
                told = self._faults.get(machine.id, "the provider still has it")
                self._ground.event(
                    "machine", machine.id, f"does not end: {told}; asked again", pool=machine.pool
                )
        self._hands.do("end", machine.id, self._ending(view.pool, machine))

    def _ending(self, pool: Pool, machine: FleetMachine) -> Callable[[], bool]:
        provider, ground = self._provider(machine), self._ground

        def call() -> bool:
            """End what there is of a machine; whether nothing is left."""
            tags = {TAG_MACHINE: machine.id}
            ids = [machine.provider_machine_id] if machine.provider_machine_id else []
            if machine.purpose is not Purpose.GROUP:
                ids += [it.id for it in provider.list_machines(tags) if it.id not in ids]
            elif (group := ground.group_of(pool)) is not None:
                group.end(str(machine.provider_machine_id))
            for each in ids:
                provider.terminate(each)
            left = [provider.get(each) for each in ids]
            return all(it is None or it.state is Seen.TERMINATED for it in left)

        return call

    # What the provider has.

    def end_orphans(self, provider: str, by_id: Mapping[str, FleetMachine]) -> list[str]:
        """End what a provider has of this fleet that no machine on record stands for; return what it is."""
        listing = self._listings.get(provider)
        if listing is None or listing.fault is not None:
            return []
        named = {it.provider_machine_id for it in by_id.values()}
        found = []
        for it in listing.found.values():
            asked = it.tags.get(TAG_MACHINE)
            if asked is None or asked in by_id or it.id in named or it.state in _ENDED:
                continue
            found.append(f"{it.id} ({it.name})")
            if not self._hands.is_busy("orphan", it.id):
                self._ground.event(
                    "machine", asked, f"{it.id} is at provider {provider} and not on record any more: ended"
                )
            self._hands.do("orphan", it.id, partial(_end_orphan, self._ground, provider, it.id))
        return found

    def count_missed(self, provider: str, known: Sequence[FleetMachine], at: datetime) -> None:
        """After a new listing: note which machines it lacks."""
        listing = self._listings.get(provider)
        if listing is None or listing.fault is not None:
            return
        missed = listing.missed
        listing.missed = {}
        for it in known:
            there = listing.found.get(str(it.provider_machine_id))
            if it.purpose is Purpose.GROUP:
                continue  # the group says what it has
            is_new = at - it.created_at < timedelta(seconds=_VISIBLE_S) and there is None
            is_missing = (
                it.provider_machine_id is not None
                and not is_new
                and (there is None or there.state in _ENDED or there.state is Seen.STOPPED)
            )
            if is_missing:
                listing.missed[it.id] = missed.get(it.id, 0) + 1

    def _has_vanished(self, machine: FleetMachine) -> bool:
        listing = self._listings.get(machine.provider)
        return listing is not None and listing.missed.get(machine.id, 0) >= _MISSED

    def _provider(self, machine: FleetMachine) -> Provider:
        return self._ground.provider_of(machine.provider)


def _list(ground: Ground, provider: str, tags: Mapping[str, str]) -> Sequence[Machine]:
    return ground.provider_of(provider).list_machines(tags)


def _end_orphan(ground: Ground, provider: str, machine_id: str) -> None:
    ground.provider_of(provider).terminate(machine_id)


def _is_late(machine: FleetMachine, at: datetime) -> bool:
    return machine.deadline_at is not None and machine.deadline_at <= at


def _left(state: ServerState, reason: str | None) -> str:
    return f"its server is {state}" + (f": {reason}" if reason else "")
