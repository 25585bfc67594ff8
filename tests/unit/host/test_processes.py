"""Finding, signalling and reaping real processes: setsid, double forks, threads, zombies."""

from __future__ import annotations

import ctypes
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent import clock
from agent.errors import AgentError
from agent.host import processes
from agent.host.processes import ProcessId

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")


def wait_until(holds: Callable[[], object], limit_s: float = 15) -> None:
    deadline = clock.Deadline.after(limit_s)
    while not holds():
        if deadline.is_passed:
            pytest.fail("did not come about in time")
        clock.sleep(0.005)


class Tree:
    """A shell line and whatever it starts, all carrying a marker of their own."""

    def __init__(self) -> None:
        self.marker = f"AGENT_TEST_TREE={secrets.token_hex(8)}".encode()
        self._shells: list[subprocess.Popen[bytes]] = []
        # Such as the servers that a fixture of another module keeps for the whole session.
        self._of_others = frozenset(processes.children_of_self())

    def children(self) -> list[int]:
        """The children of this process that have come since: the tree's, and orphans that were adopted."""
        return [pid for pid in processes.children_of_self() if pid not in self._of_others]

    def run(self, line: str, *, argv: list[str] | None = None) -> subprocess.Popen[bytes]:
        name, _, value = self.marker.decode().partition("=")
        shell = subprocess.Popen(
            argv or ["/bin/sh", "-c", line],
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env={"PATH": os.environ["PATH"], name: value},
        )
        self._shells.append(shell)
        return shell

    def end(self) -> None:
        def is_empty() -> bool:
            found = processes.by_environment(self.marker)
            processes.kill(found, signal.SIGKILL)
            return not found

        wait_until(is_empty)
        for shell in self._shells:
            if shell.poll() is None:
                shell.kill()
            shell.wait()
        # Orphans come to this process where a test made it a subreaper: leave none to the next test.
        for pid in self.children():
            os.waitpid(pid, os.WNOHANG)


@pytest.fixture
def tree() -> Iterator[Tree]:
    made = Tree()
    yield made
    made.end()


@pytest.fixture(params=["children", "stat"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run the test with and without CONFIG_PROC_CHILDREN."""
    if request.param == "stat":
        monkeypatch.setattr(processes, "_has_children_files", lambda: False)
    elif not processes._has_children_files():
        pytest.skip("needs CONFIG_PROC_CHILDREN")
    return str(request.param)


@pytest.fixture
def subreaper() -> Iterator[None]:
    processes.set_child_subreaper()
    yield
    ctypes.CDLL(None).prctl(36, ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0))


def name_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def state_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_descendants_are_found_over_generations_and_sessions(tree: Tree, way: str) -> None:
    shell = tree.run("sleep 60 & setsid sh -c 'sleep 60 & sleep 60; :' & (sh -c 'sleep 60; :'; :) & wait")
    wait_until(lambda: sum(name_of(pid) == "sleep" for pid in processes.descendants(shell.pid)) == 4)
    found = processes.descendants(shell.pid)
    assert shell.pid not in found
    known = {shell.pid}
    for pid in found:  # parents come first
        assert parent_of(pid) in known
        known.add(pid)


def test_children_of_every_thread_are_descendants(tree: Tree, way: str) -> None:
    code = (
        "import subprocess, threading\n"
        "def run(): subprocess.run(['sleep', '60'])\n"
        "for _ in range(3): threading.Thread(target=run).start()\n"
    )
    program = tree.run("", argv=[sys.executable, "-c", code])
    wait_until(lambda: sum(name_of(pid) == "sleep" for pid in processes.descendants(program.pid)) == 3)
    assert len(processes.descendants(program.pid)) == 3


def test_process_whose_leader_thread_has_ended_is_alive(tree: Tree) -> None:
    code = (
        "import ctypes, threading, time\n"
        "threading.Thread(target=time.sleep, args=(60,)).start()\n"
        "ctypes.PyDLL(None).pthread_exit(None)\n"
    )
    shell = tree.run("", argv=["/bin/sh", "-c", '"$0" -c "$1"; :', sys.executable, code])
    wait_until(lambda: [state_of(pid) for pid in processes.descendants(shell.pid)] == ["Z"])
    (program,) = processes.descendants(shell.pid)
    assert processes.alive([program]) == [program]
    assert processes.kill([program], signal.SIGKILL) == 1
    wait_until(lambda: not processes.alive([program]))


def test_descendants_of_nobody_are_none(way: str) -> None:
    assert processes.descendants(2**22 + 1) == []


def test_zombies_are_not_listed_as_living(tree: Tree, way: str) -> None:
    shell = tree.run("exit 3")
    wait_until(lambda: state_of(shell.pid) == "Z")
    assert shell.pid not in processes.descendants(os.getpid())
    assert processes.session_members(shell.pid) == []
    assert processes.alive([shell.pid]) == []
    assert processes.kill([shell.pid], signal.SIGTERM) == 0
    assert shell.pid in processes.children_of_self()
    assert shell.wait() == 3


def test_environment_finds_a_double_fork_in_its_own_session(tree: Tree) -> None:
    shell = tree.run("(setsid sh -c 'sleep 60 & exit' &) ; exit")
    shell.wait()
    wait_until(lambda: [name_of(pid) for pid in processes.by_environment(tree.marker)] == ["sleep"])
    assert processes.descendants(shell.pid) == []
    assert processes.session_members(shell.pid) == []


def test_environment_is_held_against_whole_entries(tree: Tree) -> None:
    tree.run("sleep 60; :")
    wait_until(lambda: len(processes.by_environment(tree.marker)) == 2)
    assert processes.by_environment(tree.marker[:-1]) == []
    assert processes.by_environment(tree.marker[1:]) == []


def test_environment_of_any_size_is_searched(tree: Tree) -> None:
    name, _, value = tree.marker.decode().partition("=")
    ballast = {f"BALLAST_{number}": "x" * 50_000 for number in range(5)}
    with subprocess.Popen(["sleep", "60"], env={**ballast, name: value}) as sleeper:
        wait_until(lambda: processes.by_environment(tree.marker) == [sleeper.pid])
        sleeper.kill()
    assert processes.by_environment(tree.marker) == []


@pytest.mark.parametrize("marker", [b"", b"NAME", b"NAME=", b"=value", b"A=b\0C=d"])
def test_marker_that_would_hit_strangers_is_refused(marker: bytes) -> None:
    with pytest.raises(ValueError, match="whole environment entry"):
        processes.by_environment(marker)


def test_session_members_are_found_without_their_leader(tree: Tree) -> None:
    shell = tree.run("sleep 60 & sleep 60 & setsid sleep 60 & exit")
    wait_until(lambda: state_of(shell.pid) == "Z")
    wait_until(lambda: len(processes.by_environment(tree.marker)) == 3)
    wait_until(lambda: len(processes.session_members(shell.pid)) == 2)
    assert {os.getsid(pid) for pid in processes.session_members(shell.pid)} == {shell.pid}


def test_kill_ends_a_tree_and_counts_it(tree: Tree) -> None:
    shell = tree.run("trap '' TERM; sleep 60 & sleep 60 & wait")
    wait_until(lambda: len(processes.descendants(shell.pid)) == 2)
    found = [shell.pid, *processes.descendants(shell.pid)]
    assert processes.kill(found, signal.SIGKILL) == 3
    wait_until(lambda: not processes.alive(found))
    assert shell.wait() == -signal.SIGKILL
    assert processes.kill(found, signal.SIGKILL) == 0


def test_kill_spares_a_later_process_of_the_same_number(tree: Tree) -> None:
    shell = tree.run("exec sleep 60")
    (now,) = processes.session_members(shell.pid)
    assert isinstance(now, ProcessId)
    listed_long_ago = ProcessId(now, now.started_ticks - 1)
    assert processes.alive([listed_long_ago]) == []
    assert processes.kill([listed_long_ago], signal.SIGKILL) == 0
    assert shell.poll() is None
    assert processes.kill([now], signal.SIGKILL) == 1
    assert shell.wait() == -signal.SIGKILL


@pytest.mark.parametrize("wrong", [0, 1, -5, None], ids=["own group", "init", "a group", "itself"])
def test_kill_refuses_groups_init_and_itself_before_anything_is_sent(tree: Tree, wrong: int | None) -> None:
    shell = tree.run("exec sleep 60")
    with pytest.raises(ValueError, match="not a process"):
        processes.kill([shell.pid, os.getpid() if wrong is None else wrong], signal.SIGKILL)
    assert shell.poll() is None


def test_orphan_is_adopted_and_reaped(tree: Tree, subreaper: None, way: str) -> None:
    shell = tree.run("(sleep 0.05 &) ; exit")
    shell.wait()
    wait_until(lambda: any(state_of(pid) == "Z" for pid in tree.children()))
    assert processes.reap_orphans(frozenset(), grace_s=0.05) == []
    wait_until(lambda: processes.reap_orphans(frozenset(), grace_s=0.05))
    assert tree.children() == []


def test_reaping_leaves_known_children_to_their_owner(tree: Tree) -> None:
    shell = tree.run("exit 7")
    wait_until(lambda: state_of(shell.pid) == "Z")
    assert processes.reap_orphans({shell.pid}, grace_s=0) == []
    assert shell.wait() == 7


def test_reaping_never_steals_from_a_waiting_thread() -> None:
    codes: list[int] = []

    def build() -> None:
        codes.extend(subprocess.run(["/bin/sh", "-c", "exit 5"], check=False).returncode for _ in range(40))

    threads = [threading.Thread(target=build) for _ in range(3)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert processes.reap_orphans(frozenset()) == []
    for thread in threads:
        thread.join()
    assert codes == [5] * 120


def test_running_children_are_not_reaped(tree: Tree) -> None:
    shell = tree.run("exec sleep 60")
    assert processes.reap_orphans(frozenset(), grace_s=0) == []
    assert tree.children() == [shell.pid]


def test_children_of_self_sees_those_of_other_threads(way: str) -> None:
    started: list[subprocess.Popen[bytes]] = []
    thread = threading.Thread(target=lambda: started.append(subprocess.Popen(["sleep", "60"])))
    thread.start()
    wait_until(lambda: started)
    try:
        assert started[0].pid in processes.children_of_self()
    finally:
        started[0].kill()
        started[0].wait()
        thread.join()


def test_oom_score_is_raised(tree: Tree) -> None:
    shell = tree.run("exec sleep 60")
    assert processes.set_oom_score_adj(shell.pid, 500)
    assert Path(f"/proc/{shell.pid}/oom_score_adj").read_text().strip() == "500"


def test_oom_score_of_the_gone_and_beyond_range(tree: Tree) -> None:
    assert not processes.set_oom_score_adj(2**22 + 1, 500)
    with pytest.raises(ValueError, match="1001"):
        processes.set_oom_score_adj(os.getpid(), 1001)


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
def test_foreign_processes_are_told_apart_from_gone_ones(tree: Tree) -> None:
    foreign = tree.run("exec sleep 60")
    report, done = os.pipe()
    pid = os.fork()
    if pid == 0:  # another user, in a process of its own
        try:
            os.setuid(65534)
            with pytest.raises(AgentError) as caught:
                processes.set_oom_score_adj(foreign.pid, 1)
            sent = processes.kill([foreign.pid], signal.SIGKILL)
            hidden = processes.by_environment(tree.marker)
            os.write(done, f"{sent} {hidden} {caught.value}".encode())
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    os.close(done)
    told = os.read(report, 4096).decode()
    os.close(report)
    assert told.startswith("0 [] can't set oom_score_adj")
    assert foreign.poll() is None


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
def test_step_that_ended_at_once_is_gone_and_not_foreign() -> None:
    """Root may write to a zombie's files; the agent's user may not."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.setuid(65534)
            ended = os.fork()
            if ended == 0:
                os._exit(0)
            os.waitid(os.P_PID, ended, os.WEXITED | os.WNOWAIT)
            code = 0 if not processes.set_oom_score_adj(ended, 500) else 2
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0


@pytest.mark.slow
def test_listings_take_few_milliseconds_of_cpu_among_300_processes(tree: Tree) -> None:
    shell = tree.run("i=0; while [ $i -lt 220 ]; do sleep 60 & i=$((i+1)); done; wait")
    wait_until(lambda: len(processes.descendants(shell.pid)) == 220)
    listings: list[Callable[[], list[int]]] = [
        lambda: processes.session_members(os.getsid(0)),
        lambda: processes.by_environment(tree.marker + b"x"),
        processes.children_of_self,
    ]
    for listing in listings:
        took_s = []
        for _ in range(15):
            # Of this thread alone: a machine that is busy with other things makes no difference.
            begin = time.thread_time()
            listing()
            took_s.append(time.thread_time() - begin)
        assert min(took_s) < 0.006
