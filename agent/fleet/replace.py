"""Servers that are to be replaced: those of another image than their pool's, and those that have grown old.

New ones come before old ones leave, and never more of them at once than the policy's surge: what is drained is what the
new ones have taken over.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from agent.fleet.view import Condition, Member, PoolView
from agent.model.fleet import Purpose


@dataclass(frozen=True, kw_only=True, slots=True)
class Replacement:
    """What replacing asks for: how many to start, who may leave now, and why."""

    outgoing: Sequence[Member]
    start: int
    leave: Sequence[Member]
    reason: str


def plan(view: PoolView, *, wanted: int, starts_allowed: int) -> Replacement:
    """Say what to do towards a pool of the right image and age.

    Args:
        wanted: how many servers the scaling rule wants.
    """
    policy, rollout = view.pool.policy, view.rollout
    outgoing = _outdated(view)
    reason = "started from another image"
    surge = policy.surge_of(wanted)
    if not outgoing and rollout is None:
        outgoing = _aged(view)[:surge]
        reason = f"older than {policy.max_age_s:g} s"
    if rollout is not None and rollout.is_hastened:
        surge = max(surge, wanted)
    going = set(outgoing)
    staying = [it for it in view.capacity if it not in going and it not in view.trial]
    ready = sum(it.condition is Condition.ACCEPTING for it in staying)
    total = len(staying) + len(outgoing)
    start = max(0, min(wanted - len(staying), wanted + surge - total, starts_allowed)) if outgoing else 0
    spare = ready + sum(it.condition is Condition.ACCEPTING for it in outgoing) - wanted
    # One that boots and is not wanted any more runs nothing: it goes at once.
    booting = [it for it in outgoing if it.condition is Condition.BOOTING]
    order = sorted(
        (it for it in outgoing if it.condition is Condition.ACCEPTING),
        key=lambda it: (it.running, it.began_at),
    )
    return Replacement(
        outgoing=outgoing, start=start, leave=[*booting, *order[: max(0, spare)]], reason=reason
    )


def is_outdated(view: PoolView, member: Member) -> bool:
    """Whether a member is of another image than its pool's, and not because it tries one or a person wanted it so."""
    machine = member.machine
    return (
        machine is not None
        and machine.purpose is not Purpose.MANUAL
        and view.pool.image_id is not None
        and machine.image_id != view.pool.image_id
        and member not in view.trial
    )


def _outdated(view: PoolView) -> list[Member]:
    return [it for it in view.capacity if is_outdated(view, it)]


def _aged(view: PoolView) -> list[Member]:
    max_age_s = view.pool.policy.max_age_s
    if not max_age_s:
        return []
    limit = view.at - timedelta(seconds=max_age_s)
    return [
        it for it in view.of(Condition.ACCEPTING) if it.machine and (it.machine.served_at or view.at) < limit
    ]
