"""What all sources share that deliver by themselves: a thread, a bounded queue, one word when down and one when running
again.

A source that is away is tried again with pauses that double from `FIRST_PAUSE_S` up to `reconnect_max_s` and are
jittered. What nobody takes is dropped, the oldest first, and counted; a change of state is never dropped. Leaving
ends the thread: nothing that a source waits for can hold it up for longer than its own time limit.
"""

import logging
import math
import random
import threading
from abc import ABC, abstractmethod
from types import TracebackType
from typing import Generic, Self, TypeVar

from station.errors import StationError
from station.mailbox import Mailbox, Overflow
from station.messages import SourceStateName
from station.ports import Clock
from station.process_messages import SourceEvent
from station.sensor_settings import BaseSensors

logger = logging.getLogger(__name__)

FIRST_PAUSE_S = 0.25
INTERRUPT_AGAIN_S = 0.5
ITEMS_KEPT = 4096
"""Rows or ids that may wait for the reader."""

T = TypeVar("T")


class LiveSource(ABC, Generic[T]):
    """A source with a thread of its own.

    Args:
        name: the source's name in the configuration.
        settings: the keys that all sources have.
        clock: wall and monotonic time.
        what: what it is a source of, for the log and the thread's name.
        overflow: what happens when nobody takes what comes.
    """

    def __init__(
        self,
        name: str,
        settings: BaseSensors,
        clock: Clock,
        what: str,
        overflow: Overflow = Overflow.DROP_OLDEST,
    ) -> None:
        self.name = name
        self.clock = clock
        self._what = what
        self._reconnect_max_s = settings.reconnect_max_s
        self._silence_s = settings.silence_s
        self._stopping = threading.Event()
        self._queue: Mailbox[T | SourceEvent] = Mailbox(ITEMS_KEPT, overflow, self._dropped_one)
        self._lost_event: SourceEvent | None = None
        self._lock = threading.Lock()
        self._state = SourceStateName.CONNECTING
        self._reason: str | None = None
        self._fresh_s = 0.0
        self._thread = threading.Thread(target=self._run, name=f"{what}-{name}", daemon=True)

    def __enter__(self) -> Self:
        self._fresh_s = self.clock.monotonic_s()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        self._stopping.set()
        self._queue.close()
        while self._thread.is_alive():
            # More than once: what it waits for may have come in the very moment of the first time.
            self._interrupt()
            self._thread.join(INTERRUPT_AGAIN_S)

    @property
    def dropped(self) -> int:
        """Items that nobody took in time, since the start."""
        return self._queue.dropped

    def read(self, timeout_s: float) -> T | SourceEvent | None:
        """Return the next item or event, oldest first; None when nothing came within `timeout_s`."""
        if self._silence_s is not None:
            self._look_for_silence(self._silence_s)
        lost, self._lost_event = self._lost_event, None
        return lost or self._queue.take(timeout_s)

    @abstractmethod
    def _serve(self) -> None:
        """Connect and deliver, until `_stopping` is set or the source is lost; in the source's thread.

        Raises:
            StationError: the source is away; the text says why.
        """

    def _interrupt(self) -> None:
        """Let `_serve` return early from what it waits for; called from another thread when the source is left."""

    def _run(self) -> None:
        pause_s = FIRST_PAUSE_S
        while not self._stopping.is_set():
            try:
                self._serve()
            except StationError as exc:
                reason = str(exc)
            except Exception as exc:
                logger.exception("%s %s: a bug in the adapter", self._what, self.name)
                reason = f"the adapter failed: {type(exc).__name__}: {exc}"
            else:
                return
            if self._stopping.is_set():
                return
            if self._state is SourceStateName.RUNNING:
                pause_s = FIRST_PAUSE_S
            self._down(reason)
            self._stopping.wait(pause_s * random.uniform(0.5, 1.0))
            pause_s = min(2 * pause_s, self._reconnect_max_s)

    def _running(self) -> None:
        """The source is there; told once."""
        self._change(SourceStateName.RUNNING)

    def _down(self, reason: str) -> None:
        """The source is away; told once, and again when the reason is another."""
        self._change(SourceStateName.DOWN, reason)

    def _finished(self) -> None:
        """There is no more to come."""
        self._change(SourceStateName.FINISHED)

    def _put(self, item: T) -> None:
        """Hand an item on; the source is running."""
        self._running()
        self._fresh_s = self.clock.monotonic_s()
        self._queue.put(item)

    def _change(self, state: SourceStateName, reason: str | None = None) -> None:
        with self._lock:
            if state is self._state and reason == self._reason:
                return
            self._state, self._reason = state, reason
            self._fresh_s = self.clock.monotonic_s()
            self._queue.put(SourceEvent(self.name, state, self.clock.now().timestamp(), reason))

    def _look_for_silence(self, silence_s: float) -> None:
        if self._state is SourceStateName.RUNNING and self.clock.monotonic_s() - self._fresh_s > silence_s:
            self._down(f"nothing came for {silence_s:g} s")

    def _dropped_one(self, item: T | SourceEvent) -> None:
        if isinstance(item, SourceEvent):
            # It was the oldest in the queue: the reader gets it before the rest.
            self._lost_event = item
        elif self._queue.dropped == 1 and not self._stopping.is_set():
            logger.warning("%s %s: not taken as fast as it comes; the oldest is dropped", self._what, self.name)


def next_due(due_s: float, now_s: float, interval_s: float) -> float:
    """When to act again on a fixed schedule that does not drift; what could not be kept is passed over.

    Args:
        due_s: when the last time was due.
        now_s: monotonic time, not before `due_s`.
        interval_s: of the schedule.
    """
    return due_s + interval_s * max(1, math.ceil((now_s - due_s) / interval_s))
