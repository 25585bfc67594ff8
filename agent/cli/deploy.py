"""`build-agent deploy` and `deployments`: a commit of the fleet's own sources, and how far it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from agent.cli import argument
from agent.cli.context import Context

if TYPE_CHECKING:
    from agent.model.fleet import Deployment, Stage
    from agent.store.engine import Store

_ENDS = {"passed": "passed", "failed": "failed", "cancelled": "been cancelled"}


@click.command()
@click.argument("commit", metavar="COMMIT")
@click.option("--pool", metavar="NAME", help="Pool to roll out to, if not the setting deploy_pool.")
@click.option("--repository", metavar="URL", help="Repository, if not the setting deploy_repository.")
@click.option(
    "--wait", is_flag=True, help="Wait until it is over, and show its stages; exit 1 if one failed."
)
@argument.as_json
@click.pass_obj
def deploy(
    obj: Context, *, commit: str, pool: str | None, repository: str | None, wait: bool, as_json: bool
) -> int:
    """Deploy a commit to the fleet itself: its tests, a package, an image, a roll-out."""
    import re

    from agent.cli import fleet_show, record
    from agent.errors import SettingsError
    from agent.fleet import report
    from agent.model.fleet import DeploymentState
    from agent.store import deployments

    if not re.fullmatch(r"[0-9a-f]{40}(?:[0-9a-f]{24})?", commit):
        raise click.BadParameter(
            f"{commit!r} is no whole commit id: git rev-parse REVISION gives it", param_hint="COMMIT"
        )
    source = repository or obj.settings.deploy_repository
    if not source:
        raise SettingsError("deploy_repository is not set: name the repository with it or with --repository")
    target = _pool_of(obj, pool)
    _check_new(obj.store, target, commit)
    made = deployments.begin(
        obj.store,
        pool=target,
        repository=source,
        commit=commit,
        branch=None,
        by=obj.actor,
    )
    if not as_json:
        click.echo(f"deployment {made.id[:8]} of {commit[:12]} to pool {made.pool} begun")
        fleet_show.note_without_leader(report.look(obj.store))
    if wait:
        made = _wait(obj.store, made.id, is_quiet=as_json)
    if as_json:
        record.echo(made)
    return int(wait and made.state is not DeploymentState.PASSED)


@click.group("deployments", invoke_without_command=True)
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True, help="So many at most.")
@argument.as_json
@click.pass_context
def deployments(context: click.Context, *, limit: int, as_json: bool) -> None:
    """List deployments of the fleet, the newest first; show one, follow it, cancel it."""
    if context.invoked_subcommand is not None:
        return
    from agent.cli import record, table
    from agent.model import wording
    from agent.store import deployments as store_deployments

    obj: Context = context.obj
    found = store_deployments.list_deployments(obj.store, limit=limit)
    if as_json:
        record.echo(found)
        return
    if not found:
        click.echo("no deployment yet: build-agent deploy COMMIT", err=True)
        return
    columns = [
        table.Column("id"),
        table.Column("state", is_state=True),
        table.Column("pool"),
        table.Column("commit"),
        table.Column("begun"),
        table.Column("by"),
        table.Column("detail", is_elastic=True),
    ]
    rows = [
        [
            it.id[:8],
            it.state,
            it.pool,
            it.commit[:12],
            wording.local(it.created_at),
            it.created_by,
            it.detail or "-",
        ]
        for it in found
    ]
    table.show(columns, rows)


@deployments.command()
@click.argument("deployment", metavar="DEPLOYMENT")
@click.option("--follow", "-f", is_flag=True, help="Go on until it is over; the exit code tells how.")
@argument.as_json
@click.pass_obj
def show(obj: Context, *, deployment: str, follow: bool, as_json: bool) -> int:
    """Show a deployment: its stages, and where the output of each is."""
    from agent.cli import record
    from agent.model.fleet import DeploymentState
    from agent.store import deployments as store_deployments

    found = store_deployments.get(obj.store, deployment)
    if follow:
        found = _wait(obj.store, found.id, is_quiet=as_json)
    stages = store_deployments.list_stages(obj.store, found.id)
    if as_json:
        record.echo({**record.plain(found), "stages": record.plain(stages)})
    else:
        _print(found, stages)
    return int(follow and found.state is not DeploymentState.PASSED)


@deployments.command()
@click.argument("deployment", metavar="DEPLOYMENT")
@click.option("--why", metavar="TEXT", required=True, help="Why, for the record.")
@argument.as_json
@click.pass_obj
def cancel(obj: Context, *, deployment: str, why: str, as_json: bool) -> None:
    """Cancel a deployment; a roll-out that it has begun goes on, and is aborted with fleet abort."""
    from agent.cli import record
    from agent.errors import StateConflict
    from agent.model.fleet import DeploymentState
    from agent.store import deployments as store_deployments

    found = store_deployments.get(obj.store, deployment)
    if found.state is not DeploymentState.RUNNING:
        raise StateConflict(f"deployment {found.id[:8]} has {_ENDS[found.state]} already")
    with obj.store.begin() as connection:
        store_deployments.end(
            connection,
            found.id,
            DeploymentState.CANCELLED,
            detail=f"by {obj.actor}: {why}",
            by=obj.actor,
        )
    if as_json:
        record.echo(store_deployments.get(obj.store, found.id))
    else:
        click.echo(f"deployment {found.id[:8]} is cancelled")


def _pool_of(obj: Context, name: str | None) -> str:
    """Return the pool to deploy to. Raises: NotFound."""
    from agent.errors import NotFound
    from agent.store import pools

    try:
        return pools.get(obj.store, name or obj.settings.deploy_pool).name
    except NotFound as error:
        if name:
            raise
        raise NotFound(f"{error}; --pool or the setting deploy_pool says which") from None


def _check_new(store: Store, pool: str, commit: str) -> None:
    """Raise StateConflict while the same commit is on its way to the same pool: it would only come twice."""
    from agent.errors import StateConflict
    from agent.store import deployments as store_deployments

    for it in store_deployments.list_deployments(store, only_open=True):
        if (it.pool, it.commit) == (pool, commit):
            raise StateConflict(
                f"{commit[:12]} is on its way to pool {pool} already, asked for by {it.created_by}: "
                f"build-agent deployments show {it.id[:8]} --follow"
            )


def _wait(store: Store, deployment_id: str, *, is_quiet: bool) -> Deployment:
    from agent.cli import fleet_wait
    from agent.model.fleet import DeploymentState
    from agent.store import deployments as store_deployments

    def look() -> tuple[Deployment, str]:
        found = store_deployments.get(store, deployment_id)
        stages = store_deployments.list_stages(store, deployment_id)
        return found, ", ".join(f"{it.name} {it.state}" for it in stages)

    return fleet_wait.wait(
        store,
        "deployment",
        [deployment_id],
        look,
        lambda it: it.state is not DeploymentState.RUNNING,
        stopped=f"build-agent: stopped following; deployment {deployment_id[:8]} goes on",
        is_quiet=is_quiet,
    )


def _print(found: Deployment, stages: Sequence[Stage]) -> None:
    from agent.cli import table
    from agent.model import wording

    rows = [
        ("deployment", found.id),
        ("commit", f"{found.commit} of {found.repository}"),
        ("pool", found.pool),
        ("state", found.state + (f": {found.detail}" if found.detail else "")),
        ("begun", f"{wording.local(found.created_at)} by {found.created_by}"),
    ]
    for name, value in rows:
        click.echo(f"{name:<11} {wording.one_line(value)}")
    click.echo()
    columns = [
        table.Column("stage"),
        table.Column("state", is_state=True),
        table.Column("took", is_number=True),
        table.Column("output"),
        table.Column("detail", is_elastic=True),
    ]
    table.show(columns, [_row(found, it) for it in stages])


def _row(deployment: Deployment, it: Stage) -> list[str]:
    from agent import clock
    from agent.model import wording
    from agent.model.fleet import StageName, StageState

    took, state = "-", str(it.state)
    if it.started_at is not None:
        ended_at = it.ended_at or deployment.ended_at or clock.utc_now()
        took = wording.duration((ended_at - it.started_at).total_seconds())
    if deployment.ended_at is not None and it.ended_at is None:
        # A deployment that was cancelled or has failed leaves its stages as they were.
        state = "skipped" if it.state is StageState.WAITING else str(deployment.state)
    output = "-"
    if it.name is StageName.PACKAGE and it.started_at is not None:
        output = "deployments show --follow"
    elif it.output_id is not None:
        kind = "rollout" if it.name is StageName.ROLLOUT else "logs"
        output = f"{kind} {it.output_id if kind == 'logs' else it.output_id[:8]}"
    return [it.name, state, took, output, it.detail or "-"]
