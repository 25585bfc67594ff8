"""The text of a build definition, YAML or JSON, as plain values with the place each was written at.

Owns size, encoding and the difference between JSON and YAML. Knows nothing of what the keys mean, save
that values under `env` and `tags` stay as they were written.

The scalars are those of JSON (near to YAML 1.2's core schema), not YAML 1.1's: only `true` and `false` are
booleans, so `on`, `yes` and `no` (Norway) stay text; `012` and `0x1F` stay text, `12:30` is not base 60 and
`2024-01-01` not a date. A key is always text, as written: the pipeline `3.10` is called 3.10.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

import yaml

from agent.model.definition_issue import MAX_DOCUMENT_BYTES, Issue, Path, refusal, show
from agent.model.definition_yaml import Composer, Mark, Node, refuse_at, to_mark

# The characters YAML allows in its text (specification 1.1, section 5.1).
_FORBIDDEN = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
# In JSON that json.loads has accepted, a tab can only stand between tokens, where YAML wants a space; the
# others can only stand in strings, where YAML would fold them or refuse them.
_JSON_AS_YAML = str.maketrans(
    {"\t": " ", "\x7f": "\\u007f", "\x85": "\\u0085", "\u2028": "\\u2028", "\u2029": "\\u2029"}
)


@dataclass(frozen=True, slots=True)
class Text:
    """A document that could be read, and its faults that did not stop the reading."""

    root: Node
    issues: list[Issue]

    def plain(self) -> object:
        """Return the document as dicts, lists and scalars."""
        return _plain(self.root, ())

    def locate(self, path: Path, is_key: bool) -> tuple[int, int] | None:
        """Find line and column of the value at a path, or of its key; of the nearest that is there."""
        node, mark = self.root, self.root.mark
        for depth, part in enumerate(path):
            content, is_last = node.content, depth == len(path) - 1
            if isinstance(content, dict) and part in content:
                key_mark, node = content[str(part)]
                mark = key_mark if is_last and is_key else node.mark
            elif isinstance(content, list) and isinstance(part, int) and part < len(content):
                node = content[part]
                mark = node.mark
            else:
                break
        return mark.line, mark.column


def read(text: str | bytes, *, origin: str) -> Text:
    """Read one YAML or JSON document of up to 256 KiB.

    Raises: DefinitionError, with line and column, for text that is no YAML, is too large or too deep.
    """
    text = _decode(text, origin)
    if _is_json(text):
        text = text.translate(_JSON_AS_YAML)
    if bad := _FORBIDDEN.search(text):
        raise refuse_at(origin, _mark_of(text, bad.start()), _forbidden_text(bad[0]))
    composer = Composer(text, origin)
    try:
        return Text(composer.document(), composer.issues)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise refuse_at(origin, to_mark(mark) if mark else Mark(1, 1), _syntax_text(error)) from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        # PyYAML lets int() and chr() speak for themselves: `%YAML 1.<5,000 digits>`, "\UFFFFFFFF".
        raise refuse_at(origin, composer.mark, f"not YAML: {show(str(error))}") from None


def _decode(text: str | bytes, origin: str) -> str:
    size = len(text)
    if isinstance(text, str) and size <= MAX_DOCUMENT_BYTES:  # no copy is made of what is too large anyway
        size = len(text.encode("utf-8", "surrogatepass"))
    if size > MAX_DOCUMENT_BYTES:
        raise refusal(origin, [Issue((), f"the text is larger than {MAX_DOCUMENT_BYTES // 1024} KiB")])
    if isinstance(text, str):
        return text.removeprefix("\ufeff")
    try:
        return text.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = text[: error.start].decode("utf-8", "replace")
        raise refuse_at(origin, _mark_of(before, len(before)), "not UTF-8: expected text in UTF-8") from None


def _is_json(text: str) -> bool:
    if text.lstrip()[:1] != "{":
        return False
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _plain(node: Node, path: Path) -> object:
    content = node.content
    if isinstance(content, dict):
        return {key: _plain(child, (*path, key)) for key, (_, child) in content.items()}
    if isinstance(content, list):
        return [_plain(child, (*path, i)) for i, child in enumerate(content)]
    # `PYTHON: 3.10` is not 3.1: a variable's value is what stands in the text. Nothing stays nothing.
    return node.written if content is not None and _keeps_text(path[:-1]) else content


def _keeps_text(path: Path) -> bool:
    """Whether the mapping at a path is one of variables or tags, and not a pipeline of that name."""
    return path == ("tags",) or (path[-1:] == ("env",) and path[:-1] not in (("pipelines",), ("deploy",)))


def _mark_of(text: str, index: int) -> Mark:
    before = text[:index]
    return Mark(before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1)


def _forbidden_text(character: str) -> str:
    if character == "\0":
        return "a NUL byte, which no definition may hold"
    return f"the character U+{ord(character):04X}, which YAML does not allow"


def _syntax_text(error: yaml.MarkedYAMLError) -> str:
    problem = error.problem or "it can't be read"
    if "'\\t'" in problem:
        return "a tab where YAML takes spaces only: indent with spaces"
    context = f" {error.context}" if error.context else ""
    return f"not YAML: {problem}{context}"
