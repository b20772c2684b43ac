"""Part ids that others publish on an MQTT topic, as plain text or within JSON."""

import re

from station.adapters._live_source import LiveSource
from station.adapters._topic_listener import TopicListener
from station.broker_settings import BrokerAccess
from station.json_message import document_of, time_at_s, value_at
from station.messages import Incoming
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
        access: the broker.
    """

    def __init__(self, camera: str, settings: MqttPartId, clock: Clock, access: BrokerAccess) -> None:
        super().__init__(camera, settings, clock, "part-ids")
        self._settings = settings
        self._pattern = re.compile(settings.pattern) if settings.pattern is not None else None
        self._listener = TopicListener(
            access,
            (settings.topic,),
            qos=settings.qos,
            reconnect_max_s=settings.reconnect_max_s,
            clock=clock,
            thread=f"part-ids-{camera}-mqtt",
            on_message=self._take,
            running=self._running,
            down=self._down,
        )

    def _serve(self) -> None:
        self._listener.serve(self._stopping)

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
