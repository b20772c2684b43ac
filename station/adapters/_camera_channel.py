"""What a camera's child process and the station share: the frame ring, a page of live words, and the messages.

*Ring.* An anonymous memory file (memfd) of equal slots, preceded by one state byte per slot. The child makes it when
it knows the size of its first picture and sends the descriptor over; a larger picture later makes a larger ring. It has
no name, so nothing is left behind when every process that maps it is gone, however it went. The child writes pixels
into a free slot, marks it taken, and only then announces it; the reader alone marks a slot free again. A child that is
killed in the middle of a picture has not announced it, so half a picture can never look whole, and what it did announce
stays readable after its death.

*Live words.* One page that the parent makes: the last number given to a frame, when the child last showed a sign of
life, and since when it is busy inside the driver. Each is one aligned 8-byte word, so a reader never sees half of one.

*Messages.* Pickled, one per datagram of a SOCK_SEQPACKET pair.
"""

import mmap
import os
import pickle
import socket
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from station.messages import Capture, Pixels
from station.picture import View
from station.ports import Camera

FREE = 0
TAKEN = 1
DATAGRAM_BYTES = 65536
"""Longest message; frames travel through the ring, so all are far shorter."""


@dataclass(frozen=True, slots=True)
class CapturePlan:
    """How one camera is driven.

    Attributes:
        policy: `every`: each frame is announced, without pixels when no slot is free. `latest`: what is overtaken by a
            newer frame is skipped and counted.
        waits: the source loses nothing by waiting (files): it waits for a free slot instead of announcing without
            pixels.
        resumes: the factory takes `resume_after=`, the source of the last picture that was handed on.
        fixed_size: a picture of another size than the first is `wrong_size`.
        watch_reads: a read that takes longer than `read_deadline_s` is a stall. False for triggered cameras and for
            folders that are watched: there silence is no fault and only the process's sign of life is watched.
        slots: frames that the ring holds.
        read_deadline_s: longest time inside one read, and longest silence of the process.
        open_deadline_s: longest time for opening or closing the device, and for the process to start.
        backoff_max_s: longest pause between two attempts to open.
        max_rate_fps: frames above this rate are announced as skipped.
        view: rotation, region and colour applied before the picture goes into the ring.
        environment: set for the child before it starts, unless already set.
    """

    policy: Literal["every", "latest"] = "every"
    waits: bool = False
    resumes: bool = False
    fixed_size: bool = True
    watch_reads: bool = True
    slots: int = 8
    read_deadline_s: float = 5.0
    open_deadline_s: float = 15.0
    backoff_max_s: float = 2.0
    max_rate_fps: float | None = None
    view: View = field(default_factory=View)
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Job:
    """The first message to the child.

    Attributes:
        factory: picklable; makes the camera, called again for each opening.
        first_number: number of the first frame.
        shape: of the camera's pictures before, when the child replaces another one; None at the beginning.
        cpus: processors to run on; None keeps what was inherited.
        controls: of the camera, set each time it was opened, over those that the factory sets; None: none.
        order: what the camera is to be set to in place of those; None: nothing.
    """

    camera: str
    factory: Callable[..., Camera]
    plan: CapturePlan
    first_number: int
    resume_after: str | None
    shape: tuple[int, ...] | None
    cpus: frozenset[int] | None
    controls: Mapping[str, float] | None = None
    order: "Adjust | None" = None


@dataclass(frozen=True, slots=True)
class Adjust:
    """A message to the child: set these controls and read them back.

    Attributes:
        number: of the order; `Adjusted` gives it back.
        controls: all that are to hold.
        must: where they are refused, those before may not hold: the camera is closed and opened until it takes them.
    """

    number: int
    controls: Mapping[str, float]
    must: bool = False


@dataclass(frozen=True, slots=True)
class Adjusted:
    """The controls of `Adjust` hold, or were refused and those before hold again."""

    number: int
    refused: str | None


@dataclass(frozen=True, slots=True)
class Stop:
    """The last message to the child: capture no more."""


@dataclass(frozen=True, slots=True)
class Opened:
    """The camera is open."""


@dataclass(frozen=True, slots=True)
class NewRing:
    """A ring comes with this message as a descriptor; frames announced from now on lie in it.

    Attributes:
        slots, slot_bytes: the ring's form.
        shape: of the camera's own picture, before the view is applied.
    """

    slots: int
    slot_bytes: int
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Announced:
    """A frame whose pixels are complete in a slot of the newest ring; `capture` comes without them."""

    number: int
    slot: int
    shape: tuple[int, ...]
    capture: Capture


@dataclass(frozen=True, slots=True)
class WithoutPixels:
    """`count` frames from `number` on, all with the fault or skip reason in `capture`."""

    number: int
    count: int
    capture: Capture


@dataclass(frozen=True, slots=True)
class Faulted:
    """The camera could not be opened or read; the child tries again by itself."""

    reason: str


@dataclass(frozen=True, slots=True)
class Crashed:
    """The adapter raised something that it should not have; the child ends."""

    reason: str


@dataclass(frozen=True, slots=True)
class Finished:
    """The source has no more pictures; the child ends."""


@dataclass(frozen=True, slots=True)
class Stopped:
    """The child was asked to stop, has announced its last frame and ends."""


FromChild = Adjusted | Opened | NewRing | Announced | WithoutPixels | Faulted | Crashed | Finished | Stopped


class LiveWords:
    """The shared page: what the parent must know of a child that may hang or die at any moment."""

    SIZE = 4096
    _NUMBER, _SIGN_OF_LIFE, _BUSY = 0, 1, 2

    def __init__(self, descriptor: int) -> None:
        memory = memoryview(mmap.mmap(descriptor, self.SIZE))
        self._integers = memory.cast("Q")
        self._times = memory.cast("d")

    @property
    def last_number(self) -> int:
        """Number last given to a frame; 0 before the first."""
        return self._integers[self._NUMBER]

    @last_number.setter
    def last_number(self, number: int) -> None:
        self._integers[self._NUMBER] = number

    @property
    def sign_of_life_s(self) -> float:
        """Monotonic time of the last sign of life; 0 before the first."""
        return self._times[self._SIGN_OF_LIFE]

    @sign_of_life_s.setter
    def sign_of_life_s(self, monotonic_s: float) -> None:
        self._times[self._SIGN_OF_LIFE] = monotonic_s

    # One word for both kinds of business, so that the kind and the time can never be read apart: positive while
    # inside read(), negative while opening or closing, 0 otherwise.

    def reading(self, since_s: float) -> None:
        """The child entered the driver's read at this monotonic time."""
        self._times[self._BUSY] = since_s

    def opening(self, since_s: float) -> None:
        """The child began to open or to close the device."""
        self._times[self._BUSY] = -since_s

    def idle(self) -> None:
        """The child is not inside the driver."""
        self._times[self._BUSY] = 0.0

    @property
    def busy(self) -> tuple[Literal["reading", "opening", "idle"], float]:
        """What the child is doing inside the driver, and since when (monotonic seconds)."""
        word = self._times[self._BUSY]
        if word == 0:
            return "idle", 0.0
        return ("reading", word) if word > 0 else ("opening", -word)


class _Ring:
    _HEADER_BYTES = 4096

    def __init__(self, descriptor: int, slots: int, slot_bytes: int) -> None:
        self.slots = slots
        self.slot_bytes = slot_bytes
        self._memory = mmap.mmap(descriptor, self.file_bytes(slots, slot_bytes))
        self._states = memoryview(self._memory)[:slots]

    @classmethod
    def file_bytes(cls, slots: int, slot_bytes: int) -> int:
        return cls._HEADER_BYTES + slots * slot_bytes

    def pixels(self, slot: int, shape: tuple[int, ...]) -> Pixels:
        return np.ndarray(shape, np.uint8, self._memory, self._HEADER_BYTES + slot * self.slot_bytes)


class RingWriter(_Ring):
    """The child's side: fills slots in turn."""

    def __init__(self, slots: int, picture_bytes: int) -> None:
        slot_bytes = -(-picture_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        self.descriptor = os.memfd_create("camera-frames", os.MFD_CLOEXEC)
        os.ftruncate(self.descriptor, self.file_bytes(slots, slot_bytes))
        super().__init__(self.descriptor, slots, slot_bytes)
        self._next = 0

    def write(self, pixels: Pixels) -> int | None:
        """Copy a picture into a free slot, mark the slot taken and return its index; None when all are taken."""
        for offset in range(self.slots):
            slot = (self._next + offset) % self.slots
            if self._states[slot] == FREE:
                np.copyto(self.pixels(slot, pixels.shape), pixels)
                self._states[slot] = TAKEN
                self._next = slot + 1
                return slot
        return None

    def full(self) -> bool:
        """Whether no slot is free."""
        return FREE not in self._states

    def take_back(self, slot: int) -> None:
        """Free a slot that was written but never announced."""
        self._states[slot] = FREE


class RingReader(_Ring):
    """The station's side: lends slots out and takes them back. It stays valid as long as any picture of it is held."""

    def lend(self, slot: int, shape: tuple[int, ...], waker: "Waker") -> tuple[Pixels, Callable[[], None]]:
        """Return a slot's picture, read-only and without a copy, and the call that gives the slot back."""
        pixels = self.pixels(slot, shape)
        pixels.flags.writeable = False
        return pixels, _Lease(self, slot, waker)

    def free(self, slot: int) -> None:
        """Give a slot back to the child."""
        self._states[slot] = FREE


class _Lease:
    """Gives one slot back, once: a second call must not free the frame that stands there by then."""

    __slots__ = ("_ring", "_slot", "_waker")

    def __init__(self, ring: RingReader, slot: int, waker: "Waker") -> None:
        self._ring: RingReader | None = ring
        self._slot = slot
        self._waker = waker

    def __call__(self) -> None:
        ring, self._ring = self._ring, None
        if ring is not None:
            ring.free(self._slot)
            self._waker.wake()


class Waker:
    """An eventfd that tells a waiting child of a freed slot. A lease may outlive the child, hence the lock."""

    def __init__(self) -> None:
        self.descriptor = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._open = True
        self._lock = threading.Lock()

    def wake(self) -> None:
        """Wake the child; without effect once closed."""
        with self._lock:
            if self._open:
                os.eventfd_write(self.descriptor, 1)

    def close(self) -> None:
        """Close the descriptor."""
        with self._lock:
            if self._open:
                self._open = False
                os.close(self.descriptor)


def encode(message: Any) -> bytes:
    """The datagram of a message."""
    return pickle.dumps(message, pickle.HIGHEST_PROTOCOL)


def send(channel: socket.socket, message: Any, descriptor: int | None = None) -> None:
    """Send one message.

    Raises:
        BlockingIOError: the channel is full.
        OSError: the other side is gone.
    """
    data = encode(message)
    if descriptor is None:
        channel.send(data)
    else:
        socket.send_fds(channel, [data], [descriptor])


def receive(channel: socket.socket) -> tuple[Any, int | None]:
    """Receive one message and the descriptor that came with it.

    Raises:
        BlockingIOError: there is none.
        EOFError: the other side is gone and everything it sent has been received.
    """
    try:
        data, descriptors, _, _ = socket.recv_fds(channel, DATAGRAM_BYTES, 1, socket.MSG_CMSG_CLOEXEC)
    except ConnectionResetError:
        data, descriptors = b"", []
    if not data:
        raise EOFError
    return pickle.loads(data), descriptors[0] if descriptors else None
