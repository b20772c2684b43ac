"""Irregular readings onto a fixed step. Training and serving go through this same code.

A *tick* at T (a multiple of the step, in wall time) says of each channel what its newest reading with a time up to T
was, held for `max_age_s`, and whether it can be used. Two clocks can close a tick:

- the rows themselves: when each source that is alive has delivered a row of T + lateness or later, nothing more is to
  be waited for. A row that holds only some of its source's points closes only the ticks before it, since the others'
  rows of the same moment may follow. A replayed log lives by this clock alone;
- ours (`advance`): a source that is silent must not stop the ticks, so T is closed at the latest
  max(lateness, half a step) after it.

A row that comes after its tick was closed still counts for the next one, where it is newer than what the channel has.
Whatever is not newer is dropped: repeated and out-of-order rows are harmless. A row of the time after the next tick
waits; what waits is bounded, and when there is too much of it the next tick is closed at once. Where more than
`reset_after_s` was skipped, the ticks between are not made up: the first one afterwards says `restart`.

The work per row and per tick is proportional to the number of channels, and nothing grows.
"""

import heapq
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from station.errors import ConfigurationError
from station.messages import SourceStateName
from station.process_messages import CODE_OF, ChannelQuality, Readings, SourceEvent, Tick

MAX_WAITING = 1024
"""Rows that may wait for their tick."""
MAX_CATCH_UP = 100_000
"""Ticks made at once at most; a longer gap restarts."""
MAX_AHEAD_S = 5.0
"""A live source whose time is ahead of ours by more has a wrong clock."""
SAME_TIME_S = 1e-6
"""Wall times in a double resolve a quarter of this: times closer than this are the same."""

_GOOD = CODE_OF[ChannelQuality.GOOD]
_ABSENT = CODE_OF[ChannelQuality.ABSENT]
_MISSING = CODE_OF[ChannelQuality.MISSING]
_STALE = CODE_OF[ChannelQuality.STALE]
_NOT_A_NUMBER = CODE_OF[ChannelQuality.NOT_A_NUMBER]
_OUT_OF_RANGE = CODE_OF[ChannelQuality.OUT_OF_RANGE]
_FLAT_LINE = CODE_OF[ChannelQuality.FLAT_LINE]
_STUCK = CODE_OF[ChannelQuality.STUCK]
_SOURCE_FAULT = CODE_OF[ChannelQuality.SOURCE_FAULT]
_WRONG_TIME = CODE_OF[ChannelQuality.WRONG_TIME]
_LARGEST = sys.float_info.max


@dataclass(frozen=True, slots=True)
class Channel:
    """What a raw point means.

    Attributes:
        name: of the channel.
        source, point: where it comes from.
        max_age_s: how long a value is held.
        unit: after scale and offset.
        scale, offset: value = raw × scale + offset.
        minimum, maximum: valid range, both included; None: no bound.
        deadband: values that move less for `flat_after_s` are stuck.
        flat_after_s: values that do not move for this long are bad; None: they may stand still for ever.
    """

    name: str
    source: str
    point: str
    max_age_s: float
    unit: str = ""
    scale: float = 1.0
    offset: float = 0.0
    minimum: float | None = None
    maximum: float | None = None
    deadband: float = 0.0
    flat_after_s: float | None = None


@dataclass(frozen=True, slots=True)
class WindowCounts:
    """Since the start.

    Attributes:
        rows: taken.
        repeated: rows with the time of the row before.
        out_of_order: rows older than the newest of their source.
        late: rows that came after their tick was closed.
        wrong_time: rows from the future.
        ticks: made.
        restarts: gaps over which no ticks were made.
    """

    rows: int = 0
    repeated: int = 0
    out_of_order: int = 0
    late: int = 0
    wrong_time: int = 0
    ticks: int = 0
    restarts: int = 0


class _Track:
    """The newest reading of one channel."""

    __slots__ = (
        "_deadband",
        "_flat_after_s",
        "_maximum",
        "_minimum",
        "_moved_at_s",
        "_moved_to",
        "_offset",
        "_same",
        "_scale",
        "at_s",
        "code",
        "max_age_s",
        "value",
    )

    def __init__(self, channel: Channel) -> None:
        self._scale = channel.scale
        self._offset = channel.offset
        # An infinite value is outside of every range, also of the one without bounds.
        self._minimum = -_LARGEST if channel.minimum is None else channel.minimum
        self._maximum = _LARGEST if channel.maximum is None else channel.maximum
        self._deadband = channel.deadband
        self._flat_after_s = channel.flat_after_s
        self.max_age_s = channel.max_age_s + SAME_TIME_S
        self.value = 0.0
        self.at_s = -math.inf
        self.code = _MISSING
        self._moved_to = math.inf
        self._moved_at_s = 0.0
        self._same = True

    def forget(self) -> None:
        self.value = 0.0
        self.at_s = -math.inf
        self.code = _MISSING
        self._moved_to = math.inf

    def take(self, at_s: float, raw: float, code: int) -> None:
        if at_s <= self.at_s:
            return
        self.at_s = at_s
        if code != _GOOD:
            self.code = code
            return
        value = raw * self._scale + self._offset
        if not self._minimum <= value <= self._maximum:
            self.code = _OUT_OF_RANGE if math.isfinite(value) else _NOT_A_NUMBER
            return
        self.value = value
        self.code = _GOOD if self._flat_after_s is None else self._moves(at_s, value, self._flat_after_s)

    def _moves(self, at_s: float, value: float, flat_after_s: float) -> int:
        if abs(value - self._moved_to) > self._deadband:
            self._moved_to = value
            self._moved_at_s = at_s
            self._same = True
            return _GOOD
        if value != self._moved_to:
            self._same = False
        if at_s - self._moved_at_s < flat_after_s:
            return _GOOD
        return _FLAT_LINE if self._same else _STUCK


@dataclass(slots=True)
class _Source:
    """One source: where its points go, and up to when it has reported."""

    points: int
    route: tuple[tuple[_Track, int], ...]
    tracks: tuple[_Track, ...]
    newest_s: float = -math.inf
    reported_s: float = -math.inf
    alive: bool = True


@dataclass(order=True, slots=True)
class _Waiting:
    at_s: float
    number: int
    source: _Source = field(compare=False)
    readings: Readings = field(compare=False)


class Window:
    """The channels of one group. Rows and times go in, ticks come out, in order.

    Args:
        channels: in the order that the ticks have them.
        step_s: seconds between two ticks.
        lateness_s: how long rows may come after the rows that are newer than they.
        reset_after_s: a longer gap is not made up.
        min_good: least share of good channels that is enough.
    """

    def __init__(
        self,
        channels: Sequence[Channel],
        *,
        step_s: float,
        lateness_s: float = 0.0,
        reset_after_s: float = 60.0,
        min_good: float = 0.5,
    ) -> None:
        self._channels = tuple(channels)
        self._tracks = tuple(_Track(channel) for channel in channels)
        self._step_s = step_s
        self._lateness_s = lateness_s
        self._patience_s = max(lateness_s, step_s / 2)
        self._reset_after_s = reset_after_s
        self._min_good = min_good * len(self._channels) - 1e-9
        self._sources: dict[str, _Source] = {}
        self._waiting: list[_Waiting] = []
        self._next: int | None = None
        self._restart = False
        self._rows = self._repeated = self._out_of_order = self._late = 0
        self._wrong_time = self._ticks = self._restarts = 0

    @property
    def channels(self) -> tuple[Channel, ...]:
        """In the order of the ticks."""
        return self._channels

    @property
    def counts(self) -> WindowCounts:
        """What has happened so far."""
        return WindowCounts(
            self._rows,
            self._repeated,
            self._out_of_order,
            self._late,
            self._wrong_time,
            self._ticks,
            self._restarts,
        )

    def connect(self, source: str, points: Sequence[str]) -> None:
        """Learn in which order a source gives its points.

        Raises:
            ConfigurationError: a channel refers to a point that the source does not have.
        """
        route = []
        for channel, track in zip(self._channels, self._tracks, strict=True):
            if channel.source != source:
                continue
            if channel.point not in points:
                raise ConfigurationError(
                    f"channel {channel.name}: point = {channel.point!r}: the source {source} has no such point; "
                    f"it has {', '.join(points) or 'none'}"
                )
            route.append((track, list(points).index(channel.point)))
        self._sources[source] = _Source(len(points), tuple(route), tuple(track for track, _ in route))

    def put(self, readings: Readings, now_s: float | None = None) -> list[Tick]:
        """Take a row; return the ticks that it closes.

        Args:
            readings: from a source that was connected.
            now_s: wall time now, seconds since 1970; None: the rows' own times are all there is (a replayed log).

        Raises:
            KeyError: the source was not connected.
            ValueError: the row has another length than the source has points.
        """
        source = self._sources[readings.source]
        if len(readings.values) != source.points:
            raise ValueError(f"{readings.source}: a row of {len(readings.values)} values for {source.points} points")
        at_s = readings.at_s
        self._rows += 1
        if now_s is not None and not at_s <= now_s + MAX_AHEAD_S:
            self._wrong_time += 1
            for track in source.tracks:
                track.code = _WRONG_TIME
            return self.advance(now_s)
        source.alive = True
        partial = readings.qualities is not None and ChannelQuality.ABSENT in readings.qualities
        self._count(source, at_s, partial)
        if self._next is None:
            self._next = self._number_from(at_s)
        if at_s > source.newest_s:
            source.newest_s = at_s
            source.reported_s = at_s - 2 * SAME_TIME_S if partial else at_s
        elif not partial and at_s == source.newest_s:
            source.reported_s = at_s
        if at_s <= self._next * self._step_s + SAME_TIME_S:
            _apply(source, readings)
        else:
            heapq.heappush(self._waiting, _Waiting(at_s, self._rows, source, readings))
        return self._close(now_s)

    def source_changed(self, event: SourceEvent) -> list[Tick]:
        """Take note of a source's state; return the ticks that need not wait for it any more.

        A source that is down makes its channels bad at once. When none is alive, what waits is closed.

        Raises:
            KeyError: the source was not connected.
        """
        source = self._sources[event.source]
        source.alive = event.state is SourceStateName.RUNNING
        if event.state is SourceStateName.DOWN:
            for track in source.tracks:
                track.code = _SOURCE_FAULT
        return self._close(None) if self._next is not None else []

    def advance(self, now_s: float) -> list[Tick]:
        """Close the ticks whose time is over by our clock (wall time, seconds since 1970).

        A clock that was set back makes the window begin anew: what it knows is of a time that has not come yet.
        """
        if self._next is None:
            self._next = self._number_from(now_s)
        elif self._next * self._step_s > now_s + MAX_AHEAD_S + 2 * self._step_s:
            self._begin_anew(self._number_from(now_s), math.inf)
        return self._close(now_s)

    def _count(self, source: _Source, at_s: float, partial: bool) -> None:
        if at_s < source.newest_s:
            self._out_of_order += 1
        elif at_s == source.newest_s and not partial:
            self._repeated += 1
        if self._next is not None and at_s <= (self._next - 1) * self._step_s:
            self._late += 1

    def _number_from(self, at_s: float) -> int:
        """The first tick at or after this time."""
        return math.ceil((at_s - SAME_TIME_S) / self._step_s)

    def _close(self, now_s: float | None) -> list[Tick]:
        assert self._next is not None
        alive = [source.reported_s for source in self._sources.values() if source.alive]
        if alive:
            until_s = min(alive) - self._lateness_s
        else:
            until_s = max((source.newest_s for source in self._sources.values()), default=-math.inf)
        if now_s is not None:
            until_s = max(until_s, now_s - self._patience_s)
        last = math.floor((until_s + SAME_TIME_S) / self._step_s) if math.isfinite(until_s) else self._next - 1
        self._skip(last)
        ticks = []
        while self._next <= last or len(self._waiting) > MAX_WAITING:
            ticks.append(self._tick())
        return ticks

    def _skip(self, last: int) -> None:
        """Pass over a gap that is too long to be made up.

        `last` jumps only when nobody looked for long, as on a machine that slept, or where a log has a hole.
        """
        assert self._next is not None
        if (last - self._next) * self._step_s <= self._reset_after_s and last - self._next <= MAX_CATCH_UP:
            return
        self._begin_anew(last, (last - 1) * self._step_s + SAME_TIME_S)

    def _begin_anew(self, first: int, forget_until_s: float) -> None:
        while self._waiting and self._waiting[0].at_s <= forget_until_s:
            heapq.heappop(self._waiting)
        for track in self._tracks:
            if track.at_s <= forget_until_s:
                track.forget()
        for source in self._sources.values():
            if source.newest_s <= forget_until_s:
                source.newest_s = source.reported_s = -math.inf
        # A tick before the first row behind the gap would find every channel missing.
        self._next = max(first, self._number_from(self._waiting[0].at_s)) if self._waiting else first
        self._restart = True
        self._restarts += 1

    def _tick(self) -> Tick:
        assert self._next is not None
        at_s = self._next * self._step_s
        while self._waiting and self._waiting[0].at_s <= at_s + SAME_TIME_S:
            waiting = heapq.heappop(self._waiting)
            _apply(waiting.source, waiting.readings)
        codes = []
        values = []
        good = 0
        for track in self._tracks:
            code = track.code
            if code == _GOOD and at_s - track.at_s > track.max_age_s:
                code = _STALE
            if code == _GOOD:
                good += 1
                values.append(track.value)
            else:
                values.append(0.0)
            codes.append(code)
        coded = np.array(codes, np.int8)
        tick = Tick(at_s, np.array(values), coded == _GOOD, coded, good >= self._min_good, self._restart)
        self._next += 1
        self._ticks += 1
        self._restart = False
        return tick


def _apply(source: _Source, readings: Readings) -> None:
    at_s, values = readings.at_s, readings.values
    if readings.qualities is None:
        for track, position in source.route:
            track.take(at_s, values[position], _GOOD)
        return
    for track, position in source.route:
        code = CODE_OF[readings.qualities[position]]
        if code != _ABSENT:
            track.take(at_s, values[position], code)
