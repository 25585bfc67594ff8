"""How the C library keeps this process's memory."""

from __future__ import annotations

import contextlib

_M_ARENA_MAX = -8  # mallopt(3)


def use_one_arena() -> None:
    """Have all threads share one heap; call it before the first thread starts.

    By default glibc gives up to eight heaps a core to threads that meet in malloc. Output is taken in by one thread
    and freed by another, which leaves each heap with holes that the others can't use: 10 MB after a few million
    lines. The interpreter's lock lets hardly two threads into malloc at once, so sharing costs nothing.
    """
    import ctypes  # only here: a tenth of the agent's start-up time otherwise

    # Not every C library has it (musl), and it decides nothing but how much memory is used.
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)
