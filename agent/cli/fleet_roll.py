"""What `fleet rollout` and `fleet rollback` do: say what would happen, ask, begin, wait."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import click

from agent.cli.confirm import confirm
from agent.cli.context import Context

if TYPE_CHECKING:
    from agent.model.fleet import Rollout, RolloutKind
    from agent.store.engine import Store


class _Rehearsed(Exception):
    """Ends a transaction that is to leave nothing."""


def roll(
    obj: Context,
    pool: str,
    image_id: str,
    kind: RolloutKind,
    *,
    why: str | None,
    dry_run: bool,
    yes: bool,
    wait: bool,
    as_json: bool,
) -> int:
    """Bring a pool to an image; return the exit code. Raises: NotFound; StateConflict; UsageError."""
    from agent.cli import fleet_show, fleet_wait, record
    from agent.fleet import report
    from agent.model.fleet import RolloutState
    from agent.store import rollouts

    found = report.look(obj.store)
    view = found.pool(pool)
    words = fleet_show.words_of_rollout(found, view, image_id, kind)
    # What would be refused is refused before anybody is asked, and in a dry run, too.
    rehearsed = _rehearse(obj.store, pool, image_id, kind, by=obj.actor)
    if dry_run:
        if as_json:
            names = ("pool", "kind", "from_image_id", "to_image_id", "state")
            record.echo({name: getattr(rehearsed, name) for name in names} | {"would": words})
        else:
            click.echo(words)
        return 0
    confirm(words, yes=yes)
    begun = rollouts.begin(obj.store, pool, image_id, kind=kind, by=obj.actor, why=why)
    if not as_json:
        short = begun.id[:8]
        click.echo(f"{kind} {short} of pool {pool} begun: {found.version(image_id)}")
        fleet_show.note_without_leader(found)
    if wait:
        begun = fleet_wait.wait_rollout(obj.store, begun.id, is_quiet=as_json)
    if as_json:
        record.echo(begun)
    return 1 if wait and begun.state is not RolloutState.DONE else 0


def way_back(store: Store, pool: str) -> str:
    """Return the image that a pool goes back to when none is named. Raises: NotFound."""
    from agent.errors import NotFound
    from agent.model.fleet import RolloutState
    from agent.store import pools, rollouts

    with store.read() as connection:
        found, standing = pools.read(connection, pool), rollouts.read_open(connection, pool)
    # While an image is tried or given up, the one before it is still, or again, the pool's own.
    has_own = standing is not None and standing.state in (RolloutState.CANARY, RolloutState.GOING_BACK)
    target = found.image_id if has_own else found.previous_image_id
    if target is None:
        raise NotFound(f"pool {pool} has no image to go back to; name one: build-agent images list")
    return target


def check_steerable(store: Store, pool: str) -> None:
    """Raise unless a pool has a roll-out that goes forward: NotFound; StateConflict."""
    from agent.errors import NotFound, StateConflict
    from agent.model.fleet import RolloutState
    from agent.store import pools, rollouts

    with store.read() as connection:
        pools.read(connection, pool)
        standing = rollouts.read_open(connection, pool)
    if standing is None:
        raise NotFound(f"pool {pool} has no roll-out under way")
    if standing.state is RolloutState.GOING_BACK:
        raise StateConflict(f"roll-out {standing.id[:8]} goes back already: {standing.reason}")


def _rehearse(store: Store, pool: str, image_id: str, kind: RolloutKind, *, by: str) -> Rollout:
    """Begin a roll-out and take it back; return it as it would be. Raises: NotFound; StateConflict."""
    from agent.store import rollouts

    with suppress(_Rehearsed), store.begin() as connection:
        begun = rollouts.begin_in(connection, pool, image_id, kind=kind, by=by, why=None)
        raise _Rehearsed
    return begun
