"""`[alert.<name>]`: what a person or a PLC is told to act on. All of it works without a line in the file."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from station.messages import Name
from station.process_messages import Priority
from station.process_settings import Finite
from station.section import Section

Share = Annotated[float, Field(gt=0, le=1)]


class BaseAlert(Section):
    """Keys that every alert has."""

    enabled: bool = True
    """false: this one is not told."""
    text: str = Field(default="", max_length=200)
    """What people are told to do; default: a line for its kind."""


class CameraAlert(BaseAlert):
    """Keys of alerts on the verdicts of a camera; each camera has its own count."""

    priority: Priority = Field(default=Priority.HIGH, strict=False)
    """low, medium, high or critical."""
    cameras: Annotated[tuple[Name, ...], Field(strict=False)] = ()
    """Only these cameras; default: all."""


class RowAlert(CameraAlert):
    """So many ng in a row: the line makes scrap."""

    kind: Literal["ng_in_a_row"]
    """Marks this kind."""
    limit: int = Field(default=5, ge=2, le=100_000)
    """So many ng in a row raise it. An unknown neither counts nor breaks the row."""
    clear_after: int = Field(default=5, ge=1, le=100_000)
    """So many ok in a row clear it."""
    camera_limits: Mapping[Name, Annotated[int, Field(ge=2, le=100_000)]] = Field(default_factory=dict)
    """Camera → a limit of its own."""


class RateAlert(CameraAlert):
    """A share of the newest frames of a camera."""

    limit: Share
    """The share that raises it."""
    deadband: Finite | None = Field(default=None, ge=0, le=1)
    """The share must come back this far below the limit to clear it; default: a fifth of the limit."""
    window_frames: int = Field(default=200, ge=1, le=100_000)
    """The share is that of this many newest frames."""
    window_s: Finite | None = Field(default=None, gt=0, le=86_400)
    """Older frames do not count; default: only `window_frames` does."""
    least_frames: int = Field(default=50, ge=1, le=100_000)
    """With fewer frames in the window it neither rises nor clears."""
    camera_limits: Mapping[Name, Share] = Field(default_factory=dict)
    """Camera → a limit of its own."""

    @model_validator(mode="after")
    def _can_clear(self) -> Self:
        for limit in (self.limit, *self.camera_limits.values()):
            if self.deadband is not None and self.deadband >= limit:
                raise ValueError(f"deadband = {self.deadband}: must be below the limit {limit}, or it never clears")
        if self.least_frames > self.window_frames:
            raise ValueError(f"least_frames = {self.least_frames}: more than window_frames = {self.window_frames}")
        return self


class NgRateAlert(RateAlert):
    """Too many ng."""

    kind: Literal["ng_rate"]
    """Marks this kind."""
    limit: Share = 0.25
    """The share of ng frames that raises it."""


class UnknownRateAlert(RateAlert):
    """Too many unknown: dark, blurred, overload, model fault …"""

    kind: Literal["unknown_rate"]
    """Marks this kind."""
    limit: Share = 0.1
    """The share of unknown frames that raises it."""


class FaultAlert(BaseAlert):
    """A part of the station, or of the process that it watches, is at fault; each part has its own alert."""

    kind: Literal["camera", "model", "reject", "journal", "broker", "process_alarm", "sensors", "evidence", "station"]
    """Marks this kind."""
    priority: Priority | None = Field(default=None, strict=False)
    """low, medium, high or critical; default: by kind, of a process alarm its own."""
    on_delay_s: Finite | None = Field(default=None, ge=0, le=3600)
    """The fault must last this long; default: by kind."""
    off_delay_s: Finite | None = Field(default=None, ge=0, le=3600)
    """It must be over this long; default: by kind."""


AlertSettings = Annotated[RowAlert | NgRateAlert | UnknownRateAlert | FaultAlert, Field(discriminator="kind")]

BUILT_IN = (
    "ng_in_a_row",
    "ng_rate",
    "unknown_rate",
    "camera",
    "model",
    "reject",
    "journal",
    "broker",
    "process_alarm",
    "sensors",
    "evidence",
    "station",
)
"""Alerts that exist without a table, each called as its kind; a table of that name changes what it names."""


def _with_built_in(tables: object) -> object:
    """Give a built-in alert's table its kind, and each built-in alert without a table an empty one."""
    if not isinstance(tables, Mapping):
        return tables
    given: dict[str, Any] = dict(tables)
    for name in BUILT_IN:
        table = given.get(name, {})
        if isinstance(table, Mapping):
            given[name] = {"kind": name, **table}
    return given


AlertTables = Annotated[Mapping[Name, AlertSettings], BeforeValidator(_with_built_in)]
