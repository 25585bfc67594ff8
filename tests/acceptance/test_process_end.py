"""Steps of a real agent: how they end, and that nothing of them is left (F11, F12, F13, F15)."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from agent.host import processes
from agent.model.build import Build
from agent.model.outcome import Outcome
from agent.store import builds, steps
from tests.acceptance.farm import Farm
from tests.services import wait_until

GRACE_S = 2.0  # the farm's


def duration_s(build: Build) -> float:
    assert build.started_at is not None
    assert build.ended_at is not None
    return (build.ended_at - build.started_at).total_seconds()


def is_alive(pid: int) -> bool:
    return bool(processes.alive([pid]))


def strangers(farm: Farm) -> list[bytes]:
    """Return what lives below the agents besides their guardians."""
    found = [pid for agent in farm.agents for pid in processes.descendants(agent.pid)]
    lines = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in processes.alive(found)]
    return [line for line in lines if b"build-agent-guardian" not in line]


@pytest.mark.parametrize("pty", [False, True])
def test_f11_step_with_a_sleeper_on_its_pipe_ends_at_once(
    sqlite_farm: Farm, tmp_path: Path, *, pty: bool
) -> None:
    farm = sqlite_farm
    farm.agent()
    pid_file = tmp_path / "sleeper"
    command = f"sleep 600 & echo $! > {pid_file}; echo done"
    build = farm.wait_ended(farm.submit({"steps": [{"run": command, "pty": pty}]}))
    assert build.outcome is Outcome.PASSED
    assert farm.text(build.id).split() == ["done"]
    assert duration_s(build) < 5
    assert not is_alive(int(pid_file.read_text()))


# What it is called by, and how it gets away: `$1` is the file that says who it is.
ESCAPES = {
    "setsid": "setsid bash -c 'echo $$ > $0; sleep 600' $FILE &",
    "double fork": "(setsid bash -c 'echo $$ > $0; sleep 600' $FILE & );",
    "deaf": "(setsid bash -c 'trap : TERM; echo $$ > $0; while :; do sleep 1; done' $FILE &>/dev/null & );",
    "no environment": "(env -i setsid bash -c 'trap \"\" TERM; echo $$ > $0; sleep 600' $FILE & );",
}


@pytest.mark.slow
def test_f12_no_process_of_a_step_outlives_it(sqlite_farm: Farm, tmp_path: Path) -> None:
    farm = sqlite_farm
    farm.agent(slots=4)
    ids = {}
    for name, escape in ESCAPES.items():
        file = tmp_path / name.replace(" ", "-")
        command = f"sleep 0.3; {escape} while ! [ -s $FILE ]; do sleep 0.01; done"
        for end in ("itself", "cancel"):
            path = file.with_suffix(f".{end}")
            run = command + ("; echo away; sleep 600" if end == "cancel" else "")
            document: dict[str, Any] = {"env": {"FILE": str(path)}, "steps": [run]}
            ids[farm.submit(document)] = path
    for build_id, path in ids.items():
        if path.suffix == ".cancel":
            farm.wait_running(build_id, printed="away")
            builds.request_cancel(farm.store, build_id, by="ann")
    for build_id, path in ids.items():
        build = farm.wait_ended(build_id)
        expected = Outcome.CANCELLED if path.suffix == ".cancel" else Outcome.PASSED
        assert (path.name, build.outcome) == (path.name, expected)
        # The build's end is told after its processes are gone, so there is nothing to wait for.
        assert not is_alive(int(path.read_text())), path.name
    wait_until(lambda: not strangers(farm), 2, lambda: str(strangers(farm)))


def test_f13_step_cleans_up_in_its_grace_and_its_last_words_are_stored(farm: Farm) -> None:
    farm.agent()
    build_id = farm.submit(
        "trap 'echo cleaning; sleep 0.5; echo clean; exit 1' TERM; echo up; sleep 600 & wait"
    )
    farm.wait_running(build_id, printed="up")
    builds.request_cancel(farm.store, build_id, by="ann", why="wrong branch")
    build = farm.wait_ended(build_id)
    assert build.outcome is Outcome.CANCELLED
    assert farm.text(build_id) == (
        "up\ncleaning\nclean\nbuild-agent: the step was ended: cancelled: by ann\n"
    )


LIMITS: dict[str, dict[str, Any]] = {
    "no-output": {"steps": [{"run": "echo up; sleep 600", "no_output_timeout": 1}]},
    "step": {"steps": [{"run": "while echo up; do sleep 0.2; done", "timeout": 1}]},
    "build": {"timeout": 2, "steps": ["true", "while echo up; do sleep 0.2; done", "echo never"]},
    "no-output of all": {"no_output_timeout": 1, "steps": ["sleep 600"]},
    "step of all": {"step_timeout": 1, "steps": ["sleep 600"]},
}


@pytest.mark.slow
def test_f15_each_kind_of_time_out_is_named(sqlite_farm: Farm) -> None:
    farm = sqlite_farm
    farm.agent(slots=5)
    ids = {kind: farm.submit(document) for kind, document in LIMITS.items()}
    for key, build_id in ids.items():
        kind = key.partition(" ")[0]
        build = farm.wait_ended(build_id)
        assert (key, build.outcome) == (key, Outcome.TIMED_OUT)
        assert (build.detail or "").endswith(f": {kind}")
        ended = [item for item in steps.list_steps(farm.store, build_id, 1) if item.outcome != Outcome.PASSED]
        assert [(item.outcome, item.detail) for item in ended] == [(Outcome.TIMED_OUT, kind)]
        assert f"build-agent: the step was ended: timed out ({kind})" in farm.text(build_id)
        assert farm.attempts(build_id) == [(1, Outcome.TIMED_OUT)]
        assert duration_s(build) < 2 + GRACE_S + 5


def test_f15_checkout_that_never_ends_meets_the_limit_of_the_build(sqlite_farm: Farm) -> None:
    farm = sqlite_farm
    farm.agent()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        source = {"git": f"git://127.0.0.1:{silent.getsockname()[1]}/repository", "branch": "main"}
        build = farm.wait_ended(farm.submit({"source": source, "timeout": 1, "steps": ["true"]}))
    assert build.outcome is Outcome.TIMED_OUT
    assert (build.detail or "").endswith("build")
    assert farm.attempts(build.id) == [(1, Outcome.TIMED_OUT)]


def test_f15_settings_of_the_server_stand_in_for_what_a_definition_leaves_out(sqlite_farm: Farm) -> None:
    farm = sqlite_farm
    farm.agent(no_output_timeout_s=1)
    build = farm.wait_ended(farm.submit("sleep 600"))
    assert build.outcome is Outcome.TIMED_OUT
    assert (build.detail or "").endswith("no-output")


def test_always_step_runs_after_a_time_out_of_its_neighbour(sqlite_farm: Farm) -> None:
    farm = sqlite_farm
    farm.agent()
    document = {
        "steps": [{"run": "sleep 600", "timeout": 1}, {"run": "echo cleaned", "always": True}, "echo no"]
    }
    build = farm.wait_ended(farm.submit(document))
    assert build.outcome is Outcome.TIMED_OUT
    assert farm.text(build.id, step=2) == "cleaned\n"
    assert [item.step for item in steps.list_steps(farm.store, build.id, 1)] == [1, 2]


def test_program_that_is_not_there_is_the_users_failure_and_says_so(sqlite_farm: Farm) -> None:
    farm = sqlite_farm
    farm.agent()
    build = farm.wait_ended(farm.submit({"steps": [{"run": "x", "shell": "/no/such/shell -c"}]}))
    assert build.outcome is Outcome.FAILED
    assert "/no/such/shell" in (build.detail or "")
    assert farm.attempts(build.id) == [(1, Outcome.FAILED)]
