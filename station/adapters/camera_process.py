"""The station's side of a camera: starts its process, takes its frames, and replaces it when it hangs or dies.

The child is a fresh interpreter (``python -m station.adapters._camera_child``), not a fork: it loads what a camera
needs and inherits nothing of the station's threads. It is not started through `multiprocessing` either, which would run
the console script's imports again in the child and add a resource tracker, a process of its own. Frames come through a
shared-memory ring without a copy (see `_camera_channel`).

Theory of operation. Everything happens inside `read`, on the thread that calls it; no thread is added. Each call takes
what the child has announced, then looks at the child's live words, then waits::

    state      cause                                                              next state
    STARTING   first frame; for cameras whose silence is no fault: device open    RUNNING
    STARTING   device error, crash, deadline passed                               STALLED
    RUNNING    device error, crash, deadline passed                               STALLED
    STALLED    as from STARTING                                                   RUNNING, with `missed_since`
    any        the source has no more pictures                                    FINISHED
    any        `finish` was called and the last frame has been returned           STOPPED
    RUNNING    other controls, and a driver that waits for a trigger meanwhile    STALLED, opened anew with them

After a device error the child itself closes the device and opens it again, with back-off. A child that hangs is
killed; one that hung, crashed or was killed is replaced, with back-off. Frames that a dead child had announced are
whole and are returned; frames that it had numbered but not announced are returned without pixels and with the fault
`camera_fault`.
"""

import math
import os
import random
import select
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from types import TracebackType
from typing import Self, assert_never

from station.adapters._camera_channel import (
    Adjust,
    Adjusted,
    Announced,
    CapturePlan,
    Crashed,
    Faulted,
    Finished,
    FromChild,
    Job,
    LiveWords,
    NewRing,
    Opened,
    RingReader,
    Stop,
    Stopped,
    Waker,
    WithoutPixels,
    encode,
    receive,
    send,
)
from station.messages import Adjustment, CameraEvent, CameraStateName, Capture, Frame, Reason, SkipReason
from station.picture import View
from station.ports import Camera, Clock
from station.settings import CameraSettings, DeviceCamera, FolderCamera, SimulatedCamera, StreamCamera, VideoCamera

__all__ = ["CameraProcess", "CapturePlan", "plan_for"]

_LOOK_EVERY_S = 0.1
_LEAST_SILENCE_S = 1.0
"""A busy machine may keep a healthy child from the processor for this long."""
_STOP_WITHIN_S = 0.7
_REAP_WITHIN_S = 0.2
_FIRST_BACKOFF_S = 0.25
_ADJUST_WITHIN_S = 0.5
"""So long a driver that waits for a trigger has to come back by itself and let its camera's controls be set."""
_HEALTHY_AFTER_S = 10.0
"""A child that delivered for this long starts a new series of back-offs."""


def plan_for(settings: CameraSettings) -> CapturePlan:
    """How a camera of these settings is driven."""
    # A file loses nothing by waiting, so it is never overloaded; a restart of its process goes on where it was.
    files = isinstance(settings, FolderCamera | VideoCamera)
    rate_fps = None if isinstance(settings, StreamCamera) else settings.rate_fps
    watched = isinstance(settings, FolderCamera) and settings.mode == "watch"
    deadline_s = settings.read_deadline_s
    if not isinstance(settings, DeviceCamera | StreamCamera) and rate_fps:
        deadline_s += 1 / rate_fps
    return CapturePlan(
        policy=settings.policy,
        waits=files or (isinstance(settings, SimulatedCamera) and rate_fps == 0),
        resumes=files,
        fixed_size=not isinstance(settings, FolderCamera),
        watch_reads=settings.expects == "continuous" and not watched,
        # The frame that is being judged holds a slot, too.
        slots=settings.buffer_frames + 1,
        read_deadline_s=deadline_s,
        open_deadline_s=settings.open_timeout_s + 10 if isinstance(settings, StreamCamera) else 15.0,
        max_rate_fps=settings.max_rate_fps,
        view=View.of(settings),
        environment=_child_environment(settings),
    )


def _child_environment(settings: CameraSettings) -> dict[str, str]:
    return {
        # A frame of which only a part arrived is decoded into a whole picture with an invented rest, unless dropped
        # here. The transport is OpenCV's own default, which setting any option replaces.
        "OPENCV_FFMPEG_CAPTURE_OPTIONS": "rtsp_transport;tcp|fflags;discardcorrupt",
        # Read by OpenCV when it is loaded; its own default of 10 s outlasts the deadline.
        "OPENCV_VIDEOIO_V4L_SELECT_TIMEOUT": str(max(1, math.floor(settings.read_deadline_s))),
        # A camera that is away is told once, by the station, and not at every attempt.
        "OPENCV_LOG_LEVEL": "FATAL",
        "OPENCV_FFMPEG_LOGLEVEL": "-8",
    }


@dataclass(slots=True)
class _Child:
    """A running child process with everything that belongs to it."""

    process: subprocess.Popen[bytes]
    channel: socket.socket
    words: LiveWords
    waker: Waker
    started_s: float
    ring: RingReader | None = None
    running_since_s: float | None = None
    opens_with: Adjustment | None = None


class CameraProcess:
    """A FrameSource over a camera in a process of its own.

    Args:
        name: the camera's name.
        factory: picklable and importable in a fresh interpreter, for example ``functools.partial(make, settings)``; it
            returns a `station.ports.Camera` and is called for each opening of the device. With ``plan.resumes`` it is
            called with the keyword ``resume_after``.
        plan: how the camera is driven; see `plan_for`.
        clock: time; must be CLOCK_MONOTONIC, which the child's deadlines refer to.
        resume_after: source of the last picture that has a verdict from an earlier run; only for ``plan.resumes``.
    """

    def __init__(
        self,
        name: str,
        factory: Callable[..., Camera],
        plan: CapturePlan,
        clock: Clock,
        *,
        resume_after: str | None = None,
    ) -> None:
        self._name = name
        self._factory = factory
        self._plan = plan
        self._clock = clock
        self._resume_after = resume_after
        self._shape: tuple[int, ...] | None = None
        self._child: _Child | None = None
        self._unreaped: list[subprocess.Popen[bytes]] = []
        self._ready: deque[Frame | WithoutPixels | CameraEvent] = deque()
        self._received = 0
        self._returned = 0
        self._state = CameraStateName.STOPPED
        self._last_capture_at: datetime | None = None
        self._failures = 0
        self._start_at_s = 0.0
        self._finish_requested = False
        self._kill_at_s: float | None = None
        self._crash_reason: str | None = None
        self._controls: Mapping[str, float] | None = None
        self._asked: deque[Adjustment] = deque()
        self._adjusting: Adjustment | None = None
        self._adjust_number = 0
        self._adjust_until_s = 0.0

    def __enter__(self) -> Self:
        self._state = CameraStateName.STARTING
        self._last_capture_at = self._clock.now()
        self._ready.append(CameraEvent(self._name, self._state, self._last_capture_at))
        self._start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        child = self._child
        if child is not None:
            if self._kill_at_s is None:
                with suppress(OSError):
                    send(child.channel, Stop())
            with suppress(subprocess.TimeoutExpired):
                child.process.wait(_STOP_WITHIN_S)
            child.process.kill()
            self._dispose(child)
        self._reap()

    def finish(self) -> None:
        """Capture no more; `read` returns what was captured and then a STOPPED event, within a second."""
        self._finish_requested = True

    def adjust(self, controls: Mapping[str, float], *, must: bool = False) -> Adjustment:
        """Have the camera take these controls and read them back, in its process; from another thread.

        A refusal leaves the former ones in force, unless these `must` be taken: then the camera is closed and opened
        again until it takes them. Where the driver waits for a trigger, the camera is opened anew.
        """
        asked = Adjustment(controls, must)
        self._asked.append(asked)
        return asked

    def depth(self) -> int:
        """Frames numbered by the child and not yet returned; may be asked from another thread."""
        child = self._child
        known = max(self._received, child.words.last_number) if child else self._received
        return max(0, known - self._returned)

    def read(self, timeout_s: float) -> Frame | CameraEvent | None:
        """Return the next frame or event; None when nothing came within `timeout_s`."""
        until_s = self._clock.monotonic_s() + timeout_s
        if self._finish_requested and self._kill_at_s is None:
            # Not only when nothing waits: where frames come faster than they are judged, something always does.
            self._supervise()
        self._follow_adjustment()
        while True:
            if (self._plan.policy == "latest" or not self._ready) and not self._receive() and self._child is not None:
                self._bury(self._child)
            if not self._ready:
                self._supervise()
            if self._ready:
                return self._take()
            left_s = until_s - self._clock.monotonic_s()
            if left_s <= 0:
                return None
            self._wait(min(left_s, _LOOK_EVERY_S))

    def _wait(self, timeout_s: float) -> None:
        poller = select.poll()
        if self._child is not None:
            poller.register(self._child.channel, select.POLLIN)
        poller.poll(math.ceil(timeout_s * 1e3))

    def _take(self) -> Frame | CameraEvent:
        item = self._ready.popleft()
        if isinstance(item, CameraEvent):
            return item
        if isinstance(item, WithoutPixels):
            if item.count > 1:
                self._ready.appendleft(replace(item, number=item.number + 1, count=item.count - 1))
            item = Frame(self._name, item.number, item.capture)
        self._returned = item.sequence
        return item

    # What the child says

    def _receive(self) -> bool:
        """Take everything the child has said; False when nothing more can come from it."""
        while (child := self._child) is not None:
            try:
                message, descriptor = receive(child.channel)
            except BlockingIOError:
                return True
            except EOFError:
                return False
            self._heard(child, message, descriptor)
        return True

    def _heard(self, child: _Child, message: FromChild, descriptor: int | None) -> None:
        match message:
            case Announced() | WithoutPixels():
                self._captured(child, message)
            case NewRing():
                assert descriptor is not None
                try:
                    child.ring = RingReader(descriptor, message.slots, message.slot_bytes)
                finally:
                    os.close(descriptor)
                self._shape = message.shape
            case Adjusted():
                self._adjusted(message)
            case Opened():
                self._opened(child)
            case Faulted():
                self._stalled(message.reason)
            case Crashed():
                self._crash_reason = message.reason
            case Finished():
                self._dispose(child)
                self._change(CameraStateName.FINISHED)
            case Stopped():
                self._dispose(child)
                self._change(CameraStateName.STOPPED)
            case _:
                assert_never(message)

    def _captured(self, child: _Child, message: Announced | WithoutPixels) -> None:
        self._declare_lost(message.number - 1)
        self._running(child)
        capture = message.capture
        self._last_capture_at = capture.captured_at
        if capture.source is not None:
            self._resume_after = capture.source
        if isinstance(message, WithoutPixels):
            if capture.skipped is SkipReason.SUPERSEDED:
                self._supersede()
            self._received = message.number + message.count - 1
            self._ready.append(message)
            return
        assert child.ring is not None
        if self._plan.policy == "latest":
            self._supersede()
        pixels, release = child.ring.lend(message.slot, message.shape, child.waker)
        self._received = message.number
        self._ready.append(Frame(self._name, message.number, replace(capture, pixels=pixels), release))

    def _supersede(self) -> None:
        """A newer picture is known: what still waits is skipped. A waiting frame has been looked at once when it came,
        so at most one has pixels; what it holds goes back to the child at once."""
        for index in range(len(self._ready) - 1, -1, -1):
            item = self._ready[index]
            if isinstance(item, Frame) and item.capture.pixels is not None:
                item.release()
                skipped = replace(item.capture, pixels=None, skipped=SkipReason.SUPERSEDED)
                self._ready[index] = WithoutPixels(item.sequence, 1, skipped)
                return

    def _declare_lost(self, up_to: int) -> None:
        """Account for frames that the child numbered and never announced."""
        lost = up_to - self._received
        if lost > 0:
            capture = Capture(None, self._clock.now(), self._clock.monotonic_s(), fault=Reason.CAMERA_FAULT)
            self._ready.append(WithoutPixels(self._received + 1, lost, capture))
            self._received = up_to

    # Controls

    def _follow_adjustment(self) -> None:
        """Hand on what was asked for, and open a camera anew whose driver does not come back for it."""
        child = self._child
        if self._take_asked():
            assert self._order is not None
            if child is not None:
                # One that ends in this moment is replaced by one that opens with the controls.
                with suppress(OSError):
                    send(child.channel, self._order)
        elif (
            self._adjusting is not None
            and child is not None
            and child.opens_with is not self._adjusting
            and not self._plan.watch_reads
            and not self._finish_requested
            and child.words.busy[0] == "reading"
            and self._clock.monotonic_s() > self._adjust_until_s
        ):
            self._bury(child, "is opened anew, to take other controls while it waits for a trigger")

    def _take_asked(self) -> bool:
        """Take what was asked for; False: nothing was."""
        if not self._asked:
            return False
        while self._asked:
            self._adjusting = self._asked.popleft()
        self._adjust_number += 1
        self._adjust_until_s = self._clock.monotonic_s() + _ADJUST_WITHIN_S
        return True

    @property
    def _order(self) -> Adjust | None:
        """What the child is to do for whoever asked last; None: it has done all."""
        asked = self._adjusting
        return Adjust(self._adjust_number, asked.controls, asked.must) if asked is not None else None

    def _adjusted(self, told: Adjusted) -> None:
        if self._adjusting is None or told.number != self._adjust_number:
            return
        done, self._adjusting = self._adjusting, None
        if told.refused is None:
            self._controls = done.controls
            done.done = True
        else:
            done.refused = told.refused

    def _opened(self, child: _Child) -> None:
        if not self._plan.watch_reads:
            self._running(child)

    # The child's life

    def _start(self) -> None:
        self._take_asked()
        job = Job(
            self._name,
            self._factory,
            self._plan,
            self._received + 1,
            self._resume_after,
            self._shape,
            _other_cpus(),
            self._controls,
            self._order,
        )
        first_message = encode(job)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        words = os.memfd_create("camera-words", os.MFD_CLOEXEC)
        waker = Waker()
        try:
            os.ftruncate(words, LiveWords.SIZE)
            live = LiveWords(words)
            descriptors = (theirs.fileno(), words, waker.descriptor)
            arguments = ["--camera", self._name, "--parent", str(os.getpid()), "--descriptors", *map(str, descriptors)]
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "station.adapters._camera_child", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=descriptors,
                env=_environment(self._plan.environment),
                # Keys pressed in the station's terminal are the station's business.
                start_new_session=True,
            )
        except OSError as exc:
            ours.close()
            waker.close()
            self._stalled(f"the camera process cannot be started: {exc}")
            self._schedule_start()
            return
        finally:
            theirs.close()
            os.close(words)
        ours.setblocking(False)
        self._child = _Child(process, ours, live, waker, self._clock.monotonic_s(), opens_with=self._adjusting)
        self._crash_reason = None
        try:
            ours.send(first_message)
        except OSError:
            self._bury(self._child)

    def _supervise(self) -> None:
        now_s = self._clock.monotonic_s()
        child = self._child
        if self._finish_requested:
            self._finish(child, now_s)
        elif child is not None:
            if reason := self._overdue(child, now_s):
                self._bury(child, reason)
        elif self._state is not CameraStateName.FINISHED and now_s >= self._start_at_s:
            self._reap()
            self._start()

    def _finish(self, child: _Child | None, now_s: float) -> None:
        if child is None:
            self._change(CameraStateName.STOPPED)
        elif self._kill_at_s is None:
            self._kill_at_s = now_s + _STOP_WITHIN_S
            with suppress(OSError):
                send(child.channel, Stop())
        elif now_s >= self._kill_at_s:
            self._bury(child, f"the driver did not return within {_STOP_WITHIN_S:g} s of the word to stop")

    def _overdue(self, child: _Child, now_s: float) -> str | None:
        plan = self._plan
        sign_of_life_s = child.words.sign_of_life_s
        if sign_of_life_s == 0:
            overdue = now_s - child.started_s > plan.open_deadline_s
            return f"the camera process did not start within {plan.open_deadline_s:g} s" if overdue else None
        silence_s = max(plan.read_deadline_s, _LEAST_SILENCE_S)
        business, since_s = child.words.busy
        if business == "reading" and plan.watch_reads and now_s - since_s > plan.read_deadline_s:
            return f"no picture for {plan.read_deadline_s:g} s"
        if business == "opening" and now_s - since_s > plan.open_deadline_s:
            return f"the camera cannot be opened or closed within {plan.open_deadline_s:g} s"
        if now_s - sign_of_life_s > silence_s:
            return f"the camera process gives no sign of life for {silence_s:g} s"
        return None

    def _bury(self, child: _Child, reason: str | None = None) -> None:
        """End a child that hangs or has ended without a last word, after taking what it had announced."""
        if reason is None:
            with suppress(subprocess.TimeoutExpired):
                child.process.wait(_REAP_WITHIN_S)
            reason = _describe_end(child.process.returncode)
        child.process.kill()
        heard_all = self._receive()
        while heard_all and self._child is child:
            # Its end of the channel closes when the kernel has ended it, which a driver may delay.
            poller = select.poll()
            poller.register(child.channel, select.POLLIN)
            if not poller.poll(_REAP_WITHIN_S * 1e3):
                break
            heard_all = self._receive()
        if self._child is not child:
            return
        self._declare_lost(child.words.last_number)
        self._dispose(child)
        if self._finish_requested:
            self._change(CameraStateName.STOPPED)
            return
        self._stalled(self._crash_reason or reason)
        now_s = self._clock.monotonic_s()
        if child.running_since_s is not None and now_s - child.running_since_s > _HEALTHY_AFTER_S:
            self._failures = 0
        self._schedule_start()

    def _schedule_start(self) -> None:
        pause_s = min(_FIRST_BACKOFF_S * 2**self._failures, self._plan.backoff_max_s)
        self._failures = min(self._failures + 1, 16)
        self._start_at_s = self._clock.monotonic_s() + pause_s * random.uniform(0.5, 1)

    def _dispose(self, child: _Child) -> None:
        child.channel.close()
        child.waker.close()
        try:
            child.process.wait(_REAP_WITHIN_S)
        except subprocess.TimeoutExpired:
            child.process.kill()
            try:
                child.process.wait(_REAP_WITHIN_S)
            except subprocess.TimeoutExpired:
                # In an uninterruptible sleep inside a driver: it goes when the driver lets it.
                self._unreaped.append(child.process)
        self._child = None

    def _reap(self) -> None:
        self._unreaped = [process for process in self._unreaped if process.poll() is None]

    # Changes of state

    def _running(self, child: _Child) -> None:
        if self._state is CameraStateName.RUNNING:
            return
        child.running_since_s = self._clock.monotonic_s()
        # A file that was not read for a while has lost nothing.
        missed = self._state is CameraStateName.STALLED and not self._plan.waits
        self._change(CameraStateName.RUNNING, missed_since=self._last_capture_at if missed else None)

    def _stalled(self, reason: str) -> None:
        if not self._finish_requested:
            self._change(CameraStateName.STALLED, reason)

    def _change(self, state: CameraStateName, reason: str | None = None, missed_since: datetime | None = None) -> None:
        if state is not self._state:
            self._state = state
            self._ready.append(CameraEvent(self._name, state, self._clock.now(), reason, missed_since))


def _environment(wanted: Mapping[str, str]) -> dict[str, str]:
    # The child must find the same modules, however this interpreter was told of them.
    path = os.pathsep.join(os.path.abspath(folder) for folder in sys.path)  # noqa: PTH100  # of strings, for strings
    return {**wanted, **os.environ, "PYTHONPATH": path}


def _other_cpus() -> frozenset[int] | None:
    """Where this thread is pinned to a processor of its own, the camera shall keep off it."""
    process, thread = os.sched_getaffinity(os.getpid()), os.sched_getaffinity(0)
    return frozenset(process - thread or process) if process != thread else None


def _describe_end(returncode: int | None) -> str:
    if returncode is not None and returncode < 0:
        try:
            cause = signal.Signals(-returncode).name
        except ValueError:
            cause = f"signal {-returncode}"
        return f"the camera process was ended by {cause}"
    return f"the camera process ended by itself with exit code {returncode}"
