"""A machine with a kernel of its own: an image as a disk, booted by qemu without KVM."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from agent.clock import Deadline

# As qemu's own network has it: the host's loopback, seen from inside.
HOST = "10.0.2.2"


def make_disk(layers: Sequence[Path], disk: Path, files: dict[str, str], *, size: str = "4G") -> None:
    """Make a file system in a file from the layers of an image, the uppermost first, with these files in it."""
    over = disk.with_suffix(".files")
    for name, text in files.items():
        path = over / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    lower = ":".join(map(str, (over, *layers)))
    root = disk.with_suffix(".root")
    root.mkdir()
    # The mount is seen by this shell alone, and gone with it.
    script = 'mount -t overlay -o "ro,lowerdir=$1" image "$2" && mkfs.ext4 -q -d "$2" "$3" "$4"'
    words = [
        "unshare",
        "--mount",
        "--propagation=private",
        "bash",
        "-c",
        script,
        "bash",
        lower,
        str(root),
        str(disk),
        size,
    ]
    subprocess.run(words, check=True, timeout=120, capture_output=True)


class Qemu:
    """A machine that boots a disk; its console goes to a file beside it."""

    def __init__(self, disk: Path, kernel: Path, initrd: Path) -> None:
        self._console = disk.with_suffix(".console")
        self._monitor = disk.with_suffix(".monitor")
        words = [
            *("qemu-system-x86_64", "-accel", "tcg,thread=multi", "-smp", "2", "-m", "1536", "-no-reboot"),
            *("-display", "none", "-serial", f"file:{self._console}", "-vga", "none"),
            *("-monitor", f"unix:{self._monitor},server,nowait"),
            *("-kernel", str(kernel), "-initrd", str(initrd)),
            *(
                "-append",
                "root=/dev/vda rw console=ttyS0 net.ifnames=0 systemd.show_status=1 mitigations=off",
            ),
            *("-drive", f"file={disk},format=raw,if=virtio,cache=unsafe"),
            *("-netdev", "user,id=n0", "-device", "virtio-net-pci,netdev=n0,romfile="),
        ]
        with disk.with_suffix(".complaint").open("wb") as complaint:
            self._process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stderr=complaint)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._process.kill()
        self._process.wait(20)

    @property
    def console(self) -> str:
        """What the machine has written to its console."""
        return self._console.read_text(errors="replace") if self._console.exists() else ""

    @property
    def is_on(self) -> bool:
        """Whether it runs."""
        return self._process.poll() is None

    def press_power(self) -> None:
        """Press the power button."""
        with socket.socket(socket.AF_UNIX) as monitor:
            monitor.connect(str(self._monitor))
            monitor.recv(4096)
            monitor.sendall(b"system_powerdown\n")
            time.sleep(0.2)

    def wait_off(self, limit_s: float) -> None:
        """Wait until it is off. Raises: AssertionError with the end of its console."""
        deadline = Deadline.after(limit_s)
        while self.is_on:
            assert not deadline.is_passed, f"still on after {limit_s:g} s:\n{self.console[-3000:]}"
            time.sleep(0.2)
