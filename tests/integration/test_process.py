"""One command and its tree, run for real: what it prints arrives whole, and nothing of it is left alive."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from agent import clock
from agent.build import process
from agent.build.cancel import CancelToken
from agent.clock import Deadline
from agent.host import processes
from agent.model.outcome import Outcome, TimeoutKind
from tests.services import wait_until

GRACE_S = 1.0
# What a busy machine may add to any wait before a test calls it too long.
SLACK_S = 1.0
_PR_SET_CHILD_SUBREAPER = 36

# A daemon as daemons are made: fork, a session of its own, fork again, every descriptor let go. Its last
# argument is what it does about SIGTERM.
DAEMON = """
import os, signal, sys, time
pid_file, mood = sys.argv[1:3]
if os.fork():
    os._exit(0)
os.setsid()
if os.fork():
    os._exit(0)
if mood == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
for fd in (0, 1, 2):
    os.close(fd)
with open(pid_file + ".new", "w") as file:
    file.write(str(os.getpid()))
os.rename(pid_file + ".new", pid_file)
time.sleep(600)
"""


class Collected:
    """A sink that keeps everything."""

    def __init__(self) -> None:
        self.data = b""
        self.has_room = True
        self.is_over_limit = False
        self.on_feed: Callable[[bytes], None] = lambda _: None

    def feed(self, data: bytes) -> None:
        self.data += data
        self.on_feed(self.data)

    def flush_due_s(self) -> float | None:
        return None

    def flush(self) -> None:
        return


@dataclass
class Run:
    """One command to run, with everything that it runs under; each test changes what it is about."""

    folder: Path
    sink: Collected = field(default_factory=Collected)
    cancel: CancelToken = field(default_factory=CancelToken)
    step_s: float | None = 60.0
    build_s: float | None = 60.0
    no_output_s: float | None = None
    grace_s: float = GRACE_S
    leaked_pipe_wait_s: float = 2.0
    token: str = field(default_factory=lambda: f"token/{uuid.uuid4().hex}")
    seconds: float = 0.0

    def __call__(self, script: str, *, use_pty: bool = False) -> process.Ended:
        """Run a script of bash to its end."""
        started_mono = clock.mono()
        try:
            return process.run(
                process.Command(
                    argv=["/bin/bash", "-c", script],
                    cwd=self.folder,
                    env={"PATH": os.environ["PATH"], "WORK": str(self.folder)},
                    token=self.token,
                    life="life-of-a-test",
                    use_pty=use_pty,
                ),
                self.sink,
                process.Limits(
                    step=Deadline.after(self.step_s),
                    build=Deadline.after(self.build_s),
                    no_output_s=self.no_output_s,
                    grace_s=self.grace_s,
                    leaked_pipe_wait_s=self.leaked_pipe_wait_s,
                ),
                self.cancel,
            )
        finally:
            self.seconds = clock.mono() - started_mono

    def beside(self, script: str, **more: Any) -> Callable[[], process.Ended]:
        """Start the run in a thread; what is returned waits for its end and gives the result."""
        results: list[process.Ended] = []
        thread = threading.Thread(target=lambda: results.append(self(script, **more)), daemon=True)
        thread.start()

        def join() -> process.Ended:
            thread.join(30)
            assert results, "the run did not end"
            return results[0]

        return join

    def wait_printed(self, text: bytes) -> None:
        """Wait until the command has printed something."""
        wait_until(lambda: text in self.sink.data, 20, lambda: f"{text!r} in {self.sink.data!r}")

    def pid(self, name: str) -> int:
        """Wait for a file with a process id, and return it."""
        path = self.folder / name
        return int(wait_until(lambda: path.exists() and path.read_text().strip(), 20, name))

    @property
    def escaped(self) -> list[int]:
        """What a failing test has left, marked or not: whoever wrote `pid` and still lives in this folder."""
        path = self.folder / "pid"
        found = processes.alive([int(path.read_text())]) if path.exists() else []
        return [pid for pid in found if Path(f"/proc/{pid}/cwd").resolve() == self.folder]

    @property
    def survivors(self) -> list[int]:
        """What is alive of the tree."""
        return processes.by_environment(f"{process.MARKER}={self.token}".encode())


@pytest.fixture(autouse=True)
def _subreaper() -> Iterator[None]:
    """Be what the agent is: the parent of its orphans; afterwards not any more."""
    processes.set_child_subreaper()
    yield
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, *map(ctypes.c_ulong, (0, 0, 0, 0)))
    processes.reap_orphans((), grace_s=0)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    made = Run(tmp_path)
    yield made
    processes.kill([*made.survivors, *made.escaped], signal.SIGKILL)
    made.cancel.close()


def is_alive(pid: int) -> bool:
    return bool(processes.alive([pid]))


def _descriptor_count() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


# How a command ends by itself.


@pytest.mark.parametrize(("script", "code"), [("true", 0), ("exit 7", 7), ("kill -9 $$", 137)])
def test_exit_code_is_that_of_a_shell(run: Run, script: str, code: int) -> None:
    ended = run(script)
    assert (ended.exit_code, ended.cancel) == (code, None)


def test_both_outputs_arrive_in_the_order_they_were_written(run: Run) -> None:
    run("for i in 1 2 3; do echo out$i; echo err$i >&2; done")
    assert run.sink.data == b"out1\nerr1\nout2\nerr2\nout3\nerr3\n"


def test_last_megabytes_of_a_step_that_has_ended_are_read(run: Run) -> None:
    run("head -c 4000000 /dev/zero; printf end")
    assert run.sink.data == bytes(4_000_000) + b"end"


def test_program_that_is_not_there_is_an_error_that_leaks_no_descriptor(run: Run) -> None:
    command = process.Command(argv=["/no/such"], cwd=run.folder, env={}, token=run.token, life="life")
    limits = process.Limits(
        step=Deadline.after(5), build=Deadline.after(5), no_output_s=None, grace_s=1, leaked_pipe_wait_s=1
    )
    before = _descriptor_count()
    for _ in range(5):
        with pytest.raises(FileNotFoundError):
            process.run(command, run.sink, limits, run.cancel)
    assert _descriptor_count() == before


def test_step_has_no_input_and_no_descriptor_of_the_agents(run: Run, tmp_path: Path) -> None:
    with (tmp_path / "of-the-agent").open("w") as file:
        os.set_inheritable(file.fileno(), True)
        run("cat; ls -l /proc/self/fd | grep -c agent; ulimit -c >/dev/null; readlink /proc/self/fd/0")
    assert run.sink.data == b"0\n/dev/null\n"


def test_pty_is_a_terminal_with_a_size(run: Run) -> None:
    ended = run("test -t 1 && test -t 2 && stty size <&1; printf 'a\\nb\\n'", use_pty=True)
    assert ended.exit_code == 0
    assert run.sink.data == b"40 120\r\na\r\nb\r\n"


# F11: what a step leaves behind does not hold it.


@pytest.mark.parametrize("use_pty", [False, True])
def test_f11_sleeper_that_keeps_the_pipe_open_neither_holds_the_step_nor_lives_on(
    run: Run, *, use_pty: bool
) -> None:
    ended = run('sleep 600 & echo $! > "$WORK/sleeper"; echo done', use_pty=use_pty)
    assert ended.exit_code == 0
    assert run.sink.data.split() == [b"done"]
    assert run.seconds < 0.5 + SLACK_S
    assert not is_alive(run.pid("sleeper"))


def test_f11_words_of_a_background_job_until_the_end_of_the_step_are_kept(run: Run) -> None:
    run("(echo from behind; sleep 600) & sleep 0.2")
    assert run.sink.data == b"from behind\n"


def test_step_that_leaves_nothing_ends_without_a_pause(run: Run) -> None:
    run("true")
    quickest = run.seconds
    for _ in range(9):
        run("true")
        quickest = min(quickest, run.seconds)
    # LEFTOVER_GRACE_S alone would be 100 ms.
    assert quickest < 0.09


# F12: whatever a tree does to get away.


ESCAPES = {
    "setsid": 'setsid bash -c \'echo $$ > "$WORK/pid"; sleep 600\' & while ! [ -s "$WORK/pid" ]; do :; done',
    "double fork": 'python3 "$WORK/daemon.py" "$WORK/pid" meek; while ! [ -s "$WORK/pid" ]; do :; done',
    "deaf daemon": 'python3 "$WORK/daemon.py" "$WORK/pid" deaf; while ! [ -s "$WORK/pid" ]; do :; done',
    "environment thrown away": 'env -i setsid bash -c "echo \\$\\$ > $WORK/pid; sleep 600" & '
    'while ! [ -s "$WORK/pid" ]; do :; done',
    "double fork without environment": 'env -i python3 "$WORK/daemon.py" "$WORK/pid" deaf; '
    'while ! [ -s "$WORK/pid" ]; do :; done',
}


@pytest.mark.parametrize("escape", ESCAPES)
@pytest.mark.parametrize("end", ["by itself", "cancelled"])
def test_f12_nothing_of_the_tree_is_alive_afterwards(run: Run, escape: str, end: str) -> None:
    (run.folder / "daemon.py").write_text(DAEMON)
    script = f"{ESCAPES[escape]}; echo away"
    if end == "by itself":
        run(script)
        limit_s = 1.0
    else:
        join = run.beside(script + "; sleep 600")
        run.wait_printed(b"away")
        cancelled_mono = clock.mono()
        run.cancel.request(Outcome.CANCELLED, "by ann")
        join()
        limit_s = GRACE_S + 1.0
        assert clock.mono() - cancelled_mono < limit_s + SLACK_S
    wait_until(lambda: not is_alive(run.pid("pid")), limit_s, f"{escape}: still alive")
    assert run.survivors == []


@pytest.mark.root
def test_f12_daemon_of_another_user_is_ended(run: Run) -> None:
    script = "su nobody -s /bin/sh -c 'setsid sleep 600 >/dev/null 2>&1 & echo $!'"
    run(script)
    pid = int(run.sink.data)
    wait_until(lambda: not is_alive(pid), 1.0, "the daemon of nobody is still alive")
    assert run.seconds < 1.0 + SLACK_S


def test_f12_tree_that_forks_as_fast_as_it_is_killed_is_ended(run: Run) -> None:
    # Each goes on as another process in a session of its own; 40 generations at most, then it sleeps.
    script = """
    hop() {
      [ "$1" -gt 40 ] && exec sleep 600
      setsid bash -c "$(declare -f hop); trap '' TERM; hop $(($1 + 1))" &
    }
    for i in 1 2 3; do hop 0; done; echo begun
    """
    run(script)
    wait_until(lambda: not run.survivors, 5, lambda: f"alive: {run.survivors}")
    assert run.seconds < 10


@pytest.mark.slow
def test_f12_quick_steps_beside_each_other_leave_nothing(tmp_path: Path) -> None:
    # Each is looked for while it leaves its session, execs, and is handed on, and others come and go.
    survivors: list[int] = []

    def run_many(folder: Path) -> None:
        folder.mkdir()
        for _ in range(40):
            run = Run(folder)
            run("setsid sleep 600 & true")
            survivors.extend(run.survivors)
            run.cancel.close()

    threads = [threading.Thread(target=run_many, args=(tmp_path / str(n),)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    processes.kill(survivors, signal.SIGKILL)
    assert survivors == []


def test_neighbour_of_a_cancelled_step_lives_on(run: Run, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = Run(tmp_path / "other")
    join_other = other.beside("echo here; read -t 20 < <(sleep 3); echo still here")
    other.wait_printed(b"here")
    join = run.beside("setsid sleep 600 & echo here; sleep 600")
    run.wait_printed(b"here")
    run.cancel.request(Outcome.CANCELLED, "by ann")
    assert join().cancel is not None
    ended = join_other()
    other.cancel.close()
    assert (ended.exit_code, ended.cancel) == (0, None)
    assert other.sink.data == b"here\nstill here\n"


# F13: a step that cleans up.


def test_f13_step_has_its_grace_and_its_last_words_are_kept(run: Run) -> None:
    join = run.beside("trap 'echo cleaning; sleep 0.3; echo clean; exit 9' TERM; echo up; sleep 600 & wait")
    run.wait_printed(b"up")
    run.cancel.request(Outcome.CANCELLED, "by ann")
    ended = join()
    assert run.sink.data == b"up\ncleaning\nclean\n"
    assert ended.exit_code == 9
    assert ended.cancel is not None
    assert ended.cancel.detail == "by ann"


def test_f13_step_that_does_not_end_in_its_grace_is_killed(run: Run) -> None:
    join = run.beside("trap 'echo no' TERM; echo up; while :; do sleep 0.05; done")
    run.wait_printed(b"up")
    cancelled_mono = clock.mono()
    run.cancel.request(Outcome.CANCELLED, "by ann")
    ended = join()
    assert ended.exit_code == 128 + signal.SIGKILL
    assert b"no\n" in run.sink.data
    assert GRACE_S <= clock.mono() - cancelled_mono < GRACE_S + 1.0 + SLACK_S


def test_second_word_shortens_the_grace_and_keeps_the_first_reason(run: Run) -> None:
    run.grace_s = 60.0
    join = run.beside("trap '' TERM; echo up; while :; do sleep 0.05; done")
    run.wait_printed(b"up")
    run.cancel.request(Outcome.CANCELLED, "by ann")
    run.cancel.request(Outcome.LOST, "fenced", grace_s=0.2)
    ended = join()
    assert ended.cancel is not None
    assert ended.cancel.outcome is Outcome.CANCELLED
    assert run.seconds < 20


def test_cancel_that_came_before_the_start_ends_the_step_at_once(run: Run) -> None:
    run.cancel.request(Outcome.CANCELLED, "by ann")
    ended = run("sleep 600")
    assert ended.cancel is not None
    assert run.seconds < 1.0 + SLACK_S


# F15: limits.


@pytest.mark.parametrize(
    ("limit", "kind"),
    [("step_s", TimeoutKind.STEP), ("build_s", TimeoutKind.BUILD), ("no_output_s", TimeoutKind.NO_OUTPUT)],
)
def test_f15_each_limit_ends_the_step_and_is_named(run: Run, limit: str, kind: TimeoutKind) -> None:
    setattr(run, limit, 0.5)
    ended = run("echo up; sleep 600")
    assert ended.cancel is not None
    assert (ended.cancel.outcome, ended.cancel.detail) == (Outcome.TIMED_OUT, kind)
    assert 0.5 <= run.seconds < 0.5 + GRACE_S + SLACK_S


def test_f15_step_that_prints_now_and_then_is_not_silent(run: Run) -> None:
    run.no_output_s = 1.0
    ended = run("for i in {1..8}; do echo $i; sleep 0.2; done")
    assert ended.cancel is None
    assert run.seconds > 1.0


def test_f15_step_that_prints_without_end_meets_its_limit(run: Run) -> None:
    run.step_s = 0.5
    sink = run.sink
    sink.on_feed = lambda data: setattr(sink, "data", data[-10:])
    ended = run("yes")
    assert ended.cancel is not None
    assert ended.cancel.detail == TimeoutKind.STEP
    assert run.seconds < 0.5 + GRACE_S + SLACK_S


def test_output_limit_ends_the_step_and_is_the_reason(run: Run) -> None:
    sink = run.sink

    def keep(data: bytes) -> None:
        sink.is_over_limit = sink.is_over_limit or len(data) > 1000
        sink.data = data[:1000]

    sink.on_feed = keep
    ended = run("yes")
    assert ended.cancel is not None
    assert ended.cancel.outcome is Outcome.OUTPUT_LIMIT


# F20: a spool that is full slows the step and is not held against it.


def test_f20_full_spool_stops_the_producer_and_loses_nothing(run: Run) -> None:
    run.no_output_s = 0.6
    sink = run.sink
    sink.on_feed = lambda data: setattr(sink, "has_room", False)
    join = run.beside("for i in {1..100000}; do echo line $i; done; echo $i > $WORK/through")
    wait_until(lambda: not sink.has_room, 10)
    stalled = len(sink.data)
    # Longer than the step may be silent: it is the spool that is slow.
    until = Deadline.after(1.2)
    while not until.is_passed:
        assert len(sink.data) == stalled
        assert not (run.folder / "through").exists()
        clock.sleep(0.05)
    sink.on_feed = lambda _: None
    sink.has_room = True
    ended = join()
    assert (ended.exit_code, ended.cancel) == (0, None)
    assert sink.data == b"".join(b"line %d\n" % i for i in range(1, 100_001))


def test_f20_step_under_a_full_spool_can_be_cancelled(run: Run) -> None:
    sink = run.sink
    sink.on_feed = lambda data: setattr(sink, "has_room", False)
    join = run.beside("yes")
    wait_until(lambda: not sink.has_room, 10)
    run.cancel.request(Outcome.LOST, "fenced", grace_s=0.2)
    ended = join()
    assert ended.cancel is not None
    assert ended.cancel.outcome is Outcome.LOST
    assert run.survivors == []


def test_descriptors_are_given_back(run: Run) -> None:
    run("true")
    before = _descriptor_count()
    for use_pty in (False, True, False, True):
        run("echo x; sleep 600 &", use_pty=use_pty)
    assert _descriptor_count() == before


def test_mark_is_on_what_was_started_inside_and_on_nothing_else() -> None:
    started = []
    for begin in (processes.unmarked, processes.marking, processes.unmarked):
        with begin() as mark:
            started.append((mark, subprocess.Popen(["sleep", "600"])))
    try:
        marks = [mark for mark, _ in started if mark is not None]
        assert [processes.by_mark(mark) for mark in marks] == [[started[1][1].pid]]
    finally:
        for _, child in started:
            child.kill()
            child.wait()
