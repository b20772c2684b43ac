"""Messages to topics and bytes, and back. The only place that knows JSON.

Every payload is UTF-8 JSON with the schema's version inside. Topics are `inspection/<station>/…`; the names in them are
checked by the messages (no `/`, `+` or `#` can occur).
"""

import json
from collections.abc import Mapping
from typing import TypeVar

from pydantic import ValidationError

from station.alert_messages import Alert
from station.errors import ProtocolError
from station.messages import Gap, Message, Outgoing, Response, Verdict
from station.process_messages import Alarm

CONTENT_TYPE = "application/json"
HISTORICAL = "historical"
"""User property of a message that went through the historical lane; its value is `true`."""

KEY_CHARACTERS = 80
"""Of a key that a peer made up, this much is repeated."""

M = TypeVar("M", bound=Message)


def status_topic(station: str) -> str:
    """Retained: online, degraded, offline; also the last will."""
    return f"inspection/{station}/status"


def verdict_topic(station: str, camera: str) -> str:
    """Every verdict of one camera."""
    return f"inspection/{station}/camera/{camera}/verdict"


def camera_state_topic(station: str, camera: str) -> str:
    """Retained: running, stalled, …"""
    return f"inspection/{station}/camera/{camera}/state"


def health_topic(station: str) -> str:
    """Retained heartbeat."""
    return f"inspection/{station}/health"


def risk_topic(station: str, group: str) -> str:
    """A process group's risk, QoS 0."""
    return f"inspection/{station}/process/{group}/risk"


def alarm_topic(station: str, group: str, alarm: str) -> str:
    """Retained: where an alarm stands; each transition goes through the outbox."""
    return f"inspection/{station}/process/{group}/alarm/{alarm}"


def alert_topic(station: str) -> str:
    """What a person or a PLC must act on."""
    return f"inspection/{station}/alert"


def gap_topic(station: str) -> str:
    """Declared losses."""
    return f"inspection/{station}/gap"


def request_topic(station: str, verb: str) -> str:
    """Commands to the station."""
    return f"inspection/{station}/request/{verb}"


def response_topic(station: str, verb: str) -> str:
    """The answers to them."""
    return f"inspection/{station}/response/{verb}"


def encode(message: Message) -> bytes:
    """Return the message's JSON."""
    return message.model_dump_json().encode()


def decode(kind: type[M], payload: bytes) -> M:
    """Read a message from its JSON.

    Raises:
        ProtocolError: not JSON, or not a message of this kind.
    """
    try:
        return kind.model_validate_json(payload)
    except ValidationError as exc:
        first = exc.errors(include_url=False, include_context=False, include_input=False)[0]
        # An unknown key is the sender's own text: it must break neither the log nor the answer.
        where = ascii(".".join(str(part) for part in first["loc"]))[1:-1][:KEY_CHARACTERS] or "payload"
        raise ProtocolError(f"not a {kind.__name__}: {where}: {first['msg']}") from exc


def encode_request(transaction: str, request: Mapping[str, object]) -> bytes:
    """Return the JSON of a request that this machine makes itself."""
    return json.dumps({"transaction": transaction, **request}).encode()


def outgoing(verdict: Verdict) -> Outgoing:
    """Return a verdict ready for the journal and the broker."""
    return Outgoing(
        id=verdict.id,
        kind="verdict",
        topic=verdict_topic(verdict.station, verdict.camera),
        payload=encode(verdict),
        camera=verdict.camera,
        epoch=verdict.epoch,
        sequence=verdict.sequence,
        outcome=verdict.outcome,
    )


def outgoing_gap(gap: Gap) -> Outgoing:
    """Return a declared loss ready for the journal and the broker."""
    return Outgoing(id=gap.id, kind="gap", topic=gap_topic(gap.station), payload=encode(gap), camera=gap.camera)


def outgoing_response(response: Response) -> Outgoing:
    """Return the answer to a command ready for the journal and the broker."""
    topic = response_topic(response.station, response.verb)
    return Outgoing(id=response.id, kind="command", topic=topic, payload=encode(response))


def outgoing_alarm(alarm: Alarm) -> Outgoing:
    """Return a transition of an alarm ready for the journal and the broker."""
    return Outgoing(
        id=alarm.id,
        kind="alarm",
        topic=alarm_topic(alarm.station, alarm.group, alarm.alarm),
        payload=encode(alarm),
        epoch=alarm.epoch,
        sequence=alarm.sequence,
    )


def outgoing_alert(alert: Alert) -> Outgoing:
    """Return an alert ready for the journal and the broker."""
    return Outgoing(
        id=alert.id,
        kind="alert",
        topic=alert_topic(alert.station),
        payload=encode(alert),
        epoch=alert.epoch,
        sequence=alert.sequence,
    )


def not_durable(message: Outgoing) -> Outgoing:
    """Return a verdict that says of itself that it was not on disk when it was published; others stay as they are."""
    if message.kind != "verdict":
        return message
    return outgoing(decode(Verdict, message.payload).model_copy(update={"durable": False}))
