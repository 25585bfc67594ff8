"""What one setting may be: how it is declared, the forms and units of its value, how a text becomes it.

Knows no setting by name and no source: the table is `agent.config.Settings`, faults get their words there.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import Field, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

MASK = "***"
# The default of a directory that is made from state_dir.
DERIVED = Path()
KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40
DAY_S = 86400
_UNITS: Mapping[str, Mapping[str, float]] = {
    "s": {"ms": 0.001, "s": 1, "min": 60, "h": 3600, "d": DAY_S},
    "ms": {"ms": 1, "s": 1000, "min": 60_000},
    "bytes": {"B": 1, "KiB": KIB, "MiB": MIB, "GiB": GIB, "TiB": TIB},
}
_EXAMPLES = {
    "s": ' seconds, such as 30, "30s" or "10min"',
    "ms": ' milliseconds, such as 10 or "10ms"',
    "": "",
}


class Form(NamedTuple):
    """What a text looks like, in words and as a pattern. A setting that is empty by default may be empty."""

    words: str
    pattern: str


_PORT = r"(?:[0-9]{1,4}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])"
_HOST = r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)"
_LOGIN = r"(?:[^@/?#\s]*@)?"
NAME = Form("letters, digits, '.', '_' and '-'", r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
# steps that saw the agent's own variables would see its secrets (F31)
VARIABLE = Form("names of variables, none of them BUILD_AGENT_*", r"(?!BUILD_AGENT_)[A-Za-z_][A-Za-z0-9_]*")
ADDRESS = Form("host:port, such as 127.0.0.1:9180 or [::1]:9180, or nothing", f"(?:{_HOST}:{_PORT})?")
FILE = Form("an absolute path without '..', or nothing", r"(?:/(?!\S*/\.\.(?:/|$))[^\x00]*)?")
SUBNET = Form(
    "a private network of IPv4, from /16 to /29, such as 10.213.0.0/24",
    r"[0-9]{1,3}(?:\.[0-9]{1,3}){3}/(?:1[6-9]|2[0-9])",
)
HTTP_URL = Form("a URL http://host or https://host", rf"https?://{_LOGIN}{_HOST}(?::{_PORT})?(?:[/?]\S*)?")
URL_OR_NOT = Form(f"{HTTP_URL.words}, or nothing", f"(?:{HTTP_URL.pattern})?")
REDIS_URL = Form(
    "redis://host:port/db, rediss://..., unix:///socket or sentinel://host:port,host:port/service/db, "
    "with special characters of a password percent-encoded",
    rf"rediss?://{_LOGIN}{_HOST}(?::{_PORT})?(?:/[0-9]*)?(?:\?\S*)?|unix://{_LOGIN}/[^?\s]+(?:\?\S*)?"
    rf"|sentinel://{_LOGIN}{_HOST}:{_PORT}(?:,{_HOST}:{_PORT})*/[^/?#\s]+(?:/[0-9]+)?(?:\?\S*)?",
)
DATABASE_URL = Form(
    "postgresql://user:password@host/name or sqlite:////absolute/path",
    r"postgresql(?:\+psycopg)?://\S+|sqlite:////[^\s?]+(?:\?\S*)?",
)


def declare(
    default: object,
    help_text: str,
    form: Form | None = None,
    *,
    low: float | None = None,
    high: float | None = None,
    unit: str = "",
    choices: tuple[str, ...] = (),
    secret: bool = False,
    under: str = "",
) -> Any:
    """Declare a setting. `low` and `high` bound a number, or the length of a list; `form` each text in it."""
    metadata: dict[str, object] = {"help": help_text, "form": form, "low": low, "high": high, "unit": unit}
    metadata |= {"choices": choices, "secret": secret, "under": under}
    if isinstance(default, dict):
        return field(default_factory=dict, metadata=metadata)
    return field(default=default, metadata=metadata)


def number(default: float, low: float, high: float, help_text: str, unit: str = "") -> Any:
    """Declare a number from `low` to `high`; of a `unit`, if texts such as "10min" or "2GiB" mean one."""
    return declare(float(default) if unit == "s" else default, help_text, low=low, high=high, unit=unit)


def texts(default: tuple[str, ...], low: int, help_text: str, form: Form | None = None) -> Any:
    """Declare a list of `low` to 256 texts."""
    return declare(default, help_text, form, low=low, high=256)


def directory(name: str, help_text: str) -> Any:
    """Declare a directory that lies in `state_dir`, as `name`, unless it is set."""
    return declare(DERIVED, help_text, under=name)


seconds, byte_count = partial(number, unit="s"), partial(number, unit="bytes")


def size(count: int) -> str:
    """Return bytes in the largest unit that needs no fraction: 2147483648 is "2GiB"."""
    units = [(unit, int(factor)) for unit, factor in _UNITS["bytes"].items() if count and count % factor == 0]
    return f"{count // units[-1][1]}{units[-1][0]}" if units else str(count)


def expected(known: Field[Any]) -> str:
    """Return in words what a setting takes."""
    form = known.metadata["form"]
    low, high, unit = (known.metadata[key] for key in ("low", "high", "unit"))
    if known.metadata["choices"]:
        return f"one of {', '.join(known.metadata['choices'])}"
    if unit == "bytes":
        return f'a size from {size(low)} to {size(high)}, such as 65536 or "64KiB"'
    if known.type in ("int", "float"):
        return f"a {'whole ' * (known.type == 'int')}number from {low} to {high}{_EXAMPLES[unit]}"
    if known.type == "tuple[str, ...]":
        return f"a list of {low} to {high} texts" + (f": {form.words}" if form else "")
    kinds = {
        "bool": "true or false",
        "Path": "an absolute path without '..'",
        "dict[str, str]": "a table of texts",
    }
    return kinds.get(str(known.type)) or (form.words if form else "a text")


def mask_url(url: str) -> str:
    """Return a URL with its password, and parameters that are named like one, masked."""

    def mask_parameter(match: re.Match[str]) -> str:
        is_secret = re.search(r"pass(?!file)|pwd|secret|token|auth|api_?key", unquote(match[2]).lower())
        return f"{match[1]}{match[2]}={MASK}" if is_secret else match[0]

    url = re.sub(r"([?&;])([^=&;?]*)=([^&]*)", mask_parameter, url)
    # up to the last @: a password with a raw @ or / in it, wrong as it is, must not show its tail
    return re.sub(r"(://[^:@]*:).*@", rf"\1{MASK}@", url, count=1, flags=re.DOTALL)


def _parse_number(known: Field[Any], raw: object) -> float:
    value, units = raw, _UNITS.get(known.metadata["unit"], {})
    if isinstance(raw, str):
        text = raw.strip()
        parts = re.findall(r"([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]+)\s*", text)
        if re.fullmatch(r"[0-9]+(?:\.[0-9]+)?", text):
            value = float(text) if "." in text else int(text)
        elif parts and re.fullmatch(r"(?:[0-9]+(?:\.[0-9]+)?\s*[A-Za-z]+\s*)+", text):
            value = sum((float(n) if "." in n else int(n)) * units.get(unit, math.nan) for n, unit in parts)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError
    if not known.metadata["low"] <= value <= known.metadata["high"]:  # holds for no NaN
        raise ValueError
    if known.type == "int" and value != int(value):
        raise ValueError
    return int(value) if known.type == "int" else float(value)


def _parse_text(known: Field[Any], text: object) -> str:
    if not isinstance(text, str):
        raise TypeError
    form, choices = known.metadata["form"], known.metadata["choices"]
    is_empty_allowed = text == "" == known.default
    if form and not is_empty_allowed and not re.fullmatch(form.pattern, text):
        raise ValueError
    # line ends and escapes would forge log lines; NUL and lone surrogates break paths and databases
    if not text.isprintable() or (choices and text not in choices):
        raise ValueError
    return text


def _plural(raw: object, opening: str) -> object:
    """Read a list (`a,b`) or table (`a=1,b=2`) from text; what begins like TOML is TOML."""
    if not isinstance(raw, str):
        return raw
    if raw.lstrip().startswith(opening):
        import tomllib

        document = tomllib.loads(f"x = {raw}")
        return document["x"] if len(document) == 1 else None
    items = [item.strip() for item in raw.split(",")] if raw.strip() else []
    if opening == "[":
        return items
    return {name.strip(): value.strip() for name, value in (item.split("=", 1) for item in items)}


def parse(known: Field[Any], raw: object) -> object:
    """Read a value, from any source: a text means the same in each. Raises ValueError or TypeError."""
    match known.type:
        case "int" | "float":
            return _parse_number(known, raw)
        case "bool":
            value = {"true": True, "false": False}.get(raw.lower()) if isinstance(raw, str) else raw
            if not isinstance(value, bool):
                raise TypeError
            return value
        case "Path":
            text = _parse_text(known, raw)
            if not re.fullmatch(r"/(?!/).*", text) or ".." in Path(text).parts:
                raise ValueError
            return Path(text)
        case "tuple[str, ...]":
            items = _plural(raw, "[")
            if (
                not isinstance(items, list)
                or not known.metadata["low"] <= len(items) <= known.metadata["high"]
            ):
                raise TypeError
            return tuple(_parse_text(known, item) for item in items)
        case "dict[str, str]":
            table = _plural(raw, "{")
            if not isinstance(table, dict) or not all(re.fullmatch(NAME.pattern, name) for name in table):
                raise TypeError
            return {name: _parse_text(known, value) for name, value in table.items()}
    return _parse_text(known, raw)
