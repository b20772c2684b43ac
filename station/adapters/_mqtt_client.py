"""A connection to an MQTT 5 broker that comes back by itself; shared by the adapters that speak MQTT.

One thread owns the connection. Each attempt gets a new paho client, so that nothing of a dead connection (queued
packets, packet identifiers, a half-read packet) can reach the next one. The thread supervises two kinds of progress,
not the client's word: a CONNACK within `CONNACK_WITHIN_S`, and, while messages are in flight, an acknowledgement within
`acknowledge_within_s`. A failure of either tears the connection down and begins anew, with pauses that double up to
`reconnect_max_s` and are jittered.

An exception in a paho callback ends paho's thread and silences it for ever; here every callback is guarded, and the
thread's own loop survives whatever the library raises.
"""

import logging
import random
import socket
import ssl
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ParamSpec

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from station.broker_settings import BrokerSettings, TlsSettings
from station.errors import ConfigurationError
from station.messages import Incoming, Link
from station.ports import Clock

logger = logging.getLogger(__name__)

CONNECT_WITHIN_S = 5.0
"""For the TCP connection and the TLS handshake."""
CONNACK_WITHIN_S = 5.0
"""For the broker's answer to CONNECT."""
SESSION_EXPIRY_S = 86_400
"""How long the broker should remember the session of a station that is away."""
MAXIMUM_PACKET_BYTES = 262_144
"""What the broker may send to the station in one packet (MQTT 5, section 3.1.2.11.4)."""
PACKET_OVERHEAD_BYTES = 128
"""What a packet holds besides topic and payload, at most: header, packet identifier and our properties."""
FIRST_PAUSE_S = 0.25
STEADY_AFTER_S = 10.0
"""A connection that lived this long, or acknowledged something, makes the next pause short again."""
LOOP_S = 0.25
TOKEN_BITS = 16
"""A token is the connection's number and the packet identifier (16 bits) in one integer."""
_REFUSALS = {133, 134, 135, 138, 140}
"""CONNACK reasons that time will not mend (MQTT 5, section 3.2.2.2): client identifier not valid, bad user name or
password, not authorized, banned, bad authentication method."""

P = ParamSpec("P")


@dataclass(frozen=True, slots=True)
class Will:
    """What the broker publishes, retained, when the station dies."""

    topic: str
    payload: bytes


class _Connection:
    """What is known of one connection; written by the thread that owns it, except `sent`."""

    def __init__(self, number: int, client: mqtt.Client, now_s: float) -> None:
        self.number = number
        self.client = client
        self.accepted = False
        self.session_present = False
        self.window = 65_535
        self.failure: str | None = None
        self.refused = False
        self.sent = 0
        self.acknowledged = 0
        self.progress_s = now_s
        self.began_s = now_s

    @property
    def outstanding(self) -> int:
        return self.sent - self.acknowledged


class MqttClient:
    """A supervised client; `start` never waits for the broker.

    Args:
        settings: credentials, TLS, keep-alive, supervision and back-off.
        host: the broker's name or address.
        port: the broker's TCP port.
        client_id: the session's name at the broker.
        password: the broker's password, already read.
        will: the last will; None: there is none.
        clock: monotonic time.
        on_connected: called in the connection's thread as soon as messages may be published.
        on_acknowledged: called in the connection's thread when an acknowledgement came.
        on_link: called in the connection's thread on each change: up, down, refused; once each, not at every attempt.
        held_back: asked before each attempt; a reason not to connect now, in one line.
        topics: topic filters to subscribe to.
        on_message: called in the connection's thread with each message that comes; must not wait.
        on_refused: told of a topic whose subscription the broker refuses, with the reason.
        on_subscribed: told when the broker has answered the subscription: from now on messages come.
        qos: quality of service of the subscriptions.
        keep_session: let the broker keep what comes for us, and what it has not acknowledged, while we are away.
        thread: the thread's name.
    """

    def __init__(
        self,
        settings: BrokerSettings,
        *,
        host: str,
        port: int,
        client_id: str,
        password: str | None,
        will: Will | None,
        clock: Clock,
        on_connected: Callable[[], None],
        on_acknowledged: Callable[[], None],
        on_link: Callable[[Link], None],
        held_back: Callable[[], str | None],
        topics: Sequence[str] = (),
        on_message: Callable[[Incoming], object] = lambda _: None,
        on_refused: Callable[[str, str], object] | None = None,
        on_subscribed: Callable[[], object] | None = None,
        qos: int = 1,
        keep_session: bool = True,
        thread: str = "mqtt",
    ) -> None:
        self._topics = tuple(dict.fromkeys(topics))
        self._on_message = on_message
        self._on_refused = on_refused or _log_refusal
        self._on_subscribed = on_subscribed
        self._qos = qos
        self._keep_session = keep_session
        self._settings = settings
        self._host = host
        self._port = port
        self._client_id = client_id
        self._password = password
        self._will = will
        self._clock = clock
        self._on_connected = on_connected
        self._on_acknowledged = on_acknowledged
        self._on_link = on_link
        self._held_back = held_back
        self._link = Link(reason="not connected yet")
        self._reported: tuple[bool, bool] | None = None
        self._connection: _Connection | None = None
        self._tokens: deque[int] = deque()
        self._refusals: deque[tuple[int, str]] = deque()
        self._sending = threading.Lock()
        self._stopping = threading.Event()
        self._flush_until_s = float("inf")
        self._tls: ssl.SSLContext | None = None
        self._thread = threading.Thread(target=self._run, name=thread, daemon=True)

    @property
    def link(self) -> Link:
        """Where the connection stands now."""
        return self._link

    def start(self) -> None:
        """Begin to connect, in the background.

        Raises:
            ConfigurationError: a certificate or key file cannot be used.
        """
        self._tls = tls_context(self._settings.tls) if self._settings.tls else None
        self._thread.start()

    def stop(self, flush_s: float) -> None:
        """Wait up to `flush_s` for outstanding acknowledgements, say goodbye to the broker and end the thread."""
        if not self._thread.is_alive():
            return
        self._flush_until_s = self._clock.monotonic_s() + flush_s
        self._stopping.set()
        self._thread.join()

    def fits(self, topic: str, payload: bytes, correlation: bytes | None = None) -> bool:
        """Whether the broker that accepted the newest connection takes a message of this size."""
        largest = self._link.largest_bytes
        size = len(topic.encode()) + len(payload) + len(correlation or b"") + PACKET_OVERHEAD_BYTES
        return largest is None or size <= largest

    def publish_once(self, topic: str, payload: bytes, properties: Properties) -> None:
        """Hand a message over with QoS 0: nobody acknowledges it, and nobody can refuse it."""
        current = self._connection
        if current is not None and current.accepted:
            with self._sending:
                # The library reports a message with QoS 0 as published when it is written.
                current.client.publish(topic, payload, qos=0, properties=properties)
                current.sent += 1

    def publish(
        self, topic: str, payload: bytes, *, retain: bool, properties: Properties, connection: int | None = None
    ) -> int | None:
        """Hand a message over with QoS 1.

        Args:
            topic: MQTT topic.
            payload: the message.
            retain: whether the broker keeps it for those who subscribe later.
            properties: PUBLISH properties.
            connection: send only if this is the present connection's number.

        Returns:
            A token that `acknowledged` gives back; None when there is no such connection.
        """
        current = self._connection
        if current is None or not current.accepted or (connection is not None and connection != current.number):
            return None
        with self._sending:
            if current.outstanding == 0:
                current.progress_s = self._clock.monotonic_s()
            info = current.client.publish(topic, payload, qos=1, retain=retain, properties=properties)
            if info.rc != mqtt.MQTT_ERR_SUCCESS:
                return None
            current.sent += 1
        return current.number << TOKEN_BITS | info.mid

    def acknowledged(self) -> Sequence[int]:
        """Tokens of messages that the broker acknowledged since the last call."""
        tokens = []
        while self._tokens:
            tokens.append(self._tokens.popleft())
        return tokens

    def refused(self) -> Sequence[tuple[int, str]]:
        """Tokens of messages that the broker refused since the last call, each with its reason."""
        refusals = []
        while self._refusals:
            refusals.append(self._refusals.popleft())
        return refusals

    def _run(self) -> None:
        pause_s = FIRST_PAUSE_S
        while not self._stopping.is_set():
            connection: _Connection | None = None
            failure = self._held_back()
            try:
                if failure is None:
                    connection = self._open()
                    self._connect(connection)
                    failure = self._attend(connection)
            except (OSError, ValueError) as exc:
                failure = _describe(exc)
                if connection is not None and isinstance(exc, ssl.SSLCertVerificationError):
                    connection.refused = True
            except Exception as exc:
                logger.debug("MQTT client", exc_info=True)
                failure = f"the MQTT client failed: {type(exc).__name__}: {exc}"
            if connection is not None:
                if self._was_good(connection):
                    pause_s = FIRST_PAUSE_S
                self._discard(connection)
            if self._stopping.is_set():
                break
            self._down(failure, refused=connection is not None and connection.refused)
            self._stopping.wait(pause_s * random.uniform(0.5, 1.0))
            pause_s = min(2 * pause_s, self._settings.reconnect_max_s)
        self._link = replace(self._link, connected=False, reason="stopped")

    def _open(self) -> _Connection:
        client = mqtt.Client(
            CallbackAPIVersion.VERSION2,
            client_id=self._client_id,
            protocol=mqtt.MQTTv5,
            reconnect_on_failure=False,
        )
        connection = _Connection(self._link.connections + 1, client, self._clock.monotonic_s())
        client.suppress_exceptions = True
        client.connect_timeout = CONNECT_WITHIN_S
        client.max_inflight_messages_set(65_535)
        if self._will is not None:
            client.will_set(self._will.topic, self._will.payload, qos=1, retain=True)
        if self._settings.username is not None:
            client.username_pw_set(self._settings.username, self._password)
        if self._tls is not None:
            client.tls_set_context(self._tls)
        client.on_socket_open = _guarded(_no_delay)
        # With a write callback set, paho leaves all writing to the thread that runs the loop; without one, two threads
        # that publish could each write a part of a packet.
        client.on_socket_register_write = _ignore
        client.on_connect = _guarded(lambda *arguments: self._connack(connection, arguments[2], *arguments[3:]))
        client.on_disconnect = _guarded(lambda *arguments: _disconnected(connection, arguments[2], arguments[3]))
        client.on_subscribe = _guarded(lambda *arguments: self._subscribed(arguments[3]))
        client.on_message = _guarded(lambda *arguments: self._received(arguments[2]))
        client.on_publish = _guarded(lambda *arguments: self._puback(connection, arguments[2], arguments[3]))
        return connection

    def _connect(self, connection: _Connection) -> None:
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.SessionExpiryInterval = SESSION_EXPIRY_S if self._keep_session else 0
        properties.MaximumPacketSize = MAXIMUM_PACKET_BYTES
        connection.client.connect(
            self._host,
            self._port,
            keepalive=self._settings.keepalive_s,
            clean_start=not self._keep_session,
            properties=properties,
        )

    def _attend(self, connection: _Connection) -> str:
        """Serve one connection until it ends; return why."""
        client = connection.client
        while True:
            code = client.loop(LOOP_S)
            now_s = self._clock.monotonic_s()
            if connection.failure is not None:
                return connection.failure
            if code != mqtt.MQTT_ERR_SUCCESS or client.socket() is None:
                return f"the connection was lost: {mqtt.error_string(code)}"
            if not connection.accepted:
                if now_s - connection.began_s > CONNACK_WITHIN_S + CONNECT_WITHIN_S:
                    return "the broker accepts connections but does not answer"
            elif connection.outstanding and now_s - connection.progress_s > self._settings.acknowledge_within_s:
                return (
                    f"the broker has acknowledged nothing for {self._settings.acknowledge_within_s:g} s "
                    f"with {connection.outstanding} messages in flight"
                )
            if self._stopping.is_set() and (
                not connection.accepted or not connection.outstanding or now_s > self._flush_until_s
            ):
                connection.accepted = False
                client.disconnect()
                client.loop(LOOP_S)
                return "stopped"

    def _was_good(self, connection: _Connection) -> bool:
        """Whether it makes sense to come back soon."""
        lived_s = self._clock.monotonic_s() - connection.began_s
        return connection.accepted and (connection.acknowledged > 0 or lived_s > STEADY_AFTER_S)

    def _discard(self, connection: _Connection) -> None:
        self._connection = None
        connection.accepted = False
        client = connection.client
        stream = client.socket()
        if stream is not None:
            stream.close()
        # Without callbacks the client is in no reference cycle: it closes its inner sockets as soon as it is dropped.
        client.on_connect = client.on_disconnect = client.on_publish = None
        client.on_subscribe = client.on_message = None

    def _connack(self, connection: _Connection, flags: mqtt.ConnectFlags, code: ReasonCode, properties: Any) -> None:
        if code.is_failure:
            connection.refused = code.value in _REFUSALS
            connection.failure = f"the broker refused the connection: {code.getName()}"
            return
        connection.session_present = flags.session_present
        connection.window = getattr(properties, "ReceiveMaximum", 65_535)
        connection.accepted = True
        connection.progress_s = self._clock.monotonic_s()
        self._connection = connection
        self._link = Link(
            connected=True,
            connections=connection.number,
            session_present=connection.session_present,
            window=connection.window,
            largest_bytes=getattr(properties, "MaximumPacketSize", None),
        )
        self._report()
        if self._topics:
            options = _subscription(self._qos)
            connection.client.subscribe([(topic, options) for topic in self._topics])
        self._on_connected()

    def _received(self, message: mqtt.MQTTMessage) -> None:
        self._on_message(_incoming(message))

    def _subscribed(self, codes: Sequence[ReasonCode]) -> None:
        for topic, code in zip(self._topics, codes, strict=True):
            if code.is_failure:
                self._on_refused(topic, code.getName())
        if self._on_subscribed is not None:
            self._on_subscribed()

    def _puback(self, connection: _Connection, identifier: int, code: ReasonCode) -> None:
        connection.acknowledged += 1
        connection.progress_s = self._clock.monotonic_s()
        token = connection.number << TOKEN_BITS | identifier
        if code.is_failure:
            self._refusals.append((token, code.getName()))
        else:
            self._tokens.append(token)
        self._on_acknowledged()

    def _down(self, reason: str, *, refused: bool) -> None:
        where = f"{self._host}:{self._port}"
        self._link = replace(self._link, connected=False, reason=f"broker {where}: {reason}", refused=refused)
        self._report()

    def _report(self) -> None:
        state = (self._link.connected, self._link.refused)
        if state != self._reported:
            self._reported = state
            _guarded(self._on_link)(self._link)


class _TlsSocket(ssl.SSLSocket):
    """Closes itself when the handshake fails, which paho does not."""

    def do_handshake(self, block: bool = False) -> None:
        try:
            super().do_handshake(block)
        except OSError:
            self.close()
            raise


def _guarded(callback: Callable[P, None]) -> Callable[P, None]:
    """Wrap a callback so that nothing it raises reaches the library."""

    def call(*arguments: P.args, **named: P.kwargs) -> None:
        try:
            callback(*arguments, **named)
        except Exception:
            logger.exception("a callback of the MQTT client failed")

    return call


def _ignore(*_: object) -> None:
    return None


def _no_delay(_client: mqtt.Client, _data: object, stream: Any) -> None:
    """Send small packets at once: with Nagle's algorithm a verdict may wait for the acknowledgement of the last one."""
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _disconnected(connection: _Connection, flags: mqtt.DisconnectFlags, code: ReasonCode) -> None:
    if connection.failure is None and flags.is_disconnect_packet_from_server:
        connection.failure = f"the broker closed the connection: {code.getName()}"


def _subscription(qos: int) -> SubscribeOptions:
    """Retained messages come once, with the first subscription, and are marked however they come."""
    return SubscribeOptions(qos=qos, retainAsPublished=True, retainHandling=SubscribeOptions.RETAIN_SEND_IF_NEW_SUB)


def _log_refusal(topic: str, reason: str) -> None:
    logger.error("broker: refused the subscription to %s: %s; see its access rules", topic, reason)


def _incoming(message: mqtt.MQTTMessage) -> Incoming:
    properties = message.properties
    return Incoming(
        topic=message.topic,
        payload=bytes(message.payload),
        retained=message.retain,
        answer_to=getattr(properties, "ResponseTopic", None),
        correlation=getattr(properties, "CorrelationData", None),
    )


def _describe(exc: Exception) -> str:
    if isinstance(exc, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {exc.verify_message}; set broker.tls.ca_file"
    if isinstance(exc, OSError) and exc.strerror:
        return exc.strerror
    return str(exc) or type(exc).__name__


def tls_context(tls: TlsSettings) -> ssl.SSLContext:
    """Return the context for an encrypted connection.

    Raises:
        ConfigurationError: a certificate or key file cannot be used.
    """
    try:
        context = ssl.create_default_context(cafile=str(tls.ca_file) if tls.ca_file else None)
    except OSError as exc:
        raise ConfigurationError(f"broker.tls.ca_file = {str(tls.ca_file)!r}: {_describe(exc)}") from exc
    context.sslsocket_class = _TlsSocket
    if tls.certificate_file is not None:
        try:
            context.load_cert_chain(str(tls.certificate_file), str(tls.key_file))
        except OSError as exc:
            raise ConfigurationError(
                f"broker.tls.certificate_file = {str(tls.certificate_file)!r}, key_file = {str(tls.key_file)!r}: "
                f"{_describe(exc)}"
            ) from exc
    return context
