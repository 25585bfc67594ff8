"""Pools whose servers an Auto Scaling group starts and ends: the controller decides a number, the group does the rest.

Instances of the group are put on record as they appear. One that builds is protected from the group's own scale-in and
rebalancing. Hooks that hold an instance are completed when its server takes builds, or when nothing runs there any more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from agent import clock, log
from agent.fleet.ground import Ground
from agent.fleet.group import Group, GroupState, Mate
from agent.fleet.hands import Done, Hands
from agent.fleet.reconcile import TERMINATE_LIMIT_S
from agent.fleet.view import Condition, Member, PoolView
from agent.model.fleet import FleetMachine, MachineState, Pool, Purpose
from agent.store import images, machines
from agent.store.fleet_survey import FleetSurvey

# A hook's time is prolonged so often; the shortest there is lasts 30 s.
_HOLD_S = 20.0

_log = log.get("fleet")


class Grouping:
    """Used by the controller's thread, for one life as leader."""

    def __init__(self, ground: Ground, hands: Hands) -> None:
        self._ground = ground
        self._hands = hands
        self._states: dict[str, GroupState] = {}
        self._held: dict[str, float] = {}
        self._faults: dict[str, str] = {}

    def ask(self, pools: Sequence[Pool]) -> None:
        """Have the groups asked for their instances."""
        for pool in pools:
            if pool.policy.group:
                self._hands.do("group", pool.name, partial(_look, self._ground, pool))

    def take(self, done: Done, survey: FleetSurvey) -> None:
        """Take what a group has answered: put new instances on record, and note which have gone."""
        if done.key[0] in ("protect", "hook", "template", "want") and done.fault is not None:
            _log.warning("fleet.group_fault", str(done.fault), what=done.key[0], thing=done.key[1])
        if done.key[0] != "group":
            return
        name = done.key[1]
        if done.fault is not None:
            if self._faults.get(name) != str(done.fault):
                self._faults[name] = str(done.fault)
                _log.warning("fleet.group_fault", str(done.fault), what="group", thing=name)
            return
        self._faults.pop(name, None)
        self._states[name] = done.answer
        pool = next((it for it in survey.pools if it.name == name), None)
        if pool is not None:
            self._adopt(pool, done.answer.mates, [it for it in survey.machines if it.pool == name])

    def _adopt(self, pool: Pool, mates: Mapping[str, Mate], known: Sequence[FleetMachine]) -> None:
        by_id = {it.provider_machine_id: it for it in known}
        for mate in mates.values():
            if mate.id not in by_id and not mate.is_leaving:
                with self._ground.writing() as connection:
                    machines.adopt(
                        connection,
                        pool=pool.name,
                        provider=pool.provider,
                        name=mate.id,
                        provider_machine_id=mate.id,
                        image_id=_image_of(self._ground, mate.image, pool),
                        boot_limit_s=pool.policy.boot_limit_s,
                    )
        for it in known:
            is_ended = it.provider_machine_id not in mates and it.state is not MachineState.TERMINATING
            if it.purpose is Purpose.GROUP and is_ended:
                self._ground.move(
                    it, MachineState.TERMINATING, reason="the group has it no more", limit_s=TERMINATE_LIMIT_S
                )

    def coming(self, pool: Pool) -> int:
        """Return how many instances a pool's group is to start yet."""
        state = self._states.get(pool.name)
        return state.coming if pool.policy.group and state is not None else 0

    def want_more(self, pool: Pool, count: int, reason: str) -> None:
        """Have a pool's group start more instances; nothing while it is not known how many it is to have."""
        state = self._states.get(pool.name)
        if state is None or self._hands.is_busy("want", pool.name):
            return
        wanted = state.desired + count
        # From now on they are coming; a look that is under way may say otherwise, and then the same is wanted again.
        self._states[pool.name] = GroupState(desired=wanted, mates=state.mates)
        self._hands.do("want", pool.name, partial(_want, self._ground, pool, wanted))
        told = f"group {pool.policy.group} is to have {wanted}: {reason}"
        self._ground.event("pool", pool.name, told, pool=pool.name)

    def settle(self, view: PoolView) -> None:
        """Protect what builds, let hooks go on, and have new instances started from the pool's image."""
        if not view.pool.policy.group or view.pool.name not in self._states:
            return
        mates = self._states[view.pool.name].mates
        pairs = [
            (it, mates[machine_id])
            for it in view.members
            if it.machine is not None and (machine_id := str(it.machine.provider_machine_id)) in mates
        ]
        self._protect(view.pool, pairs)
        for member, mate in pairs:
            if mate.waits_for is not None:
                self._answer_hook(view.pool, member, mate)
        if view.pool.image_id is not None:
            self._hands.do("template", view.pool.name, partial(_set_template, self._ground, view.pool))

    def _protect(self, pool: Pool, pairs: Sequence[tuple[Member, Mate]]) -> None:
        for on in (True, False):
            ids = [
                mate.id
                for member, mate in pairs
                if mate.is_protected is not on and (member.running > 0) is on and not mate.is_leaving
            ]
            if ids:
                key = f"{pool.name} {'on' if on else 'off'}"
                self._hands.do("protect", key, partial(_protect, self._ground, pool, ids, on=on))

    def _answer_hook(self, pool: Pool, member: Member, mate: Mate) -> None:
        is_coming = not mate.is_leaving
        is_ready = member.condition is Condition.ACCEPTING if is_coming else _is_empty(member)
        if is_ready:
            self._hands.do("hook", mate.id, partial(_complete, self._ground, pool, mate))
        elif clock.mono() - self._held.get(mate.id, float("-inf")) >= _HOLD_S:
            self._held[mate.id] = clock.mono()
            self._hands.do("hook", mate.id, partial(_hold, self._ground, pool, mate))


def _is_empty(member: Member) -> bool:
    """Whether nothing runs on a server that is to go, and nothing more will."""
    return member.running == 0 and member.condition not in (Condition.ACCEPTING, Condition.BOOTING)


def _image_of(ground: Ground, provider_image_id: str, pool: Pool) -> str | None:
    """Return which image of the catalogue an instance was started from."""
    found = [
        it
        for it in images.list_images(ground.store, provider=pool.provider)
        if it.provider_image_id == provider_image_id
    ]
    return found[0].id if found else pool.image_id


def _need(ground: Ground, pool: Pool) -> Group:
    group = ground.group_of(pool)
    if group is None:
        raise ValueError(f"pool {pool.name} has no group")
    return group


def _look(ground: Ground, pool: Pool) -> GroupState:
    return _need(ground, pool).look()


def _want(ground: Ground, pool: Pool, servers: int) -> None:
    _need(ground, pool).want(servers)


def _protect(ground: Ground, pool: Pool, ids: Sequence[str], *, on: bool) -> None:
    _need(ground, pool).protect(ids, on=on)


def _complete(ground: Ground, pool: Pool, mate: Mate) -> None:
    _need(ground, pool).complete(mate)


def _hold(ground: Ground, pool: Pool, mate: Mate) -> None:
    _need(ground, pool).hold(mate)


def _set_template(ground: Ground, pool: Pool) -> None:
    group, image = _need(ground, pool), images.get(ground.store, str(pool.image_id))
    if group.image() != image.provider_image_id:
        group.start_from(str(image.provider_image_id), ground.user_data(pool))
