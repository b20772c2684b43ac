"""What all sources of readings share: rows of points, each good or bad; a point that becomes bad is told once."""

import logging
from collections.abc import Mapping, Sequence

from station.adapters._live_source import LiveSource
from station.mailbox import Overflow
from station.ports import Clock
from station.process_messages import ChannelQuality, Readings
from station.sensor_settings import BaseSensors

logger = logging.getLogger(__name__)


class SensorSource(LiveSource[Readings]):
    """A source of readings with a thread of its own.

    Args:
        name: the source's name in the configuration.
        settings: the keys that all sources have.
        points: names of the points, in the order of the values of each row.
        clock: wall and monotonic time.
        overflow: what happens when nobody takes the rows.
    """

    def __init__(
        self,
        name: str,
        settings: BaseSensors,
        points: Sequence[str],
        clock: Clock,
        overflow: Overflow = Overflow.DROP_OLDEST,
    ) -> None:
        super().__init__(name, settings, clock, "sensors", overflow)
        self._points = tuple(points)
        self._bad: dict[str, str] = {}

    @property
    def points(self) -> tuple[str, ...]:
        """Names of the points, in the order of the values of each row."""
        return self._points

    def _deliver(
        self,
        values: Sequence[float],
        qualities: Sequence[ChannelQuality] | None = None,
        reasons: Mapping[str, str] | None = None,
        *,
        at_s: float | None = None,
    ) -> None:
        """Hand a row on; the source is running.

        Args:
            values: in the order of the points.
            qualities: in the same order; None: all are good.
            reasons: point → why it is bad.
            at_s: wall time of the measurement; default: now.
        """
        self._running()
        self._tell_points(qualities, reasons or {})
        at_s = self.clock.now().timestamp() if at_s is None else at_s
        qualities = None if qualities is None else tuple(qualities)
        now_s = self.clock.monotonic_s()
        self._put(Readings(self.name, at_s, now_s, tuple(values), qualities, reasons or {}))

    def _tell_points(self, qualities: Sequence[ChannelQuality] | None, reasons: Mapping[str, str]) -> None:
        """Log a point that became bad, or good again, once."""
        if not reasons and not self._bad:
            return
        for place, point in enumerate(self._points):
            quality = ChannelQuality.GOOD if qualities is None else qualities[place]
            if quality is ChannelQuality.ABSENT:
                continue
            reason = reasons.get(point)
            if reason is not None and point not in self._bad:
                logger.warning("sensors %s: point %s is bad: %s", self.name, point, reason)
                self._bad[point] = reason
            elif reason is None and self._bad.pop(point, None) is not None:
                logger.info("sensors %s: point %s is good again", self.name, point)
