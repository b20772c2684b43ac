"""Readings over MQTT against mosquitto."""

import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mosquitto import Mosquitto, wait_for
from paho.mqtt.enums import CallbackAPIVersion
from pydantic import ValidationError
from sensor_helpers import CLOCK, Heard, listen, next_row, until_state

from station.adapters.embedded_broker import free_port
from station.adapters.mqtt_sensors import MqttSource
from station.broker_settings import BrokerAccess, BrokerSettings
from station.json_path import find, number, parse_json_path, written
from station.messages import SourceStateName
from station.process_messages import ChannelQuality
from station.sensor_log import instant_s
from station.sensor_settings import MqttSensors

RUNNING, DOWN = SourceStateName.RUNNING, SourceStateName.DOWN
BACK_WITHIN_S = 8.0
"""The longest pause of these tests is 0.5 s; a broker that hangs shows after its keep-alive of 5 s at the soonest."""
POINTS: dict[str, dict[str, Any]] = {
    "plain": {"topic": "plant/plain"},
    "temperature": {"topic": "plant/oven", "path": "oven.temperature"},
    "second": {"topic": "plant/oven", "path": 'values[1]["a.b"]'},
    "timed": {"topic": "plant/timed", "path": "v", "time_path": "at"},
}


def settings(**keys: Any) -> MqttSensors:
    return MqttSensors.model_validate({"kind": "mqtt", "points": POINTS, "reconnect_max_s": 0.5, **keys})


@contextmanager
def source_of(port: int, **keys: Any) -> Iterator[MqttSource]:
    access = BrokerAccess(BrokerSettings(port=port, keepalive_s=5), "127.0.0.1", port, "test-oven")
    with MqttSource("oven", settings(**keys), CLOCK, access) as source:
        yield source


class Device:
    """Publishes what a test tells it to; connects anew for each message."""

    def __init__(self, port: int) -> None:
        self._port = port

    def say(self, topic: str, payload: Any, *, retain: bool = False) -> None:
        text = payload if isinstance(payload, (str, bytes)) else json.dumps(payload)
        client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
        client.connect("127.0.0.1", self._port)
        client.loop_start()
        client.publish(topic, text, qos=1, retain=retain).wait_for_publish(10)
        client.disconnect()
        client.loop_stop()


# Paths


STEPS = st.lists(st.one_of(st.text(min_size=0, max_size=8), st.integers(0, 999_999_999)), min_size=1, max_size=6)


@given(STEPS)
def test_each_path_can_be_written_and_read(steps: list[str | int]) -> None:
    assert parse_json_path(written(tuple(steps))) == tuple(steps)


@given(st.text(max_size=30))
def test_whatever_is_written_it_is_a_path_or_an_error(text: str) -> None:
    try:
        path = parse_json_path(text)
    except ValueError:
        return
    assert parse_json_path(written(path)) == path


@given(STEPS, st.floats(allow_nan=False))
def test_a_path_finds_what_stands_there(steps: list[str | int], value: float) -> None:
    document: Any = value
    for step in reversed(steps):
        document = {step: document} if isinstance(step, str) else [None] * min(step, 20) + [document]
    path = tuple(min(step, 20) if isinstance(step, int) else step for step in steps)
    assert number(find(document, path)) == value
    with pytest.raises(LookupError):
        find(document, (*path, "further"))


@pytest.mark.parametrize(
    "path", ["", ".a", "a.", "a..b", "a[", "a[-1]", "a[01]", "a[b]", 'a["b]', "a b", "a.[0]", "[0]a"]
)
def test_what_is_no_path_is_refused_with_the_place(path: str) -> None:
    with pytest.raises(ValidationError, match=r"is no JSON path from character|is empty; write it as"):
        settings(points={"a": {"topic": "t", "path": path}})


@pytest.mark.parametrize("topic", ["", "a/+/b", "a/#"])
def test_a_topic_with_wildcards_is_refused(topic: str) -> None:
    with pytest.raises(ValidationError, match="one MQTT topic without the wildcards"):
        settings(points={"a": {"topic": topic}})


def test_times_are_taken_in_many_forms() -> None:
    at_s = 1_769_860_800.0
    for stamp in (at_s, at_s * 1e3, at_s * 1e6, "2026-01-31T12:00:00Z", "2026-01-31 13:00:00+01:00", "1769860800"):
        assert instant_s(stamp) == pytest.approx(at_s, abs=1e-5)
    for wrong in ("", "soon", math.nan, math.inf, "99999-01-01"):
        assert instant_s(wrong) is None


# Messages


def test_numbers_and_json_are_read_and_what_has_another_shape_is_bad_with_its_reason(tmp_path: Path) -> None:
    with Mosquitto(tmp_path) as broker, source_of(broker.port) as source:
        device, heard = Device(broker.port), Heard()
        until_state(source, RUNNING, heard)
        device.say("plant/plain", " 21.5\n")
        row = next_row(source, heard)
        assert row.values[0] == 21.5
        assert row.qualities == (ChannelQuality.GOOD, *[ChannelQuality.ABSENT] * 3)
        device.say("plant/oven", {"oven": {"temperature": 80}, "values": [0, {"a.b": True}]})
        assert next_row(source, heard).values[1:3] == (80.0, 1.0)
        device.say("plant/timed", {"v": 5, "at": "2026-01-31T12:00:00Z"})
        assert next_row(source, heard).at_s == 1_769_860_800.0
        for topic, payload, point, reason in [
            ("plant/plain", "hot", "plain", "the message is not a number: 'hot'"),
            ("plant/plain", b"\xff\xfe", "plain", "the message is not a number"),
            ("plant/plain", "nan", "plain", "the message is nan"),
            ("plant/oven", "{", "temperature", "the message is not JSON: '{'"),
            ("plant/oven", "[" * 100_000, "temperature", "the message is not JSON"),
            ("plant/oven", {"oven": 5}, "temperature", "oven.temperature: oven is a number, not an object"),
            ("plant/oven", {"oven": {}}, "temperature", "oven.temperature: oven has no key 'temperature'"),
            ("plant/oven", {"oven": {"temperature": "80"}}, "temperature", "is the text '80', not a number"),
            ("plant/oven", '{"oven": {"temperature": NaN}}', "temperature", "oven.temperature is nan"),
            ("plant/timed", {"v": 5, "at": "noon"}, "timed", "at is 'noon', which is no time"),
            ("plant/timed", {"v": 5}, "timed", "at: the message has no key 'at'"),
        ]:
            device.say(topic, payload)
            listen(source, lambda so_far, at=point, why=reason: why in so_far.last.reasons.get(at, ""), heard=heard)  # type: ignore[misc]
            assert heard.quality(point) is ChannelQuality.NOT_A_NUMBER
            assert math.isnan(heard.value(point))


def test_a_retained_message_counts_with_its_own_time_or_not_at_all(tmp_path: Path) -> None:
    with Mosquitto(tmp_path) as broker:
        device = Device(broker.port)
        device.say("plant/plain", "1", retain=True)
        device.say("plant/timed", {"v": 5, "at": 1_769_860_800}, retain=True)
        with source_of(broker.port) as source:
            heard = Heard()
            row = next_row(source, heard)
            assert (row.values[3], row.at_s) == (5.0, 1_769_860_800.0)
            device.say("plant/plain", "2")
            assert next_row(source, heard).values[0] == 2.0
        with source_of(broker.port, accept_retained=True) as source:
            listen(source, lambda so_far: any(one.values[0] == 1.0 for one in so_far.rows))


def test_a_broker_that_dies_or_hangs_is_down_with_its_reason_and_comes_back(tmp_path: Path) -> None:
    with Mosquitto(tmp_path) as broker, source_of(broker.port) as source:
        heard = Heard()
        until_state(source, RUNNING, heard)
        broker.kill()
        assert f"broker 127.0.0.1:{broker.port}" in (until_state(source, DOWN, heard).reason or "")
        broker.start()
        until_state(source, RUNNING, heard, within_s=BACK_WITHIN_S)
        Device(broker.port).say("plant/plain", "3")
        assert next_row(source, heard).values[0] == 3.0
        broker.stop()
        assert until_state(source, DOWN, heard, within_s=2 * BACK_WITHIN_S).reason
        broker.go_on()
        until_state(source, RUNNING, heard, within_s=2 * BACK_WITHIN_S)
        Device(broker.port).say("plant/plain", "4")
        assert next_row(source, heard).values[0] == 4.0


def test_silence_is_told_once_and_ends_with_the_next_message(tmp_path: Path) -> None:
    with Mosquitto(tmp_path) as broker, source_of(broker.port, silence_s=0.5) as source:
        heard = Heard()
        until_state(source, RUNNING, heard)
        assert until_state(source, DOWN, heard).reason == "nothing came for 0.5 s"
        assert source.read(1.0) is None
        Device(broker.port).say("plant/plain", "1")
        until_state(source, RUNNING, heard)
        assert next_row(source, heard).values[0] == 1.0


def test_a_topic_that_may_not_be_read_makes_its_points_bad(tmp_path: Path) -> None:
    rules = tmp_path / "rules"
    rules.write_text("topic readwrite plant/plain\n", encoding="utf-8")
    with Mosquitto(tmp_path, f"allow_anonymous true\nacl_file {rules}") as broker, source_of(broker.port) as source:
        heard = Heard()
        until_state(source, RUNNING, heard)
        Device(broker.port).say("plant/plain", "1")
        listen(source, lambda so_far: any(row.values[0] == 1.0 for row in so_far.rows), heard=heard)


def test_without_a_broker_it_says_so_once_and_leaves_at_once() -> None:
    with source_of(free_port()) as source:
        heard = Heard()
        assert "Connection refused" in (until_state(source, DOWN, heard).reason or "")
        assert source.read(1.0) is None
        began_s = time.monotonic()
    assert time.monotonic() - began_s < 3
    wait_for(lambda: heard.states == [DOWN])
