"""What a definition says is what happens: order, environment, places, terminals, what is kept and what is left out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from agent.build.artifacts import Artifacts
from agent.config import Settings
from agent.model.outcome import Outcome
from agent.store import steps
from tests.acceptance.farm import Farm
from tests.acceptance.repository import commit, make_repository
from tests.services import wait_until


def run(farm: Farm, document: dict[str, Any]) -> str:
    """Run a build that has to pass; return its id."""
    build = farm.wait_ended(farm.submit(document))
    assert build.outcome is Outcome.PASSED, f"{build.detail}\n{farm.text(build.id)}"
    return build.id


# Order.


def test_pipelines_run_beside_each_other_after_the_setup(farm: Farm, tmp_path: Path) -> None:
    farm.agent(slots=1)
    # Each waits for the other: one after the other they would never end.
    meet = "touch {mine}; until [ -e {other} ]; do sleep 0.02; done; echo met"
    document = {
        "setup": ["touch set-up"],
        "pipelines": {
            "zebra": {"steps": ["test -e set-up", meet.format(mine=tmp_path / "z", other=tmp_path / "a")]},
            "ant": {"steps": ["test -e set-up", meet.format(mine=tmp_path / "a", other=tmp_path / "z")]},
        },
        "timeout": 20,
    }
    build_id = run(farm, document)
    listed = steps.list_steps(farm.store, build_id, 1)
    # Numbered in the order of the definition, on both databases.
    assert [(item.step, item.pipeline) for item in listed] == [
        (1, "setup"),
        (2, "zebra"),
        (3, "zebra"),
        (4, "ant"),
        (5, "ant"),
    ]
    assert farm.text(build_id, step=3) == farm.text(build_id, step=5) == "met\n"


def test_failed_pipeline_does_not_stop_its_neighbour_and_decides(sqlite_farm: Farm) -> None:
    farm = sqlite_farm
    farm.agent(slots=1)
    document = {
        "pipelines": {
            "bad": {"steps": ["exit 4", "echo never", {"run": "echo cleaned", "always": True}]},
            "good": {"steps": ["sleep 0.5", "echo done"]},
        }
    }
    build = farm.wait_ended(farm.submit(document))
    assert build.outcome is Outcome.FAILED
    assert build.detail == "step 1 (exit 4): exit code 4"
    assert farm.text(build.id) == "cleaned\ndone\n"


def test_failed_setup_ends_the_build_before_its_pipelines(sqlite_farm: Farm) -> None:
    farm = sqlite_farm
    farm.agent(slots=1)
    build = farm.wait_ended(farm.submit({"setup": ["false"], "steps": ["echo never"]}))
    assert build.outcome is Outcome.FAILED
    assert [item.step for item in steps.list_steps(farm.store, build.id, 1)] == [1]


def test_error_inside_a_line_of_commands_fails_the_step(sqlite_farm: Farm) -> None:
    farm = sqlite_farm
    farm.agent(slots=1)
    build = farm.wait_ended(farm.submit("false | cat\necho never"))
    assert build.outcome is Outcome.FAILED
    assert farm.text(build.id) == ""


# Environment.


def test_environment_is_what_is_allowed_and_what_the_definition_says(
    sqlite_farm: Farm, monkeypatch: pytest.MonkeyPatch
) -> None:
    farm = sqlite_farm
    # In the agent's own environment, beside the credentials in its settings.
    for name, value in {
        "AWS_SECRET_ACCESS_KEY": "leak-1",
        "PGPASSWORD": "leak-2",
        "TZ": "Europe/Oslo",
    }.items():
        monkeypatch.setenv(name, value)
    farm.agent(slots=1, librato_user="ann", librato_token="leak-3", librato_url="http://127.0.0.1:9/")
    document = {
        "project": "shop",
        "env": {"A": "build", "B": "build", "C": "build"},
        "pipelines": {
            "main": {
                "env": {"B": "pipeline", "C": "pipeline"},
                "steps": [{"run": "env -0", "env": {"C": "step", "TWO": "a\nb"}, "name": "show"}],
            }
        },
    }
    build_id = run(farm, document)
    output = farm.output(build_id).decode()
    variables = dict(entry.split("=", 1) for entry in output.split("\0") if entry)
    assert not [
        name for name in variables if name.startswith(("BUILD_AGENT", "AWS", "PG", "PYTEST", "PYTHON"))
    ]
    assert "leak" not in output
    assert farm.redis_url not in output
    assert farm.database_url not in output
    expected = {
        "A": "build",
        "B": "pipeline",
        "C": "step",
        "TWO": "a\nb",
        "TZ": "Europe/Oslo",
        "CI": "true",
        "BUILD_ID": build_id,
        "BUILD_ATTEMPT": "1",
        "BUILD_PROJECT": "shop",
        "BUILD_QUEUE": "builds",
        "BUILD_PIPELINE": "main",
        "BUILD_STEP": "1",
        "BUILD_STEP_NAME": "show",
        "BUILD_SERVER": "server-1",
        "TERM": "dumb",
        "PWD": variables["BUILD_WORKSPACE"],
    }
    assert {name: variables.get(name) for name in expected} == expected
    # What a step needs, what marks its processes, and what bash sets itself; nothing else.
    assert variables.keys() - expected.keys() - set(Settings().environment_allow) <= {
        *("PATH", "LANG", "LC_ALL", "HOME", "TMPDIR", "USER", "LOGNAME", "SHELL", "SHLVL", "_", "OLDPWD"),
        *("BUILD_WORKSPACE", "BUILD_SECRETS_FILE", "BUILD_STEP_TOKEN", "BUILD_LIFE_TOKEN"),
    }


def test_step_has_a_home_and_a_place_for_temporary_files_of_the_builds_own(sqlite_farm: Farm) -> None:
    farm = sqlite_farm
    agent = farm.agent(slots=1)
    build_id = run(farm, {"steps": ['touch "$HOME/x" "$TMPDIR/y"; echo "$HOME"; mktemp; pwd; umask']})
    lines = farm.text(build_id).splitlines()
    workspaces = agent.state_dir / "workspaces"
    assert all(Path(line).is_relative_to(workspaces) for line in lines[:3])
    assert lines[3] == "0022"
    wait_until(lambda: [path.name for path in workspaces.iterdir() if not path.name.startswith(".")] == [])


def test_pty_gives_a_terminal_and_without_it_there_is_none(sqlite_farm: Farm) -> None:
    farm = sqlite_farm
    farm.agent(slots=1)
    test = "test -t 1 && echo terminal $TERM || echo none $TERM"
    build_id = run(farm, {"steps": [{"run": test, "pty": True}, test]})
    assert farm.text(build_id).split("\n") == ["terminal xterm-256color\r", "none dumb", ""]


def test_workdir_and_shell_are_the_nearest_that_is_said(sqlite_farm: Farm) -> None:
    farm = sqlite_farm
    farm.agent(slots=1)
    show = 'echo "${PWD#$BUILD_WORKSPACE}"'
    document = {
        "setup": ["mkdir -p one/two"],
        "pipelines": {
            "main": {
                "workdir": "one",
                "steps": [
                    show,
                    {"run": show, "workdir": "one/two"},
                    {"run": "import os; print(os.getcwd()[-4:])", "shell": ["python3", "-c"]},
                ],
            }
        },
    }
    build_id = run(farm, document)
    assert farm.text(build_id).splitlines() == ["/one", "/one/two", "/one"]


def test_workdir_that_is_not_there_is_the_users_failure(sqlite_farm: Farm) -> None:
    farm = sqlite_farm
    farm.agent(slots=1)
    build = farm.wait_ended(farm.submit({"steps": [{"run": "true", "workdir": "no/such"}]}))
    assert build.outcome is Outcome.FAILED
    assert "no/such" in (build.detail or "")


# What is kept.


def test_artifacts_are_kept_of_passed_and_failed_builds(sqlite_farm: Farm) -> None:
    farm = sqlite_farm
    agent = farm.agent(slots=1)
    for number, last in enumerate(("true", "false")):
        write = f"mkdir -p out/deep; echo {number} > out/a.txt; echo b > out/deep/b.txt; echo c > c.txt"
        document = {"steps": [write, last], "artifacts": [{"path": "out/**"}]}
        build = farm.wait_ended(farm.submit(document))
        assert build.outcome is (Outcome.PASSED if last == "true" else Outcome.FAILED)
        kept = Artifacts(agent.state_dir / "artifacts").records(build.id, 1)
        assert {item.name: Path(item.path).read_text() for item in kept} == {
            "out/a.txt": f"{number}\n",
            "out/deep/b.txt": "b\n",
        }


def test_cache_of_a_passed_build_is_found_by_the_next_of_its_project_only(sqlite_farm: Farm) -> None:
    farm = sqlite_farm
    farm.agent(slots=1)
    cache = {"key": "deps-{{ hash('lock') }}", "paths": ["deps"], "restore_keys": ["deps-"]}
    look = "[ -e deps/file ] && echo found $(cat deps/file) || echo nothing; mkdir -p deps; echo $RANDOM > deps/file"

    def build(project: str, *extra: str) -> str:
        document = {"project": project, "caches": [cache], "steps": [look, *extra]}
        ended = farm.wait_ended(farm.submit(document))
        return farm.text(ended.id, step=1)

    assert build("shop", "false") == "nothing\n"
    assert build("shop") == "nothing\n"
    assert build("shop").startswith("found")
    assert build("other") == "nothing\n"


# Source.


def test_commit_that_asks_for_it_is_skipped(farm: Farm, tmp_path: Path) -> None:
    farm.agent(slots=1, source_roots=tmp_path)
    folder = make_repository(tmp_path / "repository", {"a": "b"}, message="Typo [Skip CI]\n\nNothing else")
    build = farm.wait_ended(farm.submit({"source": {"directory": str(folder)}, "steps": ["echo never"]}))
    assert (build.outcome, build.message) == (Outcome.SKIPPED, "Typo [Skip CI]\n\nNothing else")
    assert [item.step for item in steps.list_steps(farm.store, build.id, 1)] == [0]


def test_repositorys_own_file_says_what_to_run_and_the_job_wins(farm: Farm, tmp_path: Path) -> None:
    farm.agent(slots=1, source_roots=tmp_path)
    text = 'env: {A: file, B: file}\nsteps:\n  - echo "$A $B $BUILD_BRANCH"; cat a\n'
    folder = make_repository(tmp_path / "repository", {"a": "first\n", "build.yml": text}, branch="topic")
    source = {"directory": str(folder)}
    build_id = run(farm, {"source": source, "env": {"A": "job"}})
    assert farm.text(build_id, step=1) == "job file topic\nfirst\n"
    head = commit(folder, {"a": "second\n"}, message="Second")
    build_id = run(farm, {"source": source})
    assert farm.text(build_id, step=1) == "file file topic\nsecond\n"
    build = farm.build(build_id)
    assert (build.commit, build.message) == (head, "Second")


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"a": "b"}, "no such file"),
        ({"build.yml": "steps: [{rum: x}]"}, "rum"),
        ({"build.yml": "secrets: [TOKEN]\nsteps: ['true']"}, "does not grant"),
        ({"build.yml": "version: 2\nsteps: ['true']"}, "newer"),
        ({"build.yml": "a: &a [*a]"}, "build.yml"),
    ],
    ids=["missing", "malformed", "secret not granted", "later version", "hostile"],
)
def test_repositorys_file_that_can_not_be_had_refuses_the_build(
    sqlite_farm: Farm, tmp_path: Path, files: dict[str, str], words: str
) -> None:
    farm = sqlite_farm
    farm.agent(slots=1, source_roots=tmp_path)
    folder = make_repository(tmp_path / "repository", files)
    build = farm.wait_ended(farm.submit({"source": {"directory": str(folder)}}))
    assert build.outcome is Outcome.REFUSED
    assert words in (build.detail or "")
    assert farm.attempts(build.id) == [(1, Outcome.REFUSED)]


def test_source_outside_the_roots_of_the_server_is_the_users_failure(
    sqlite_farm: Farm, tmp_path: Path
) -> None:
    farm = sqlite_farm
    (tmp_path / "allowed").mkdir()
    farm.agent(slots=1, source_roots=tmp_path / "allowed")
    folder = make_repository(tmp_path / "elsewhere", {"a": "b"})
    (tmp_path / "allowed" / "link").symlink_to(folder)
    for path in (folder, tmp_path / "allowed" / "link"):
        build = farm.wait_ended(farm.submit({"source": {"directory": str(path)}, "steps": ["echo never"]}))
        assert build.outcome in (Outcome.FAILED, Outcome.REFUSED), path
        assert "never" not in farm.text(build.id)


# Attempts.


@pytest.mark.slow
def test_infrastructure_failure_is_tried_as_often_as_allowed_and_no_oftener(sqlite_farm: Farm) -> None:
    farm = sqlite_farm
    farm.agent(slots=1, git_timeout_s=5)
    source = {"git": "git://127.0.0.1:9/repository", "branch": "main"}
    build = farm.wait_ended(farm.submit({"source": source, "steps": ["true"], "max_attempts": 2}), 60)
    assert build.outcome is Outcome.INFRASTRUCTURE
    assert farm.attempts(build.id) == [(1, Outcome.INFRASTRUCTURE), (2, Outcome.INFRASTRUCTURE)]
