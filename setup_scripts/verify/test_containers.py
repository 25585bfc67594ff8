"""A container runs from a local root filesystem, rootless, as the build user."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import run

pytestmark = pytest.mark.full


def _in_container() -> bool:
    return subprocess.run(["systemd-detect-virt", "--quiet", "--container"], check=False).returncode == 0


def _root_filesystem(folder: Path) -> Path:
    """Make the least that a shell runs in: bash and its libraries."""
    root = folder / "rootfs"
    for name in ("bin", "proc", "sys", "dev", "etc", "tmp", "run"):
        (root / name).mkdir(parents=True)
    shutil.copy("/bin/bash", root / "bin/sh")
    for word in run("ldd", "/bin/bash").split():
        if word.startswith("/"):
            target = root / word.lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(Path(word).resolve(), target)
    return root


def test_container_runs_from_a_local_root_filesystem(home: Path, as_user: Callable[..., str]) -> None:
    root = _root_filesystem(home)
    run("chown", "-R", "build-agent:build-agent", str(home))
    # Within a container there are no cgroups to hand on, /proc cannot be mounted anew, and networks are its host's.
    flags = ["--cgroups=disabled", "--network=host"] if _in_container() else []
    (home / "run").mkdir(mode=0o700)
    run("chown", "build-agent:build-agent", str(home / "run"))
    printed = as_user(
        "env", f"XDG_RUNTIME_DIR={home}/run", "podman", "run", "--rm", *flags, "--rootfs", str(root),
        "/bin/sh", "-c", "echo inside: $((40 + 2))",
    )  # fmt: skip
    as_user("podman", "unshare", "rm", "-rf", str(home / ".local"))
    assert "inside: 42" in printed
    assert "podman" in as_user("docker", "--version"), (
        "the command docker is not podman: see 45-containers.sh"
    )
