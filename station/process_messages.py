"""What the stages of early warning hand each other, and what they publish: readings, ticks, risks, alarms.

In-process messages are frozen dataclasses and may hold arrays; one row of a source is one object, however many points
it has. Published ones (`Risk`, `Alarm`) are frozen pydantic models. Wall times inside are seconds since 1970, UTC
(`at_s`); monotonic ones are CLOCK_MONOTONIC (`…_monotonic_s`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Literal
from uuid import UUID

import numpy as np
import numpy.typing as npt
from pydantic import Field

from station.messages import Message, Name, ProcessStateName, SourceStateName

Values = npt.NDArray[np.float64]
"""`[channels]`, in the units of the channels."""
Mask = npt.NDArray[np.bool_]
"""`[channels]`, True where the channel is good."""
Codes = npt.NDArray[np.int8]
"""`[channels]`, indices into `QUALITIES`."""


class ChannelQuality(StrEnum):
    """Whether a channel's value can be used, and if not, why. Everything but `good` is masked for the model.

    A source gives `good`, `absent`, `not_a_number`, `bad_status` and `source_fault`; the window adds the others.
    """

    GOOD = "good"
    ABSENT = "absent"
    """Not in this row: the channel keeps what it had. Only in `Readings`, never the state of a channel."""
    MISSING = "missing"
    """Nothing has come since the start."""
    STALE = "stale"
    """The newest value is older than the channel's `max_age_s`."""
    NOT_A_NUMBER = "not_a_number"
    """NaN, infinite, a text, a JSON of another shape."""
    OUT_OF_RANGE = "out_of_range"
    """Outside of the channel's valid range."""
    FLAT_LINE = "flat_line"
    """Fresh values, all exactly the same, for longer than `flat_after_s`."""
    STUCK = "stuck"
    """Fresh values that move less than the `deadband`, for longer than `flat_after_s`."""
    BAD_STATUS = "bad_status"
    """The device says that the value is bad or uncertain: an OPC UA status, a Modbus exception for this register."""
    SOURCE_FAULT = "source_fault"
    """The source is unreachable or broken."""
    WRONG_TIME = "wrong_time"
    """The source's clock is ahead of ours by more than can be."""


QUALITIES: tuple[ChannelQuality, ...] = tuple(ChannelQuality)
"""The code of a quality is its index in here; 0 is `good`."""
CODE_OF: dict[ChannelQuality, int] = {quality: code for code, quality in enumerate(QUALITIES)}


@dataclass(frozen=True, slots=True)
class Readings:
    """One row from a source.

    Attributes:
        source: the source's name in the configuration.
        at_s: wall time of the measurement, seconds since 1970; where a source knows none, the time of arrival.
        received_monotonic_s: monotonic time of arrival.
        values: the raw values, before scale and offset, in the order of the source's `points`. What stands for a point
            that is not good is ignored; by habit it is NaN.
        qualities: in the same order; None: all are good.
        reasons: point → why it is bad, in one line, where the source can tell more than the quality does.
    """

    source: str
    at_s: float
    received_monotonic_s: float
    values: tuple[float, ...]
    qualities: tuple[ChannelQuality, ...] | None = None
    reasons: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SourceEvent:
    """A source changed its state. With DOWN all its points become bad (`source_fault`) until the next row.

    Attributes:
        source: the source's name in the configuration.
        state: the new state.
        at_s: wall time of the change, seconds since 1970.
        reason: one line for people; None when all is well.
    """

    source: str
    state: SourceStateName
    at_s: float
    reason: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Tick:
    """One step of the window: what was known of each channel at a moment. The arrays are the receiver's to keep.

    Attributes:
        at_s: wall time, a multiple of the step.
        values: `[channels]`, scaled; 0 where the mask is False, never NaN.
        mask: `[channels]`.
        codes: `[channels]`, the quality of each channel.
        enough: enough channels are good for the model; else the state is `sensor_fault`.
        restart: steps before this one were passed over (a gap longer than `reset_after_s`): what remembers must forget.
    """

    at_s: float
    values: Values
    mask: Mask
    codes: Codes
    enough: bool
    restart: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class StepRisk:
    """What a step model says after one tick. The arrays are the receiver's to keep.

    Attributes:
        risk: 0..1; None while the model warms up (`not_ready`).
        expected: `[channels]`, what the model expected at this tick, in the channels' units; NaN where it cannot tell.
        shares: `[channels]`, each channel's part in the risk, at least 0; they add up to 1, or are all 0.
    """

    risk: float | None
    expected: Values
    shares: Values


@dataclass(frozen=True, slots=True)
class Moment:
    """Where a group stood at one tick.

    Attributes:
        at_s: wall time, seconds since 1970.
        state: of the group.
        risk: 0..1; None: there was none to give.
        alarms: those that make the group be in alarm.
    """

    at_s: float
    state: ProcessStateName
    risk: float | None
    alarms: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class AlarmLimits:
    """When a risk becomes an alarm, as the bundle was calibrated: its stated false-alarm bound holds for these.

    Attributes:
        limit: the alarm's condition is risk >= limit.
        deadband: it is over at risk < limit - deadband.
        on_delay_s: the condition must hold this long without a break.
        off_delay_s: it must be over this long without a break.
    """

    limit: float
    deadband: float
    on_delay_s: float
    off_delay_s: float


class Risk(Message):
    """On `process/<group>/risk`, QoS 0: telemetry, at most once each `risk_interval_s`.

    Attributes:
        at: the time that it is about.
        state: of the group.
        risk: 0..1; None when there is none to give.
        top: the channel with the largest part in the risk.
        bad: channels that are not good, with the reason.
    """

    schema_version: Literal[1] = 1
    station: Name
    group: Name
    at: datetime
    state: ProcessStateName
    risk: float | None = Field(default=None, ge=0, le=1)
    top: str | None = None
    bad: dict[str, ChannelQuality] = Field(default_factory=dict)


class AlarmStateName(StrEnum):
    """The states of ANSI/ISA-18.2-2016, figure 3 (IEC 62682, 5.4): letters A to I."""

    NORMAL = "normal"
    UNACKNOWLEDGED = "unacknowledged"
    ACKNOWLEDGED = "acknowledged"
    RETURNED_UNACKNOWLEDGED = "returned_unacknowledged"
    LATCHED_UNACKNOWLEDGED = "latched_unacknowledged"
    LATCHED_ACKNOWLEDGED = "latched_acknowledged"
    SHELVED = "shelved"
    SUPPRESSED = "suppressed"
    OUT_OF_SERVICE = "out_of_service"


class AlarmEvent(StrEnum):
    """What moves an alarm from one state to another."""

    ACTIVATE = "activate"
    CLEAR = "clear"
    ACKNOWLEDGE = "acknowledge"
    RESET = "reset"
    SHELVE = "shelve"
    UNSHELVE = "unshelve"
    SHELF_EXPIRED = "shelf_expired"
    SUPPRESS = "suppress"
    UNSUPPRESS = "unsuppress"
    REMOVE_FROM_SERVICE = "remove_from_service"
    RETURN_TO_SERVICE = "return_to_service"


class Priority(StrEnum):
    """How urgent an alarm is, in growing urgency."""

    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"
    CRITICAL = "critical"


class ChannelPart(Message):
    """A channel within an alarm.

    Attributes:
        share: its part in the risk, 0..1.
        actual: the value; None while the channel is bad.
        expected: what the model expected, or the limit of an alarm that watches this channel.
    """

    channel: str
    unit: str
    share: float
    actual: float | None
    expected: float | None
    quality: ChannelQuality


class RiskPoint(Message):
    """One point of the risk history."""

    at: datetime
    risk: float | None


class Alarm(Message):
    """Retained on `process/<group>/alarm/<alarm>`; each transition is one message with an id of its own.

    Attributes:
        id: UUIDv7 of the transition; a consumer drops what it has seen.
        epoch, sequence: order of the group's transitions.
        event: what led here; None in the first message of an alarm that is normal.
        active: the condition holds, whatever the state.
        since: when the present state began.
        active_since: when the condition began to hold for longer than its delay; None while it does not.
        watches: `risk`, or the channel.
        value: of what it watches, now; None: not known.
        limit: what it is compared with.
        top: the channels with the largest part, first the largest.
        history: of the risk over the last minutes, oldest first.
        first_out: it was the first of the group's alarms to come when all were normal.
        chattering: it came three times or more within a minute.
        flood: it came while more alarms came than a person can handle (ten in ten minutes).
        shelved_until: end of the shelf time.
        by: who gave the command; None: no command did.
    """

    schema_version: Literal[1] = 1
    id: UUID
    station: Name
    group: Name
    alarm: Name
    epoch: int
    sequence: int = Field(ge=1)
    state: AlarmStateName
    event: AlarmEvent | None
    active: bool
    priority: Priority
    text: str
    at: datetime
    since: datetime
    active_since: datetime | None
    watches: str
    value: float | None
    limit: float
    top: tuple[ChannelPart, ...] = ()
    history: tuple[RiskPoint, ...] = ()
    first_out: bool = False
    chattering: bool = False
    flood: bool = False
    shelved_until: datetime | None = None
    by: str | None = None
