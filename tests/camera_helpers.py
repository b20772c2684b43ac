"""Cameras that misbehave on demand, for the camera's own process to run, and what drives them in tests."""

import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from station.adapters.camera_process import CameraProcess
from station.adapters.system_clock import SystemClock
from station.errors import CameraError, EndOfStream
from station.messages import CameraEvent, CameraStateName, Capture, Frame, Pixels
from station.settings import DeviceCamera

CLOCK = SystemClock()


def picture(number: int, shape: tuple[int, ...] = (48, 64)) -> Pixels:
    """The noise picture of a number: the same in every process."""
    return np.random.default_rng(number).integers(0, 256, shape, np.uint8)


@dataclass
class CountingCamera:
    """Delivers noise pictures; the number within this opening is in `source` unless it is a live camera.

    Attributes:
        count: pictures until the end.
        rate_fps: pace; 0: as fast as it can.
        shape: of every picture.
        mishap: what happens instead of picture number `at`, once: the file `fuse` must exist and is removed. `hang`,
            `freeze` (the whole process), `crash`, `exception`, `error` (a CameraError), `shrink` (a smaller picture).
        named: pictures have a source, and reading goes on behind `resume_after`.
    """

    count: int = 1_000_000
    rate_fps: float = 0.0
    shape: tuple[int, ...] = (48, 64)
    mishap: str | None = None
    at: int = 0
    fuse: Path | None = None
    named: bool = False
    resume_after: str | None = None
    _next: int = field(default=0, init=False)

    def __enter__(self) -> Self:
        self._next = int(self.resume_after) + 1 if self.resume_after is not None else 0
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        return

    def read(self) -> Capture:
        if self._next >= self.count:
            raise EndOfStream("no more numbers")
        if self.rate_fps:
            threading.Event().wait(1 / self.rate_fps)
        number, self._next = self._next, self._next + 1
        shape = self.shape
        if self.mishap and number == self.at and self.fuse is not None and self.fuse.exists():
            self.fuse.unlink()
            shape = self._go_wrong()
        source = str(number) if self.named else None
        return Capture(picture(number, shape), CLOCK.now(), CLOCK.monotonic_s(), source=source)

    def _go_wrong(self) -> tuple[int, ...]:
        match self.mishap:
            case "hang":
                threading.Event().wait()
            case "freeze":
                os.kill(os.getpid(), signal.SIGSTOP)
            case "crash":
                os.kill(os.getpid(), signal.SIGSEGV)
            case "exception":
                raise KeyError("a bug in an adapter")
            case "error":
                raise CameraError("the cable was pulled")
        return (self.shape[0] // 2, *self.shape[1:])


def counting(resume_after: str | None = None, **options: Any) -> CountingCamera:
    """Factory for `CameraProcess`."""
    return CountingCamera(resume_after=resume_after, **options)


@dataclass
class AdjustableCamera(CountingCamera):
    """A device with controls; the source of each picture tells those that it was taken under.

    Attributes:
        controls: set at each opening, as the table of a device's camera says.
        largest: a file with the largest value that the device takes; it keeps what it had where more is asked for.
        trigger: a file for each picture, removed when it was taken; None: no trigger is waited for.
    """

    controls: Mapping[str, float] = field(default_factory=dict)
    largest: Path | None = None
    trigger: Path | None = None
    _now: dict[str, float] = field(default_factory=dict, init=False)

    def __enter__(self) -> Self:
        self._now = dict(self.controls)
        return super().__enter__()

    def adjust(self, controls: Mapping[str, float]) -> None:
        largest = float(self.largest.read_text()) if self.largest is not None else float("inf")
        self._now.update({name: value for name, value in controls.items() if value <= largest})
        if refused := [
            f"{name} = {value:g} (reads {self._now[name]:g})"
            for name, value in controls.items()
            if self._now[name] != value
        ]:
            raise CameraError(f"controls did not take their values: {'; '.join(refused)}")

    def read(self) -> Capture:
        while self.trigger is not None and not self.trigger.exists():
            threading.Event().wait(0.005)
        taken = super().read()
        if self.trigger is not None:
            self.trigger.unlink()
        return replace(taken, source=shown(self._now))


def shown(controls: Mapping[str, float]) -> str:
    """What the pictures of an `AdjustableCamera` have as their source under these controls."""
    return ", ".join(f"{name} {value:g}" for name, value in sorted(controls.items()))


def adjustable(**options: Any) -> AdjustableCamera:
    """Factory for `CameraProcess`."""
    return AdjustableCamera(**options)


def adjustable_device(settings: DeviceCamera, *, resume_after: str | None = None) -> AdjustableCamera:
    """In the place of `make_camera`: the device is a folder, where `largest` may stand."""
    assert resume_after is None
    folder = Path(str(settings.device))
    return AdjustableCamera(
        rate_fps=settings.rate_fps or 0.0,
        shape=(192, 192),
        controls={str(name): value for name, value in settings.controls.items()},
        largest=folder / "largest",
    )


@dataclass
class Seen:
    """What a FrameSource returned, with the time at which it did."""

    frames: list[Frame] = field(default_factory=list)
    events: list[CameraEvent] = field(default_factory=list)
    event_times_s: list[float] = field(default_factory=list)
    last_frame_s: float = 0.0

    @property
    def states(self) -> list[CameraStateName]:
        return [event.state for event in self.events]

    @property
    def sequences(self) -> list[int]:
        return [frame.sequence for frame in self.frames]

    def time_of(self, state: CameraStateName) -> float:
        return self.event_times_s[self.states.index(state)]


def drive(
    source: CameraProcess,
    until: Callable[[Seen], bool],
    *,
    seen: Seen | None = None,
    within_s: float = 20.0,
    look: Callable[[Frame], None] | None = None,
    release: bool = True,
) -> Seen:
    """Read until a condition holds; fail when it does not hold in time."""
    seen = seen or Seen()
    deadline_s = time.monotonic() + within_s
    while not until(seen):
        assert time.monotonic() < deadline_s, f"not within {within_s} s; saw {seen.states}, {len(seen.frames)} frames"
        item = source.read(0.05)
        if isinstance(item, Frame):
            if look is not None:
                look(item)
            seen.frames.append(item)
            seen.last_frame_s = time.monotonic()
            if release:
                item.release()
        elif item is not None:
            seen.events.append(item)
            seen.event_times_s.append(time.monotonic())
    return seen


def finish(source: CameraProcess, seen: Seen) -> Seen:
    """Stop in an orderly way and take what is left."""
    source.finish()
    return drive(source, lambda so_far: CameraStateName.STOPPED in so_far.states, seen=seen, within_s=5)
