"""A machine for a developer: set up and checked as a build server is, and a whole build farm by itself.

Owns its name at the provider, by a tag, and its key. Every step can be done again: what is there is found.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

from agent import clock
from agent.errors import AgentError, NotFound
from agent.fleet.bundle import Bundle
from agent.fleet.job import Job
from agent.fleet.key import KeyFile
from agent.fleet.provider import TAG_OWNER, LaunchSpec, Machine, MachineState, Provider, SshAccess
from agent.fleet.push import bring, deb_path
from agent.fleet.remote import Login, Remote
from agent.fleet.work import Places

TAG_DEV = "build-agent:dev"
STEPS = ("launch", "push", "setup", "verify", "start")
_UP_S = 120.0
_T = TypeVar("_T")


class DevFailed(AgentError):
    """The machine did not become what it should; it is left for a look at it."""

    exit_code = 1


class Listener(Protocol):
    """Is told how it goes."""

    def phase_begun(self, phase: str) -> None:
        """A step begins."""

    def output(self, data: bytes) -> None:
        """The machine printed something."""

    def phase_ended(self, phase: str, seconds: float, fault: str | None) -> None:
        """A step has ended."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DevMachine:
    """A developer's machine at a provider, by name."""

    provider: Provider
    name: str
    owner_tag: str
    key_folder: Path

    @property
    def _key(self) -> KeyFile:
        return KeyFile(self.key_folder, f"dev-{self.name}")

    @property
    def _tags(self) -> dict[str, str]:
        return {TAG_OWNER: self.owner_tag, TAG_DEV: self.name}

    def up(self, *, base: str, profile: str, bundle: Bundle, listener: Listener) -> Machine:
        """Start the machine unless it runs, set it up, check it, and have it take builds; return it.

        Raises: DevFailed; ProviderError; RemoteError.
        """
        places = Places()
        scripts = f"{places.setup}/setup_scripts"
        deb = deb_path(bundle, places.setup)
        commands = {
            "setup": f"systemctl stop build-agent 2>/dev/null; bash {scripts}/setup.sh --profile {profile} --deb {deb}",
            "verify": f"bash {scripts}/verify/run.sh --profile {profile} --report {places.setup}/report",
            "start": f"bash {scripts}/alone.sh",
        }
        machine = self._step(listener, "launch", lambda: self._launch(base))
        remote = self._remote(machine)
        try:
            self._step(listener, "push", lambda: _bring(remote, bundle, places))
            for name, command in commands.items():
                # An earlier run of the same inputs that went well is not done again.
                words = ["bash", "-c", command]
                job = Job(remote, folder=places.work, name=f"{name}-{bundle.digest}", command=words)
                self._step(listener, name, partial(_run, job, name, listener))
        finally:
            remote.close()
        return machine

    def find(self) -> Machine:
        """Return the machine. Raises: NotFound."""
        found = self.provider.list_machines(self._tags)
        if not found:
            raise NotFound(f"there is no machine {self.name!r}: build-agent dev up {self.name}")
        return found[0]

    def ssh_words(self, command: Sequence[str]) -> list[str]:
        """Return the command line that logs in, by its key and to the host key that the provider knows.

        Raises: NotFound; DevFailed when the machine doesn't run.
        """
        machine = self.find()
        if machine.state is not MachineState.RUNNING or machine.address is None:
            raise DevFailed(f"machine {self.name} is {machine.state}")
        known = self.key_folder / f"dev-{self.name}" / "known_hosts"
        known.write_text("".join(f"{machine.address} {key}\n" for key in self.provider.host_keys(machine.id)))
        options = [f"UserKnownHostsFile={known}", "StrictHostKeyChecking=yes", "IdentitiesOnly=yes"]
        words = ["ssh", "-i", str(self._key.path), *(word for it in options for word in ("-o", it))]
        return [*words, f"{self.provider.ssh_user}@{machine.address}", *map(shlex.quote, command)]

    def down(self) -> bool:
        """End the machine, with all that is on it; whether there was one."""
        found = self.provider.list_machines(self._tags)
        for machine in found:
            self.provider.terminate(machine.id)
        self._key.delete()
        return bool(found)

    @staticmethod
    def _step(listener: Listener, name: str, function: Callable[[], _T]) -> _T:
        began_mono = clock.mono()
        listener.phase_begun(name)
        try:
            result = function()
        except Exception as error:
            listener.phase_ended(name, clock.mono() - began_mono, str(error))
            raise
        listener.phase_ended(name, clock.mono() - began_mono, None)
        return result

    def _launch(self, base: str) -> Machine:
        self._key.make()
        spec = LaunchSpec(
            image=self.provider.base_image(base),
            name=self.name,
            token=f"dev-{self.name}",
            tags=self._tags,
            ssh=SshAccess(public_key=self._key.public(f"dev-{self.name}"), user=self.provider.ssh_user),
        )
        machine = self.provider.launch(spec)
        deadline = clock.Deadline.after(_UP_S)
        while machine.state is not MachineState.RUNNING or not self.provider.host_keys(machine.id):
            if deadline.is_passed:
                raise DevFailed(
                    f"machine {self.name} did not come up within {_UP_S:g} s: it is {machine.state}"
                )
            clock.sleep(0.1)
            machine = self.find()
        return machine

    def _remote(self, machine: Machine) -> Remote:
        login = Login(
            address=str(machine.address),
            port=machine.ssh_port,
            user=self.provider.ssh_user,
            private_key=self._key.private(),
            host_keys=list(self.provider.host_keys(machine.id)),
        )
        remote = Remote(login, check=lambda: None, reconnect_s=_UP_S)
        remote.connect()
        return remote


def _bring(remote: Remote, bundle: Bundle, places: Places) -> None:
    bring(remote, bundle, work=places.work, setup=places.setup, with_deb=True)


def _run(job: Job, name: str, listener: Listener) -> None:
    code = job.run(listener.output, on_cut=lambda _why: None)
    if code != 0:
        job.forget()
        raise DevFailed(f"{name} ended with exit code {code}; look: build-agent dev ssh")
