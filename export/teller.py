"""What a training says while it runs: lines that stay, and one that is written over, with a bar."""

import sys
import time
from collections.abc import Callable
from typing import TextIO

PROGRESS_MARK = "min left"
"""A line with these words tells how far it is; the next such line takes its place where somebody watches."""

_BAR = 24


class Teller:
    """Takes the lines of a training.

    On a terminal a line of progress gets a bar in front, the part of the time budget that is gone, and is written over
    by the next one; elsewhere (a log file) every line is a line of its own.
    """

    def __init__(
        self, budget_s: float | None, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._budget_s = budget_s
        self._stream = sys.stdout if stream is None else stream
        self._clock = clock
        self._began_s: float | None = None
        self._open = False

    def __call__(self, line: str) -> None:
        """Tell one line."""
        if PROGRESS_MARK in line and self._stream.isatty():
            self._stream.write(f"\r{self._bar()}{line}\x1b[K")
            self._open = True
        else:
            self.close()
            self._stream.write(f"{line}\n")
        self._stream.flush()

    def close(self) -> None:
        """End a line of progress, so that what follows stands below it."""
        if self._open:
            self._stream.write("\n")
            self._stream.flush()
        self._open = False

    def _bar(self) -> str:
        now_s = self._clock()
        if self._began_s is None:
            self._began_s = now_s
        if not self._budget_s:
            return ""
        share = min((now_s - self._began_s) / self._budget_s, 1.0)
        filled = round(_BAR * share)
        return f"{'█' * filled}{'░' * (_BAR - filled)} {100 * share:.0f} % "
