"""The machine's own clocks."""

import ctypes
import time
from datetime import UTC, datetime

_TIMEX_BYTES = 256
"""More than `struct timex` takes on any 64-bit Linux; zeroed, it asks and changes nothing."""
_TIME_ERROR = 5


class SystemClock:
    """The Clock port over the operating system."""

    def now(self) -> datetime:
        """Wall time, UTC."""
        return datetime.now(UTC)

    def monotonic_s(self) -> float:
        """CLOCK_MONOTONIC: on Linux the same in all processes of a machine."""
        return time.monotonic()


def is_synchronised() -> bool | None:
    """Whether the wall clock follows a reference, as adjtimex(2) says; None where the kernel does not tell."""
    answer = ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(_TIMEX_BYTES))
    return None if answer < 0 else answer != _TIME_ERROR
