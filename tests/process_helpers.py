"""A clock that is told, and a step model whose risk can be worked out by hand."""

from datetime import UTC, datetime, timedelta

import numpy as np

from station.errors import InferenceError
from station.messages import ModelRef
from station.process_messages import AlarmLimits, Mask, StepRisk, Values

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
BEGIN_S = BEGIN.timestamp()


class ToldClock:
    """Wall and monotonic time that move only when told."""

    def __init__(self) -> None:
        self.passed_s = 0.0

    def now(self) -> datetime:
        return BEGIN + timedelta(seconds=self.passed_s)

    def monotonic_s(self) -> float:
        return 1000.0 + self.passed_s


class Deviation:
    """A step model that is easy to predict: the risk is the largest distance from 50, in hundredths.

    It warms up for two ticks, and can be told to fail.
    """

    def __init__(self, channels: tuple[tuple[str, str], ...] = (("temperature", "°C"), ("pressure", "bar"))) -> None:
        self._channels = channels
        self.seen = 0
        self.fails = False

    @property
    def ref(self) -> ModelRef:
        return ModelRef(name="deviation", version="1", sha256="0" * 64)

    @property
    def channels(self) -> tuple[tuple[str, str], ...]:
        return self._channels

    @property
    def step_s(self) -> float:
        return 1.0

    @property
    def limits(self) -> AlarmLimits:
        return AlarmLimits(limit=0.3, deadband=0.1, on_delay_s=1.0, off_delay_s=1.0)

    @property
    def reset_after_s(self) -> float:
        return 60.0

    @property
    def flat_after_s(self) -> tuple[float | None, ...]:
        return (None,) * len(self._channels)

    def step(self, at_s: float, values: Values, mask: Mask) -> StepRisk:  # noqa: ARG002
        if self.fails:
            raise InferenceError("the runtime failed")
        self.seen += 1
        apart = np.abs(values - 50.0) * mask
        expected = np.full(len(values), 50.0)
        if self.seen <= 2:
            return StepRisk(None, expected, np.zeros(len(values)))
        total = apart.sum()
        return StepRisk(min(1.0, float(apart.max()) / 100), expected, apart / total if total else apart)

    def reset(self) -> None:
        self.seen = 0

    def snapshot(self) -> bytes:
        return str(self.seen).encode()

    def restore(self, snapshot: bytes) -> bool:
        self.seen = int(snapshot)
        return True
