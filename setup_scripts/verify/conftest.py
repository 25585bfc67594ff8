"""What the checks share: the profile, commands as the build user, folders of that user, and the JSON report."""

from __future__ import annotations

import datetime
import json
import os
import pwd
import re
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

USER = "build-agent"
_SCRIPTS = Path(__file__).resolve().parents[1]
# How each tool says its version; those that are not there are left out of the report.
VERSIONS = {
    "build-agent": "build-agent --version",
    "python": "python3 --version",
    "nodejs": "node --version",
    "npm": "npm --version",
    "ruby": "ruby --version",
    "go": "go version",
    "java": "javac -version",
    "maven": "mvn --version",
    "gcc": "gcc -dumpfullversion",
    "clang": "clang --version",
    "php": "php --version",
    "git": "git --version",
    "cmake": "cmake --version",
    "make": "make --version",
    "postgresql": "postgres --version",
    "mariadb": "mariadbd --version",
    "redis": "redis-server --version",
    "podman": "podman --version",
    "chromium": "chromium --version",
    "systemd": "systemctl --version",
    "kernel": "uname -r",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the words that run.sh passes."""
    parser.addoption("--profile", default="minimal", choices=("minimal", "full"))
    parser.addoption("--report-json")


def pytest_configure(config: pytest.Config) -> None:
    """Begin the report."""
    config.addinivalue_line("markers", "full: a check of what the profile full alone has")
    if config.getoption("--report-json"):
        config.pluginmanager.register(_Report(config), "server-report")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what the profile does not have: a check that is skipped would look like one that failed to run."""
    if config.getoption("--profile") != "full":
        out = [item for item in items if item.get_closest_marker("full")]
        config.hook.pytest_deselected(items=out)
        items[:] = [item for item in items if not item.get_closest_marker("full")]


class _Report:
    """Collects the outcomes and writes report.json at the end."""

    def __init__(self, config: pytest.Config) -> None:
        self._path = Path(config.getoption("--report-json"))
        self._profile = config.getoption("--profile")
        self._began = time.monotonic()
        self._started_at = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        self._checks: dict[str, dict[str, Any]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        name = report.nodeid.removesuffix(".py").replace(".py::", "::")
        check = self._checks.setdefault(
            name, {"name": name, "outcome": "passed", "duration_s": 0.0, "message": ""}
        )
        check["duration_s"] = round(check["duration_s"] + report.duration, 3)
        if report.outcome != "passed" and check["outcome"] != "failed":
            check |= {"outcome": report.outcome, "message": _message(report)}

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._checks[report.nodeid] = {
                "name": report.nodeid, "outcome": "failed", "duration_s": 0.0, "message": str(report.longrepr)
            }  # fmt: skip

    def pytest_sessionfinish(self) -> None:
        outcomes = [check["outcome"] for check in self._checks.values()]
        document = {
            "profile": self._profile,
            "started_at": self._started_at,
            "duration_s": round(time.monotonic() - self._began, 3),
            "passed": outcomes.count("passed"),
            "failed": outcomes.count("failed"),
            "checks": list(self._checks.values()),
            "versions": tool_versions(),
            "packages": _packages(),
        }
        new = self._path.with_suffix(".new")
        new.write_text(json.dumps(document, indent=1) + "\n")
        new.replace(self._path)


def _message(report: pytest.TestReport) -> str:
    if isinstance(report.longrepr, tuple):
        return str(report.longrepr[2])
    crash = getattr(report.longrepr, "reprcrash", None)
    return str(crash.message if crash is not None else report.longrepr)


def tool_versions() -> dict[str, str]:
    """Return the version of every tool that is there."""
    found = {}
    for name, command in VERSIONS.items():
        words = shlex.split(command)
        if shutil.which(words[0]) is None:
            continue
        done = subprocess.run(
            words, capture_output=True, text=True, check=False, timeout=60, stdin=subprocess.DEVNULL
        )
        match = re.search(r"\d+(\.\d+)+[\w.+~-]*", done.stdout or done.stderr) or re.search(
            r"\d+", done.stdout
        )
        found[name] = match.group() if match else (done.stdout or done.stderr).strip()
    return found


def _packages() -> dict[str, str]:
    form = "${db:Status-Status} ${Package} ${Version}\n"
    done = subprocess.run(
        ["dpkg-query", "--show", "--showformat", form], capture_output=True, text=True, check=True
    )
    lines = (line.split() for line in done.stdout.splitlines())
    return {words[1]: words[2] for words in lines if words[0] == "installed"}


def run(*words: str, timeout: float = 120, **options: Any) -> str:
    """Run a command as root and return what it printed; a failure says what it was and what it said."""
    done = subprocess.run(
        words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
        timeout=timeout, stdin=subprocess.DEVNULL, **options
    )  # fmt: skip
    if done.returncode != 0:
        pytest.fail(
            f"{shlex.join(words)} ended with {done.returncode}:\n{done.stdout[-3000:]}", pytrace=False
        )
    return str(done.stdout)


def as_user_words(words: Sequence[str], home: Path) -> list[str]:
    """Return the command that runs as the build user, in an environment as clean as a step's."""
    environment = [
        f"HOME={home}", f"USER={USER}", f"LOGNAME={USER}", "PATH=/usr/local/bin:/usr/bin:/bin", "LANG=C.UTF-8",
        f"TMPDIR={home}",
    ]  # fmt: skip
    return ["runuser", "-u", USER, "--", "env", "-i", f"--chdir={home}", *environment, *words]


def wait_until(check: Callable[[], object], what: str, timeout_s: float = 60) -> None:
    """Wait for what has to become true."""
    deadline = time.monotonic() + timeout_s
    while not check():
        if time.monotonic() > deadline:
            pytest.fail(f"{what} within {timeout_s:g} s: it did not", pytrace=False)
        time.sleep(0.1)


def pins() -> dict[str, str]:
    """Return the versions of pins.sh."""
    return dict(re.findall(r"^([A-Z_]+)=(\S+)$", (_SCRIPTS / "pins.sh").read_text(), re.MULTILINE))


@pytest.fixture
def home() -> Iterator[Path]:
    """A folder of the build user's own, gone afterwards."""
    path = Path(tempfile.mkdtemp(prefix="verify-", dir="/var/tmp"))
    try:
        user = pwd.getpwnam(USER)
        os.chown(path, user.pw_uid, user.pw_gid)
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def as_user(home: Path) -> Callable[..., str]:
    """Runs a command as the build user in its folder and returns what it printed."""

    def call(*words: str, timeout: float = 120) -> str:
        return run(*as_user_words(words, home), timeout=timeout)

    return call
