"""The console as an application: its routers, and how errors are answered."""

from __future__ import annotations

from http import HTTPStatus
from pathlib import Path
from urllib.parse import quote

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import RedirectResponse
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

from agent import log
from agent.config import Settings
from agent.console import page, problem
from agent.console.ground import Ground, NotAllowed, SignInNeeded
from agent.console.guard import BODY_BYTES, BodyTooLarge, Guard
from agent.console.pages import builds, fleet, people, servers
from agent.console.people import People
from agent.console.problem import Problem
from agent.errors import AgentError
from agent.queue.carrier import Carrier
from agent.store.engine import Store

STATIC = Path(__file__).parent / "static"
# Everything that the console answers, static files aside.
ROUTERS = (fleet.router, builds.router, servers.router, people.router)
_SEE_OTHER = 303

_log = log.get("console")


def make(settings: Settings, store: Store, carrier: Carrier) -> FastAPI:
    """Make the application."""
    made = FastAPI(title="build-agent", openapi_url=None)
    made.state.people = People(store, settings)
    made.state.ground = Ground(
        settings=settings, store=store, carrier=carrier, identify=made.state.people.identify
    )
    made.mount("/static", StaticFiles(directory=STATIC), name="static")
    for router in ROUTERS:
        made.include_router(router)
    made.add_exception_handler(AgentError, _on_agent_error)
    made.add_exception_handler(SignInNeeded, _on_sign_in_needed)
    made.add_exception_handler(NotAllowed, _on_not_allowed)
    made.add_exception_handler(BodyTooLarge, _on_body_too_large)
    made.add_exception_handler(RequestValidationError, _on_invalid)
    made.add_exception_handler(HTTPException, _on_http)
    made.add_exception_handler(Exception, _on_fault)
    made.add_middleware(Guard, settings=settings)
    return made


def _answer(request: Request, found: Problem, headers: dict[str, str] | None = None) -> Response:
    if found.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        _log.warning("console.failed", found.detail, path=request.url.path)
    if _is_page(request):
        try:
            return page.render_problem(request, found)
        except AgentError:
            # Who is asking can't be known either while the database is away.
            request.state.person = None
            return page.render_problem(request, found)
    return found.response(headers=headers)


def _is_page(request: Request) -> bool:
    return not request.url.path.startswith(("/api/", "/static/"))


async def _on_agent_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, AgentError):
        raise error
    return _answer(request, problem.of_error(error))


async def _on_sign_in_needed(request: Request, _error: Exception) -> Response:
    if _is_page(request):
        if request.method != "GET":
            return RedirectResponse("/sign-in", _SEE_OTHER)
        there = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        return RedirectResponse(f"/sign-in?next={quote(there, safe='')}", _SEE_OTHER)
    found = Problem(
        status=HTTPStatus.UNAUTHORIZED, detail="sign in, or send a token: Authorization: Bearer ..."
    )
    return _answer(request, found, {"WWW-Authenticate": "Bearer"})


async def _on_not_allowed(request: Request, error: Exception) -> Response:
    return _answer(request, Problem(status=HTTPStatus.FORBIDDEN, detail=str(error)))


async def _on_body_too_large(request: Request, _error: Exception) -> Response:
    told = f"a request has {BODY_BYTES:,} bytes at most"
    return _answer(request, Problem(status=HTTPStatus.REQUEST_ENTITY_TOO_LARGE, detail=told))


async def _on_invalid(request: Request, error: Exception) -> Response:
    if not isinstance(error, RequestValidationError):
        raise error
    errors = tuple({"where": list(it["loc"]), "what": it["msg"]} for it in error.errors())
    told = "; ".join(f"{'.'.join(map(str, it['where']))}: {it['what']}" for it in errors)
    return _answer(request, Problem(status=HTTPStatus.UNPROCESSABLE_ENTITY, detail=told, errors=errors))


async def _on_http(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    status = HTTPStatus(error.status_code)
    detail = f"there is no {request.url.path}" if status is HTTPStatus.NOT_FOUND else str(error.detail)
    return _answer(request, Problem(status=status, detail=detail), dict(error.headers or {}))


async def _on_fault(request: Request, error: Exception) -> Response:
    _log.error("console.fault", f"{type(error).__name__}: {error}", path=request.url.path)
    told = "something went wrong here; the console's log says what"
    return _answer(request, Problem(status=HTTPStatus.INTERNAL_SERVER_ERROR, detail=told))
