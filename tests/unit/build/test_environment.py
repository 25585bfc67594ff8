"""A step's environment: nothing of the agent's that is not on the list, and the standard variables."""

from __future__ import annotations

import os
import pwd
from collections.abc import Mapping
from typing import Any

import pytest

from agent.build import environment
from agent.build.attempt import AttemptContext
from agent.build.secrets import SecretsFile
from agent.model.plan import PipelineClass, PlannedPipeline, PlannedStep
from tests.unit.build.conftest import MakeContext


def planned(**fields: Any) -> PlannedStep:
    known: dict[str, Any] = {
        "step": 3,
        "name": "unit tests",
        "run": "make",
        "timeout_s": None,
        "no_output_timeout_s": None,
        "always": False,
        "pty": False,
        "env": {},
        "workdir": ".",
        "shell": None,
    }
    return PlannedStep(**known | fields)


def pipeline(step: PlannedStep, *, place: str | None = None) -> PlannedPipeline:
    kind = PipelineClass.BUILD if place is None else PipelineClass.DEPLOY
    return PlannedPipeline(
        name="test",
        pipeline_class=kind,
        environment=place,
        retry_safe=False,
        env={},
        workdir=".",
        steps=(step,),
    )


def of(
    context: AttemptContext,
    secrets: Mapping[str, str] | None = None,
    place: str | None = None,
    **fields: Any,
) -> dict[str, str]:
    step = planned(**fields)
    return environment.of_step(context, pipeline(step, place=place), step, secrets or {})


@pytest.fixture
def _agents_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a service manager or an operator's shell may have left around the agent."""
    for name, value in {
        "BUILD_AGENT_DATABASE_URL": "postgresql://agent:hunter2@db/builds",
        "AWS_SECRET_ACCESS_KEY": "hunter2",
        "NOTIFY_SOCKET": "/run/systemd/notify",
        "CREDENTIALS_DIRECTORY": "/run/credentials",
        "PYTHONPATH": "/opt/agent",
        "LD_PRELOAD": "x.so",
        "LANG": "de_DE.UTF-8",
        "HTTP_PROXY": "http://proxy:3128",
        "PATH": "/opt/tools/bin:/usr/bin:/bin",
    }.items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("_agents_own")
def test_nothing_of_the_agents_passes_but_what_the_list_names(make_context: MakeContext) -> None:
    found = of(make_context())
    assert "hunter2" not in "".join(found.values())
    assert not {"NOTIFY_SOCKET", "CREDENTIALS_DIRECTORY", "PYTHONPATH", "LD_PRELOAD"} & found.keys()
    assert found["LANG"] == "de_DE.UTF-8"
    assert found["HTTP_PROXY"] == "http://proxy:3128"
    assert found["PATH"] == "/opt/tools/bin:/usr/bin:/bin"


@pytest.mark.usefixtures("_agents_own")
def test_short_list_lets_less_in(make_context: MakeContext) -> None:
    found = of(make_context(environment_allow=("PYTHONPATH", "NOT_SET_ANYWHERE")))
    assert found["PYTHONPATH"] == "/opt/agent"
    assert found["PATH"] == environment.DEFAULT_PATH
    assert found["LANG"] == "C.UTF-8"
    assert not {"HTTP_PROXY", "NOT_SET_ANYWHERE"} & found.keys()


def test_standard_variables_say_what_is_built_and_where(make_context: MakeContext) -> None:
    context = make_context(claim={"branch": "main", "commit": "a" * 40}, environment_allow=())
    user = pwd.getpwuid(os.getuid()).pw_name
    assert of(context) == {
        "PATH": environment.DEFAULT_PATH,
        "LANG": "C.UTF-8",
        "HOME": str(context.files.home),
        "TMPDIR": str(context.files.tmp),
        "USER": user,
        "LOGNAME": user,
        "SHELL": "/bin/bash",
        "CI": "true",
        "BUILD_ID": "build-1",
        "BUILD_ATTEMPT": "2",
        "BUILD_PROJECT": "shop",
        "BUILD_QUEUE": "builds",
        "BUILD_SERVER": "server-one",
        "BUILD_WORKSPACE": str(context.files.source),
        "BUILD_COMMIT": "a" * 40,
        "BUILD_BRANCH": "main",
        "BUILD_PIPELINE": "test",
        "BUILD_STEP": "3",
        "BUILD_STEP_NAME": "unit tests",
        "TERM": "dumb",
    }


def test_what_is_not_known_is_not_set(make_context: MakeContext) -> None:
    assert (
        not {"BUILD_COMMIT", "BUILD_BRANCH", "BUILD_ENVIRONMENT", "BUILD_SECRETS_FILE"}
        & of(make_context()).keys()
    )


def test_home_and_temporary_files_are_of_the_attempt(make_context: MakeContext) -> None:
    context = make_context()
    found = of(context)
    for name in ("HOME", "TMPDIR", "BUILD_WORKSPACE"):
        assert found[name].startswith(str(context.files.path))


def test_nearest_word_wins(make_context: MakeContext) -> None:
    found = of(make_context(), {"TOKEN": "secret", "HOME": "/secret"}, env={"TOKEN": "step", "TERM": "vt100"})
    assert (found["TOKEN"], found["HOME"], found["TERM"]) == ("step", "/secret", "vt100")


def test_terminal_is_one_where_there_is_one(make_context: MakeContext) -> None:
    assert of(make_context(), pty=True)["TERM"] == "xterm-256color"


def test_deploy_knows_its_environment(make_context: MakeContext) -> None:
    assert of(make_context(), place="production")["BUILD_ENVIRONMENT"] == "production"


def test_secrets_file_is_named(make_context: MakeContext) -> None:
    context = make_context()
    context.secrets_file = SecretsFile(context.files.path / "secrets", context.redactor)
    assert of(context)["BUILD_SECRETS_FILE"] == str(context.files.path / "secrets")


def test_user_without_a_name_is_a_number(make_context: MakeContext, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 4_000_000_000)
    assert of(make_context())["USER"] == "4000000000"
