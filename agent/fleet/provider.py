"""What the bake, the fleet and operators ask of whoever has machines: a small protocol, the same for every provider.

Owns the records that cross it. Knows no provider. Whatever a provider makes carries the tags it was asked for, so that
what a killed command left is found again by them; and making the same thing twice with one token makes it once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import ClassVar, Protocol

from agent.errors import AgentError

TAG_OWNER = "build-agent:owner"
TAG_BAKE = "build-agent:bake"
TAG_IMAGE = "build-agent:image"
TAG_FLEET = "build-agent:fleet"
TAG_POOL = "build-agent:pool"
TAG_MACHINE = "build-agent:machine"


class ProviderError(AgentError):
    """A provider refused what was asked; the same again will not help."""


class ProviderUnavailable(ProviderError):
    """A provider could not be reached, was too busy or timed out; whether it did what was asked is not known."""

    is_retriable = True
    exit_code = 69


class MachineState(StrEnum):
    """What a machine does."""

    PENDING = "pending"
    RUNNING = "running"
    STOPPING = "stopping"
    STOPPED = "stopped"
    TERMINATING = "terminating"
    TERMINATED = "terminated"


class ImageState(StrEnum):
    """Whether an image can be started from."""

    PENDING = "pending"
    AVAILABLE = "available"
    FAILED = "failed"


@dataclass(frozen=True, kw_only=True, slots=True)
class SshAccess:
    """Who may log in to a launched machine: `public_key` (one line, OpenSSH's form) as `user`, who may use sudo."""

    public_key: str
    user: str = "root"


@dataclass(frozen=True, kw_only=True, slots=True)
class LaunchSpec:
    """What to launch.

    `image` is the provider's own id of an image or base. `token` makes a launch that is sent again find the machine
    of the first time. `user_data` is handed to the machine as it is. With `ssh`, someone may log in.
    """

    image: str
    name: str
    token: str
    tags: Mapping[str, str] = field(default_factory=dict)
    user_data: str = ""
    ssh: SshAccess | None = None
    size: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """A machine as its provider knows it. `address` is where SSH answers, once it is known."""

    id: str
    name: str
    state: MachineState
    image: str
    address: str | None
    tags: Mapping[str, str]
    launched_at: datetime | None = None
    ssh_port: int = 22


@dataclass(frozen=True, kw_only=True, slots=True)
class ProviderImage:
    """An image as its provider knows it."""

    id: str
    name: str
    state: ImageState
    tags: Mapping[str, str]
    created_at: datetime | None = None
    size_bytes: int | None = None
    reason: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Leftover:
    """A thing that a provider still has: `machine`, `image`, `key`, `security group`, `snapshot`, `mount`..."""

    kind: str
    id: str
    tags: Mapping[str, str]


class Provider(Protocol):
    """Machines and images. Every method may raise ProviderError or ProviderUnavailable and may be called again."""

    name: ClassVar[str]
    # Who may log in by SSH to a machine of a base, and use sudo if it is not root.
    ssh_user: ClassVar[str]

    def base_image(self, base: str) -> str:
        """Return the provider's id of what `base` names: an image's id, or a base such as `debian-12`; "" the default."""
        ...

    def launch(self, spec: LaunchSpec) -> Machine:
        """Start a machine; the one there is when the token was used before. Does not wait until it runs."""
        ...

    def get(self, machine_id: str) -> Machine | None:
        """Return a machine, `None` when there is none of that id any more."""
        ...

    def list_machines(self, tags: Mapping[str, str]) -> Sequence[Machine]:
        """Return the machines that carry all these tags, terminated ones left out."""
        ...

    def host_keys(self, machine_id: str) -> Sequence[str]:
        """Return the machine's public SSH host keys (`type base64`), learnt from the provider and not from the network.

        Empty while they are not known yet.
        """
        ...

    def stop(self, machine_id: str) -> None:
        """Shut a machine down; its disk stays. Does not wait."""
        ...

    def terminate(self, machine_id: str) -> None:
        """End a machine for good, with its disk; nothing when it is gone. Does not wait."""
        ...

    def console_output(self, machine_id: str) -> str:
        """Return the newest of what the machine wrote to its console."""
        ...

    def create_image(
        self, machine_id: str, *, name: str, tags: Mapping[str, str], token: str
    ) -> ProviderImage:
        """Begin to make an image of a stopped machine; the one there is when the token was used before."""
        ...

    def get_image(self, image_id: str) -> ProviderImage | None:
        """Return an image, `None` when there is none of that id any more."""
        ...

    def list_images(self, tags: Mapping[str, str]) -> Sequence[ProviderImage]:
        """Return the images that carry all these tags."""
        ...

    def delete_image(self, image_id: str) -> None:
        """Delete an image with its snapshots; nothing when it is gone."""
        ...

    def leftovers(self, tags: Mapping[str, str]) -> Sequence[Leftover]:
        """Return all there is that carries these tags, of any kind: machines, images, keys, groups, snapshots, mounts."""
        ...

    def remove(self, leftover: Leftover) -> None:
        """Remove one thing; nothing when it is gone."""
        ...
