"""The machine's own clocks."""

import time
from datetime import UTC, datetime


class SystemClock:
    """The Clock port over the operating system."""

    def now(self) -> datetime:
        """Wall time, UTC."""
        return datetime.now(UTC)

    def monotonic_s(self) -> float:
        """CLOCK_MONOTONIC: on Linux the same in all processes of a machine."""
        return time.monotonic()
