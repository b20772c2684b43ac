"""`[sensors.<name>]`: where readings come from, one table for each source, told apart by `kind`.

A source has *points*, in the order of its table: what it reads, raw, by the protocol's own address. A channel of a
process group refers to a source and a point, and says what the raw number means (unit, scale, range, age).
"""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from station.section import FilePath, Section

PointName = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f\x7f]+$")]
"""A point's or a channel's name; anything printable, since logs name their columns as they like."""


class BaseSensors(Section):
    """Keys that every kind of source has."""

    reconnect_max_s: float = Field(default=10.0, ge=0.1, le=600)
    """Longest pause between two attempts to reach the source; pauses double from 0.25 s and are jittered."""
    silence_s: float | None = Field(default=None, gt=0)
    """A source that delivers nothing for this long is down; default: only the protocol's own signs count."""


class CsvPoint(Section):
    """A column of the file."""

    column: str | None = Field(default=None, min_length=1)
    """Heading of the column; default: the point's name."""


class CsvSensors(BaseSensors):
    """Replay of a log. The times are the log's own, not ours."""

    kind: Literal["csv"]
    """Marks this kind."""
    path: FilePath
    """The file."""
    speed: float = Field(default=1.0, ge=0)
    """1: in real time. 10: ten times as fast. 0: as fast as it can be taken."""
    time_column: str | None = Field(default=None, min_length=1)
    """Heading of the column with the time; default: `datetime`, `timestamp`, `time` or `date`, whichever is there."""
    separator: Literal[",", ";", "\t"] | None = None
    """Between two fields; default: whichever the heading has."""
    loop: bool = False
    """Begin again at the end, with the times going on."""
    points: Mapping[PointName, CsvPoint] = Field(default_factory=dict)
    """The columns to read; default: each column that is not the time, by its heading."""


class SimulatedSensors(BaseSensors):
    """The simulated oven and press, see `station.simulated_process`. Its points are fixed."""

    kind: Literal["simulated"]
    """Marks this kind."""
    seed: int = Field(default=1, ge=0)
    """Which course of noise and load; the same seed gives the same readings."""
    rate_hz: float = Field(default=10.0, gt=0, le=1000)
    """Rows a second."""
    drift_after_s: float | None = Field(default=None, ge=0)
    """The oven's heater begins to fail this long after the start; default: never."""


SensorSettings = Annotated[CsvSensors | SimulatedSensors, Field(discriminator="kind")]

REPLAYED = (CsvSensors,)
"""Sources whose rows have times of their own: a group of such sources lives by the rows' times, not by our clock."""
