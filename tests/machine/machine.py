"""One booted machine, as tests use it."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from agent.fleet.local.provider import LocalProvider
from agent.fleet.provider import LaunchSpec, Machine, MachineState, ProviderUnavailable
from tests.services import wait_until

UP_S = 60.0


@dataclass(frozen=True)
class BootedMachine:
    """A machine of the local provider."""

    provider: LocalProvider
    id: str

    @classmethod
    def launch(
        cls,
        provider: LocalProvider,
        image: str,
        *,
        name: str = "server",
        tags: Mapping[str, str] | None = None,
        wait_up: bool = True,
        **more: Any,
    ) -> Self:
        """Start a machine and wait until systemd has started everything, or answers at all."""
        spec = LaunchSpec(image=image, name=name, token=uuid.uuid4().hex, tags=dict(tags or {}), **more)
        machine = cls(provider, provider.launch(spec).id)
        machine.wait_up("running", "degraded", *([] if wait_up else ["starting"]))
        return machine

    @property
    def now(self) -> Machine:
        """The machine as the provider sees it."""
        found = self.provider.get(self.id)
        assert found is not None, f"{self.id} is gone"
        return found

    @property
    def gateway(self) -> str:
        """The host's address, as the machine reaches it."""
        return self.provider.gateway

    def run(self, command: str, *, limit_s: float = 60.0, stdin: bytes = b"") -> str:
        """Run a shell command as root; return what it printed, or fail with what it complained of."""
        code, output = self.attempt(command, limit_s=limit_s, stdin=stdin)
        assert code == 0, f"{command!r} ended with {code}:\n{output}"
        return output

    def attempt(self, command: str, *, limit_s: float = 60.0, stdin: bytes = b"") -> tuple[int, str]:
        """Run a shell command as root; return its exit code and all that it printed."""
        words = ["bash", "-c", f"exec 2>&1; {command}"]
        done = self.provider.run(self.id, words, limit_s=limit_s, stdin=stdin)
        return done.exit_code, done.stdout + done.stderr

    def write(self, path: str, data: str | bytes, mode: str = "0644") -> None:
        """Write a file; its folder is made."""
        raw = data.encode() if isinstance(data, str) else data
        self.run(f"install -D -m {mode} /dev/stdin {path}", stdin=raw)

    def is_up(self, *states: str) -> bool:
        """Whether systemd has come to the end of its boot, also with a unit that failed; or to another state."""
        try:
            return self.attempt("systemctl is-system-running")[1].strip() in (
                states or ("running", "degraded")
            )
        except ProviderUnavailable:
            return False

    def wait_up(self, *states: str) -> None:
        """Wait for the end of the boot, or another state."""
        wait_until(
            lambda: self.is_up(*states),
            UP_S,
            lambda: f"the boot; its console:\n{self.provider.console_output(self.id)[-4000:]}",
        )

    def is_state(self, wanted: MachineState) -> bool:
        """Whether the provider sees the machine so."""
        return self.now.state is wanted

    def wait_stopped(self) -> None:
        """Wait until the machine is off."""
        wait_until(lambda: self.is_state(MachineState.STOPPED), UP_S, "the machine to be off")

    def terminate(self) -> None:
        """End it."""
        self.provider.terminate(self.id)
