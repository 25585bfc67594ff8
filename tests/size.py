"""How often the tests that are about many do a thing: enough in every run, all that the faults ask for on request."""

from __future__ import annotations

import os

IS_FULL = os.environ.get("TESTS_FULL") == "1"


def of(usual: int, full: int) -> int:
    """Return how often: `full` with TESTS_FULL=1 in the environment, which takes several minutes more."""
    return full if IS_FULL else usual
