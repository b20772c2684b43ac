"""The camera's own process: ``python -m station.adapters._camera_child``, started by `camera_process` only.

Two threads. The main one opens the camera, reads, numbers, writes into the ring and announces. The other gives a sign
of life, waits for the word to stop and ends the process when the station is gone; the main thread may at that time be
inside a driver that never returns. It imports no more than the camera needs: starting anew must be quick.
"""

import argparse
import ctypes
import os
import random
import select
import signal
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import replace

from station.adapters._camera_channel import (
    Adjust,
    Adjusted,
    Announced,
    Crashed,
    Faulted,
    Finished,
    FromChild,
    Job,
    LiveWords,
    NewRing,
    Opened,
    RingWriter,
    Stopped,
    WithoutPixels,
    receive,
    send,
)
from station.errors import CameraError, EndOfStream
from station.heap import keep_the_heap_small
from station.messages import Capture, Pixels, Reason, SkipReason
from station.picture import apply
from station.ports import Adjustable, Camera

SIGN_OF_LIFE_S = 0.1
STOP_GRACE_S = 0.4
"""After the word to stop, a read may take this long before the process ends without it."""
SETTLING_FRAMES = 2
"""So many pictures are taken after other controls were set, before they count as set."""
_RECHECK_S = 0.1
_BACKLOG = 4096
_FIRST_BACKOFF_S = 0.25
_PR_SET_NAME = 15
_PR_SET_PDEATHSIG = 1


class _Stopping(Exception):  # not an error
    """The station asked to stop while the child was waiting."""


class _Child:
    def __init__(self, channel: socket.socket, words: LiveWords, wake: int, job: Job) -> None:
        self._channel = channel
        self._words = words
        self._wake = wake
        self._job = job
        self._plan = job.plan
        self._stop = threading.Event()
        self._ring: RingWriter | None = None
        self._backlog: deque[WithoutPixels] = deque()
        self._next_number = job.first_number
        self._resume_after = job.resume_after
        self._shape = job.shape
        self._due_s = 0.0
        self._failures = 0
        self._controls = job.controls
        self._orders: deque[Adjust] = deque([job.order] if job.order is not None else [])
        self._order: Adjust | None = None
        self._settling: tuple[Adjusted, int] | None = None

    def run(self) -> None:
        threading.Thread(target=self._watch_station, name="station-watch", daemon=True).start()
        try:
            while not self._stop.is_set():
                try:
                    self._session()
                except CameraError as exc:
                    self._words.idle()
                    self._send_patiently(Faulted(str(exc)))
                    self._back_off()
        except _Stopping:
            pass
        except EndOfStream:
            self._words.idle()
            self._send_patiently(Finished())
            return
        self._words.idle()
        self._send_patiently(Stopped(), until_stopped=False)

    def _session(self) -> None:
        self._words.opening(time.monotonic())
        factory = self._job.factory
        camera = factory(resume_after=self._resume_after) if self._plan.resumes else factory()
        with camera:
            told = self._set_on_opening(camera)
            self._words.idle()
            self._send_patiently(Opened())
            if told is not None:
                self._send_patiently(told)
            try:
                self._capture(camera)
            finally:
                self._words.opening(time.monotonic())

    def _capture(self, camera: Camera) -> None:
        while not self._stop.is_set():
            self._adjust(camera)
            self._words.reading(time.monotonic())
            capture = camera.read()
            self._words.idle()
            self._failures = 0
            self._hand_on(capture)
            self._settle()

    def _set_on_opening(self, camera: Camera) -> Adjusted | None:
        """Set what was ordered last, else what held before; return what to tell the station when the camera is open.

        Raises:
            CameraError: the controls cannot be set; what was ordered is tried again at the next opening.
        """
        while self._orders:
            self._order, self._settling = self._orders.popleft(), None
        # Set before the last session ended, and set again below: nothing is left to settle.
        told, self._settling = self._settling[0] if self._settling is not None else None, None
        if (order := self._order) is not None:
            told = self._carry_out(camera, order)
        elif self._controls:
            _set(camera, self._controls)
        return told

    def _adjust(self, camera: Camera) -> None:
        """Set the controls that were ordered; those before hold again where they are refused.

        Raises:
            CameraError: neither can be set; the next opening goes on with it.
        """
        while self._orders:
            self._order, self._settling = self._orders.popleft(), None
            self._words.opening(time.monotonic())
            told = self._carry_out(camera, self._order)
            # A sensor takes a frame or two to do what its registers say. A trigger would not come for their sake.
            self._settling = (told, SETTLING_FRAMES if self._plan.watch_reads else 0)
            self._settle(0)
            self._words.idle()

    def _carry_out(self, camera: Camera, order: Adjust) -> Adjusted:
        """Set what is ordered, or what held before where that is refused.

        Raises:
            CameraError: neither can be set, or what is ordered must be: the camera is to be opened anew.
        """
        try:
            _set(camera, order.controls)
        except CameraError as exc:
            if order.must:
                raise
            told = Adjusted(order.number, str(exc))
            self._order, self._settling = None, (told, 0)
            if self._controls is None:
                # What the factory sets holds again when the camera is opened anew.
                raise
            _set(camera, self._controls)
        else:
            told = Adjusted(order.number, None)
            self._order, self._controls = None, order.controls
        self._settling = None
        return told

    def _settle(self, frames: int = 1) -> None:
        if self._settling is None:
            return
        told, left = self._settling
        self._settling = (told, left - frames)
        if left - frames <= 0:
            self._settling = None
            self._send_patiently(told)

    def _hand_on(self, capture: Capture) -> None:
        if self._plan.waits:
            # The picture can be read again, so it counts as captured from when there is room for it.
            self._announce(self._viewed(capture), wait=True)
        else:
            # From here on the frame is accounted for, even if this process is killed before it says another word.
            self._words.last_number = self._next_number
            self._announce(self._viewed(capture), wait=False)
        self._next_number += 1
        self._resume_after = capture.source

    def _viewed(self, capture: Capture) -> Capture:
        if capture.pixels is None:
            return capture
        if self._over_rate(capture):
            return replace(capture, pixels=None, skipped=SkipReason.RATE_LIMIT)
        shape = capture.pixels.shape
        # A cut-short block of lines is smaller by right; it says so itself.
        if self._plan.fixed_size and capture.fault is None:
            if self._shape is None:
                self._shape = shape
            elif shape != self._shape:
                capture = replace(capture, fault=Reason.WRONG_SIZE)
        try:
            return apply(self._plan.view, capture)
        except ValueError as exc:
            raise CameraError(str(exc)) from exc

    def _over_rate(self, capture: Capture) -> bool:
        if self._plan.max_rate_fps is None or capture.fault is not None:
            return False
        interval_s = 1 / self._plan.max_rate_fps
        now_s = capture.captured_monotonic_s
        if now_s < self._due_s:
            return True
        # Due times keep their grid while frames keep coming, so that jitter does not lower the rate.
        self._due_s = max(self._due_s, now_s - interval_s) + interval_s
        return False

    def _announce(self, capture: Capture, *, wait: bool) -> None:
        pixels = capture.pixels
        bare = replace(capture, pixels=None)
        if pixels is None:
            self._announce_without_pixels(bare, wait=wait)
            return
        slot = self._write(pixels, wait=wait)
        if slot is not None and self._flush():
            message = Announced(self._next_number, slot, pixels.shape, bare)
            if wait:
                self._send_patiently(message)
                self._words.last_number = self._next_number
                return
            if self._try_send(message):
                return
        if slot is not None and self._ring is not None:
            self._ring.take_back(slot)
        if self._plan.policy == "latest":
            bare = replace(bare, skipped=SkipReason.SUPERSEDED)
        else:
            bare = replace(bare, fault=bare.fault or Reason.OVERLOAD)
        self._announce_without_pixels(bare, wait=False)

    def _announce_without_pixels(self, capture: Capture, *, wait: bool) -> None:
        message = WithoutPixels(self._next_number, 1, capture)
        if wait:
            self._send_patiently(message)
            self._words.last_number = self._next_number
            return
        last = self._backlog[-1] if self._backlog else None
        if last is not None and _alike(last.capture, capture):
            self._backlog[-1] = replace(last, count=last.count + 1)
        elif len(self._backlog) < _BACKLOG:
            self._backlog.append(message)
        else:
            # The station has read nothing for thousands of changes of reason: stop reading until it does.
            self._send_patiently(self._backlog.popleft())
            self._backlog.append(message)
        self._flush()

    def _write(self, pixels: Pixels, *, wait: bool) -> int | None:
        ring = self._ring
        if ring is None or pixels.nbytes > ring.slot_bytes:
            ring = self._make_ring(pixels.nbytes, pixels.shape)
        slot = ring.write(pixels)
        while wait and slot is None:
            self._wait_for_slot(ring)
            slot = ring.write(pixels)
        return slot

    def _make_ring(self, picture_bytes: int, shape: tuple[int, ...]) -> RingWriter:
        # Growing by half at least keeps the number of rings small in a folder of mixed sizes.
        if self._ring is not None:
            picture_bytes = max(picture_bytes, self._ring.slot_bytes * 3 // 2)
        ring = RingWriter(self._plan.slots, picture_bytes)
        try:
            while not self._flush():
                self._wait_for_channel()
            message = NewRing(ring.slots, ring.slot_bytes, self._shape or shape)
            self._send_patiently(message, ring.descriptor)
        finally:
            os.close(ring.descriptor)
        self._ring = ring
        return ring

    def _wait_for_slot(self, ring: RingWriter) -> None:
        while ring.full():
            if self._stop.is_set():
                raise _Stopping
            # The time-out is for the word to stop; a freed slot is told by the eventfd.
            if select.select([self._wake], [], [], _RECHECK_S)[0]:
                os.eventfd_read(self._wake)

    def _flush(self) -> bool:
        while self._backlog:
            if not self._try_send(self._backlog[0]):
                return False
            self._backlog.popleft()
        return True

    def _try_send(self, message: FromChild) -> bool:
        try:
            send(self._channel, message)
        except BlockingIOError:
            return False
        return True

    def _send_patiently(self, message: FromChild, descriptor: int | None = None, *, until_stopped: bool = True) -> None:
        while True:
            if self._flush():
                try:
                    send(self._channel, message, descriptor)
                except BlockingIOError:
                    pass
                else:
                    return
            if until_stopped and self._stop.is_set():
                raise _Stopping
            self._wait_for_channel()

    def _wait_for_channel(self) -> None:
        select.select([], [self._channel], [], _RECHECK_S)

    def _back_off(self) -> None:
        pause_s = min(_FIRST_BACKOFF_S * 2**self._failures, self._plan.backoff_max_s)
        self._failures = min(self._failures + 1, 16)
        self._stop.wait(pause_s * random.uniform(0.5, 1))

    def _watch_station(self) -> None:
        while True:
            self._words.sign_of_life_s = time.monotonic()
            if not select.select([self._channel], [], [], SIGN_OF_LIFE_S)[0]:
                continue
            try:
                message, _ = receive(self._channel)
            except BlockingIOError:
                continue
            except (EOFError, OSError):
                os._exit(0)
            if isinstance(message, Adjust):
                self._orders.append(message)
                continue
            self._stop.set()
            self._end_unless_stopped()

    def _end_unless_stopped(self) -> None:
        deadline_s = time.monotonic() + STOP_GRACE_S
        while time.monotonic() < deadline_s:
            # The station closes the channel when it has heard the last word.
            readable = select.select([self._channel], [], [], deadline_s - time.monotonic())[0]
            if readable:
                break
        os._exit(0)


def _set(camera: Camera, controls: Mapping[str, float]) -> None:
    if not isinstance(camera, Adjustable):
        raise CameraError("this kind of camera has no controls that can be set")
    camera.adjust(controls)


def _alike(one: Capture, other: Capture) -> bool:
    return one.fault == other.fault and one.skipped == other.skipped and one.source is None and other.source is None


def _bind_to_parent(parent: int, name: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    # The kernel sends the signal when the *thread* that started this process ends; the station starts it from the
    # thread that reads the camera, which outlives it.
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        sys.exit(f"camera process: prctl(PR_SET_PDEATHSIG) failed: {os.strerror(ctypes.get_errno())}")
    libc.prctl(_PR_SET_NAME, f"camera-{name}".encode()[:15], 0, 0, 0)
    if os.getppid() != parent:
        os._exit(0)


def main() -> int:
    """Run one camera until told to stop, until its source ends, or until the station is gone; return the exit code."""
    parser = argparse.ArgumentParser(description="A camera's own process; started by the station.")
    parser.add_argument("--camera", required=True)
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--descriptors", type=int, nargs=3, required=True, metavar=("CHANNEL", "WORDS", "WAKE"))
    arguments = parser.parse_args()
    keep_the_heap_small()
    channel_descriptor, words_descriptor, wake = arguments.descriptors
    # An orderly stop is the station's business; service managers signal every process of a service at once.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _bind_to_parent(arguments.parent, arguments.camera)
    channel = socket.socket(fileno=channel_descriptor)
    words = LiveWords(words_descriptor)
    os.close(words_descriptor)
    words.opening(time.monotonic())
    words.sign_of_life_s = time.monotonic()
    try:
        job, _ = receive(channel)
        if job.cpus is not None:
            os.sched_setaffinity(0, job.cpus)
        channel.setblocking(False)
        _Child(channel, words, wake, job).run()
    except (EOFError, BrokenPipeError, ConnectionResetError):
        # The station closed the channel, or is gone: there is nobody to tell.
        return 0
    except Exception as exc:  # noqa: BLE001  # whatever it is, the station shall hear of it rather than guess
        words.idle()
        channel.setblocking(True)
        send(channel, Crashed(f"{type(exc).__name__}: {exc}"))
        return 1
    return 0


if __name__ == "__main__":
    # No orderly end of the interpreter: a driver's own threads may hang there.
    os._exit(main())
