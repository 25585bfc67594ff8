"""Git repositories for builds to check out."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path


def make_repository(
    folder: Path, files: Mapping[str, str], *, branch: str = "main", message: str = "First"
) -> Path:
    """Make a repository with one commit on one branch, and return its folder.

    An agent checks it out by `{"directory": folder}` if `folder` lies in its `source_roots`.
    """
    folder.mkdir(parents=True)
    _git(folder, "init", "--quiet", f"--initial-branch={branch}")
    commit(folder, files, message=message)
    return folder


def commit(folder: Path, files: Mapping[str, str], *, message: str) -> str:
    """Write files and commit them; return the commit."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    _git(folder, "add", "--all")
    _git(folder, "commit", "--quiet", "--allow-empty", f"--message={message}")
    return _git(folder, "rev-parse", "HEAD")


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()
