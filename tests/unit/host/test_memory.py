"""One heap for all threads, as the C library itself counts them."""

from __future__ import annotations

import subprocess
import sys

# Threads that all allocate at once, more than Python keeps for itself; then the C library's own account of its heaps.
_SCRIPT = """
import ctypes, sys, threading
from agent.host.memory import use_one_arena
if sys.argv[1] == "one":
    use_one_arena()
libc = ctypes.CDLL(None)
gate = threading.Barrier(6)
def allocate():
    kept = [libc.malloc(5000) for _ in range(200)]
    gate.wait(10)
threads = [threading.Thread(target=allocate) for _ in range(6)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
libc.malloc_info(0, ctypes.c_void_p.in_dll(libc, "stdout"))
libc.fflush(None)
"""


def _heaps(how: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT, how], capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout.count("<heap nr=")


def test_all_threads_share_one_heap() -> None:
    assert _heaps("many") > 1
    assert _heaps("one") == 1
