"""`build-agent fleet`: pools of servers, how many there are, which image they are started from."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import click

from agent.cli import argument
from agent.cli import fleet_option as option
from agent.cli.confirm import confirm
from agent.cli.context import Context


@click.group()
def fleet() -> None:
    """Keep pools of servers: their size, their image, what they cost."""


@fleet.command()
@click.pass_obj
def run(obj: Context) -> int:
    """Run the controller, until SIGTERM or Ctrl-C. Any number may run; one leads."""
    from agent import log
    from agent.cli.need import needing

    settings = obj.settings
    log.setup(settings.log_format, settings.log_level)
    with needing("the fleet"):
        from agent.fleet import service
    return service.run(settings, bake_argv=obj.argv())


@fleet.command()
@click.argument("pool", required=False, shell_complete=argument.complete_pool)
@argument.as_json
@click.pass_obj
def status(obj: Context, *, pool: str | None, as_json: bool) -> None:
    """Show how the fleet stands: pools and servers, what waits, what is wrong."""
    from agent.cli import fleet_show, record
    from agent.fleet import report

    found = report.look(obj.store)
    shown = [found.pool(pool)] if pool else list(found.pools)
    if as_json:
        record.echo(fleet_show.plain(found, shown))
    else:
        fleet_show.show_fleet(found, shown, has_machines=pool is not None)


@fleet.command()
@click.argument("name", callback=option.read_name)
@click.option(
    "--queue",
    "queues",
    metavar="NAME",
    multiple=True,
    callback=option.read_name,
    help="A queue that its servers read; `builds` without it.",
)
@click.option("--provider", type=click.Choice(("local", "ec2")), help="Who has the machines.")
@click.option("--image", metavar="IMAGE", help="What its servers are started from.")
@option.policy
@argument.as_json
@click.pass_obj
def create(
    obj: Context,
    *,
    name: str,
    queues: tuple[str, ...],
    provider: str | None,
    image: str | None,
    policy: dict[str, Any],
    as_json: bool,
) -> None:
    """Make a pool: servers that read the same queues and are started from one image."""
    from agent.cli import fleet_show, record
    from agent.errors import StateConflict
    from agent.model import policy as policies
    from agent.model.fleet import RolloutKind
    from agent.store import pools, rollouts

    found = obj.find_image(image) if image else None
    made = pools.create(
        obj.store,
        name=name,
        provider=provider or (found.provider if found else obj.settings.fleet_provider),
        queues=list(dict.fromkeys(queues)) or ["builds"],
        policy=policies.read(policy),
        by=obj.actor,
    )
    if found is not None:
        try:
            rollouts.begin(obj.store, name, found.id, kind=RolloutKind.ROLLOUT, by=obj.actor)
        except StateConflict:
            # Two transactions: the pool would stay without its image, and its name be taken for the next try.
            pools.remove(obj.store, name, by=obj.actor)
            raise
        made = pools.get(obj.store, name)
    if as_json:
        record.echo(fleet_show.plain_pool(made))
        return
    click.echo(f"pool {name} is made; it serves {', '.join(made.queues)}")
    if found is None:
        click.echo(f"it has no image yet: build-agent fleet rollout {name} IMAGE", err=True)


@fleet.command()
@option.pool
@option.yes
@argument.as_json
@click.pass_obj
def remove(obj: Context, *, pool: str, yes: bool, as_json: bool) -> None:
    """Remove a pool that has no servers."""
    from agent.cli import record
    from agent.store import pools

    pools.get(obj.store, pool)
    confirm(f"remove pool {pool}", yes=yes)
    pools.remove(obj.store, pool, by=obj.actor)
    if as_json:
        record.echo({"removed": pool})
    else:
        click.echo(f"pool {pool} is removed")


@fleet.command()
@option.pool
@click.option("--floor", type=int, help="Servers at least.")
@click.option("--ceiling", type=int, help="Servers at most.")
@click.option("--spare", type=int, help="Free slots to have ready.")
@option.policy
@option.why
@option.dry_run
@option.yes
@click.option("--wait", is_flag=True, help="Wait until the pool has as many servers as it wants.")
@argument.as_json
@click.pass_obj
def scale(
    obj: Context,
    *,
    pool: str,
    floor: int | None,
    ceiling: int | None,
    spare: int | None,
    policy: dict[str, Any],
    why: str | None,
    dry_run: bool,
    yes: bool,
    wait: bool,
    as_json: bool,
) -> None:
    """Change how large a pool may be, or any other part of its policy."""
    from dataclasses import replace

    from agent.cli import fleet_show, fleet_wait, record
    from agent.fleet import report
    from agent.model import policy as policies
    from agent.store import pools

    given = {"floor": floor, "ceiling": ceiling, "spare_slots": spare}
    changes = {name: value for name, value in given.items() if value is not None} | policy
    if not changes:
        raise click.UsageError("say what to change: --floor, --ceiling, --spare or --set")
    before = pools.get(obj.store, pool)
    after = policies.read({**before.policy.model_dump(mode="json"), **changes})
    if dry_run:
        if as_json:
            record.echo(fleet_show.plain_pool(replace(before, policy=after)))
        else:
            fleet_show.show_policy(before.policy, after)
        return
    if after.ceiling < before.policy.ceiling:
        confirm(f"have at most {after.ceiling} servers in pool {pool}", yes=yes)
    changed = pools.change(obj.store, pool, by=obj.actor, why=why, policy=changes)
    if not as_json:
        fleet_show.show_policy(before.policy, after)
    if wait:
        fleet_show.note_without_leader(report.look(obj.store))
        fleet_wait.wait_size(obj.store, pool, is_quiet=as_json)
    if as_json:
        record.echo(fleet_show.plain_pool(changed))


@fleet.command()
@option.pool
@click.argument("image", metavar="IMAGE", shell_complete=argument.complete_image)
@option.why
@option.dry_run
@option.yes
@click.option("--wait", is_flag=True, help="Wait until it is over; exit 1 if the pool went back.")
@argument.as_json
@click.pass_obj
def rollout(obj: Context, /, *, pool: str, image: str, **options: Any) -> int:
    """Bring a pool to another image: some servers try it, builds judge it, then the others are replaced."""
    from agent.cli import fleet_roll
    from agent.model.fleet import RolloutKind

    return fleet_roll.roll(obj, pool, obj.find_image(image).id, RolloutKind.ROLLOUT, **options)


@fleet.command()
@option.pool
@click.argument("image", metavar="[IMAGE]", required=False, shell_complete=argument.complete_image)
@option.why
@option.dry_run
@option.yes
@click.option("--wait", is_flag=True, help="Wait until it is over.")
@argument.as_json
@click.pass_obj
def rollback(obj: Context, /, *, pool: str, image: str | None, **options: Any) -> int:
    """Go back to an image, without trial: the one before, or any that is kept. Ends a roll-out that is under way."""
    from agent.cli import fleet_roll
    from agent.model.fleet import RolloutKind

    target = obj.find_image(image).id if image else fleet_roll.way_back(obj.store, pool)
    return fleet_roll.roll(obj, pool, target, RolloutKind.ROLLBACK, **options)


@fleet.command()
@option.pool
@click.option(
    "--rollout", "only_rollout", is_flag=True, help="Only the roll-out; the pool is scaled all the same."
)
@click.option("--why", metavar="TEXT", required=True, help="Why, for the record and whoever wonders.")
@argument.as_json
@click.pass_obj
def pause(obj: Context, *, pool: str, only_rollout: bool, why: str, as_json: bool) -> None:
    """Keep the controller from starting and draining servers of a pool, roll-out included."""
    from agent.cli import fleet_roll, fleet_show, record
    from agent.store import pools, rollouts

    if only_rollout:
        fleet_roll.check_steerable(obj.store, pool)
        done: object = rollouts.steer(obj.store, pool, by=obj.actor, paused=True, why=why)
    else:
        done = fleet_show.plain_pool(pools.pause(obj.store, pool, by=obj.actor, why=why))
    if as_json:
        record.echo(done)
    else:
        what = "the roll-out of " if only_rollout else ""
        click.echo(f"{what}pool {pool} is paused; to go on: build-agent fleet resume {pool}")


@fleet.command()
@option.pool
@argument.as_json
@click.pass_obj
def resume(obj: Context, *, pool: str, as_json: bool) -> None:
    """Let the controller act again on a pool, and on its roll-out."""
    from agent.cli import fleet_show, record
    from agent.errors import StateConflict
    from agent.store import pools, rollouts

    with obj.store.read() as connection:
        done, standing = pools.read(connection, pool), rollouts.read_open(connection, pool)
    is_paused, is_held = done.paused_why is not None, standing is not None and standing.is_paused
    if not (is_paused or is_held):
        raise StateConflict(f"pool {pool} is not paused, and no roll-out of it is")
    told = []
    if is_paused:
        done = pools.resume(obj.store, pool, by=obj.actor)
        told.append(f"pool {pool} is looked after again")
    if is_held:
        rollouts.steer(obj.store, pool, by=obj.actor, paused=False)
        told.append("its roll-out goes on" if is_paused else f"the roll-out of pool {pool} goes on")
    if as_json:
        record.echo(fleet_show.plain_pool(done))
    else:
        click.echo(", and ".join(told))


@fleet.command()
@option.pool
@option.why
@option.yes
@argument.as_json
@click.pass_obj
def hasten(obj: Context, *, pool: str, why: str | None, yes: bool, as_json: bool) -> None:
    """Let a roll-out do without further trial, and replace all servers at once."""
    from agent.cli import fleet_roll, record
    from agent.store import rollouts

    fleet_roll.check_steerable(obj.store, pool)
    confirm(f"end the trial of pool {pool}'s roll-out and replace every server at once", yes=yes)
    done = rollouts.steer(obj.store, pool, by=obj.actor, hastened=True, why=why)
    if as_json:
        record.echo(done)
    else:
        click.echo(f"roll-out {done.id[:8]} is hastened")


@fleet.command()
@option.pool
@click.option("--why", metavar="TEXT", required=True, help="Why, for the record.")
@option.yes
@click.option("--wait", is_flag=True, help="Wait until the servers of the image have left.")
@argument.as_json
@click.pass_obj
def abort(obj: Context, *, pool: str, why: str, yes: bool, wait: bool, as_json: bool) -> None:
    """Give up a roll-out and go back to the image before; the image is not taken for bad."""
    from agent.cli import fleet_roll, fleet_wait, record
    from agent.store import rollouts

    fleet_roll.check_steerable(obj.store, pool)
    confirm(f"give up the roll-out of pool {pool}", yes=yes)
    done = rollouts.abort(obj.store, pool, by=obj.actor, why=why)
    if not as_json:
        click.echo(f"roll-out {done.id[:8]} goes back")
    if wait:
        done = fleet_wait.wait_rollout(obj.store, done.id, is_quiet=as_json)
    if as_json:
        record.echo(done)


@fleet.command()
@option.pool
@argument.as_json
@click.pass_obj
def plan(obj: Context, *, pool: str, as_json: bool) -> None:
    """Say what the controller would do with a pool now, by the rule and the policy, and do nothing."""
    from agent.cli import fleet_show, record
    from agent.fleet import report

    view = report.look(obj.store).pool(pool)
    found = report.plan(view)
    if as_json:
        record.echo({
            "pool": pool,
            "inputs": found.inputs.plain(),
            "answer": found.answer,
            "replace": [it.name for it in found.replacement.outgoing],
            "leave": [it.name for it in found.replacement.leave],
        })  # fmt: skip
    else:
        fleet_show.show_plan(view, found)


@fleet.command()
@option.pool
@click.option("--limit", type=click.IntRange(1, 1000), default=10, show_default=True, help="So many at most.")
@argument.as_json
@click.pass_obj
def explain(obj: Context, *, pool: str, limit: int, as_json: bool) -> None:
    """Show the last decisions about a pool's size: the rule, its inputs, and whether it still says the same of them."""
    from agent.cli import fleet_show, record
    from agent.fleet import report
    from agent.store import decisions, pools

    pools.get(obj.store, pool)
    found = [report.replay(it) for it in decisions.list_decisions(obj.store, pool, limit=limit)]
    if as_json:
        record.echo([record.plain(it.decision) | {"is_same": it.is_same} for it in found])
    else:
        fleet_show.show_decisions(found)


@fleet.command()
@click.option("--days", type=click.IntRange(1, 366), default=7, show_default=True, help="Of so many days.")
@click.option("--pool", metavar="NAME", help="Of one pool.")
@argument.as_json
@click.pass_obj
def costs(obj: Context, *, days: int, pool: str | None, as_json: bool) -> None:
    """Say how many hours servers ran, by image and state, and how many of them they stood idle."""
    from agent import clock
    from agent.cli import fleet_show, record
    from agent.store import machines, pools

    since = clock.utc_now() - timedelta(days=days)
    found = machines.list_hours(obj.store, since=since, pool=pool)
    if pool and not found:
        # One that is on record no more may still have hours.
        pools.get(obj.store, pool)
    if as_json:
        record.echo(found)
    else:
        fleet_show.show_costs(obj.store, found)


@fleet.command("log")
@click.argument("pool", required=False, shell_complete=argument.complete_pool)
@click.option("--follow", "-f", is_flag=True, help="Go on until Ctrl-C.")
@click.option(
    "--limit", type=click.IntRange(1, 10_000), default=50, show_default=True, help="So many at first."
)
@argument.as_json
@click.pass_obj
def log_(obj: Context, *, pool: str | None, follow: bool, limit: int, as_json: bool) -> None:
    """Print what happened in the fleet, the newest last."""
    from agent.cli import fleet_wait

    fleet_wait.print_events(obj.store, pool=pool, limit=limit, follow=follow, as_json=as_json)
