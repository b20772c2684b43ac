"""Part ids that others publish on an MQTT topic, as plain text or within JSON."""

import re
from collections.abc import Callable

from station.adapters._live_source import LiveSource
from station.adapters._mqtt_client import MqttClient
from station.broker_settings import BrokerSettings
from station.json_message import document_of, time_at_s, value_at
from station.messages import Incoming, Link
from station.part_id_messages import SeenId
from station.part_id_settings import MqttPartId
from station.part_id_text import read_id, shown
from station.ports import Clock


class MqttPartIds(LiveSource[SeenId]):
    """The ids of one camera's parts, from a topic.

    A message counts with the time that it tells, else with that of its arrival; a retained one that tells none may be
    of any age and is passed over.

    Args:
        camera: the camera's name.
        settings: its table `part_id`.
        clock: wall and monotonic time.
        broker: login, TLS, keep-alive and back-off.
        host, port: the broker.
        client_id: the session's name at the broker.
        password: the broker's password, already read.
        held_back: asked before each attempt to connect; a reason not to, in one line.
    """

    def __init__(
        self,
        camera: str,
        settings: MqttPartId,
        clock: Clock,
        broker: BrokerSettings,
        *,
        host: str,
        port: int,
        client_id: str,
        password: str | None,
        held_back: Callable[[], str | None] = lambda: None,
    ) -> None:
        super().__init__(camera, settings, clock, "part-ids")
        self._settings = settings
        self._pattern = re.compile(settings.pattern) if settings.pattern is not None else None
        self._refused: str | None = None
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
            on_refused=self._refuse,
            # Not when it is connected: what is published before the subscription stands does not come.
            on_subscribed=self._subscribed,
            qos=settings.qos,
            # What waited in the broker while we were away would come with the wrong time.
            keep_session=False,
            thread=f"part-ids-{camera}-mqtt",
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

    def _refuse(self, topic: str, reason: str) -> None:
        self._refused = f"the broker refuses {topic}: {reason}"

    def _subscribed(self) -> None:
        refused, self._refused = self._refused, None
        if refused is None:
            self._running()
        else:
            self._down(refused)

    def _take(self, message: Incoming) -> None:
        if message.retained and self._settings.time_path is None:
            return
        at_s = self.clock.monotonic_s()
        try:
            text = message.payload.decode("utf-8")
            document = document_of(text) if self._settings.path is not None else None
            if self._settings.time_path is not None:
                at_s -= self.clock.now().timestamp() - time_at_s(document, self._settings.time_path)
            seen = SeenId(read_id(self._written(text, document), self._pattern), at_s)
        except (LookupError, ValueError) as exc:
            seen = SeenId(None, at_s, str(exc))
        self._put(seen)

    def _written(self, text: str, document: object) -> str:
        """The id as it was written.

        Raises:
            LookupError: the message has another shape.
            ValueError: it is no text and no whole number.
        """
        if self._settings.path is None:
            return text
        value = value_at(document, self._settings.path)
        if isinstance(value, str):
            return value
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        raise ValueError(f"{self._settings.path} is {shown(str(value))}, neither text nor a whole number")
