"""The condition with its delays, and the table of states."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from station.alarm import COMMANDS, TRANSITIONS, AlarmGroup, AlarmRule, AlarmStatus, FloodWatch
from station.errors import AlarmRefused
from station.process_messages import AlarmEvent, AlarmStateName, Tick

S, E = AlarmStateName, AlarmEvent
DRIFT = AlarmRule("drift", "risk", 0.9, deadband=0.2, on_delay_s=3.0, off_delay_s=5.0)


def tick(at_s: float, *values: float) -> Tick:
    known = np.array([math.nan if value is None else value for value in values])
    mask = ~np.isnan(known)
    return Tick(at_s, np.where(mask, known, 0.0), mask, np.where(mask, 0, 5).astype(np.int8), bool(mask.any()))


def group(*rules: AlarmRule, flood: FloodWatch | None = None) -> AlarmGroup:
    return AlarmGroup(rules or (DRIFT,), flood or FloodWatch())


def events(made: AlarmGroup, risks: list[float | None], begin_s: float = 0.0) -> list[tuple[float, AlarmEvent | None]]:
    return [
        (status.at_s, status.event)
        for step, risk in enumerate(risks)
        for status in made.observe(tick(begin_s + step, 0.0), risk)
    ]


def state(made: AlarmGroup, name: str = "drift") -> AlarmStatus:
    return next(status for status in made.statuses if status.rule.name == name)


def sounding() -> AlarmGroup:
    made = group()
    events(made, [0.95] * 4)
    assert state(made).state is S.UNACKNOWLEDGED
    return made


def test_it_comes_after_the_on_delay_and_says_since_when() -> None:
    made = group()
    assert events(made, [0.1, 0.95, 0.95, 0.95, 0.95, 0.95]) == [(4.0, E.ACTIVATE)]
    assert state(made).active_since_s == 1.0
    assert made.sounding == ("drift",)


def test_a_break_begins_the_delay_anew() -> None:
    assert events(group(), [0.95, 0.95, 0.95, 0.8, 0.95, 0.95, 0.95]) == []


def test_it_goes_after_the_off_delay_below_the_deadband() -> None:
    made = sounding()
    assert events(made, [0.75] * 20, 10) == []
    assert events(made, [0.6, 0.6, 0.8, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6], 40) == [(48.0, E.CLEAR)]
    assert state(made).state is S.RETURNED_UNACKNOWLEDGED
    assert made.sounding == ()


def test_what_is_not_known_is_neither_an_alarm_nor_an_all_clear() -> None:
    assert events(group(), [0.95, 0.95, 0.95, None, 0.95, 0.95, 0.95]) == []
    made = sounding()
    assert events(made, [0.1, 0.1, None, 0.1, 0.1, None] * 5, 10) == []
    assert state(made).active


def test_acknowledged_and_gone_is_normal() -> None:
    made = sounding()
    status = made.command("drift", E.ACKNOWLEDGE, 20.0, by="anna")
    assert (status.state, status.by, status.since_s) == (S.ACKNOWLEDGED, "anna", 20.0)
    events(made, [0.1] * 6, 30)
    assert state(made).state is S.NORMAL


def test_a_latching_alarm_stays_until_it_is_acknowledged_and_reset() -> None:
    made = group(AlarmRule("drift", "risk", 0.9, latching=True))
    events(made, [0.95, 0.1])
    assert state(made).state is S.LATCHED_UNACKNOWLEDGED
    assert made.sounding == ("drift",)
    with pytest.raises(AlarmRefused, match="drift is latched_unacknowledged: reset is not possible; acknowledge, "):
        made.command("drift", E.RESET, 3.0)
    made.command("drift", E.ACKNOWLEDGE, 3.0)
    assert made.command("drift", E.RESET, 4.0).state is S.NORMAL


def test_a_shelved_alarm_comes_back_by_itself_to_where_its_condition_is() -> None:
    made = sounding()
    made.command("drift", E.SHELVE, 10.0, shelve_s=60.0)
    assert made.sounding == ()
    assert events(made, [0.95] * 59, 11) == []
    assert events(made, [0.95], 70) == [(70.0, E.SHELF_EXPIRED)]
    assert state(made).state is S.UNACKNOWLEDGED
    made.command("drift", E.SHELVE, 80.0, shelve_s=60.0)
    events(made, [0.1] * 10, 81)
    assert events(made, [0.1], 140) == [(140.0, E.SHELF_EXPIRED)]
    assert state(made).state is S.NORMAL


def test_a_latched_alarm_that_was_put_aside_is_latched_still() -> None:
    made = group(AlarmRule("drift", "risk", 0.9, latching=True))
    events(made, [0.95])
    made.command("drift", E.REMOVE_FROM_SERVICE, 1.0)
    events(made, [0.1, 0.1], 2)
    assert made.command("drift", E.RETURN_TO_SERVICE, 5.0).state is S.LATCHED_UNACKNOWLEDGED


@pytest.mark.parametrize("shelve_s", [None, 0.0, -1.0, math.nan, 28_801.0])
def test_a_shelf_time_that_is_not_allowed_is_refused(shelve_s: float | None) -> None:
    with pytest.raises(AlarmRefused, match="at most 28800 s"):
        group().command("drift", E.SHELVE, 0.0, shelve_s=shelve_s)


def test_an_unknown_alarm_is_refused_with_those_that_exist() -> None:
    with pytest.raises(AlarmRefused, match="no alarm 'dirft'; known: drift"):
        group().command("dirft", E.ACKNOWLEDGE, 0.0)


def test_alarms_on_channels_watch_high_and_low() -> None:
    made = group(AlarmRule("hot", "t", 100.0, index=0, deadband=5.0), AlarmRule("low", "p", 2.0, index=1, rising=False))
    assert [status.rule.name for status in made.observe(tick(0, 100.0, 2.5), None)] == ["hot"]
    assert [status.rule.name for status in made.observe(tick(1, 96.0, 2.0), None)] == ["low"]
    assert [status.event for status in made.observe(tick(2, 94.0, 1.0), None)] == [E.CLEAR]
    assert made.observe(tick(3, 94.0, math.nan), None) == []


def test_the_first_alarm_of_a_cascade_is_the_first_out() -> None:
    made = group(*(AlarmRule(name, name, 1.0, index=index) for index, name in enumerate("abc")))
    made.observe(tick(0, 0, 1, 0), None)
    made.observe(tick(1, 1, 1, 1), None)
    assert [(status.rule.name, status.first_out) for status in made.statuses] == [
        ("a", False),
        ("b", True),
        ("c", False),
    ]


def test_three_times_in_a_minute_is_chattering() -> None:
    made = group(AlarmRule("drift", "risk", 0.9))
    events(made, [0.95, 0.1] * 2)
    assert not state(made).chattering
    events(made, [0.95], 10)
    assert state(made).chattering
    events(made, [0.1, 0.95], 100)
    assert not state(made).chattering


def test_ten_alarms_in_ten_minutes_are_a_flood_until_fewer_than_five_came() -> None:
    flood = FloodWatch()
    many = [AlarmGroup([AlarmRule("drift", "risk", 0.9)], flood) for _ in range(10)]
    floods = [one.observe(tick(10.0 * number, 0), 1.0)[0].flood for number, one in enumerate(many)]
    assert floods == [False] * 9 + [True]
    assert flood.lasts(640.0)
    assert not flood.lasts(661.0)


def test_what_is_put_aside_adds_to_no_flood() -> None:
    flood = FloodWatch()
    made = AlarmGroup([AlarmRule("drift", "risk", 0.9)], flood)
    made.command("drift", E.SUPPRESS, 0.0)
    for step in range(40):
        made.observe(tick(step, 0), float(step % 2))
    assert not flood.lasts(40.0)


def test_states_and_shelf_times_survive_a_restart_and_delays_begin_anew() -> None:
    made = group(DRIFT, AlarmRule("hot", "risk", 0.5), AlarmRule("old", "risk", 0.5))
    events(made, [0.95] * 4)
    made.command("hot", E.SHELVE, 5.0, shelve_s=60.0, by="anna")
    events(made, [0.1, 0.1], 6)
    saved = json.loads(json.dumps(made.snapshot()))
    again = group(DRIFT, AlarmRule("hot", "risk", 0.5), AlarmRule("new", "risk", 0.5))
    again.restore(saved)
    assert state(again) == state(made)
    assert state(again, "hot") == state(made, "hot")
    assert state(again, "new").state is S.NORMAL
    assert events(again, [0.1] * 4, 8) == []
    assert events(again, [0.1] * 2, 12) == [(13.0, E.CLEAR)]
    assert events(again, [0.1], 65) == [(65.0, E.SHELF_EXPIRED)]


def test_a_snapshot_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="validation error"):
        group().restore({"drift": {"state": "asleep"}})


@given(st.sampled_from(AlarmStateName), st.sampled_from(AlarmEvent))
def test_every_state_knows_what_the_process_may_do(before: AlarmStateName, event: AlarmEvent) -> None:
    """In each state the condition can turn the way it can stand there; a command is in the table or refused."""
    holds = {S.UNACKNOWLEDGED, S.ACKNOWLEDGED}
    aside = {S.SHELVED, S.SUPPRESSED, S.OUT_OF_SERVICE}
    if event is E.ACTIVATE:
        assert ((before, event) in TRANSITIONS) == (before not in holds)
    if event is E.CLEAR:
        assert ((before, event) in TRANSITIONS) == (before in holds | aside)


class AlarmLife(RuleBasedStateMachine):
    """Whatever process and operator do, against a model that knows the condition only."""

    def __init__(self) -> None:
        super().__init__()
        self.latching = False
        self.made = self.new()
        self.now_s = 0.0
        self.active = False
        self.since_s: float | None = None
        self.changes = 0

    def new(self) -> AlarmGroup:
        return group(
            AlarmRule("drift", "risk", 0.9, deadband=0.2, on_delay_s=2.0, off_delay_s=3.0, latching=self.latching)
        )

    @precondition(lambda self: self.now_s == 0)
    @rule(latching=st.booleans())
    def begin(self, latching: bool) -> None:
        self.latching = latching
        self.made = self.new()

    @rule(risk=st.sampled_from([0.0, 0.69, 0.75, 0.9, 1.0, None]), step_s=st.sampled_from([0.5, 1.0, 2.0]))
    def observe(self, risk: float | None, step_s: float) -> None:
        self.now_s += step_s
        before = self.active
        moving = risk is not None and (risk < 0.7 if self.active else risk >= 0.9)
        if not moving:
            self.since_s = None
        else:
            self.since_s = self.now_s if self.since_s is None else self.since_s
            if self.now_s - self.since_s >= (3.0 if self.active else 2.0):
                self.active = not self.active
                self.since_s = None
        changed = self.made.observe(tick(self.now_s, 0.0), risk)
        turned = [one for one in changed if one.event in (E.ACTIVATE, E.CLEAR)]
        assert bool(turned) == (before != self.active)

    @rule(event=st.sampled_from(AlarmEvent), shelve_s=st.sampled_from([1.0, 5.0, 100.0]))
    def command(self, event: AlarmEvent, shelve_s: float) -> None:
        before = state(self.made)
        possible = event in COMMANDS and (before.state, event) in TRANSITIONS
        try:
            after = self.made.command("drift", event, self.now_s, by="anna", shelve_s=shelve_s)
        except AlarmRefused:
            assert not possible
            assert state(self.made) == before
            return
        assert possible
        assert after.by == "anna"

    @rule()
    def restart(self) -> None:
        saved = json.loads(json.dumps(self.made.snapshot()))
        before = state(self.made)
        self.made = self.new()
        self.made.restore(saved)
        assert state(self.made).state is before.state
        self.since_s = None

    @invariant()
    def the_state_agrees_with_the_condition(self) -> None:
        now = state(self.made)
        assert now.active == self.active
        assert (now.active_since_s is not None) == now.active
        if now.state in (S.UNACKNOWLEDGED, S.ACKNOWLEDGED):
            assert now.active
        if now.state in (S.NORMAL, S.RETURNED_UNACKNOWLEDGED, S.LATCHED_ACKNOWLEDGED, S.LATCHED_UNACKNOWLEDGED):
            assert not now.active
        if not self.latching:
            assert now.state not in (S.LATCHED_ACKNOWLEDGED, S.LATCHED_UNACKNOWLEDGED)
        assert (now.shelved_until_s is not None) == (now.state is S.SHELVED)
        assert now.first_out <= (now.state is not S.NORMAL)
        assert bool(self.made.sounding) == (now.active or now.latched) or now.state in (
            S.SHELVED,
            S.SUPPRESSED,
            S.OUT_OF_SERVICE,
        )


TestAlarmLife = AlarmLife.TestCase
TestAlarmLife.settings = settings(max_examples=60, stateful_step_count=40)
