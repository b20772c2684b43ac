"""What the station publishes on `inspection/<station>/alert`: what a person or a PLC must act on."""

from datetime import datetime
from enum import StrEnum
from typing import Literal
from uuid import UUID

from pydantic import Field

from station.messages import Message, Name
from station.process_messages import Priority


class AlertKind(StrEnum):
    """What an alert is about."""

    NG_IN_A_ROW = "ng_in_a_row"
    NG_RATE = "ng_rate"
    UNKNOWN_RATE = "unknown_rate"
    CAMERA = "camera"
    MODEL = "model"
    REJECT = "reject"
    JOURNAL = "journal"
    BROKER = "broker"
    PROCESS_ALARM = "process_alarm"
    SENSORS = "sensors"
    EVIDENCE = "evidence"
    STATION = "station"
    """A fault of any other part."""


class AlertStateName(StrEnum):
    """Whether it begins or is over."""

    RAISED = "raised"
    CLEARED = "cleared"


class Alert(Message):
    """One message when an alert rises and one when it clears, with the same `alert_id`.

    Attributes:
        id: UUIDv7 of the message; a consumer drops what it has seen.
        alert_id: the same in both; the `id` of the first.
        alert: its name in the configuration.
        subject: what it is about: a camera's name, a process alarm as `group.alarm`, or the part that is at fault.
        camera: the camera concerned, where it is one.
        epoch, sequence: order of the station's alerts; of two messages with one `alert_id` the later one counts.
        since: when the condition began to hold.
        count: ng frames in a row, or ng or unknown frames in the window.
        frames: frames in the window.
        value: what was compared with `limit`: a count, or a share in 0..1; None of a fault.
        reason: what is wrong, one line.
        text: what to do.
        cleared: why it cleared: the condition is over, or the configuration has it no more.
    """

    schema_version: Literal[1] = 1
    id: UUID
    alert_id: UUID
    station: Name
    alert: Name
    kind: AlertKind
    subject: str
    camera: Name | None = None
    state: AlertStateName
    priority: Priority
    epoch: int
    sequence: int = Field(ge=1)
    at: datetime
    since: datetime
    count: int | None = None
    frames: int | None = None
    value: float | None = None
    limit: float | None = None
    reason: str
    text: str
    cleared: Literal["over", "removed"] | None = None
