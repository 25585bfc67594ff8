"""Runs one command as a subprocess tree and sees to it that nothing of the tree is left.

Owns descriptors, signals and waiting; knows nothing of builds, steps or what becomes of the output. One thread
runs one command: it waits in one `poll` for output, for the end of the leader (a pidfd), for a cancel, and for
the nearest of the deadlines, so no event waits for another and nothing polls while nothing happens.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import termios
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from agent import clock, log
from agent.build.cancel import Cancel, CancelToken
from agent.clock import Deadline
from agent.host import processes
from agent.host.guardian import LIFE_MARKER
from agent.model.outcome import Outcome, TimeoutKind
from agent.output.lines import OutputSink

# A bigger pipe lets the step run on while this thread redacts; a read takes what is there, up to its size.
PIPE_BYTES = 1 << 18
# A spool that was full is asked again this often; the step stands still meanwhile, its limits don't.
STALL_S = 0.05
# What is left of a tree after its leader ended gets this long between TERM and KILL: it is nobody's step any more.
LEFTOVER_GRACE_S = 0.1
MARKER = "BUILD_STEP_TOKEN"

_log = log.get("process")


@dataclass(frozen=True, kw_only=True, slots=True)
class Command:
    """What to run. `token` marks the tree's processes in their environment, so that strays can be found; `life`
    marks them for the guardian, should the agent die first."""

    argv: Sequence[str]
    cwd: Path
    env: Mapping[str, str]
    token: str
    life: str
    use_pty: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """When to end the tree, and how. `step` and `build` are deadlines, `no_output_s` a pause."""

    step: Deadline
    build: Deadline
    no_output_s: float | None
    grace_s: float
    leaked_pipe_wait_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Ended:
    """How a tree ended. `exit_code` as a shell tells it (128 + signal); `cancel` when it was ended from here."""

    exit_code: int
    cancel: Cancel | None


def run(command: Command, sink: OutputSink, limits: Limits, token: CancelToken) -> Ended:
    """Run `command` to its end, with its output in `sink`.

    Raises: OSError when it can't be started (no such program, no such folder, no more processes).
    """
    reader, leader, mark = _start(command)
    with contextlib.closing(reader):
        tree = _Tree(command, leader, mark, reader, sink=sink, limits=limits, token=token)
        try:
            cancel = tree.watch()
            tree.sweep()
            tree.read_rest()
        finally:
            tree.close()
        sink.flush()
    code = leader.returncode
    return Ended(exit_code=code if code >= 0 else 128 - code, cancel=cancel)


class _Reader:
    """The reading end of the tree's output: a pipe, or the master of a pseudo-terminal."""

    def __init__(self, *, use_pty: bool) -> None:
        if use_pty:
            self.fd, self.writer = pty.openpty()
            fcntl.ioctl(self.writer, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
        else:
            self.fd, self.writer = os.pipe2(os.O_CLOEXEC)
            # Refused beyond the user's share of pipe memory; the default size works too.
            with contextlib.suppress(OSError):
                fcntl.fcntl(self.fd, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        os.set_blocking(self.fd, False)
        os.set_inheritable(self.fd, False)

    def read(self) -> bytes | None:
        """Return what is there, b"" at the end, `None` when nothing is there now."""
        try:
            return os.read(self.fd, PIPE_BYTES)
        except BlockingIOError:
            return None
        except OSError:
            # Linux tells the end of a pseudo-terminal by EIO once the last slave is closed.
            return b""

    def close_writer(self) -> None:
        os.close(self.writer)

    def close(self) -> None:
        os.close(self.fd)


def _start(command: Command) -> tuple[_Reader, subprocess.Popen[bytes], int]:
    """Start the leader; return where its output is read, itself and the mark of its tree."""
    reader = _Reader(use_pty=command.use_pty)
    try:
        with processes.marking() as mark:
            leader = subprocess.Popen(
                command.argv,
                cwd=command.cwd,
                env={**command.env, MARKER: command.token, LIFE_MARKER: command.life},
                stdin=subprocess.DEVNULL,
                stdout=reader.writer,
                stderr=reader.writer,
                start_new_session=True,
                close_fds=True,
                umask=0o022,
            )
    except BaseException:
        reader.close_writer()
        reader.close()
        raise
    reader.close_writer()
    # A step that eats all memory dies before the agent does.
    processes.set_oom_score_adj(leader.pid, 500)
    return reader, leader, mark


class _Tree:
    """A running tree: its leader and whatever that started."""

    def __init__(
        self,
        command: Command,
        leader: subprocess.Popen[bytes],
        mark: int,
        reader: _Reader,
        *,
        sink: OutputSink,
        limits: Limits,
        token: CancelToken,
    ) -> None:
        self._command = command
        self._leader = leader
        self._reader = reader
        self._sink = sink
        self._limits = limits
        self._token = token
        self._pidfd = os.pidfd_open(leader.pid)
        self._mark = mark
        self._marker = f"{MARKER}={command.token}".encode()
        self._poll = select.poll()
        self._poll.register(self._pidfd, select.POLLIN)
        self._is_reading = False
        self._is_at_end = False
        self._output_at_mono = clock.mono()

    def close(self) -> None:
        os.close(self._pidfd)

    def watch(self) -> Cancel | None:
        """Read and wait until the leader has ended; end the tree when its time is up. Return who ended it."""
        self._poll.register(self._token, select.POLLIN)
        cancel: Cancel | None = None
        grace = Deadline(None)
        while True:
            self._read_once()
            # While the grace runs the token is asked, not watched: it stays readable once it is set.
            deadline = grace.earlier(Deadline.after(0.2)) if cancel else self._nearest_limit()
            if self._wait(deadline):
                return cancel
            if cancel is None:
                cancel = self._cancel_due()
                if cancel is not None:
                    self._poll.unregister(self._token)
                    grace = Deadline.after(self._grace_s(cancel))
                    self._signal_tree(signal.SIGTERM)
                continue
            grace = self._shortened(grace)
            if grace.is_passed:
                self._signal_tree(signal.SIGKILL)
                grace = Deadline.after(0.5)  # once more, for what was forked while the signals were sent

    def sweep(self) -> None:
        """End what is left of the tree after its leader: background jobs, daemons, strays."""
        if not self._marked():
            return
        self._signal_leftovers(signal.SIGTERM)
        deadline = Deadline.after(LEFTOVER_GRACE_S)
        while self._marked() and not deadline.is_passed:
            self._drain_briefly(0.01)
        deadline = Deadline.after(5.0)
        while self._marked():
            self._signal_leftovers(signal.SIGKILL)
            if deadline.is_passed:
                _log.error("process.unkillable", token=self._command.token, pids=self._marked())
                return
            self._drain_briefly(0.02)

    def read_rest(self) -> None:
        """Read what is still in the pipe; wait only a while for a writer that can't be found."""
        deadline = Deadline.after(self._limits.leaked_pipe_wait_s)
        while not self._is_at_end and not deadline.is_passed:
            self._read_once()
            if self._is_at_end:
                return
            if self._sink.has_room:
                self._drain_briefly(0.02)
                continue
            # A full spool is not the step's fault: its last words wait until there is room, unless the agent
            # itself has to go.
            deadline = Deadline.after(self._limits.leaked_pipe_wait_s)
            cancel = self._token.cancel
            if cancel is not None and cancel.outcome in (Outcome.LOST, Outcome.PREEMPTED):
                return
            clock.sleep(STALL_S)

    def _read_once(self) -> None:
        """Read once, if the spool has room, and flush what a pause has earned.

        Once only, then back to the poll: limits and cancels are watched however much a step prints.
        """
        sink = self._sink
        if not self._is_at_end and sink.has_room:
            data = self._reader.read()
            if data:
                sink.feed(data)
                self._output_at_mono = clock.mono()
            elif data is not None:
                self._is_at_end = True
        if sink.flush_due_s() == 0.0:
            sink.flush()
        should_read = not self._is_at_end and sink.has_room
        if should_read != self._is_reading:
            if should_read:
                self._poll.register(self._reader.fd, select.POLLIN)
            else:
                self._poll.unregister(self._reader.fd)
            self._is_reading = should_read

    def _wait(self, deadline: Deadline) -> bool:
        """Wait for the next event; whether the leader has ended."""
        waits = [deadline.remaining_s, self._sink.flush_due_s()]
        if not self._sink.has_room:
            waits.append(STALL_S)
            self._output_at_mono = clock.mono()  # the spool is slow, not the step
        known = [wait for wait in waits if wait is not None]
        # Rounded up: poll takes whole milliseconds, and a deadline must have passed when it returns.
        timeout_ms = int(min(known) * 1000) + 1 if known else None
        if any(fd == self._pidfd for fd, _ in self._poll.poll(timeout_ms)):
            self._leader.wait()
            return True
        return False

    def _nearest_limit(self) -> Deadline:
        limits = self._limits
        nearest = limits.step.earlier(limits.build)
        if limits.no_output_s is not None:
            nearest = nearest.earlier(Deadline(self._output_at_mono + limits.no_output_s))
        return nearest

    def _cancel_due(self) -> Cancel | None:
        """Return why the tree has to end now, `None` while it may go on."""
        limits = self._limits
        if self._token.cancel is not None:
            return self._token.cancel
        if self._sink.is_over_limit:
            return Cancel(Outcome.OUTPUT_LIMIT, "the step printed more than it may")
        if limits.build.is_passed:
            return Cancel(Outcome.TIMED_OUT, TimeoutKind.BUILD)
        if limits.step.is_passed:
            return Cancel(Outcome.TIMED_OUT, TimeoutKind.STEP)
        if limits.no_output_s is not None and clock.mono() >= self._output_at_mono + limits.no_output_s:
            return Cancel(Outcome.TIMED_OUT, TimeoutKind.NO_OUTPUT)
        return None

    def _grace_s(self, cancel: Cancel) -> float:
        return self._limits.grace_s if cancel.grace_s is None else cancel.grace_s

    def _shortened(self, grace: Deadline) -> Deadline:
        """Return the grace, cut down when somebody has asked for less patience since the TERM."""
        newest = self._token.cancel
        if newest is None or newest.grace_s is None:
            return grace
        return grace.earlier(Deadline.after(newest.grace_s))

    def _signal_tree(self, number: signal.Signals) -> None:
        """Signal the leader's group, its descendants and every process that carries the token or the mark."""
        self._signal([*processes.descendants(self._leader.pid), *self._marked()], number)

    def _signal_leftovers(self, number: signal.Signals) -> None:
        self._signal(self._marked(), number)

    def _signal(self, pids: Sequence[int], number: signal.Signals) -> None:
        """Signal the leader's group and `pids`, each process once.

        A second SIGTERM means to many programs that they shall leave their cleaning up (F13).
        """
        group = self._leader.pid
        beyond = [pid for pid in pids if not _is_in_group(pid, group)]
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, number)
        processes.kill(beyond, number)

    def _marked(self) -> list[int]:
        """Return what carries the mark or the token: everything of the tree, wherever it has gone (F12).

        All of /proc is looked through, half a millisecond for a hundred processes. Quicker ways lie now and then:
        the kernel's list of children passes over one while another is being waited for, and a process in the
        middle of exec shows no environment.
        """
        found = processes.by_mark(self._mark)
        return list(dict.fromkeys(found + processes.by_environment(self._marker)))

    def _drain_briefly(self, seconds: float) -> None:
        """Let signals take effect while what the dying print is read."""
        self._read_once()
        poll = select.poll()
        if not self._is_at_end:
            poll.register(self._reader.fd, select.POLLIN)
        poll.poll(seconds * 1000)


def _is_in_group(pid: int, group: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        return os.getpgid(pid) == group
    return False
