"""What holds for every command: its help, its place in docs/cli.md, its exit codes, its completion."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from agent import errors
from agent.cli import COMMANDS, cli

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs/cli.md").read_text()
# These print no records: a daemon, what units run, a show, a script, a login, and what is JSON or TOML already.
WITHOUT_JSON = {
    "console",
    "run",
    "fleet run",
    "first-boot",
    "unfit",
    "demo",
    "completion",
    "schema",
    "config template",
    "dev ssh",
}
# Click's own for a wrong command line, ours for a build that did not pass and for Ctrl-C.
CODES_OF_NO_ERROR_CLASS = {0, 1, 2, 130}


def commands() -> Iterator[tuple[str, click.Command]]:
    """Yield each command that does something, by the words that call it."""
    context = click.Context(cli)
    for name in COMMANDS:
        command = cli.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            if command.invoke_without_command:
                yield name, command
            yield from ((f"{name} {inner}", it) for inner, it in command.commands.items())
        else:
            yield name, command


ALL = dict(commands())


def section(name: str) -> str:
    """Return what docs/cli.md says of a command; groups have one section."""
    found = re.search(rf"^### {name.split(maxsplit=1)[0]}\n(.*?)(?=^##|\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert found, f"docs/cli.md has no section ### {name}"
    return found[1]


@pytest.mark.parametrize("name", COMMANDS)
def test_line_in_the_list_is_the_first_of_the_commands_own_help(name: str) -> None:
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    assert (command.help or "").partition("\n")[0] == COMMANDS[name][1]


@pytest.mark.parametrize("name", ALL)
def test_command_and_each_option_is_documented(name: str) -> None:
    text = section(name)
    assert f"`build-agent {name}" in text
    options = [word for it in ALL[name].params for word in it.opts if isinstance(it, click.Option)]
    missing = [word for word in options if not re.search(rf"`{re.escape(word)}\b", text)]
    assert not missing, f"docs/cli.md, section {name}: these options are not there"


@pytest.mark.parametrize("name", ALL)
def test_document_names_no_option_that_is_not_there(name: str) -> None:
    known = {
        word
        for other, it in ALL.items()
        if other.split()[0] == name.split(maxsplit=1)[0]
        for o in it.params
        for word in o.opts
    }
    # In tables and lists, where a command's own options are; prose may speak of another command's.
    rows = re.findall(r"^\| `(--[a-z-]+)", section(name), re.MULTILINE)
    assert set(rows) <= known


@pytest.mark.parametrize("name", sorted(set(ALL) - WITHOUT_JSON))
def test_command_prints_json_for_programs(name: str) -> None:
    assert any("--json" in it.opts for it in ALL[name].params)


@pytest.mark.parametrize("name", ALL)
def test_option_says_what_it_does(name: str) -> None:
    silent = [it.name for it in ALL[name].params if isinstance(it, click.Option) and not it.help]
    assert not silent


def test_exit_codes_are_those_of_the_document() -> None:
    table = {int(code) for code in re.findall(r"^\| (\d+) \|", PAGE, re.MULTILINE)}
    classes = {
        it.exit_code
        for it in vars(errors).values()
        if isinstance(it, type) and issubclass(it, errors.AgentError)
    }
    assert table == classes | CODES_OF_NO_ERROR_CLASS


def run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command line as a process."""
    return subprocess.run(
        [sys.executable, "-m", "agent.cli", *words],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
    )


def test_exit_code_follows_from_the_fault(tmp_path: Path, sqlite_url: str) -> None:
    wrong = tmp_path / "wrong.yml"
    wrong.write_text("project: x\nsteps: [1")
    database = {"BUILD_AGENT_DATABASE_URL": sqlite_url}
    codes = {
        ("--help",): 0,
        ("no-such-command",): 2,
        ("builds", "--limit", "none"): 2,
        ("submit", str(wrong)): 65,
        ("show", "abcdef"): 66,
        ("drain", "nobody"): 66,
        ("--set", "slots=none", "builds"): 78,
    }
    found = {words: run(*words, **database).returncode for words in codes}
    assert found == codes
    assert run("builds", BUILD_AGENT_DATABASE_URL="postgresql://x@127.0.0.1:1/x").returncode == 69
    assert run("builds", BUILD_AGENT_DATABASE_URL=f"sqlite:///{tmp_path}/empty.db").returncode == 78


def run_broken(folder: Path, callback: str) -> subprocess.CompletedProcess[str]:
    """Run `build-agent builds` with other insides."""
    broken = folder / "broken.py"
    broken.write_text(
        "import agent.cli.builds, sys\n"
        f"{callback}\n"
        "agent.cli.builds.builds.callback = callback\n"
        "sys.argv = ['build-agent', 'builds']\n"
        "agent.cli.main()\n"
    )
    return subprocess.run(
        [sys.executable, str(broken)], capture_output=True, text=True, check=False, cwd=ROOT
    )


def test_fault_of_our_own_is_not_told_as_a_failed_build(tmp_path: Path) -> None:
    done = run_broken(tmp_path, "def callback(**_): 1 / 0")
    assert done.returncode == 70
    assert "ZeroDivisionError" in done.stderr
    assert "fault of build-agent itself" in done.stderr


@pytest.mark.parametrize(
    "raised",
    [
        "raise",
        "raise ValueError('closed')",
        "raise ValueError('closed') from error",
        "raise agent.errors.StoreUnavailable('closed') from error",
    ],
)
def test_ctrl_c_that_a_library_made_another_error_of_is_still_ctrl_c(tmp_path: Path, raised: str) -> None:
    done = run_broken(
        tmp_path,
        "def callback(**_):\n"
        "    try:\n"
        "        raise KeyboardInterrupt\n"
        "    except BaseException as error:\n"
        f"        {raised}",
    )
    assert done.returncode == 130
    # click begins a new line below the ^C that a terminal shows.
    assert done.stderr.lstrip("\n") == "interrupted\n"


def test_misspelt_command_names_the_nearest() -> None:
    done = run("cancle", "x")
    assert "'cancel'" in done.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_script_calls_us_by_name(shell: str) -> None:
    script = run("completion", shell)
    assert script.returncode == 0
    assert "_BUILD_AGENT_COMPLETE" in script.stdout
    assert f"{shell}_complete" in script.stdout


def test_completion_offers_commands_options_and_nothing_without_a_database() -> None:
    def complete(words: str, count: int) -> list[str]:
        done = run(
            _BUILD_AGENT_COMPLETE="bash_complete",
            COMP_WORDS=words,
            COMP_CWORD=str(count),
            BUILD_AGENT_DATABASE_URL="postgresql://x@127.0.0.1:1/x",
        )
        assert done.stderr == ""
        return [line.partition(",")[2] for line in done.stdout.splitlines() if line]

    assert complete("build-agent re", 1) == ["retry", "resume"]
    assert complete("build-agent logs --f", 2) == ["--follow"]
    assert complete("build-agent logs 12", 2) == []
