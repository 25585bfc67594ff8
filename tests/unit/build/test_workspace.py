"""Workspaces: names, removal of what resists, sweeping, and reading trees that a hostile build has filled."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.build.workspace import (
    Workspace,
    Workspaces,
    directory_name,
    find_files,
    mounts_below,
    open_beneath,
    open_regular,
    walk_tree,
)
from agent.clock import mono
from agent.errors import DefinitionError, WorkspaceError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "workspaces"


@pytest.fixture
def workspaces(root: Path) -> Workspaces:
    return Workspaces(root)


def _left(root: Path) -> list[str]:
    """Everything below the root but the empty trash."""
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.name != ".trash")


def test_workspace_has_private_directories(workspaces: Workspaces) -> None:
    made = workspaces.create("b1", 1)
    for path in (made.path, made.home, made.tmp, made.source):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
        assert list(path.iterdir()) == [] or path == made.path


@pytest.mark.parametrize(
    "build_id", ["../../etc", "/", ".", "..", "a/b", "-rf", "new\nline", "ü" * 500, "", "\ud800", ".trash"]
)
def test_any_build_id_gives_a_directory_below_the_root(
    workspaces: Workspaces, root: Path, build_id: str
) -> None:
    made = workspaces.create(build_id, 1)
    assert made.path.parent == root
    assert made.path.name.isascii()
    assert len(made.path.name) <= 42
    assert not made.path.name.startswith((".", "-"))


def test_different_ids_never_share_a_directory() -> None:
    ids = ["a", "a-", "-a", "A", "a/", "a\n", "a.", "a" * 24, "a" * 25]
    assert len({directory_name(build_id, 1) for build_id in ids}) == len(ids)


def test_leftover_of_the_same_attempt_is_replaced(workspaces: Workspaces) -> None:
    (workspaces.create("b1", 1).source / "old").touch()
    assert list(workspaces.create("b1", 1).source.iterdir()) == []


def test_remove_leaves_nothing_and_may_be_repeated(workspaces: Workspaces, root: Path) -> None:
    made = workspaces.create("b1", 1)
    (made.source / "file").write_text("x")
    workspaces.remove(made)
    workspaces.remove(made)
    assert _left(root) == []


def test_read_only_and_unreadable_trees_are_removed(root: Path) -> None:
    # Root passes over modes: the removal runs as nobody where the tests run as root.
    code = """
import os, sys
from pathlib import Path
from agent.build.workspace import Workspaces
os.chdir(sys.argv[1])
if os.geteuid() == 0:
    os.chown(".", 65534, 65534)
    os.setgid(65534)
    os.setuid(65534)
workspaces = Workspaces(Path("w"))
made = workspaces.create("b", 1)
for mode in (0o000, 0o111, 0o444, 0o555):
    inner = made.source / f"d{mode}" / "inner"
    inner.mkdir(parents=True)
    (inner / "file").touch()
    (inner / "file").chmod(0)
    inner.chmod(mode)
    inner.parent.chmod(mode)
made.source.chmod(0)
workspaces.remove(made)
print(os.listdir("w"), os.listdir("w/.trash"))
"""
    root.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", code, str(root)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    assert done.stdout.strip() == "['.trash'] []"


def test_tree_deeper_than_any_recursion_is_removed(workspaces: Workspaces, root: Path) -> None:
    made = workspaces.create("b1", 1)
    directory = os.open(made.source, os.O_RDONLY)
    for _ in range(1200):
        os.mkdir("d", dir_fd=directory)
        deeper = os.open("d", os.O_RDONLY, dir_fd=directory)
        os.close(directory)
        directory = deeper
    os.close(directory)
    workspaces.remove(made)
    assert _left(root) == []


def test_wide_tree_is_removed(workspaces: Workspaces, root: Path) -> None:
    made = workspaces.create("b1", 1)
    for number in range(1000):
        (made.source / f"f{number}").touch()
    for number in range(100):
        (made.source / f"d{number}" / "x").mkdir(parents=True)
    workspaces.remove(made)
    assert _left(root) == []


def test_f30_removal_never_follows_symlinks(workspaces: Workspaces, root: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir(mode=0o755)
    (outside / "precious").touch()
    made = workspaces.create("b1", 1)
    (made.source / "link").symlink_to(outside)
    made.home.rmdir()
    made.home.symlink_to(outside)
    workspaces.remove(made)
    assert [path.name for path in outside.iterdir()] == ["precious"]
    assert stat.S_IMODE(outside.stat().st_mode) == 0o755
    assert _left(root) == []


def test_workspace_replaced_by_a_symlink_is_removed_as_a_symlink(
    workspaces: Workspaces, root: Path, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").touch()
    made = workspaces.create("b1", 1)
    workspaces.remove(made)
    made.path.symlink_to(outside)
    workspaces.remove(made)
    assert (outside / "precious").exists()
    assert _left(root) == []


def test_workspace_replaced_by_a_symlink_to_a_mount_is_removed(workspaces: Workspaces, root: Path) -> None:
    made = workspaces.create("b1", 1)
    workspaces.remove(made)
    made.path.symlink_to("/")
    workspaces.remove(made)
    assert _left(root) == []


def test_sweep_removes_all_but_the_kept_attempts(workspaces: Workspaces, root: Path) -> None:
    kept = workspaces.create("b1", 2)
    workspaces.create("b1", 1)
    workspaces.create("b2", 1)
    (root / "stray-file").touch()
    (root / ".trash" / "half" / "deep").mkdir(parents=True)
    assert workspaces.sweep({("b1", 2)}) == 3
    assert sorted(path.name for path in root.iterdir()) == sorted([".trash", kept.path.name])
    assert list((root / ".trash").iterdir()) == []


@pytest.fixture
def mounted(workspaces: Workspaces) -> Iterator[Workspace]:
    """A workspace with something mounted inside, at a path that the kernel's table escapes."""
    made = workspaces.create("b1", 1)
    target = made.source / "sp ace"
    target.mkdir()
    (made.source / "file").touch()
    done = subprocess.run(["mount", "-t", "tmpfs", "none", target], check=False, capture_output=True)
    if done.returncode:
        pytest.skip("needs a machine where root may mount")
    (target / "precious").touch()
    yield made
    subprocess.run(["umount", target], check=True)


@pytest.mark.root
def test_mount_inside_is_named_and_nothing_is_touched(workspaces: Workspaces, mounted: Workspace) -> None:
    with pytest.raises(WorkspaceError, match="sp ace is still mounted"):
        workspaces.remove(mounted)
    assert (mounted.source / "sp ace" / "precious").exists()
    assert (mounted.source / "file").exists()
    assert mounts_below(mounted.path) == [mounted.source / "sp ace"]


@pytest.mark.root
def test_sweep_goes_on_past_a_workspace_that_resists(workspaces: Workspaces, mounted: Workspace) -> None:
    other = workspaces.create("b2", 1)
    with pytest.raises(WorkspaceError, match="still mounted"):
        workspaces.sweep(set())
    assert not other.path.exists()
    assert (mounted.source / "sp ace" / "precious").exists()


def test_missing_parent_is_a_workspace_error(workspaces: Workspaces, root: Path) -> None:
    (root / ".trash").rmdir()
    root.rmdir()
    with pytest.raises(WorkspaceError, match="cannot make the workspace"):
        workspaces.create("b1", 1)


def _names(root: Path, *patterns: str) -> list[str]:
    return [entry.name for entry in find_files(root, patterns, "pattern")]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    tree = tmp_path / "tree"
    for name in ("a.txt", "d/a.txt", "d/e/a.txt", "d/e/b.py", "x[1].txt", "-dash", "new\nline"):
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return tree


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("a.txt", ["a.txt"]),
        ("./a.txt", ["a.txt"]),
        ("*.txt", ["a.txt", "x[1].txt"]),
        ("**/a.txt", ["a.txt", "d/a.txt", "d/e/a.txt"]),
        ("d", ["d/a.txt", "d/e/a.txt", "d/e/b.py"]),
        ("d/", ["d/a.txt", "d/e/a.txt", "d/e/b.py"]),
        ("d/**", ["d/a.txt", "d/e/a.txt", "d/e/b.py"]),
        ("d/*/*.[!t]?", ["d/e/b.py"]),
        ("d/**/e/**/*.py", ["d/e/b.py"]),
        ("x[[]1].txt", ["x[1].txt"]),
        ("-*", ["-dash"]),
        ("new?line", ["new\nline"]),
        ("absent/*", []),
        ("a.txt/x", []),
    ],
)
def test_patterns_find_files(tree: Path, pattern: str, found: list[str]) -> None:
    assert _names(tree, pattern) == found


def test_overlapping_patterns_find_a_file_once(tree: Path) -> None:
    assert _names(tree, "d/e", "d/**", "d/e/b.py") == ["d/a.txt", "d/e/a.txt", "d/e/b.py"]


@pytest.mark.parametrize("pattern", ["/etc/passwd", "../x", "d/../../x", "", ".", "a\0b"])
def test_f30_patterns_that_leave_are_refused(tree: Path, pattern: str) -> None:
    with pytest.raises(DefinitionError, match="must be relative"):
        _names(tree, pattern)


def test_f30_walk_reports_symlinks_and_does_not_enter_them(tree: Path, tmp_path: Path) -> None:
    (tree / "link").symlink_to("/etc")
    assert [name for name in _names(tree, "**") if name.startswith("link")] == ["link"]
    assert _names(tree, "link/*") == []
    assert list(walk_tree(tree, ("link", "passwd"))) == []


def test_hostile_pattern_takes_no_time(tmp_path: Path) -> None:
    (tmp_path / ("a" * 200)).touch()
    began = mono()
    assert _names(tmp_path, "*a" * 100 + "b", "**/" * 200 + "b") == []
    assert mono() - began < 2


def test_endlessly_deep_tree_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "/".join("d" * 210)).mkdir(parents=True)
    with pytest.raises(DefinitionError, match="deep"):
        _names(tmp_path, "**")


def test_f30_open_beneath_refuses_every_symlink(tree: Path) -> None:
    (tree / "link").symlink_to("d")
    with pytest.raises(NotADirectoryError), open_beneath(tree, ("link", "e"), create=True):
        pass
    with open_beneath(tree, ("d", "e")) as directory:
        assert os.stat("b.py", dir_fd=directory).st_size == len("d/e/b.py")


def test_file_swapped_for_a_fifo_or_symlink_is_not_opened(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    (entry,) = walk_tree(tmp_path, ("file",))
    directory = os.open(tmp_path, os.O_RDONLY)
    try:
        swapped = type(entry)(entry.name, directory, entry.stat)
        path.unlink()
        os.mkfifo(path)
        with pytest.raises(OSError, match="not a regular file"):
            open_regular(swapped)
        path.unlink()
        path.symlink_to("/etc/passwd")
        with pytest.raises(OSError, match="symbolic links"):
            open_regular(swapped)
    finally:
        os.close(directory)
