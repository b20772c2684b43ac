"""Early warning in the whole station: real threads, journal and broker; simulated readings and logs."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from mosquitto import Listener, Mosquitto, Received
from requester import Requester
from test_station import eventually, running, statuses, verdicts

from station import wire
from station.adapters.embedded_broker import free_port
from station.adapters.sqlite_journal import export
from station.adapters.sqlite_readings import readings_at, readings_between
from station.messages import AlarmResult, Health, Override, ProcessStateName, SourceStateName
from station.process_messages import Alarm, AlarmEvent, AlarmStateName, ChannelQuality, Risk

ALARM_TOPIC = "inspection/s/process/oven/alarm/on"
CAMERA = {"c": {"kind": "simulated", "rate_fps": 10.0, "threshold_in_alarm": 0.01}}
SENSORS = {"plc": {"kind": "simulated", "rate_hz": 20.0}}
OVEN: dict[str, Any] = {
    "step_s": 0.1,
    "risk_interval_s": 0.2,
    "channel": {
        "output": {"source": "plc", "point": "heater_output", "unit": "%"},
        "temperature": {"source": "plc", "point": "oven_temperature", "unit": "°C", "scale": 1.8, "offset": 32.0},
    },
    # The simulated heater is always on, so that this alarm comes at once.
    "alarm": {"on": {"watch": "output", "above": 10.0, "priority": "high", "text": "look"}},
}


def document(port: int, **more: Any) -> dict[str, Any]:
    return {
        "broker": {"port": port, "reconnect_max_s": 0.5},
        "camera": CAMERA,
        "sensors": SENSORS,
        "process": {"oven": OVEN},
        **more,
    }


def alarms(received: Sequence[Received]) -> list[Alarm]:
    return [wire.decode(Alarm, one.payload) for one in received if one.topic == ALARM_TOPIC]


def came(received: Sequence[Received]) -> list[Alarm]:
    return [alarm for alarm in alarms(received) if alarm.event is AlarmEvent.ACTIVATE]


def test_an_alarm_is_delivered_kept_acknowledged_and_survives_a_restart(tmp_path: Path) -> None:
    with Mosquitto(tmp_path) as broker, Listener(broker.port, "inspection/#") as listener:
        settings = document(broker.port, commands={"allow": ["acknowledge", "shelve", "reset"]})
        with running(tmp_path, settings), Requester(broker.port) as requester:
            alarm = came(listener.wait_until(lambda received: bool(came(received))))[0]
            assert (alarm.watches, alarm.limit, alarm.text, alarm.first_out) == ("output", 10.0, "look", True)
            assert [(part.channel, part.expected) for part in alarm.top] == [("output", 10.0)]
            answer = requester.ask("acknowledge", group="oven", alarm="on", by="anna")
            assert isinstance(answer.result, AlarmResult), answer.reason
            assert answer.result.state == "acknowledged"
            refused = requester.ask("reset", group="oven", alarm="on")
            assert (refused.accepted, refused.reason) == (
                False,
                "alarm on is acknowledged: reset is not possible; remove_from_service, shelve, suppress are",
            )
            assert "known: oven" in str(requester.ask("shelve", group="press", alarm="on", duration_s=5.0).reason)
            shelved = requester.ask("shelve", group="oven", alarm="on", duration_s=60.0)
            assert isinstance(shelved.result, AlarmResult)
            assert shelved.result.shelved_until is not None
        with Listener(broker.port, ALARM_TOPIC) as late:
            (retained,) = alarms(late.wait_until(lambda received: len(received) == 1))
        with running(tmp_path, settings):
            again = listener.wait_until(lambda received: len(alarms(received)) >= 4)
    assert retained.state is AlarmStateName.SHELVED
    assert alarms(again)[-1] == retained
    rows = [row.message for row in export(tmp_path / "data" / "journal.sqlite") if row.message.kind == "alarm"]
    kept = [wire.decode(Alarm, one.payload) for one in rows]
    assert [one.event for one in kept] == [AlarmEvent.ACTIVATE, AlarmEvent.ACKNOWLEDGE, AlarmEvent.SHELVE]
    assert kept[1].by == "anna"


def test_a_verdict_carries_the_state_and_is_judged_by_the_stricter_threshold(tmp_path: Path) -> None:
    with Mosquitto(tmp_path) as broker, Listener(broker.port, "inspection/#") as listener:
        with running(tmp_path, document(broker.port)):
            found = listener.wait_until(
                lambda received: any(one.process["oven"].alarms for one in verdicts(list(received)))
            )
        verdict = next(one for one in verdicts(found) if one.process["oven"].alarms)
    state = verdict.process["oven"]
    assert (state.state, state.alarms) == (ProcessStateName.ALARM, ("on",))
    assert state.as_of is not None
    assert state.as_of <= verdict.captured_at
    assert verdict.override == (Override(what="threshold", group="oven"),)
    assert verdict.threshold == 0.01
    reading = readings_at(tmp_path / "data" / "readings.sqlite", "oven", verdict.captured_at.timestamp())
    assert reading is not None
    assert reading.at_s == pytest.approx(state.as_of.timestamp(), abs=0.11)
    assert reading.values[1] == pytest.approx(180 * 1.8 + 32, abs=3)


def test_an_alarm_that_came_without_a_broker_is_delivered_and_retained_later(tmp_path: Path) -> None:
    broker = Mosquitto(tmp_path, running=False)
    with running(tmp_path, document(broker.port)) as station:
        eventually(lambda: bool(station.health().process["oven"].alarms))
        broker.start()
        with broker, Listener(broker.port, "inspection/#") as listener:
            alarm = came(listener.wait_until(lambda received: bool(came(received))))[0]
            broker.kill()
            broker.start()
            with Listener(broker.port, ALARM_TOPIC) as late:
                again = came(late.wait_until(lambda received: bool(came(received))))
    assert again[0].id == alarm.id


def write_log(path: Path, rows: int) -> None:
    begin = datetime(2026, 1, 1, tzinfo=UTC)
    lines = ["timestamp;pressure [bar];dead"]
    for row in range(rows):
        pressure = "" if 20 <= row < 30 else f"{5 + row % 3},5"
        lines.append(f"{(begin + timedelta(seconds=row)).isoformat()};{pressure};7")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def test_a_replayed_log_is_watched_in_its_own_time(tmp_path: Path) -> None:
    write_log(tmp_path / "log.csv", 60)
    channels = {"pressure": {"source": "log"}, "dead": {"source": "log", "flat_after_s": 15.0}}
    settings = {
        **document(free_port()),
        "sensors": {"log": {"kind": "csv", "path": str(tmp_path / "log.csv"), "speed": 0.0}},
        "process": {"oven": {"channel": channels}},
    }
    with running(tmp_path, settings) as station:
        eventually(lambda: station.health().sensors["log"].state is SourceStateName.FINISHED)
        eventually(lambda: station.health().process["oven"].ticks == 60)
        assert station.health().process["oven"].bad == {"dead": "flat_line"}
        eventually(lambda: any(one.what == "channel oven.dead" for one in station.faults()))
    begin_s = datetime(2026, 1, 1, tzinfo=UTC).timestamp()
    kept = list(readings_between(tmp_path / "data" / "readings.sqlite", "oven", begin_s, begin_s + 100))
    assert [one.at_s - begin_s for one in kept] == list(range(60))
    assert kept[22].qualities[0] is ChannelQuality.NOT_A_NUMBER
    assert kept[22].values[0] is None
    assert (kept[14].values[1], kept[15].qualities[1]) == (7.0, ChannelQuality.FLAT_LINE)


@pytest.mark.parametrize(
    ("changes", "what", "text"),
    [
        ({"sensors": {"plc": {"kind": "csv", "path": "none.csv"}}}, "sensors plc", "none.csv"),
        (
            {"process": {"oven": {"channel": {"flow": {"source": "plc"}}}}},
            "process oven",
            "the source plc has no such point; it has heater_output",
        ),
        (
            {"process": {"oven": {**OVEN, "step_s": None, "bundle": "none.bundle"}}},
            "model oven",
            "none.bundle: cannot be read",
        ),
    ],
)
def test_what_cannot_be_used_is_a_fault_and_the_cameras_go_on(
    tmp_path: Path, changes: dict[str, Any], what: str, text: str
) -> None:
    with (
        Mosquitto(tmp_path) as broker,
        Listener(broker.port, "inspection/#") as listener,
        running(tmp_path, {**document(broker.port), **changes}),
    ):
        received = listener.wait_until(
            lambda received: (
                bool(verdicts(list(received)))
                and any(fault.what == what for status in statuses(list(received)) for fault in status.faults)
            )
        )
    reasons = [fault.reason for status in statuses(received) for fault in status.faults if fault.what == what]
    assert any(text in reason for reason in reasons), reasons


def test_risk_and_health_say_how_the_process_does(tmp_path: Path) -> None:
    with (
        Mosquitto(tmp_path) as broker,
        Listener(broker.port, "inspection/#") as listener,
        running(tmp_path, document(broker.port)),
    ):
        received = listener.wait_until(
            lambda received: (
                sum(one.topic.endswith("/risk") for one in received) >= 5
                and any(_rows(one) > 10 for one in received if one.topic.endswith("/health"))
            )
        )
    risks = [wire.decode(Risk, one.payload) for one in received if one.topic.endswith("/risk")]
    assert all(one.group == "oven" and one.risk is None for one in risks)
    assert risks[-1].bad == {}


def _rows(received: Received) -> int:
    health = wire.decode(Health, received.payload)
    return health.sensors["plc"].rows if "plc" in health.sensors else 0
