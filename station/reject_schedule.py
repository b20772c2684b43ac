"""When a reject output must do what: from frames and verdicts to signals in the order of their moments.

Theory of operation
-------------------
A part is *expected* as soon as its frame is taken, before it is judged. So its moment comes whether there is a verdict
or not, and a part without one is thrown out in time instead of passing by while the model still thinks. The moment is
the exposure plus a delay, on a *course*: the clock, or the counts of an encoder. Every part ends in exactly one of four
ways, which are counted::

    state      event                                        next state
    expected   verdict: no signal                           spared
    expected   verdict: signal                              due
    expected   its moment comes                             due, or failed, as `without_verdict` says; overdue
    due        its moment comes, the output is off          given: the output goes on
    due        its moment comes, the output is on, extend   written: the output stays on for longer
    due        more than `too_late` after its moment        failed: it would hit another part
    given      the device acknowledged within `late_after`  written
    given      the device acknowledged later                late
    given      the device did not                           failed
    (new)      the course does not know the exposure        failed

With `signal = "pass"` the signal is for the parts that may pass, and a part without a verdict gets none by itself.

Nothing here knows a clock, a thread or a device. A signal that was not given is kept in `missed` for whoever must act.
"""

import heapq
import math
from collections import deque
from dataclasses import dataclass
from typing import Literal, Protocol

from station.encoder import Encoder
from station.reject_settings import BaseReject

Outcomes = Literal["ok", "ng", "unknown", "skipped"]
Part = tuple[str, int]
"""Camera and sequence of the frame."""
SIGNALS_KEPT = 1000
"""Newest signals behind the percentiles."""


class Course(Protocol):
    """What the delay is measured on."""

    def position_at(self, at_s: float) -> float | None:
        """Where it was at a time; None: nobody knows."""

    def time_of(self, position: float) -> float:
        """When it gets there, or got there; infinity: not in sight."""


class ClockCourse:
    """The delay is a time."""

    def position_at(self, at_s: float) -> float | None:
        """The time itself."""
        return at_s

    def time_of(self, position: float) -> float:
        """The time itself."""
        return position


@dataclass(frozen=True, slots=True)
class Command:
    """What the device is to be told now.

    Attributes:
        on: give the signal; else take it back.
        moment_s: when it should be, monotonic.
        part: for which part; None: taking back concerns none.
    """

    on: bool
    moment_s: float
    part: Part | None = None


@dataclass(slots=True)
class _Expected:
    part: Part
    position: float
    signal: bool | None = None
    over: bool = False


class RejectSchedule:
    """The schedule of one output; times are monotonic seconds.

    Args:
        settings: of the output.
        course: the clock, or an encoder.
    """

    def __init__(self, settings: BaseReject, course: Course) -> None:
        self._settings = settings
        self._course = course
        self._delay = float(settings.delay_s if settings.delay_s is not None else abs(settings.delay_counts or 0))
        self._passes = settings.signal == "pass"
        self._parts: dict[Part, _Expected] = {}
        self._heap: list[tuple[float, int, _Expected]] = []
        self._number = 0
        self._on = False
        self._off_s = math.inf
        self.expected = self.spared = self.written = self.late = self.failed = self.overdue = 0
        self.missed: deque[tuple[Part, str]] = deque(maxlen=SIGNALS_KEPT)
        self.sent_ms: deque[float] = deque(maxlen=SIGNALS_KEPT)
        self.answered_ms: deque[float] = deque(maxlen=SIGNALS_KEPT)

    @property
    def pending(self) -> int:
        """Parts whose moment has not come."""
        return len(self._parts)

    @property
    def is_on(self) -> bool:
        """Whether the output is on, as far as the device did what it was told."""
        return self._on

    def expect(self, part: Part, captured_s: float) -> None:
        """A part was photographed at this time; its verdict comes later."""
        self.expected += 1
        position = self._course.position_at(captured_s)
        if position is None:
            self._miss(part, "the encoder's counts at its exposure are not known")
            return
        if part in self._parts:
            raise ValueError(f"{part} is expected already")
        expected = self._parts[part] = _Expected(part, position + self._delay)
        self._number += 1
        heapq.heappush(self._heap, (expected.position, self._number, expected))

    def decide(self, part: Part, outcome: Outcomes) -> None:
        """A part has its verdict; one whose moment has passed is not changed by it."""
        expected = self._parts.get(part)
        if expected is None:
            return
        thrown_out = outcome in self._settings.reject
        expected.signal = thrown_out is not self._passes
        if not expected.signal:
            self.spared += 1
            self._forget(expected)

    def lost_course(self) -> None:
        """The encoder's way began anew: nobody knows where the parts are that were expected."""
        for expected in tuple(self._parts.values()):
            self._forget(expected)
            self._miss(expected.part, "the encoder's counts were lost")

    def next_s(self) -> float:
        """When there is something to do; infinity: nothing in sight."""
        first_s = self._first_s()
        return min(first_s, self._off_at(first_s))

    def step(self, now_s: float) -> Command | None:
        """Return what the device is to be told now, one thing at a time; None: nothing."""
        while True:
            first_s = self._first_s()
            off_s = self._off_at(first_s)
            if self._on and off_s <= min(now_s, first_s):
                self._on, self._off_s = False, math.inf
                return Command(False, off_s)
            if first_s > now_s:
                return None
            command = self._comes(self._heap[0][2], first_s, now_s)
            if command is not None:
                return command

    def acknowledged(self, command: Command, sent_s: float, answered_s: float) -> None:
        """The device did what it was told."""
        if not command.on:
            return
        if answered_s - command.moment_s > self._settings.late_after_ms / 1e3:
            self.late += 1
        else:
            self.written += 1
        self.sent_ms.append((sent_s - command.moment_s) * 1e3)
        self.answered_ms.append((answered_s - command.moment_s) * 1e3)

    def refused(self, command: Command, why: str) -> None:
        """The device did not do it, or nobody knows: the output must be brought to rest before the next signal."""
        self._on, self._off_s = False, math.inf
        if command.part is not None:
            self._miss(command.part, why)

    def _comes(self, expected: _Expected, moment_s: float, now_s: float) -> Command | None:
        """A part's moment has come."""
        self._forget(expected)
        signal, wanted = expected.signal, self._settings
        if signal is None:
            self.overdue += 1
            signal = (wanted.without_verdict == "reject") is not self._passes
            if not signal:
                self._miss(expected.part, "it had no verdict at its moment")
                return None
        if now_s - moment_s > wanted.too_late_ms / 1e3:
            self._miss(expected.part, f"it was {(now_s - moment_s) * 1e3:.0f} ms too late to give the signal")
            return None
        if self._on:
            self._off_s = max(self._off_s, now_s + wanted.pulse_s)
            self.written += 1
            return None
        if wanted.pulse_s:
            self._on, self._off_s = True, now_s + wanted.pulse_s
        return Command(True, moment_s, expected.part)

    def _first_s(self) -> float:
        """The moment of the first part that is still expected."""
        while self._heap and self._heap[0][2].over:
            heapq.heappop(self._heap)
        return self._course.time_of(self._heap[0][0]) if self._heap else math.inf

    def _off_at(self, first_s: float) -> float:
        """When the output goes off; separate signals make room for the next one, which may yet need none."""
        if self._on and self._settings.overlap == "separate":
            return min(self._off_s, first_s - self._settings.gap_s)
        return self._off_s

    def _forget(self, expected: _Expected) -> None:
        expected.over = True
        del self._parts[expected.part]

    def _miss(self, part: Part, why: str) -> None:
        self.failed += 1
        self.missed.append((part, why))


def course_of(settings: BaseReject) -> ClockCourse | Encoder:
    """The clock, or an encoder."""
    if settings.counts is None:
        return ClockCourse()
    return Encoder(16 * settings.counts.width, down=(settings.delay_counts or 0) < 0)
