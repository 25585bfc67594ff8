"""The keeper of a machine: one process that mounts its disk, makes its network, answers its metadata, holds nspawn.

It lives in a mount and a network namespace of its own, so that whatever way it dies the kernel takes mounts and links
away with it. It survives the command that started it, and is alive exactly as long as it holds the lock in the
machine's folder. SIGTERM shuts the machine down in good order.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from ipaddress import IPv4Network
from pathlib import Path

from agent import clock
from agent.errors import AgentError, AgentFailed
from agent.fleet.local import first_start, host_command, inside, layers, metadata_service, network, state
from agent.fleet.local.console import Console
from agent.host import processes

READY = b"ready\n"
# There from the first boot on: a machine without it was never started.
STARTED_FILE = "started"
STOPPING_FILE = "stopping"
KEEPER_FILE = "keeper.json"
_CLONE_NEWNS, _CLONE_NEWNET = 0x00020000, 0x40000000  # linux/sched.h
_REBOOT_CODE = 133  # systemd-nspawn(1), --keep-unit: the machine wants to be started again
_POWER_OFF = signal.SIGRTMIN + 3  # systemd(1): start poweroff.target
_STOP_LIMIT_S = 90.0
_ASK_AGAIN_S = 2.0  # a systemd that has only begun to boot has no ear for signals yet


def main() -> None:
    """Keep the machine of a folder until it ends; the ready pipe gets READY, or words about what failed."""
    folder, lock, ready = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    os.set_inheritable(lock, False)
    os.set_inheritable(ready, False)
    try:
        Keeper(folder, ready).run()
    except AgentError as error:
        with Console(folder) as console:
            console.say(str(error))
        with suppress(OSError):
            os.write(ready, str(error).encode())
        sys.exit(1)


class Keeper:
    """One run of a machine, reboots included."""

    def __init__(self, folder: Path, ready: int) -> None:
        self._folder, self._ready = folder, ready
        local_dir = folder.parent.parent
        found = state.State(local_dir).machine(folder.name)
        if found is None:
            raise AgentFailed(f"{folder} holds no record of a machine")
        self._record, self._local_dir = found, local_dir
        self._subnet = IPv4Network(found.subnet)
        self._stop_by: clock.Deadline | None = None
        self._ask_again = clock.Deadline.after(0)

    def run(self) -> None:
        """Start the machine and stay until it has ended."""
        wake = _wake_on_signals()
        self._note_self()
        with self._namespaces(), Console(self._folder) as console, self._metadata():
            layers.mount(self._local_dir / "images", self._record.stack, self._folder)
            first_start.prepare(self._record, self._folder)
            while self._boot(console, wake) == _REBOOT_CODE and self._stop_by is None:
                console.say("rebooting")
                network.configure_inside(self._record.address, self._subnet)
        for name in (STOPPING_FILE, KEEPER_FILE):
            (self._folder / name).unlink(missing_ok=True)

    def _note_self(self) -> None:
        """Write down who is to be told to stop: number and start time, so that no other is ever meant."""
        me = processes.living(os.getpid())
        if me is None:
            raise AgentFailed("the keeper does not know when it began")
        state.write_json(self._folder / KEEPER_FILE, {"pid": int(me), "started_ticks": me.started_ticks})

    @contextmanager
    def _namespaces(self) -> Iterator[None]:
        """Leave the host's mounts and network for ones of our own, with a port on the bridge."""
        host_net = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        net = network.Network(local_dir=self._local_dir, subnet=self._subnet, host_net=host_net)
        try:
            with net.changing():
                net.ensure()
                _unshare(_CLONE_NEWNS | _CLONE_NEWNET)
                host_command.run(
                    ["mount", "--make-rprivate", "/"], what="part from the host's mounts", limit_s=10
                )
                net.attach(self._record.id, os.getpid())
            network.configure_inside(self._record.address, self._subnet)
            yield
        finally:
            with suppress(AgentError), net.changing():
                net.release(self._record.id)
            os.close(host_net)

    @contextmanager
    def _metadata(self) -> Iterator[None]:
        documents = metadata_service.DocumentFile(self._folder / "metadata.json")
        service = metadata_service.MetadataService(documents)
        server = metadata_service.server(service, network.METADATA_ADDRESS, 80)
        server.daemon_threads = True  # a client that hangs must not hold a machine that has ended
        thread = threading.Thread(target=server.serve_forever, name="metadata", daemon=True)
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            server.server_close()

    def _boot(self, console: Console, wake: int) -> int:
        """Run systemd-nspawn once and return its exit code; copy the console and pass a stop on meanwhile."""
        with subprocess.Popen(
            nspawn_command(self._record, self._folder),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={"PATH": host_command.PATH, inside.KEEPER_VARIABLE: self._record.uuid},
        ) as machine:
            self._tell_ready()
            output = machine.stdout.fileno() if machine.stdout else -1
            watched = [output, wake]
            while machine.poll() is None:
                readable, _, _ = select.select(watched, [], [], _ASK_AGAIN_S)
                if wake in readable and signal.SIGTERM in os.read(wake, 512) and self._stop_by is None:
                    self._stop_by = clock.Deadline.after(_STOP_LIMIT_S)
                if output in readable and not console.take(output):
                    watched.remove(output)
                self._pass_stop_on(machine)
            while select.select([output], [], [], 0)[0] and console.take(output):
                pass
        return machine.returncode

    def _pass_stop_on(self, machine: subprocess.Popen[bytes]) -> None:
        if self._stop_by is None:
            return
        if self._stop_by.is_passed:
            machine.kill()
            inside_first = inside.leader(self._record.uuid)
            processes.kill([inside_first] if inside_first else [], signal.SIGKILL)
        elif self._ask_again.is_passed:
            first = inside.leader(self._record.uuid)
            processes.kill([first] if first else [], _POWER_OFF)
            self._ask_again = clock.Deadline.after(_ASK_AGAIN_S)

    def _tell_ready(self) -> None:
        # Here, and not by the command that waits: it may be killed while it does.
        (self._folder / STARTED_FILE).touch()
        if self._ready >= 0:
            with suppress(OSError):  # the command that waited for it may be gone
                os.write(self._ready, READY)
            os.close(self._ready)
            self._ready = -1


def nspawn_command(record: state.MachineRecord, folder: Path) -> list[str]:
    """Return the command line that boots a machine in the namespaces of the process that runs it."""
    return [
        # When the keeper is killed, so is this; and systemd-nspawn is number 1 of a process namespace, so the kernel ends
        # the machine with it, which it does not by itself.
        *("setpriv", "--pdeathsig", "KILL", "unshare", "--pid", "--fork", "--kill-child", "--mount-proc"),
        *("systemd-nspawn", "--quiet", "--boot"),
        f"--directory={folder / 'root'}",
        f"--machine={record.id}",
        f"--hostname={record.host_name}",
        # systemd makes it the machine-id of an image that has none, as it should be.
        f"--uuid={record.uuid}",
        f"--setenv={inside.FIRST_VARIABLE}={record.uuid}",
        # No systemd-machined is asked, and no scope made: neither is there on every host.
        *("--register=no", "--keep-unit"),
        # No settings from files, no journal linked to the host's.
        *("--settings=no", "--link-journal=no", "--resolv-conf=off", "--timezone=off"),
        "--console=read-only",
        "--network-namespace-path=/proc/self/ns/net",
        # What a container engine in the machine needs beside the default.
        "--system-call-filter=add_key keyctl bpf",
    ]


def _wake_on_signals() -> int:
    """Return a descriptor that becomes readable with each signal, whose number it holds."""
    reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)
    return reader


def _unshare(flags: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(ctypes.c_int(flags)) != 0:
        raise AgentFailed(f"could not make namespaces: {os.strerror(ctypes.get_errno())}")
