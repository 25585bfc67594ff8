"""Tools are there, of the pinned version, and git clones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import pins, tool_versions

MINIMAL = {"python", "git", "redis"}
FULL = MINIMAL | {"nodejs", "ruby", "go", "java", "gcc", "php", "cmake", "postgresql", "mariadb", "podman"}


def test_every_tool_has_the_pinned_version(request: pytest.FixtureRequest) -> None:
    wanted = FULL if request.config.getoption("--profile") == "full" else MINIMAL
    found, pinned = tool_versions(), pins()
    wrong = [
        f"{name} is {found.get(name, 'not there')} instead of {pinned[f'{name.upper()}_VERSION']}"
        for name in sorted(wanted)
        if not f"{found.get(name)}.".startswith(f"{pinned[f'{name.upper()}_VERSION']}.")
    ]
    assert not wrong, f"{'; '.join(wrong)}: mend pins.sh, or the base is another Debian"


def test_git_clones_a_repository(home: Path, as_user: Callable[..., str]) -> None:
    as_user(
        "bash", "-euc",
        "git init -q origin; cd origin; echo hello >file; git add file;"
        "git -c user.name=x -c user.email=x@example.com commit -qm first; cd ..; git clone -q origin clone",
    )  # fmt: skip
    assert (home / "clone/file").read_text() == "hello\n"


def test_archives_are_packed_and_unpacked(home: Path, as_user: Callable[..., str]) -> None:
    as_user(
        "bash",
        "-euc",
        "echo a >a; zip -q a.zip a; tar cJf a.tar.xz a; rm a; unzip -q a.zip; tar tJf a.tar.xz",
    )
    assert (home / "a").read_text() == "a\n"


@pytest.mark.full
def test_make_and_cmake_build(home: Path, as_user: Callable[..., str]) -> None:
    (home / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.20)\nproject(x C)\nadd_executable(x x.c)\n"
    )
    (home / "x.c").write_text("int main(void) { return 0; }\n")
    as_user("bash", "-euc", "cmake -S . -B with-make >/dev/null; make -C with-make >/dev/null; with-make/x")
    as_user(
        "bash",
        "-euc",
        "cmake -G Ninja -S . -B with-ninja >/dev/null; ninja -C with-ninja >/dev/null; with-ninja/x",
    )
    assert (home / "with-ninja/x").exists()
    assert as_user("jq", "-n", "1+1").strip() == "2"
