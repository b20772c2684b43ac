"""What is wrong now. Each fault is told once when it begins and once when it is over, in the log and to a listener."""

import logging
import threading
from collections.abc import Callable

from station.messages import Fault
from station.ports import Clock

logger = logging.getLogger(__name__)


class FaultBoard:
    """The station's present faults; any thread may raise and clear them.

    Args:
        clock: says since when.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._faults: dict[str, Fault] = {}
        self._lock = threading.Lock()
        self._listener: Callable[[], None] = _nobody

    def listen(self, listener: Callable[[], None]) -> None:
        """Call this on each change, in the thread that caused it."""
        self._listener = listener

    def set(self, what: str, reason: str | None) -> None:
        """Raise a fault, change its reason, or clear it (None); what is known already has no effect."""
        with self._lock:
            known = self._faults.get(what)
            if reason == (known.reason if known else None):
                return
            if reason is None:
                del self._faults[what]
            else:
                self._faults[what] = Fault(what=what, reason=reason, since=known.since if known else self._clock.now())
        part, _, name = what.partition(" ")
        about = {"camera": name} if part in ("camera", "model") and name else {}
        if reason is None:
            logger.info("%s: recovered", what, extra=about)
        else:
            logger.error("%s: %s", what, reason, extra=about)
        self._listener()

    def now(self) -> tuple[Fault, ...]:
        """The faults in the order in which they began."""
        with self._lock:
            return tuple(self._faults.values())

    def has(self, what: str) -> bool:
        """Whether this is wrong now."""
        with self._lock:
            return what in self._faults


def _nobody() -> None:
    return None
