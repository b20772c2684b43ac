"""OPC UA against a real server."""

import math
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID
from opcua_server import NAMESPACE, OpcUaServer
from pydantic import ValidationError
from sensor_helpers import CLOCK, Heard, listen, next_row, until_state

from station.adapters.embedded_broker import free_port
from station.adapters.opcua_sensors import APPLICATION_URI, OpcUaSource
from station.messages import SourceStateName
from station.process_messages import ChannelQuality
from station.sensor_settings import OpcUaSensors

RUNNING, DOWN = SourceStateName.RUNNING, SourceStateName.DOWN
BACK_WITHIN_S = 10.0
"""The longest pause of these tests is 0.5 s; the rest is the server's own start on a slow machine."""
POINTS = {
    "temperature": {"node": "ns=2;s=Temperature"},
    "pressure": {"node": f"nsu={NAMESPACE};s=Pressure"},
    "running": {"node": "ns=2;s=Running"},
}


def settings(url: str, **keys: Any) -> OpcUaSensors:
    return OpcUaSensors.model_validate(
        {
            "kind": "opcua",
            "server_url": url,
            "publish_s": 0.05,
            "refresh_s": 0.5,
            "timeout_s": 1.5,
            "reconnect_max_s": 0.5,
            "points": POINTS,
            **keys,
        }
    )


def source_of(url: str, secret: str | None = None, **keys: Any) -> OpcUaSource:
    return OpcUaSource("press", settings(url, **keys), CLOCK, secret)


@pytest.fixture(scope="module")
def server() -> Iterator[OpcUaServer]:
    """One for the tests that leave it as it is, or set what they need: its start takes a second or two."""
    with OpcUaServer() as running:
        yield running


@pytest.fixture(autouse=True)
def as_at_the_beginning(request: pytest.FixtureRequest) -> None:
    if "server" in request.fixturenames:
        request.getfixturevalue("server").hold("Temperature", 81.25)


def until_quality(source: OpcUaSource, heard: Heard, quality: ChannelQuality) -> None:
    listen(source, lambda so_far: so_far.quality("temperature") is quality, heard=heard)


def until_reason(source: OpcUaSource, heard: Heard, reason: str) -> None:
    listen(source, lambda so_far: reason in so_far.last.reasons.get("temperature", ""), heard=heard)


@pytest.mark.parametrize("node", ["", "Temperature", "ns=2", "ns=x;s=a", "ns=2;i=a", "ns=2;g=12"])
def test_what_is_no_node_id_is_refused(node: str) -> None:
    with pytest.raises(ValidationError, match="is no node id; write it as"):
        settings("opc.tcp://press:4840", points={"a": {"node": node}})


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"server_url": "http://press"}, "should match pattern"),
        ({"server_url": "opc.tcp://op:secret@press:4840"}, "should match pattern"),
        ({"security": "sign"}, "needs certificate_file, key_file, server_certificate_file"),
        ({"key_file": "key.pem"}, "set security to"),
        ({"password": "x"}, "password needs a username"),
    ],
)
def test_settings_that_cannot_be_are_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        settings(**{"url": "opc.tcp://press:4840", **keys} if "server_url" not in keys else {"url": "", **keys})


def test_values_changes_qualities_and_times(server: OpcUaServer) -> None:
    with source_of(server.url, refresh_s=60.0) as source:
        heard = Heard()
        first = next_row(source, heard)
        assert list(first.values) == [81.25, 7, 1]
        assert first.qualities is None
        at_s = time.time() - 2.5

        server.hold("Temperature", 82.5, at_s=at_s)
        listen(source, lambda so_far: so_far.value("temperature") == 82.5, heard=heard)
        assert heard.last.at_s == pytest.approx(at_s, abs=1e-3)
        assert heard.quality("pressure") is ChannelQuality.ABSENT

        for status in ("BadSensorFailure", "UncertainLastUsableValue"):
            server.hold("Temperature", 83.0, status=status)
            until_reason(source, heard, f"OPC UA status {status}")
            assert heard.quality("temperature") is ChannelQuality.BAD_STATUS
        server.hold("Temperature", 84.0, status="GoodLocalOverride")
        until_quality(source, heard, ChannelQuality.GOOD)
        assert heard.value("temperature") == 84.0
        assert heard.last.reasons == {}

        server.hold("Temperature", math.nan)
        until_reason(source, heard, "holds nan")
    assert heard.states == [RUNNING]


def test_uncertain_values_can_be_accepted_and_unchanged_ones_stay_fresh(server: OpcUaServer) -> None:
    server.hold("Temperature", 83.0, status="UncertainLastUsableValue")
    with source_of(server.url, accept_uncertain=True, refresh_s=0.1) as source:
        heard = listen(source, lambda so_far: len([one for one in so_far.rows if one.qualities is None]) >= 4)
    complete = [row for row in heard.rows if row.qualities is None]
    assert {row.values[0] for row in complete} == {83.0}
    assert complete[-1].at_s > complete[0].at_s


def test_what_is_missing_or_is_no_number_makes_only_its_own_point_bad(server: OpcUaServer) -> None:
    others = {"gone": "ns=2;s=Gone", "text": "ns=2;s=Text", "array": "ns=2;s=Array", "folder": "i=85"}
    points = {**POINTS, **{name: {"node": node} for name, node in others.items()}}
    with source_of(server.url, points=points) as source:
        heard = Heard()
        next_row(source, heard)
        assert heard.value("temperature") == 81.25
        assert heard.quality("gone") is heard.quality("folder") is ChannelQuality.BAD_STATUS
        assert heard.quality("text") is heard.quality("array") is ChannelQuality.NOT_A_NUMBER
        assert heard.last.reasons == {
            "gone": "OPC UA status BadNodeIdUnknown",
            "text": "the variable holds the text 'hot', not a number",
            "array": "the variable holds an array, not a number",
            "folder": "OPC UA status BadAttributeIdInvalid",
        }


def test_a_server_that_dies_or_hangs_is_down_with_its_reason_and_comes_back() -> None:
    with OpcUaServer() as server, source_of(server.url) as source:
        heard = Heard()
        next_row(source, heard)
        server.kill()
        assert until_state(source, DOWN, heard, within_s=BACK_WITHIN_S).reason
        server.start()
        until_state(source, RUNNING, heard, within_s=BACK_WITHIN_S)
        next_row(source, heard)
        server.hold("Temperature", 90.0)
        listen(source, lambda so_far: so_far.value("temperature") == 90.0, heard=heard)
        server.stop()
        reason = until_state(source, DOWN, heard, within_s=BACK_WITHIN_S).reason or ""
        assert "no answer within 1.5 s" in reason
        server.go_on()
        until_state(source, RUNNING, heard, within_s=BACK_WITHIN_S)
        assert next_row(source, heard).values[0] == 90.0


def test_without_a_server_it_says_so_and_leaves_at_once() -> None:
    with source_of(f"opc.tcp://127.0.0.1:{free_port()}") as source:
        heard = Heard()
        reason = until_state(source, DOWN, heard).reason or ""
        assert "OPC UA opc.tcp://127.0.0.1" in reason
        assert "efused" in reason or "onnect call failed" in reason
        began_s = time.monotonic()
    assert time.monotonic() - began_s < 3


def test_a_login_is_used_and_a_wrong_one_is_told(server: OpcUaServer) -> None:
    with source_of(server.url, "secret", username="op", password="secret") as source:
        next_row(source, Heard())
    with source_of(server.url, "wrong", username="op", password="wrong") as source:
        reason = until_state(source, DOWN, Heard()).reason or ""
    assert "BadUserAccessDenied" in reason or "BadIdentityToken" in reason


def test_leaving_does_not_wait_for_a_server_that_hangs(server: OpcUaServer) -> None:
    with source_of(server.url, timeout_s=20.0) as source:
        next_row(source, Heard())
        server.stop()
        assert source.read(1.0) is not None
        began_s = time.monotonic()
    assert time.monotonic() - began_s < 8
    server.go_on()


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with keys and self-signed certificates of a server, a client, and of somebody else."""
    folder = tmp_path_factory.mktemp("certificates")
    for name, uri in (("server", "urn:test:server"), ("client", APPLICATION_URI), ("other", "urn:test:other")):
        write_certificate(folder, name, uri)
    return folder


def write_certificate(folder: Path, name: str, uri: str) -> None:
    """An RSA key and the certificate that belongs to it, as OPC UA Part 6, 6.2.2, wants it: with the URI as a name."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri), x509.DNSName("localhost")]),
            critical=False,
        )
        .sign(key, hashes.SHA256())
    )
    (folder / f"{name}.der").write_bytes(certificate.public_bytes(serialization.Encoding.DER))
    (folder / f"{name}.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )


@pytest.fixture(scope="module")
def secured(certificates: Path) -> Iterator[OpcUaServer]:
    """A server that takes signed and encrypted messages only."""
    with OpcUaServer(certificates) as running:
        yield running


def secure_keys(folder: Path, **changes: object) -> dict[str, Any]:
    files = {
        "certificate_file": str(folder / "client.der"),
        "key_file": str(folder / "client.pem"),
        "server_certificate_file": str(folder / "server.der"),
    }
    return {"security": "sign_and_encrypt", **files, "timeout_s": 10.0, **changes}


def test_messages_are_signed_and_encrypted(secured: OpcUaServer, certificates: Path) -> None:
    with source_of(secured.url, "secret", username="op", password="secret", **secure_keys(certificates)) as source:
        heard = Heard()
        assert list(next_row(source, heard).values) == [81.25, 7, 1]
        secured.hold("Temperature", 82.5)
        listen(source, lambda so_far: so_far.value("temperature") == 82.5, heard=heard)
    assert heard.states == [RUNNING]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        pytest.param({"security": "none"}, "No matching endpoints", id="without security"),
        pytest.param({"security": "sign"}, "no answer within 2 s", id="a mode that the server does not offer"),
        pytest.param({"key_file": "other.pem"}, "other.pem: does not belong to", id="a key of another certificate"),
        pytest.param({"key_file": "client.der"}, "client.der: is no private key", id="a certificate for a key"),
        pytest.param({"certificate_file": "text"}, "text: is no certificate", id="a file that holds something else"),
        pytest.param({"server_certificate_file": "other.der"}, "", id="another server than the one that is trusted"),
    ],
)
def test_without_the_right_keys_the_source_is_down_with_its_reason(
    secured: OpcUaServer, certificates: Path, changes: dict[str, str], reason: str
) -> None:
    (certificates / "text").write_text("hello")
    keys = secure_keys(certificates, timeout_s=2.0)
    for name, value in changes.items():
        keys[name] = str(certificates / value) if name.endswith("_file") else value
    if changes.get("security") == "none":
        keys = {"timeout_s": 10.0}
    with source_of(secured.url, **keys) as source:
        heard = Heard()
        said = until_state(source, DOWN, heard).reason or ""
    assert said.startswith(f"OPC UA {secured.url}: ")
    assert reason in said
    assert not heard.rows
