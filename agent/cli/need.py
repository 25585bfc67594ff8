"""Says which extra is missing where a command needs one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from agent.errors import NotFound


@contextmanager
def needing(what: str, extra: str = "fleet") -> Iterator[None]:
    """Import what needs an extra inside. Raises: NotFound that says how it is had."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise NotFound(
            f"for {what}, {error.name} is needed, which is not here: pip install 'build-agent[{extra}]'"
        ) from error
