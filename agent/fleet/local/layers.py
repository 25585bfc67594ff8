"""Images as layers of overlayfs: what a mount is made of, and how a layer is copied.

A machine's disk is a folder (`upper`) over the layers of its image; an image is a copy of such a folder. Source: the
kernel's Documentation/filesystems/overlayfs.rst.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Sequence
from pathlib import Path

from agent.fleet.local import host_command
from agent.fleet.provider import ProviderError, ProviderUnavailable

# mount(2) takes one page of options: 32 names of images fit, and with them 30 bakes on top of each other.
MOST_LAYERS = 32
_COPY_LIMIT_S = 1800.0
# A layer is copied, stacked anew and put on other disks: nothing in it may refer to where other files lie or lay.
_FEATURES = "index=off,metacopy=off,redirect_dir=off"


def check_stack(images: Path, stack: Sequence[str]) -> None:
    """Raise ProviderError unless all layers are there and not too many."""
    missing = [name for name in stack if not (images / name / "layer").is_dir()]
    if missing:
        raise ProviderError(f"{stack[0]} stands on {', '.join(missing)}, which is not there")
    if len(stack) > MOST_LAYERS:
        raise ProviderError(
            f"{stack[0]} stands on {len(stack) - 1} others, {MOST_LAYERS - 1} is the most; bake from an earlier image "
            "or the base"
        )


def mount_options(stack: Sequence[str], machine: Path | None = None) -> str:
    """Return overlayfs' options. Layers are relative to the folder of images, which has to be the working directory.

    Raises: ProviderError for a path that the form of the options can't carry.
    """
    lower = ":".join(f"{name}/layer" for name in stack)
    if machine is None:
        return f"ro,lowerdir={lower},{_FEATURES}"
    if set(str(machine)) & set(',:\\"'):
        raise ProviderError(f"local_dir must not hold commas, colons, quotes or backslashes: {machine}")
    return f"lowerdir={lower},upperdir={machine / 'upper'},workdir={machine / 'work'},{_FEATURES}"


def mount(images: Path, stack: Sequence[str], machine: Path) -> None:
    """Mount a machine's disk at its `root`, in this process' mount namespace."""
    host_command.run(
        ["mount", "-t", "overlay", "overlay", "-o", mount_options(stack, machine), str(machine / "root")],
        what=f"mount the disk of {machine.name} (local_dir must lie on ext4, xfs or btrfs, not on another overlay)",
        limit_s=30,
        cwd=images,
    )


def copy_layer(upper: Path, layer: Path, *, maker_lock: int) -> int:
    """Copy a stopped machine's upper folder and return its size in bytes.

    cp keeps what a layer is made of: whiteouts (character devices 0/0), trusted.overlay.* attributes, capabilities, hard
    links and owners. `maker_lock` is inherited, so the copy counts as being made as long as cp lives.
    """
    host_command.run(
        ["cp", "--archive", "--reflink=auto", "--no-target-directory", str(upper), str(layer)],
        what=f"copy {upper}",
        limit_s=_COPY_LIMIT_S,
        keep_fds=(maker_lock,),
    )
    return size_of(layer)


def size_of(folder: Path) -> int:
    """Return the bytes of all files below a folder, hard links counted once."""
    seen, total = set[tuple[int, int]](), 0
    for parent, _, names in os.walk(folder):
        for name in names:
            found = (Path(parent) / name).lstat()
            if stat.S_ISREG(found.st_mode) and (found.st_dev, found.st_ino) not in seen:
                seen.add((found.st_dev, found.st_ino))
                total += found.st_blocks * 512
    return total


def check_space(folder: Path, need_bytes: int) -> None:
    """Raise ProviderUnavailable unless the disk of a folder has so much free."""
    free = shutil.disk_usage(folder).free
    if free < need_bytes:
        raise ProviderUnavailable(
            f"{folder} has {free >> 20} MiB free and {need_bytes >> 20} MiB are needed; make room"
        )
