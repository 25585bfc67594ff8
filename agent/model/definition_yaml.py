"""The nodes of a YAML document, each with its place, judged while they are read.

Owns which scalars are numbers, what a key is, and where depth, aliases and merges stop. Knows nothing of
what a definition's keys mean.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from agent.errors import DefinitionError
from agent.model.definition_issue import MAX_DEPTH, MAX_DOCUMENT_BYTES, MAX_VALUES, Issue, Path, refusal, show

_INTEGER = re.compile(r"[-+]?(?:0|[1-9][0-9]{0,17})")
_NUMBER = re.compile(r"[-+]?(?:0|[1-9][0-9]{0,17})(?:\.[0-9]{1,30})?(?:[eE][-+]?[0-9]{1,3})?")
_CONSTANTS: dict[str, bool | None] = {"": None, "~": None, "null": None, "true": True, "false": False}
_TEXT_TAG = "tag:yaml.org,2002:str"
_MERGE = "<<"


@dataclass(frozen=True, slots=True)
class Mark:
    """A place in the text; both count from 1."""

    line: int
    column: int


@dataclass(frozen=True, slots=True)
class Node:
    """A value and where it stands. `count` and `size` are what it holds with every alias written out."""

    mark: Mark
    content: str | int | float | bool | list[Node] | dict[str, tuple[Mark, Node]] | None
    written: str | None = None
    count: int = 1
    size: int = 1


class Composer:
    """Makes nodes of PyYAML's events, so that depth, size and keys are judged while reading."""

    def __init__(self, text: str, origin: str) -> None:
        self._events: Iterator[yaml.Event] = yaml.parse(text, Loader=yaml.SafeLoader)
        self._origin = origin
        self._anchors: dict[str, Node | None] = {}
        self.issues: list[Issue] = []
        self.mark = Mark(1, 1)
        self._budget = self._merge_budget = MAX_VALUES

    def _next(self) -> Any:
        event: Any = next(self._events)  # the stubs know nothing of an event's fields
        self.mark = to_mark(event.start_mark)
        return event

    def document(self) -> Node:
        """Compose the one document there is."""
        self._next()  # the start of the stream
        if isinstance(self._next(), yaml.StreamEndEvent):
            raise self._refuse("the definition is empty")
        root = self._node(self._next(), ())
        self._next()  # the end of the document
        if not isinstance(self._next(), yaml.StreamEndEvent):
            raise self._refuse("a second document begins here: expected one only")
        return root

    def _refuse(self, text: str, mark: Mark | None = None) -> DefinitionError:
        return refuse_at(self._origin, mark or self.mark, text)

    def _node(self, event: Any, path: Path) -> Node:
        if len(path) > MAX_DEPTH:
            raise self._refuse(f"nested deeper than {MAX_DEPTH} levels")
        self._budget -= 1
        if self._budget < 0:  # the count below is known when a list has ended, and that may be far away
            raise self._refuse(f"the definition is too large: more than {MAX_VALUES} keys and values")
        if isinstance(event, yaml.AliasEvent):
            return self._alias(str(event.anchor))
        anchor = event.anchor
        if anchor is not None:
            self._anchors[anchor] = None  # not yet whole: an alias to it from within would never end
        if isinstance(event, yaml.ScalarEvent):
            node = self._scalar(event)
        elif isinstance(event, yaml.SequenceStartEvent):
            self._check_tag(event)
            node = self._sequence(path)
        else:
            self._check_tag(event)
            node = self._mapping(path)
        if node.count > MAX_VALUES or node.size > MAX_DOCUMENT_BYTES:
            # Counted over aliases without writing them out, so a "billion laughs" costs nothing.
            limit = f"{MAX_VALUES} values or {MAX_DOCUMENT_BYTES // 1024} KiB"
            raise self._refuse(f"with its aliases written out, this grows beyond {limit}", node.mark)
        if anchor is not None:
            self._anchors[anchor] = node
        return node

    def _alias(self, anchor: str) -> Node:
        if anchor not in self._anchors:
            raise self._refuse(f"the alias {show(anchor)} has no anchor before it")
        node = self._anchors[anchor]
        if node is None:
            raise self._refuse(f"the alias {show(anchor)} stands inside of what it names")
        return node

    def _check_tag(self, event: Any) -> None:
        if event.tag is not None:
            raise self._refuse(f"the tag {show(event.tag)} is not read here: expected plain values")

    def _scalar(self, event: Any) -> Node:
        written = _join_surrogates(event.value)
        value: str | int | float | bool | None = written
        if event.tag != _TEXT_TAG:
            self._check_tag(event)
            if event.style is None:
                value = _resolve(written)
        return Node(self.mark, value, written, size=1 + len(written))

    def _sequence(self, path: Path) -> Node:
        mark, items, count, size = self.mark, list[Node](), 1, 1
        while not isinstance(event := self._next(), yaml.SequenceEndEvent):
            item = self._node(event, (*path, len(items)))
            items.append(item)
            count, size = count + item.count, size + item.size
        return Node(mark, items, None, count, size)

    def _mapping(self, path: Path) -> Node:
        mark = self.mark
        entries: dict[str, tuple[Mark, Node]] = {}
        merged: list[Node] = []
        while not isinstance(event := self._next(), yaml.MappingEndEvent):
            key_mark = self.mark
            is_merge = isinstance(event, yaml.ScalarEvent) and event.style is None and event.value == _MERGE
            key = self._key(event, path)
            value = self._node(self._next(), (*path, key))
            if is_merge:
                merged.extend(self._merge_sources(value))
            elif key in entries:
                first = entries[key][0].line
                self._note_duplicate(path, key, key_mark, first)
            else:
                entries[key] = (key_mark, value)
        for source in merged:
            if isinstance(source.content, dict):
                entries = {**source.content, **entries}
        count = 1 + sum(node.count for _, node in entries.values())
        size = 1 + sum(len(key) + node.size for key, (_, node) in entries.items())
        return Node(mark, entries, None, count, size)

    def _key(self, event: Any, path: Path) -> str:
        # Judged before it is composed: `{{{{` nests keys in keys, which are no levels of the path.
        if isinstance(event, yaml.CollectionStartEvent):
            raise self._refuse("a list or a mapping stands as a key: expected text")
        key = self._node(event, path).written
        if key is None:
            raise self._refuse("the alias of a list or a mapping stands as a key: expected text")
        return key

    def _note_duplicate(self, path: Path, key: str, mark: Mark, first_line: int) -> None:
        text = f"duplicate key {show(key)} in line {mark.line}, first in line {first_line}"
        self.issues.append(Issue((*path, key), text, place=(mark.line, mark.column)))

    def _merge_sources(self, value: Node) -> list[Node]:
        """Return the mappings that `<<` names; of two that say the same, the earlier wins."""
        sources = value.content if isinstance(value.content, list) else [value]
        for source in sources:
            if not isinstance(source.content, dict):
                text = "`<<` takes in mappings: expected an alias of one, or a list of them"
                raise self._refuse(text, source.mark)
            # Counted over the document: a large mapping merged everywhere would cost its square in time.
            self._merge_budget -= 1 + len(source.content)
            if self._merge_budget < 0:
                raise self._refuse(f"`<<` takes in more than {MAX_VALUES} values", source.mark)
        return sources


def _resolve(written: str) -> str | int | float | bool | None:
    lowered = written if len(written) > 5 else written.lower()
    if lowered in _CONSTANTS and written in (lowered, lowered.upper(), lowered.capitalize()):
        return _CONSTANTS[lowered]
    if _INTEGER.fullmatch(written):
        return int(written)
    return float(written) if _NUMBER.fullmatch(written) else written


def _join_surrogates(text: str) -> str:
    """Make characters of JSON's escaped surrogate pairs; halves without their other stay for the check."""
    if not any("\ud800" <= c <= "\udfff" for c in text):
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")


def to_mark(mark: yaml.error.Mark) -> Mark:
    """Count from 1, as editors do."""
    return Mark(mark.line + 1, mark.column + 1)


def refuse_at(origin: str, mark: Mark, text: str) -> DefinitionError:
    """Make the error of a fault that ends the reading."""
    return refusal(origin, [Issue((), text, place=(mark.line, mark.column))])
