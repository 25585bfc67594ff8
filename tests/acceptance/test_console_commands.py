"""The console's commands: people and tokens on record, and the console as a process."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from agent.store import audit, sessions, users
from agent.store.engine import Store
from tests.acceptance.farm import Farm
from tests.acceptance.terminal import Cli
from tests.services import free_port, wait_until

PASSWORD = "correct horse battery"

pytestmark = pytest.mark.slow


@pytest.fixture
def cli(sqlite_farm: Farm, tmp_path: Path) -> Iterator[Cli]:
    """The command line of an empty farm, which serves its console on a port of its own."""
    with Cli(sqlite_farm, tmp_path, console_address=f"127.0.0.1:{free_port()}") as made:
        yield made


@pytest.fixture
def store(sqlite_farm: Farm) -> Store:
    """The database that the command line works on."""
    return sqlite_farm.store


def add(cli: Cli, name: str, role: str, password: str = PASSWORD) -> subprocess.CompletedProcess[str]:
    """Add somebody, the password on standard input."""
    return cli.run("users", "add", name, "--role", role, stdin=f"{password}\n")


def test_people_are_added_listed_changed_and_removed(cli: Cli, store: Store) -> None:
    assert "build-agent users add NAME --role admin" in cli.run("users", "list").stderr
    assert add(cli, "ann", "admin").stdout == "ann may sign in as admin\n"
    assert add(cli, "bob", "viewer").returncode == 0
    told = cli.run("users", "list").stdout.splitlines()
    assert [line.split()[:2] for line in told[1:]] == [["ann", "admin"], ["bob", "viewer"]]
    found = json.loads(cli.run("users", "list", "--json").stdout)
    assert (found[0]["has_password"], "password_hash" in found[0]) == (True, False)
    assert cli.run("users", "role", "bob", "operator").stdout == "bob is operator now\n"
    assert cli.run("users", "disable", "bob").returncode == 0
    assert cli.run("users", "enable", "bob").returncode == 0
    last = cli.run("users", "disable", "ann")
    assert (last.returncode, "last admin" in last.stderr) == (73, True)
    assert cli.run("users", "remove", "bob").returncode == 2
    assert json.loads(cli.run("users", "remove", "bob", "--yes", "--json").stdout) == {"removed": "bob"}
    done = [it.action for it in audit.list_entries(store, subject_id="bob")][::-1]
    assert done == ["user.add", "user.role", "user.disable", "user.enable", "user.remove"]


@pytest.mark.parametrize(
    ("name", "password", "code", "told"),
    [
        ("ann", PASSWORD, 73, "there is a user 'ann' already"),
        ("bob", "short", 78, "10 to 1024 characters"),
        ("b b", PASSWORD, 2, "expected letters"),
    ],
)
def test_person_who_can_not_be_is_refused(
    cli: Cli, store: Store, name: str, password: str, code: int, told: str
) -> None:
    assert add(cli, "ann", "admin").returncode == 0
    done = add(cli, name, "viewer", password)
    assert (done.returncode, told in done.stderr) == (code, True), done.stderr
    assert [it.name for it in users.list_users(store)] == ["ann"]


def test_password_is_asked_twice_on_a_terminal_and_not_shown(cli: Cli, store: Store) -> None:
    terminal = cli.on_terminal("users", "add", "ann", "--role", "admin")
    terminal.wait_for("Password of ann: ")
    terminal.type(PASSWORD.encode() + b"\n")
    terminal.wait_for("Repeat for confirmation: ")
    terminal.type(PASSWORD.encode() + b"\n")
    assert terminal.wait() == 0
    assert PASSWORD not in terminal.sent.decode()
    assert users.get(store, "ann").has_password


def test_token_is_shown_once_and_revoked(cli: Cli, store: Store) -> None:
    add(cli, "ann", "admin")
    made = cli.run("tokens", "create", "ci", "--user", "ann", "--scope", "builds", "--days", "7")
    assert re.fullmatch(r"bat_[A-Za-z0-9_-]{43}\n", made.stdout)
    [found] = json.loads(cli.run("tokens", "list", "--json").stdout)
    assert (found["name"], found["scopes"], found["user_name"]) == ("ci", ["builds"], "ann")
    assert made.stdout.strip() not in json.dumps(found)
    assert cli.run("tokens", "revoke", found["id"]).returncode == 0
    assert cli.run("tokens", "revoke", found["id"]).returncode == 73
    assert "revoked" in cli.run("tokens", "list").stdout
    assert cli.run("tokens", "create", "ci", "--user", "eve").returncode == 66


def test_console_is_served_until_it_is_told_to_stop(cli: Cli, store: Store) -> None:
    add(cli, "ann", "admin")
    address = cli.environment["BUILD_AGENT_CONSOLE_ADDRESS"]
    console = cli.start("console")
    wait_until(lambda: "console.started" in console.err, 30, lambda: console.err)
    with requests.Session() as browser:
        answer = browser.get(f"http://{address}/", timeout=10)
        assert answer.url == f"http://{address}/sign-in?next=%2F"
        form = {"name": "ann", "password": PASSWORD, "next": "/servers"}
        answer = browser.post(f"http://{address}/sign-in", data=form, timeout=10)
        assert (answer.status_code, answer.url) == (200, f"http://{address}/servers")
        assert "No server has registered yet" in answer.text
    assert len(sessions.list_sessions(store)) == 1
    # Who holds a connection open does not hold up the end.
    host, _, port = address.partition(":")
    with socket.create_connection((host, int(port))):
        console.process.send_signal(signal.SIGTERM)
        assert console.wait() == 0, console.err


def test_console_whose_address_is_taken_says_so(cli: Cli) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        cli.environment["BUILD_AGENT_CONSOLE_ADDRESS"] = f"127.0.0.1:{taken.getsockname()[1]}"
        done = cli.run("console")
    assert done.returncode == 70
    assert "can't listen on" in done.stderr
    assert "console_address" in done.stderr
