"""A simulated production line: an endless circuit-board web under a line-scan camera.

`SimulatedLine` delivers slices of lines at the pace of the belt, as a line-scan driver does; `SimulatedLineCamera`
joins them into inspection frames.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from datetime import timedelta
from types import TracebackType
from typing import Self

from station.boards import Web
from station.errors import CameraError, EndOfStream
from station.linescan import FRAME_LINES, OVERLAP_LINES, FrameAssembler
from station.messages import Capture, Slice
from station.ports import Clock

SLICE_LINES = 32

_STEP_LINES = FRAME_LINES - OVERLAP_LINES


def risen_from_line(rise_after_s: float, rate_fps: float) -> int:
    """The line of the web that passes the camera so long after it was opened."""
    return round(rise_after_s * rate_fps * _STEP_LINES)


class SimulatedLine:
    """Slices of the web of one seed.

    Line n is exposed n / (lines per second) after the camera was opened, whatever happens meanwhile: a reader that
    comes late gets its slices late, with the time at which they were exposed. With rate 0 a slice is exposed when it
    is read.

    Args:
        clock: time.
        seed, width_px, defect_share: of the web, see `station.boards.Web`.
        rate_fps: frames a second that the slices make; 0: as fast as they are read.
        slice_lines: lines of a slice.
        rise: (seconds, share): what is exposed from then on has another share of defects.
        wait: pauses for the given number of seconds.

    Raises:
        ValueError: a value is not allowed.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        seed: int,
        rate_fps: float,
        defect_share: float = 0.1,
        width_px: int = 640,
        slice_lines: int = SLICE_LINES,
        rise: tuple[float, float] | None = None,
        wait: Callable[[float], None] = time.sleep,
    ) -> None:
        if rate_fps < 0:
            raise ValueError(f"rate_fps = {rate_fps}; allowed: 0 or more")
        if slice_lines < 1:
            raise ValueError(f"slice_lines = {slice_lines}; allowed: 1 or more")
        self.width_px = width_px
        self._clock = clock
        self._wait = wait
        self._seed = seed
        self._defect_share = defect_share
        self._slice_lines = slice_lines
        self._lines_per_s = rate_fps * _STEP_LINES
        self._rise = (risen_from_line(rise[0], rate_fps), rise[1]) if rise else None
        self._web: Web | None = None
        self._line = 0
        self._opened_s = 0.0

    def __enter__(self) -> Self:
        self._web = Web(self._seed, self.width_px, self._defect_share, rise=self._rise)
        self._web.prepare(0)
        self._line = 0
        self._opened_s = self._clock.monotonic_s()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        self._web = None

    def read(self) -> Slice:
        """Wait until the next slice is exposed.

        Raises:
            CameraError: the line is not open.
        """
        if self._web is None:
            raise CameraError("the simulated line is not open")
        first = self._line
        pixels = self._web.render(first, self._slice_lines)
        self._line += self._slice_lines
        now_s = self._clock.monotonic_s()
        if not self._lines_per_s:
            return Slice(pixels, first, self._clock.now(), now_s)
        exposed_s = self._opened_s + self._line / self._lines_per_s
        if exposed_s > now_s:
            self._wait(exposed_s - now_s)
        late = timedelta(seconds=self._clock.monotonic_s() - exposed_s)
        return Slice(pixels, first, self._clock.now() - late, exposed_s)


class SimulatedLineCamera:
    """The simulated line as a camera that delivers frames.

    Args:
        line: where the slices come from; opened and closed with the camera.
        frames: stop after this many; None: endless.
    """

    def __init__(self, line: SimulatedLine, frames: int | None = None) -> None:
        self._line = line
        self._frames = frames
        self._delivered = 0
        self._assembler: FrameAssembler | None = None
        self._ready: deque[Capture] = deque()

    def __enter__(self) -> Self:
        self._line.__enter__()
        self._assembler = FrameAssembler(self._line.width_px)
        self._ready.clear()
        self._delivered = 0
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        self._assembler = None
        self._line.__exit__(kind, error, trace)

    def read(self) -> Capture:
        """Wait for the next frame, `[640, width]` grey.

        Raises:
            CameraError: the camera is not open.
            EndOfStream: all frames were delivered.
        """
        if self._assembler is None:
            raise CameraError("the simulated line is not open")
        if self._frames is not None and self._delivered >= self._frames:
            raise EndOfStream(f"the simulated line has delivered its {self._frames} frames")
        while not self._ready:
            self._ready.extend(self._assembler.feed(self._line.read()))
        self._delivered += 1
        return self._ready.popleft()
