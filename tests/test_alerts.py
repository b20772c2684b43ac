"""Alerts: each rises once and clears once, strictly in turn, also over restarts."""

import json
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from delivery_helpers import FakeClock, message
from hypothesis import given, settings
from hypothesis import strategies as st
from mosquitto import Listener, Mosquitto, Received
from test_station import eventually, folder_camera, forwarding, running, write_pictures

from station import wire
from station.adapters.embedded_broker import free_port
from station.adapters.sqlite_journal import SqliteJournal
from station.alert_messages import Alert, AlertKind, AlertStateName
from station.alerts import CHARACTERS, SETTLE_S, AlertBook, Instant, Sounding
from station.errors import ConfigurationError
from station.messages import Fault, Health, Outcome
from station.process_messages import Priority
from station.settings import JournalSettings, Settings, from_document

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
OK, NG, UNKNOWN = Outcome.OK, Outcome.NG, Outcome.UNKNOWN
RAISED, CLEARED = AlertStateName.RAISED, AlertStateName.CLEARED


def configured(tables: dict[str, Any] | None = None) -> Settings:
    camera = {"kind": "simulated"}
    document = {"camera": {"top": camera, "side": camera}, "alert": tables or {}}
    return from_document(document, "test", Path("/"), {})


def at(seconds: float) -> Instant:
    return Instant(BEGIN + timedelta(seconds=seconds), seconds)


def made(tables: dict[str, Any] | None = None, former: Iterable[Alert] = (), now_s: float = 0.0) -> AlertBook:
    found = configured(tables)
    book = AlertBook("s", 1, found.alert, found.camera)
    assert book.restore(former, at(now_s)) == []
    return book


def judge(book: AlertBook, outcomes: Sequence[Outcome], camera: str = "top", begin_s: float = 0.0) -> list[Alert]:
    return [alert for step, one in enumerate(outcomes) for alert in book.judged(camera, one, at(begin_s + step))]


def fault(what: str, reason: str = "is gone") -> Fault:
    return Fault(what=what, reason=reason, since=BEGIN)


def told(alerts: Iterable[Alert]) -> list[tuple[str, str, AlertStateName]]:
    return [(alert.alert, alert.subject, alert.state) for alert in alerts]


def test_the_nth_ng_in_a_row_raises_it_and_ok_ones_in_a_row_clear_it() -> None:
    book = made({"ng_in_a_row": {"limit": 3, "clear_after": 2}})
    assert judge(book, [NG, NG, OK, NG, NG]) == []
    (raised,) = judge(book, [NG], begin_s=5)
    assert (raised.alert, raised.camera, raised.count, raised.value, raised.limit) == ("ng_in_a_row", "top", 3, 3, 3)
    assert (raised.state, raised.priority, raised.at) == (RAISED, Priority.HIGH, at(5).wall)
    assert raised.alert_id == raised.id
    assert judge(book, [NG, OK, NG, OK, UNKNOWN], begin_s=6) == []
    (cleared,) = judge(book, [OK], begin_s=20)
    assert (cleared.state, cleared.alert_id, cleared.cleared) == (CLEARED, raised.id, "over")
    assert (cleared.since, cleared.sequence > raised.sequence) == (raised.since, True)


def test_an_unknown_neither_counts_nor_breaks_the_row() -> None:
    book = made({"ng_in_a_row": {"limit": 3}})
    assert told(judge(book, [NG, UNKNOWN, NG, UNKNOWN, NG])) == [("ng_in_a_row", "top", RAISED)]


def test_a_camera_can_have_a_limit_of_its_own_and_counts_for_itself() -> None:
    book = made({"ng_in_a_row": {"limit": 4, "camera_limits": {"side": 2}}})
    assert judge(book, [NG, NG, NG]) == []
    assert told(judge(book, [NG, NG], "side")) == [("ng_in_a_row", "side", RAISED)]


def test_a_rate_needs_enough_frames_and_comes_back_beyond_the_deadband() -> None:
    book = made({"ng_rate": {"limit": 0.5, "deadband": 0.2, "window_frames": 10, "least_frames": 4}})
    assert judge(book, [OK, NG, NG]) == []
    (raised,) = judge(book, [NG])
    assert (raised.count, raised.frames, raised.value) == (3, 4, 0.75)
    assert judge(book, [OK] * 6) == []  # 3 of 10, exactly at the deadband's end
    assert told(judge(book, [OK])) == []  # the oldest was ok: still 3 of 10
    (cleared,) = judge(book, [OK])
    assert (cleared.count, cleared.frames, cleared.alert_id) == (2, 10, raised.id)


def test_frames_older_than_the_window_do_not_count() -> None:
    book = made({"unknown_rate": {"limit": 0.5, "window_s": 10.0, "least_frames": 2}})
    assert told(judge(book, [UNKNOWN, UNKNOWN])) == [("unknown_rate", "top", RAISED)]
    assert judge(book, [OK], begin_s=100) == []  # one frame says nothing
    assert told(judge(book, [OK], begin_s=101)) == [("unknown_rate", "top", CLEARED)]


def test_a_fault_is_told_after_its_delay_once_and_cleared_once() -> None:
    book = made({"broker": {"on_delay_s": 2.0, "off_delay_s": 3.0}}, now_s=-100)
    down = [fault("broker", "no route")]
    assert [told(book.look(down, (), at(second))) for second in range(5)] == [
        [], [], [("broker", "broker", RAISED)], [], []
    ]  # fmt: skip
    assert book.look((), (), at(6)) == []
    assert book.look(down, (), at(7)) == []  # back for a moment is not over
    assert [told(book.look((), (), at(second))) for second in (8, 10, 11, 12)] == [
        [], [], [("broker", "broker", CLEARED)], []
    ]  # fmt: skip


def test_a_short_fault_is_not_told() -> None:
    book = made({"broker": {"on_delay_s": 2.0}})
    for second in range(0, 40, 2):
        assert book.look([fault("broker")], (), at(second)) == []
        assert book.look((), (), at(second + 1)) == []


@pytest.mark.parametrize(
    ("what", "kind", "camera"),
    [
        ("camera top", AlertKind.CAMERA, "top"),
        ("model top", AlertKind.MODEL, "top"),
        ("model oven", AlertKind.MODEL, None),
        ("journal", AlertKind.JOURNAL, None),
        ("readings", AlertKind.JOURNAL, None),
        ("embedded broker", AlertKind.BROKER, None),
        ("sensors plc", AlertKind.SENSORS, None),
        ("channel oven.temperature", AlertKind.SENSORS, None),
        ("evidence", AlertKind.EVIDENCE, None),
        ("alarms", AlertKind.PROCESS_ALARM, None),
        ("reject gate", AlertKind.REJECT, None),
        ("something new", AlertKind.STATION, None),
    ],
)
def test_each_fault_has_its_kind(what: str, kind: AlertKind, camera: str | None) -> None:
    book = made()
    found = [*book.look([fault(what)], (), at(100)), *book.look([fault(what, "another reason")], (), at(200))]
    assert [(one.kind, one.subject, one.camera) for one in found] == [(kind, what, camera)]
    assert found[0].text == CHARACTERS[kind].text


def test_an_alarm_of_a_process_is_told_with_its_own_priority_and_text() -> None:
    book = made()
    alarm = Sounding("oven", "hot", Priority.LOW, "open the door")
    (raised,) = book.look((), [alarm], at(0))
    assert (raised.subject, raised.priority, raised.text) == ("alarm oven.hot", Priority.LOW, "open the door")
    assert told(book.look((), (), at(60))) == [("process_alarm", "alarm oven.hot", CLEARED)]


def test_what_is_switched_off_is_not_told() -> None:
    book = made({"broker": {"enabled": False}, "ng_in_a_row": {"limit": 2, "enabled": False}})
    assert judge(book, [NG] * 20) == []
    assert [*book.look([fault("broker")], (), at(0)), *book.look([fault("broker")], (), at(100))] == []


def test_what_stood_before_a_restart_goes_on_with_its_id_or_clears() -> None:
    book = made({"ng_in_a_row": {"limit": 3, "clear_after": 2}, "camera": {"off_delay_s": 0.0}})
    former = [*judge(book, [NG] * 3), *book.look([fault("camera top"), fault("camera side")], (), at(3))]
    assert len(former) == 3
    again = made({"ng_in_a_row": {"limit": 3, "clear_after": 2}, "camera": {"off_delay_s": 0.0}}, former, 100)
    assert [one.id for one in again.standing] == [one.id for one in former]
    assert again.look([fault("camera top")], (), at(101)) == []
    assert again.look([fault("camera top")], (), at(100 + SETTLE_S - 1)) == []
    (cleared,) = again.look([fault("camera top")], (), at(100 + SETTLE_S))
    assert (cleared.subject, cleared.alert_id) == ("camera side", former[2].id)
    assert judge(again, [OK, NG, OK], begin_s=101) == []
    (cleared,) = judge(again, [OK], begin_s=105)
    assert (cleared.alert_id, cleared.state) == (former[0].id, CLEARED)


def test_what_the_configuration_has_no_more_is_cleared_at_the_start() -> None:
    former = judge(made({"ng_in_a_row": {"limit": 3}}), [NG] * 3)
    gone = configured({"ng_in_a_row": {"enabled": False}})
    (cleared,) = AlertBook("s", 2, gone.alert, gone.camera).restore(former, at(50))
    assert (cleared.alert_id, cleared.state, cleared.cleared, cleared.epoch) == (former[0].id, CLEARED, "removed", 2)


PARTS = ("camera top", "broker", "sensors plc")
steps = st.lists(
    st.one_of(
        st.tuples(st.just("judged"), st.sampled_from(["top", "side"]), st.sampled_from([OK, NG, NG, UNKNOWN])),
        st.tuples(st.just("look"), st.sets(st.sampled_from(PARTS)), st.floats(0, 20)),
        st.tuples(st.just("restart"), st.floats(0, 20), st.booleans()),
    ),
    max_size=150,
)
OFF = {"enabled": False}
SMALL: dict[str, Any] = {
    "ng_in_a_row": {"limit": 2, "clear_after": 2},
    "ng_rate": {"limit": 0.5, "window_frames": 6, "least_frames": 2},
    "unknown_rate": {"limit": 0.3, "window_frames": 6, "least_frames": 2, "window_s": 30.0},
}


@settings(max_examples=200)
@given(steps)
def test_raised_and_cleared_alternate_and_nothing_is_left_hanging(run: list[tuple[Any, Any, Any]]) -> None:
    now_s, epoch, sent = 0.0, 1, list[Alert]()
    tables = configured(SMALL)

    def book() -> AlertBook:
        fresh = AlertBook("s", epoch, tables.alert, tables.camera)
        sent.extend(fresh.restore(sent, at(now_s)))
        return fresh

    present = book()
    for verb, first, second in run:
        now_s += 0.1
        if verb == "judged":
            sent.extend(present.judged(first, second, at(now_s)))
        elif verb == "look":
            now_s += second
            sent.extend(present.look([fault(one) for one in sorted(first)], (), at(now_s)))
        else:
            now_s, epoch = now_s + first, epoch + 1
            tables = configured(SMALL if second else SMALL | {"ng_rate": OFF, "broker": OFF})
            present = book()
    by_subject: dict[tuple[str, str], list[Alert]] = {}
    for alert in sent:
        by_subject.setdefault((alert.alert, alert.subject), []).append(alert)
    standing = set[UUID]()
    for alerts in by_subject.values():
        assert [one.state for one in alerts] == [(RAISED, CLEARED)[place % 2] for place in range(len(alerts))]
        for before, after in zip(alerts[::2], alerts[1::2], strict=False):
            assert before.alert_id == after.alert_id
            assert before.since == after.since <= after.at
        standing.update(alert.alert_id for alert in alerts[len(alerts) // 2 * 2 :])
    assert {one.alert_id for one in present.standing} == standing
    assert len({one.id for one in sent}) == len(sent)
    order = [(one.epoch, one.sequence) for one in sent]
    assert order == sorted(set(order))
    for _ in range(10):
        now_s += SETTLE_S
        sent.extend(present.look((), (), at(now_s)))
        for camera in ("top", "side"):
            sent.extend(present.judged(camera, OK, at(now_s)))
    assert present.standing == []


@pytest.mark.parametrize(
    ("tables", "text"),
    [
        ({"ng_rate": {"cameras": ["front"]}}, "alert.ng_rate.cameras: there is no camera 'front'; known: top, side"),
        ({"ng_in_a_row": {"camera_limits": {"front": 3}}}, "there is no camera 'front'"),
        ({"ng_rate": {"limit": 0.1, "deadband": 0.2}}, "deadband = 0.2: must be below the limit 0.1"),
        ({"ng_rate": {"limit": 1.5}}, "alert.ng_rate.limit = 1.5: Input should be less than or equal to 1"),
        ({"ng_rate": {"least_frames": 500}}, "least_frames = 500: more than window_frames = 200"),
        ({"mine": {"limit": 3}}, "alert.mine: kind is missing; allowed: ng_in_a_row, ng_rate, unknown_rate, camera"),
        ({"mine": {"kind": "weather"}}, "kind = 'weather' is not known"),
        ({"broker": {"limit": 3}}, "alert.broker.limit = 3: unknown key"),
    ],
)
def test_a_wrong_table_is_refused_with_what_is_allowed(tables: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        configured(tables)
    assert text in str(refused.value)


def test_an_alert_on_the_wire_looks_like_this() -> None:
    book = made({"ng_in_a_row": {"limit": 3}})
    (raised,) = judge(book, [NG] * 3)
    sent = wire.outgoing_alert(raised)
    assert (sent.topic, sent.kind, sent.camera, sent.epoch, sent.sequence) == (
        "inspection/s/alert",
        "alert",
        None,
        1,
        1,
    )
    assert json.loads(sent.payload) == {
        "schema_version": 1,
        "id": str(raised.id),
        "alert_id": str(raised.id),
        "station": "s",
        "alert": "ng_in_a_row",
        "kind": "ng_in_a_row",
        "subject": "top",
        "camera": "top",
        "state": "raised",
        "priority": "high",
        "epoch": 1,
        "sequence": 1,
        "at": "2026-01-01T00:00:02Z",
        "since": "2026-01-01T00:00:02Z",
        "count": 3,
        "frames": None,
        "value": 3.0,
        "limit": 3.0,
        "reason": "3 ng in a row (limit 3)",
        "text": "look at the parts and at the machine before the camera",
        "cleared": None,
    }
    assert wire.decode(Alert, sent.payload) == raised


def test_the_journal_finds_its_alerts_among_verdicts_and_alarms(tmp_path: Path) -> None:
    sent = [wire.outgoing_alert(one) for one in judge(made(SMALL), [NG, NG, OK, OK, OK, NG, NG])]
    with SqliteJournal(tmp_path / "j.sqlite", JournalSettings(), station="s", clock=FakeClock()) as journal:
        journal.open_epoch()
        for number, alert in enumerate(sent):
            journal.commit([message(number + 1), alert], ())
        assert journal.alerts() == sent


def alerts(received: list[Received]) -> list[Alert]:
    return [wire.decode(Alert, one.payload) for one in received if one.topic.endswith("/alert")]


def test_a_station_tells_a_model_fault_over_a_restart_and_clears_it_with_the_same_id(tmp_path: Path) -> None:
    write_pictures(tmp_path / "in", 8)
    missing = str(tmp_path / "missing.bundle")
    camera = folder_camera(tmp_path / "in", mode="loop", rate_fps=50.0)
    quick = {"alert": {"model": {"off_delay_s": 0.0}, "unknown_rate": {"window_frames": 8, "least_frames": 8}}}
    with Mosquitto(tmp_path) as broker, Listener(broker.port) as listener:
        document = {"broker": {"port": broker.port}, **camera, **quick}
        with running(tmp_path, {**document, "model": {"bundle": missing}}) as station:
            received = listener.wait_until(lambda got: len(alerts(got)) == 2)
            assert {(one.kind, one.camera, one.state) for one in alerts(received)} == {
                (AlertKind.MODEL, "c", RAISED),
                (AlertKind.UNKNOWN_RATE, "c", RAISED),
            }
            eventually(lambda: len(station.health().alerts) == 2)
        with running(tmp_path, document):
            received = listener.wait_until(lambda got: len(alerts(got)) == 4, patience_s=60)
        health = [wire.decode(Health, one.payload) for one in received if one.topic.endswith("/health")]
    found = alerts(received)
    assert {one.alert_id for one in found[:2]} == {one.alert_id for one in found[2:]}
    assert {one.state for one in found[2:]} == {CLEARED}
    assert health


def test_a_broker_that_was_away_is_told_when_it_is_back(tmp_path: Path) -> None:
    write_pictures(tmp_path / "in", 4)
    door = free_port()
    document = {
        "broker": {"port": door, "reconnect_max_s": 0.5},
        **folder_camera(tmp_path / "in", mode="loop", rate_fps=10.0),
        "alert": {"broker": {"on_delay_s": 0.0, "off_delay_s": 0.0}},
    }
    with (
        Mosquitto(tmp_path) as broker,
        Listener(broker.port, "inspection/s/#") as listener,
        running(tmp_path, document) as station,
    ):
        with forwarding(door, broker.port):
            listener.wait_until(lambda got: [one.state for one in alerts(got)] in ([], [RAISED, CLEARED]))
            eventually(lambda: not station.faults() and not station.health().alerts)
        eventually(lambda: any(one.alert == "broker" for one in station.health().alerts))
        before = len(alerts(listener.received))
        with forwarding(door, broker.port):
            found = alerts(listener.wait_until(lambda got: len(alerts(got)) == before + 2))[before:]
    assert [(one.kind, one.state) for one in found] == [(AlertKind.BROKER, RAISED), (AlertKind.BROKER, CLEARED)]
    assert found[0].alert_id == found[1].alert_id
