"""The guardian: what an agent that was killed leaves running is dead within moments, and nothing else is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from agent.errors import AgentFailed
from agent.host.guardian import LIFE_MARKER, Guardian
from tests.services import wait_until

Spawn = Callable[..., subprocess.Popen[bytes]]

# An agent in little: it starts a guardian and steps, says who they are, and waits to be killed.
_AGENT = """
import subprocess, sys
from pathlib import Path
from agent.host.guardian import LIFE_MARKER, Guardian

guardian = Guardian(Path(sys.argv[1]))
guardian.start()
env = {"PATH": "/usr/bin:/bin", LIFE_MARKER: guardian.life}
steps = [
    subprocess.Popen(["sleep", "600"], env=env, start_new_session=True),
    subprocess.Popen(["sh", "-c", "trap '' TERM HUP; sleep 600 & wait"], env=env, start_new_session=True),
    subprocess.Popen(["sh", "-c", "setsid sh -c 'sleep 600 & sleep 600' & wait"], env=env),
]
print(guardian.pid, guardian.life, *(step.pid for step in steps), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def spawn() -> Iterator[Spawn]:
    """Start sleepers of a given life; whatever is left of them is killed."""
    made: list[subprocess.Popen[bytes]] = []

    def start(life: str, argv: tuple[str, ...] = ("sleep", "600")) -> subprocess.Popen[bytes]:
        env = {"PATH": os.environ["PATH"], LIFE_MARKER: life}
        made.append(subprocess.Popen(argv, env=env, start_new_session=True))
        return made[-1]

    yield start
    for process in made:
        process.kill()
        process.wait()


@pytest.fixture
def guardian(tmp_path: Path) -> Iterator[Guardian]:
    guardian = Guardian(tmp_path)
    yield guardian
    guardian.dismiss()


def of_life(life: str) -> list[int]:
    """Return the living processes that carry a life in their environment."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(LIFE_MARKER) == life and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except psutil.Error:
            continue
    return found


def test_steps_of_a_killed_agent_die_and_the_guardian_goes(tmp_path: Path, spawn: Spawn) -> None:
    stranger = spawn("another life")
    with subprocess.Popen(
        [sys.executable, "-c", _AGENT, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as agent:
        assert agent.stdout is not None
        guardian_pid, life, *steps = agent.stdout.readline().decode().split()
        wait_until(lambda: len(of_life(life)) >= 5, 20, lambda: f"{of_life(life)} of {steps}")
        agent.kill()
        agent.wait(10)
        wait_until(lambda: not of_life(life), 20, "the steps to die")
        wait_until(lambda: not psutil.pid_exists(int(guardian_pid)) or _is_zombie(int(guardian_pid)), 20)
    assert stranger.poll() is None


def _is_zombie(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_dismissed_guardian_kills_nobody(guardian: Guardian, spawn: Spawn, tmp_path: Path) -> None:
    guardian.start()
    assert guardian.is_alive
    step = spawn(guardian.life)
    pid = guardian.pid
    assert pid is not None
    guardian.dismiss()
    assert not psutil.pid_exists(pid)
    assert (guardian.is_alive, guardian.pid) == (False, None)
    assert step.poll() is None
    assert not (tmp_path / "life").exists()


def test_guardian_survives_the_signals_that_end_an_agents_group(guardian: Guardian) -> None:
    """Ctrl-C goes to the whole foreground group; the guardian is in a session of its own."""
    guardian.start()
    assert guardian.pid is not None
    assert os.getsid(guardian.pid) == guardian.pid


def test_guardian_dies_of_no_inherited_pipe(guardian: Guardian, spawn: Spawn) -> None:
    """A step that held the agent's end of the pipe would keep the guardian from ever seeing its end."""
    guardian.start()
    step = spawn(guardian.life)
    fds = {str(entry.readlink()) for entry in Path(f"/proc/{step.pid}/fd").iterdir()}
    mine = {str(entry.readlink()) for entry in Path(f"/proc/{guardian.pid}/fd").iterdir()}
    assert not [fd for fd in fds & mine if fd.startswith("pipe:")]


def test_each_life_is_another(tmp_path: Path) -> None:
    lives = {Guardian(tmp_path).life for _ in range(10)}
    assert len(lives) == 10


def test_dismissing_twice_and_before_the_start_is_fine(guardian: Guardian) -> None:
    guardian.dismiss()
    guardian.start()
    guardian.dismiss()
    guardian.dismiss()
    assert not guardian.is_alive


# The next life.


def test_next_life_ends_what_the_former_left(tmp_path: Path, guardian: Guardian, spawn: Spawn) -> None:
    former = Guardian(tmp_path)
    former.start()
    steps = [spawn(former.life), spawn(former.life, ("sh", "-c", "trap '' TERM; sleep 600 & wait"))]
    stranger = spawn("f" * 32)
    wait_until(lambda: len(of_life(former.life)) == 3)
    former_pid = former.pid
    assert former_pid is not None
    os.kill(former_pid, signal.SIGKILL)  # with the agent, by the kernel
    assert guardian.end_former_life() == 3
    assert of_life(former.life) == []
    assert all(step.wait(10) == -signal.SIGKILL for step in steps)
    assert stranger.poll() is None
    former.dismiss()


def test_first_life_has_nothing_to_end(guardian: Guardian) -> None:
    assert guardian.end_former_life() == 0


def test_life_that_ended_in_order_leaves_nothing_to_end(tmp_path: Path, guardian: Guardian) -> None:
    former = Guardian(tmp_path)
    former.start()
    former.dismiss()
    assert guardian.end_former_life() == 0


@pytest.mark.parametrize(
    "text", [b"", b"\n", b"\0" * 33, b"\xff\xfe", b"x" * 5000, b"= \n", b"abc"], ids=range(7)
)
def test_life_file_that_a_power_cut_ruined_is_no_hindrance(
    tmp_path: Path, guardian: Guardian, text: bytes
) -> None:
    (tmp_path / "life").write_bytes(text)
    assert guardian.end_former_life() == 0
    guardian.start()
    assert (tmp_path / "life").read_text().strip() == guardian.life


def test_state_directory_that_takes_nothing_says_so(tmp_path: Path) -> None:
    guardian = Guardian(tmp_path / "no" / "such")
    with pytest.raises(AgentFailed, match="guardian can't be started"):
        guardian.start()
    assert not guardian.is_alive
