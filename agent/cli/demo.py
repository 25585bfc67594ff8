"""`build-agent demo`: a whole build farm on this machine, from the first build to a drain, and nothing left behind.

It does what a user would do, with the same commands, and prints each of them: what is seen here can be typed.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

from agent import clock
from agent.cli.context import Context
from agent.errors import AgentFailed, NotFound

if TYPE_CHECKING:
    from agent.queue.private import PrivateRedis

# An agent is up in a second; a machine that compiles beside it may need longer.
READY_S = 60.0
SERVER = "demo-server"


@click.command()
@click.option("--slots", type=click.IntRange(1, 16), default=2, show_default=True, help="Builds at once.")
@click.option(
    "--source",
    type=click.Path(path_type=Path, exists=True, file_okay=False, resolve_path=True),
    help="Repository to build; the one around this folder.",
)
@click.option("--keep", is_flag=True, help="Leave it running at the end, until Ctrl-C.")
@click.pass_obj
def demo(_obj: Context, slots: int, source: Path | None, keep: bool) -> int:
    """Show a whole build farm on this machine, with nothing left behind.

    A private Redis and an SQLite database are started in a folder of their own, and an agent on them. It builds
    and deploys a repository, a build fails, one is cancelled, the server is drained and resumed.
    """
    repository = _find_repository(source)
    try:
        with _interruptible(), _Farm(slots, repository) as farm:
            _Tour(farm, repository).run()
            if keep:
                farm.stay()
    except KeyboardInterrupt:
        click.echo("\ninterrupted; everything the demo had started is gone", err=True)
        return 130
    click.echo("\nEverything the demo had started is gone again.")
    return 0


def _find_repository(source: Path | None) -> Path:
    start = source or Path.cwd()
    for folder in (start, *start.parents):
        if (folder / "build.yml").is_file():
            return folder
    raise NotFound(f"no build.yml in {start} or above: run the demo in a checkout, or name one with --source")


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Let SIGTERM end the demo as Ctrl-C does: by way of its clean-up."""

    def interrupt(_number: int, _frame: Any) -> None:
        raise KeyboardInterrupt

    former = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)


class _Farm:
    """What the demo starts: a folder, a Redis, a database and an agent. Leaving it ends and removes all of it."""

    def __init__(self, slots: int, repository: Path) -> None:
        self._slots = slots
        self._repository = repository
        self._redis: PrivateRedis | None = None
        self._agent: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None
        self.folder = Path(tempfile.mkdtemp(prefix="ba-demo-"))
        self.environment: dict[str, str] = {}

    def __enter__(self) -> _Farm:
        try:
            self._start()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *_exc: object) -> None:
        self._end()

    def _start(self) -> None:
        from agent.queue.private import PrivateRedis, spawn_bound
        from agent.store.engine import Store
        from agent.store.migrate import upgrade

        click.secho("A build farm in a folder of its own", bold=True)
        self._redis = PrivateRedis(self.folder / "redis").start()
        click.echo(f"  redis-server  {self._redis.url}")
        database_url = f"sqlite:///{self.folder}/build-agent.db"
        upgrade(Store(database_url))
        click.echo(f"  database      {database_url}")
        self.environment = self._settings(self._redis.url, database_url)
        self._log = (self.folder / "agent.log").open("ab")
        argv = [sys.executable, "-m", "agent.cli", "run"]
        self._agent = spawn_bound(argv, env=self.environment, log=self._log)
        self._wait_ready()
        click.echo(
            f"  agent         {self._slots} slots, http://{self.environment['BUILD_AGENT_HEALTH_ADDRESS']}/status"
        )

    def _settings(self, redis_url: str, database_url: str) -> dict[str, str]:
        # Settings of a real installation must not reach into the demo, nor the other way round.
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("BUILD_")}
        settings = {
            "redis_url": redis_url,
            "database_url": database_url,
            "state_dir": str(self.folder / "state"),
            "secrets_dir": str(self.folder / "secrets"),
            "image_file": str(self.folder / "image.json"),
            "source_roots": f'["{self._repository}"]',
            "health_address": f"127.0.0.1:{_free_port()}",
            "server_name": SERVER,
            "slots": str(self._slots),
            "cloud": "none",
            # A laptop may be fuller than a server should be.
            "min_free_bytes": "200MiB",
            "min_free_inodes": "1000",
            "kill_grace_s": "5",
        }
        (self.folder / "agent.toml").touch()
        return inherited | {
            "BUILD_AGENT_CONFIG": str(self.folder / "agent.toml"),
            **{f"BUILD_AGENT_{name.upper()}": value for name, value in settings.items()},
        }

    def _wait_ready(self) -> None:
        url = f"http://{self.environment['BUILD_AGENT_HEALTH_ADDRESS']}/readyz"
        deadline = clock.Deadline.after(READY_S)
        fault = "it does not answer"
        while not deadline.is_passed and self._agent is not None and self._agent.poll() is None:
            try:
                with urllib.request.urlopen(url, timeout=5):
                    return
            except urllib.error.HTTPError as error:
                fault = error.read().decode(errors="replace").strip()
            except OSError:
                pass  # not listening yet
            clock.sleep(0.05)
        log = (self.folder / "agent.log").read_text(errors="replace")
        raise AgentFailed(f"the agent takes no builds: {fault}; its log ends:\n{log[-2000:]}")

    def stay(self) -> None:
        """Leave everything running until Ctrl-C."""
        click.secho("\nIt stays until Ctrl-C. In another terminal:", bold=True)
        for name in ("CONFIG", "REDIS_URL", "DATABASE_URL", "SOURCE_ROOTS"):
            value = self.environment[f"BUILD_AGENT_{name}"]
            click.echo(f"  export BUILD_AGENT_{name}={shlex.quote(value)}")
        click.echo("  build-agent servers")
        signal.pause()

    def _end(self) -> None:
        """End the agent, Redis, and remove the folder; a second Ctrl-C does not get in between."""
        former = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            if self._agent is not None:
                self._end_agent(self._agent)
            if self._redis is not None:
                self._redis.stop()
            if self._log is not None:
                self._log.close()
            shutil.rmtree(self.folder, ignore_errors=True)
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)

    @staticmethod
    def _end_agent(agent: subprocess.Popen[bytes]) -> None:
        # The first says drain, the second says now: what runs is given back to a queue that is about to go.
        for _ in range(2):
            if agent.poll() is None:
                agent.terminate()
                clock.sleep(0.1)
        try:
            agent.wait(30)
        except subprocess.TimeoutExpired:
            agent.kill()
            agent.wait()


class _Tour:
    """The steps of the demo."""

    def __init__(self, farm: _Farm, repository: Path) -> None:
        self._farm = farm
        self._repository = repository
        self._deploy_dir = farm.folder / "deployed"
        self._is_whole = True

    def run(self) -> None:
        """Show everything, one after the other."""
        self._build_repository()
        self._build_that_fails()
        self._cancel()
        self._drain()
        self._say_what_next()

    def _build_repository(self) -> None:
        self._head(f"1. A build of {self._repository}, by its own build.yml, and its deploy")
        document: dict[str, Any] = {
            "project": "build-agent",
            "source": {"directory": str(self._repository)},
            "env": {"DEPLOY_DIR": str(self._deploy_dir), "PYTHON": sys.executable},
        }
        if cache := _pip_cache():
            document["env"]["PIP_CACHE_DIR"] = cache
        self._submit("build-agent", document, expect=0)
        for path in sorted(self._deploy_dir.glob("*")):
            click.echo(f"deployed: {path.name}, {path.stat().st_size:,} bytes")

    def _build_that_fails(self) -> None:
        self._head("2. A build that fails: two pipelines beside each other, one of them broken")
        document = {
            "project": "shop",
            "pipelines": {
                "checkout": {"steps": ["echo 'testing the checkout'", "sleep 1; echo '3 of 3 passed'"]},
                "payment": {
                    "steps": [
                        "echo 'testing the payment'; sleep 0.5; echo 'expected 100, got 99' >&2; exit 3",
                        {"run": "echo 'this step runs always: reports go out'", "always": True},
                    ]
                },
            },
        }
        self._submit("shop", document, expect=1)

    def _cancel(self) -> None:
        self._head("3. A build is cancelled while it runs")
        build_id = self._submit_only(
            "slow", {"project": "slow", "steps": ["echo 'this takes long'; sleep 600"]}
        )
        self._await_running(build_id)
        self._command("cancel", build_id)
        self._command("logs", build_id, "--follow", expect=1)

    def _drain(self) -> None:
        self._head("4. The server is drained: what runs is finished, what comes waits")
        running = self._submit_only(
            "last", {"project": "last", "steps": ["sleep 3; echo 'finished in peace'"]}
        )
        self._await_running(running)
        self._command("drain", SERVER, "--note", "the demo", "--wait")
        waiting = self._submit_only("next", {"project": "next", "steps": ["echo 'at last'"]})
        self._command("servers")
        self._command("builds", "--limit", "5")
        self._command("resume", SERVER)
        self._command("logs", waiting, "--follow")

    def _say_what_next(self) -> None:
        if not self._is_whole:
            raise AgentFailed("the demo did not go as it should: see above")
        self._head("What to try next")
        click.echo("  make demo ARGS=--keep        the same, and it stays for you to play with")
        click.echo("  docs/install.md              an agent on this machine, on your own Redis and database")
        click.echo("  docs/build-definition.md     what a build.yml can say")
        click.echo("  docs/operations.md           drain, quarantine, what a server tells of itself")

    def _submit(self, name: str, document: Mapping[str, Any], *, expect: int) -> None:
        self._command("submit", str(self._write(name, document)), "--follow", expect=expect)

    def _submit_only(self, name: str, document: Mapping[str, Any]) -> str:
        path = self._write(name, document)
        answer = self._command("submit", str(path), "--json", is_quiet=True)
        build_id: str = _json(answer)["id"]
        click.echo(f"$ build-agent submit {path.name}\n{build_id}")
        return build_id

    def _write(self, name: str, document: Mapping[str, Any]) -> Path:
        import yaml

        path = self._farm.folder / f"{name}.yml"
        path.write_text(yaml.safe_dump(dict(document), sort_keys=False, width=100))
        return path

    def _await_running(self, build_id: str) -> None:
        deadline = clock.Deadline.after(READY_S)
        while not deadline.is_passed:
            if _json(self._command("show", build_id, "--json", is_quiet=True))["state"] != "queued":
                return
            clock.sleep(0.2)
        raise AgentFailed(f"build {build_id} did not begin within {READY_S:g} s")

    def _command(self, *words: str, expect: int = 0, is_quiet: bool = False) -> str:
        """Run a command of ours as its user would; return what it printed, if it was to be quiet."""
        if not is_quiet:
            shown = " ".join(shlex.quote(word.removeprefix(f"{self._farm.folder}/")) for word in words)
            click.secho(f"$ build-agent {shown}", fg="cyan")
            sys.stdout.flush()
        result = subprocess.run(
            [sys.executable, "-m", "agent.cli", *words],
            env=self._farm.environment,
            cwd=self._farm.folder,
            stdout=subprocess.PIPE if is_quiet else None,
            check=False,
        )
        if result.returncode != expect:
            if is_quiet or result.returncode == 130:
                raise KeyboardInterrupt if result.returncode == 130 else AgentFailed(f"{words[0]} failed")
            self._is_whole = False
            click.secho(f"(exit code {result.returncode}, expected {expect})", fg="red")
        return result.stdout.decode() if is_quiet else ""

    @staticmethod
    def _head(text: str) -> None:
        click.secho(f"\n{text}", bold=True)


def _json(text: str) -> dict[str, Any]:
    import json

    document: dict[str, Any] = json.loads(text)
    return document


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _pip_cache() -> str | None:
    """Return the user's own pip cache, so that the build fetches nothing that this machine has fetched before."""
    asked: Sequence[str] = [sys.executable, "-m", "pip", "cache", "dir"]
    found = subprocess.run(asked, capture_output=True, text=True, check=False)
    return found.stdout.strip() or None if found.returncode == 0 else None
