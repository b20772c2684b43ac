"""Verdicts and a clock for the tests of what lies between the verdict and the broker."""

from datetime import UTC, datetime, timedelta

from station.ids import uuid7
from station.messages import Box, Defect, Latency, ModelRef, Outcome, Outgoing, Reason, Verdict
from station.wire import outgoing

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)


class FakeClock:
    """Time that passes when a test says so."""

    def __init__(self) -> None:
        self._passed_s = 0.0
        self.wall_step_s = 0.0

    def now(self) -> datetime:
        return BEGIN + timedelta(seconds=self._passed_s + self.wall_step_s)

    def monotonic_s(self) -> float:
        return self._passed_s

    def pass_s(self, seconds: float) -> None:
        self._passed_s += seconds


def verdict(
    sequence: int, *, camera: str = "top", epoch: int = 1, outcome: Outcome = Outcome.OK, at: datetime = BEGIN
) -> Verdict:
    """A verdict of about the size that a real one has."""
    defects: tuple[Defect, ...] = ()
    if outcome is Outcome.NG:
        defects = (Defect(label="open", score=0.97, box=Box(x_px=10.5, y_px=20, width_px=30, height_px=12)),)
    return Verdict(
        id=uuid7(int(at.timestamp() * 1e3) + sequence),
        station="line-1",
        camera=camera,
        epoch=epoch,
        sequence=sequence,
        outcome=outcome,
        reasons=(Reason.DEFECT,) if defects else (),
        defects=defects,
        score=0.97 if defects else 0.02,
        threshold=0.5,
        model=ModelRef(name="boards", version="1", sha256="0" * 64),
        captured_at=at + timedelta(milliseconds=sequence),
        latency_ms=Latency(queue=0.1, quality=0.4, preprocess=0.3, inference=7.2, judge=0.1, total=8.1),
    )


def message(
    sequence: int, *, camera: str = "top", epoch: int = 1, outcome: Outcome = Outcome.OK, at: datetime = BEGIN
) -> Outgoing:
    return outgoing(verdict(sequence, camera=camera, epoch=epoch, outcome=outcome, at=at))


def sequences(messages: list[Outgoing], camera: str = "top") -> list[int]:
    """Sequence numbers of one camera's verdicts, in the given order."""
    return [m.sequence for m in messages if m.camera == camera and m.sequence is not None]
