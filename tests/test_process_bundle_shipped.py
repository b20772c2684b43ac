"""The shipped process bundle on the simulated oven and press, through the deployed path."""

import pytest
from process_helpers import BEGIN_S, ToldClock

from station.alarm import FloodWatch
from station.commands.assembly import load_process_bundle
from station.process import Observer
from station.process_messages import Alarm, AlarmEvent, Readings
from station.process_settings import ChannelSettings, ProcessSettings
from station.settings import SHIPPED_PROCESS_BUNDLE
from station.simulated_process import CHANNELS, DEFECTS_AFTER_S, SimulatedProcess
from station.trust import ANYONE

SETTINGS = ProcessSettings(
    bundle=SHIPPED_PROCESS_BUNDLE,
    channel={name: ChannelSettings(source="plc", unit=unit) for name, unit in CHANNELS},
)


def observe(seed: int, seconds: float, drift_after_s: float | None = None) -> tuple[list[Alarm], Observer]:
    observer = Observer(
        station="line-1",
        group="oven",
        epoch=1,
        settings=SETTINGS,
        flood=FloodWatch(),
        clock=ToldClock(),
        live=False,
        model=load_process_bundle(SHIPPED_PROCESS_BUNDLE.read_bytes(), "shipped", ANYONE),
    )
    observer.window.connect("plc", [name for name, _ in CHANNELS])
    process = SimulatedProcess(seed, 10.0, drift_after_s)
    alarms: list[Alarm] = []
    for row in range(round(seconds * 10)):
        alarms += observer.observe(Readings("plc", BEGIN_S + row / 10, 0.0, process.next())).alarms
    return alarms, observer


@pytest.mark.parametrize("seed", [7, 1001, 1002])
def test_it_warns_before_the_defects_rise_and_names_the_heater(seed: int) -> None:
    alarms, _ = observe(seed, 25.0 + DEFECTS_AFTER_S, drift_after_s=25.0)
    came = [alarm for alarm in alarms if alarm.event is AlarmEvent.ACTIVATE]
    assert len(came) == 1
    after_s = came[0].at.timestamp() - BEGIN_S - 25.0
    assert 0 < after_s < DEFECTS_AFTER_S - 5
    assert came[0].top[0].channel in ("heater_output", "heater_current", "oven_temperature", "exit_temperature")
    assert came[0].history[-1].risk == pytest.approx(came[0].value)


def test_in_normal_operation_it_is_silent() -> None:
    alarms, observer = observe(1003, 300.0)
    assert alarms == []
    assert observer.moment is not None
    assert observer.moment.risk is not None
    assert observer.moment.risk < 0.5
