"""What bakes need for tests: queue and database that machines reach, the command line, small scripts for ours."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

from agent.fleet.local.provider import LocalProvider
from agent.fleet.provider import TAG_BAKE, Leftover
from agent.model.image import Bake, Phase
from agent.queue.private import PrivateRedis
from agent.store import bakes
from agent.store.engine import Store
from tests.acceptance.terminal import Cli, Running
from tests.services import TcpProxy, wait_until

# Each says that it was here; a test changes what it wants otherwise.
SMALL_SCRIPTS = {
    "setup.sh": "echo set up; mkdir -p /etc/build-agent",
    "verify/run.sh": """
while [ "$1" != --report ]; do shift; done
mkdir -p "$2"
echo '<testsuites/>' >"$2/junit.xml"
echo '{"checks": [{"name": "test_a", "outcome": "passed"}], "versions": {}, "packages": {}}' >"$2/report.json"
""",
    "scrub.sh": "[ $# = 1 ] || rm /etc/ssh/ssh_host_*",
}


def write_small_scripts(folder: Path, **changed: str) -> Path:
    """Write scripts that do next to nothing; `setup`, `verify` and `scrub` may be other ones."""
    names = {"setup": "setup.sh", "verify": "verify/run.sh", "scrub": "scrub.sh"}
    for name, text in {**SMALL_SCRIPTS, **{names[key]: text for key, text in changed.items()}}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


class Bakery:
    """Where bakes are made: one provider, a queue, a database, and a proxy that lets machines reach both."""

    def __init__(
        self, provider: LocalProvider, *, redis: PrivateRedis, database_url: str, folder: Path
    ) -> None:
        self.provider = provider
        self._redis = redis
        self.redis_url, self.database_url = redis.url, database_url
        self.store = Store(database_url)
        self.folder = folder
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self.server_config = self.folder / "server.toml"
        database = urlsplit(self.database_url)
        reached = database._replace(
            netloc=f"postgres@{self.reachable((str(database.hostname), database.port or 5432))}"
        )
        self.server_config.write_text(
            f'redis_url = "redis://{self.reachable(self._redis.socket_path)}/0"\n'
            f'database_url = "{reached.geturl()}"\n'
        )
        settings = {
            "local_dir": str(self.provider.local_dir),
            "local_subnet": str(self.provider.subnet),
            "fleet_server_config": str(self.server_config),
            "heartbeat_s": "1s",
        }
        self.cli = self._stack.enter_context(Cli(self, self.folder, **settings))
        return self

    def __exit__(self, *_exc: object) -> None:
        self._stack.close()
        self.store.dispose()

    def scripts(self, **changed: str) -> Path:
        """Make a folder of small set-up scripts and return it; `setup`, `verify` and `scrub` may be other ones."""
        return write_small_scripts(self.folder / "setup_scripts", **changed)

    def bake(self, *words: str | Path) -> Running:
        """Begin a bake of the minimal profile."""
        return self.cli.start("images", "bake", "--profile", "minimal", *map(str, words))

    @property
    def last(self) -> Bake:
        """The bake that was begun last."""
        return bakes.list_bakes(self.store)[0]

    def wait_phase(self, running: Running, phase: Phase, timeout_s: float = 200.0) -> None:
        """Wait until the last bake has come so far, or its command has ended."""
        wait_until(
            lambda: running.process.poll() is not None or self._has_come_to(phase),
            timeout_s,
            lambda: f"phase {phase}; {running.out}\n{running.err}\n{self.explain()}",
        )

    def explain(self) -> str:
        """Say how the last bake stands, for a test that waited in vain."""
        consoles = [
            f"{it.id} is {it.state}: {self.provider.console_output(it.id)[-1500:]}"
            for it in self.provider.list_machines({})
        ]
        log = self.cli.run("logs", self.last.id, "--tail", "40").stdout
        return "\n".join([f"{self.last.phase} {self.last.state} {self.last.made}", log, *consoles])

    def _has_come_to(self, phase: Phase) -> bool:
        begun = bakes.list_bakes(self.store)
        return bool(begun) and begun[0].phase.number >= phase.number

    def left(self) -> list[Leftover]:
        """What bakes have left at the provider."""
        return [it for it in self.provider.leftovers({}) if TAG_BAKE in it.tags]

    def reachable(self, target: tuple[str, int] | Path) -> str:
        """Let machines reach a server of this host's loopback; return the address that they see."""
        proxy = TcpProxy(target, host=self.provider.gateway)
        self._stack.callback(proxy.close)
        return f"{self.provider.gateway}:{proxy.port}"
