"""How the fleet reads to people: pools, servers, plans, decisions, hours."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from agent.cli import record, table
from agent.model import wording
from agent.model.fleet import Purpose, RolloutKind

if TYPE_CHECKING:
    from agent.fleet.report import Fleet, Plan, Replay
    from agent.fleet.view import Member, PoolView
    from agent.model.fleet import Hours, Pool
    from agent.model.policy import Policy
    from agent.store.engine import Store


def plain_pool(pool: Pool) -> dict[str, Any]:
    """Return a pool as JSON holds it, its policy included."""
    return {**record.plain(pool), "policy": pool.policy.model_dump(mode="json")}


def plain(fleet: Fleet, shown: Sequence[PoolView]) -> dict[str, Any]:
    """Return how the fleet stands as JSON holds it."""
    from agent.fleet.view import Condition

    return {
        "lead": fleet.lead,
        "unserved": dict(fleet.unserved),
        "pools": [
            {
                **plain_pool(it.pool),
                "image": fleet.version(it.pool.image_id),
                "waiting": it.waiting,
                "rollout": it.rollout,
                "counts": {str(one): it.count(one) for one in Condition},
                "machines": [
                    {
                        "name": member.name,
                        "condition": str(member.condition),
                        "running": member.running,
                        "reason": reason_of(member),
                        "machine": member.machine,
                    }
                    for member in it.members
                ],
            }
            for it in shown
        ],
    }


def show_fleet(fleet: Fleet, shown: Sequence[PoolView], *, has_machines: bool) -> None:
    """Print how the fleet stands."""
    from agent.fleet import words

    if not fleet.pools:
        click.echo("no pool yet: build-agent fleet create NAME --image IMAGE", err=True)
    for view in shown:
        _show_pool(fleet, view)
        if has_machines and view.members:
            click.echo()
            _show_members(fleet, view)
    for problem in words.problems(fleet):
        click.echo(f"! {wording.one_line(problem)}")
    note_without_leader(fleet)


def note_without_leader(fleet: Fleet) -> None:
    """Say on standard error when nobody carries anything out."""
    from agent.fleet import words

    if not words.is_led(fleet):
        click.echo(words.NOBODY_LEADS, err=True)


def _show_pool(fleet: Fleet, view: PoolView) -> None:
    from agent.fleet import words

    for name, text in words.facts(fleet, view):
        click.echo(f"{name:<9} {wording.one_line(text)}")


def _show_members(fleet: Fleet, view: PoolView) -> None:
    columns = [
        table.Column("server"),
        table.Column("state", is_state=True),
        table.Column("image"),
        table.Column("builds", is_number=True),
        table.Column("age", is_number=True),
        table.Column("reason", is_elastic=True),
    ]
    rows = [
        [
            it.name,
            str(it.condition),
            fleet.version(it.machine.image_id)
            if it.machine
            else (it.server and it.server.image_version) or "-",
            str(it.running),
            wording.duration((view.at - it.began_at).total_seconds()),
            reason_of(it) or "-",
        ]
        for it in view.members
    ]
    table.show(columns, rows)


def reason_of(member: Member) -> str | None:
    """Return why a member is as it is."""
    from agent.fleet.view import Condition

    machine, server = member.machine, member.server
    if member.condition in (Condition.LEAVING, Condition.ENDING) and machine is not None:
        return machine.fault or machine.reason
    if server is not None and server.state_reason:
        return server.state_reason
    return machine.fault or machine.reason if machine is not None else None


def words_of_rollout(fleet: Fleet, view: PoolView, image_id: str, kind: RolloutKind) -> str:
    """Return what a roll-out would do, for whoever is asked."""
    from agent.fleet.view import Condition

    pool, old, new = view.pool, fleet.version(view.pool.image_id), fleet.version(image_id)
    if pool.image_id is None:
        return f"start pool {pool.name}'s servers from {new}"
    ours = [it.machine for it in view.of(Condition.ACCEPTING, Condition.BOOTING) if it.machine]
    # Those that a person has started from another image stay.
    outgoing = sum(it.image_id != image_id and it.purpose is not Purpose.MANUAL for it in ours)
    replaced = "no server to replace"
    if outgoing:
        replaced = (
            f"{wording.count(outgoing, 'server')} to replace, {pool.policy.surge_of(outgoing)} at a time"
        )
    if kind is RolloutKind.ROLLBACK:
        words = f"bring pool {pool.name} back from {old} to {new} without trial: {replaced}"
        if view.rollout is None:
            return words
        return f"{words}; this ends the {view.rollout.kind} to {fleet.version(view.rollout.to_image_id)}"
    tried = max(1, round(max(len(ours), 1) * pool.policy.canary_share))
    return f"roll out {new} to pool {pool.name}, which has {old}: {wording.count(tried, 'server')} to try it, {replaced}"


def show_policy(before: Policy, after: Policy) -> None:
    """Print what changes in a policy, values as `--set` takes them."""
    old, new = before.model_dump(mode="json"), after.model_dump(mode="json")
    changed = [name for name in new if new[name] != old[name]]
    for name in changed:
        click.echo(f"{name}: {json.dumps(old[name])} -> {json.dumps(new[name])}")
    if not changed:
        click.echo("nothing changes")


def show_plan(view: PoolView, plan: Plan) -> None:
    """Print what the controller would do."""
    from agent.fleet import words

    answer, replacement, pool = plan.answer, plan.replacement, view.pool
    click.echo(f"wanted    {answer.wanted}: {answer.reason}")
    click.echo(f"start     {answer.start + (replacement.start if not answer.start else 0)}")
    enough = wording.duration(pool.policy.scale_in_after_s)
    click.echo(
        f"drain     {answer.drain}"
        + (f", of those that stand idle, once fewer were enough for {enough}" if answer.drain else "")
    )
    if replacement.outgoing:
        names = ", ".join(it.name for it in replacement.outgoing[:10])
        click.echo(f"replace   {len(replacement.outgoing)} {replacement.reason}: {names}")
        click.echo(f"leave now {', '.join(it.name for it in replacement.leave) or 'none'}")
    if pool.image_id is None:
        click.echo(f"image     {words.no_image(pool.name)}; until then none is started")
    if pool.paused_why:
        click.echo(f"paused    by {pool.paused_by}: {wording.one_line(pool.paused_why)}")


def show_decisions(found: Sequence[Replay]) -> None:
    """Print decisions, the newest first."""
    if not found:
        click.echo("no decision yet: the controller makes one when it first looks at the pool", err=True)
        return
    columns = [
        table.Column("when"),
        table.Column("wanted", is_number=True),
        table.Column("start", is_number=True),
        table.Column("drain", is_number=True),
        table.Column("replayed"),
        table.Column("because", is_elastic=True),
    ]
    words = {True: "same", False: "DIFFERS", None: "another rule"}
    rows = [
        [
            wording.local(it.decision.at),
            str(it.decision.wanted),
            str(it.decision.start),
            str(it.decision.drain),
            words[it.is_same],
            it.decision.reason,
        ]
        for it in found
    ]
    table.show(columns, rows)


def show_costs(store: Store, found: Sequence[Hours]) -> None:
    """Print hours by image and state."""
    from agent.store import images, machines

    if not found:
        click.echo("no hours on record: they are counted by the controller, build-agent fleet run", err=True)
        return
    versions = {it.id: it.version for it in images.list_images(store)}
    columns = [
        table.Column("pool"),
        table.Column("image"),
        table.Column("state", is_state=True),
        table.Column("hours", is_number=True),
        table.Column("idle", is_number=True),
    ]
    sums = machines.sum_hours(found, "pool", "image_id", "state")
    rows = [
        [pool, versions.get(image, image), state, f"{hours:.2f}", f"{idle:.2f}"]
        for (pool, image, state), (hours, idle) in sorted(sums.items())
    ]
    total = [sum(part) for part in zip(*sums.values(), strict=True)]
    rows.append(["all", "", "", f"{total[0]:.2f}", f"{total[1]:.2f}"])
    table.show(columns, rows)
