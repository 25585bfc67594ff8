"""What is wrong with a build definition, said to a person: every fault at once, each with its place.

Owns the wording and the limits on a document's shape. Knows nothing of YAML and nothing of the keys a
definition has; both are handed in.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from agent.errors import DefinitionError

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

Path = tuple[str | int, ...]
Locate = Callable[[Path, bool], tuple[int, int] | None]
"""Finds (line, column), both from 1, of the value at a path, or of its key."""

MAX_DOCUMENT_BYTES = 256 * 1024
MAX_DEPTH = 16  # the deepest legal value, pipelines.x.steps[0].env.A, is at 6; the rest is room for aliases
MAX_VALUES = 20_000
MAX_ISSUES = 20
_MAX_SHOWN = 60
_MAX_INTEGER = 2**63

_PLAIN_KEY = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True, slots=True)
class Issue:
    """One fault. `path` leads to the value, or to the key itself where `is_about_key`.

    `place` is line and column where the reader knew them itself, as of a key that stands twice.
    """

    path: Path
    text: str
    is_about_key: bool = False
    place: tuple[int, int] | None = None


def show(text: str) -> str:
    """Quote text of a stranger for a message: cut to 60 characters, no control characters, no line ends."""
    cut = text if len(text) <= _MAX_SHOWN else text[: _MAX_SHOWN - 3] + "..."
    return "`" + repr(cut)[1:-1] + "`"


_KINDS: tuple[tuple[type | tuple[type, ...], str], ...] = (
    ((int, float), "a number"),
    (str, "text"),
    (dict, "a mapping"),
    ((list, tuple), "a list"),
)


def describe(value: object) -> str:
    """Name the kind of a value as the writer of a definition would."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    kinds = (name for kind, name in _KINDS if isinstance(value, kind))
    return next(kinds, f"a {type(value).__name__}")


def path_text(path: Path) -> str:
    """Write a path as `pipelines.test.steps[2].timeout`."""
    parts: list[str] = []
    for part in path:
        if isinstance(part, int):
            parts.append(f"[{part}]")
        elif _PLAIN_KEY.fullmatch(part) and len(part) <= _MAX_SHOWN:
            parts.append(f".{part}" if parts else part)
        else:
            parts.append(f"[{show(part)}]")
    return "".join(parts)


def nearest(key: str, known: Iterable[str]) -> str:
    """End a message about an unknown key: the key that was probably meant, else all there are."""
    import difflib  # only here: job.py brings this module, and most definitions are right

    known = sorted(known)
    # difflib compares in quadratic time: a key as long as this is no slip of the finger.
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.6) if len(key) <= _MAX_SHOWN else []
    if close:
        return f"did you mean `{close[0]}`?"
    return "expected " + (", ".join(f"`{name}`" for name in known) if known else "no key here")


def refusal(
    origin: str, issues: Sequence[Issue], locate: Locate | None = None, *, unsaid: int = 0
) -> DefinitionError:
    """Make one error of all issues, in the order of the text, at most 20 of them in words.

    Args:
        origin: what the reader knows the document by: a file name or `job <id>`.
        locate: finds places in the text; without it issues are named by their path alone.
        unsaid: further issues that are only counted.
    """
    placed = [
        (issue.place or (locate and locate(issue.path, issue.is_about_key)) or (0, 0), issue)
        for issue in issues
    ]
    placed.sort(key=lambda pair: pair[0])
    lines = []
    for (line, column), issue in placed[:MAX_ISSUES]:
        place = f"{origin}:{line}:{column}" if line else origin
        where = path_text(issue.path)
        lines.append(f"{place}: {where}: {issue.text}" if where else f"{place}: {issue.text}")
    if (more := max(0, len(placed) - MAX_ISSUES) + unsaid) > 0:
        lines.append(f"{origin}: and {more} more")
    return DefinitionError("\n".join(lines))


def check_shape(document: object) -> list[Issue]:
    """Find what no definition may hold, whatever its keys: foreign types, NUL bytes, too much of anything.

    Walks with its own stack, so neither depth nor a list that holds itself costs more than the limits
    (F29). Stops at the first limit met, or at 20 issues.
    """
    issues: list[Issue] = []
    stack: list[tuple[Path, object]] = [((), document)]
    values = size = 0
    while stack and len(issues) < MAX_ISSUES:
        path, value = stack.pop()
        values += 1
        if values > MAX_VALUES or size > MAX_DOCUMENT_BYTES:
            limit = f"{MAX_VALUES} values" if values > MAX_VALUES else f"{MAX_DOCUMENT_BYTES // 1024} KiB"
            return [*issues, Issue((), f"the definition is too large: more than {limit}")]
        if len(path) > MAX_DEPTH:
            return [*issues, Issue(path[:4], f"nested deeper than {MAX_DEPTH} levels")]
        if isinstance(value, dict):
            issues.extend(_check_keys(path, value))
            size += sum(len(key) for key in value if isinstance(key, str))
            children = [((*path, key), item) for key, item in value.items() if isinstance(key, str)]
            stack.extend(reversed(children))
        elif isinstance(value, list | tuple):
            # No more children than the limit allows are looked at: a list may be far longer than that.
            stack.extend(((*path, i), value[i]) for i in reversed(range(min(len(value), MAX_VALUES + 1))))
        else:
            size += len(value) if isinstance(value, str) else 1
            issues.extend(Issue(path, text) for text in _scalar_fault(value))
    return issues


def _check_keys(path: Path, value: dict[Any, Any]) -> list[Issue]:
    issues = []
    for key in value:
        if not isinstance(key, str):
            issues.append(Issue(path, f"expected keys that are text, not {describe(key)}"))
        elif fault := _text_fault(key):
            issues.append(Issue((*path, key), f"the key {fault}", is_about_key=True))
        if len(issues) == MAX_ISSUES:
            break
    return issues


def _scalar_fault(value: object) -> list[str]:
    fault = None
    if isinstance(value, str):
        fault = _text_fault(value)
    elif isinstance(value, bool) or value is None:
        pass
    elif isinstance(value, int):
        # Beyond 64 bits no database or JSON reader agrees what it is, and str() refuses 4,300 digits.
        fault = None if -_MAX_INTEGER <= value < _MAX_INTEGER else "the number is out of range"
    elif isinstance(value, float):
        fault = None if math.isfinite(value) else "the number is out of range"
    else:
        fault = f"expected text, numbers, true/false, lists and mappings only, not {describe(value)}"
    return [fault] if fault else []


def _text_fault(text: str) -> str | None:
    if "\0" in text:
        return "holds a NUL byte, which neither a command nor a variable can carry"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "holds half of a surrogate pair, which is no character"
    return None


_EXPECTED = {
    "string_type": "text",
    "bool_type": "true or false",
    "int_type": "a whole number",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "mapping_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
}
_LIMIT_WORDS = {
    "greater_than_equal": ("at least", "ge"),
    "less_than_equal": ("at most", "le"),
    "too_short": ("at least", "min_length"),
    "too_long": ("at most", "max_length"),
}


def is_echo(error: ErrorDetails) -> bool:
    """Whether pydantic calls a list too short only because it did not count the entries that are wrong."""
    least = error.get("ctx", {}).get("min_length", 0)
    return error["type"] == "too_short" and len(error["input"]) >= least


def from_pydantic(error: ErrorDetails, document: object, keys_at: Callable[[Path], Iterable[str]]) -> Issue:
    """Say one of pydantic's errors in the words of the definition.

    Args:
        document: what was validated; the path is cut to what is really there.
        keys_at: the keys known at a path, for the hint after an unknown one.
    """
    path = tuple(error["loc"])
    if path[:1] == ("source",):  # the tag of the union (git, directory) is pydantic's, not the writer's
        path = path[:1] + path[2:]
    kind, value, context = error["type"], error["input"], error.get("ctx", {})
    if kind == "missing":
        return Issue(_existing(path[:-1], document), f"`{path[-1]}` is missing")
    if kind == "extra_forbidden":
        key = str(path[-1])
        return Issue(path, f"unknown key {show(key)}: {nearest(key, keys_at(path[:-1]))}", is_about_key=True)
    is_about_key = path[-1:] == ("[key]",)
    if is_about_key:
        path = path[:-1]
    if kind in _EXPECTED:
        text = f"expected {_EXPECTED[kind]}, not {describe(value)}"
        if kind == "string_type" and isinstance(value, bool | int | float):
            text += " (in quotes it would be text)"
    elif kind in _LIMIT_WORDS:
        word, bound = _LIMIT_WORDS[kind]
        unit = "" if bound in ("ge", "le") else " entries"
        text = f"expected {word} {context.get(bound)}{unit}"
    else:
        text = error["msg"]
    return Issue(_existing(path, document), text, is_about_key)


def _existing(path: Path, document: object) -> Path:
    """Cut a path where the document ends: a command written as text has no `run` of its own."""
    for depth, part in enumerate(path):
        is_key = isinstance(document, dict) and part in document
        is_index = isinstance(document, list | tuple) and isinstance(part, int) and part < len(document)
        if not (is_key or is_index):
            return path[:depth]
        document = document[part]  # type: ignore[index]
    return path
