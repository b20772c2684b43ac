"""One line on standard error that says how far a loop is and how long it will take; only where somebody watches."""

import sys
import time
from typing import TextIO

_EVERY_S = 0.2
_BAR = 24


class ProgressLine:
    """Callable with (done, total); writes over itself, and nothing at all where the stream is no terminal."""

    def __init__(self, what: str, stream: TextIO | None = None) -> None:
        self._what = what
        self._stream = sys.stderr if stream is None else stream
        self._began_s = time.monotonic()
        self._told_s = self._began_s - _EVERY_S

    def __call__(self, done: int, total: int) -> None:
        """Tell that `done` of `total` are finished."""
        now_s = time.monotonic()
        if not self._stream.isatty() or (done < total and now_s - self._told_s < _EVERY_S):
            return
        self._told_s = now_s
        left_s = (now_s - self._began_s) / max(done, 1) * (total - done)
        filled = round(_BAR * done / max(total, 1))
        bar = "█" * filled + "░" * (_BAR - filled)
        self._stream.write(f"\r{self._what} {bar} {done}/{total}, {_duration(left_s)} left \x1b[K")
        if done >= total:
            self._stream.write("\n")
        self._stream.flush()


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
