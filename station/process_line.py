"""The threads of early warning: one for each source, which only reads; one for each process group does the rest.

A group's thread takes rows out of its mailbox, lets the time pass, and hands on what came of it: alarms to the
recorder, risk to the broker, ticks to the journal of readings, and where the group stands to the verdicts. Nothing here
can stop the cameras: a source that cannot be used, a bundle that does not fit and a disk that is full are faults in
`status`.
"""

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from station import wire
from station.alarm import FloodWatch
from station.errors import AlarmRefused, ConfigurationError, ModelError, StationError, StorageError
from station.faults import FaultBoard
from station.mailbox import Mailbox, Overflow
from station.messages import Outgoing, ProcessHealth, ProcessStateName, SourceHealth, SourceStateName
from station.ports import Clock, Publisher, ReadingsJournal, Sensors, StateStore, StepModel
from station.process import Observation, Observer
from station.process_history import ProcessHistory
from station.process_messages import Alarm, AlarmEvent, Readings, SourceEvent
from station.process_settings import ProcessSettings
from station.progress import ProcessProgress

logger = logging.getLogger(__name__)

READ_TIMEOUT_S = 0.1
"""How long a source's thread waits for a row before it looks whether the station stops."""
LONGEST_WAIT_S = 0.1
"""How long a group's thread waits for a row before it lets the time pass."""
ROWS_WAITING = 4096
"""Rows that may wait for a group. A full mailbox holds the source back, which is right for a replayed log; a live
source then keeps rows in its own buffer or reads later."""
ROWS_AT_ONCE = 256
"""Rows that are taken between two looks at the time."""
RETRY_S = 2.0
"""Pause before a source or a bundle that could not be used is tried again."""
SAVE_EVERY_S = 10.0
"""What a group remembers is saved this often, at each transition of an alarm, and at the end."""
ALARMS = "alarms"
"""What a flood of alarms is called in `status`."""
FLOOD = "flood: ten alarms or more came within ten minutes; the first of each group (first_out) is nearest to the cause"
READINGS = "readings"
"""What a fault of the journal of readings is called in `status`."""


@dataclass(frozen=True, slots=True)
class SensorsPart:
    """One source as the composition hands it over: makes it, not entered yet; raises ConfigurationError."""

    make: Callable[[], Sensors]
    live: bool


@dataclass(frozen=True, slots=True)
class ProcessPart:
    """One process group as the composition hands it over.

    Attributes:
        settings: its settings.
        load: loads its bundle through the golden sequence; raises ModelError. None: it has no bundle.
    """

    settings: ProcessSettings
    load: Callable[[], StepModel] | None


@dataclass(frozen=True, slots=True)
class _Points:
    """A source was entered and has these points."""

    source: str
    points: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Command:
    alarm: str
    event: AlarmEvent
    by: str | None
    shelve_s: float | None
    answer: "Mailbox[Alarm | AlarmRefused]"


_Item = Readings | SourceEvent | _Points | _Command


@dataclass(slots=True)
class _Source:
    name: str
    part: SensorsPart
    groups: tuple["_Group", ...]
    state: SourceStateName = SourceStateName.CONNECTING
    since: datetime | None = None
    reason: str | None = None
    rows: int = 0
    turns: int = 0


@dataclass(slots=True)
class _Group:
    name: str
    part: ProcessPart
    mailbox: Mailbox[_Item]
    live: bool
    observer: Observer
    known: dict[str, tuple[str, ...]] = field(default_factory=dict)
    connected: set[str] = field(default_factory=set)
    loaded: bool = False
    retry_at_s: float = 0.0
    save_at_s: float = 0.0
    turns: int = 0


class ProcessLines:
    """Everything of early warning that runs in the station.

    Args:
        station: the station's name.
        epoch: number of this run.
        sources: by name; only those that a group uses are read.
        groups: by name.
        history: where each group stands, for the verdicts.
        record: takes alarms for the journal and the broker.
        publisher: for the risk and what is retained.
        readings: journal of readings; None: none is kept.
        store: what survives a restart.
        faults: what is wrong.
        clock: time.
    """

    def __init__(
        self,
        *,
        station: str,
        epoch: int,
        sources: Mapping[str, SensorsPart],
        groups: Mapping[str, ProcessPart],
        history: ProcessHistory,
        record: Callable[[Outgoing], object],
        publisher: Publisher,
        readings: ReadingsJournal | None,
        store: StateStore,
        faults: FaultBoard,
        clock: Clock,
    ) -> None:
        self._station = station
        self._epoch = epoch
        self._history = history
        self._record = record
        self._publisher = publisher
        self._readings = readings
        self._store = store
        self._faults = faults
        self._clock = clock
        self._flood = FloodWatch()
        self._stopping = threading.Event()
        self._groups = {name: self._group(name, part, sources) for name, part in groups.items()}
        self._sources = [
            _Source(name, part, users)
            for name, part in sources.items()
            if (users := tuple(group for group in self._groups.values() if name in _sources_of(group.part)))
        ]

    def works(self) -> Sequence[tuple[str, Callable[[], None]]]:
        """(name, work) of each thread to run; a work ends after `stop`, the groups' after the sources'."""
        groups: list[tuple[str, Callable[[], None]]] = [
            (f"process-{name}", lambda group=group: self._watch(group))  # type: ignore[misc]
            for name, group in self._groups.items()
        ]
        sources: list[tuple[str, Callable[[], None]]] = [
            (f"sensors-{source.name}", lambda source=source: self._read(source))  # type: ignore[misc]
            for source in self._sources
        ]
        return groups + sources

    def stop(self) -> None:
        """Let every work end."""
        self._stopping.set()
        for group in self._groups.values():
            group.mailbox.wake()

    def command(
        self,
        group: str,
        alarm: str,
        event: AlarmEvent,
        *,
        by: str | None = None,
        shelve_s: float | None = None,
        timeout_s: float = 5.0,
    ) -> Alarm:
        """Do to an alarm what a person asks for, in the group's own thread; any thread may ask.

        Raises:
            AlarmRefused: there is no such group or alarm, or its state does not allow it.
        """
        found = self._groups.get(group)
        if found is None:
            raise AlarmRefused(f"there is no process group {group!r}; known: {', '.join(self._groups) or 'none'}")
        answer: Mailbox[Alarm | AlarmRefused] = Mailbox(1, Overflow.DROP_NEWEST)
        if not found.mailbox.put(_Command(alarm, event, by, shelve_s, answer), timeout_s):
            raise AlarmRefused(f"process {group} does not take commands now")
        given = answer.take(timeout_s)
        if isinstance(given, AlarmRefused):
            raise given
        if given is None:
            raise AlarmRefused(f"process {group} did not answer in time")
        return given

    def health(self) -> tuple[Mapping[str, SourceHealth], Mapping[str, ProcessHealth]]:
        """Figures for the `health` topic: sources and groups; any thread."""
        sources = {
            one.name: SourceHealth(state=one.state, since=one.since, reason=one.reason, rows=one.rows)
            for one in self._sources
        }
        return sources, {name: self._health(group) for name, group in self._groups.items()}

    def progress(self) -> Sequence[ProcessProgress]:
        """The counters that show whether the groups' threads do their work; any thread."""
        return [ProcessProgress(name, group.turns) for name, group in self._groups.items()]

    def _health(self, group: _Group) -> ProcessHealth:
        moment, counts = group.observer.moment, group.observer.window.counts
        return ProcessHealth(
            state=ProcessStateName.NOT_READY if moment is None else moment.state,
            as_of=None if moment is None else datetime.fromtimestamp(moment.at_s, UTC),
            risk=None if moment is None else moment.risk,
            alarms=() if moment is None else moment.alarms,
            bad={name: quality.value for name, quality in group.observer.bad.items()},
            ticks=counts.ticks,
            late=counts.late,
            repeated=counts.repeated,
            out_of_order=counts.out_of_order,
            wrong_time=counts.wrong_time,
            restarts=counts.restarts,
        )

    # A source's thread

    def _read(self, source: _Source) -> None:
        while not self._stopping.is_set():
            try:
                with source.part.make() as sensors:
                    self._tell(source, _Points(source.name, sensors.points))
                    self._faults.set(f"sensors {source.name}", None)
                    while not self._stopping.is_set():
                        source.turns += 1
                        item = sensors.read(READ_TIMEOUT_S)
                        if isinstance(item, Readings):
                            source.rows += 1
                            self._tell(source, item)
                        elif item is not None:
                            self._changed(source, item)
            except StationError as exc:
                self._changed(
                    source,
                    SourceEvent(source.name, SourceStateName.DOWN, self._clock.now().timestamp(), str(exc)),
                )
                self._stopping.wait(RETRY_S)

    def _changed(self, source: _Source, event: SourceEvent) -> None:
        if event.state is not source.state or source.since is None:
            source.since = datetime.fromtimestamp(event.at_s, UTC)
        source.state, source.reason = event.state, event.reason
        down = event.state is SourceStateName.DOWN
        if down or event.state is SourceStateName.RUNNING:
            self._faults.set(f"sensors {source.name}", (event.reason or "delivers nothing") if down else None)
        if event.state is SourceStateName.FINISHED:
            logger.info("sensors %s: the log has ended", source.name)
        self._tell(source, event)

    def _tell(self, source: _Source, item: _Item) -> None:
        for group in source.groups:
            while not self._stopping.is_set() and not group.mailbox.put(item, READ_TIMEOUT_S):
                source.turns += 1

    # A group's thread

    def _watch(self, group: _Group) -> None:
        self._load(group)
        self._restore(group)
        self._begin(group)
        wait_s = min(LONGEST_WAIT_S, group.observer.step_s / 2)
        while not self._stopping.is_set():
            group.turns += 1
            for item in group.mailbox.take_all(wait_s, ROWS_AT_ONCE):
                self._take(group, item)
            self._hand_on(group, group.observer.look())
            now_s = self._clock.monotonic_s()
            if not group.loaded and now_s >= group.retry_at_s:
                self._try_again(group)
            if now_s >= group.save_at_s:
                self._save(group)
        group.mailbox.close()
        self._save(group)
        self._kept(lambda readings: readings.flush())

    def _take(self, group: _Group, item: _Item) -> None:
        match item:
            case _Points():
                group.known[item.source] = item.points
                self._connect(group)
            case _Command():
                try:
                    observation = group.observer.command(item.alarm, item.event, by=item.by, shelve_s=item.shelve_s)
                except AlarmRefused as exc:
                    item.answer.put(exc)
                    return
                self._hand_on(group, observation)
                item.answer.put(observation.alarms[0])
            case Readings() | SourceEvent() if item.source in group.connected:
                self._hand_on(group, group.observer.observe(item))

    def _hand_on(self, group: _Group, observation: Observation) -> None:
        for moment in observation.moments:
            self._history.add(group.name, moment)
        for alarm in observation.alarms:
            self._record(wire.outgoing_alarm(alarm))
            _log(alarm)
        for channel, reason in observation.faults:
            self._faults.set(f"channel {group.name}.{channel}", reason)
        if observation.risk is not None:
            topic = wire.risk_topic(self._station, group.name)
            self._publisher.copy(topic, wire.encode(observation.risk), None)
        if observation.ticks:
            self._faults.set(f"model {group.name}", group.observer.model_fault) if group.loaded else None
            self._kept(lambda readings: readings.keep(group.name, observation.ticks, observation.moments))
        if observation.alarms:
            self._save(group)
        if observation.moments:
            flood = self._flood.lasts(observation.moments[-1].at_s)
            self._faults.set(ALARMS, FLOOD if flood else None)

    def _kept(self, keep: Callable[[ReadingsJournal], None]) -> None:
        if self._readings is None:
            return
        try:
            keep(self._readings)
        except StorageError as exc:
            self._faults.set(READINGS, str(exc))
        else:
            self._faults.set(READINGS, None)

    def _begin(self, group: _Group) -> None:
        """Show the alarms as they stand, and let the others know of the group."""
        observer = group.observer
        self._history.begin(group.name, observer.step_s)
        self._kept(
            lambda readings: readings.begin(group.name, [(channel.name, channel.unit) for channel in observer.channels])
        )
        for alarm in observer.current():
            topic = wire.alarm_topic(self._station, group.name, alarm.alarm)
            self._publisher.retain(topic, wire.encode(alarm))

    def _connect(self, group: _Group) -> None:
        """Lead each source's points to their channels; the channels of a source that lacks one stay missing."""
        fault: str | None = None
        group.connected.clear()
        for source, points in group.known.items():
            try:
                group.observer.window.connect(source, points)
                group.connected.add(source)
            except ConfigurationError as exc:
                fault = str(exc)
        self._faults.set(f"process {group.name}", fault)

    # Its bundle and what it remembers

    def _group(self, name: str, part: ProcessPart, sources: Mapping[str, SensorsPart]) -> _Group:
        live = any(sources[source].live for source in _sources_of(part))
        mailbox: Mailbox[_Item] = Mailbox(ROWS_WAITING, Overflow.BLOCK)
        return _Group(name, part, mailbox, live, self._observer(name, part, live, None), loaded=part.load is None)

    def _observer(self, name: str, part: ProcessPart, live: bool, model: StepModel | None) -> Observer:
        return Observer(
            station=self._station,
            group=name,
            epoch=self._epoch,
            settings=part.settings,
            flood=self._flood,
            clock=self._clock,
            live=live,
            model=model,
        )

    def _load(self, group: _Group) -> None:
        if group.part.load is None:
            return
        group.retry_at_s = self._clock.monotonic_s() + RETRY_S
        try:
            model = group.part.load()
            group.observer = self._observer(group.name, group.part, group.live, model)
        except (ModelError, ConfigurationError) as exc:
            self._faults.set(f"model {group.name}", str(exc))
            return
        group.loaded = True
        self._faults.set(f"model {group.name}", None)
        logger.info("process %s is watched by %s %s", group.name, model.ref.name, model.ref.version)

    def _try_again(self, group: _Group) -> None:
        former = group.observer.snapshot()
        self._load(group)
        if group.loaded:
            group.observer.restore(former)
            self._connect(group)
            self._begin(group)

    def _restore(self, group: _Group) -> None:
        try:
            saved = self._store.load(group.name)
        except StorageError as exc:
            logger.warning("%s; its alarms begin as normal", exc)
            return
        if saved is not None and not group.observer.restore(saved):
            logger.warning("process %s: the saved state cannot be read; its alarms begin as normal", group.name)

    def _save(self, group: _Group) -> None:
        group.save_at_s = self._clock.monotonic_s() + SAVE_EVERY_S
        what = f"state of process {group.name}"
        try:
            self._store.save(group.name, group.observer.snapshot())
        except StorageError as exc:
            self._faults.set(what, str(exc))
        else:
            self._faults.set(what, None)


def _sources_of(part: ProcessPart) -> frozenset[str]:
    return frozenset(channel.source for channel in part.settings.channel.values())


def _log(alarm: Alarm) -> None:
    if alarm.event is AlarmEvent.ACTIVATE:
        parts = "; ".join(f"{part.channel} {part.actual} {part.unit}, expected {part.expected}" for part in alarm.top)
        logger.warning(
            "process %s: alarm %s (%s): %s = %s, limit %s; %s",
            alarm.group,
            alarm.alarm,
            alarm.priority.value,
            alarm.watches,
            alarm.value,
            alarm.limit,
            parts,
        )
    else:
        event = alarm.event.value if alarm.event else "begin"
        logger.info("process %s: alarm %s is %s (%s)", alarm.group, alarm.alarm, alarm.state.value, event)
