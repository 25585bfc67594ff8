"""What people are told of the fleet: how it stands, what the controller would do next, what a decision came from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from agent.errors import NotFound
from agent.fleet import replace, scale, sizing
from agent.fleet import view as views
from agent.fleet.replace import Replacement
from agent.fleet.scale import Answer, Inputs
from agent.fleet.view import PoolView
from agent.model.fleet import Decision
from agent.model.image import Image
from agent.store import fleet_survey, images, lead
from agent.store.engine import Store
from agent.store.lead import Lead


@dataclass(frozen=True, kw_only=True, slots=True)
class Fleet:
    """The fleet at one instant. `unserved` are builds that wait where nobody looks, by queue."""

    at: datetime
    lead: Lead
    pools: Sequence[PoolView]
    unserved: Mapping[str, int]
    images: Mapping[str, Image]

    def pool(self, name: str) -> PoolView:
        """Return one pool. Raises: NotFound."""
        found = next((it for it in self.pools if it.pool.name == name), None)
        if found is None:
            known = ", ".join(it.pool.name for it in self.pools) or "none yet: build-agent fleet create"
            raise NotFound(f"no pool {name!r}; there are {known}")
        return found

    def version(self, image_id: str | None) -> str:
        """Return an image's version."""
        if image_id is None:
            return "-"
        image = self.images.get(image_id)
        return image.version if image else image_id


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What the controller would do with a pool in its next cycle, were the demand as it is for long enough."""

    inputs: Inputs
    answer: Answer
    replacement: Replacement


@dataclass(frozen=True, kw_only=True, slots=True)
class Replay:
    """A decision, and what the rule makes of its inputs now; `None` when it was made by another rule."""

    decision: Decision
    again: Answer | None

    @property
    def is_same(self) -> bool | None:
        """Whether the rule still says the same."""
        it, again = self.decision, self.again
        return (
            None
            if again is None
            else (it.wanted, it.start, it.drain) == (again.wanted, again.start, again.drain)
        )


def look(store: Store) -> Fleet:
    """Return how the fleet stands."""
    survey = fleet_survey.look(store)
    found = views.pools_of(survey)
    return Fleet(
        at=survey.at,
        lead=lead.look(store),
        pools=found,
        unserved=views.unserved(survey, found),
        images={it.id: it for it in images.list_images(store)},
    )


def plan(view: PoolView) -> Plan:
    """Return what the rule says of a pool as it is now."""
    # As if this had been wanted all the time: only the controller knows the peaks.
    wanted = scale.decide(sizing.inputs_of(view, peak=0)).wanted
    inputs = sizing.inputs_of(view, peak=wanted)
    answer = scale.decide(inputs)
    left = max(0, inputs.starts_allowed - answer.start)
    return Plan(
        inputs=inputs,
        answer=answer,
        replacement=replace.plan(view, wanted=answer.wanted, starts_allowed=left),
    )


def replay(decision: Decision) -> Replay:
    """Run the rule again on a decision's inputs."""
    again = scale.decide(scale.read(decision.inputs)) if decision.rule == scale.RULE else None
    return Replay(decision=decision, again=again)
