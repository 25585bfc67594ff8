"""What the cloud tells a server of its end: a spot instance that is taken back, an Auto Scaling group that shrinks.

Owns the words and the instant; whoever asks decides what follows. Source: "Spot Instance interruption notices" and
"Retrieve the target lifecycle state through instance metadata" (EC2 and EC2 Auto Scaling User Guides).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from agent.host.metadata import MetadataClient

# Where a group sends an instance that is to go; hooks hold it there until somebody completes them.
_LEAVING = frozenset({"Terminated", "Terminating", "Stopped", "Hibernated"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Notice:
    """That the server will go: `words` say why, `at` when, as far as the cloud says it."""

    words: str
    at: datetime | None = None


def read(client: MetadataClient) -> Notice | None:
    """Return the notice that stands, `None` while there is none. A spot notice goes before a group's: it has an end.

    Raises: MetadataUnavailable (retriable).
    """
    spot = client.spot_action()
    if spot is not None:
        return Notice(words=f"spot notice: {spot.action} at {spot.at:%Y-%m-%d %H:%M:%S} UTC", at=spot.at)
    target = client.target_lifecycle_state()
    if target in _LEAVING:
        return Notice(words=f"the Auto Scaling group wants this server {target.lower()}")
    return None
