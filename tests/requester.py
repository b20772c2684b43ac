"""A client that commands a station, as a PLC gateway or a person with mosquitto_pub does."""

import itertools
import json
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import paho.mqtt.client as mqtt
from mosquitto import PATIENCE_S, Listener, Received
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from station.messages import Response, Status, StatusName
from station.wire import decode, status_topic


def _is_there(received: Received) -> bool:
    return decode(Status, received.payload).status is not StatusName.OFFLINE


@dataclass(frozen=True)
class Sent:
    """A request on its way."""

    verb: str
    transaction: str


class Requester:
    """Publishes requests and waits for their answers."""

    def __init__(self, port: int, station: str = "s") -> None:
        self._station = station
        self._port = port
        self._numbers = itertools.count(1)
        self._listener = Listener(port, f"inspection/{station}/response/#")
        self._statuses = Listener(port, status_topic(station))
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)

    def __enter__(self) -> Self:
        self._listener.__enter__()
        self._statuses.__enter__()
        self._client.connect("127.0.0.1", self._port)
        self._client.loop_start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.disconnect()
        self._client.loop_stop()
        self._statuses.__exit__(None, None, None)
        self._listener.__exit__(None, None, None)

    @property
    def answers(self) -> list[Response]:
        """Every answer so far."""
        return [decode(Response, one.payload) for one in self._listener.received]

    def send(self, verb: str, transaction: str | None = None, **request: Any) -> Sent:
        """Publish a request."""
        sent = Sent(verb, transaction or f"t-{next(self._numbers)}")
        self.send_bytes(verb, json.dumps({"transaction": sent.transaction, **request}).encode())
        return sent

    def send_bytes(self, verb: str, payload: bytes, *, retain: bool = False, answer_to: str | None = None) -> None:
        """Publish whatever a stranger might."""
        properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        if answer_to is not None:
            properties.ResponseTopic = answer_to
            properties.CorrelationData = b"\x00number 7"
        topic = f"inspection/{self._station}/request/{verb}"
        self._client.publish(topic, payload, qos=1, retain=retain, properties=properties).wait_for_publish(PATIENCE_S)

    def answer(self, sent: Sent) -> Response:
        """Wait for the answer to a request."""

        def of(received: list[Received]) -> list[Response]:
            found = [decode(Response, one.payload) for one in received if one.topic.endswith(f"/{sent.verb}")]
            return [one for one in found if one.transaction == sent.transaction]

        return of(self._listener.wait_until(lambda received: bool(of(received))))[0]

    def ask(self, verb: str, **request: Any) -> Response:
        """Wait until the station is there, publish a request and wait for its answer.

        A station subscribes to its requests before it says that it is there; what is sent earlier no one hears.
        """
        self._statuses.wait_until(lambda received: bool(received) and _is_there(received[-1]))
        return self.answer(self.send(verb, **request))
