"""Topics and bytes."""

import json
from datetime import UTC, datetime
from uuid import UUID

import pytest
from delivery_helpers import verdict
from hypothesis import given
from hypothesis import strategies as st

from station import wire
from station.errors import ProtocolError
from station.messages import Gap, Latency, Outcome, Verdict


def golden_verdict() -> Verdict:
    return verdict(7, outcome=Outcome.NG).model_copy(update={"id": UUID("0197a6b2-0000-7000-8000-000000000007")})


def golden_gap() -> Gap:
    return Gap(
        id=UUID("0197a6b2-0000-7000-8000-000000000008"),
        station="line-1",
        camera="top",
        what="frames",
        count=None,
        began=datetime(2026, 1, 1, tzinfo=UTC),
        ended=datetime(2026, 1, 1, 0, 0, 5, tzinfo=UTC),
        epoch=3,
        first_sequence=12,
        last_sequence=None,
        why="station_down",
    )


def test_a_verdict_on_the_wire_looks_like_this() -> None:
    sent = wire.outgoing(golden_verdict())
    assert sent.topic == "inspection/line-1/camera/top/verdict"
    assert (sent.kind, sent.camera, sent.epoch, sent.sequence, sent.outcome) == ("verdict", "top", 1, 7, Outcome.NG)
    assert json.loads(sent.payload) == {
        "schema_version": 1,
        "id": "0197a6b2-0000-7000-8000-000000000007",
        "station": "line-1",
        "camera": "top",
        "epoch": 1,
        "sequence": 7,
        "part_id": None,
        "part_id_state": None,
        "outcome": "ng",
        "reasons": ["defect"],
        "defects": [
            {
                "label": "open",
                "score": 0.97,
                "box": {"x_px": 10.5, "y_px": 20.0, "width_px": 30.0, "height_px": 12.0},
                "area_mm2": None,
                "area_from": None,
            }
        ],
        "score": 0.97,
        "threshold": 0.5,
        "model": {"name": "boards", "version": "1", "sha256": "0" * 64},
        "captured_at": "2026-01-01T00:00:00.007000Z",
        "source": None,
        "first_line": None,
        "owned_rows": None,
        "lines_lost": 0,
        "latency_ms": {
            "queue": 0.1,
            "correction": 0.0,
            "quality": 0.4,
            "preprocess": 0.3,
            "inference": 7.2,
            "judge": 0.1,
            "part_id": 0.0,
            "total": 8.1,
        },
        "late": False,
        "durable": True,
        "evidence": None,
        "process": {},
        "override": [],
        "product": None,
        "changeover": None,
        "allowed": [],
        "unlisted": 0,
    }


def test_a_gap_on_the_wire_looks_like_this() -> None:
    sent = wire.outgoing_gap(golden_gap())
    assert (sent.topic, sent.kind, sent.camera, sent.sequence) == ("inspection/line-1/gap", "gap", "top", None)
    assert json.loads(sent.payload) == {
        "schema_version": 1,
        "id": "0197a6b2-0000-7000-8000-000000000008",
        "station": "line-1",
        "camera": "top",
        "what": "frames",
        "count": None,
        "began": "2026-01-01T00:00:00Z",
        "ended": "2026-01-01T00:00:05Z",
        "epoch": 3,
        "first_sequence": 12,
        "last_sequence": None,
        "why": "station_down",
    }


def test_every_field_makes_the_round_trip() -> None:
    for kind, original in ((Verdict, golden_verdict()), (Gap, golden_gap())):
        assert wire.decode(kind, wire.encode(original)) == original


def test_a_verdict_that_could_not_be_stored_says_so_and_stays_the_same_otherwise() -> None:
    before = wire.outgoing(golden_verdict())
    after = wire.not_durable(before)
    assert after.id == before.id
    assert wire.decode(Verdict, after.payload) == golden_verdict().model_copy(update={"durable": False})
    gap = wire.outgoing_gap(golden_gap())
    assert wire.not_durable(gap) is gap


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_bytes_that_are_no_message_are_refused_with_one_line(payload: bytes) -> None:
    with pytest.raises(ProtocolError, match=r"^not a Verdict: ") as refused:
        wire.decode(Verdict, payload)
    assert "\n" not in str(refused.value)


@given(st.recursive(st.none() | st.integers() | st.text(), lambda part: st.dictionaries(st.text(), part), max_leaves=5))
def test_json_that_is_no_message_is_refused(document: object) -> None:
    with pytest.raises(ProtocolError):
        wire.decode(Latency, json.dumps(document).encode())
