"""What every request stands on, and who makes it. Routers take both by annotation:

def show(ground: Here, person: Viewer) -> ...
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from agent.config import Settings
from agent.model.person import Person, Role
from agent.queue.carrier import Carrier
from agent.store.engine import Store

Identify = Callable[[Request], Person | None]


class SignInNeeded(Exception):
    """Nobody is signed in, or no longer."""


class NotAllowed(Exception):
    """Whoever is signed in may not do that; the text says who may."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ground:
    """The same for the whole life of the console. `identify` says who makes a request, by session or token."""

    settings: Settings
    store: Store
    carrier: Carrier
    identify: Identify


def ground_of(request: Request) -> Ground:
    """Return the console's ground."""
    ground: Ground = request.app.state.ground
    return ground


def person_of(request: Request) -> Person | None:
    """Return who makes a request, asked once a request."""
    if not hasattr(request.state, "person"):
        request.state.person = ground_of(request).identify(request)
    person: Person | None = request.state.person
    return person


def needing(role: Role) -> Callable[[Request], Person]:
    """Return a dependency that lets in who has a role."""

    def need(request: Request) -> Person:
        person = person_of(request)
        if person is None:
            raise SignInNeeded
        if not person.role.includes(role):
            raise NotAllowed(f"{person.name} is {person.role}: that takes the role {role}")
        return person

    return need


def _need_submitter(request: Request) -> Person:
    person = person_of(request)
    if person is not None and person.may_submit:
        return person
    return needing(Role.OPERATOR)(request)


Here = Annotated[Ground, Depends(ground_of)]
Viewer = Annotated[Person, Depends(needing(Role.VIEWER))]
Submitter = Annotated[Person, Depends(_need_submitter)]
Operator = Annotated[Person, Depends(needing(Role.OPERATOR))]
Admin = Annotated[Person, Depends(needing(Role.ADMIN))]
