"""Readings that others publish on MQTT topics, as plain numbers or within JSON."""

import math

from station.adapters._sensor_source import SensorSource
from station.adapters._topic_listener import TopicListener
from station.broker_settings import BrokerAccess
from station.json_message import document_of, time_at_s, value_at
from station.json_path import number
from station.messages import Incoming
from station.ports import Clock
from station.process_messages import ChannelQuality
from station.sensor_settings import MqttSensors

_ABSENT, _GOOD = ChannelQuality.ABSENT, ChannelQuality.GOOD


class MqttSource(SensorSource):
    """The points of one `[sensors.<name>]` table with kind `mqtt`.

    A message makes a row of the points that read its topic, one for each time that it tells; the other points are
    absent from it. What a message does not hold makes its point bad until a better one comes.

    Args:
        name: the source's name.
        settings: its table.
        clock: wall and monotonic time.
        access: the broker.
    """

    def __init__(self, name: str, settings: MqttSensors, clock: Clock, access: BrokerAccess) -> None:
        super().__init__(name, settings, tuple(settings.points), clock)
        self._settings = settings
        self._of_topic: dict[str, list[str]] = {}
        for point, table in settings.points.items():
            self._of_topic.setdefault(table.topic, []).append(point)
        self._listener = TopicListener(
            access,
            tuple(self._of_topic),
            qos=settings.qos,
            reconnect_max_s=settings.reconnect_max_s,
            clock=clock,
            thread=f"sensors-{name}-mqtt",
            on_message=self._take,
            running=self._running,
            down=self._down,
            # One topic's points are bad; the others are read.
            on_refused=self._refused,
        )

    def _serve(self) -> None:
        self._listener.serve(self._stopping)

    def _refused(self, topic: str, reason: str) -> None:
        self._row(dict.fromkeys(self._of_topic[topic], reason), {}, None)

    def _take(self, message: Incoming) -> None:
        points = self._of_topic.get(message.topic)
        if points is None:
            return
        text = message.payload.decode("utf-8", "replace").strip()
        document, not_json = (
            _parsed(text) if any(self._settings.points[point].path for point in points) else (None, None)
        )
        rows: dict[float | None, dict[str, float]] = {}
        bad: dict[str, str] = {}
        for point in points:
            table = self._settings.points[point]
            try:
                if table.path is None:
                    value = _plain(text)
                elif not_json is not None:
                    raise LookupError(not_json)
                else:
                    value = _value(document, table.path)
                at_s = None if table.time_path is None else time_at_s(document, table.time_path)
            except LookupError as exc:
                bad[point] = str(exc)
                continue
            if message.retained and at_s is None and not self._settings.accept_retained:
                # Nobody knows how old it is.
                continue
            rows.setdefault(at_s, {})[point] = value
        for at_s, values in rows.items():
            self._row({}, values, at_s)
        if bad:
            self._row(bad, {}, None)

    def _row(self, bad: dict[str, str], values: dict[str, float], at_s: float | None) -> None:
        qualities = [
            ChannelQuality.NOT_A_NUMBER if point in bad else _GOOD if point in values else _ABSENT
            for point in self.points
        ]
        complete = all(quality is _GOOD for quality in qualities)
        self._deliver(
            [values.get(point, math.nan) for point in self.points], None if complete else qualities, bad, at_s=at_s
        )


def _parsed(text: str) -> tuple[object, str | None]:
    """The document, or why there is none."""
    try:
        return document_of(text), None
    except LookupError as exc:
        return None, str(exc)


def _plain(text: str) -> float:
    try:
        if "_" in text:
            raise ValueError
        value = float(text)
    except ValueError:
        raise LookupError(f"the message is not a number: {text[:40]!r}") from None
    if not math.isfinite(value):
        raise LookupError(f"the message is {text[:40]}")
    return value


def _value(document: object, path: str) -> float:
    found = value_at(document, path)
    try:
        value = number(found)
    except LookupError as exc:
        raise LookupError(f"{path}: {exc}") from None
    if not math.isfinite(value):
        raise LookupError(f"{path} is {value}")
    return value
