"""What holds for every file of the repository, whoever writes it."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FUNCTION_LINES = 60
MODULE_LINES = 400
# The tests of one module stand together and are read one at a time, so they may take more.
TEST_MODULE_LINES = 700
# History: a migration is written once and never touched again.
IS_HISTORY = re.compile(r"agent/store/migrations/versions/")

_PRODUCTS = frozenset(
    {".git", ".venv", ".mypy_cache", ".ruff_cache", ".pytest_cache", ".hypothesis", "__pycache__"}
    | {"build_agent.egg-info"}
)
# Put together here, so that this file does not hold what it looks for.
UNFINISHED = re.compile(r"\b(" + "|".join(("TO" + "DO", "FIX" + "ME", "XX" + "X", "HA" + "CK")) + r")\b")
SIGNED = re.compile(
    "|".join(
        (
            r"^\s*(#|//|\*|<!--|\.\.)+\s*@?aut" + r"hors?\s*[:=]",
            r"co-aut" + r"hored-by",
            r"\b(generated|written|created|assisted) (by|with|using) (an? )?(ai|llm|assistant)\b",
            r"__aut" + r"hor__",
            r"\bas an ai\b",
        )
    ),
    re.IGNORECASE | re.MULTILINE,
)
SHEBANG = re.compile(rb"#!\s*(/usr/bin/env |/bin/|/usr/bin/)(bash)\b")


def git(*words: str) -> list[str] | None:
    """Return the paths git names, `None` where there is no git or no repository of ours."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        return None
    safe = ("-c", f"safe.directory={ROOT}")
    done = subprocess.run(["git", *safe, *words, "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.split("\0")[:-1] if done.returncode == 0 else None


@cache
def files() -> tuple[str, ...]:
    """Every file of the project; in an unpacked archive, every one that is no product of work."""
    listed = git("ls-files", "--cached", "--others", "--exclude-standard")
    if listed is None:
        listed = [
            str(path.relative_to(ROOT))
            for path in ROOT.rglob("*")
            if not _PRODUCTS.intersection(path.relative_to(ROOT).parts)
        ]
    return tuple(sorted(name for name in listed if (ROOT / name).is_file()))


@cache
def text_of(name: str) -> str | None:
    """A file's text, `None` when it is binary."""
    try:
        return (ROOT / name).read_text("utf-8")
    except UnicodeDecodeError:
        return None


def matches(pattern: re.Pattern[str]) -> list[str]:
    """Return "file:line: text" of every match in every file but the licence."""
    return [
        f"{name}:{number}: {line.strip()}"
        for name in files()
        if name != "LICENSE"
        for number, line in enumerate((text_of(name) or "").splitlines(), 1)
        if pattern.search(line)
    ]


def python_files(*folders: str) -> list[str]:
    """Names of the Python files in folders of the repository."""
    return [name for name in files() if name.endswith(".py") and name.split("/")[0] in folders]


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Yield every function, inner ones and methods too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def asserts(node: ast.AST, asserting: frozenset[str]) -> bool:
    """Whether code checks something, itself or through a function of a name in `asserting`."""
    for inner in ast.walk(node):
        if isinstance(inner, ast.Assert):
            return True
        if isinstance(inner, ast.Call):
            called = ast.unparse(inner.func)
            last = called.rpartition(".")[2]
            if called in {"pytest.raises", "pytest.warns", "pytest.fail"} or last in asserting:
                return True
            if last.startswith(("assert_", "wait_until", "run_state_machine_as_test")):
                return True
    return False


def asserting_functions(tree: ast.Module) -> frozenset[str]:
    """Names of a module's functions that check something, also by calling each other."""
    found: frozenset[str] = frozenset()
    while True:
        more = frozenset(function.name for function in functions(tree) if asserts(function, found))
        if more == found:
            return found
        found = more


def shell_scripts() -> list[str]:
    """Names of the Bash scripts, by ending or first line."""
    return [
        name for name in files() if name.endswith(".sh") or SHEBANG.match((ROOT / name).read_bytes()[:80])
    ]


def test_nothing_is_left_unfinished() -> None:
    assert matches(UNFINISHED) == [], "finish it, or write down in docs what it does not do"


def test_no_file_is_signed() -> None:
    assert matches(SIGNED) == [], "who wrote what is git's to know"


def test_git_ignores_no_source() -> None:
    ignored = git("ls-files", "--others", "--ignored", "--exclude-standard") or []
    endings = (".py", ".sh", ".html", ".css", ".js", ".mako", ".service", ".md", ".yml", ".toml")
    lost = [
        name
        for name in ignored
        if name.endswith(endings) and not (_PRODUCTS | {"node_modules"}).intersection(name.split("/"))
        if name.split("/")[0] not in {"build", "dist"}
    ]
    assert lost == [], "a pattern in .gitignore hides these; anchor it with a slash"


@pytest.mark.parametrize("name", shell_scripts())
def test_script_stops_at_the_first_failure(name: str) -> None:
    lines = (text_of(name) or "").splitlines()
    assert lines[0] == "#!/usr/bin/env bash", "Bash from the PATH, or shellcheck judges another shell"
    code = [line for line in lines if line.strip() and not line.startswith("#")]
    assert code[0] == "set -euo pipefail", "the first command"


@pytest.mark.parametrize("name", shell_scripts())
def test_script_is_executable(name: str) -> None:
    assert os.access(ROOT / name, os.X_OK), f"chmod +x {name}"


@pytest.mark.parametrize("name", python_files("agent", "benchmarks", "tests"))
def test_module_can_be_read_in_one_sitting(name: str) -> None:
    text = text_of(name) or ""
    length, limit = len(text.splitlines()), TEST_MODULE_LINES if name.startswith("tests/") else MODULE_LINES
    assert length <= limit, (
        f"{name} has {length} lines, {limit} the ceiling: split it by what changes together"
    )
    if not IS_HISTORY.search(name):
        long = [
            f"{name}:{function.lineno}: {function.name} has {lines} lines"
            for function in functions(ast.parse(text, name))
            if (lines := (function.end_lineno or 0) - function.lineno + 1) > FUNCTION_LINES
        ]
        assert not long, "\n".join(long)


@pytest.mark.parametrize("name", [name for name in python_files("tests") if "/test_" in name])
def test_every_test_checks_something(name: str) -> None:
    tree = ast.parse(text_of(name) or "", name)
    asserting = asserting_functions(tree)
    idle = [
        f"{name}:{function.lineno}: {function.name}"
        for function in functions(tree)
        if function.name.startswith("test") and not asserts(function, asserting)
    ]
    assert not idle, "no assertion in:\n" + "\n".join(idle)


def test_an_idle_test_is_found_out() -> None:
    tree = ast.parse(
        "def check(x):\n    assert x\n"
        "def look(x):\n    return check(x)\n"
        "def test_idle():\n    compute()\n"
        "def test_through_two():\n    look(1)\n"
        "def test_raises():\n    with pytest.raises(ValueError): int('x')\n"
    )
    asserting = asserting_functions(tree)
    assert asserting == {"check", "look", "test_through_two", "test_raises"}


def test_signatures_and_loose_ends_are_found_out() -> None:
    for line in ("# Aut" + "hor: someone", "Co-Aut" + "hored-By: x <x@y>", "# Generated " + "by an AI"):
        assert SIGNED.search(line), line
    assert UNFINISHED.search("# TO" + "DO: later")
    assert not SIGNED.search('GIT_AUTHOR_NAME = "Test"')
