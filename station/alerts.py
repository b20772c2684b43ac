"""What a person or a PLC must act on: from verdicts and faults to alerts that rise once and clear once.

Theory of operation
-------------------
An alert of the configuration is watched for each *subject* by itself: an alert on verdicts for each of its cameras, an
alert on faults for each part that is at fault. Each subject has a condition (`station.condition`), whose limit,
deadband and delays keep it from chattering, and one of two states:

==========  ======================================  ==========  =========================
state       event                                   next state  message
==========  ======================================  ==========  =========================
clear       the condition begins to hold            standing    raised, with a new id
standing    the condition is over                   clear       cleared (over)
standing    the station was down                    standing    none: same id, same since
standing    the configuration has it no more        clear       cleared (removed)
==========  ======================================  ==========  =========================

So the messages of a subject alternate strictly, in a run and over restarts.

What the conditions are:

- *ng_in_a_row*: the number of ng since the last ok. An unknown neither counts nor breaks the row. Once the alert stands
  an ok does not end the row before `clear_after` of them came one after the other.
- *rates*: the share among the newest frames. With fewer than `least_frames` of them nothing is known, and what is not
  known neither raises nor clears.
- *faults*: the fault is on the board. A fault that stood when the station went down gets `SETTLE_S` to show itself
  again before its absence counts: a camera needs a while to be found silent.

What stood before a restart is known from the journal, which holds a message if and only if it was, or will be,
delivered; so no alert can be left hanging. Windows of frames begin anew with each run.

Nothing here knows a clock or a thread. What grows with the number of frames is bounded by the windows; what grows with
the number of parts at fault goes with the fault.
"""

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from uuid import UUID

from station.alert_messages import Alert, AlertKind, AlertStateName
from station.alert_settings import AlertSettings, CameraAlert, FaultAlert, NgRateAlert, RateAlert, RowAlert
from station.condition import Condition
from station.ids import uuid7
from station.messages import Fault, Outcome
from station.process_messages import Priority

SETTLE_S = 15.0
"""After a start a fault that stood before has this long to show itself again."""


@dataclass(frozen=True, slots=True)
class Instant:
    """A moment on both clocks: the wall's for people, the monotonic one for delays."""

    wall: datetime
    monotonic_s: float


@dataclass(frozen=True, slots=True)
class Sounding:
    """An alarm of a process group that sounds.

    Attributes:
        group: the process group.
        alarm: the alarm.
        priority: its own.
        text: its own; what to do.
    """

    group: str
    alarm: str
    priority: Priority
    text: str


@dataclass(frozen=True, slots=True)
class _Character:
    """What a kind of fault is like, where its table says nothing."""

    priority: Priority
    on_delay_s: float
    off_delay_s: float
    text: str


CHARACTERS: Mapping[AlertKind, _Character] = {
    AlertKind.CAMERA: _Character(Priority.CRITICAL, 0, 2, "parts go by unseen: look at the camera's power and cable"),
    AlertKind.MODEL: _Character(Priority.CRITICAL, 0, 2, "every part is unknown: install a bundle that can be used"),
    AlertKind.REJECT: _Character(Priority.CRITICAL, 0, 10, "parts may not be rejected: stop the line, look at the PLC"),
    AlertKind.JOURNAL: _Character(Priority.HIGH, 2, 5, "make room on the disk, or replace it"),
    AlertKind.BROKER: _Character(Priority.MEDIUM, 5, 5, "look at the network and the broker; nothing is lost"),
    AlertKind.PROCESS_ALARM: _Character(Priority.MEDIUM, 0, 0, "look at the process"),
    AlertKind.SENSORS: _Character(Priority.MEDIUM, 5, 5, "look at the sensor, its cable and its gateway"),
    AlertKind.EVIDENCE: _Character(Priority.LOW, 30, 5, "make room on the disk; verdicts go on without pictures"),
    AlertKind.STATION: _Character(Priority.MEDIUM, 2, 5, "see the reason"),
}
_VERDICT_TEXTS = {
    AlertKind.NG_IN_A_ROW: "look at the parts and at the machine before the camera",
    AlertKind.NG_RATE: "look at the parts and at the machine before the camera",
    AlertKind.UNKNOWN_RATE: "look at the light, the lens and the load: parts are not judged",
}
_KINDS_OF_FAULTS = {
    "camera": AlertKind.CAMERA,
    "model": AlertKind.MODEL,
    "reject": AlertKind.REJECT,
    "journal": AlertKind.JOURNAL,
    "readings": AlertKind.JOURNAL,
    "broker": AlertKind.BROKER,
    "embedded": AlertKind.BROKER,
    "alarms": AlertKind.PROCESS_ALARM,
    "sensors": AlertKind.SENSORS,
    "channel": AlertKind.SENSORS,
    "evidence": AlertKind.EVIDENCE,
    "part": AlertKind.SENSORS,
}
"""First word of what a fault is called on the board → kind; any other is one of the station."""


@dataclass(slots=True)
class _Row:
    """How many ng in a row."""

    clear_after: int
    ng: int = 0
    ok: int = 0

    def take(self, outcome: Outcome, *, standing: bool) -> None:
        if outcome is Outcome.NG:
            self.ng, self.ok = self.ng + 1, 0
        elif outcome is Outcome.OK:
            self.ok += 1
            if not standing or self.ok >= self.clear_after:
                self.ng = 0


@dataclass(slots=True)
class _Window:
    """The newest frames, as (monotonic time, counted or not)."""

    frames: int
    seconds: float | None
    least: int
    newest: deque[tuple[float, bool]] = field(default_factory=deque)
    count: int = 0

    def take(self, counted: bool, now_s: float) -> None:
        self.newest.append((now_s, counted))
        self.count += counted
        if len(self.newest) > self.frames:
            self._drop()
        self.age(now_s)

    def age(self, now_s: float) -> None:
        while self.seconds is not None and self.newest and now_s - self.newest[0][0] > self.seconds:
            self._drop()

    @property
    def share(self) -> float | None:
        return self.count / len(self.newest) if len(self.newest) >= self.least else None

    def _drop(self) -> None:
        self.count -= self.newest.popleft()[1]


@dataclass(frozen=True, slots=True)
class _Reading:
    """What a message says of the condition."""

    reason: str
    count: int | None = None
    frames: int | None = None
    value: float | None = None
    limit: float | None = None


class _Watch:
    """One alert for one subject."""

    def __init__(self, name: str, kind: AlertKind, subject: str, camera: str | None, condition: Condition) -> None:
        self.name = name
        self.kind = kind
        self.subject = subject
        self.camera = camera
        self.condition = condition
        self.raised: Alert | None = None
        self.told: _Reading | None = None

    def resume(self, raised: Alert) -> None:
        self.raised = raised
        self.condition.active = True


class _CameraWatch(_Watch):
    """An alert on the verdicts of one camera."""

    def __init__(self, name: str, settings: CameraAlert, camera: str) -> None:
        self.settings = settings
        self._source: _Row | _Window
        match settings:
            case RowAlert():
                kind = AlertKind.NG_IN_A_ROW
                self.limit: float = settings.camera_limits.get(camera, settings.limit)
                self._source = _Row(settings.clear_after)
                condition = Condition(self.limit)
            case RateAlert():
                ng = isinstance(settings, NgRateAlert)
                kind = AlertKind.NG_RATE if ng else AlertKind.UNKNOWN_RATE
                self._counted = Outcome.NG if ng else Outcome.UNKNOWN
                self.limit = settings.camera_limits.get(camera, settings.limit)
                self._source = _Window(settings.window_frames, settings.window_s, settings.least_frames)
                deadband = self.limit / 5 if settings.deadband is None else settings.deadband
                condition = Condition(self.limit, deadband=deadband)
            case _:
                raise TypeError(type(settings))
        super().__init__(name, kind, camera, camera, condition)

    def resume(self, raised: Alert) -> None:
        super().resume(raised)
        if isinstance(self._source, _Row):
            self._source.ng = max(int(self.limit), raised.count or 0)

    def take(self, outcome: Outcome, now_s: float) -> bool:
        """Count a verdict; return whether the condition changed."""
        if isinstance(self._source, _Row):
            self._source.take(outcome, standing=self.condition.active)
            return self.condition.look(now_s, self._source.ng)
        self._source.take(outcome is self._counted, now_s)
        share = self._source.share
        return share is not None and self.condition.look(now_s, share)

    def reading(self) -> _Reading:
        source = self._source
        if isinstance(source, _Row):
            reason = f"{source.ng} ng in a row (limit {self.limit})" if source.ng else "ok again"
            return _Reading(reason, count=source.ng, value=source.ng, limit=self.limit)
        share = source.count / len(source.newest)
        reason = f"{share:.1%} {self._counted.value} of the last {len(source.newest)} frames (limit {self.limit:.1%})"
        return _Reading(reason, source.count, len(source.newest), round(share, 6), self.limit)

    @property
    def priority(self) -> Priority:
        return self.settings.priority

    @property
    def text(self) -> str:
        return self.settings.text or _VERDICT_TEXTS[self.kind]


class _FaultWatch(_Watch):
    """An alert on one part that is, or was, at fault."""

    def __init__(self, name: str, settings: FaultAlert, found: "_Found") -> None:
        character = CHARACTERS[found.kind]
        self.priority = settings.priority or found.priority or character.priority
        self.text = settings.text or found.text or character.text
        self.reason = found.reason
        condition = Condition(
            1.0,
            deadband=0.5,
            on_delay_s=character.on_delay_s if settings.on_delay_s is None else settings.on_delay_s,
            off_delay_s=character.off_delay_s if settings.off_delay_s is None else settings.off_delay_s,
        )
        super().__init__(name, found.kind, found.subject, found.camera, condition)

    def reading(self) -> _Reading:
        return _Reading(self.reason)


@dataclass(frozen=True, slots=True)
class _Found:
    """Something that is at fault now."""

    kind: AlertKind
    subject: str
    reason: str
    camera: str | None = None
    priority: Priority | None = None
    text: str = ""


class AlertBook:
    """Every alert of a station; one thread at a time.

    Args:
        station: the station's name.
        epoch: number of this run.
        tables: the alerts by name, see `station.alert_settings`.
        cameras: names of the cameras.
        new_id: makes the id of a message out of its time.
    """

    def __init__(
        self,
        station: str,
        epoch: int,
        tables: Mapping[str, AlertSettings],
        cameras: Iterable[str],
        new_id: Callable[[datetime], UUID] = lambda at: uuid7(int(at.timestamp() * 1e3)),
    ) -> None:
        self._station = station
        self._epoch = epoch
        self._new_id = new_id
        self._sequence = 0
        self._began_s: float | None = None
        told = {name: table for name, table in tables.items() if table.enabled}
        self._on_faults = {name: table for name, table in told.items() if isinstance(table, FaultAlert)}
        self._of_camera: dict[str, list[_CameraWatch]] = {
            camera: [
                _CameraWatch(name, table, camera)
                for name, table in told.items()
                if isinstance(table, CameraAlert) and (not table.cameras or camera in table.cameras)
            ]
            for camera in cameras
        }
        self._faults: dict[tuple[str, str], _FaultWatch] = {}

    @property
    def standing(self) -> Sequence[Alert]:
        """The alerts that stand, as they were raised, oldest first."""
        raised = [watch.raised for watch in self._watches() if watch.raised is not None]
        return sorted(raised, key=lambda alert: alert.at)

    def restore(self, former: Iterable[Alert], at: Instant) -> Sequence[Alert]:
        """Go on with what stood when the station went down; call it once, before anything else.

        Args:
            former: the messages of former runs, in their order.
            at: now.

        Returns:
            The clearing of what the configuration has no more.
        """
        self._began_s = at.monotonic_s
        standing: dict[UUID, Alert] = {}
        for alert in former:
            if alert.state is AlertStateName.RAISED:
                standing[alert.alert_id] = alert
            else:
                standing.pop(alert.alert_id, None)
        known = {(watch.name, watch.subject): watch for watch in self._watches()}
        removed = []
        for alert in standing.values():
            watch = known.get((alert.alert, alert.subject))
            table = self._on_faults.get(alert.alert)
            if watch is None and table is not None and table.kind == alert.kind.value:
                found = _Found(alert.kind, alert.subject, alert.reason, alert.camera, alert.priority, alert.text)
                watch = known[alert.alert, alert.subject] = _FaultWatch(alert.alert, table, found)
                self._faults[alert.alert, alert.subject] = watch
            if watch is None or watch.kind is not alert.kind or watch.raised is not None:
                reading = _Reading(alert.reason, alert.count, alert.frames, alert.value, alert.limit)
                removed.append(self._clear(alert, reading, at, "removed"))
            else:
                watch.resume(alert)
        return removed

    def judged(self, camera: str, outcome: Outcome, at: Instant) -> Sequence[Alert]:
        """A frame has its verdict."""
        return [self._turned(watch, at) for watch in self._of_camera[camera] if watch.take(outcome, at.monotonic_s)]

    def look(self, faults: Iterable[Fault], alarms: Iterable[Sounding], at: Instant) -> Sequence[Alert]:
        """Take what is at fault now; call it a few times a second.

        Args:
            faults: everything on the board.
            alarms: of all process groups.
            at: now.
        """
        found = {one.subject: one for one in (*map(self._of_fault, faults), *map(_of_alarm, alarms))}
        for name, table in self._on_faults.items():
            for subject, one in found.items():
                if one.kind.value == table.kind and (name, subject) not in self._faults:
                    self._faults[name, subject] = _FaultWatch(name, table, one)
        settled = self._began_s is None or at.monotonic_s - self._began_s >= SETTLE_S
        changed = []
        for key, watch in tuple(self._faults.items()):
            now = found.get(watch.subject)
            if now is not None:
                watch.reason = now.reason
            elif not settled and watch.condition.active:
                continue
            if watch.condition.look(at.monotonic_s, float(now is not None)):
                changed.append(self._turned(watch, at))
            if now is None and not watch.condition.active:
                del self._faults[key]
        return changed

    def _of_fault(self, fault: Fault) -> _Found:
        part, _, name = fault.what.partition(" ")
        kind = _KINDS_OF_FAULTS.get(part, AlertKind.STATION)
        return _Found(kind, fault.what, fault.reason, name if name in self._of_camera else None)

    def _watches(self) -> list[_CameraWatch | _FaultWatch]:
        return [*(watch for watches in self._of_camera.values() for watch in watches), *self._faults.values()]

    def _turned(self, watch: _CameraWatch | _FaultWatch, at: Instant) -> Alert:
        reading = watch.reading()
        raised, watch.raised = watch.raised, None
        if raised is not None:
            return self._clear(raised, reading, at, "over")
        identifier = self._new_id(at.wall)
        held_s = at.monotonic_s - (watch.condition.active_since_s or at.monotonic_s)
        self._sequence += 1
        watch.raised = Alert(
            id=identifier,
            alert_id=identifier,
            station=self._station,
            alert=watch.name,
            kind=watch.kind,
            subject=watch.subject,
            camera=watch.camera,
            state=AlertStateName.RAISED,
            priority=watch.priority,
            epoch=self._epoch,
            sequence=self._sequence,
            at=at.wall,
            since=at.wall - timedelta(seconds=held_s),
            count=reading.count,
            frames=reading.frames,
            value=reading.value,
            limit=reading.limit,
            reason=reading.reason,
            text=watch.text,
        )
        return watch.raised

    def _clear(self, raised: Alert, reading: _Reading, at: Instant, why: str) -> Alert:
        self._sequence += 1
        return raised.model_copy(
            update={
                "id": self._new_id(at.wall),
                "state": AlertStateName.CLEARED,
                "epoch": self._epoch,
                "sequence": self._sequence,
                "at": at.wall,
                "count": reading.count,
                "frames": reading.frames,
                "value": reading.value,
                "limit": reading.limit,
                "reason": reading.reason,
                "cleared": why,
            }
        )


def _of_alarm(alarm: Sounding) -> _Found:
    name = f"{alarm.group}.{alarm.alarm}"
    reason = f"alarm {alarm.alarm} of process {alarm.group}"
    return _Found(AlertKind.PROCESS_ALARM, f"alarm {name}", reason, None, alarm.priority, alarm.text)
