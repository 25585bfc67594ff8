"""Servers for every test, and the rule that nothing is skipped unseen.

Each pytest worker starts its own Redis and PostgreSQL when the first test asks for them; they end with it.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[1]
# In importlib mode `pytest` adds nothing to the path, `python -m pytest` does; tests.services is for both.
if str(_ROOT) not in sys.path:
    sys.path.insert(0, str(_ROOT))

import redis  # noqa: E402 - after the path

from agent.queue.private import PrivateRedis  # noqa: E402
from tests.services import PostgresServer, postgres_programs  # noqa: E402


@dataclass(frozen=True)
class AllowedSkip:
    """Why a test may be skipped where CI runs, and whether that holds here and now."""

    cause: str
    holds: Callable[[], bool]


# A skip's reason begins with one of these, or it fails in CI; so does one whose cause does not hold.
ALLOWED_SKIPS: Mapping[str, AllowedSkip] = {
    "needs root": AllowedSkip(
        "other users, cgroups, mounts and network namespaces are root's to make",
        lambda: os.geteuid() != 0,
    ),
    "needs a booted machine": AllowedSkip(
        "booting a root filesystem takes root, and systemd-nspawn and mmdebstrap, which make test installs",
        lambda: (
            os.geteuid() != 0 or shutil.which("systemd-nspawn") is None or shutil.which("mmdebstrap") is None
        ),
    ),
    "needs chromium": AllowedSkip(
        "a browser is large, and on other systems than Debian has other names",
        lambda: shutil.which("chromium") is None and shutil.which("chromium-browser") is None,
    ),
    "needs systemd-id128": AllowedSkip(
        "a container seldom holds systemd, and installing it for one comparison would be much",
        lambda: shutil.which("systemd-id128") is None,
    ),
    "needs a writable cgroup v2": AllowedSkip(
        "a container seldom delegates its cgroup tree",
        lambda: (
            not os.access("/sys/fs/cgroup/cgroup.subtree_control", os.W_OK) or _is_read_only("/sys/fs/cgroup")
        ),
    ),
}

_UNEXPECTED = "unexpected skip in CI: "


def pytest_configure() -> None:
    """Make the run deaf to the caller's own configuration."""
    for name in list(os.environ):
        if name.startswith(("BUILD_AGENT_", "PG", "GIT_")):
            del os.environ[name]
    os.environ |= {
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_NOSYSTEM": "1",
        # A fresh machine has no git identity, and a commit needs one.
        "GIT_AUTHOR_NAME": "Test",
        "GIT_AUTHOR_EMAIL": "test@example.com",
        "GIT_COMMITTER_NAME": "Test",
        "GIT_COMMITTER_EMAIL": "test@example.com",
    }


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what the markers `root` and `machine` say can't run here."""
    if item.get_closest_marker("root") and ALLOWED_SKIPS["needs root"].holds():
        pytest.skip("needs root")
    if item.get_closest_marker("machine") and ALLOWED_SKIPS["needs a booted machine"].holds():
        pytest.skip("needs a booted machine")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """In CI, turn a skip that is not on the list into a failure. An expected failure is no skip."""
    report = yield
    if report.outcome == "skipped" and not hasattr(report, "wasxfail"):
        complaint = skip_complaint(_skip_reason(report.longrepr), os.environ)
        if complaint is not None:
            report.outcome = "failed"
            report.longrepr = complaint
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """The same for a whole module that skips itself, by importorskip for one."""
    report = yield
    if report.outcome == "skipped":
        complaint = skip_complaint(_skip_reason(report.longrepr), os.environ)
        if complaint is not None:
            report.outcome = "failed"
            report.longrepr = complaint
    return report


def skip_complaint(reason: str, environ: Mapping[str, str]) -> str | None:
    """Return what is wrong with skipping for `reason`; `None` outside CI or when it is allowed."""
    if environ.get("CI", "").lower() not in {"true", "1"}:
        return None
    for words, allowed in ALLOWED_SKIPS.items():
        if reason.startswith(words):
            if allowed.holds():
                return None
            return f"{_UNEXPECTED}{reason!r}: allowed because {allowed.cause}, but that is not so here"
    listed = ", ".join(repr(words) for words in ALLOWED_SKIPS)
    return f"{_UNEXPECTED}{reason!r} is not on the list in tests/conftest.py ({listed})"


def _skip_reason(longrepr: object) -> str:
    """Return the words of a skip: pytest keeps (path, line, "Skipped: words")."""
    text = str(longrepr[2]) if isinstance(longrepr, tuple) else str(longrepr)
    return text.removeprefix("Skipped: ")


def _is_read_only(path: str) -> bool:
    return bool(os.statvfs(path).f_flag & os.ST_RDONLY)


@pytest.fixture(scope="session")
def _worker_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateRedis]:
    if shutil.which("redis-server") is None:
        pytest.skip("needs redis-server: make test installs it")
    with PrivateRedis(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def redis_server(_worker_redis: PrivateRedis) -> PrivateRedis:
    """The worker's Redis, running and empty whatever the test before did to it."""
    _worker_redis.resume()
    _worker_redis.start()
    with redis.Redis.from_url(_worker_redis.url) as client:
        client.flushall()
        client.script_flush()
    return _worker_redis


@pytest.fixture
def redis_url(redis_server: PrivateRedis) -> str:
    """The address of an empty Redis."""
    return redis_server.url


@pytest.fixture
def private_redis(tmp_path: Path) -> Iterator[PrivateRedis]:
    """A Redis for this test alone, to stop, kill, freeze and wipe."""
    if shutil.which("redis-server") is None:
        pytest.skip("needs redis-server: make test installs it")
    with PrivateRedis(tmp_path / "redis") as server:
        yield server


@pytest.fixture(scope="session")
def _worker_postgres() -> Iterator[PostgresServer]:
    if postgres_programs() is None:
        pytest.skip("needs PostgreSQL's server programs: make test installs them")
    with PostgresServer() as server:
        yield server


@pytest.fixture
def postgres_server(_worker_postgres: PostgresServer) -> PostgresServer:
    """The worker's PostgreSQL, running whatever the test before did to it; free to stop, kill and freeze."""
    _worker_postgres.resume()
    return _worker_postgres.start()


@pytest.fixture
def postgres_url(postgres_server: PostgresServer) -> Iterator[str]:
    """The address of a PostgreSQL database of the test's own, with the project's schema."""
    url = postgres_server.create_database()
    yield url
    postgres_server.resume()
    postgres_server.start()
    postgres_server.drop_database(url)


@pytest.fixture(scope="session")
def _sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from agent.store.engine import Store
    from agent.store.migrate import upgrade

    path = tmp_path_factory.mktemp("sqlite") / "template.db"
    store = Store(f"sqlite:///{path}")
    upgrade(store)
    # The last connection's end moves the write-ahead log into the file, which is then whole by itself.
    store.dispose()
    return path


@pytest.fixture
def sqlite_url(_sqlite_template: Path, tmp_path: Path) -> str:
    """The address of an SQLite database of the test's own, with the project's schema."""
    path = tmp_path / "build-agent.db"
    shutil.copyfile(_sqlite_template, path)
    return f"sqlite:///{path}"


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    """The address of a migrated database: each test that asks runs on both kinds."""
    name = {"sqlite": "sqlite_url", "postgresql": "postgres_url"}[request.param]
    url: str = request.getfixturevalue(name)
    return url
