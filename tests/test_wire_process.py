"""Alarms and risks on the wire."""

import json
from datetime import UTC, datetime, timedelta
from uuid import UUID

from station import wire
from station.messages import ProcessStateName
from station.process_messages import (
    Alarm,
    AlarmEvent,
    AlarmStateName,
    ChannelPart,
    ChannelQuality,
    Priority,
    Risk,
    RiskPoint,
)

AT = datetime(2026, 1, 1, tzinfo=UTC)


def golden_alarm() -> Alarm:
    return Alarm(
        id=UUID("0197a6b2-0000-7000-8000-000000000009"),
        station="line-1",
        group="oven",
        alarm="drift",
        epoch=3,
        sequence=12,
        state=AlarmStateName.SHELVED,
        event=AlarmEvent.SHELVE,
        active=True,
        priority=Priority.HIGH,
        text="call maintenance",
        at=AT,
        since=AT - timedelta(seconds=1),
        active_since=AT - timedelta(seconds=2),
        watches="risk",
        value=0.75,
        limit=0.5,
        top=(
            ChannelPart(
                channel="Volume Flow",
                unit="l/min",
                share=0.8,
                actual=None,
                expected=32.5,
                quality=ChannelQuality.STALE,
            ),
        ),
        history=(RiskPoint(at=AT - timedelta(seconds=60), risk=None), RiskPoint(at=AT, risk=0.75)),
        first_out=True,
        flood=True,
        shelved_until=AT + timedelta(hours=1),
        by="anna",
    )


def golden_risk() -> Risk:
    return Risk(
        station="line-1",
        group="oven",
        at=AT,
        state=ProcessStateName.ALARM,
        risk=0.75,
        top="pressure",
        bad={"Volume Flow": ChannelQuality.OUT_OF_RANGE},
    )


def test_an_alarm_on_the_wire_looks_like_this() -> None:
    sent = wire.outgoing_alarm(golden_alarm())
    assert sent.topic == "inspection/line-1/process/oven/alarm/drift"
    assert (sent.kind, sent.camera, sent.epoch, sent.sequence, sent.outcome) == ("alarm", None, 3, 12, None)
    assert json.loads(sent.payload) == {
        "schema_version": 1,
        "id": "0197a6b2-0000-7000-8000-000000000009",
        "station": "line-1",
        "group": "oven",
        "alarm": "drift",
        "epoch": 3,
        "sequence": 12,
        "state": "shelved",
        "event": "shelve",
        "active": True,
        "priority": "high",
        "text": "call maintenance",
        "at": "2026-01-01T00:00:00Z",
        "since": "2025-12-31T23:59:59Z",
        "active_since": "2025-12-31T23:59:58Z",
        "watches": "risk",
        "value": 0.75,
        "limit": 0.5,
        "top": [
            {
                "channel": "Volume Flow",
                "unit": "l/min",
                "share": 0.8,
                "actual": None,
                "expected": 32.5,
                "quality": "stale",
            }
        ],
        "history": [{"at": "2025-12-31T23:59:00Z", "risk": None}, {"at": "2026-01-01T00:00:00Z", "risk": 0.75}],
        "first_out": True,
        "chattering": False,
        "flood": True,
        "shelved_until": "2026-01-01T01:00:00Z",
        "by": "anna",
    }


def test_a_risk_on_the_wire_looks_like_this() -> None:
    assert json.loads(wire.encode(golden_risk())) == {
        "schema_version": 1,
        "station": "line-1",
        "group": "oven",
        "at": "2026-01-01T00:00:00Z",
        "state": "alarm",
        "risk": 0.75,
        "top": "pressure",
        "bad": {"Volume Flow": "out_of_range"},
    }


def test_every_field_makes_the_round_trip() -> None:
    for kind, original in ((Alarm, golden_alarm()), (Risk, golden_risk())):
        assert wire.decode(kind, wire.encode(original)) == original
