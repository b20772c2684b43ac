"""Reject outputs in the running station: one thread for each, which waits for moments and speaks to the device.

The cameras' threads only put what they know into its mailbox. The thread does the signals first; readings of an
encoder, the heartbeat and a look whether the device is there have to fit in between, unless they are overdue by more
than their own interval. The heartbeat counts only while the station does its work: the supervisor says several times a
second that there is progress and how the cameras do, and what it does not say in time does not count.
"""

import logging
import math
import os
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass

from station.encoder import Encoder
from station.errors import OutputError, OutputRefused
from station.faults import FaultBoard
from station.mailbox import Mailbox, Overflow
from station.messages import CameraStateName, RejectHealth
from station.ports import Clock, RejectDevice
from station.reject_schedule import Command, Outcomes, Part, RejectSchedule, course_of
from station.reject_settings import BaseReject
from station.tally import percentiles

logger = logging.getLogger(__name__)

LONGEST_WAIT_S = 0.1
"""How long the thread waits at most before it looks around."""
EVENTS_WAITING = 10_000
FIRST_PAUSE_S = 0.1
"""Pause before a device is connected to anew."""
LOOK_EVERY_S = 1.0
"""A device to which nothing else is said is looked at this often: a dead connection must not be found by a part."""
LEAST_GUARD_S = 0.002
"""Nothing else is begun this short before a signal, nor within one and a half times what the device took of late."""
LOST_TOUCH_S = 2.0
"""What the supervisor said counts for this long."""
TOLD_FOR_S = 10.0
"""Signals that were not given are a fault until none was for this long."""
DRAIN_S = 10.0
"""An orderly stop waits this long for parts that are on their way."""
BEATS = 1 << 16
REALTIME_PRIORITY = 10
"""Out of 1 to 99 of SCHED_FIFO: above every ordinary program, below the kernel's own threads."""


@dataclass(frozen=True, slots=True)
class _Taken:
    part: Part
    captured_s: float


@dataclass(frozen=True, slots=True)
class _Judged:
    part: Part
    outcome: Outcomes


@dataclass(frozen=True, slots=True)
class _Chore:
    """What is done with the device between signals."""

    due_s: float
    every_s: float
    do: Callable[[], None]


class RejectLine:
    """One output. `work` is for its own thread; the rest may be called by any.

    Args:
        name: of the output.
        settings: its table.
        cameras: whose parts it throws out.
        device: not entered.
        faults: what is wrong.
        clock: time.
    """

    def __init__(
        self,
        name: str,
        settings: BaseReject,
        cameras: Iterable[str],
        device: RejectDevice,
        faults: FaultBoard,
        clock: Clock,
    ) -> None:
        self.name = name
        self.cameras = frozenset(cameras)
        self._settings = settings
        self._device = device
        self._faults = faults
        self._clock = clock
        self._course = course_of(settings)
        self._schedule = RejectSchedule(settings, self._course)
        self._mailbox: Mailbox[_Taken | _Judged] = Mailbox(EVENTS_WAITING, Overflow.DROP_NEWEST)
        self._stopping = threading.Event()
        self._connected = False
        self._retry_s = self._tried_s = -math.inf
        self._pause_s = FIRST_PAUSE_S
        self._reply_s = 0.0
        self._beat = 0
        self._beat_s = self._count_s = self._look_s = -math.inf
        self._held_until_s = -math.inf
        self._said: tuple[float, str | None] = (-math.inf, "the station starts")
        self._told_until_s = -math.inf
        self._told_late = 0

    def expect(self, part: Part, captured_s: float) -> None:
        """A frame was taken that shows a part; before it is judged."""
        self._mailbox.put(_Taken(part, captured_s))

    def decide(self, part: Part, outcome: Outcomes) -> None:
        """The part's verdict."""
        self._mailbox.put(_Judged(part, outcome))

    def say(self, held: str | None) -> None:
        """The supervisor says whether the station works: why not, or None; the heartbeat depends on it."""
        self._said = (self._clock.monotonic_s(), held)

    def stop(self) -> None:
        """Let `work` end when the parts that are on their way have come to their moment."""
        self._stopping.set()
        self._mailbox.wake()

    def health(self) -> RejectHealth:
        """Figures for the `health` topic."""
        made = self._schedule
        return RejectHealth(
            connected=self._connected,
            expected=made.expected,
            pending=made.pending,
            spared=made.spared,
            written=made.written,
            late=made.late,
            failed=made.failed,
            overdue=made.overdue,
            held=self._held(self._clock.monotonic_s()),
            sent_ms=percentiles(tuple(made.sent_ms)),
            answered_ms=percentiles(tuple(made.answered_ms)),
        )

    # The output's thread

    def work(self) -> None:
        """Run until `stop`."""
        drained_s = math.inf
        with suppress(OSError):
            # Where the system allows it, other programs cannot keep this thread waiting for a processor.
            os.sched_setscheduler(threading.get_native_id(), os.SCHED_FIFO, os.sched_param(REALTIME_PRIORITY))
        try:
            while not (self._stopping.is_set() and (not self._schedule.pending or self._now() >= drained_s)):
                for event in self._mailbox.take_all(self._wait_s()):
                    self._take(event)
                self._connect_if_due()
                self._signal()
                self._between()
                self._tell()
                if self._stopping.is_set() and drained_s == math.inf:
                    drained_s = self._now() + DRAIN_S
        finally:
            if self._connected:
                with suppress(OutputError):
                    self._device.set(on=False)
                self._device.__exit__(None, None, None)
                self._connected = False

    def _take(self, event: _Taken | _Judged) -> None:
        if isinstance(event, _Taken):
            self._schedule.expect(event.part, event.captured_s)
        else:
            self._schedule.decide(event.part, event.outcome)

    def _wait_s(self) -> float:
        now_s = self._now()
        due_s = self._schedule.next_s()
        if self._connected:
            room = self._has_room(now_s)
            due_s = min(due_s, *(one.due_s if room else one.due_s + one.every_s for one in self._chores()))
        else:
            due_s = min(due_s, self._retry_s)
        return min(LONGEST_WAIT_S, max(0.0, due_s - now_s))

    def _signal(self) -> None:
        """Do everything whose moment has come."""
        while (command := self._schedule.step(self._now())) is not None:
            connected = self._connected
            why = self._carry_out(command)
            # A connection may have died without anybody noticing; a new one is made in a moment.
            tried = not connected and self._now() - self._tried_s < FIRST_PAUSE_S
            if why is not None and not self._connected and not tried and self._connect():
                why = self._carry_out(command)
            if why is not None:
                self._schedule.refused(command, why)

    def _carry_out(self, command: Command) -> str | None:
        """Tell the device; return why it did not do it."""
        if not self._connected:
            return "the device is away"
        sent_s = self._now()
        why = self._ask(lambda: self._device.set(on=command.on))
        if why is None:
            self._schedule.acknowledged(command, sent_s, self._now())
            self._faults.set(self._fault, None)
        return why

    def _between(self) -> None:
        """Count, beat and look around, as far as no signal is near."""
        for chore in self._chores():
            now_s = self._now()
            overdue = now_s >= chore.due_s + chore.every_s
            if self._connected and now_s >= chore.due_s and (overdue or self._has_room(now_s)):
                chore.do()

    def _has_room(self, now_s: float) -> bool:
        return self._schedule.next_s() - now_s > max(LEAST_GUARD_S, 1.5 * self._reply_s)

    def _chores(self) -> list[_Chore]:
        chores = [_Chore(self._look_s + LOOK_EVERY_S, LOOK_EVERY_S, self._look_around)]
        if (heartbeat := self._settings.heartbeat) is not None:
            chores.append(_Chore(self._beat_s + heartbeat.every_s, heartbeat.every_s, self._write_beat))
        if (counts := self._settings.counts) is not None:
            chores.append(_Chore(self._count_s + counts.poll_s, counts.poll_s, self._read_counts))
        return chores

    def _read_counts(self) -> None:
        began_s = self._count_s = self._now()
        found: list[int] = []
        why = self._ask(lambda: found.append(self._device.count()), " counts")
        if why is None and isinstance(self._course, Encoder):
            # The device looked at its counter somewhere between the question and the answer.
            middle_s = (began_s + self._now()) / 2
            if not self._course.read(middle_s, found[0]):
                self._schedule.lost_course()

    def _write_beat(self) -> None:
        self._beat_s = self._now()
        if self._held(self._beat_s) is None:
            self._beat = (self._beat + 1) % BEATS
            self._ask(lambda: self._device.beat(self._beat), " heartbeat")

    def _look_around(self) -> None:
        def look() -> None:
            # A device that refuses to be read is there all the same.
            with suppress(OutputRefused):
                self._device.look()

        if self._ask(look) is None:
            self._pause_s = FIRST_PAUSE_S

    def _ask(self, what: Callable[[], object], about: str = "") -> str | None:
        """Do something with the device; return why it failed. What it says is known on the board."""
        began_s = self._now()
        try:
            what()
        except OutputRefused as exc:
            self._faults.set(f"{self._fault}{about}", str(exc))
            return str(exc)
        except OutputError as exc:
            self._lose(str(exc))
            return str(exc)
        self._look_s = self._now()
        self._reply_s = max(self._look_s - began_s, 0.95 * self._reply_s)
        return None

    def _connect_if_due(self) -> None:
        if not self._connected and self._now() >= self._retry_s:
            self._connect()

    def _connect(self) -> bool:
        """Connect, and bring the output to rest: nobody knows what it was left at."""
        self._tried_s = self._now()
        try:
            self._device.__enter__()
        except OutputError as exc:
            self._lose(str(exc))
            return False
        self._connected = True
        if self._ask(lambda: self._device.set(on=False)) is None:
            for about in ("", " heartbeat", " counts"):
                self._faults.set(f"{self._fault}{about}", None)
        return self._connected

    def _lose(self, why: str) -> None:
        if self._connected:
            self._connected = False
            self._device.__exit__(None, None, None)
        self._faults.set(self._fault, why)
        self._retry_s = self._now() + self._pause_s
        self._pause_s = min(2 * self._pause_s, self._settings.reconnect_max_s)

    def _tell(self) -> None:
        """Hold the heartbeat for signals that were not given, and say so."""
        now_s, made = self._now(), self._schedule
        missed = list(made.missed)
        made.missed.clear()
        for (camera, sequence), why in missed:
            logger.warning("reject %s: no signal for frame %d: %s", self.name, sequence, why, extra={"camera": camera})
        if missed and self._settings.signal == "reject":
            self._held_until_s = now_s + self._settings.fail_safe_s
        late = made.failed + made.late + made.overdue
        if late > self._told_late:
            if now_s >= self._told_until_s:
                self._faults.set(self._late_fault, self._late_reason(missed))
            self._told_late, self._told_until_s = late, now_s + TOLD_FOR_S
        elif now_s >= self._told_until_s > -math.inf:
            self._faults.set(self._late_fault, None)
            self._told_until_s = -math.inf

    def _late_reason(self, missed: list[tuple[Part, str]]) -> str:
        made = self._schedule
        why = f"; the last one: {missed[-1][1]}" if missed else ""
        delay = f"delay_s = {self._settings.delay_s}" if self._settings.delay_s is not None else "delay_counts"
        return (
            f"of {made.expected} parts {made.overdue} had no verdict in time, {made.late} signals were late and "
            f"{made.failed} were not given{why}; if it goes on, {delay} is shorter than verdict and device take"
        )

    def _held(self, now_s: float) -> str | None:
        """Why the heartbeat must stand still."""
        said_s, why = self._said
        if self._settings.heartbeat is None:
            return None
        if why is not None:
            return why
        if now_s - said_s > LOST_TOUCH_S and not self._stopping.is_set():
            return "the station's supervisor says nothing"
        if now_s < self._held_until_s:
            return "a signal was not given"
        return None

    @property
    def _fault(self) -> str:
        return f"reject {self.name}"

    @property
    def _late_fault(self) -> str:
        return f"reject {self.name} signals"

    def _now(self) -> float:
        return self._clock.monotonic_s()


class RejectLines:
    """All outputs of a station; any thread.

    Args:
        lines: the outputs.
    """

    def __init__(self, lines: Iterable[RejectLine]) -> None:
        self._lines = tuple(lines)

    def expect(self, camera: str, sequence: int, captured_s: float) -> None:
        """A frame was taken; before it is judged."""
        for line in self._lines:
            if camera in line.cameras:
                line.expect((camera, sequence), captured_s)

    def decide(self, camera: str, sequence: int, outcome: Outcomes) -> None:
        """The frame's verdict; before anything is written to the disk."""
        for line in self._lines:
            if camera in line.cameras:
                line.decide((camera, sequence), outcome)

    def say(self, stalled: str | None, cameras: Mapping[str, CameraStateName]) -> None:
        """How the station does; the supervisor says it several times a second.

        Args:
            stalled: what makes no progress; None: all does.
            cameras: where each camera stands: parts go by unseen at one that does not run.
        """
        for line in self._lines:
            resting = [name for name in sorted(line.cameras) if cameras[name] is not CameraStateName.RUNNING]
            why = f"camera {resting[0]} is {cameras[resting[0]].value}" if resting else None
            line.say(f"no progress: {stalled}" if stalled else why)

    def works(self) -> list[tuple[str, Callable[[], None]]]:
        """(name, work) of each thread to run; a work ends after `stop`."""
        return [(f"reject-{line.name}", line.work) for line in self._lines]

    def stop(self) -> None:
        """Let every work end when its parts have come to their moment."""
        for line in self._lines:
            line.stop()

    def health(self) -> dict[str, RejectHealth]:
        """Figures for the `health` topic."""
        return {line.name: line.health() for line in self._lines}
