"""What the controller asks of something that starts and ends servers by a number, as an EC2 Auto Scaling group does."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, kw_only=True, slots=True)
class Mate:
    """An instance of a group, started from `image`, the provider's id. `waits_for` names the lifecycle hook that
    holds it, when it comes or when it goes.
    """

    id: str
    image: str
    is_protected: bool
    is_leaving: bool
    waits_for: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupState:
    """How many servers a group is to have, and those it has, by id."""

    desired: int
    mates: Mapping[str, Mate]

    @property
    def coming(self) -> int:
        """How many are wanted and not there yet."""
        return max(0, self.desired - sum(not it.is_leaving for it in self.mates.values()))


class Group(Protocol):
    """A group of servers. Every method may raise ProviderError or ProviderUnavailable and may be called again."""

    name: str

    def look(self) -> GroupState:
        """Return how the group stands."""
        ...

    def want(self, servers: int) -> None:
        """Say how many servers the group is to have."""
        ...

    def protect(self, ids: Collection[str], *, on: bool) -> None:
        """Keep the group from ending instances by itself, or let it."""
        ...

    def end(self, machine_id: str) -> None:
        """End an instance and want one fewer; nothing when it is gone."""
        ...

    def complete(self, mate: Mate) -> None:
        """Let an instance go on that a lifecycle hook holds."""
        ...

    def hold(self, mate: Mate) -> None:
        """Ask for more time for an instance that a lifecycle hook holds."""
        ...

    def image(self) -> str:
        """Return the provider's id of the image that further servers are started from."""
        ...

    def start_from(self, image: str, user_data: str) -> None:
        """Start further servers from another image; those that run stay."""
        ...
