"""The runner of the set-up scripts, on scripts of the test's own: order, stamps, records, kills, failures."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
NAMES = ("10-base", "20-users", "35-tools", "50-agent", "60-hardening", "70-hygiene")


class Bench:
    """A folder with the runner and scripts that only write down that they ran."""

    def __init__(self, folder: Path) -> None:
        self.scripts = folder / "setup_scripts"
        self.state = folder / "state"
        self.ran = folder / "ran"
        self.scripts.mkdir()
        for name in ("setup.sh", "lib.sh", "pins.sh", "profiles.sh"):
            shutil.copy(ROOT / "setup_scripts" / name, self.scripts)
        for name in NAMES:
            self.script(name, f'echo "{name} $*" >>{self.ran}; echo working')

    def script(self, name: str, body: str) -> None:
        path = self.scripts / f"{name}.sh"
        path.write_text(f"#!/usr/bin/env bash\nset -euo pipefail\n{body}\n")
        path.chmod(0o755)

    def start(self, *words: str) -> subprocess.Popen[str]:
        argv = [str(self.scripts / "setup.sh"), *(words or ("--profile", "minimal"))]
        environ = os.environ | {"SETUP_STATE": str(self.state), "SETUP_ORPHANS_S": "20"}
        return subprocess.Popen(
            argv,
            env=environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, *words: str) -> tuple[int, str]:
        process = self.start(*words)
        output, _ = process.communicate(timeout=60)
        return process.returncode, output

    def ran_names(self) -> list[str]:
        lines = self.ran.read_text().splitlines() if self.ran.exists() else []
        return [line.split()[0] for line in lines]

    def progress(self) -> list[tuple[str, str]]:
        lines = [json.loads(line) for line in (self.state / "progress").read_text().splitlines()]
        assert all(set(line) == {"at", "script", "state", "seconds"} for line in lines)
        return [(line["script"], line["state"]) for line in lines]

    def is_unfinished(self) -> bool:
        return (self.state / "unfinished").exists()


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def wait_until(check: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not check():
        assert time.monotonic() < deadline, "it did not come to be so within 20 s"
        time.sleep(0.02)


def test_scripts_run_in_order_and_the_second_time_none(bench: Bench) -> None:
    assert bench.run()[0] == 0
    assert bench.ran_names() == list(NAMES)
    assert not bench.is_unfinished()
    assert (bench.state / "result").read_text() == "0\n"
    assert bench.progress() == [(name, state) for name in NAMES for state in ("started", "done")]
    assert bench.run()[0] == 0
    assert bench.ran_names() == list(NAMES)
    assert bench.progress()[-len(NAMES) :] == [(name, "skipped") for name in NAMES]


def test_unfinished_is_there_while_scripts_run(bench: Bench) -> None:
    bench.script("10-base", f"test -e {bench.state}/unfinished; test ! -e {bench.state}/result")
    assert bench.run()[0] == 0


def test_changed_script_and_changed_pins_run_again(bench: Bench) -> None:
    bench.run()
    bench.script("35-tools", f"echo 35-tools >>{bench.ran}; echo changed")
    bench.run()
    assert bench.ran_names() == [*NAMES, "35-tools"]
    with (bench.scripts / "pins.sh").open("a") as pins:
        pins.write("NEW_VERSION=1\n")
    bench.run()
    assert bench.ran_names() == [*NAMES, "35-tools", *NAMES]


def test_another_package_of_the_agent_is_installed_and_nothing_else(bench: Bench, tmp_path: Path) -> None:
    deb = tmp_path / "build-agent_1_all.deb"
    deb.write_text("one")
    bench.run("--profile", "minimal", "--deb", str(deb))
    assert f"50-agent --deb {deb}" in bench.ran.read_text().splitlines()
    deb.write_text("two")
    bench.run("--profile", "minimal", "--deb", str(deb))
    assert bench.ran_names() == [*NAMES, "50-agent"]


def test_failure_is_named_and_a_run_after_mending_goes_on(bench: Bench) -> None:
    bench.script("35-tools", 'echo "no such luck" >"$SETUP_REASON"; exit 3')
    code, output = bench.run()
    assert code == 1
    assert output.splitlines()[-1].endswith("setup: 35-tools failed: no such luck")
    assert "35-tools failed: no such luck" in (bench.state / "unfinished").read_text()
    assert (bench.state / "result").read_text() == "1\n"
    assert bench.progress()[-1] == ("35-tools", "failed")
    bench.script("35-tools", f"echo 35-tools >>{bench.ran}")
    assert bench.run()[0] == 0
    assert bench.ran_names() == list(NAMES)
    assert not bench.is_unfinished()


def test_each_line_has_its_time_and_script_and_comes_at_once(bench: Bench, tmp_path: Path) -> None:
    go_on = tmp_path / "go-on"
    bench.script("10-base", f"echo first; until [[ -e {go_on} ]]; do sleep 0.05; done; printf 'no line end'")
    process = bench.start()
    assert process.stdout is not None
    lines = iter(process.stdout.readline, "")
    line = next(line for line in lines if "10-base: " in line)
    go_on.touch()
    assert line.split(" ", 1)[1] == "10-base: first\n"
    assert line[4] == "-"
    assert any(line.endswith("10-base: no line end\n") for line in lines)
    assert process.wait(20) == 0
    process.stdout.close()


@pytest.mark.parametrize("whole", [True, False], ids=["all", "runner"])
def test_kill_in_the_middle_leaves_it_unfinished_and_it_is_resumed(
    bench: Bench, tmp_path: Path, whole: bool
) -> None:
    """With the runner alone killed, what it had started is waited for: never two at work."""
    begun = tmp_path / "begun"
    body = f"touch {begun}; [[ -e {begun}.again ]] || {{ touch {begun}.again; sleep 3; }}; echo 35-tools >>{bench.ran}"
    bench.script("35-tools", body)
    process = bench.start()
    wait_until(begun.exists)
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=False)
    groups = {os.getpgid(int(child)) for child in children.stdout.split()}
    process.kill()
    if whole:
        for group in groups:
            os.killpg(group, signal.SIGKILL)
    process.wait()
    assert process.stdout is not None
    process.stdout.close()
    assert bench.is_unfinished()
    assert not (bench.state / "result").exists()
    code, output = bench.run()
    assert code == 0, output
    assert not bench.is_unfinished()
    assert ("waiting for them" in output) == (not whole)
    assert bench.ran_names().count("10-base") == 1


def test_second_run_beside_the_first_is_refused(bench: Bench, tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    bench.script("10-base", f"touch {begun}; sleep 30")
    process = bench.start()
    wait_until(begun.exists)
    code, output = bench.run()
    assert code == 75
    assert f"process {process.pid}" in output
    process.terminate()
    output = process.communicate(timeout=20)[0]
    assert process.returncode == 143
    assert output.splitlines()[-1].endswith("it was stopped by a signal")
    assert bench.is_unfinished()
    assert (bench.state / "result").read_text() == "143\n"


def test_one_script_alone(bench: Bench) -> None:
    code, output = bench.run("--profile", "minimal", "--only", "20")
    assert (code, bench.ran_names()) == (0, ["20-users"])
    assert "to do: 10-base" in output
    assert bench.is_unfinished()
    listed = bench.run("--profile", "minimal", "--list")[1].splitlines()
    assert [line.split(maxsplit=1)[1] for line in listed[:2]] == ["to do", "done"]


@pytest.mark.parametrize(
    "words", [["--profile", "none"], ["--only", "10"], ["--profile", "minimal", "--only", "99"], ["--deb"]]
)
def test_wrong_words_change_nothing(bench: Bench, words: list[str]) -> None:
    assert bench.run(*words)[0] == 64
    assert not bench.state.exists()


def test_every_script_of_a_profile_is_there() -> None:
    shown = subprocess.run(
        ["bash", "-c", '. setup_scripts/profiles.sh; echo "${SCRIPTS[*]}"'],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    numbered = {path.stem for path in (ROOT / "setup_scripts").glob("[0-9]*.sh")}
    assert set(shown) == numbered
