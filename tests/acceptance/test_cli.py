"""The command line on real farms, as people and scripts use it."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.model.build import BuildState
from agent.model.outcome import Outcome
from agent.model.server import ServerState
from agent.store import audit, builds, servers
from tests.acceptance.farm import AgentProcess, Farm
from tests.acceptance.terminal import COLUMNS, Cli, Running, json_lines
from tests.services import PostgresServer, free_port, wait_until

# Waits for a file, so that a test decides when a step ends; its own limit ends it if a test does not.
WAIT = "for i in $(seq 1 600); do test -e {gate} && exit {code}; sleep 0.1; done; exit 9"

pytestmark = pytest.mark.slow


@pytest.fixture
def cli(sqlite_farm: Farm, tmp_path: Path) -> Iterator[Cli]:
    """The command line, and a farm with one agent."""
    sqlite_farm.agent("web-1")
    with Cli(sqlite_farm, tmp_path) as cli:
        yield cli


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """A file whose making ends a step that waits for it."""
    return tmp_path / "gate"


def waiting(gate: Path, *, before: str = "echo begun", code: int = 0) -> dict[str, object]:
    return {"project": "test", "steps": [f"{before}; {WAIT.format(gate=gate, code=code)}"]}


def write(folder: Path, document: object) -> str:
    (folder / "given.json").write_text(json.dumps(document))
    return "given.json"


# Submit.


@pytest.mark.parametrize(("command", "code"), [("echo hello; true", 0), ("echo hello; exit 3", 1)])
def test_exit_code_of_a_followed_submit_tells_how_the_build_ended(cli: Cli, command: str, code: int) -> None:
    done = cli.run("submit", write(cli.folder, {"project": "x", "steps": [command]}), "--follow")
    assert done.returncode == code
    build_id, *lines = done.stdout.splitlines()
    assert len(build_id) == 36
    assert "hello" in lines
    assert lines[-1].startswith(f"--- build {build_id[:8]} {'failed' if code else 'passed'}")
    assert "\x1b" not in done.stdout


def test_definition_on_standard_input_is_submitted_with_variables_and_project(
    cli: Cli, sqlite_farm: Farm
) -> None:
    document = {"steps": [{"run": "echo $A $B $C", "env": {"A": "step"}}], "env": {"B": "file"}}
    words = ("submit", "-", "--project", "p/q", "--env", "A=x=y", "--env", "C=z")
    done = cli.run(*words, stdin=json.dumps(document))
    assert done.returncode == 0, done.stderr
    build = sqlite_farm.wait_ended(done.stdout.strip())
    assert build.project == "p/q"
    assert "@" in build.created_by
    assert sqlite_farm.text(build.id) == "x=y file z\n"


def test_checkout_is_submitted_by_the_bare_command(sqlite_farm: Farm, tmp_path: Path) -> None:
    checkout = tmp_path / "web"
    checkout.mkdir()
    git = ["git", "-c", "init.defaultBranch=main"]
    (checkout / "build.yml").write_text("steps: ['echo built $BUILD_BRANCH']\nqueue: special\n")
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "First"]):
        subprocess.run([*git, *words], cwd=checkout, check=True)
    sqlite_farm.agent("web-1", queues="special", source_roots=str(tmp_path))
    cli = Cli(sqlite_farm, checkout)
    done = cli.run("submit", "--follow")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "built main" in done.stdout.splitlines()
    assert "no remote" in done.stderr
    build = sqlite_farm.build(done.stdout.splitlines()[0])
    assert (build.project, build.queue) == ("web", "special")
    again = cli.run("submit", "--repo", ".", "--commit", (build.commit or "")[:7], "--json")
    assert json.loads(again.stdout)["commit"] == build.commit


def test_submit_without_redis_is_on_record_and_says_who_queues_it(
    cli: Cli, sqlite_farm: Farm, tmp_path: Path
) -> None:
    away = Cli(sqlite_farm, tmp_path, redis_url=f"redis://127.0.0.1:{free_port()}/0")
    done = away.run("submit", write(tmp_path, {"project": "x", "steps": ["true"]}))
    assert done.returncode == 0
    assert "a server queues it when Redis is back" in done.stderr
    # One line, no log record beside it.
    assert len(done.stderr.splitlines()) == 1
    assert sqlite_farm.wait_ended(done.stdout.strip()).outcome is Outcome.PASSED


def test_queue_that_nobody_serves_is_pointed_out(cli: Cli) -> None:
    done = cli.run("submit", write(cli.folder, {"project": "x", "steps": ["true"]}), "--queue", "nobody")
    assert done.returncode == 0
    assert "no server that is up takes builds from queue nobody" in done.stderr


# Logs.


def test_ctrl_c_ends_the_following_and_not_the_build(cli: Cli, sqlite_farm: Farm, gate: Path) -> None:
    build_id = sqlite_farm.submit(waiting(gate))
    following = cli.start("logs", "--follow", build_id[:8])
    following.wait_for("begun\n")
    assert following.interrupt() == 130
    assert f"build {build_id[:8]} goes on" in following.err
    assert f"build-agent cancel {build_id[:8]}" in following.err
    assert "Traceback" not in following.err
    assert sqlite_farm.build(build_id).state is BuildState.RUNNING
    gate.touch()
    assert sqlite_farm.wait_ended(build_id).outcome is Outcome.PASSED


def test_bytes_come_back_as_they_were_printed(cli: Cli, sqlite_farm: Farm) -> None:
    script = r"import sys; sys.stdout.buffer.write(bytes(range(256)) * 3 + b'\x1b[31mno end')"
    build_id = sqlite_farm.submit({"steps": [f'python3 -c "{script}"']})
    sqlite_farm.wait_ended(build_id)
    raw = subprocess.run(
        cli.argv("logs", build_id, "--step", "1", "--raw"),
        capture_output=True,
        env=cli.environment,
        check=True,
    )
    assert raw.stdout == bytes(range(256)) * 3 + b"\x1b[31mno end"
    plain = cli.run("logs", build_id, "--step", "1").stdout
    assert "\x1b" not in plain
    assert plain.endswith("no end")


def test_reader_that_leaves_is_no_fault(cli: Cli, sqlite_farm: Farm) -> None:
    build_id = sqlite_farm.submit({"steps": ["seq 1 400000"]})
    sqlite_farm.wait_ended(build_id)
    command = " ".join(cli.argv("logs", build_id))
    piped = subprocess.run(
        ["bash", "-c", f"{command} | head -2; echo ${{PIPESTATUS[0]}}"],
        capture_output=True,
        text=True,
        check=True,
        env=cli.environment,
    )
    assert piped.stdout.splitlines()[1:] == ["1", "0"]
    assert piped.stderr == ""


def test_following_ends_when_its_reader_has_gone_though_nothing_is_printed(
    cli: Cli, sqlite_farm: Farm, gate: Path
) -> None:
    build_id = sqlite_farm.submit(waiting(gate))
    process = subprocess.Popen(
        cli.argv("logs", "--follow", "--step", "1", build_id),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=cli.environment,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == b"begun\n"
    process.stdout.close()
    assert process.wait(15) == 0
    assert process.stderr.read() == b""
    process.stderr.close()
    gate.touch()
    assert sqlite_farm.wait_ended(build_id).outcome is Outcome.PASSED


def test_following_survives_a_database_that_goes_away(
    postgres_farm: Farm, postgres_server: PostgresServer, tmp_path: Path
) -> None:
    postgres_farm.agent("web-1", lease_s=30, heartbeat_s=1)
    build_id = postgres_farm.submit({"steps": ["for i in $(seq 1 60); do echo line $i; sleep 0.1; done"]})
    with Cli(postgres_farm, tmp_path) as cli:
        _assert_follows_over_an_absence(cli, postgres_server, build_id)


def _assert_follows_over_an_absence(cli: Cli, postgres_server: PostgresServer, build_id: str) -> None:
    following = cli.start("logs", "--follow", "--step", "1", build_id)
    following.wait_for("line 5\n")
    postgres_server.stop()
    following.wait_for("waiting for it to come back")
    postgres_server.start()
    assert following.wait() == 0
    assert following.out.splitlines() == [f"line {number}" for number in range(1, 61)]
    assert "the database is back after" in following.err
    assert len(following.err.splitlines()) == 2


def test_database_that_was_never_there_ends_the_command_at_once(sqlite_farm: Farm, tmp_path: Path) -> None:
    cli = Cli(sqlite_farm, tmp_path, database_url=f"postgresql://x@127.0.0.1:{free_port()}/x")
    done = cli.run("logs", "--follow", "12345678")
    assert done.returncode == 69
    assert "database" in done.stderr


def test_build_that_lost_its_server_is_followed_into_the_next_attempt(
    sqlite_farm: Farm, tmp_path: Path, gate: Path
) -> None:
    first = sqlite_farm.agent("web-1")
    build_id = sqlite_farm.submit(waiting(gate, before="echo on $BUILD_ATTEMPT"))
    with Cli(sqlite_farm, tmp_path) as cli:
        following = cli.start("logs", "--follow", build_id)
        _assert_follows_into_the_next_attempt(following, sqlite_farm, first, gate)


def _assert_follows_into_the_next_attempt(
    following: Running, sqlite_farm: Farm, first: AgentProcess, gate: Path
) -> None:
    following.wait_for("on 1\n")
    first.kill()
    sqlite_farm.agent("web-2")
    following.wait_for("attempt 2 of build")
    gate.touch()
    assert following.wait() == 0
    assert "attempt 1 was lost with its server" in following.out
    assert following.out.index("queued again") < following.out.index("attempt 2 of build")


def test_lines_of_pipelines_beside_each_other_are_whole_and_named(cli: Cli, sqlite_farm: Farm) -> None:
    loop = "for i in $(seq 1 40); do printf '{0} '; sleep 0.02; echo $i; done"
    document = {"pipelines": {name: {"steps": [loop.format(name)]} for name in ("left", "right")}}
    document_path = write(cli.folder, {"project": "x", **document})
    lines = cli.run("submit", document_path, "--follow").stdout.splitlines()
    shown = [line for line in lines if " | " in line]
    assert len(shown) > 60
    for line in shown:
        label, _, text = line.partition(" | ")
        # The rest of a line that had begun before the other pipeline did has a label and no name.
        assert label.partition("/")[0] == text.split()[0] or text.isdigit()
    whole = "\n".join(line for line in lines if not line.startswith("---"))
    for name in ("left", "right"):
        numbers = re.findall(rf"{name} (?:\n(?:.*\n)*?{name}\S* .*\| )?(\d+)$", whole, re.MULTILINE)
        assert [int(number) for number in numbers] == list(range(1, 41))


# On a terminal.


def test_status_line_stands_below_the_output_and_garbles_none(
    cli: Cli, sqlite_farm: Farm, gate: Path
) -> None:
    red = r"printf '\033[31mred\n'; printf 'half '; sleep 0.5; printf 'line\033[0m\n'"
    path = write(cli.folder, waiting(gate, before=red))
    terminal = cli.on_terminal("submit", path, "--follow")
    terminal.wait_for("0:02  main / ")
    assert terminal.lines[-1].startswith("0:02  main / printf")
    assert len(terminal.lines[-1]) < COLUMNS
    gate.touch()
    assert terminal.wait() == 0
    build_id, *lines = [line for line in terminal.lines if line]
    assert lines[0].startswith("--- 1 main / printf")
    assert lines[1:3] == ["red", "half line"]
    assert lines[3].endswith("passed (" + lines[3].rpartition("(")[2])
    assert lines[-1].startswith(f"--- build {build_id[:8]} passed")
    assert len(lines) == 5


def test_ctrl_c_on_a_terminal_leaves_it_in_order(cli: Cli, sqlite_farm: Farm, gate: Path) -> None:
    build_id = sqlite_farm.submit(waiting(gate))
    terminal = cli.on_terminal("logs", "--follow", build_id)
    terminal.wait_for("0:01  main / ")
    terminal.type(b"\x03")
    assert terminal.wait() == 130
    assert f"build {build_id[:8]} goes on" in terminal.lines[-2]
    assert not [line for line in terminal.lines if line.startswith("0:0")]
    assert sqlite_farm.build(build_id).state is BuildState.RUNNING
    gate.touch()
    sqlite_farm.wait_ended(build_id)


def test_tables_fit_the_terminal_and_name_builds_shortly(cli: Cli, sqlite_farm: Farm) -> None:
    build_id = sqlite_farm.submit({"steps": ["true"]}, by=f"{'long' * 40}@host")
    sqlite_farm.wait_ended(build_id)
    for words in (("builds",), ("show", build_id), ("servers",)):
        terminal = cli.on_terminal(*words)
        assert terminal.wait() == 0
        assert terminal.lines
    terminal = cli.on_terminal("builds")
    terminal.wait()
    assert max(map(len, terminal.lines)) <= COLUMNS
    assert terminal.lines[1].split()[:2] == [build_id[:8], "passed"]


# What is on record.


def test_every_answer_for_programs_is_json(cli: Cli, sqlite_farm: Farm, gate: Path) -> None:
    path = write(cli.folder, {"project": "x", "steps": ["echo one; printf two; exit 2"]})
    submitted = json.loads(cli.run("submit", path, "--json").stdout)
    build_id = submitted["id"]
    assert submitted["is_queued"] is True
    sqlite_farm.wait_ended(build_id)
    assert [it["id"] for it in json.loads(cli.run("builds", "--json", "--outcome", "failed").stdout)] == [
        build_id
    ]
    shown = json.loads(cli.run("show", build_id, "--json").stdout)
    assert shown["attempts"][0]["steps"][0]["account"]["lines_stored"] == 2
    events = json_lines(cli.run("logs", build_id, "--json").stdout)
    assert [it["event"] for it in events] == [
        "attempt.begun",
        "step.begun",
        *["output"] * 2,
        "step.ended",
        "attempt.ended",
        "build.ended",
    ]
    assert [(it["line"], it["text"]) for it in events if it["event"] == "output"] == [(1, "one"), (2, "two")]
    followed = cli.run("retry", build_id, "--follow", "--json")
    assert followed.returncode == 1
    assert json_lines(followed.stdout)[-1]["outcome"] == "failed"
    assert json.loads(cli.run("servers", "--json").stdout)[0]["status"]["busy"] == 0
    running = sqlite_farm.submit(waiting(gate))
    sqlite_farm.wait_running(running)
    assert json.loads(cli.run("cancel", running, "--json").stdout) == {"id": running, "result": "requested"}
    assert sqlite_farm.wait_ended(running).outcome is Outcome.CANCELLED
    for kind in ("quarantine", "resume"):
        answer = json.loads(cli.run(kind, "web-1", "--wait", "--json").stdout)
        assert (answer["order"]["kind"], answer["server"]["wanted"]) == (kind, kind)


def test_beginnings_of_ids_and_names_are_enough_while_they_tell(cli: Cli, sqlite_farm: Farm) -> None:
    for build_id in ("aaaa-1", "aaaa-2", "bbbb-1"):
        sqlite_farm.submit({"steps": ["true"]}, build_id=build_id)
        sqlite_farm.wait_ended(build_id)
    assert "bbbb-1" in cli.run("show", "bbbb").stdout
    several = cli.run("show", "aaaa")
    assert several.returncode == 73
    assert "aaaa-1, aaaa-2" in several.stderr
    unknown = cli.run("show", "cccc")
    assert unknown.returncode == 66
    assert "build-agent builds" in unknown.stderr
    server = servers.get(sqlite_farm.store, "web-1")
    for word in ("web", "web-1", server.id[:6]):
        assert "server web-1" in cli.run("resume", word).stdout


def test_show_tells_attempts_steps_and_reasons_in_words(cli: Cli, sqlite_farm: Farm) -> None:
    build_id = sqlite_farm.submit({"steps": [{"name": "silent", "run": "sleep 60", "no_output_timeout": 1}]})
    done = cli.run("show", build_id, "--wait")
    assert done.returncode == 1
    assert "timed out: step 1 (silent): it printed nothing for too long" in done.stdout
    assert "on web-1, slot" in done.stdout
    assert "1 of 3 allowed" in done.stdout


def test_cancel_and_retry_are_on_record_with_who_and_why(cli: Cli, sqlite_farm: Farm, gate: Path) -> None:
    build_id = sqlite_farm.submit(waiting(gate))
    sqlite_farm.wait_running(build_id, printed="begun")
    assert cli.run("retry", build_id).returncode == 73
    assert cli.run("cancel", build_id[:8], "--why", "a typo").returncode == 0
    assert sqlite_farm.wait_ended(build_id).outcome is Outcome.CANCELLED
    assert cli.run("cancel", build_id).returncode == 73
    gate.touch()
    again = cli.run("retry", build_id, "--follow")
    assert again.returncode == 0, again.stderr
    assert "attempt 2 of build" in again.stdout
    passed = cli.run("retry", build_id)
    assert passed.returncode == 73
    assert "--force" in passed.stderr
    entries = audit.list_entries(sqlite_farm.store, subject_kind="build", subject_id=build_id)
    assert [it.action for it in entries] == ["build.retry", "build.cancel"]
    assert entries[1].detail["why"] == "a typo"
    assert {it.actor.partition("@")[2] for it in entries} == {os.uname().nodename}


# Orders.


def test_drain_waits_for_what_runs_and_says_for_what(cli: Cli, sqlite_farm: Farm, gate: Path) -> None:
    build_id = sqlite_farm.submit(waiting(gate))
    sqlite_farm.wait_running(build_id, printed="begun")
    draining = cli.start("drain", "web-1", "--note", "new image", "--deadline", "10min", "--wait")
    draining.wait_for(f"1 build to finish: {build_id[:8]}")
    # Said with the first heartbeat after the order was taken.
    draining.wait_for("given back in ")
    assert draining.process.poll() is None
    assert re.search(r"given back in (9 min|10 min 00)", draining.out)
    gate.touch()
    assert draining.wait() == 0
    assert "server web-1 is drained: drain asked by" in draining.out
    assert sqlite_farm.build(build_id).outcome is Outcome.PASSED
    entry = audit.list_entries(sqlite_farm.store, subject_kind="server")[0]
    assert (entry.action, entry.detail["note"]) == ("server.drain", "new image")
    assert "drained" in cli.run("servers").stdout
    assert cli.run("resume", "web-1", "--wait").returncode == 0
    assert servers.get(sqlite_farm.store, "web-1").state is ServerState.ACCEPTING


def test_ctrl_c_ends_the_waiting_and_not_the_order(cli: Cli, sqlite_farm: Farm, gate: Path) -> None:
    build_id = sqlite_farm.submit(waiting(gate))
    sqlite_farm.wait_running(build_id, printed="begun")
    draining = cli.start("drain", "web-1", "--wait")
    draining.wait_for("to finish")
    assert draining.interrupt() == 130
    assert "the order stands" in draining.err
    assert "build-agent resume web-1" in draining.err
    assert servers.get(sqlite_farm.store, "web-1").state is ServerState.DRAINING
    assert builds.get(sqlite_farm.store, build_id).state is BuildState.RUNNING
    gate.touch()
    sqlite_farm.wait_ended(build_id)


def test_waiting_ends_when_another_order_comes(cli: Cli, sqlite_farm: Farm, gate: Path) -> None:
    sqlite_farm.wait_running(sqlite_farm.submit(waiting(gate)), printed="begun")
    draining = cli.start("drain", "web-1", "--wait")
    draining.wait_for("to finish")
    assert cli.run("resume", "web-1").returncode == 0
    assert draining.wait() == 73
    assert "resume asked by" in draining.err
    gate.touch()


def test_terminated_server_is_gone_and_listed_only_on_request(cli: Cli, sqlite_farm: Farm) -> None:
    done = cli.run("terminate", "web-1", "--wait")
    assert done.returncode == 0, done.stderr
    wait_until(lambda: servers.get(sqlite_farm.store, "web-1").state is ServerState.TERMINATED)
    listed = cli.run("servers")
    assert "web-1" not in listed.stdout
    assert "1 more has left" in listed.stderr
    assert "terminated" in cli.run("servers", "--all").stdout
    refused = cli.run("drain", "web-1", "--wait")
    assert refused.returncode == 73
    assert "nothing to wait for" in refused.stderr
