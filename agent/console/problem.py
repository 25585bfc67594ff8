"""Errors as the console answers them: problems (RFC 9457) to programs, pages to people. Both say what to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from fastapi.responses import JSONResponse

from agent.errors import (
    AgentError,
    DefinitionError,
    JobRefused,
    NotFound,
    QueueUnavailable,
    SettingsError,
    StateConflict,
    StoreUnavailable,
)

MEDIA_TYPE = "application/problem+json"
_STATUS: tuple[tuple[type[AgentError], HTTPStatus], ...] = (
    (NotFound, HTTPStatus.NOT_FOUND),
    (StateConflict, HTTPStatus.CONFLICT),
    (DefinitionError, HTTPStatus.UNPROCESSABLE_ENTITY),
    (JobRefused, HTTPStatus.UNPROCESSABLE_ENTITY),
    (SettingsError, HTTPStatus.UNPROCESSABLE_ENTITY),
    (StoreUnavailable, HTTPStatus.SERVICE_UNAVAILABLE),
    (QueueUnavailable, HTTPStatus.SERVICE_UNAVAILABLE),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """What is wrong with a request: status, what happened and what to do, and where in the request it is."""

    status: HTTPStatus
    detail: str
    errors: tuple[Mapping[str, Any], ...] = ()

    def response(self, *, headers: Mapping[str, str] | None = None) -> JSONResponse:
        """Return it as programs read it."""
        document: dict[str, Any] = {
            "type": "about:blank",
            "title": self.status.phrase,
            "status": int(self.status),
            "detail": self.detail,
        }
        if self.errors:
            document["errors"] = list(self.errors)
        return JSONResponse(document, self.status, headers=dict(headers or {}), media_type=MEDIA_TYPE)


def of_error(error: AgentError) -> Problem:
    """Return the problem that an error of ours is."""
    status = next(
        (status for kind, status in _STATUS if isinstance(error, kind)), HTTPStatus.INTERNAL_SERVER_ERROR
    )
    return Problem(status=status, detail=str(error))
