"""What commands ask of one camera: set by the thread that looks at commands, read by the camera's own. No clock."""

import threading
from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

from station.messages import SnapshotResult, Verdict

SNAPSHOTS = 8
"""Orders that may wait for a camera's next picture."""


@dataclass(frozen=True, slots=True)
class Pause:
    """Nothing is judged for a while.

    Attributes:
        until_s: monotonic time of its end.
        until: the same as wall time.
        reason: what the one who asked said; None: nothing.
    """

    until_s: float
    until: datetime
    reason: str | None


@dataclass(frozen=True, slots=True)
class ThresholdChange:
    """Judge with this threshold for all classes, by this command."""

    threshold: float
    command: UUID


@dataclass(slots=True)
class SnapshotOrder:
    """Somebody wants the next picture; exactly one of the two is set when it is there, or could not be kept."""

    result: SnapshotResult | None = field(default=None)
    failure: str | None = field(default=None)


class CameraControl:
    """What is asked of a camera now; any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pause: Pause | None = None
        self._orders: list[SnapshotOrder] = []
        self._threshold: ThresholdChange | None = None

    @property
    def threshold(self) -> ThresholdChange | None:
        """The threshold that was set by command; None: none is."""
        return self._threshold

    def set_threshold(self, change: ThresholdChange | None) -> None:
        """Judge with this threshold from the next frame on."""
        self._threshold = change

    def pause(self, pause: Pause) -> None:
        """Begin a pause, or change the one that is."""
        with self._lock:
            self._pause = pause

    def resume(self) -> bool:
        """End the pause; False when there is none."""
        with self._lock:
            was, self._pause = self._pause, None
        return was is not None

    def paused(self, now_s: float) -> Pause | None:
        """The pause that holds now."""
        with self._lock:
            if self._pause is not None and now_s >= self._pause.until_s:
                self._pause = None
            return self._pause

    def order(self, order: SnapshotOrder) -> bool:
        """Ask for the next picture; False when too many wait for it already."""
        with self._lock:
            if len(self._orders) >= SNAPSHOTS:
                return False
            self._orders.append(order)
            return True

    def withdraw(self, order: SnapshotOrder) -> None:
        """Nobody waits for this one any more."""
        with self._lock:
            if order in self._orders:
                self._orders.remove(order)

    def take_orders(self) -> tuple[SnapshotOrder, ...]:
        """The orders that the next picture fulfils; they are then no longer here."""
        with self._lock:
            taken, self._orders = tuple(self._orders), []
        return taken


def fulfil(orders: tuple[SnapshotOrder, ...], verdict: Verdict) -> None:
    """Tell those who asked which verdict has their picture."""
    for order in orders:
        if verdict.evidence is None:
            order.failure = "the picture could not be kept; health.evidence.dropped says why"
        else:
            order.result = SnapshotResult(verdict=verdict.id, evidence=verdict.evidence)
