"""Variables of an OPC UA server, by subscription.

The server reports changes; besides, all points are read every `refresh_s`. That keeps an unchanged value fresh, takes
up what a subscription may have lost, and shows a connection that is dead in one direction. Each connection gets a
session and a subscription of its own: after a restart of the server nothing of the old ones is left. A subscription
that gives no sign of life within three of its keep-alives ends the connection, too.

The status of a value is its quality (OPC UA Part 4, 7.39: bits 31 and 30 are the severity), and its source timestamp
its time. The event loop runs in the source's own thread and ends with each connection.
"""

import asyncio
import contextlib
import logging
import math
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime

from asyncua import ua
from asyncua.client.client import Client
from asyncua.common.node import Node
from asyncua.common.subscription import DataChangeEvent, StatusChangeEvent, Subscription
from asyncua.crypto import security_policies
from asyncua.crypto.uacrypto import CertProperties
from asyncua.ua.attribute_ids import AttributeIds
from asyncua.ua.uaerrors import UaError, UaStatusCodeError
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

from station.adapters._live_source import next_due
from station.adapters._sensor_source import SensorSource
from station.errors import SensorError
from station.ports import Clock
from station.process_messages import ChannelQuality
from station.sensor_settings import OpcUaSensors

# The library logs each step of each attempt; what concerns the user is told once, by us.
logging.getLogger("asyncua").setLevel(logging.CRITICAL)

APPLICATION_URI = "urn:inspection-station"
GOODBYE_S = 0.4
KEEPALIVE_S = 5.0
"""A subscription without changes gives a sign of life about this often."""
KEEPALIVES_MISSED = 3.0
_BAD = 2
_UNCERTAIN = 1

Found = tuple[float, ChannelQuality, str | None]
"""A point's value, its quality, and why it is bad."""


class OpcUaSource(SensorSource):
    """The points of one `[sensors.<name>]` table with kind `opcua`.

    Args:
        name: the source's name.
        settings: its table.
        clock: wall and monotonic time.
        password: for `settings.username`, already read.
    """

    def __init__(self, name: str, settings: OpcUaSensors, clock: Clock, password: str | None = None) -> None:
        super().__init__(name, settings, tuple(settings.points), clock)
        self._settings = settings
        self._password = password
        self._loop: asyncio.AbstractEventLoop | None = None

    def _serve(self) -> None:
        try:
            asyncio.run(self._session())
        except asyncio.CancelledError:
            # `_interrupt` does this when the source is left.
            return
        except TimeoutError as exc:
            raise self._away(f"no answer within {self._settings.timeout_s:g} s") from exc
        except UaStatusCodeError as exc:
            raise self._away(f"the server answers {_name(exc.code)}") from exc
        except OSError as exc:
            raise self._away(exc.strerror or str(exc) or "the connection was lost") from exc
        except (UaError, ValueError) as exc:
            raise self._away(str(exc) or type(exc).__name__) from exc

    def _interrupt(self) -> None:
        loop = self._loop
        if loop is not None:
            # The loop may have ended by itself meanwhile.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(_cancel_all, loop)

    def _away(self, reason: str) -> SensorError:
        return SensorError(f"OPC UA {self._settings.server_url}: {reason}")

    async def _session(self) -> None:
        """One connection, from its beginning to its end."""
        self._loop = asyncio.get_running_loop()
        if self._stopping.is_set():
            return
        client = Client(self._settings.server_url, timeout=self._settings.timeout_s)
        client.name = client.description = "inspection station"
        client.application_uri = APPLICATION_URI
        try:
            await self._connect(client)
            await self._attend(client)
        except asyncio.CancelledError:
            with contextlib.suppress(Exception):
                await asyncio.wait_for(client.disconnect(), GOODBYE_S)
            raise
        finally:
            protocol = client.uaclient.protocol
            transport = None if protocol is None else protocol.transport
            client.disconnect_socket()
            if transport is not None:
                # A server that hangs takes no farewell.
                transport.abort()
            # The loop closes the socket in its next turn.
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0)

    async def _connect(self, client: Client) -> None:
        wanted = self._settings
        if wanted.username is not None:
            client.set_user(wanted.username)
            client.set_password(self._password or "")
        if wanted.security != "none":
            certificate, key, server = _keys(wanted)
            await client.set_security(
                getattr(security_policies, f"SecurityPolicy{wanted.security_policy}"),
                certificate=certificate,
                private_key=key,
                server_certificate=server,
                mode=ua.MessageSecurityMode.Sign
                if wanted.security == "sign"
                else ua.MessageSecurityMode.SignAndEncrypt,
            )
        await client.connect()

    async def _attend(self, client: Client) -> None:
        nodes = {point: await self._node(client, table.node) for point, table in self._settings.points.items()}
        point_of = {node.nodeid: point for point, node in nodes.items()}
        period_ms = self._settings.publish_s * 1e3
        parameters = ua.CreateSubscriptionParameters()
        parameters.RequestedPublishingInterval = period_ms
        parameters.RequestedMaxKeepAliveCount = max(1, math.ceil(KEEPALIVE_S / self._settings.publish_s))
        parameters.RequestedLifetimeCount = 10 * parameters.RequestedMaxKeepAliveCount
        subscription = await client.create_subscription(parameters)
        # A node that the server does not have is told by the reading below, again and again.
        await subscription.subscribe_data_change(list(nodes.values()), sampling_interval=ua.Double(period_ms))
        due_s = self.clock.monotonic_s()
        while not self._stopping.is_set():
            await self._refresh(client, nodes)
            due_s = next_due(due_s, self.clock.monotonic_s(), self._settings.refresh_s)
            while (left_s := due_s - self.clock.monotonic_s()) > 0:
                await self._changes(subscription, point_of, left_s)
            if subscription.is_stale(KEEPALIVES_MISSED):
                raise self._away("the subscription gives no sign of life")

    async def _node(self, client: Client, text: str) -> Node:
        if not text.startswith("nsu="):
            return client.get_node(text)
        uri, _, identifier = text.removeprefix("nsu=").partition(";")
        return client.get_node(f"ns={await client.get_namespace_index(uri)};{identifier}")

    async def _refresh(self, client: Client, nodes: Mapping[str, Node]) -> None:
        """Read all points and hand on the row. They are so now: the time is ours, not that of a change."""
        request = ua.ReadParameters()
        for node in nodes.values():
            one = ua.ReadValueId()
            one.NodeId, one.AttributeId = node.nodeid, AttributeIds.Value
            request.NodesToRead.append(one)
        answers = await client.uaclient.session.read(request)
        found = {point: self._found(answer) for point, answer in zip(nodes, answers, strict=True)}
        self._hand_on(found, None)

    async def _changes(self, subscription: Subscription, point_of: Mapping[ua.NodeId, str], within_s: float) -> None:
        """Wait for changes, and hand on those that came together: one row for each time."""
        event = await subscription.next_event(within_s)
        rows: dict[float | None, dict[str, Found]] = {}
        while event is not None:
            match event:
                case DataChangeEvent():
                    value = event.data.monitored_item.Value
                    at_s = _time_s(value.SourceTimestamp) or _time_s(value.ServerTimestamp)
                    rows.setdefault(at_s, {})[point_of[event.node.nodeid]] = self._found(value)
                case StatusChangeEvent():
                    raise self._away(f"the subscription ended: {_name(event.notification.Status.value)}")
            event = await subscription.next_event(0)
        for at_s, found in sorted(rows.items(), key=lambda item: item[0] or math.inf):
            self._hand_on(found, at_s)

    def _found(self, answer: ua.DataValue) -> Found:
        status = answer.StatusCode
        if status is not None:
            severity = status.value >> 30
            if severity >= _BAD or (severity == _UNCERTAIN and not self._settings.accept_uncertain):
                return math.nan, ChannelQuality.BAD_STATUS, f"OPC UA status {_name(status.value)}"
        value = None if answer.Value is None else answer.Value.Value
        if not isinstance(value, (bool, int, float)):
            return math.nan, ChannelQuality.NOT_A_NUMBER, f"the variable holds {_kind(value)}, not a number"
        if not math.isfinite(value):
            return math.nan, ChannelQuality.NOT_A_NUMBER, f"the variable holds {value}"
        return float(value), ChannelQuality.GOOD, None

    def _hand_on(self, found: Mapping[str, Found], at_s: float | None) -> None:
        absent: Found = (math.nan, ChannelQuality.ABSENT, None)
        row = [found.get(point, absent) for point in self.points]
        reasons = {point: reason for point, (_, _, reason) in found.items() if reason is not None}
        qualities = [quality for _, quality, _ in row]
        self._deliver(
            [value for value, _, _ in row],
            None if all(quality is ChannelQuality.GOOD for quality in qualities) else qualities,
            reasons,
            at_s=at_s,
        )


def _keys(settings: OpcUaSensors) -> tuple[CertProperties, CertProperties, CertProperties]:
    """Certificate, key and the server's certificate, as bytes: the library would read files in a thread that stays.

    Raises:
        ValueError: a file cannot be read, holds something else, or the key does not belong to the certificate.
    """
    contents, public = [], []
    for key, load_pem, load_der in (
        ("certificate_file", x509.load_pem_x509_certificate, x509.load_der_x509_certificate),
        ("key_file", _pem_key, _der_key),
        ("server_certificate_file", x509.load_pem_x509_certificate, x509.load_der_x509_certificate),
    ):
        path = getattr(settings, key)
        try:
            content = path.read_bytes()
            is_pem = content.lstrip().startswith(b"-----BEGIN")
            public.append((load_pem if is_pem else load_der)(content).public_key())
        except OSError as exc:
            raise ValueError(f"{key} {path}: cannot be read: {exc.strerror}") from exc
        except (ValueError, TypeError, UnsupportedAlgorithm) as exc:
            kind = "private key" if key == "key_file" else "certificate"
            raise ValueError(f"{key} {path}: is no {kind} without a password, PEM or DER") from exc
        contents.append(CertProperties(content, "pem" if is_pem else "der"))
    if public[0] != public[1]:
        raise ValueError(f"key_file {settings.key_file}: does not belong to {settings.certificate_file}")
    return contents[0], contents[1], contents[2]


def _pem_key(content: bytes) -> RSAPrivateKey:
    return _rsa(serialization.load_pem_private_key(content, None))


def _der_key(content: bytes) -> RSAPrivateKey:
    return _rsa(serialization.load_der_private_key(content, None))


def _rsa(key: object) -> RSAPrivateKey:
    if not isinstance(key, RSAPrivateKey):
        raise TypeError("OPC UA's policies want RSA")
    return key


def _cancel_all(loop: asyncio.AbstractEventLoop) -> None:
    for task in asyncio.all_tasks(loop):
        task.cancel()


def _time_s(stamp: datetime | None) -> float | None:
    """Seconds since 1970; the library's times are UTC, and where they name no zone, too."""
    if stamp is None:
        return None
    return (stamp if stamp.tzinfo is not None else stamp.replace(tzinfo=UTC)).timestamp()


def _name(code: int) -> str:
    return str(ua.StatusCode(ua.UInt32(code)).name)


def _kind(value: object) -> str:
    match value:
        case None:
            return "nothing"
        case str():
            return f"the text {value[:30]!r}"
        case Iterable():
            return "an array"
        case _:
            return f"a {type(value).__name__}"
