"""Alarms as ANSI/ISA-18.2-2016 and IEC 62682 describe them: a condition with delays, and a table of states.

Theory of operation. Two things are kept apart, as in OPC UA Part 9 (OPC 10000-9, 5.8): whether the *condition* holds
(`active`), which only the process decides, and the *state*, which process and operator decide together by the table.

The condition: a value at its limit for `on_delay_s` without a break makes it hold; a value back beyond limit and
deadband for `off_delay_s` without a break ends it. In between nothing changes. An unknown value (a bad channel, a model
that warms up) starts both delays anew and changes nothing: it is neither an alarm nor an all-clear.

The states, with the letters of ISA-18.2, figure 3::

    A normal                     nothing is wrong, nothing waits for anybody
    B unacknowledged             it holds, nobody has said that he knows
    C acknowledged               it holds, somebody knows
    D returned_unacknowledged    it is over, nobody has said that he knows
    E latched_unacknowledged     it is over, but a latching alarm stays until somebody acknowledges and resets it
    F latched_acknowledged       the same, acknowledged
    G shelved                    an operator put it aside for a time; it comes back by itself
    H suppressed                 put aside as the design of the plant wants it
    I out_of_service             taken out for maintenance until it is put back

Out of G, H and I an alarm returns to where its condition is: B if it holds, E if it is latched, else A.
A pair that is not in the table is not allowed: a command is refused with what is.

Of a group's alarms, the first that comes when none of the others holds or waits is the *first-out*: in a cascade it is
nearest to the cause. An alarm that comes three times within a minute *chatters*; ten alarms within ten minutes, in all
groups together, are a *flood*, which lasts until fewer than five came in ten minutes (ISA-18.2, 16.5.2 and 16.5.4).

Nothing here knows a clock, and nothing grows.
"""

import threading
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from pydantic import BaseModel, ConfigDict, Field

from station.condition import Condition
from station.errors import AlarmRefused
from station.process_messages import AlarmEvent, AlarmStateName, Priority, Tick

CHATTER_COUNT = 3
CHATTER_WITHIN_S = 60.0
FLOOD_COUNT = 10
FLOOD_OVER_BELOW = 5
FLOOD_WITHIN_S = 600.0

_S = AlarmStateName
_E = AlarmEvent

TRANSITIONS: Mapping[tuple[AlarmStateName, AlarmEvent], AlarmStateName | None] = {
    (_S.NORMAL, _E.ACTIVATE): _S.UNACKNOWLEDGED,
    (_S.UNACKNOWLEDGED, _E.ACKNOWLEDGE): _S.ACKNOWLEDGED,
    (_S.UNACKNOWLEDGED, _E.CLEAR): _S.RETURNED_UNACKNOWLEDGED,
    (_S.ACKNOWLEDGED, _E.CLEAR): _S.NORMAL,
    (_S.RETURNED_UNACKNOWLEDGED, _E.ACKNOWLEDGE): _S.NORMAL,
    (_S.RETURNED_UNACKNOWLEDGED, _E.ACTIVATE): _S.UNACKNOWLEDGED,
    (_S.LATCHED_UNACKNOWLEDGED, _E.ACKNOWLEDGE): _S.LATCHED_ACKNOWLEDGED,
    (_S.LATCHED_UNACKNOWLEDGED, _E.ACTIVATE): _S.UNACKNOWLEDGED,
    (_S.LATCHED_ACKNOWLEDGED, _E.RESET): _S.NORMAL,
    (_S.LATCHED_ACKNOWLEDGED, _E.ACTIVATE): _S.UNACKNOWLEDGED,
    (_S.NORMAL, _E.SHELVE): _S.SHELVED,
    (_S.UNACKNOWLEDGED, _E.SHELVE): _S.SHELVED,
    (_S.ACKNOWLEDGED, _E.SHELVE): _S.SHELVED,
    (_S.RETURNED_UNACKNOWLEDGED, _E.SHELVE): _S.SHELVED,
    (_S.LATCHED_UNACKNOWLEDGED, _E.SHELVE): _S.SHELVED,
    (_S.LATCHED_ACKNOWLEDGED, _E.SHELVE): _S.SHELVED,
    (_S.SHELVED, _E.SHELVE): _S.SHELVED,
    (_S.SHELVED, _E.ACTIVATE): _S.SHELVED,
    (_S.SHELVED, _E.CLEAR): _S.SHELVED,
    (_S.SHELVED, _E.UNSHELVE): None,
    (_S.SHELVED, _E.SHELF_EXPIRED): None,
    (_S.NORMAL, _E.SUPPRESS): _S.SUPPRESSED,
    (_S.UNACKNOWLEDGED, _E.SUPPRESS): _S.SUPPRESSED,
    (_S.ACKNOWLEDGED, _E.SUPPRESS): _S.SUPPRESSED,
    (_S.RETURNED_UNACKNOWLEDGED, _E.SUPPRESS): _S.SUPPRESSED,
    (_S.LATCHED_UNACKNOWLEDGED, _E.SUPPRESS): _S.SUPPRESSED,
    (_S.LATCHED_ACKNOWLEDGED, _E.SUPPRESS): _S.SUPPRESSED,
    (_S.SUPPRESSED, _E.ACTIVATE): _S.SUPPRESSED,
    (_S.SUPPRESSED, _E.CLEAR): _S.SUPPRESSED,
    (_S.SUPPRESSED, _E.UNSUPPRESS): None,
    (_S.NORMAL, _E.REMOVE_FROM_SERVICE): _S.OUT_OF_SERVICE,
    (_S.UNACKNOWLEDGED, _E.REMOVE_FROM_SERVICE): _S.OUT_OF_SERVICE,
    (_S.ACKNOWLEDGED, _E.REMOVE_FROM_SERVICE): _S.OUT_OF_SERVICE,
    (_S.RETURNED_UNACKNOWLEDGED, _E.REMOVE_FROM_SERVICE): _S.OUT_OF_SERVICE,
    (_S.LATCHED_UNACKNOWLEDGED, _E.REMOVE_FROM_SERVICE): _S.OUT_OF_SERVICE,
    (_S.LATCHED_ACKNOWLEDGED, _E.REMOVE_FROM_SERVICE): _S.OUT_OF_SERVICE,
    (_S.SHELVED, _E.REMOVE_FROM_SERVICE): _S.OUT_OF_SERVICE,
    (_S.SUPPRESSED, _E.REMOVE_FROM_SERVICE): _S.OUT_OF_SERVICE,
    (_S.OUT_OF_SERVICE, _E.ACTIVATE): _S.OUT_OF_SERVICE,
    (_S.OUT_OF_SERVICE, _E.CLEAR): _S.OUT_OF_SERVICE,
    (_S.OUT_OF_SERVICE, _E.RETURN_TO_SERVICE): None,
}
"""(state, event) → new state; None: where the condition is."""

LATCHING: Mapping[tuple[AlarmStateName, AlarmEvent], AlarmStateName] = {
    (_S.UNACKNOWLEDGED, _E.CLEAR): _S.LATCHED_UNACKNOWLEDGED,
    (_S.ACKNOWLEDGED, _E.CLEAR): _S.LATCHED_ACKNOWLEDGED,
}
"""What a latching alarm does instead."""

COMMANDS = frozenset(set(AlarmEvent) - {_E.ACTIVATE, _E.CLEAR, _E.SHELF_EXPIRED})
"""What a person may ask for."""
ANNUNCIATED = frozenset({_S.UNACKNOWLEDGED, _S.ACKNOWLEDGED, _S.LATCHED_UNACKNOWLEDGED, _S.LATCHED_ACKNOWLEDGED})
"""States in which the group is in alarm."""
_PUT_ASIDE = frozenset({_S.SHELVED, _S.SUPPRESSED, _S.OUT_OF_SERVICE})


@dataclass(frozen=True, slots=True)
class AlarmRule:
    """One alarm's condition and character.

    Attributes:
        name: of the alarm.
        watches: `risk`, or a channel's name.
        index: place of that channel in the ticks; None: the risk.
        limit: of the value.
        rising: the condition is value >= limit; else value <= limit.
        deadband: how far beyond the limit the value must come back.
        on_delay_s, off_delay_s: how long without a break.
    """

    name: str
    watches: str
    limit: float
    index: int | None = None
    rising: bool = True
    deadband: float = 0.0
    on_delay_s: float = 0.0
    off_delay_s: float = 0.0
    priority: Priority = Priority.MEDIUM
    latching: bool = False
    text: str = ""


@dataclass(frozen=True, slots=True)
class AlarmStatus:
    """An alarm after a transition, or as it stands.

    Attributes:
        event: what led here; None when nothing has happened yet.
        at_s: time of the event; all times are wall times in seconds since 1970.
        since_s: when the state began.
        active_since_s: when the condition began to hold; None while it does not.
        value: of what it watches, at the last look; None: not known.
        by: who gave the command.
    """

    rule: AlarmRule
    state: AlarmStateName = AlarmStateName.NORMAL
    event: AlarmEvent | None = None
    active: bool = False
    at_s: float = 0.0
    since_s: float = 0.0
    active_since_s: float | None = None
    value: float | None = None
    latched: bool = False
    first_out: bool = False
    chattering: bool = False
    flood: bool = False
    shelved_until_s: float | None = None
    by: str | None = None


class SavedAlarm(BaseModel):
    """An alarm as it is kept over a restart."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    state: AlarmStateName
    event: AlarmEvent | None
    active: bool
    at_s: float
    since_s: float
    active_since_s: float | None
    value: float | None
    latched: bool
    first_out: bool
    shelved_until_s: float | None
    by: str | None
    came_s: tuple[float, ...] = Field(max_length=CHATTER_COUNT)


class FloodWatch:
    """Counts the alarms of all groups as they come; each group's thread may."""

    def __init__(self) -> None:
        self._came_s: deque[float] = deque(maxlen=FLOOD_COUNT)
        self._flood = False
        self._lock = threading.Lock()

    def came(self, at_s: float) -> bool:
        """An alarm came; return whether there is a flood now."""
        with self._lock:
            self._came_s.append(at_s)
            return self._look(at_s)

    def lasts(self, at_s: float) -> bool:
        """Whether there is a flood now."""
        with self._lock:
            return self._look(at_s)

    def _look(self, at_s: float) -> bool:
        recent = sum(at_s - one <= FLOOD_WITHIN_S for one in self._came_s)
        if recent >= FLOOD_COUNT:
            self._flood = True
        elif recent < FLOOD_OVER_BELOW:
            self._flood = False
        return self._flood


class _Alarm:
    """One alarm of a group."""

    def __init__(self, rule: AlarmRule) -> None:
        self.rule = rule
        self.condition = Condition(
            rule.limit,
            rising=rule.rising,
            deadband=rule.deadband,
            on_delay_s=rule.on_delay_s,
            off_delay_s=rule.off_delay_s,
        )
        self.status = AlarmStatus(rule)
        self.came_s: deque[float] = deque(maxlen=CHATTER_COUNT)

    def apply(self, event: AlarmEvent, at_s: float, **changes: object) -> AlarmStatus:
        before = self.status
        latched = before.latched
        if event is AlarmEvent.CLEAR and self.rule.latching:
            latched = True
        elif event in (AlarmEvent.RESET, AlarmEvent.ACTIVATE):
            latched = False
        state = self._state_after(before.state, event, latched)
        self.status = replace(
            before,
            state=state,
            event=event,
            active=self.condition.active,
            at_s=at_s,
            since_s=at_s if state is not before.state else before.since_s,
            active_since_s=self.condition.active_since_s,
            latched=latched,
            first_out=before.first_out and state is not AlarmStateName.NORMAL,
            chattering=self.chatters(at_s),
            shelved_until_s=before.shelved_until_s if state is AlarmStateName.SHELVED else None,
            by=None,
            **changes,  # type: ignore[arg-type]
        )
        return self.status

    def _state_after(self, state: AlarmStateName, event: AlarmEvent, latched: bool) -> AlarmStateName:
        if self.rule.latching and (state, event) in LATCHING:
            return LATCHING[state, event]
        after = TRANSITIONS[state, event]
        if after is not None:
            return after
        if self.condition.active:
            return AlarmStateName.UNACKNOWLEDGED
        return AlarmStateName.LATCHED_UNACKNOWLEDGED if latched else AlarmStateName.NORMAL

    def chatters(self, at_s: float) -> bool:
        return len(self.came_s) == CHATTER_COUNT and at_s - self.came_s[0] <= CHATTER_WITHIN_S


class AlarmGroup:
    """The alarms of one process group.

    Args:
        rules: one for each alarm, with different names.
        flood: shared by all groups.
        max_shelve_s: longest shelf time.
    """

    def __init__(self, rules: Iterable[AlarmRule], flood: FloodWatch, max_shelve_s: float = 28_800.0) -> None:
        self._alarms = {rule.name: _Alarm(rule) for rule in rules}
        self._watched = tuple((alarm, alarm.rule.index) for alarm in self._alarms.values())
        self._flood = flood
        self._max_shelve_s = max_shelve_s
        self._sounding: tuple[str, ...] = ()

    @property
    def statuses(self) -> tuple[AlarmStatus, ...]:
        """Each alarm as it stands."""
        return tuple(alarm.status for alarm in self._alarms.values())

    @property
    def sounding(self) -> tuple[str, ...]:
        """The alarms that make the group be in alarm: they hold or are latched, and nobody put them aside."""
        return self._sounding

    def observe(self, tick: Tick, risk: float | None) -> Sequence[AlarmStatus]:
        """Take one tick and the risk at it; return what changed, one status for each transition."""
        changed: list[AlarmStatus] = []
        at_s = tick.at_s
        for alarm, index in self._watched:
            if alarm.status.state is AlarmStateName.SHELVED:
                self._unshelve_in_time(alarm, at_s, changed)
            value = risk if index is None else float(tick.values[index]) if tick.mask[index] else None
            if value is None:
                alarm.condition.restart()
            elif alarm.condition.look(at_s, value):
                changed.append(self._turned(alarm, at_s, value))
        if changed:
            self._listen()
        return changed

    def interrupt(self) -> None:
        """Ticks were passed over, or the station was down: delays begin anew, states stay."""
        for alarm in self._alarms.values():
            alarm.condition.restart()

    def command(
        self, name: str, event: AlarmEvent, at_s: float, *, by: str | None = None, shelve_s: float | None = None
    ) -> AlarmStatus:
        """Do what a person asks for.

        Args:
            name: the alarm.
            event: out of `COMMANDS`.
            at_s: wall time, seconds since 1970.
            by: who asks.
            shelve_s: with SHELVE, for how long.

        Raises:
            AlarmRefused: there is no such alarm, or its state does not allow this, or the shelf time is not allowed.
        """
        alarm = self._alarms.get(name)
        if alarm is None:
            raise AlarmRefused(f"there is no alarm {name!r}; known: {', '.join(self._alarms) or 'none'}")
        state = alarm.status.state
        if event not in COMMANDS or (state, event) not in TRANSITIONS:
            allowed = sorted(one.value for one in COMMANDS if (state, one) in TRANSITIONS)
            raise AlarmRefused(
                f"alarm {name} is {state.value}: {event.value} is not possible; {', '.join(allowed)} are"
            )
        until_s: float | None = None
        if event is AlarmEvent.SHELVE:
            if shelve_s is None or not 0 < shelve_s <= self._max_shelve_s:
                raise AlarmRefused(f"alarm {name}: shelve for more than 0 and at most {self._max_shelve_s:g} s")
            until_s = at_s + shelve_s
        alarm.apply(event, at_s)
        alarm.status = replace(alarm.status, by=by, shelved_until_s=until_s)
        self._listen()
        return alarm.status

    def snapshot(self) -> dict[str, object]:
        """What must survive a restart, as JSON can hold it."""
        return {
            name: SavedAlarm.model_validate(
                {
                    **{key: getattr(alarm.status, key) for key in SavedAlarm.model_fields if key != "came_s"},
                    "came_s": tuple(alarm.came_s),
                }
            ).model_dump(mode="json")
            for name, alarm in self._alarms.items()
        }

    def restore(self, saved: Mapping[str, object]) -> None:
        """Go on from a snapshot; alarms that are not in it begin as normal, those that exist no more are passed over.

        Raises:
            ValueError: it is not a snapshot; the alarms before the wrong one are restored.
        """
        for name, alarm in self._alarms.items():
            if name not in saved:
                continue
            kept = SavedAlarm.model_validate(saved[name])
            alarm.condition.active = kept.active
            alarm.condition.active_since_s = kept.active_since_s
            alarm.came_s.extend(kept.came_s)
            alarm.status = replace(
                alarm.status,
                **{key: getattr(kept, key) for key in SavedAlarm.model_fields if key != "came_s"},
            )
        self._listen()

    def _listen(self) -> None:
        """Keep which ones sound: it is asked for at each tick, and changes with a transition only."""
        self._sounding = tuple(name for name, alarm in self._alarms.items() if alarm.status.state in ANNUNCIATED)

    def _unshelve_in_time(self, alarm: _Alarm, at_s: float, changed: list[AlarmStatus]) -> None:
        until_s = alarm.status.shelved_until_s
        if until_s is None or at_s >= until_s:
            changed.append(alarm.apply(AlarmEvent.SHELF_EXPIRED, at_s))

    def _turned(self, alarm: _Alarm, at_s: float, value: float) -> AlarmStatus:
        if not alarm.condition.active:
            return alarm.apply(AlarmEvent.CLEAR, at_s, value=value)
        alarm.came_s.append(at_s)
        first = not any(
            other.status.state is not AlarmStateName.NORMAL and other.status.state not in _PUT_ASIDE
            for other in self._alarms.values()
        )
        flood = self._flood.lasts(at_s)
        if alarm.status.state not in _PUT_ASIDE:
            flood = self._flood.came(at_s)
        status = alarm.apply(AlarmEvent.ACTIVATE, at_s, value=value, flood=flood)
        alarm.status = replace(status, first_out=first and status.state not in _PUT_ASIDE)
        return alarm.status
