"""What a subscriber can say of a stream of verdicts: counts, latency, and agreement with a known truth."""

from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from uuid import UUID

import numpy as np

from station.messages import Outcome, Percentiles, Verdict

MAX_REMEMBERED = 100_000
"""Newest latencies and ids kept, so that watching for months does not fill the memory. A duplicate comes within a
reconnect of its original, far sooner than this many verdicts later."""


@dataclass(frozen=True, slots=True)
class Confusion:
    """Verdicts against the truth.

    `unknown` counts as caught on a defective frame, since the part is looked at again, and as a false reject on a good
    one, since it is not shipped.

    Attributes:
        caught, missed: defective frames that were not `ok`, and that were.
        passed, rejected: good frames that were `ok`, and that were not.
    """

    caught: int = 0
    missed: int = 0
    passed: int = 0
    rejected: int = 0

    @property
    def recall(self) -> float | None:
        """Share of the defective frames that were caught; None without any."""
        return self.caught / (self.caught + self.missed) if self.caught + self.missed else None

    @property
    def false_reject_rate(self) -> float | None:
        """Share of the good frames that were rejected; None without any."""
        return self.rejected / (self.passed + self.rejected) if self.passed + self.rejected else None


class Tally:
    """Counts verdicts as they arrive; a verdict that arrives twice is counted once.

    Args:
        is_defective: the truth of a frame; None: nobody knows it, such as that of a frame without a picture.
    """

    def __init__(self, is_defective: Callable[[Verdict], bool | None] = lambda _: None) -> None:
        self._is_defective = is_defective
        self._confusion: Counter[tuple[bool, bool]] = Counter()
        self._outcomes: Counter[Outcome] = Counter()
        self._latencies_ms: deque[float] = deque(maxlen=MAX_REMEMBERED)
        self._seen: dict[UUID, None] = {}
        self.duplicates = 0

    def add(self, verdict: Verdict, received_at_s: float) -> bool:
        """Count one verdict; False when it had arrived before.

        Args:
            verdict: as received.
            received_at_s: wall time of its arrival, seconds since 1970.
        """
        if not self._is_new(verdict):
            self.duplicates += 1
            return False
        self._outcomes[verdict.outcome] += 1
        self._latencies_ms.append((received_at_s - verdict.captured_at.timestamp()) * 1e3)
        truth = self._is_defective(verdict)
        if truth is not None:
            self._confusion[truth, verdict.outcome is Outcome.OK] += 1
        return True

    def count(self, outcome: Outcome) -> int:
        """Verdicts with this outcome."""
        return self._outcomes[outcome]

    @property
    def received(self) -> int:
        """Verdicts, each counted once."""
        return self._outcomes.total()

    @property
    def confusion(self) -> Confusion:
        """Agreement with the truth."""
        return Confusion(
            caught=self._confusion[True, False],
            missed=self._confusion[True, True],
            passed=self._confusion[False, True],
            rejected=self._confusion[False, False],
        )

    @property
    def latency_ms(self) -> Percentiles | None:
        """Exposure to arrival; None before the first verdict."""
        return percentiles(self._latencies_ms)

    def _is_new(self, verdict: Verdict) -> bool:
        if verdict.id in self._seen:
            return False
        self._seen[verdict.id] = None
        if len(self._seen) > MAX_REMEMBERED:
            del self._seen[next(iter(self._seen))]
        return True


def percentiles(values_ms: Sequence[float] | deque[float]) -> Percentiles | None:
    """Median and 99th percentile, each a value that occurred; None for no values."""
    if not values_ms:
        return None
    p50, p99 = np.percentile(list(values_ms), (50, 99), method="inverted_cdf")
    return Percentiles(p50=round(float(p50), 3), p99=round(float(p99), 3))
