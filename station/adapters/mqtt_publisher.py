"""The Publisher port over MQTT 5: verdicts and gaps with QoS 1, retained states, last will."""

import logging
import math
import threading
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from station.adapters._mqtt_client import MqttClient, Will
from station.broker_settings import BrokerSettings
from station.messages import Incoming, Link, OutboxRow, Outgoing, Refusal
from station.ports import Clock
from station.wire import CONTENT_TYPE, HISTORICAL

logger = logging.getLogger(__name__)

FLUSH_S = 2.0
"""At the end the last messages have this long to be acknowledged."""


class MqttPublisher:
    """Sends rows and retained states to a broker, for as long as it is entered; the broker may be away at any time.

    `send`, `acknowledgements` and `link` belong to one thread; `retain` and `copy` may be called from any.

    Args:
        settings: credentials, TLS, keep-alive, supervision and back-off.
        host: the broker's name or address.
        port: the broker's TCP port.
        client_id: the session's name at the broker; two stations must not share one.
        password: the broker's password, already read.
        will_topic, will_payload: what the broker publishes, retained, when the station dies.
        clock: monotonic time.
        wake: called when an acknowledgement came or the connection changed, from the connection's thread.
        on_link: called on each change of the connection (up, down, login refused), once each, from that thread.
        held_back: asked before each attempt to connect; a reason not to connect now, in one line, or None.
        requests: topic filter of the commands to the station; None: it takes none.
        on_request: told of each of them, from the connection's thread; must not wait.
    """

    def __init__(
        self,
        settings: BrokerSettings,
        *,
        host: str,
        port: int,
        client_id: str,
        password: str | None,
        will_topic: str,
        will_payload: bytes,
        clock: Clock,
        wake: Callable[[], None],
        on_link: Callable[[Link], None],
        held_back: Callable[[], str | None] = lambda: None,
        requests: str | None = None,
        on_request: Callable[[Incoming], object] = lambda _: None,
    ) -> None:
        self._wake = wake
        self._tell = on_link
        self._retained: dict[str, tuple[bytes, Properties]] = {}
        self._newest: dict[str, tuple[int, int]] = {}
        self._too_large: set[str] = set()
        self._refused: set[str] = set()
        self._retaining = threading.Lock()
        self._rows: dict[int, int] = {}
        self._adopted = Link()
        self._live = _properties(historical=False)
        self._historical = _properties(historical=True)
        self._client = MqttClient(
            settings,
            host=host,
            port=port,
            client_id=client_id,
            password=password,
            will=Will(will_topic, will_payload),
            clock=clock,
            on_connected=self._republish,
            on_acknowledged=wake,
            on_link=self._changed,
            held_back=held_back,
            topics=() if requests is None else (requests,),
            on_message=on_request,
        )

    def __enter__(self) -> Self:
        """Begin to connect; does not wait for the broker.

        Raises:
            ConfigurationError: a certificate or key file cannot be used.
        """
        self._client.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        """Give the last messages a moment to be acknowledged and disconnect; the last will is then not sent."""
        self._client.stop(FLUSH_S)

    def send(self, row: OutboxRow, *, historical: bool) -> bool:
        """Hand one message to the network; False when the connection that `link` reported last is gone."""
        if not self._adopted.connected:
            return False
        token = self._client.publish(
            row.message.topic,
            row.message.payload,
            retain=row.message.kind == "alarm" and self._is_newest(row.message),
            properties=self._historical if historical else self._live,
            connection=self._adopted.connections,
        )
        if token is None:
            return False
        self._rows[token] = row.row
        return True

    def fits(self, message: Outgoing) -> bool:
        """Whether the broker takes a message of this size."""
        return self._client.fits(message.topic, message.payload)

    def _is_newest(self, message: Outgoing) -> bool:
        """Whether this is the newest message of a topic that shows where a thing stands, and note it as such.

        One that comes from the backlog behind newer ones must not take their place.
        """
        place = (message.epoch or 0, message.sequence or 0)
        with self._retaining:
            if place < self._newest.get(message.topic, (0, 0)):
                return False
            self._newest[message.topic] = place
            self._retained[message.topic] = message.payload, self._live
            return True

    def acknowledgements(self) -> Sequence[int]:
        """Rows that the broker acknowledged since the last call, on the connection that `link` reported last."""
        found = (self._rows.pop(token, None) for token in self._client.acknowledged())
        return [row for row in found if row is not None]

    def refusals(self) -> Sequence[Refusal]:
        """Rows that the broker refused since the last call; of a state that it refuses the log tells once."""
        found = []
        for token, reason in self._client.refused():
            row = self._rows.pop(token, None)
            if row is not None:
                found.append(Refusal(row, reason))
            elif reason not in self._refused:
                logger.error("the broker refuses a state or an answer: %s; see its access rules", reason)
                self._refused.add(reason)
        return found

    def link(self) -> Link:
        """Where the connection stands; `send` uses the connection that was reported last."""
        link = self._client.link
        if link.connections != self._adopted.connections:
            self._rows.clear()
        self._adopted = link
        return link

    def retain(self, topic: str, payload: bytes, expires_s: float | None = None) -> None:
        """Set a retained message: published now if there is a connection, and again after each reconnect."""
        properties = self._live
        if expires_s is not None:
            properties = _properties(historical=False)
            properties.MessageExpiryInterval = math.ceil(expires_s)
        with self._retaining:
            self._retained[topic] = payload, properties
            self._show(topic, payload, properties)

    def copy(self, topic: str, payload: bytes, correlation: bytes | None) -> None:
        """Send a message once, without a promise, with the correlation data of the one that it answers."""
        properties = _properties(historical=False)
        if correlation is not None:
            properties.CorrelationData = correlation
        if self._client.fits(topic, payload, correlation):
            self._client.publish_once(topic, payload, properties)

    def _republish(self) -> None:
        with self._retaining:
            for topic, (payload, properties) in self._retained.items():
                self._show(topic, payload, properties)
        self._wake()

    def _show(self, topic: str, payload: bytes, properties: Properties) -> None:
        if self._client.fits(topic, payload):
            self._client.publish(topic, payload, retain=True, properties=properties)
        elif topic not in self._too_large:
            logger.error("%s: %d bytes are more than the broker takes; it is not shown there", topic, len(payload))
            self._too_large.add(topic)

    def _changed(self, link: Link) -> None:
        self._tell(link)
        self._wake()


def _properties(*, historical: bool) -> Properties:
    properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
    properties.ContentType = CONTENT_TYPE
    properties.PayloadFormatIndicator = 1
    if historical:
        properties.UserProperty = [(HISTORICAL, "true")]
    return properties
