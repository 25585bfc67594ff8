"""Signing in and out, and what somebody may see and end of their own."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Form, Request, Response
from fastapi.responses import RedirectResponse

from agent.console import page
from agent.console.ground import Here, Viewer, person_of
from agent.console.people import People, Refused
from agent.model import wording
from agent.store import sessions, tokens, users

router = APIRouter(include_in_schema=False)
_SEE_OTHER = 303
_UNAUTHORIZED = 401


def _people(request: Request) -> People:
    people: People = request.app.state.people
    return people


@router.get("/sign-in")
def sign_in_page(request: Request, ground: Here, next: str = "/") -> Response:
    """Show where to sign in."""
    if person_of(request) is not None:
        return RedirectResponse(_local(next), _SEE_OTHER)
    return _sign_in_page(request, ground, next=next)


@router.post("/sign-in")
def sign_in(
    request: Request,
    ground: Here,
    name: Annotated[str, Form(max_length=200)],
    password: Annotated[str, Form(max_length=1024)],
    next: Annotated[str, Form(max_length=2000)] = "/",
) -> Response:
    """Begin a session, always a new one: what the browser held before is worth nothing."""
    people = _people(request)
    address = request.client.host if request.client else "unknown"
    client = request.headers.get("user-agent", "unknown")
    done = people.sign_in(name.strip(), password, address=address, client=client)
    if isinstance(done, Refused):
        wait = f"; try again in {wording.duration(done.wait_s)}" if done.wait_s else ""
        response = _sign_in_page(request, ground, next=next, name=name, refused=f"{done.why}{wait}.")
        response.status_code = _UNAUTHORIZED
        return response
    response = RedirectResponse(_local(next), _SEE_OTHER)
    response.set_cookie(
        people.cookie,
        done.token,
        max_age=int(ground.settings.console_session_s),
        httponly=True,
        samesite="lax",
        secure=people.is_https,
    )
    return response


@router.post("/sign-out")
def sign_out(request: Request) -> Response:
    """End the session that this comes in."""
    people = _people(request)
    people.sign_out(request)
    response = RedirectResponse("/sign-in?done=signed-out", _SEE_OTHER)
    response.delete_cookie(people.cookie, httponly=True, samesite="lax", secure=people.is_https)
    return response


@router.get("/account")
def account(request: Request, ground: Here, person: Viewer) -> Response:
    """Show somebody's own sessions and tokens."""
    return page.render(
        request,
        "account.html",
        title=person.name,
        sessions=sessions.list_sessions(ground.store, user_name=person.name),
        tokens=tokens.list_tokens(ground.store, user_name=person.name),
    )


@router.post("/account/sessions/{key}/end")
def end_session(ground: Here, person: Viewer, key: str) -> Response:
    """End a session of one's own."""
    sessions.revoke(ground.store, key, by=person.actor, user_name=person.name)
    return RedirectResponse("/account?done=revoked", _SEE_OTHER)


def _sign_in_page(
    request: Request, ground: Here, *, next: str, name: str = "", refused: str | None = None
) -> Response:
    return page.render(
        request,
        "sign_in.html",
        title="Sign in",
        has_users=users.has_any(ground.store),
        next=_local(next),
        name=name,
        refused=refused,
    )


def _local(path: str) -> str:
    """Return a path of this console; anything that a browser might take for another host becomes the overview."""
    is_ours = path.startswith("/") and not path.startswith(("//", "/\\")) and path.isprintable()
    return path if is_ours and "\\" not in path else "/"
