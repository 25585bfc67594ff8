"""What documentation says of the project, held to what is there: links, commands, faults, log events, decisions."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import click
import pytest

from agent.cli import COMMANDS, cli

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")])
DECISIONS = sorted((ROOT / "docs/decisions").glob("*.md"))
LEVELS = {"debug": "debug", "info": "info", "warning": "warning", "error": "error", "exception": "error"}
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"(?<!!)\[[^\]]+\]\(([^)\s]+)\)")


def name_of(page: Path) -> str:
    """Return a page's path as people know it."""
    return str(page.relative_to(ROOT))


@cache
def prose_of(page: Path) -> str:
    """Return a page without its fenced blocks."""
    return _FENCE.sub("", page.read_text())


@cache
def anchors_of(page: Path) -> frozenset[str]:
    """Return what a link may follow `#` with, as GitHub makes it of headings."""
    headings = re.findall(r"^#+ +(.+)$", prose_of(page), re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower()) for heading in headings)
    return frozenset(text.strip().replace(" ", "-") for text in plain)


def rows_of(page: Path, columns: int) -> Iterator[list[str]]:
    """Yield the cells of each row of the tables that have so many columns, heads left out."""
    for line in prose_of(page).splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")] if line.startswith("|") else []
        if len(cells) == columns and not set("".join(cells)) <= set("-: "):
            yield cells


# Links and the index.


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_leads_to_a_page_and_a_heading(page: Path) -> None:
    dead = []
    for target in _LINK.findall(prose_of(page)):
        path, _, anchor = target.partition("#")
        if "://" in path:
            continue
        there = (page.parent / path).resolve() if path else page
        if not there.exists() or (anchor and anchor not in anchors_of(there)):
            dead.append(target)
    assert not dead, f"{name_of(page)} links to what is not there: {dead}"


def test_index_names_every_page() -> None:
    index = ROOT / "docs/README.md"
    linked = {(index.parent / target).resolve() for target in _LINK.findall(prose_of(index))}
    pages = set((ROOT / "docs").rglob("*.md")) - {index}
    assert not [name_of(page) for page in pages - linked]


def test_every_page_begins_with_one_title() -> None:
    wrong = [
        name_of(page)
        for page in PAGES
        if not page.read_text().startswith("# ") or len(re.findall(r"^# ", prose_of(page), re.MULTILINE)) != 1
    ]
    assert not wrong


def test_files_that_the_code_names_in_docs_are_there() -> None:
    named = {
        (path.relative_to(ROOT), target)
        for path in [*(ROOT / "agent").rglob("*.py"), *(ROOT / "setup_scripts").glob("*.sh")]
        for target in re.findall(r"(?<![\w/])docs/[\w/-]+\.md", path.read_text())
        # a file of another project is named with that project before it
        if f", {target}" not in path.read_text()
    }
    assert named
    assert not [(path, target) for path, target in named if not (ROOT / target).exists()]


# Decisions.


def test_decisions_are_numbered_without_gaps() -> None:
    assert [path.name[:5] for path in DECISIONS] == [f"{n:04}-" for n in range(1, len(DECISIONS) + 1)]


@pytest.mark.parametrize("page", DECISIONS, ids=name_of)
def test_decision_has_its_parts_and_its_line_in_the_index(page: Path) -> None:
    text = page.read_text()
    number, title = re.match(r"# (\d{4}): (.+)\n\n(?:Accepted|Superseded by \[)", text).groups()  # type: ignore[union-attr]
    assert page.name.startswith(number)
    headings = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert headings[:3] == ["Context", "Decision", "Consequences"]
    assert f"| [{number}](decisions/{page.name}) | {title} |" in (ROOT / "docs/README.md").read_text()


# Commands.


class Said(NamedTuple):
    """A command line that a page shows."""

    page: str
    words: tuple[str, ...]


def commands_in(page: Path) -> Iterator[Said]:
    """Yield every call of build-agent in a page: lines of shell blocks, and code within sentences."""
    lines = [
        line.removeprefix("$ ").partition("  #")[0]
        for language, block in _FENCE.findall(page.read_text())
        for line in block.splitlines()
        if language in ("sh", "console") and (language == "sh" or line.startswith("$ "))
    ]
    lines += re.findall(r"`([^`\n]+)`", prose_of(page))
    for line in lines:
        # Whatever shell is around it: a pipe, a list, a substitution, another user.
        for part in re.split(r"\|\||&&|[|;()]|\$\(", line):
            found = re.match(
                r"(?:runuser -u build-agent -- )?(?:[~\w./-]*/)?build-agent (?!\[)(.+)$", part.strip()
            )
            if found:
                plain = re.sub(r"\d?>\S+|&$|<<.*", "", found[1])
                yield Said(name_of(page), tuple(shlex.split(plain, comments=True)))


def fault_of(words: tuple[str, ...]) -> str | None:
    """Return what is wrong with a command line, `None` if the command and its options are there."""
    rest = list(words)
    while rest and rest[0].startswith("--"):
        known = {option: param for param in cli.params for option in param.opts}
        option = rest.pop(0).partition("=")[0]
        if option not in known and option not in ("--help", "--version"):
            return f"no option {option}"
        if option in ("--config", "--set"):
            del rest[:1]
    if not rest:
        return None
    if rest[0] not in COMMANDS:
        return f"no command {rest[0]}"
    command: click.Command = getattr(
        importlib.import_module(f"agent.cli.{COMMANDS[rest[0]][0]}"), rest[0].replace("-", "_")
    )
    rest.pop(0)
    if isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
        if rest[0] not in command.commands:
            return f"no command {command.name} {rest[0]}"
        command = command.commands[rest.pop(0)]
    options = {option for param in command.params for option in (*param.opts, *param.secondary_opts)}
    options |= {"--help", "-h"}
    unknown = [word for word in rest if re.match(r"--?[a-z]", word) and word.partition("=")[0] not in options]
    return f"{command.name} has no option {unknown}" if unknown else None


def test_every_command_shown_is_one_that_there_is() -> None:
    said = [command for page in PAGES for command in commands_in(page)]
    assert len(said) > 40, "the pages are not read as they should be"
    faults = [(command, fault) for command in said if (fault := fault_of(command.words))]
    assert not faults


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        ("submit --follow", None),
        ("--set slots=4 db upgrade", None),
        ("submitt", "no command submitt"),
        ("db downgrade", "no command db downgrade"),
        ("drain web-7 --at-once", "drain has no option ['--at-once']"),
    ],
)
def test_wrong_command_would_be_found(words: str, fault: str | None) -> None:
    assert fault_of(tuple(words.split())) == fault


def test_every_make_target_shown_is_one_that_there_is() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    shown = {
        word for page in PAGES for word in re.findall(r"\bmake ([a-z-]+)\b(?=[ `\n].*#|`)", page.read_text())
    }
    # `make test` stands for the user's own Makefile too, and is a target of this one.
    assert shown
    assert shown <= targets


def test_session_in_the_readme_uses_a_definition_and_settings_that_hold(tmp_path: Path) -> None:
    from agent.config_load import load
    from agent.model.definition import parse

    (session,) = [
        block
        for language, block in _FENCE.findall((ROOT / "README.md").read_text())
        if language == "console" and "cat agent.toml" in block
    ]
    files = dict(re.findall(r"^\$ cat (\S+)\n((?:(?!\$ ).*\n)+)", session, re.MULTILINE))
    (tmp_path / "agent.toml").write_text(files["agent.toml"])
    assert load(tmp_path / "agent.toml", {}, {}).settings.server_name == "here"
    assert list(parse(files["shop.yml"], origin="shop.yml").pipelines) == ["lint", "test"]


# Faults.


@cache
def functions_there() -> dict[str, str]:
    """Return each test function of the project with its file."""
    return {
        node.name: str(path.relative_to(ROOT))
        for path in sorted((ROOT / "tests").rglob("test_*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


@cache
def faults() -> dict[str, list[str]]:
    """Return the rows of docs/faults.md: id, fault, what holds, tests."""
    rows = list(rows_of(ROOT / "docs/faults.md", 4))
    return {row[0]: row for row in rows if re.fullmatch(r"F\d\d", row[0])}


def test_every_test_that_holds_a_fault_is_there() -> None:
    rows = rows_of(ROOT / "docs/faults.md", 4)
    named = {name for row in rows for name in re.findall(r"`(test_\w+)`", row[3])}
    assert named
    assert named <= functions_there().keys(), "docs/faults.md names tests that are not there"


def test_every_fault_has_a_test_or_says_that_it_has_none() -> None:
    assert list(faults()) == sorted(faults())
    bare = [number for number, row in faults().items() if "`test_" not in row[3] and row[3] != "none yet"]
    assert not bare


def test_every_test_of_whole_agents_named_after_a_fault_is_in_its_row() -> None:
    missing = [
        f"{name} ({path})"
        for name, path in functions_there().items()
        if (found := re.match(r"test_f(\d\d)_", name))
        and path.startswith(("tests/acceptance/", "tests/machine/"))
        and f"`{name}`" not in faults().get(f"F{found[1]}", [""] * 4)[3]
    ]
    assert not missing, "these belong into the table of docs/faults.md"


def test_every_fault_that_the_code_answers_is_in_the_table() -> None:
    named = {
        number
        for path in (ROOT / "agent").rglob("*.py")
        for number in re.findall(r"\bF\d\d\b", path.read_text())
    }
    assert named
    assert named <= faults().keys()


# Log events.


class Event(NamedTuple):
    """What a record of one event looks like, over all places that write it."""

    levels: frozenset[str]
    fields: frozenset[str]


@cache
def events() -> dict[str, Event]:
    """Return every event that the package writes."""
    found: dict[str, Event] = {}
    for path in sorted((ROOT / "agent").rglob("*.py")):
        for call in ast.walk(ast.parse(path.read_text())):
            if not (
                isinstance(call, ast.Call)
                and isinstance(call.func, ast.Attribute)
                and call.func.attr in LEVELS
            ):
                continue
            if not (isinstance(call.func.value, ast.Name) and call.func.value.id == "_log"):
                continue
            fields = frozenset(keyword.arg or "" for keyword in call.keywords)
            for name in _names(call.args[0], f"{path}:{call.lineno}"):
                former = found.get(name, Event(frozenset(), frozenset()))
                found[name] = Event(former.levels | {LEVELS[call.func.attr]}, former.fields | fields)
    return found


def _names(argument: ast.expr, place: str) -> list[str]:
    """Return the names that an event's argument may have; they must be literals, to be found by searching."""
    choices = [argument.body, argument.orelse] if isinstance(argument, ast.IfExp) else [argument]
    names = [choice.value for choice in choices if isinstance(choice, ast.Constant)]
    assert len(names) == len(choices), f"{place}: the event is no literal"
    return [str(name) for name in names]


def test_log_events_are_documented_with_level_and_fields() -> None:
    documented = {
        cells[0].strip("`"): Event(
            frozenset(cells[1].split(", ")), frozenset(re.findall(r"`(\w+)`", cells[2]))
        )
        for cells in rows_of(ROOT / "docs/log-events.md", 4)
        if cells[0].startswith("`")
    }
    assert documented == events()
    assert list(documented) == sorted(documented)


def test_events_are_named_thing_and_what_happened() -> None:
    assert not [name for name in events() if not re.fullmatch(r"[a-z]+\.[a-z0-9_]+", name)]


def test_only_the_log_module_speaks_to_logging() -> None:
    """A record without an event would be in no list."""
    others = []
    for path in sorted((ROOT / "agent").rglob("*.py")):
        name = str(path.relative_to(ROOT / "agent"))
        # The command line silences a library; migrations write with the agent's own logger.
        if name in ("log.py", "cli/context.py"):
            continue
        tree = ast.parse(path.read_text())
        imports = {
            alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
        }
        if "logging" in imports:
            others.append(name)
    assert not others


# Words.


def test_glossary_is_in_order() -> None:
    words = [cells[0] for cells in rows_of(ROOT / "docs/glossary.md", 2)][1:]
    assert words == sorted(words, key=str.casefold)


def test_changelog_has_the_form_that_it_says() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    versions = re.findall(r"^## \[(.+?)\]( - \d{4}-\d\d-\d\d)?$", text, re.MULTILINE)
    assert versions[0] == ("Unreleased", "")
    assert all(date for _, date in versions[1:])
    kinds = set(re.findall(r"^### (.+)$", text, re.MULTILINE))
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
