"""The functions that RQ's workers run. Nothing but the standard library: each forked job imports this anew."""

import subprocess
import time
from pathlib import Path


def stamp(path: str) -> None:
    """Write down when this function was entered."""
    now = time.time()
    Path(path).write_text(repr(now))


def run_true() -> None:
    """Run what a step of the agent runs that does nothing."""
    subprocess.run(["bash", "-c", "true"], check=True)
