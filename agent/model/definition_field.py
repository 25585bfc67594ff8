"""The kinds of text and number a build definition is made of, each with its limit and its wording.

Owns single values; how they stand together is `definition_part`'s.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import (
    BeforeValidator,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    PlainSerializer,
    WithJsonSchema,
)
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from agent.model.cache_key import CacheKey, Hash
from agent.model.definition_issue import describe, show

_MAX_DURATION_S = 30 * 86400.0
_UNITS_S = {"d": 86400.0, "h": 3600.0, "min": 60.0, "m": 60.0, "sec": 1.0, "s": 1.0, "ms": 0.001}
_DURATION_PART = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?) *(d|h|min|ms|m|sec|s) *")
_DURATION_SCHEMA = r"^([0-9]+(\.[0-9]+)? *(d|h|min|ms|m|sec|s) *)+$|^[0-9]+(\.[0-9]+)?$"


def fault(text: str) -> PydanticCustomError:
    """Make the error of a validator whose text is already written for a person."""
    return PydanticCustomError("definition", "{text}", {"text": text})


@dataclass(frozen=True, slots=True)
class Text:
    """Annotates a string: at most `max_bytes` in UTF-8, never empty, of a pattern, and without a complaint.

    `expected` completes "expected ..."; `complaint` returns what is wrong in its own words, or None.
    """

    expected: str
    max_bytes: int
    pattern: str = ""
    complaint: Callable[[str], str | None] | None = None

    def check(self, value: str) -> str:
        """Return the value, or raise the fault."""
        if not value:
            raise fault(f"expected {self.expected}, not an empty text")
        if len(value.encode()) > self.max_bytes:
            raise fault(f"longer than {self.max_bytes} bytes: expected {self.expected}")
        if self.pattern and not re.fullmatch(self.pattern, value):
            raise fault(f"expected {self.expected}, not {show(value)}")
        if self.complaint and (text := self.complaint(value)):
            raise fault(text)
        return value

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Check after pydantic has made sure that it is a string."""
        return core_schema.no_info_after_validator_function(self.check, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """Say the same limits to an editor."""
        pattern = {"pattern": f"^(?:{self.pattern})$"} if self.pattern else {}
        return {**handler(schema), "minLength": 1, "maxLength": self.max_bytes, **pattern}


def _reserved(name: str) -> str | None:
    if name == "CI" or name.startswith("BUILD_"):
        return f"`{name}` is reserved: the agent sets `CI` and `BUILD_*`, so that a step can trust them"
    return None


def _not_inside(path: str) -> str | None:
    if path.startswith(("/", "~")) or ".." in path.split("/"):
        return f"expected a path inside the workspace (no leading `/` or `~`, no `..`), not {show(path)}"
    return None if path.isprintable() else "expected a path without line ends or control characters"


def _not_absolute(path: str) -> str | None:
    if not path.startswith("/") or ".." in path.split("/"):
        return f"expected an absolute path without `..`, not {show(path)}"
    return None if path.isprintable() else "expected a path without line ends or control characters"


def _project_fault(name: str) -> str | None:
    # A project's name becomes folders of mirrors and caches.
    if any(part in ("", ".", "..") for part in name.split("/")):
        return f"expected no empty, `.` or `..` part between slashes, not {show(name)}"
    return None


_SCHEME = re.compile(r"(?:https?|ssh|git)://(?:([^/@]*)@)?[A-Za-z0-9\[][^/@]*/.+|file:///.+")
_SCP = re.compile(r"[A-Za-z0-9._][A-Za-z0-9._-]*@[A-Za-z0-9\[][A-Za-z0-9.:\]-]*:[^-].*")


def _url_fault(url: str) -> str | None:
    # Git runs commands for `ext::` addresses and takes what begins with a dash for an option.
    if not url.isprintable() or " " in url:
        return "expected an address without spaces or control characters"
    if match := _SCHEME.fullmatch(url):
        if match[1] and (":" in match[1] or url.startswith("http")):
            return "the address holds a password, and definitions are stored: use a credential helper"
        return None
    if (_SCP.fullmatch(url) and "::" not in url) or (url.startswith("/") and ".." not in url.split("/")):
        return None
    return (
        "expected a Git address (https://, ssh://, git://, file:///, user@host:path or an absolute path), "
        f"not {show(url)}"
    )


_BRANCH_FORBIDDEN = re.compile(r"[\x00-\x20\x7f~^:?*\[\\]|\.\.|@\{|//|/\.|\.lock(/|$)")


def _branch_fault(name: str) -> str | None:
    # The rules of git-check-ref-format(1); a leading dash would be an option.
    if name.startswith(("-", "/", ".")) or name.endswith(("/", ".")) or _BRANCH_FORBIDDEN.search(name):
        return f"expected a branch name as Git allows it, not {show(name)}"
    return None


def _cache_key_fault(text: str) -> str | None:
    try:
        key = CacheKey.read(text)
    except ValueError as error:
        return str(error)
    return next(
        (found for part in key.parts if isinstance(part, Hash) and (found := _not_inside(part.glob))), None
    )


def _to_value(value: object) -> object:
    """Turn what a user may write for a variable into the text it will be; the rest is a fault."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if not isinstance(value, str):
        hint = ' (write "" for an empty one)' if value is None else ""
        raise fault(f"expected text, a number or true/false, not {describe(value)}{hint}")
    return value


def to_seconds(value: object) -> float:
    """Read a duration: a number of seconds, or text such as `90s`, `10min`, `1h30m`.

    Raises: PydanticCustomError with what was expected.
    """
    seconds: float | None = None
    if isinstance(value, int | float) and not isinstance(value, bool):
        seconds = float(value)
    elif isinstance(value, str) and len(value) <= 40:
        seconds = _text_to_seconds(value.strip())
    if seconds is None:
        shown = show(value) if isinstance(value, str) else describe(value)
        raise fault(f"expected seconds or a duration such as `90s`, `10min` or `1h30m`, not {shown}")
    if not 0 < seconds <= _MAX_DURATION_S:
        raise fault("expected a duration of more than 0 seconds and at most 30 days")
    return seconds


def _text_to_seconds(text: str) -> float | None:
    if re.fullmatch(r"[0-9]{1,9}(?:\.[0-9]{1,9})?", text):
        return float(text)
    at, seconds = 0, 0.0
    while match := _DURATION_PART.match(text, at):
        seconds += float(match[1]) * _UNITS_S[match[2]]
        at = match.end()
    return seconds if at and at == len(text) else None


def _shortest(seconds: float) -> int | float:
    return int(seconds) if seconds.is_integer() else seconds


_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"
_NAME_EXPECTED = "letters, digits, `.`, `_` and `-`, beginning with a letter or digit"
_VARIABLE = "a variable's name: letters, digits and `_`, not beginning with a digit"

Name = Annotated[str, Text(_NAME_EXPECTED, 64, _NAME)]
ProjectName = Annotated[
    str,
    Text("1 to 200 letters, digits, `.`, `_`, `/` and `-`", 200, r"[A-Za-z0-9._/-]{1,200}", _project_fault),
]
EnvName = Annotated[str, Text(_VARIABLE, 128, r"[A-Za-z_][A-Za-z0-9_]*", _reserved)]
# One variable of 32 KiB: the kernel takes 128 KiB for one string, and all of them together 2 MiB.
EnvValue = Annotated[
    str,
    Field(max_length=32 * 1024),
    BeforeValidator(_to_value),
    WithJsonSchema({"type": ["string", "number", "boolean"], "maxLength": 32 * 1024}),
]
Env = Annotated[dict[EnvName, EnvValue], Field(max_length=200)]
# A command is one argument of the shell, for which the kernel's MAX_ARG_STRLEN allows 128 KiB.
Command = Annotated[str, Text("a command line (longer ones belong in a file of the repository)", 64 * 1024)]
Label = Annotated[str, Text("a name in one line", 200, r"[^\x00-\x1f\x7f]*")]
InsidePath = Annotated[str, Text("a path inside the workspace", 1024, complaint=_not_inside)]
AbsolutePath = Annotated[str, Text("an absolute path", 4096, complaint=_not_absolute)]
GitUrl = Annotated[str, Text("a Git address", 2048, complaint=_url_fault)]
Branch = Annotated[str, Text("a branch name", 244, complaint=_branch_fault)]
BranchPattern = Annotated[str, Text("a branch pattern such as `main` or `release/*`", 244)]
Commit = Annotated[
    str,
    Text(
        "a whole commit id: 40 (SHA-1) or 64 (SHA-256) hexadecimal digits in lower case",
        64,
        r"[0-9a-f]{40}|[0-9a-f]{64}",
    ),
]
KeyTemplate = Annotated[str, Text("a cache key", 512, r"[^\x00-\x1f\x7f]*", _cache_key_fault)]
Marker = Annotated[str, Text("a marker such as `[skip ci]`", 200)]
Duration = Annotated[
    float,
    BeforeValidator(to_seconds),
    PlainSerializer(_shortest),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "number", "exclusiveMinimum": 0, "maximum": _MAX_DURATION_S},
                {"type": "string", "maxLength": 40, "pattern": _DURATION_SCHEMA},
            ]
        }
    ),
]
