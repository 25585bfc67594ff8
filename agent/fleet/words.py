"""How the fleet reads to people, in the terminal and in the console."""

from __future__ import annotations

from agent.fleet.report import Fleet
from agent.fleet.view import Condition, PoolView
from agent.model import wording
from agent.model.fleet import Rollout

NOBODY_LEADS = "no controller leads the fleet, so nothing is started or ended: build-agent fleet run"


def is_led(fleet: Fleet) -> bool:
    """Whether a controller leads. One that has said nothing for longer than its lease may be dead."""
    lead = fleet.lead
    is_silent = lead.beat_at is None or (fleet.at - lead.beat_at).total_seconds() > lead.lease_s
    return lead.holder is not None and not is_silent


def problems(fleet: Fleet) -> list[str]:
    """Return what is wrong: as the leader tells it; without one, what can be seen from here."""
    if not is_led(fleet):
        return [
            f"queue {name} is served by no pool and no server: {wording.count(number, 'build')} waiting there"
            for name, number in sorted(fleet.unserved.items())
        ]
    told = list(fleet.lead.status.get("problems", ()))
    told += [
        f"{it} is at its provider and on nobody's record: it is being ended"
        for it in fleet.lead.status.get("orphans", ())
    ]
    return told


def servers(view: PoolView) -> str:
    """Return how many servers a pool has, by what they are good for."""
    counts = [
        f"{view.count(one)} {one}" for one in Condition if view.count(one) or one is Condition.ACCEPTING
    ]
    return ", ".join(counts)


def facts(fleet: Fleet, view: PoolView) -> list[tuple[str, str]]:
    """Return how a pool stands, as names and texts."""
    pool = view.pool
    floor, ceiling = pool.policy.bounds(view.at)
    running = sum(it.running for it in view.members)
    waits = f"{view.waiting} waiting"
    if view.waiting_since is not None:
        waits += f", the oldest for {wording.duration((view.at - view.waiting_since).total_seconds())}"
    rows = [
        ("pool", f"{pool.name}, {pool.provider}, serves {', '.join(pool.queues)}"),
        ("image", image(fleet, view)),
        ("servers", f"{servers(view)}; from {floor} to {ceiling}"),
        ("builds", f"{running} running, {waits}"),
    ]
    if pool.paused_why:
        rows.append(("paused", f"by {pool.paused_by}: {pool.paused_why}"))
    if view.rollout is not None:
        rows.append((str(view.rollout.kind), rollout(fleet, view.rollout)))
    return rows


def image(fleet: Fleet, view: PoolView) -> str:
    """Return what a pool's servers are started from, and what it would go back to."""
    pool = view.pool
    if pool.image_id is None:
        return no_image(pool.name)
    back = f"; back: {fleet.version(pool.previous_image_id)}" if pool.previous_image_id else ""
    return fleet.version(pool.image_id) + back


def no_image(pool: str) -> str:
    """Return what is said of a pool without an image."""
    return f"none: build-agent fleet rollout {pool} IMAGE"


def rollout(fleet: Fleet, it: Rollout) -> str:
    """Return how a roll-out stands."""
    words = f"{it.id[:8]} to {fleet.version(it.to_image_id)}: {it.state.replace('_', ' ')}"
    if it.is_paused:
        words += ", paused"
    told = it.evidence.get("reason")
    return f"{words}; {told}" if told else words
