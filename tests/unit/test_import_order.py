"""The rows of the package: who may import whom, by the sources and by what a process really loads."""

from __future__ import annotations

import ast
import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "agent"

# A module imports only from its own row or one above it.
ROWS: tuple[frozenset[str], ...] = (
    frozenset(
        {
            "agent",
            "agent.errors",
            "agent.clock",
            "agent.setting",
            "agent.config",
            "agent.config_load",
            "agent.log",
        }
    ),
    frozenset({"agent.model"}),
    frozenset({"agent.store"}),
    frozenset({"agent.metrics"}),
    frozenset({"agent.host"}),
    frozenset({"agent.output"}),
    frozenset({"agent.build"}),
    frozenset({"agent.queue"}),
    frozenset({"agent.daemon"}),
    frozenset({"agent.fleet"}),
    frozenset({"agent.console"}),
    frozenset({"agent.cli", "agent.__main__"}),
)

# Who alone may import a library: its traps are known and answered in one place.
ONLY_IN = {
    "rq": "agent.queue",
    "redis": "agent.queue",
    "sqlalchemy": "agent.store",
    "alembic": "agent.store",
    "psycopg": "agent.store",
    "sqlite3": "agent.store",
    "boto3": "agent.fleet",
    "botocore": "agent.fleet",
    "paramiko": "agent.fleet",
    "fastapi": "agent.console",
    "starlette": "agent.console",
}

CLOCK = "agent.clock"
READS_TIME = frozenset(
    f"{name}{suffix}"
    for name in ("monotonic", "time", "perf_counter", "clock_gettime", "process_time", "thread_time")
    for suffix in ("", "_ns")
) | {"sleep"}
READS_DATE = frozenset({"now", "utcnow", "today"})

# What an agent that runs builds must never load: it costs memory on each server and opens ways in.
HEAVY = frozenset({"alembic", "boto3", "fastapi", "paramiko", "requests", "rich"})
# `build-agent --help` and tab completion wait for what agent.cli imports.
SLOW_TO_IMPORT = HEAVY | {"psycopg", "pydantic", "redis", "rq", "sqlalchemy"}
# What an agent loads with its first build, or for the other database: an idle one is 10 MB smaller without.
NOT_WHILE_IDLE = frozenset(
    {"agent.build.build", "difflib", "pydantic", "sqlite3", "statistics", "tarfile", "yaml"}
)
# Parts of `run`'s packages that only other commands import.
NOT_OF_RUN = ("agent.store.migrate", "agent.store.migrations")
PACKAGES_OF_RUN = (
    *(
        "agent.setting",
        "agent.config",
        "agent.config_load",
        "agent.log",
        "agent.model",
        "agent.store",
        "agent.metrics",
    ),
    *("agent.host", "agent.output", "agent.build", "agent.queue", "agent.daemon"),
)

# Words that say nothing about what is inside.
EMPTY_NAMES = frozenset({"util", "utils", "helper", "helpers", "manager", "base", "common", "misc"})
# The design's words for things; safe because nobody puts the inside of the package on the path.
ALLOWED_STDLIB_NAMES = frozenset({"agent.queue", "agent.build.secrets"})


def module_name(path: Path) -> str:
    """The dotted name of a source file."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


@cache
def tree_of(name: str) -> ast.Module:
    """The parsed source of a module."""
    return ast.parse(MODULES[name].read_text(), str(MODULES[name]))


def imports_of(name: str) -> Iterator[tuple[int, str]]:
    """Yield (line, dotted name) of everything a module imports, wherever in it, for types only included."""
    package = name if MODULES[name].name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(tree_of(name)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            relative = "." * node.level + (node.module or "")
            source = importlib.util.resolve_name(relative, package) if node.level else relative
            for alias in node.names:
                inner = f"{source}.{alias.name}"
                yield node.lineno, inner if inner in MODULES else source


def place_of(name: str) -> str:
    """The part of the package a module belongs to: the first two names."""
    return ".".join(name.split(".")[:2])


def row_of(name: str) -> int | None:
    """The row a module stands in, `None` when it has none."""
    place = place_of(name)
    return next((number for number, row in enumerate(ROWS) if place in row), None)


def at(name: str, line: int) -> str:
    """Where to look."""
    return f"{MODULES[name].relative_to(ROOT)}:{line}"


def reads_clock(node: ast.AST) -> str | None:
    """Return what a node reads the clock with, `None` when it does not."""
    if isinstance(node, ast.ImportFrom) and node.module == "time":
        names = sorted(READS_TIME.intersection(alias.name for alias in node.names))
        return f"from time import {', '.join(names)}" if names else None
    if not isinstance(node, ast.Attribute):
        return None
    owner = ast.unparse(node.value)
    if owner == "time" and node.attr in READS_TIME:
        return f"time.{node.attr}"
    if owner.split(".")[-1] in {"datetime", "date"} and node.attr in READS_DATE:
        return f"{owner}.{node.attr}"
    return None


def loaded_by(modules: list[str], watched: frozenset[str]) -> dict[str, str]:
    """Import modules in a fresh process; return which watched library came with which of them."""
    script = (
        "import importlib, json, sys\n"
        "modules, watched = json.load(sys.stdin)\n"
        "found = {}\n"
        "for module in modules:\n"
        "    importlib.import_module(module)\n"
        "    for name in watched:\n"
        "        if name in sys.modules: found.setdefault(name, module)\n"
        "print(json.dumps(found))\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        input=json.dumps([modules, sorted(watched)]),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, str] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("name", MODULES)
def test_module_imports_only_its_own_row_or_an_earlier_one(name: str) -> None:
    own = row_of(name)
    assert own is not None, f"{name} stands in no row: put it in a package that does, or give it one in ROWS"
    wrong = []
    for line, imported in imports_of(name):
        if imported.split(".")[0] != "agent":
            continue
        row = row_of(imported)
        if row is None or row > own:
            wrong.append(f"{at(name, line)}: row {own} ({place_of(name)}) imports {imported} of row {row}")
    assert not wrong, "imports against the data's way; hand the thing in from above instead:\n" + "\n".join(
        wrong
    )


@pytest.mark.parametrize("name", MODULES)
def test_module_imports_no_library_that_belongs_to_another_package(name: str) -> None:
    wrong = [
        f"{at(name, line)}: only {ONLY_IN[top]} imports {top}"
        for line, imported in imports_of(name)
        if (top := imported.split(".")[0]) in ONLY_IN and place_of(name) != ONLY_IN[top]
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("name", [name for name in MODULES if name != CLOCK])
def test_module_reads_time_only_from_the_clock(name: str) -> None:
    wrong = [
        f"{at(name, getattr(node, 'lineno', 0))}: {what}; use {CLOCK}"
        for node in ast.walk(tree_of(name))
        if (what := reads_clock(node))
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("name", MODULES)
def test_module_says_what_it_owns(name: str) -> None:
    assert ast.get_docstring(tree_of(name)), f"{at(name, 1)}: no docstring"


@pytest.mark.parametrize(
    "folder",
    sorted({path.parent for path in MODULES.values()}),
    ids=lambda folder: str(folder.relative_to(ROOT)),
)
def test_folder_with_modules_is_a_package(folder: Path) -> None:
    is_package = (folder / "__init__.py").exists()
    # Alembic reads the migrations as files, by path.
    assert is_package or "migrations" in folder.parts, f"{folder.relative_to(ROOT)} has no __init__.py"


@pytest.mark.parametrize("name", MODULES)
def test_module_name_says_something_and_shadows_nothing(name: str) -> None:
    last = name.rpartition(".")[2]
    assert last not in EMPTY_NAMES, f"{name}: {last!r} says nothing about what is inside"
    if name not in ALLOWED_STDLIB_NAMES and last != "__main__":
        assert last not in sys.stdlib_module_names, (
            f"{name}: the standard library has a module {last!r} too; a reader can't tell which is meant, "
            "and a run by path would load the wrong one: rename it"
        )


@pytest.mark.parametrize("name", [name for name in MODULES if not name.endswith("__main__")])
def test_module_is_not_made_to_be_run_by_path(name: str) -> None:
    runs = [
        node.lineno for node in tree_of(name).body if isinstance(node, ast.If) and is_main_guard(node.test)
    ]
    assert not runs, f"{at(name, runs[0])}: run by path it would have its own folder first on sys.path"


def is_main_guard(test: ast.expr) -> bool:
    """Whether an expression is `__name__ == "__main__"`."""
    return ast.unparse(test) == "__name__ == '__main__'"


def test_no_folder_of_the_checkout_hides_a_library() -> None:
    """A folder without __init__.py yields to an installed package of its name; one with it would win."""
    libraries = set(packages_distributions()) | set(sys.stdlib_module_names)
    hiding = [
        path.name
        for path in ROOT.iterdir()
        if path.name in libraries - {"agent"} and path.is_dir() and any(path.glob("*.py"))
    ]
    scripts = [path.name for path in ROOT.glob("*.py") if path.stem in libraries]
    assert hiding + scripts == [], "Python files here would be imported in place of a library"


@pytest.mark.parametrize("package", [name for name in PACKAGES_OF_RUN if name in MODULES])
def test_run_loads_nothing_that_servers_do_not_need(package: str) -> None:
    modules = [
        name
        for name in MODULES
        if (name == package or name.startswith(f"{package}.")) and not name.startswith(NOT_OF_RUN)
    ]
    found = loaded_by(modules, HEAVY)
    assert not found, f"library: the module that brought it: {found}; import it where it is used"


def test_idle_agent_has_not_loaded_what_only_builds_need() -> None:
    found = loaded_by(["agent.cli.run", "agent.daemon.agent", "agent.store.postgres"], NOT_WHILE_IDLE)
    assert not found, f"library: the module that brought it: {found}; import it in the function that needs it"


@pytest.mark.parametrize("name", [name for name in ("agent", "agent.cli") if name in MODULES])
def test_help_does_not_wait_for_libraries(name: str) -> None:
    modules = [
        name,
        *(module for module in MODULES if module.startswith("agent.cli.") and name == "agent.cli"),
    ]
    found = loaded_by(modules, SLOW_TO_IMPORT)
    assert not found, f"library: the module that brought it: {found}; import it inside the command's function"


def test_the_clock_is_found_out_in_every_form() -> None:
    forms = (
        "time.monotonic()",
        "from time import sleep",
        "datetime.now(UTC)",
        "datetime.datetime.utcnow()",
        "wait = time.sleep",
    )
    for form in forms:
        assert any(reads_clock(node) for node in ast.walk(ast.parse(form))), form
    for harmless in ("clock.sleep(1)", "from datetime import datetime", "time.strftime('%Y', then)"):
        assert not any(reads_clock(node) for node in ast.walk(ast.parse(harmless))), harmless
