"""Replay of a sensor log, in real time, faster, or as fast as the rows are taken."""

import math
from collections.abc import Iterator, Sequence
from typing import Self

from station.adapters._sensor_source import SensorSource
from station.errors import LogError
from station.mailbox import Overflow
from station.ports import Clock
from station.process_messages import ChannelQuality
from station.sensor_log import name_and_unit, read_blocks
from station.sensor_settings import CsvSensors

_GOOD, _BAD = ChannelQuality.GOOD, ChannelQuality.NOT_A_NUMBER


class CsvReplay(SensorSource):
    """The columns of one log. The rows' times are the log's own. Nothing is dropped: the replay waits for its reader.

    Args:
        name: the source's name.
        settings: its table.
        clock: paces the replay.
        wanted: the points that are asked for, where the settings name none; default: all columns of numbers that the
            log has when the source is entered.
    """

    def __init__(self, name: str, settings: CsvSensors, clock: Clock, wanted: Sequence[str] = ()) -> None:
        columns = {point: table.column or point for point, table in settings.points.items()}
        columns = columns or {point: point for point in wanted}
        super().__init__(name, settings, tuple(columns), clock, Overflow.BLOCK)
        # A log may be silent for as long as it was, and the replay waits for its reader.
        self._silence_s = None
        self._settings = settings
        self._columns = tuple(columns.values())
        self._began_s: float | None = None
        self._broken: str | None = None

    def __enter__(self) -> Self:
        if not self._columns:
            try:
                self._columns = self._points = next(read_blocks(self._settings.path, self._settings)).columns
            except LogError as exc:
                # Said again, as the reason for which the source is down, when it is opened for its rows.
                self._broken = str(exc)
        return super().__enter__()

    def _serve(self) -> None:
        """Replay the log, and say that it has ended.

        Raises:
            LogError: it cannot be read.
        """
        if self._broken is not None:
            raise LogError(self._broken)
        begun = False
        try:
            for at_s, values in self._rows():
                self._hand_on(at_s, values)
                begun = True
        except LogError as exc:
            if not begun:
                raise
            # Trying again would begin with times that were there already.
            self._down(str(exc))
            return
        if not self._stopping.is_set():
            self._finished()

    def _rows(self) -> Iterator[tuple[float, list[float]]]:
        """The rows when they are due, with their times; in a loop the times go on."""
        first_s: float | None = None
        shift_s = 0.0
        while True:
            last_s = step_s = 0.0
            for block in read_blocks(self._settings.path, self._settings):
                chosen = block.values[:, [self._place(block.origin, block.columns, one) for one in self._columns]]
                for at_s, values in zip(block.time_s.tolist(), chosen.tolist(), strict=True):
                    if first_s is None:
                        first_s = last_s = at_s
                    if at_s > last_s:
                        step_s, last_s = at_s - last_s, at_s
                    if not self._await(at_s + shift_s - first_s):
                        return
                    yield at_s + shift_s, values
            if not self._settings.loop or first_s is None:
                return
            shift_s += last_s - first_s + (step_s or 1.0)

    def _place(self, origin: str, columns: Sequence[str], wanted: str) -> int:
        bare, _ = name_and_unit(wanted)
        if bare not in columns:
            known = ", ".join(columns) or "none"
            raise LogError(f"{origin}: there is no column {bare!r} of numbers; there are {known}")
        return columns.index(bare)

    def _await(self, offset_s: float) -> bool:
        """Wait until a row is due that lies this far behind the first one; False when the source is left."""
        if self._settings.speed > 0:
            now_s = self.clock.monotonic_s()
            if self._began_s is None:
                self._began_s = now_s
            self._stopping.wait(max(0.0, self._began_s + offset_s / self._settings.speed - now_s))
        return not self._stopping.is_set()

    def _hand_on(self, at_s: float, values: list[float]) -> None:
        # The sum of finite values is finite, but for values so great that no sensor gives them.
        if math.isfinite(sum(values)):
            self._deliver(values, at_s=at_s)
        else:
            qualities = [_GOOD if math.isfinite(value) else _BAD for value in values]
            self._deliver(values, qualities, at_s=at_s)
