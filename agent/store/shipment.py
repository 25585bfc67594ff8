"""What a spool has to say, in one transaction: steps and output first, then the ends of attempts."""

from __future__ import annotations

from collections.abc import Sequence

from agent.model.build import AttemptEnded, AttemptRef
from agent.store import attempts, ending, output
from agent.store.attempts import EndResult
from agent.store.engine import Store


def ship(
    store: Store, records: Sequence[output.Entry], ends: Sequence[tuple[AttemptRef, AttemptEnded]]
) -> list[EndResult]:
    """Store a mixed batch as `output.apply` does, and close attempts as `attempts.end` does.

    One transaction in place of two is one commit less between the last line of a build and its end. Sent again,
    because the answer was lost, it changes nothing and answers the same.

    Returns: what became of each of `ends`, in their order.
    Raises: StoreUnavailable (send the same again, nothing was written); StoreRejected (find out which part the
        database refuses, with `output.apply` and `attempts.end`).
    """
    with store.begin() as connection:
        held = ending.hold(connection, {ref.build_id for ref, _ in ends}) if ends else {}
        output.write(connection, records)
        return [attempts.close(connection, ref, ended, held) for ref, ended in ends]
