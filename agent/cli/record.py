"""Records as JSON: what every `--json` prints."""

from __future__ import annotations

import json
from typing import Any

import click

from agent.model.record import plain

__all__ = ["echo", "line", "plain"]


def echo(value: Any) -> None:
    """Print a record as one JSON document."""
    click.echo(json.dumps(plain(value), indent=2))


def line(value: Any) -> str:
    """Return a record as JSON in one line."""
    return json.dumps(plain(value), separators=(",", ":")) + "\n"
