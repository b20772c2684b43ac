"""The simulated oven and press as a source of readings, at its own pace."""

import functools
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Self

from station.messages import SourceStateName
from station.ports import Clock
from station.process_messages import Readings, SourceEvent
from station.simulated_process import SimulatedProcess


class SimulatedSensors:
    """Row k is measured k / rate after the source was opened, whatever happens meanwhile.

    A reader that comes late gets its rows late, with the time at which they were measured.

    Args:
        name: of the source.
        clock: time.
        seed, rate_hz, drift_after_s: see `station.simulated_process.SimulatedProcess`.
        wait: pauses for the given number of seconds.
    """

    def __init__(
        self,
        name: str,
        clock: Clock,
        *,
        seed: int,
        rate_hz: float,
        drift_after_s: float | None = None,
        wait: Callable[[float], None] = time.sleep,
    ) -> None:
        self._name = name
        self._clock = clock
        self._wait = wait
        self._period_s = 1.0 / rate_hz
        self._make = functools.partial(SimulatedProcess, seed, rate_hz, drift_after_s)
        self._process = self._make()
        self._row = 0
        self._opened_at_s = 0.0
        self._opened_monotonic_s = 0.0
        self._events: deque[SourceEvent] = deque(maxlen=2)

    def __enter__(self) -> Self:
        self._process = self._make()
        self._row = 0
        self._opened_at_s = self._clock.now().timestamp()
        self._opened_monotonic_s = self._clock.monotonic_s()
        self._events.append(SourceEvent(self._name, SourceStateName.RUNNING, self._opened_at_s))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        self._events.clear()

    @property
    def points(self) -> tuple[str, ...]:
        """Names of the points."""
        return self._process.points

    def read(self, timeout_s: float) -> Readings | SourceEvent | None:
        """The next row as soon as it is measured; None when that is later than `timeout_s`."""
        if self._events:
            return self._events.popleft()
        elapsed_s = self._row * self._period_s
        left_s = self._opened_monotonic_s + elapsed_s - self._clock.monotonic_s()
        if left_s > 0:
            self._wait(min(left_s, timeout_s))
            if left_s > timeout_s:
                return None
        self._row += 1
        return Readings(
            self._name, self._opened_at_s + elapsed_s, self._opened_monotonic_s + elapsed_s, self._process.next()
        )
