"""The inside of a running machine: its first process, and commands run beside it.

Processes are found by the machine's uuid, which we put into the environment of the keeper and of the first process: so no
number of a process is kept that another could have by now.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from agent import clock
from agent.fleet.local import host_command
from agent.fleet.provider import ProviderError, ProviderUnavailable
from agent.host import processes

KEEPER_VARIABLE = "BUILD_AGENT_LOCAL_MACHINE"
# systemd-nspawn's own container_uuid is the image's machine-id where it has one, and then two machines have the same.
FIRST_VARIABLE = "BUILD_AGENT_LOCAL_FIRST"
_KILL_LIMIT_S = 30.0
_WAKE_S = 0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """How a command ended and what it wrote."""

    exit_code: int
    stdout: str
    stderr: str


def leader(machine_uuid: str) -> int | None:
    """Return the first process of a machine, a `ProcessId`; `None` where none runs."""
    for pid in processes.by_environment(f"{FIRST_VARIABLE}={machine_uuid}".encode()):
        if _is_first(pid):
            return pid
    return None


def keepers(machine_uuid: str) -> list[int]:
    """Return a machine's keeper and its systemd-nspawn, as far as they live."""
    return processes.by_environment(f"{KEEPER_VARIABLE}={machine_uuid}".encode())


def end(machine_uuid: str) -> None:
    """Kill whatever runs of a machine. With its first process the kernel kills all the others.

    Raises: ProviderUnavailable when something is still alive afterwards.
    """
    deadline = clock.Deadline.after(_KILL_LIMIT_S)
    while True:
        first = leader(machine_uuid)
        living = keepers(machine_uuid) + ([first] if first else [])
        if not living:
            return
        if deadline.is_passed:
            raise ProviderUnavailable(
                f"processes {living} do not end though they were killed; look at them, then try again"
            )
        processes.kill([pid for pid in living if pid != os.getpid()], signal.SIGKILL)
        clock.sleep(0.02)


def run(
    first: int,
    argv: Sequence[str],
    *,
    limit_s: float,
    stdin: bytes = b"",
    environ: Mapping[str, str] | None = None,
) -> Result:
    """Run a command in a machine as root, in all namespaces of its first process.

    Raises: ProviderUnavailable when it took too long; it is killed then.
    """
    env = {"PATH": host_command.PATH, "HOME": "/root", "LC_ALL": "C.UTF-8", **(environ or {})}
    # The working directory of the host is no place in there.
    words = ["nsenter", "--target", str(int(first)), "--all", "--", "env", "--chdir=/", *argv]
    process = subprocess.Popen(
        words,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=env,
        start_new_session=True,
    )
    with process:
        try:
            output, complaint = _communicate(process, stdin, limit_s)
        except subprocess.TimeoutExpired as error:
            os.killpg(process.pid, signal.SIGKILL)
            raise ProviderUnavailable(f"{argv[0]} in the machine took longer than {limit_s:g} s") from error
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    return Result(
        exit_code=process.returncode,
        stdout=output.decode("utf-8", "replace"),
        stderr=complaint.decode("utf-8", "replace"),
    )


def _communicate(process: subprocess.Popen[bytes], stdin: bytes, limit_s: float) -> tuple[bytes, bytes]:
    """Give nsenter the input and return what the command wrote. Raises: TimeoutExpired.

    A machine that shuts down stops all its processes for a moment. nsenter stops itself then, as its child has, and would
    for good: nobody in the machine can wake it, and the machine would wait for the child to be reaped.
    """
    deadline, given = clock.Deadline.after(limit_s), stdin or None
    while True:
        try:
            return process.communicate(given, timeout=min(_WAKE_S, deadline.remaining_s or 0.0))
        except subprocess.TimeoutExpired:
            if deadline.is_passed:
                raise
            given = None
            process.send_signal(signal.SIGCONT)


def root_of(first: int) -> Path:
    """Return the path at which a running machine's root filesystem is seen from the host."""
    return Path(f"/proc/{int(first)}/root")


def signal_leader(machine_uuid: str, number: int, what: str) -> None:
    """Send a signal to a machine's first process.

    Raises: ProviderError when there is none.
    """
    first = leader(machine_uuid)
    if first is None or processes.kill([first], number) == 0:
        raise ProviderError(f"could not {what}: the machine does not run")


def _is_first(pid: int) -> bool:
    """Whether a process is number 1 of a namespace of its own."""
    try:
        lines = Path(f"/proc/{int(pid)}/status").read_text("ascii", "replace").splitlines()
    except OSError:
        return False
    numbers = next((line.split()[1:] for line in lines if line.startswith("NSpid:")), [])
    return len(numbers) > 1 and numbers[-1] == "1"
