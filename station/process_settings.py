"""`[process.<group>]`: the channels that a recurrent model watches together, and the alarms on them."""

import math
from collections.abc import Mapping
from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from station.messages import Name
from station.process_messages import Priority
from station.section import FilePath, Fraction, Section
from station.sensor_settings import PointName

RISK = "risk"
"""What an alarm watches that watches no channel."""


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError("must be a finite number")
    return value


Finite = Annotated[float, AfterValidator(_finite)]


class ChannelSettings(Section):
    """`[process.<group>.channel.<name>]`"""

    source: Name
    """The `[sensors.<name>]` table that it comes from."""
    point: PointName | None = None
    """The point of that source; default: the channel's own name."""
    unit: str = Field(default="", max_length=16)
    """Unit after scale and offset; must be the bundle's where both name one."""
    scale: Finite = 1.0
    """value = raw × scale + offset."""
    offset: Finite = 0.0
    """value = raw × scale + offset."""
    minimum: Finite | None = None
    """Least valid value; below, the channel is bad (`out_of_range`)."""
    maximum: Finite | None = None
    """Greatest valid value; above, the channel is bad (`out_of_range`)."""
    deadband: Finite = Field(default=0.0, ge=0)
    """A smaller change is none: values that move less for `flat_after_s` are `stuck`."""
    max_age_s: Finite | None = Field(default=None, gt=0)
    """A value is held this long, then the channel is bad (`stale`); default: five steps."""
    flat_after_s: Finite | None = Field(default=None, gt=0)
    """Values that do not move for this long are bad (`flat_line`, `stuck`); default: the bundle's, else never."""

    @model_validator(mode="after")
    def _range(self) -> Self:
        if self.scale == 0:
            raise ValueError("scale must not be 0")
        if self.minimum is not None and self.maximum is not None and self.minimum >= self.maximum:
            raise ValueError(f"minimum = {self.minimum} must be below maximum = {self.maximum}")
        return self


class AlarmSettings(Section):
    """`[process.<group>.alarm.<name>]`"""

    watch: PointName = RISK
    """`risk`, or a channel of the group."""
    above: Finite | None = None
    """The condition: at or above this. Default for `risk`: the bundle's limit, for which its bound of false alarms
    holds."""
    below: Finite | None = None
    """The condition, for a channel: at or below this."""
    deadband: Finite | None = Field(default=None, ge=0)
    """How far it must come back before the condition is over; default for `risk`: the bundle's, else 0."""
    on_delay_s: Finite | None = Field(default=None, ge=0)
    """The condition must hold this long; default for `risk`: the bundle's, else 0."""
    off_delay_s: Finite | None = Field(default=None, ge=0)
    """It must be over this long; default for `risk`: the bundle's, else 0."""
    priority: Priority = Field(default=Priority.MEDIUM, strict=False)
    """low, medium, high or critical."""
    latching: bool = False
    """Once it came, it stays until it is acknowledged and reset."""
    text: str = Field(default="", max_length=200)
    """What the operator is told to do."""

    @model_validator(mode="after")
    def _condition(self) -> Self:
        if self.watch == RISK:
            if self.below is not None:
                raise ValueError("below is for a channel; an alarm on the risk has above")
            if self.above is not None and not 0 < self.above <= 1:
                raise ValueError(f"above = {self.above}: a risk lies in 0 to 1")
        elif (self.above is None) == (self.below is None):
            raise ValueError("an alarm on a channel needs above or below, one of the two")
        return self


class ProcessSettings(Section):
    """`[process.<group>]`"""

    bundle: FilePath | None = None
    """The forecasting bundle; without one the channels are watched and kept, and only alarms on channels exist."""
    step_s: Finite | None = Field(default=None, ge=0.001, le=86_400)
    """Fixed step onto which readings are brought; default: the bundle's, without a bundle 1 s."""
    lateness_s: Finite = Field(default=0.0, ge=0, le=3600)
    """A step is closed this long after its time, so that late and out-of-order readings still count."""
    reset_after_s: Finite | None = Field(default=None, gt=0)
    """After a longer gap without readings, or between two runs, the model begins anew and warms up; default: the
    bundle's, without a bundle a minute, and ten steps at least."""
    min_good: Fraction = 0.5
    """With a smaller share of good channels the state is `sensor_fault`."""
    risk_interval_s: Finite = Field(default=1.0, ge=0)
    """The topic `risk` is published at most this often; 0: at each step."""
    history_s: Finite = Field(default=300.0, gt=0, le=86_400)
    """How much of the risk's history an alarm carries."""
    max_shelve_s: Finite = Field(default=28_800.0, gt=0)
    """An alarm can be shelved for at most this long."""
    channel: Mapping[PointName, ChannelSettings] = Field(min_length=1)
    """`[process.<group>.channel.<name>]`, one table for each channel."""
    alarm: Mapping[Name, AlarmSettings] = Field(default_factory=dict)
    """`[process.<group>.alarm.<name>]`; default: one alarm `early_warning` on the risk."""

    @model_validator(mode="after")
    def _alarms_watch_channels(self) -> Self:
        for name, alarm in self.alarm.items():
            if alarm.watch != RISK and alarm.watch not in self.channel:
                raise ValueError(f"alarm.{name}.watch = {alarm.watch!r} is no channel of this group, nor {RISK!r}")
            if alarm.watch == RISK and self.bundle is None:
                raise ValueError(f"alarm.{name} watches the risk, which needs a bundle")
        return self

    def alarms(self) -> Mapping[str, AlarmSettings]:
        """The alarms with the default one, where none is named and there is a risk to watch."""
        if self.alarm or self.bundle is None:
            return self.alarm
        return {"early_warning": AlarmSettings(text="the process runs otherwise than in normal operation")}
