"""The template language of cache keys: four names, no code.

`pip-{{ os }}-{{ hash('requirements*.txt') }}`. Owns reading and filling in; which files a glob means and
how they are hashed is the cache's business.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

VARIABLES = ("arch", "branch", "os")

# Applied to the inside of one pair of braces only; every repetition is over a class that excludes what
# follows it, so matching is linear.
_HASH = re.compile(r"\s*hash\(\s*(?:'([^'\n]+)'|\"([^\"\n]+)\")\s*\)\s*")


@dataclass(frozen=True, slots=True)
class Hash:
    """A place for the hash of all files that a glob matches."""

    glob: str


@dataclass(frozen=True, slots=True)
class Variable:
    """A place for one of `VARIABLES`."""

    name: str


@dataclass(frozen=True, slots=True)
class CacheKey:
    """A template, read: literal text and places, in order."""

    parts: tuple[str | Hash | Variable, ...]

    @classmethod
    def read(cls, text: str) -> CacheKey:
        """Read a template.

        Raises: ValueError with what was expected, for a person.
        """
        parts: list[str | Hash | Variable] = []
        at = 0
        while (opened := text.find("{{", at)) >= 0:
            closed = text.find("}}", opened)
            if closed < 0:
                raise ValueError("`{{` without its `}}`")
            parts.append(_literal(text[at:opened]))
            parts.append(_place(text[opened + 2 : closed]))
            at = closed + 2
        parts.append(_literal(text[at:]))
        return cls(tuple(part for part in parts if part != ""))

    def render(self, variables: Mapping[str, str], hash_files: Callable[[str], str]) -> str:
        """Fill the places in.

        Args:
            variables: a value for each of `VARIABLES`; a build without a known branch gives "".
            hash_files: turns a glob, relative to the workspace, into a digest.
        """
        texts = []
        for part in self.parts:
            if isinstance(part, Hash):
                texts.append(hash_files(part.glob))
            else:
                texts.append(variables[part.name] if isinstance(part, Variable) else part)
        return "".join(texts)


def _literal(text: str) -> str:
    if "}}" in text:
        raise ValueError("`}}` without its `{{`")
    return text


def _place(inside: str) -> Hash | Variable:
    name = inside.strip()
    if name in VARIABLES:
        return Variable(name)
    if match := _HASH.fullmatch(inside):
        return Hash(match[1] or match[2])
    known = ", ".join(f"`{variable}`" for variable in VARIABLES)
    raise ValueError(f"a cache key knows `hash('glob')`, {known} between its braces and nothing else")
