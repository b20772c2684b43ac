"""The simulated line as a camera: pace, times, and the same web as its seed says."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise

import numpy as np
import pytest

from station.adapters.simulated_line import SLICE_LINES, SimulatedLine, SimulatedLineCamera
from station.boards import Web
from station.errors import CameraError, EndOfStream
from station.linescan import FRAME_LINES, OVERLAP_LINES


class HandClock:
    """A clock that only moves when told; waiting moves it."""

    def __init__(self) -> None:
        self.at_s = 1000.0
        self.waits: list[float] = []

    def now(self) -> datetime:
        return datetime(2030, 1, 1, tzinfo=UTC) + timedelta(seconds=self.at_s)

    def monotonic_s(self) -> float:
        return self.at_s

    def wait(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.at_s += seconds


def test_frames_show_the_web_of_the_seed() -> None:
    line = SimulatedLine(HandClock(), seed=4, rate_fps=0, defect_share=0.5)
    web = Web(4, defect_share=0.5)
    with SimulatedLineCamera(line, frames=3) as camera:
        frames = [camera.read() for _ in range(3)]
        with pytest.raises(EndOfStream, match="3 frames"):
            camera.read()
    for frame in frames:
        assert frame.first_line is not None
        assert frame.pixels is not None
        assert np.array_equal(frame.pixels, web.render(frame.first_line, FRAME_LINES))
        assert frame.fault is None


def test_the_pace_follows_the_clock_without_drift() -> None:
    clock = HandClock()
    with SimulatedLineCamera(SimulatedLine(clock, seed=4, rate_fps=20, wait=clock.wait)) as camera:
        times = []
        for _ in range(12):
            clock.at_s += 0.013
            times.append(camera.read().captured_monotonic_s)
    assert times[0] == pytest.approx(1000 + FRAME_LINES / (20 * (FRAME_LINES - OVERLAP_LINES)))
    assert [b - a for a, b in pairwise(times)] == pytest.approx([0.05] * 11)
    assert clock.at_s == pytest.approx(times[-1])


def test_a_late_reader_gets_the_time_of_the_exposure() -> None:
    clock = HandClock()
    with SimulatedLine(clock, seed=4, rate_fps=20, wait=clock.wait) as line:
        clock.at_s += 5.0
        piece = line.read()
    lines_per_s = 20 * (FRAME_LINES - OVERLAP_LINES)
    assert piece.captured_monotonic_s == pytest.approx(1000 + SLICE_LINES / lines_per_s)
    assert clock.now() - piece.captured_at == timedelta(seconds=clock.at_s - piece.captured_monotonic_s)
    assert clock.waits == []


def test_without_a_rate_nothing_waits() -> None:
    clock = HandClock()
    with SimulatedLine(clock, seed=4, rate_fps=0, slice_lines=50, wait=clock.wait) as line:
        pieces = [line.read() for _ in range(5)]
    assert [p.first_line for p in pieces] == [0, 50, 100, 150, 200]
    assert {p.pixels.shape for p in pieces} == {(50, 640)}
    assert clock.waits == []


def test_opened_again_it_begins_again() -> None:
    line = SimulatedLine(HandClock(), seed=4, rate_fps=0)
    camera = SimulatedLineCamera(line)
    with camera:
        first = camera.read()
    with pytest.raises(CameraError, match="not open"):
        camera.read()
    with pytest.raises(CameraError, match="not open"):
        line.read()
    with camera:
        again = camera.read()
    assert first.pixels is not None
    assert again.pixels is not None
    assert np.array_equal(first.pixels, again.pixels)
    assert again.first_line == 0


def test_bad_values_are_named() -> None:
    with pytest.raises(ValueError, match="rate_fps = -1"):
        SimulatedLine(HandClock(), seed=1, rate_fps=-1)
    with pytest.raises(ValueError, match="slice_lines = 0"):
        SimulatedLine(HandClock(), seed=1, rate_fps=1, slice_lines=0)
