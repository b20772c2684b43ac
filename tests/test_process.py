"""The journey of a reading: what is published, where the group stands, what survives a restart."""

import itertools
import math
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from process_helpers import BEGIN, BEGIN_S, Deviation, ToldClock

from station.adapters.sqlite_readings import SqliteReadings, groups_kept, readings_at, readings_between
from station.alarm import FloodWatch
from station.errors import AlarmRefused, ConfigurationError, StorageError
from station.messages import ProcessStateName, SourceStateName
from station.process import Observation, Observer
from station.process_history import ProcessHistory
from station.process_messages import (
    Alarm,
    AlarmEvent,
    AlarmStateName,
    ChannelQuality,
    Moment,
    Readings,
    SourceEvent,
)
from station.process_settings import AlarmSettings, ChannelSettings, ProcessSettings

NAN = math.nan


def settings(**changes: object) -> ProcessSettings:
    channel = {
        "temperature": ChannelSettings(source="plc", unit="°C"),
        "pressure": ChannelSettings(source="plc", unit="bar", minimum=-1000.0),
    }
    return ProcessSettings.model_validate({"bundle": Path("oven.bundle"), "channel": channel, **changes})


class Group:
    """A group and its clock; rows go in at whole seconds."""

    def __init__(
        self,
        *,
        model: Deviation | None = None,
        live: bool = True,
        epoch: int = 1,
        clock: ToldClock | None = None,
        **changes: object,
    ) -> None:
        self.clock = clock or ToldClock()
        self.model = model or Deviation()
        self.observer = Observer(
            station="line-1",
            group="oven",
            epoch=epoch,
            settings=settings(**changes),
            flood=FloodWatch(),
            clock=self.clock,
            live=live,
            model=self.model,
        )
        self.observer.window.connect("plc", ["temperature", "pressure"])
        self.seen: list[Observation] = []

    def rows(self, *rows: tuple[float, float]) -> "Group":
        for temperature, pressure in rows:
            self.clock.passed_s += 1
            at_s = BEGIN_S + self.clock.passed_s
            self.seen.append(self.observer.observe(Readings("plc", at_s, 0.0, (temperature, pressure))))
        return self

    @property
    def alarms(self) -> list[Alarm]:
        return [alarm for one in self.seen for alarm in one.alarms]

    @property
    def states(self) -> list[ProcessStateName]:
        return [moment.state for one in self.seen for moment in one.moments]

    @property
    def faults(self) -> Iterator[tuple[str, str | None]]:
        return (fault for one in self.seen for fault in one.faults)


GOOD = (50.0, 50.0)
HOT = (90.0, 52.0)


def test_it_warms_up_then_is_normal_then_in_alarm() -> None:
    group = Group().rows(GOOD, GOOD, GOOD, HOT, HOT, HOT)
    ready, alarm = ProcessStateName.NORMAL, ProcessStateName.ALARM
    assert group.states == [ProcessStateName.NOT_READY] * 2 + [ready, ready, alarm, alarm]


def test_an_alarm_names_the_channels_expected_and_actual_the_history_and_since_when() -> None:
    group = Group(history_s=60.0, alarm={"drift": AlarmSettings(text="call maintenance")}).rows(*[GOOD] * 4, HOT, HOT)
    (alarm,) = group.alarms
    assert (alarm.alarm, alarm.event, alarm.state) == ("drift", AlarmEvent.ACTIVATE, AlarmStateName.UNACKNOWLEDGED)
    assert (alarm.value, alarm.limit, alarm.text, alarm.first_out) == (0.4, 0.3, "call maintenance", True)
    assert [(part.channel, part.unit, part.actual, part.expected) for part in alarm.top] == [
        ("temperature", "°C", 90.0, 50.0),
        ("pressure", "bar", 52.0, 50.0),
    ]
    assert alarm.top[0].share == pytest.approx(40 / 42, abs=1e-4)
    assert [point.risk for point in alarm.history] == [None, None, 0.0, 0.0, 0.4, 0.4]
    assert alarm.active_since == BEGIN + timedelta(seconds=5)
    assert alarm.at == BEGIN + timedelta(seconds=6)


def test_the_history_is_bounded() -> None:
    group = Group(history_s=600.0).rows(*[GOOD] * 1000, HOT, HOT)
    history = group.alarms[0].history
    assert len(history) <= 60
    assert history[-1].risk == 0.4
    assert (group.alarms[0].at - history[0].at).total_seconds() <= 600


def test_too_few_good_channels_are_a_sensor_fault_and_no_all_clear() -> None:
    group = Group(min_good=0.6).rows(*[GOOD] * 3, (NAN, 50.0), (NAN, 50.0))
    assert group.states[-2:] == [ProcessStateName.SENSOR_FAULT] * 2
    group.rows(*[HOT] * 3, *[(NAN, 50.0)] * 30)
    assert group.states[-1] is ProcessStateName.ALARM
    assert [alarm.event for alarm in group.alarms] == [AlarmEvent.ACTIVATE]


def test_after_a_long_sensor_fault_the_model_begins_anew() -> None:
    group = Group(min_good=1.0, reset_after_s=10.0).rows(*[GOOD] * 5, *[(NAN, 50.0)] * 20, *[GOOD] * 3)
    assert group.states[-3:] == [ProcessStateName.NOT_READY] * 2 + [ProcessStateName.NORMAL]


def test_a_bad_channel_is_an_instrument_fault_and_no_alarm() -> None:
    group = Group().rows(*[GOOD] * 3, (5000.0, -2000.0), *[(50.0, -2000.0)] * 4, *[GOOD] * 4)
    told = list(group.faults)
    assert [name for name, _ in told] == ["pressure", "pressure"]
    assert str(told[0][1]).startswith("out_of_range: is outside of -1000.0 to ∞ bar (plc, pressure)")
    assert told[1][1] is None
    bad = [one.risk.bad for one in group.seen if one.risk is not None]
    assert {"pressure": ChannelQuality.OUT_OF_RANGE} in bad


def test_a_single_lost_row_is_not_told() -> None:
    assert list(Group().rows(GOOD, (NAN, 50.0), GOOD, (NAN, 50.0), GOOD, GOOD).faults) == []


def test_a_dead_source_makes_its_channels_bad_and_tells_it_once_itself() -> None:
    group = Group().rows(*[GOOD] * 3)
    group.observer.observe(SourceEvent("plc", SourceStateName.DOWN, BEGIN_S + 4, "no route"))
    for _ in range(10):
        group.clock.passed_s += 1
        group.seen.append(group.observer.look())
    assert group.states[-1] is ProcessStateName.SENSOR_FAULT
    assert set(group.observer.bad.values()) == {ChannelQuality.SOURCE_FAULT}
    assert list(group.faults) == []


def test_a_model_that_fails_is_told_and_recovers() -> None:
    group = Group().rows(*[GOOD] * 3)
    group.model.fails = True
    group.rows(GOOD)
    assert (group.states[-1], group.observer.model_fault) == (ProcessStateName.MODEL_FAULT, "the runtime failed")
    group.model.fails = False
    group.rows(*[GOOD] * 3)
    assert (group.states[-1], group.observer.model_fault) == (ProcessStateName.NORMAL, None)


def test_the_risk_is_told_at_its_interval() -> None:
    group = Group(risk_interval_s=5.0).rows(*[GOOD] * 21)
    times = [one.risk.at for one in group.seen if one.risk is not None]
    assert [(b - a).total_seconds() for a, b in itertools.pairwise(times)] == [5.0] * 4


def test_a_replayed_log_lives_by_its_own_times() -> None:
    group = Group(live=False)
    group.clock.passed_s = 1e6
    assert group.observer.look() == Observation()
    for step in range(3):
        group.seen.append(group.observer.observe(Readings("plc", step, 0.0, GOOD)))
    assert [moment.at_s for one in group.seen for moment in one.moments] == [0, 1, 2]


def test_a_command_is_a_transition_with_its_author() -> None:
    group = Group().rows(*[GOOD] * 3, *[HOT] * 3)
    (alarm,) = group.observer.command("early_warning", AlarmEvent.ACKNOWLEDGE, by="anna").alarms
    assert (alarm.state, alarm.by, alarm.sequence) == (AlarmStateName.ACKNOWLEDGED, "anna", 2)
    observation = group.observer.command("early_warning", AlarmEvent.SHELVE, shelve_s=60.0)
    assert [moment.state for moment in observation.moments] == [ProcessStateName.NORMAL]
    with pytest.raises(AlarmRefused, match="is shelved: acknowledge is not possible"):
        group.observer.command("early_warning", AlarmEvent.ACKNOWLEDGE)


def restarted(group: Group, after_s: float) -> Group:
    saved = group.observer.snapshot()
    group.clock.passed_s += after_s
    again = Group(epoch=2, clock=group.clock)
    assert again.observer.restore(saved)
    return again


def test_after_a_short_restart_the_model_goes_on_and_alarms_stand() -> None:
    group = Group().rows(*[GOOD] * 3, *[HOT] * 3)
    again = restarted(group, 10.0)
    assert [alarm.id for alarm in again.observer.current()] == [group.alarms[-1].id]
    again.rows(HOT)
    assert again.states == [ProcessStateName.ALARM]
    assert again.observer.moment is not None
    assert again.observer.moment.risk == 0.4
    again.rows(*[GOOD] * 3)
    (cleared,) = again.alarms
    assert (cleared.epoch, cleared.state) == (2, AlarmStateName.RETURNED_UNACKNOWLEDGED)


def test_after_a_long_restart_the_model_begins_anew() -> None:
    again = restarted(Group().rows(*[GOOD] * 5), 100.0).rows(GOOD)
    assert again.states == [ProcessStateName.NOT_READY]


@pytest.mark.parametrize("saved", [b"", b"{}", b"[1]", b'{"at_s": 1, "model": null, "alarms": {"early_warning": 3}}'])
def test_a_state_that_cannot_be_read_is_no_state(saved: bytes) -> None:
    group = Group()
    assert not group.observer.restore(saved)
    assert group.rows(*[GOOD] * 3).states[-1] is ProcessStateName.NORMAL


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"channel": {"temperature": ChannelSettings(source="plc")}}, "expects 'pressure'"),
        (
            {"channel": {name: ChannelSettings(source="plc") for name in ("temperature", "pressure", "flow")}},
            "does not know 'flow'; it expects 'temperature', 'pressure'",
        ),
        (
            {
                "channel": {
                    "temperature": ChannelSettings(source="plc", unit="°C"),
                    "pressure": ChannelSettings(source="plc", unit="Pa"),
                }
            },
            "pressure.unit = 'Pa': the bundle expects 'bar'; set scale and offset",
        ),
        ({"step_s": 2.0}, "step_s = 2: the bundle deviation was trained on steps of 1 s"),
    ],
)
def test_a_configuration_that_does_not_fit_the_bundle_is_refused(changes: dict[str, object], text: str) -> None:
    with pytest.raises(ConfigurationError, match=text):
        Group(**changes)  # type: ignore[arg-type]


# Where the groups stood, for the verdicts


def moment(at_s: float, state: ProcessStateName = ProcessStateName.NORMAL) -> Moment:
    return Moment(BEGIN_S + at_s, state, 0.25, ("drift",) if state is ProcessStateName.ALARM else ())


def test_a_verdict_gets_the_state_of_its_time_and_whether_it_was_known() -> None:
    history = ProcessHistory(10.0)
    assert history.at(BEGIN) == {}
    history.begin("oven", 1.0)
    assert history.at(BEGIN)["oven"].state is ProcessStateName.NOT_READY
    history.add("oven", moment(0))
    history.add("oven", moment(1, ProcessStateName.ALARM))
    past = history.at(BEGIN + timedelta(seconds=0.9))["oven"]
    assert (past.state, past.as_of, past.complete) == (ProcessStateName.NORMAL, BEGIN, True)
    now = history.at(BEGIN + timedelta(seconds=1.5))["oven"]
    assert (now.state, now.alarms, now.complete) == (ProcessStateName.ALARM, ("drift",), True)
    ahead = history.at(BEGIN + timedelta(seconds=2.0))["oven"]
    assert (ahead.as_of, ahead.complete) == (BEGIN + timedelta(seconds=1), False)
    before = history.at(BEGIN - timedelta(seconds=1))["oven"]
    assert (before.as_of, before.complete) == (None, False)


def test_the_past_is_bounded() -> None:
    history = ProcessHistory(10.0)
    history.begin("oven", 1.0)
    for second in range(200):
        history.add("oven", moment(second))
    assert history.at(BEGIN + timedelta(seconds=129))["oven"].as_of == BEGIN + timedelta(seconds=129)
    assert history.at(BEGIN + timedelta(seconds=128))["oven"].as_of is None


# The journal of readings


def kept(group: Group, path: Path, max_bytes: int = 10_000_000) -> None:
    with SqliteReadings(path, max_bytes) as journal:
        journal.begin("oven", [(one.name, one.unit) for one in group.observer.channels])
        for one in group.seen:
            journal.keep("oven", one.ticks, one.moments)
        journal.flush()


def test_what_the_pressure_was_can_be_looked_up(tmp_path: Path) -> None:
    path = tmp_path / "readings.sqlite"
    kept(Group().rows((50, 51), (50, 52), (NAN, 53), *[(50, 60.0 + n) for n in range(20)]), path)
    reading = readings_at(path, "oven", BEGIN_S + 3.4)
    assert reading is not None
    assert reading.at_s == BEGIN_S + 3
    assert reading.channels == (("temperature", "°C"), ("pressure", "bar"))
    assert reading.values == (None, 53.0)
    assert reading.qualities == (ChannelQuality.NOT_A_NUMBER, ChannelQuality.GOOD)
    assert reading.risk == pytest.approx(0.03)
    assert readings_at(path, "oven", BEGIN_S) is None
    between = list(readings_between(path, "oven", BEGIN_S + 4, BEGIN_S + 13))
    assert [one.values[1] for one in between] == [60.0 + n for n in range(10)]
    assert groups_kept(path) == ["oven"]


def test_the_oldest_readings_go_when_the_budget_is_used_up(tmp_path: Path) -> None:
    path = tmp_path / "readings.sqlite"
    group = Group(risk_interval_s=1e6)
    group.rows(*[(50 + math.sin(n) * 10, 50 + math.cos(n * n)) for n in range(8000)])
    kept(group, path, max_bytes=60_000)
    assert path.stat().st_size < 200_000
    assert readings_at(path, "oven", BEGIN_S + 10) is None
    assert readings_at(path, "oven", BEGIN_S + 8000) is not None


def test_a_damaged_file_is_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "readings.sqlite"
    path.write_bytes(b"this is no database" * 100)
    kept(Group().rows(GOOD, GOOD), path)
    assert readings_at(path, "oven", BEGIN_S + 2) is not None
    assert len(list(tmp_path.glob("readings.sqlite.damaged-*"))) == 1


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="does not exist"):
        readings_at(tmp_path / "readings.sqlite", "oven", BEGIN_S)
