"""Names of queues: a build that asks for tags waits in a queue of its own kind, which only servers with those tags read.

    builds                      any server that listens on `builds`
    builds+arch=arm64           servers with arch=arm64
    builds+arch=arm64,gpu=yes   servers with both

So nobody takes a build that it can't run, and no server has to look at what it must leave to others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from urllib.parse import quote

from agent.errors import SettingsError

# A server reads one queue for each subset of its tags: 2 to the 5th.
MAX_TAGS = 5


def queue_for(queue: str, tags: Mapping[str, str]) -> str:
    """Return the queue that a build which asks for `tags` waits in."""
    if not tags:
        return queue
    # A value is any text: quoted, so that one with a comma is not read as two tags.
    asked = ",".join(f"{name}={quote(tags[name], safe='')}" for name in sorted(tags))
    return f"{queue}+{asked}"


def queues_of_server(queues: Sequence[str], tags: Mapping[str, str]) -> list[str]:
    """Return every queue that a server reads, in order: of each configured queue first what needs most tags,
    because others can take the rest.

    Raises: SettingsError when the server has too many tags.
    """
    if len(tags) > MAX_TAGS:
        raise SettingsError(
            f"tags: a server can have {MAX_TAGS} tags, this one has {len(tags)}: {sorted(tags)}"
        )
    subsets = [
        {name: tags[name] for name in names}
        for count in range(len(tags), -1, -1)
        for names in combinations(sorted(tags), count)
    ]
    return [queue_for(queue, subset) for queue in queues for subset in subsets]
