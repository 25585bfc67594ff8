"""The Vagrantfile, read by Vagrant itself; no box is fetched or booted."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "packaging/vagrant"


def vagrant(home: Path, *words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run vagrant on our file, its own folder elsewhere."""
    if shutil.which("vagrant") is None:
        pytest.skip("needs vagrant: make test installs it")
    given = {
        **os.environ,
        "VAGRANT_HOME": str(home),
        "VAGRANT_DOTFILE_PATH": str(home / "dot"),
        "VAGRANT_CHECKPOINT_DISABLE": "1",
        "DEB": str(FOLDER / "Vagrantfile"),
        **environ,
    }
    return subprocess.run(
        ["vagrant", *words], cwd=FOLDER, env=given, capture_output=True, text=True, timeout=100, check=False
    )


def test_vagrantfile_holds(tmp_path: Path) -> None:
    done = vagrant(tmp_path, "validate", "--ignore-provider")
    assert (done.returncode, "validated successfully" in done.stdout) == (0, True), done


def test_wrong_profile_and_missing_package_are_told(tmp_path: Path) -> None:
    done = vagrant(tmp_path, "validate", "--ignore-provider", PROFILE="huge")
    assert (done.returncode, "PROFILE is minimal or full, not huge" in done.stderr) == (1, True), done
