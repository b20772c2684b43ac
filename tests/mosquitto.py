"""A real mosquitto on a free loopback port that tests may kill, stop and start again, and a client that listens."""

import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import paho.mqtt.client as mqtt
import pytest
from child_server import ChildServer
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from station.adapters.embedded_broker import free_port

BINARY = shutil.which("mosquitto", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")
PATIENCE_S = 30.0


def needs_mosquitto() -> str:
    """The path of the binary; skips the test where it is missing."""
    if BINARY is None:
        pytest.skip("mosquitto is not installed")
    return BINARY


def wait_for(condition: Callable[[], bool], patience_s: float = PATIENCE_S) -> None:
    """Wait until a condition holds that nobody announces."""
    pause = threading.Event()
    for _ in range(int(patience_s / 0.02)):
        if condition():
            return
        pause.wait(0.02)
    raise AssertionError(f"did not come true within {patience_s:g} s")


class Mosquitto(ChildServer):
    """The broker as a child process; started on entry, ended on exit. `lines` are added to its configuration."""

    def __init__(self, folder: Path, lines: str = "allow_anonymous true", *, running: bool = True) -> None:
        configuration = folder / "mosquitto.conf"
        self.port = free_port()
        configuration.write_text(
            f"listener {self.port} 127.0.0.1\n{lines}\nuser root\nlog_dest none\n"
            "connection_messages false\nmax_queued_messages 0\n",
            encoding="utf-8",
        )
        self._start_on_entry = running
        super().__init__([needs_mosquitto(), "-c", str(configuration)], stderr=subprocess.DEVNULL)

    def __enter__(self) -> Self:
        return super().__enter__() if self._start_on_entry else self

    def _wait_until_it_serves(self) -> None:
        wait_for(self._listens)

    def _listens(self) -> bool:
        assert self.process.poll() is None, "mosquitto ended at once"
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0


@dataclass(frozen=True, slots=True)
class Received:
    """One message as a subscriber sees it; `at_s` is the monotonic time of its arrival."""

    topic: str
    payload: bytes
    retained: bool
    historical: bool
    content_type: str | None
    at_s: float
    expires_s: int | None = None


class Listener:
    """An MQTT 5 subscriber that keeps what it receives, with a persistent session if it has a `client_id`."""

    def __init__(self, port: int, topic: str = "inspection/#", client_id: str = "") -> None:
        self._port = port
        self._topic = topic
        self._persistent = bool(client_id)
        self._changed = threading.Condition()
        self._received: list[Received] = []
        self._subscribed = False
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id=client_id, protocol=mqtt.MQTTv5)
        self._client.reconnect_delay_set(1, 1)
        self._client.on_connect = self._on_connect
        self._client.on_subscribe = self._on_subscribe
        self._client.on_message = self._on_message

    def __enter__(self) -> Self:
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.SessionExpiryInterval = 3600 if self._persistent else 0
        self._client.connect(
            "127.0.0.1", self._port, keepalive=60, clean_start=not self._persistent, properties=properties
        )
        self._client.loop_start()
        with self._changed:
            assert self._changed.wait_for(lambda: self._subscribed, PATIENCE_S)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    @property
    def received(self) -> list[Received]:
        with self._changed:
            return list(self._received)

    @property
    def count(self) -> int:
        return len(self._received)

    def publish(self, topic: str, payload: bytes) -> None:
        """Send a message of its own with QoS 1."""
        self._client.publish(topic, payload, qos=1)

    def after(self, count: int) -> list[Received]:
        """What was received after the first `count` messages."""
        with self._changed:
            return self._received[count:]

    def wait_until(self, condition: Callable[[list[Received]], bool], patience_s: float = PATIENCE_S) -> list[Received]:
        """Wait until the messages received so far meet a condition, and return them."""
        with self._changed:
            met = self._changed.wait_for(lambda: condition(self._received), patience_s)
            assert met, f"after {patience_s} s: {len(self._received)} messages"
            return list(self._received)

    def _on_connect(self, client: mqtt.Client, *_: Any) -> None:
        client.subscribe(self._topic, qos=1)

    def _on_subscribe(self, *_: Any) -> None:
        with self._changed:
            self._subscribed = True
            self._changed.notify_all()

    def _on_message(self, _client: mqtt.Client, _data: Any, message: mqtt.MQTTMessage) -> None:
        user = dict(getattr(message.properties, "UserProperty", []))
        received = Received(
            message.topic,
            bytes(message.payload),
            message.retain,
            user.get("historical") == "true",
            getattr(message.properties, "ContentType", None),
            time.monotonic(),
            getattr(message.properties, "MessageExpiryInterval", None),
        )
        with self._changed:
            self._received.append(received)
            self._changed.notify_all()
