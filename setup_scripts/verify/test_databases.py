"""Each database is started by the build user on a folder of its own, written, read and stopped."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import as_user_words, wait_until


@pytest.mark.full
def test_postgresql_is_started_written_read_and_stopped(home: Path, as_user: Callable[..., str]) -> None:
    as_user("initdb", "-D", "data", "--auth=trust", "--no-sync")
    as_user("pg_ctl", "-D", "data", "-w", "-l", "log", "-o", f"-c listen_addresses='' -k {home}", "start")
    try:
        sql = "create table t (n int); insert into t values (41), (42); select max(n) from t"
        printed = as_user("psql", "-h", str(home), "-d", "postgres", "-qAtc", sql)
    finally:
        as_user("pg_ctl", "-D", "data", "-w", "-m", "fast", "stop")
    assert printed.strip() == "42"


@pytest.mark.full
def test_mariadb_is_started_written_read_and_stopped(home: Path, as_user: Callable[..., str]) -> None:
    as_user(
        "mariadb-install-db",
        "--no-defaults",
        f"--datadir={home}/data",
        "--auth-root-authentication-method=normal",
    )
    words = ["mariadbd", "--no-defaults", f"--datadir={home}/data", f"--socket={home}/s", "--skip-networking"]
    client = ("mariadb", "--no-defaults", f"--socket={home}/s", "-u", "root", "-N", "-B", "-e")
    with (home / "log").open("wb") as log:
        server = subprocess.Popen(
            as_user_words(words, home), stdout=log, stderr=log, stdin=subprocess.DEVNULL
        )
    try:
        wait_until(lambda: (home / "s").exists() or server.poll() is not None, "mariadbd opens its socket")
        assert server.poll() is None, f"mariadbd ended: {(home / 'log').read_text()[-2000:]}"
        sql = "create database d; create table d.t (n int); insert into d.t values (41), (42); select max(n) from d.t"
        printed = as_user(*client, sql)
        as_user(*client, "shutdown")
        server.wait(60)
    finally:
        server.kill()
        server.wait()
    assert printed.strip() == "42"


def test_redis_is_started_written_read_and_stopped(home: Path, as_user: Callable[..., str]) -> None:
    as_user(
        "redis-server", "--port", "0", "--unixsocket", f"{home}/s", "--dir", str(home), "--daemonize", "yes"
    )
    wait_until((home / "s").exists, "redis-server opens its socket")
    try:
        as_user("redis-cli", "-s", f"{home}/s", "set", "n", "42")
        printed = as_user("redis-cli", "-s", f"{home}/s", "get", "n")
    finally:
        as_user("redis-cli", "-s", f"{home}/s", "shutdown", "nosave")
    assert printed.strip() == "42"


def test_no_database_starts_at_boot() -> None:
    units = ("redis-server", "postgresql", "mariadb")
    states = {
        unit: subprocess.run(
            ["systemctl", "is-enabled", unit], capture_output=True, text=True, check=False
        ).stdout
        for unit in units
    }
    on = [unit for unit, state in states.items() if state.strip() == "enabled"]
    assert not on, (
        f"{on} would start at boot and take ports that builds want: systemctl disable {' '.join(on)}"
    )
