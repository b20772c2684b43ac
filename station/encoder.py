"""The way that a belt has gone: an encoder's counts, read now and then, as a position at any time.

A counter overflows; the difference of two readings is the shortest one, so that less than half a turn may pass between
them. Between two readings the position is interpolated; after the last one it is extrapolated by the present speed, for
`AHEAD_S` at most when the past is asked for (a frame is a few milliseconds older than the newest reading, or younger),
and as far as needed when the question is when a position will be reached. A belt that stands still reaches nothing.
"""

import bisect
import math
from collections import deque

READINGS = 512
"""Readings kept: a frame must not be older than these when it is taken from its camera."""
SPEED_OVER_S = 0.1
"""The present speed is that of the last so many seconds, and of two readings at least."""
AHEAD_S = 0.5
"""A position is not guessed further than this beyond the newest reading."""
BROKEN_AFTER_S = 2.0
"""After a longer silence the counter may have overflowed unseen, and the way begins anew."""


class Encoder:
    """One counter; times are monotonic seconds.

    Args:
        bits: of the counter.
        down: it counts down while the belt goes forward.
    """

    def __init__(self, bits: int, *, down: bool = False) -> None:
        self._turn = 1 << bits
        self._sign = -1 if down else 1
        self._times: deque[float] = deque(maxlen=READINGS)
        self._positions: deque[float] = deque(maxlen=READINGS)
        self._raw = 0

    def read(self, at_s: float, raw: int) -> bool:
        """Take a reading; False when the way began anew, and positions given before mean nothing any more."""
        broken = bool(self._times) and not 0 <= at_s - self._times[-1] <= BROKEN_AFTER_S
        if broken:
            self._times.clear()
            self._positions.clear()
        half = self._turn // 2
        step = self._sign * ((raw - self._raw + half) % self._turn - half) if self._times else 0
        self._raw = raw
        self._positions.append((self._positions[-1] if self._positions else 0.0) + step)
        self._times.append(at_s)
        return not broken

    def position_at(self, at_s: float) -> float | None:
        """Where the belt was, in counts; None where nobody can know."""
        times, positions = self._times, self._positions
        if not times or at_s < times[0]:
            return None
        if at_s >= times[-1]:
            return positions[-1] + self._speed * (at_s - times[-1]) if at_s - times[-1] <= AHEAD_S else None
        after = bisect.bisect_right(times, at_s)
        share = (at_s - times[after - 1]) / (times[after] - times[after - 1])
        return positions[after - 1] + share * (positions[after] - positions[after - 1])

    def time_of(self, position: float) -> float:
        """When the belt reaches a position, or reached it; infinity: it does not move towards it."""
        times, positions = self._times, self._positions
        if not times:
            return math.inf
        if position <= positions[-1]:
            # Backwards from the newest: the last time that it went by.
            for place in range(len(times) - 1, 0, -1):
                if positions[place - 1] < position:
                    share = (position - positions[place - 1]) / (positions[place] - positions[place - 1])
                    return times[place - 1] + share * (times[place] - times[place - 1])
            return times[0]
        speed = self._speed
        return times[-1] + (position - positions[-1]) / speed if speed > 0 else math.inf

    @property
    def _speed(self) -> float:
        """Counts a second."""
        times, positions = self._times, self._positions
        place = len(times) - 2
        if place < 0:
            return 0.0
        while place > 0 and times[-1] - times[place] < SPEED_OVER_S:
            place -= 1
        span_s = times[-1] - times[place]
        return (positions[-1] - positions[place]) / span_s if span_s > 0 else 0.0
