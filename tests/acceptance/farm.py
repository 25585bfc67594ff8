"""A build farm of the test's own: a Redis, a database, and agents as real processes, to be treated badly."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import requests

from agent.clock import Deadline
from agent.model.build import Build, BuildState
from agent.queue.carrier import Carrier
from agent.queue.connection import connect
from agent.queue.submit import Submitted, new_build, submit
from agent.store import attempts, builds, output, steps
from agent.store.engine import Store
from tests.services import free_port, wait_until

# Short enough that a test can wait for a lease to end, long enough for a machine that is busy with other tests.
LEASE_S = 6.0
ENDED_S = 60.0


class AgentProcess:
    """One `build-agent run`, with a state directory that outlives it so that it can be started again."""

    def __init__(self, folder: Path, settings: Mapping[str, object]) -> None:
        self.folder = folder
        self.port = free_port()
        self.log_path = folder / "agent.log"
        self._settings = {
            "state_dir": folder / "state",
            "secrets_dir": folder / "secrets",
            "image_file": folder / "image.json",
            "health_address": f"127.0.0.1:{self.port}",
            "server_name": folder.name,
            "cloud": "none",
            "log_format": "text",
            **settings,
        }
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def state_dir(self) -> Path:
        """Where the agent keeps what outlives it."""
        return Path(str(self._settings["state_dir"]))

    @property
    def pid(self) -> int:
        """The agent's process id."""
        assert self.process is not None
        return self.process.pid

    def start(self, *, wait_ready: bool = True, **settings: object) -> Self:
        """Start the agent, or start it again, with further settings."""
        self._settings |= settings
        self.folder.mkdir(parents=True, exist_ok=True)
        # As a service has it: with byte code kept, without what the test run says to its own interpreter.
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("BUILD_", "PYTHON"))
        }
        environment |= {f"BUILD_AGENT_{name.upper()}": str(value) for name, value in self._settings.items()}
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "agent.cli", "run"],
                env=environment,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                cwd=self.folder,
            )
        if wait_ready:
            self.wait_ready()
        return self

    def wait_ready(self, timeout_s: float = 30.0) -> None:
        """Wait until the agent takes builds."""
        wait_until(lambda: self.get("/readyz")[0] == 200, timeout_s, f"not ready; its log:\n{self.log()}")

    def get(self, path: str) -> tuple[int, str]:
        """Ask the health endpoint; (0, "") while it does not answer."""
        try:
            answer = requests.get(f"http://127.0.0.1:{self.port}{path}", timeout=5)
        except requests.RequestException:
            return 0, ""
        return answer.status_code, answer.text

    def status(self) -> dict[str, Any]:
        """Return /status."""
        answer = requests.get(f"http://127.0.0.1:{self.port}/status", timeout=5)
        return dict(answer.json())

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the agent alone."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill the agent, and nothing else, as the kernel's OOM killer would."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(10)

    def wait_exit(self, timeout_s: float = 30.0) -> int:
        """Wait for the agent to end by itself; return its exit code."""
        assert self.process is not None
        return self.process.wait(timeout_s)

    def stop(self) -> None:
        """End the agent whatever it does: two signals, then SIGKILL."""
        if self.process is None or self.process.poll() is not None:
            return
        os.kill(self.pid, signal.SIGCONT)
        deadline = Deadline.after(20)
        while self.process.poll() is None and not deadline.is_passed:
            # Time and again: two signals at once are one to the kernel.
            self.process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(0.3)
        if self.process.poll() is None:
            self.kill()

    def log(self) -> str:
        """Return what the agent has logged."""
        return self.log_path.read_text() if self.log_path.exists() else ""


class Farm:
    """Agents on one Redis and one database. `url` may be that of a proxy in front of either."""

    def __init__(self, folder: Path, *, redis_url: str, database_url: str) -> None:
        self.folder = folder
        self.redis_url = redis_url
        self.database_url = database_url
        self.store = Store(database_url, pool_size=8)
        self.carrier = Carrier(connect(redis_url))
        self.agents: list[AgentProcess] = []
        self._lock = threading.Lock()

    def agent(
        self, name: str = "", *, start: bool = True, wait_ready: bool = True, **settings: object
    ) -> AgentProcess:
        """Make an agent with short leases and limits; `settings` are those of agent.toml."""
        with self._lock:
            name = name or f"server-{len(self.agents) + 1}"
            defaults: dict[str, object] = {
                "redis_url": self.redis_url,
                "database_url": self.database_url,
                "lease_s": LEASE_S,
                "heartbeat_s": 1.0,
                "sweep_s": 0.5,
                "kill_grace_s": 2.0,
                "min_free_bytes": 0,
                "min_free_inodes": 0,
                "min_free_memory_bytes": 0,
            }
            made = AgentProcess(self.folder / name, defaults | settings)
            self.agents.append(made)
        return made.start(wait_ready=wait_ready) if start else made

    def submit(self, document: Mapping[str, Any] | str, **more: Any) -> str:
        """Submit a build, of a definition or of one command; return its id."""
        definition = {"project": "test", "steps": [document]} if isinstance(document, str) else dict(document)
        definition.setdefault("project", "test")
        submitted: Submitted = submit(self.store, self.carrier, new_build(definition, **more))
        return submitted.build.id

    def build(self, build_id: str) -> Build:
        """Return the build as it stands."""
        return builds.get(self.store, build_id)

    def wait_ended(self, build_id: str, timeout_s: float = ENDED_S) -> Build:
        """Wait until the build has ended."""
        wait_until(
            lambda: self.build(build_id).state is BuildState.ENDED, timeout_s, lambda: self._explain(build_id)
        )
        return self.build(build_id)

    def wait_running(
        self, build_id: str, *, attempt: int = 1, printed: str = "", timeout_s: float = 30.0
    ) -> None:
        """Wait until an attempt runs, and has printed something."""

        def is_so() -> bool:
            build = self.build(build_id)
            if build.attempt < attempt or build.state is not BuildState.RUNNING:
                return False
            return not printed or printed in self.text(build_id, attempt=attempt)

        wait_until(is_so, timeout_s, lambda: self._explain(build_id))

    def output(self, build_id: str, *, attempt: int | None = None, step: int | None = None) -> bytes:
        """Return the stored bytes of one step, or of all steps in their order."""
        number = attempt or self.build(build_id).attempt
        numbers = [item.step for item in steps.list_steps(self.store, build_id, number)]
        data = b""
        for wanted in numbers if step is None else [step]:
            after = -1
            while chunks := output.read_chunks(self.store, build_id, number, wanted, after_seq=after):
                data += b"".join(chunk.data for chunk in chunks)
                after = chunks[-1].seq
        return data

    def text(self, build_id: str, *, attempt: int | None = None, step: int | None = None) -> str:
        """Return the stored output as text."""
        return self.output(build_id, attempt=attempt, step=step).decode("utf-8", "replace")

    def attempts(self, build_id: str) -> list[tuple[int, str | None]]:
        """Return (number, outcome) of each attempt; the outcome of one that runs is `None`."""
        return [(item.number, item.outcome) for item in attempts.list_attempts(self.store, build_id)]

    def _explain(self, build_id: str) -> str:
        logs = "\n".join(f"--- {agent.folder.name}\n{agent.log()[-4000:]}" for agent in self.agents)
        return f"{self.build(build_id)}\n{self.attempts(build_id)}\n{logs}"

    def close(self) -> None:
        """End every agent and remove what they left."""
        for agent in self.agents:
            agent.stop()
        self.store.dispose()
        self.carrier.connection.close()
        for agent in self.agents:
            shutil.rmtree(agent.folder, ignore_errors=True)
