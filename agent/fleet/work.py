"""What the phases of a bake share: the record, the provider, the log, and waiting that somebody can end.

A thing is on record before it is made and again when it is there: whoever goes on after a kill finds it by the token
or the tags that it was made with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from agent import clock, log
from agent.clock import Deadline
from agent.errors import AgentError, StoreUnavailable
from agent.fleet.bundle import Bundle
from agent.fleet.key import KeyFile
from agent.fleet.owner import Ownership
from agent.fleet.provider import (
    TAG_BAKE,
    TAG_IMAGE,
    TAG_OWNER,
    Machine,
    MachineState,
    Provider,
    ProviderUnavailable,
)
from agent.fleet.recording import Recording
from agent.fleet.remote import Login, Remote
from agent.model.image import Image, Phase
from agent.queue.carrier import Carrier
from agent.store import bakes
from agent.store.engine import Store

_POLL_S = 0.5
_log = log.get("bake")
_T = TypeVar("_T")


class BakeFailed(AgentError):
    """The image is not one to start servers from; the text says why."""

    exit_code = 1

    def __init__(self, text: str, *, is_disk_full: bool = False) -> None:
        super().__init__(text)
        self.is_disk_full = is_disk_full


class BakeWaits(AgentError):
    """Something takes longer than it may; nothing is wrong with the bake, which can be resumed."""

    is_retriable = True
    exit_code = 69


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """How long each phase may take, in seconds."""

    launch_s: float = 600.0
    ssh_s: float = 300.0
    setup_s: float = 5400.0
    verify_s: float = 1800.0
    scrub_s: float = 600.0
    stop_s: float = 600.0
    image_s: float = 3600.0
    trial_s: float = 600.0
    canary_s: float = 600.0
    sweep_s: float = 600.0
    provider_s: float = 300.0
    reconnect_s: float = 600.0
    poll_s: float = _POLL_S


@dataclass(frozen=True, kw_only=True, slots=True)
class Places:
    """Where things lie on a server that is baked. `work` goes with the next boot, so it leaves nothing in the image."""

    work: str = "/run/build-agent-bake"
    setup: str = "/var/lib/build-agent-setup"
    image_file: str = "/etc/build-agent/image.json"


class Observer(Protocol):
    """Is told how a bake goes on, by the thread that bakes."""

    def phase_begun(self, phase: Phase) -> None:
        """A phase begins."""

    def output(self, data: bytes) -> None:
        """The server printed something; empty while there is nothing new, several times a second."""

    def said(self, text: str) -> None:
        """Something happened that a person may want to know."""

    def phase_ended(self, phase: Phase, seconds: float, fault: str | None) -> None:
        """A phase has ended; `fault` says why it did not pass."""


@dataclass(kw_only=True, slots=True)
class Work:
    """One life at one bake; `made` is what stands on record of what exists because of it."""

    store: Store
    carrier: Carrier
    provider: Provider
    bake_id: str
    image: Image
    options: Mapping[str, Any]
    bundle: Bundle
    user_data: Callable[..., str]
    owner_tag: str
    by: str
    key: KeyFile
    ownership: Ownership
    recording: Recording
    observer: Observer
    limits: Limits
    places: Places
    ssh_user: str
    made: dict[str, Any] = field(default_factory=dict)
    remotes: dict[str, Remote] = field(default_factory=dict)

    # The record.

    @property
    def tags(self) -> dict[str, str]:
        """The tags of everything that this bake makes."""
        return {TAG_OWNER: self.owner_tag, TAG_BAKE: self.bake_id, TAG_IMAGE: self.image.id}

    def note(self, **made: Any) -> None:
        """Put on record what is about to be made, or is there now; `None` takes it off."""
        self.made = {key: value for key, value in {**self.made, **made}.items() if value is not None}
        self.persist(lambda: bakes.record(self.store, self.bake_id, self.ownership.session, made=self.made))

    def enter(self, phase: Phase) -> None:
        """Put on record that a phase begins."""
        self.persist(lambda: bakes.record(self.store, self.bake_id, self.ownership.session, phase=phase))

    def persist(self, write: Callable[[], object]) -> None:
        """Write to the database; one that is away is waited for, as long as the bake is ours."""
        deadline, waits = Deadline.after(self.limits.provider_s), clock.backoff()
        while True:
            try:
                write()
            except StoreUnavailable as error:
                if deadline.is_passed:
                    raise
                _log.warning("bake.record_waits", str(error), bake=self.bake_id)
                self.pause(next(waits))
            else:
                return

    # What is said, and waiting.

    def say(self, text: str) -> None:
        """Put a line into the log, and tell it."""
        self.recording.say(text)
        self.observer.said(self.recording.mask(text))

    def hear(self, data: bytes) -> None:
        """Take output of the server."""
        self.observer.output(self.recording.feed(data))

    def check(self) -> None:
        """Raise what ends this life at the bake, if something does; let out what has waited."""
        self.ownership.check()
        self.hear(b"")

    def pause(self, seconds: float) -> None:
        """Wait, unless something ends the bake."""
        deadline = Deadline.after(seconds)
        while True:
            self.check()
            if deadline.is_passed:
                return
            clock.sleep(min(0.1, deadline.remaining_s or 0.0))

    def ask(self, question: Callable[[], _T]) -> _T:
        """Ask the provider; while it can't answer, again. What is asked has to be harmless when it is done twice."""
        deadline, waits = Deadline.after(self.limits.provider_s), clock.backoff(0.2, 15.0)
        while True:
            self.check()
            try:
                return question()
            except ProviderUnavailable as error:
                if deadline.is_passed:
                    raise
                self.say(f"the provider did not answer ({error}); asking again")
                self.pause(min(next(waits), max(self.limits.poll_s, 0.01) * 30))

    def wait(
        self, look: Callable[[], _T | None], limit_s: float, *, else_raise: Callable[[], AgentError]
    ) -> _T:
        """Return what `look` finds, asked again and again; raise when it is still `None` after `limit_s`."""
        deadline = Deadline.after(limit_s)
        while True:
            found = self.ask(look)
            if found is not None:
                return found
            if deadline.is_passed:
                raise else_raise()
            self.pause(self.limits.poll_s)

    # Machines.

    def machine(self, role: str) -> Machine | None:
        """Return the machine of a role, `builder` or `trial`, if it is on record and still there."""
        machine_id = self.made.get(role)
        if machine_id is None:
            return None
        found = self.ask(lambda: self.provider.get(str(machine_id)))
        if found is None or found.state in (MachineState.TERMINATING, MachineState.TERMINATED):
            return None
        return found

    def remote(self, role: str) -> Remote:
        """Return the connection to the machine of a role, made if there is none."""
        if role not in self.remotes:
            at = self.made[f"{role}_at"]
            login = Login(
                address=at["address"],
                port=at["port"],
                user=self.ssh_user,
                private_key=self.key.private(),
                host_keys=at["host_keys"],
            )
            remote = Remote(login, check=self.check, reconnect_s=self.limits.reconnect_s)
            remote.connect(wait_s=self.limits.ssh_s)
            self.remotes[role] = remote
        return self.remotes[role]

    def close(self) -> None:
        """Close the connections."""
        for remote in self.remotes.values():
            remote.close()
        self.remotes.clear()
