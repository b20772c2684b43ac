"""How the C library keeps memory: for processes that run for months, not for the fastest first minute."""

import ctypes
from contextlib import suppress

_M_MMAP_THRESHOLD, _M_ARENA_MAX = -3, -8
ARENAS = 2
"""Heaps that the threads share. By default each of a dozen threads has its own, and what the busiest moment of each
left in it free is of no use to the others: a station that runs for months then grows by steps."""
MAPPED_FROM_BYTES = 128 * 1024
"""From this size on a block is mapped by itself and goes back to the system when it is free. By default the C library
moves pictures into the heap after it has freed the first one, and each that lies beside something small and lasting
leaves a hole there."""


def keep_the_heap_small() -> None:
    """Set it for this process, before it starts threads; without effect on a C library other than glibc."""
    with suppress(AttributeError):
        library = ctypes.CDLL(None)
        for parameter, value in ((_M_ARENA_MAX, ARENAS), (_M_MMAP_THRESHOLD, MAPPED_FROM_BYTES)):
            library.mallopt(parameter, value)
