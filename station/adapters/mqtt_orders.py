"""Orders of the plant on an MQTT topic: messages that name a product or its number, as plain text or within JSON."""

from station.adapters._live_source import LiveSource
from station.adapters._topic_listener import TopicListener
from station.broker_settings import BrokerAccess
from station.changeover_settings import TopicOrders
from station.json_message import document_of, value_at
from station.messages import Incoming, Ordered
from station.ports import Clock


class MqttOrders(LiveSource[Ordered]):
    """What a topic orders.

    Args:
        settings: the table `[changeover.mqtt]`.
        clock: wall and monotonic time.
        access: the broker.
    """

    def __init__(self, settings: TopicOrders, clock: Clock, access: BrokerAccess) -> None:
        super().__init__(settings.topic, settings, clock, "orders")
        self._settings = settings
        self._listener = TopicListener(
            access,
            (settings.topic,),
            qos=settings.qos,
            reconnect_max_s=settings.reconnect_max_s,
            clock=clock,
            thread="orders-mqtt",
            on_message=self._take,
            running=self._running,
            down=self._down,
        )

    def _serve(self) -> None:
        self._listener.serve(self._stopping)

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
