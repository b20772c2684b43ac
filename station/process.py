"""The journey of a reading, readable top to bottom. Synchronous; knows no thread, no disk and no broker.

reading → window → step model → risk → alarms → what is to be published, and where the group stands now.
"""

import base64
import binascii
import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from station.alarm import AlarmGroup, AlarmRule, AlarmStatus, FloodWatch
from station.errors import ConfigurationError, InferenceError
from station.ids import uuid7
from station.messages import ProcessStateName
from station.ports import Clock, StepModel
from station.process_messages import (
    CODE_OF,
    QUALITIES,
    Alarm,
    AlarmEvent,
    ChannelPart,
    ChannelQuality,
    Codes,
    Moment,
    Readings,
    Risk,
    RiskPoint,
    SourceEvent,
    StepRisk,
    Tick,
)
from station.process_settings import RISK, AlarmSettings, ProcessSettings
from station.window import SAME_TIME_S, Channel, Window

logger = logging.getLogger(__name__)

TOP_CHANNELS = 3
"""Channels that an alarm names at most."""
LEAST_SHARE = 0.02
"""A channel with a smaller part in the risk is not named: it has nothing to do with it."""
HISTORY_POINTS = 60
"""Points of the risk's history in an alarm."""
DEFAULT_STEP_S = 1.0
RESET_S = 60.0
RESET_STEPS = 10
"""A longer gap is not made up, where neither configuration nor bundle says when."""
AGE_STEPS = 5
"""A value is held this many steps, where its channel says nothing."""
FAULT_AFTER_S = 2.0
"""A channel must be bad, or good again, for this long and for two steps before it is told: one lost row is no fault."""
_UNTOLD = frozenset(CODE_OF[one] for one in (ChannelQuality.GOOD, ChannelQuality.SOURCE_FAULT))
"""Of a source that is down its own fault tells, not one for each of its channels."""


@dataclass(frozen=True, slots=True)
class Observation:
    """What came of a reading, or of time that passed.

    Attributes:
        ticks: steps that were made.
        moments: where the group stood at each of them.
        risk: telemetry that is due; None: none is.
        alarms: one message for each transition of an alarm.
        faults: (channel, reason) for each channel whose fault began or changed; reason None: it is over.
    """

    ticks: Sequence[Tick] = ()
    moments: Sequence[Moment] = ()
    risk: Risk | None = None
    alarms: Sequence[Alarm] = ()
    faults: Sequence[tuple[str, str | None]] = ()


NOTHING = Observation()


class SavedProcess(BaseModel):
    """A group as it is kept over a restart.

    Attributes:
        at_s: time of its last tick, seconds since 1970; None: there was none.
        model: what the model remembers, base64.
        alarms: see `AlarmGroup.snapshot`.
        messages: the last message of each alarm, as it was published.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    version: int = Field(default=1, ge=1, le=1)
    at_s: float | None
    model: str | None
    alarms: dict[str, JsonValue]
    messages: dict[str, JsonValue]


class Observer:
    """Watches one process group.

    Args:
        station: the station's name.
        group: the group's name.
        epoch: number of this run of the station.
        settings: of the group.
        flood: shared by all groups.
        clock: for the ids of messages.
        live: False: all sources are replayed logs, whose rows alone move the time.
        model: a bundle that passed its golden sequence; None: there is none.

    Raises:
        ConfigurationError: settings and bundle do not fit each other.
    """

    def __init__(
        self,
        *,
        station: str,
        group: str,
        epoch: int,
        settings: ProcessSettings,
        flood: FloodWatch,
        clock: Clock,
        live: bool = True,
        model: StepModel | None = None,
    ) -> None:
        self._station = station
        self._group = group
        self._epoch = epoch
        self._settings = settings
        self._clock = clock
        self._live = live
        self._model = model
        self.step_s = step_of(settings, model)
        self.channels = channels_of(group, settings, self.step_s, model)
        self._reset_after_s = settings.reset_after_s or (
            max(RESET_S, RESET_STEPS * self.step_s) if model is None else model.reset_after_s
        )
        self._window = Window(
            self.channels,
            step_s=self.step_s,
            lateness_s=settings.lateness_s,
            reset_after_s=self._reset_after_s,
            min_good=settings.min_good,
        )
        self._alarms = AlarmGroup(rules_of(settings, self.channels, model), flood, settings.max_shelve_s)
        self._sequence = 0
        self._published: dict[str, Alarm] = {}
        self._history: deque[tuple[float, float | None]] = deque(maxlen=HISTORY_POINTS)
        self._history_step_s = max(settings.history_s / HISTORY_POINTS, self.step_s)
        self._risk_due_s = float("-inf")
        self._starving_s: float | None = None
        self._model_fault: str | None = None
        self._last: tuple[Tick, StepRisk | None] | None = None
        self._saved: SavedProcess | None = None
        self._faults = _ChannelFaults(self.channels, max(FAULT_AFTER_S, 2 * self.step_s))
        self.moment: Moment | None = None

    @property
    def window(self) -> Window:
        """Where its readings go; connect each source before its first row."""
        return self._window

    @property
    def model_fault(self) -> str | None:
        """Why the model gives no risk now, in one line; None: it works, or there is none."""
        return self._model_fault

    @property
    def bad(self) -> Mapping[str, ChannelQuality]:
        """Channels that are not good now, with the reason."""
        return {} if self._last is None else self._bad(self._last[0])

    def observe(self, item: Readings | SourceEvent) -> Observation:
        """Take what a source gave.

        Raises:
            KeyError, ValueError: as `Window.put`.
        """
        if isinstance(item, SourceEvent):
            return self._follow(self._window.source_changed(item))
        return self._follow(self._window.put(item, self._clock.now().timestamp() if self._live else None))

    def look(self) -> Observation:
        """Let time pass: silence must not stop the steps. A replayed log has no time but its rows'."""
        return self._follow(self._window.advance(self._clock.now().timestamp())) if self._live else NOTHING

    def command(
        self, alarm: str, event: AlarmEvent, *, by: str | None = None, shelve_s: float | None = None
    ) -> Observation:
        """Do what a person asks for.

        Raises:
            AlarmRefused: as `AlarmGroup.command`.
        """
        now_s = self._last[0].at_s if self._last and not self._live else self._clock.now().timestamp()
        status = self._alarms.command(alarm, event, now_s, by=by, shelve_s=shelve_s)
        message = self._message(status)
        self._note()
        return Observation(moments=() if self.moment is None else (self.moment,), alarms=(message,))

    def current(self) -> Sequence[Alarm]:
        """Each alarm's newest message, to be retained at the start; one that has none yet is normal."""
        for status in self._alarms.statuses:
            if status.rule.name not in self._published:
                now_s = self._clock.now().timestamp()
                self._message(status, now_s)
        return tuple(self._published[status.rule.name] for status in self._alarms.statuses)

    def snapshot(self) -> bytes:
        """What must survive a restart."""
        model = self._model.snapshot() if self._model is not None and self._last is not None else None
        return (
            SavedProcess(
                at_s=self._last[0].at_s if self._last else None,
                model=base64.b64encode(model).decode() if model is not None else None,
                alarms=self._alarms.snapshot(),  # type: ignore[arg-type]
                messages={name: alarm.model_dump(mode="json") for name, alarm in self._published.items()},
            )
            .model_dump_json()
            .encode()
        )

    def restore(self, saved: bytes) -> bool:
        """Go on from a snapshot; False when it is none, and everything begins anew.

        The model goes on only when the first tick shows that the gap was not longer than `reset_after_s`.
        """
        try:
            kept = SavedProcess.model_validate_json(saved)
            self._alarms.restore(kept.alarms)
            names = {status.rule.name for status in self._alarms.statuses}
            for name, document in kept.messages.items():
                if name in names:
                    self._published[name] = Alarm.model_validate(document, strict=False)
        except ValidationError:
            return False
        self._alarms.interrupt()
        self._saved = kept
        return True

    # The steps

    def _follow(self, ticks: Sequence[Tick]) -> Observation:
        if not ticks:
            return NOTHING
        moments, alarms, faults = [], [], []
        for tick in ticks:
            answer = self._step(tick)
            changed = self._alarms.observe(tick, None if answer is None else answer.risk)
            self._last = (tick, answer)
            risk = None if answer is None else answer.risk
            self._remember(tick.at_s, risk)
            alarms += [self._message(status) for status in changed]
            faults += self._faults.look(tick)
            moment = Moment(tick.at_s, self._state(tick, risk), risk, self._alarms.sounding)
            moments.append(moment)
        self.moment = moments[-1]
        return Observation(ticks, moments, self._telemetry(ticks[-1]), alarms, faults)

    def _step(self, tick: Tick) -> StepRisk | None:
        """Let the model take one step; None where there is nothing to be said."""
        model = self._model
        if self._last is None:
            self._go_on(tick)
        elif tick.restart:
            self._alarms.interrupt()
            self._history.clear()
            if model is not None:
                model.reset()
        if model is None:
            return None
        if tick.enough:
            if self._starved(tick):
                model.reset()
            self._starving_s = None
        elif self._starving_s is None:
            self._starving_s = tick.at_s
        if self._starved(tick):
            return None
        try:
            answer = model.step(tick.at_s, tick.values, tick.mask)
        except InferenceError as exc:
            if self._model_fault is None:
                logger.error("process %s: %s", self._group, exc)
            self._model_fault = str(exc)
            model.reset()
            return None
        self._model_fault = None
        return answer if tick.enough else StepRisk(None, answer.expected, answer.shares)

    def _starved(self, tick: Tick) -> bool:
        """Whether there were too few good channels for too long: what the model remembers is of no use any more."""
        return self._starving_s is not None and tick.at_s - self._starving_s > self._reset_after_s

    def _go_on(self, tick: Tick) -> None:
        """At the first tick: the model of the former run goes on where it was, or begins anew."""
        saved, self._saved = self._saved, None
        if self._model is None:
            return
        if saved is None or saved.model is None or saved.at_s is None:
            self._model.reset()
            return
        gap_s = tick.at_s - saved.at_s
        try:
            known = 0 <= gap_s <= self._reset_after_s and self._model.restore(
                base64.b64decode(saved.model, validate=True)
            )
        except binascii.Error:
            known = False
        if not known:
            self._model.reset()
        logger.info("process %s: the model %s", self._group, "goes on where it was" if known else "begins anew")

    def _state(self, tick: Tick, risk: float | None) -> ProcessStateName:
        if self._alarms.sounding:
            return ProcessStateName.ALARM
        if not tick.enough:
            return ProcessStateName.SENSOR_FAULT
        if self._settings.bundle is None:
            return ProcessStateName.NORMAL
        if self._model is None or self._model_fault is not None:
            return ProcessStateName.MODEL_FAULT
        return ProcessStateName.NOT_READY if risk is None else ProcessStateName.NORMAL

    def _note(self) -> None:
        """After a command the group may stand elsewhere, with the readings that it had."""
        if self._last is not None and self.moment is not None:
            tick, risk = self._last[0], self.moment.risk
            self.moment = Moment(tick.at_s, self._state(tick, risk), risk, self._alarms.sounding)

    # What is told

    def _remember(self, at_s: float, risk: float | None) -> None:
        """Keep the largest risk of each stretch of the history."""
        history = self._history
        if not history or not 0 <= at_s - history[-1][0] < self._history_step_s:
            history.append((at_s, risk))
        elif risk is not None and risk > (history[-1][1] or 0.0):
            history[-1] = (history[-1][0], risk)

    def _telemetry(self, tick: Tick) -> Risk | None:
        if SAME_TIME_S < self._risk_due_s - tick.at_s <= self._settings.risk_interval_s + SAME_TIME_S:
            return None
        assert self.moment is not None
        self._risk_due_s = tick.at_s + self._settings.risk_interval_s
        parts = self._parts(None)
        return Risk(
            station=self._station,
            group=self._group,
            at=_time(tick.at_s),
            state=self.moment.state,
            risk=_rounded(self.moment.risk),
            top=parts[0].channel if parts else None,
            bad=dict(self._bad(tick)),
        )

    def _bad(self, tick: Tick) -> Mapping[str, ChannelQuality]:
        return {self.channels[place].name: QUALITIES[tick.codes[place]] for place in np.flatnonzero(tick.codes)}

    def _parts(self, rule: AlarmRule | None) -> tuple[ChannelPart, ...]:
        """The channels that matter: the one that an alarm watches, or those with the largest part in the risk."""
        if self._last is None:
            return ()
        tick, answer = self._last
        if rule is not None and rule.index is not None:
            return (self._part(tick, rule.index, 1.0, rule.limit),)
        if answer is None:
            return ()
        places = np.argsort(-answer.shares, kind="stable")[:TOP_CHANNELS]
        return tuple(
            self._part(tick, int(place), float(answer.shares[place]), float(answer.expected[place]))
            for place in places
            if answer.shares[place] >= LEAST_SHARE
        )

    def _part(self, tick: Tick, place: int, share: float, expected: float) -> ChannelPart:
        channel = self.channels[place]
        return ChannelPart(
            channel=channel.name,
            unit=channel.unit,
            share=round(min(1.0, share), 4),
            actual=_rounded(float(tick.values[place])) if tick.mask[place] else None,
            expected=_rounded(expected) if np.isfinite(expected) else None,
            quality=QUALITIES[tick.codes[place]],
        )

    def _message(self, status: AlarmStatus, now_s: float | None = None) -> Alarm:
        self._sequence += 1
        rule = status.rule
        at_s = status.at_s if now_s is None else now_s
        since_s = self._settings.history_s
        message = Alarm(
            id=uuid7(int(self._clock.now().timestamp() * 1e3)),
            station=self._station,
            group=self._group,
            alarm=rule.name,
            epoch=self._epoch,
            sequence=self._sequence,
            state=status.state,
            event=status.event,
            active=status.active,
            priority=rule.priority,
            text=rule.text,
            at=_time(at_s),
            since=_time(status.since_s if now_s is None else now_s),
            active_since=None if status.active_since_s is None else _time(status.active_since_s),
            watches=rule.watches,
            value=_rounded(status.value),
            limit=rule.limit,
            top=self._parts(rule),
            history=tuple(
                RiskPoint(at=_time(one_s), risk=_rounded(risk))
                for one_s, risk in self._history
                if 0 <= at_s - one_s <= since_s
            ),
            first_out=status.first_out,
            chattering=status.chattering,
            flood=status.flood,
            shelved_until=None if status.shelved_until_s is None else _time(status.shelved_until_s),
            by=status.by,
        )
        self._published[rule.name] = message
        return message


@dataclass(slots=True)
class _ChannelFaults:
    """Which channels' faults are told: one that comes and goes with single rows is not."""

    channels: Sequence[Channel]
    after_s: float
    told: dict[int, int] = field(default_factory=dict)
    pending: dict[int, tuple[int, float]] = field(default_factory=dict)
    codes: bytes = b""

    def look(self, tick: Tick) -> list[tuple[str, str | None]]:
        codes = tick.codes.tobytes()
        if codes == self.codes and not self.pending:
            return []
        if codes != self.codes:
            self.codes = codes
            self._note(tick.codes, tick.at_s)
        due = [place for place, (_, since_s) in self.pending.items() if not 0 <= tick.at_s - since_s < self.after_s]
        faults: list[tuple[str, str | None]] = []
        for place in due:
            code, _ = self.pending.pop(place)
            if code in _UNTOLD:
                del self.told[place]
                faults.append((self.channels[place].name, None))
            else:
                self.told[place] = code
                faults.append((self.channels[place].name, describe(self.channels[place], QUALITIES[code])))
        return faults

    def _note(self, codes: Codes, at_s: float) -> None:
        for place, code in enumerate(codes.tolist()):
            told = self.told.get(place, 0)
            waiting = self.pending.get(place)
            if code == told or (code in _UNTOLD and not told):
                self.pending.pop(place, None)
            elif waiting is None or waiting[0] != code:
                self.pending[place] = (code, at_s)


def describe(channel: Channel, quality: ChannelQuality) -> str:
    """One line that says what is wrong with a channel's readings, and where to look."""
    where = f"{channel.source}, {channel.point}"
    texts: Mapping[ChannelQuality, Callable[[], str]] = {
        ChannelQuality.MISSING: lambda: f"has delivered nothing yet ({where})",
        ChannelQuality.STALE: lambda: f"has delivered nothing for {channel.max_age_s:g} s ({where})",
        ChannelQuality.NOT_A_NUMBER: lambda: f"delivers what is no number ({where})",
        ChannelQuality.OUT_OF_RANGE: lambda: (
            f"is outside of {channel.minimum if channel.minimum is not None else '-∞'} to "
            f"{channel.maximum if channel.maximum is not None else '∞'} {channel.unit} ({where})"
        ),
        ChannelQuality.FLAT_LINE: lambda: f"has given the same value for {channel.flat_after_s:g} s ({where})",
        ChannelQuality.STUCK: lambda: (
            f"has moved less than {channel.deadband:g} {channel.unit} for {channel.flat_after_s:g} s ({where})"
        ),
        ChannelQuality.BAD_STATUS: lambda: f"is bad by the device's own word ({where})",
        ChannelQuality.WRONG_TIME: lambda: f"has times ahead of this computer's clock ({where}); set the clocks",
    }
    return f"{quality.value}: {texts[quality]()}" if quality in texts else quality.value


def step_of(settings: ProcessSettings, model: StepModel | None) -> float:
    """The step of a group, in seconds.

    Raises:
        ConfigurationError: the configuration's is not the bundle's.
    """
    if model is None:
        return settings.step_s or DEFAULT_STEP_S
    if settings.step_s is not None and abs(settings.step_s - model.step_s) > 1e-6 * model.step_s:
        raise ConfigurationError(
            f"step_s = {settings.step_s:g}: the bundle {model.ref.name} was trained on steps of {model.step_s:g} s"
        )
    return model.step_s


def channels_of(group: str, settings: ProcessSettings, step_s: float, model: StepModel | None) -> tuple[Channel, ...]:
    """The channels in the model's order, with what the bundle knows of them; without a model in the file's order.

    Raises:
        ConfigurationError: channels or units are not the bundle's; each one is named.
    """
    expected = dict(model.channels) if model is not None else dict.fromkeys(settings.channel, "")
    flat_after_s: dict[str, float | None] = dict.fromkeys(expected)
    if model is not None:
        flat_after_s = dict(zip(expected, model.flat_after_s, strict=True))
        if missing := [name for name in expected if name not in settings.channel]:
            raise ConfigurationError(
                f"process.{group}.channel: the bundle {model.ref.name} expects {', '.join(map(repr, missing))}"
            )
        if extra := [name for name in settings.channel if name not in expected]:
            raise ConfigurationError(
                f"process.{group}.channel: the bundle {model.ref.name} does not know {', '.join(map(repr, extra))}; "
                f"it expects {', '.join(map(repr, expected))}"
            )
    channels = []
    for name, unit in expected.items():
        one = settings.channel[name]
        if unit and one.unit and unit != one.unit:
            raise ConfigurationError(
                f"process.{group}.channel.{name}.unit = {one.unit!r}: the bundle expects {unit!r}; "
                "set scale and offset so that the values are in that unit"
            )
        channels.append(
            Channel(
                name=name,
                source=one.source,
                point=one.point or name,
                max_age_s=one.max_age_s or AGE_STEPS * step_s,
                unit=one.unit or unit,
                scale=one.scale,
                offset=one.offset,
                minimum=one.minimum,
                maximum=one.maximum,
                deadband=one.deadband,
                flat_after_s=one.flat_after_s or flat_after_s[name],
            )
        )
    return tuple(channels)


def rules_of(settings: ProcessSettings, channels: Sequence[Channel], model: StepModel | None) -> tuple[AlarmRule, ...]:
    """The alarms' rules; what the settings leave open is the bundle's."""
    places = {channel.name: place for place, channel in enumerate(channels)}
    rules = []
    for name, alarm in settings.alarms().items():
        if alarm.watch != RISK:
            limit = alarm.above if alarm.above is not None else alarm.below
            assert limit is not None
            rules.append(_rule(name, alarm, limit, places[alarm.watch], (0.0, 0.0, 0.0)))
        elif model is not None:
            known = model.limits
            limit = known.limit if alarm.above is None else alarm.above
            rules.append(_rule(name, alarm, limit, None, (known.deadband, known.on_delay_s, known.off_delay_s)))
        else:
            # Nothing can be known of a risk, so that its alarm stays as it is until the bundle can be used.
            rules.append(_rule(name, alarm, 1.0 if alarm.above is None else alarm.above, None, (0.0, 0.0, 0.0)))
    return tuple(rules)


def _rule(
    name: str, alarm: AlarmSettings, limit: float, place: int | None, defaults: tuple[float, float, float]
) -> AlarmRule:
    deadband, on_delay_s, off_delay_s = defaults
    return AlarmRule(
        name=name,
        watches=alarm.watch,
        limit=limit,
        index=place,
        rising=alarm.below is None,
        deadband=deadband if alarm.deadband is None else alarm.deadband,
        on_delay_s=on_delay_s if alarm.on_delay_s is None else alarm.on_delay_s,
        off_delay_s=off_delay_s if alarm.off_delay_s is None else alarm.off_delay_s,
        priority=alarm.priority,
        latching=alarm.latching,
        text=alarm.text,
    )


def _time(at_s: float) -> datetime:
    return datetime.fromtimestamp(at_s, UTC)


def _rounded(value: float | None) -> float | None:
    """Six significant digits: what comes after them is noise of the arithmetic."""
    return None if value is None else float(f"{value:.6g}")
