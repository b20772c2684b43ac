"""Drives sources of readings in tests."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from station.adapters.system_clock import SystemClock
from station.messages import SourceStateName
from station.ports import Sensors
from station.process_messages import ChannelQuality, Readings, SourceEvent

CLOCK = SystemClock()
WITHIN_S = 20.0


@dataclass
class Heard:
    """What a source said."""

    rows: list[Readings] = field(default_factory=list)
    events: list[SourceEvent] = field(default_factory=list)
    points: tuple[str, ...] = ()

    @property
    def states(self) -> list[SourceStateName]:
        return [event.state for event in self.events]

    @property
    def last(self) -> Readings:
        return self.rows[-1]

    def value(self, point: str) -> float:
        """The point's value in the newest row."""
        return self.last.values[self.points.index(point)]

    def quality(self, point: str) -> ChannelQuality:
        """The point's quality in the newest row."""
        qualities = self.last.qualities
        return ChannelQuality.GOOD if qualities is None else qualities[self.points.index(point)]


def listen(
    source: Sensors, until: Callable[[Heard], bool], *, heard: Heard | None = None, within_s: float = WITHIN_S
) -> Heard:
    """Read until a condition holds; fail when it does not hold in time."""
    heard = heard or Heard()
    heard.points = source.points
    deadline_s = time.monotonic() + within_s
    while not until(heard):
        said = f"heard {[(event.state, event.reason) for event in heard.events]}, {heard.rows[-1:]}"
        assert time.monotonic() < deadline_s, f"not within {within_s} s; {said}"
        item = source.read(0.05)
        if isinstance(item, Readings):
            heard.rows.append(item)
        elif item is not None:
            heard.events.append(item)
    return heard


def next_row(source: Sensors, heard: Heard, *, within_s: float = WITHIN_S) -> Readings:
    """The next row."""
    count = len(heard.rows)
    return listen(source, lambda so_far: len(so_far.rows) > count, heard=heard, within_s=within_s).last


def until_state(source: Sensors, state: SourceStateName, heard: Heard, *, within_s: float = WITHIN_S) -> SourceEvent:
    """The next event with this state."""
    count = len(heard.events)
    listen(source, lambda so_far: state in so_far.states[count:], heard=heard, within_s=within_s)
    return next(event for event in heard.events[count:] if event.state is state)
