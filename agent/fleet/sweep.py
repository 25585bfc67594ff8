"""Removes what bakes have left at a provider: machines, keys, security groups, images, snapshots, mounts.

Everything that a bake makes carries its tags, so it is found whether or not it came to be on record. What an image of
the catalogue consists of stays; so does all that belongs to a bake that goes on, or that this catalogue doesn't know.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from agent import clock, log
from agent.clock import Deadline
from agent.errors import NotFound, StateConflict
from agent.fleet import owner
from agent.fleet.provider import TAG_BAKE, TAG_OWNER, Leftover, Provider, ProviderError, ProviderUnavailable
from agent.model.image import Bake, BakeState, ImageState
from agent.store import attempts, bakes, images, servers
from agent.store.engine import Store

# Of these an image consists.
_OF_IMAGE = frozenset({"image", "snapshot"})
_KEPT_STATES = frozenset({ImageState.VERIFIED, ImageState.CURRENT, ImageState.PREVIOUS, ImageState.RETIRED})
_LOOK_AGAIN_S = 1.0

_log = log.get("sweep")


@dataclass(frozen=True, kw_only=True, slots=True)
class Swept:
    """What a sweep did: things removed, bakes that were left alone because they go on, things of nobody known here."""

    removed: list[str] = field(default_factory=list)
    going_on: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)


def remove(
    provider: Provider,
    tags: Mapping[str, str],
    *,
    keep_image: bool,
    limit_s: float,
    tell: Callable[[str], None],
) -> list[str]:
    """Remove everything with these tags, and wait until it is gone; return what was removed.

    Raises: ProviderUnavailable when something is still there after `limit_s`, with its name.
    """
    removed: dict[str, None] = {}
    deadline = Deadline.after(limit_s)
    while True:
        fault: ProviderError | None = None
        left: list[Leftover] = []
        try:
            left = [it for it in provider.leftovers(tags) if not (keep_image and it.kind in _OF_IMAGE)]
            for leftover in left:
                name = f"{leftover.kind} {leftover.id}"
                if name not in removed:
                    tell(f"removing {name}")
                    _log.info("sweep.removing", what=leftover.kind, id=leftover.id)
                # A group is in use until its machine has gone, a snapshot until its image has: it is tried again.
                provider.remove(leftover)
                removed[name] = None
        except ProviderError as error:
            fault = error
        if fault is None and not left:
            return list(removed)
        if deadline.is_passed:
            names = ", ".join(f"{it.kind} {it.id}" for it in left) or "something"
            raise ProviderUnavailable(
                f"not removed within {limit_s:g} s: {names}{f' ({fault})' if fault else ''}"
            )
        clock.sleep(_LOOK_AGAIN_S if removed else 0.1)


def give_up(store: Store, bake: Bake, *, by: str, why: str) -> None:
    """Settle a bake that nobody works at, so that nobody can resume it; its image has failed.

    Raises: StateConflict when somebody has taken it meanwhile.
    """
    bakes.fail(store, bake.id, bake.session, error=why, provenance={}, by=by)
    server_id = bakes.server_of(bake.id)
    for attempt in attempts.running(store):
        if attempt.ref.build_id != bake.id:
            continue
        if attempt.beat is not None:
            servers.mark_lost(store, server_id=server_id, session=attempt.ref.session, beat=attempt.beat)
        attempts.close_lost(store, attempt.ref, why=why)


@dataclass(frozen=True, kw_only=True, slots=True)
class Sweep:
    """One sweep: what it works on, and who is told of each thing that is removed.

    `lease_s` is how long an owner that may live is watched for a sign of life, `limit_s` how long a thing may take to go.
    """

    store: Store
    provider: Provider
    owner_tag: str
    by: str
    lease_s: float
    limit_s: float
    tell: Callable[[str], None]

    def one(self, bake: Bake) -> Swept:
        """Remove what one bake has left. Raises: StateConflict when it goes on; ProviderError."""
        swept = Swept()
        self._sweep(bake, swept)
        return swept

    def all(self) -> Swept:
        """Remove what each bake has left that nobody works at. Raises: ProviderError."""
        swept = Swept()
        for bake in bakes.list_bakes(self.store, is_settled=False, provider=self.provider.name):
            try:
                self._sweep(bake, swept)
            except StateConflict as error:
                swept.going_on.append(bake.id)
                self.tell(str(error))
        for bake in self._with_leftovers(swept):
            if bake.id not in swept.going_on:
                self._sweep(bake, swept)
        return swept

    def _with_leftovers(self, swept: Swept) -> list[Bake]:
        """Return the bakes of which the provider has something; note what is of a bake that this catalogue lacks."""
        known: dict[str, Bake | None] = {}
        for leftover in self.provider.leftovers({TAG_OWNER: self.owner_tag}):
            bake_id = leftover.tags.get(TAG_BAKE)
            if bake_id is None:
                continue  # a server of the fleet: not this sweep's to judge
            if bake_id not in known:
                known[bake_id] = _find(self.store, bake_id)
            if known[bake_id] is None:
                swept.unknown.append(f"{leftover.kind} {leftover.id}, bake {bake_id}")
        return [bake for bake in known.values() if bake is not None]

    def _sweep(self, bake: Bake, swept: Swept) -> None:
        now = bakes.get(self.store, bake.id)
        if now.state in (BakeState.RUNNING, BakeState.INTERRUPTED):
            owner.await_death(self.store, now, lease_s=self.lease_s, tell=self.tell)
            why = f"swept; it had come to phase {now.phase}"
            give_up(self.store, bakes.get(self.store, bake.id), by=self.by, why=why)
        is_kept = images.get(self.store, bake.image_id).state in _KEPT_STATES
        removed = remove(
            self.provider,
            {TAG_OWNER: self.owner_tag, TAG_BAKE: bake.id},
            keep_image=is_kept,
            limit_s=self.limit_s,
            tell=self.tell,
        )
        if removed:
            bakes.note_swept(self.store, bake.id, removed=removed, by=self.by)
            swept.removed.extend(removed)


def _find(store: Store, bake_id: str) -> Bake | None:
    try:
        return bakes.get(store, bake_id)
    except NotFound:
        return None
