"""Records as JSON: what every `--json` prints. Names are the fields' own; instants are ISO 8601 in UTC."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime
from typing import Any

import click

_LEFT_OUT = frozenset({"definition", "session"})


def plain(value: Any) -> Any:
    """Return a record, or anything made of records, as what JSON holds; definitions and sessions are left out."""
    if is_dataclass(value) and not isinstance(value, type):
        return {it.name: plain(getattr(value, it.name)) for it in fields(value) if it.name not in _LEFT_OUT}
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat()
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    return value


def echo(value: Any) -> None:
    """Print a record as one JSON document."""
    click.echo(json.dumps(plain(value), indent=2))


def line(value: Any) -> str:
    """Return a record as JSON in one line."""
    return json.dumps(plain(value), separators=(",", ":")) + "\n"
