"""`[sensors.<name>]`: where readings come from, one table for each source, told apart by `kind`.

A source has *points*, in the order of its table: what it reads, raw, by the protocol's own address. A channel of a
process group refers to a source and a point, and says what the raw number means (unit, scale, range, age).
"""

from collections.abc import Mapping
from typing import Annotated, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import Field, field_validator

from station.section import FilePath, Section

PointName = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f\x7f]+$")]
"""A point's or a channel's name; anything printable, since logs name their columns as they like."""


class BaseSensors(Section):
    """Keys that every kind of source has."""

    reconnect_max_s: float = Field(default=10.0, ge=0.1, le=600)
    """Longest pause between two attempts to reach the source; pauses double from 0.25 s and are jittered."""
    silence_s: float | None = Field(default=None, gt=0)
    """A source that delivers nothing for this long is down; default: only the protocol's own signs count."""


class LogForm(Section):
    """How a sensor log in CSV is written; the defaults find most of it out by themselves."""

    separator: Literal["auto", ";", ",", "\t", "|"] = "auto"
    """Between the cells; auto: by the heading."""
    decimal: Literal["auto", ".", ","] = "auto"
    """Decimal sign; auto: by the first rows."""
    time_column: str | None = Field(default=None, min_length=1)
    """Heading of the column with the time; default: by its name (`timestamp`, `datetime`, `time`, `date` …) or by what
    stands in it."""
    time_format: str | None = Field(default=None, min_length=1)
    """Form of the times as Python's strptime takes it, such as `%d.%m.%Y %H:%M:%S`; default: ISO 8601, or a count since
    1970 in seconds, milli-, micro- or nanoseconds by its size."""
    time_zone: str = "UTC"
    """Zone of times that name none, such as Europe/Berlin."""
    backwards: Literal["error", "keep"] = "error"
    """What to do with a time before that of the row above: refuse the log, or keep its rows as they stand."""

    @field_validator("time_zone")
    @classmethod
    def _known_zone(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise ValueError("this computer knows no such time zone; write UTC, or a name as Europe/Berlin") from None
        return value


class CsvPoint(Section):
    """A column of the file."""

    column: str | None = Field(default=None, min_length=1)
    """Heading of the column; default: the point's name."""


class CsvSensors(BaseSensors, LogForm):
    """Replay of a log. The times are the log's own, not ours."""

    kind: Literal["csv"]
    """Marks this kind."""
    path: FilePath
    """The file."""
    speed: float = Field(default=1.0, ge=0)
    """1: in real time. 10: ten times as fast. 0: as fast as it can be taken."""
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
