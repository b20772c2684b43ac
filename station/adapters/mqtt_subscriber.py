"""A client that listens: what a dashboard, a PLC gateway or `station watch` is to the station."""

import queue
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.reasoncodes import ReasonCode

from station.adapters._mqtt_client import tls_context
from station.broker_settings import TlsSettings
from station.errors import LoginRefused, ProtocolError
from station.wire import HISTORICAL

CONNECT_WITHIN_S = 5.0
_REFUSALS = frozenset({0x86, 0x87, 0x8C})
"""MQTT 5 reason codes: bad user name or password, not authorized, bad authentication method."""


@dataclass(frozen=True, slots=True)
class Received:
    """One message.

    Attributes:
        topic: where it was published.
        payload: its bytes.
        at_s: wall time of its arrival, seconds since 1970.
        historical: it went through the station's historical lane.
        retained: it is a retained message from before the subscription.
    """

    topic: str
    payload: bytes
    at_s: float
    historical: bool
    retained: bool


class Subscriber:
    """Subscribes to one topic filter with QoS 1 for as long as it is entered; reconnects by itself.

    Args:
        host, port: the broker.
        topics: topic filter.
        username, password: where the broker asks for them.
        tls: encrypt the connection; None: plain TCP.
    """

    def __init__(
        self,
        host: str,
        port: int,
        topics: str,
        *,
        username: str | None = None,
        password: str | None = None,
        tls: TlsSettings | None = None,
    ) -> None:
        self._where = f"broker {host}:{port}"
        self._host = host
        self._port = port
        self._topics = topics
        self._messages: queue.SimpleQueue[Received] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[ReasonCode] = queue.SimpleQueue()
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
        self._client.username_pw_set(username, password)
        if tls is not None:
            self._client.tls_set_context(tls_context(tls))
        self._client.on_connect = self._connected
        self._client.on_subscribe = self._subscribed
        self._client.on_message = self._received

    def __enter__(self) -> Self:
        """Connect and wait until the subscription stands.

        Raises:
            LoginRefused: the broker refused the credentials.
            ProtocolError: the broker cannot be reached or refused the subscription.
        """
        try:
            self._client.connect(self._host, self._port)
        except (OSError, ValueError) as exc:
            raise ProtocolError(f"{self._where}: {exc}") from exc
        self._client.loop_start()
        try:
            code = self._answers.get(timeout=CONNECT_WITHIN_S)
        except queue.Empty:
            self._stop()
            raise ProtocolError(f"{self._where}: did not answer within {CONNECT_WITHIN_S:g} s") from None
        if code.is_failure:
            self._stop()
            error = LoginRefused if code.value in _REFUSALS else ProtocolError
            raise error(f"{self._where}: refused: {code.getName()}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        self._stop()

    def receive(self, timeout_s: float) -> Received | None:
        """Return the next message; None when none came within `timeout_s`."""
        try:
            return self._messages.get(timeout=timeout_s)
        except queue.Empty:
            return None

    def _stop(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    # Called in the client's thread; nothing in them can raise, which would end that thread.

    def _connected(self, client: mqtt.Client, _data: Any, _flags: Any, code: ReasonCode, _properties: Any) -> None:
        if code.is_failure:
            self._answers.put(code)
        else:
            client.subscribe(self._topics, qos=1)

    def _subscribed(self, _client: mqtt.Client, _data: Any, _id: int, codes: list[ReasonCode], _more: Any) -> None:
        self._answers.put(codes[0])

    def _received(self, _client: mqtt.Client, _data: Any, message: mqtt.MQTTMessage) -> None:
        properties = getattr(message.properties, "UserProperty", ())
        self._messages.put(
            Received(
                topic=message.topic,
                payload=bytes(message.payload),
                at_s=time.time(),
                historical=(HISTORICAL, "true") in properties,
                retained=message.retain,
            )
        )
