"""Orders of the plant on an MQTT topic: messages that name a product or its number, as plain text or within JSON."""

from collections.abc import Callable

from station.adapters._live_source import LiveSource
from station.adapters._mqtt_client import MqttClient
from station.broker_settings import BrokerSettings
from station.changeover_settings import TopicOrders
from station.json_message import document_of, value_at
from station.messages import Incoming, Link, Ordered
from station.ports import Clock


class MqttOrders(LiveSource[Ordered]):
    """What a topic orders.

    Args:
        settings: the table `[changeover.mqtt]`.
        clock: wall and monotonic time.
        broker: login, TLS, keep-alive and back-off.
        host, port: the broker.
        client_id: the session's name at the broker.
        password: the broker's password, already read.
        held_back: asked before each attempt to connect; a reason not to, in one line.
    """

    def __init__(
        self,
        settings: TopicOrders,
        clock: Clock,
        broker: BrokerSettings,
        *,
        host: str,
        port: int,
        client_id: str,
        password: str | None,
        held_back: Callable[[], str | None] = lambda: None,
    ) -> None:
        super().__init__(settings.topic, settings, clock, "orders")
        self._settings = settings
        self._client = MqttClient(
            broker.model_copy(update={"reconnect_max_s": max(0.5, settings.reconnect_max_s)}),
            host=host,
            port=port,
            client_id=client_id,
            password=password,
            will=None,
            clock=clock,
            on_connected=lambda: None,
            on_acknowledged=lambda: None,
            on_link=self._link,
            held_back=held_back,
            topics=(settings.topic,),
            on_message=self._take,
            on_refused=lambda topic, reason: self._down(f"the broker refuses {topic}: {reason}"),
            on_subscribed=self._running,
            qos=settings.qos,
            # An order that waited in the broker while the station was off may be of any age.
            keep_session=False,
            thread="orders-mqtt",
        )

    def _serve(self) -> None:
        """The client's own thread connects and delivers; this one waits for the end.

        Raises:
            ConfigurationError: a certificate or key file cannot be used.
        """
        self._client.start()
        self._stopping.wait()
        self._client.stop(0.0)

    def _link(self, link: Link) -> None:
        if not link.connected:
            self._down(link.reason or "no connection to the broker")

    def _take(self, message: Incoming) -> None:
        if message.retained and not self._settings.accept_retained:
            return
        try:
            text = message.payload.decode("utf-8").strip()
            path = self._settings.path
            value = text if path is None else value_at(document_of(text), path)
            if not isinstance(value, (str, int)) or isinstance(value, bool):
                raise LookupError(f"{path} is neither text nor a whole number")
        except (LookupError, UnicodeDecodeError) as exc:
            self._put(Ordered(None, f"a message cannot be read: {exc}"))
        else:
            self._put(Ordered(str(value)))
