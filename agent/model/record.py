"""Records as plain values that JSON holds: what every `--json` and the console's API answer with.

Names are the fields' own; instants are ISO 8601 in UTC.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime
from typing import Any

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
