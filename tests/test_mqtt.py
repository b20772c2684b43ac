"""The publisher and the embedded broker, against real brokers and against peers that misbehave."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from delivery_helpers import message
from mosquitto import Listener, Mosquitto, wait_for

from station.adapters import _mqtt_client
from station.adapters.embedded_broker import EmbeddedBroker, check_port, free_port
from station.adapters.mqtt_publisher import MqttPublisher
from station.adapters.system_clock import SystemClock
from station.broker_settings import BrokerSettings, TlsSettings
from station.errors import ConfigurationError, ProtocolError
from station.ids import uuid7
from station.messages import Link, OutboxRow, Outgoing, Refusal

STATUS = "inspection/line-1/status"
OFFLINE = b'{"status":"offline"}'


class Bench:
    """A publisher and what it told."""

    def __init__(self, port: int, secret: str | None = None, **options: Any) -> None:
        self.links: list[Link] = []
        self.woken = 0
        self.acknowledged: list[int] = []
        self.publisher = MqttPublisher(
            BrokerSettings(**{"reconnect_max_s": 0.5, **options}),
            host="127.0.0.1",
            port=port,
            client_id="inspection-line-1",
            password=secret,
            will_topic=STATUS,
            will_payload=OFFLINE,
            clock=SystemClock(),
            wake=self._wake,
            on_link=self.links.append,
        )

    def _wake(self) -> None:
        self.woken += 1

    def connected(self) -> None:
        wait_for(lambda: self.publisher.link().connected)

    def send(self, *numbers: int, historical: bool = False) -> None:
        for number in numbers:
            assert self.publisher.send(OutboxRow(number, 0.0, message(number)), historical=historical)

    def has_acknowledged(self, *numbers: int) -> bool:
        self.acknowledged += self.publisher.acknowledgements()
        return sorted(self.acknowledged) == sorted(numbers)


@contextmanager
def bench(port: int, secret: str | None = None, **options: Any) -> Iterator[Bench]:
    made = Bench(port, secret, **options)
    with made.publisher:
        yield made


# Sending


def test_a_row_is_sent_with_its_lane_and_acknowledged_under_its_number(tmp_path: Path) -> None:
    with Mosquitto(tmp_path) as broker, Listener(broker.port) as listener, bench(broker.port) as line:
        line.connected()
        line.send(1, 2)
        line.send(3, historical=True)
        wait_for(lambda: line.has_acknowledged(1, 2, 3))
        received = listener.wait_until(lambda messages: len(messages) == 3)
        assert line.woken >= 3
        assert line.publisher.link().window == 20  # mosquitto's max_inflight_messages, told in CONNACK
    assert [one.historical for one in received] == [False, False, True]
    assert {one.content_type for one in received} == {"application/json"}
    assert {one.topic for one in received} == {"inspection/line-1/camera/top/verdict"}


def test_the_largest_packet_is_the_brokers_and_what_is_larger_is_not_shown(tmp_path: Path) -> None:
    limited = Mosquitto(tmp_path, "allow_anonymous true\nmax_packet_size 2000")
    with limited as broker, Listener(broker.port) as listener, bench(broker.port) as line:
        line.connected()
        assert line.publisher.link().largest_bytes == 2000
        assert line.publisher.fits(message(1))
        assert not line.publisher.fits(replace(message(1), payload=b"x" * 2000))
        line.publisher.retain(STATUS, b"x" * 2000)
        line.publisher.copy("inspection/line-1/response/pause", b"x" * 2000, None)
        line.publisher.copy("inspection/line-1/response/pause", b"{}", b"x" * 2000)
        line.send(1)
        wait_for(lambda: line.has_acknowledged(1))
        listener.wait_until(lambda messages: len(messages) == 1)
        assert line.publisher.link().connections == 1


def test_without_a_broker_it_starts_says_so_once_and_sends_nothing() -> None:
    with bench(free_port()) as line:
        wait_for(lambda: bool(line.links))
        assert not line.publisher.send(OutboxRow(1, 0.0, message(1)), historical=False)
        assert line.publisher.acknowledgements() == []
        threading.Event().wait(1.5)
    (link,) = line.links
    assert "Connection refused" in (link.reason or "")
    assert not link.refused


def test_acknowledgements_of_a_former_connection_are_not_taken_for_the_present_one(tmp_path: Path) -> None:
    with Mosquitto(tmp_path) as broker, bench(broker.port) as line:
        line.connected()
        line.send(1)
        wait_for(lambda: line.woken >= 2)
        broker.kill()
        broker.start()
        wait_for(lambda: len(line.links) == 3)
        assert not line.publisher.send(OutboxRow(2, 0.0, message(2)), historical=False)
        line.connected()
        assert line.publisher.acknowledgements() == []
        line.send(3)
        wait_for(lambda: line.has_acknowledged(3))


# States


def test_retained_states_come_back_after_a_restart_of_the_broker(tmp_path: Path) -> None:
    with Mosquitto(tmp_path) as broker, bench(broker.port) as line:
        line.publisher.retain("inspection/line-1/health", b"1")
        line.connected()
        line.publisher.retain(STATUS, b"online")
        line.publisher.retain("inspection/line-1/health", b"2", expires_s=29.5)
        broker.kill()
        broker.start()
        wait_for(lambda: len(line.links) == 3)
        with Listener(broker.port) as listener:
            found = listener.wait_until(lambda messages: {one.payload for one in messages} >= {b"online", b"2"})
    assert b"1" not in {one.payload for one in found}
    left_s = {one.payload: one.expires_s for one in found}
    assert left_s[b"online"] is None
    assert 0 < (left_s[b"2"] or 0) <= 30
    assert [link.connected for link in line.links] == [True, False, True]


def test_an_orderly_stop_leaves_the_last_state_and_sends_no_will(tmp_path: Path) -> None:
    with Mosquitto(tmp_path) as broker, Listener(broker.port) as listener:
        with bench(broker.port) as line:
            line.connected()
            line.publisher.retain(STATUS, b"stopped")
        with Listener(broker.port, STATUS) as later:
            later.wait_until(lambda messages: [one.payload for one in messages] == [b"stopped"])
    assert OFFLINE not in {one.payload for one in listener.received}


STATION = """
import sys
sys.path[:0] = sys.argv[2:]
from test_mqtt import Bench
line = Bench(int(sys.argv[1]))
with line.publisher:
    line.publisher.retain("inspection/line-1/status", b"online")
    line.connected()
    print("connected", flush=True)
    sys.stdin.read()
"""


def child(*arguments: str, code: str) -> "subprocess.Popen[bytes]":
    tests = Path(__file__).parent
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments, str(tests), str(tests.parent)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )


def test_a_station_that_is_killed_leaves_its_will(tmp_path: Path) -> None:
    with Mosquitto(tmp_path) as broker, Listener(broker.port, STATUS) as listener:
        with child(str(broker.port), code=STATION) as station:
            listener.wait_until(lambda messages: b"online" in {one.payload for one in messages})
            station.kill()
        listener.wait_until(lambda messages: messages[-1].payload == OFFLINE)


# Credentials


@pytest.fixture
def guarded_broker(tmp_path: Path) -> Iterator[Mosquitto]:
    tool = shutil.which("mosquitto_passwd", path="/usr/sbin:/usr/bin:/usr/local/bin")
    if tool is None:
        pytest.skip("mosquitto is not installed")
    passwords, rules = tmp_path / "passwords", tmp_path / "rules"
    subprocess.run([tool, "-b", "-c", str(passwords), "station", "secret"], check=True)
    rules.write_text("user station\ntopic readwrite inspection/line-1/status\n", encoding="utf-8")
    with Mosquitto(tmp_path, f"allow_anonymous false\npassword_file {passwords}\nacl_file {rules}") as broker:
        yield broker


def test_a_refused_login_is_told_once_and_the_right_one_works(guarded_broker: Mosquitto) -> None:
    with bench(guarded_broker.port, "wrong", username="station", password="wrong") as line:
        wait_for(lambda: bool(line.links))
        threading.Event().wait(1.5)
    (link,) = line.links
    assert link.refused
    assert "refused the connection: Not authorized" in (link.reason or "")
    with bench(guarded_broker.port, "secret", username="station", password="secret") as line:
        line.connected()


def test_a_message_that_the_broker_refuses_is_no_acknowledgement(guarded_broker: Mosquitto) -> None:
    with bench(guarded_broker.port, "secret", username="station", password="secret") as line:
        line.connected()
        line.send(1)
        refused: list[Refusal] = []

        def take() -> bool:
            refused.extend(line.publisher.refusals())
            return bool(refused)

        wait_for(take)
        assert refused == [Refusal(1, "Not authorized")]
        assert line.publisher.acknowledgements() == []
        assert line.publisher.link().connections == 1


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority, and a certificate for 127.0.0.1."""
    tool = shutil.which("openssl")
    if tool is None:
        pytest.skip("openssl is not installed")
    folder = tmp_path_factory.mktemp("certificates")

    def run(*arguments: str) -> None:
        subprocess.run([tool, *arguments], cwd=folder, check=True, capture_output=True)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    run("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=test authority", "-days", "2")
    run("req", *key, "-keyout", "broker.key", "-out", "broker.csr", "-subj", "/CN=broker")
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1\n", encoding="utf-8")
    signing = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "names")
    run("x509", "-req", "-in", "broker.csr", *signing, "-out", "broker.pem")
    for file in folder.iterdir():
        file.chmod(0o644)
    return folder


def test_tls_with_a_trusted_authority_works_and_another_one_is_refused(certificates: Path, tmp_path: Path) -> None:
    lines = (
        f"allow_anonymous true\ncafile {certificates / 'ca.pem'}\n"
        f"certfile {certificates / 'broker.pem'}\nkeyfile {certificates / 'broker.key'}"
    )
    with Mosquitto(tmp_path, lines) as broker:
        with bench(broker.port, tls=TlsSettings(ca_file=certificates / "ca.pem")) as line:
            line.connected()
            line.send(1)
            wait_for(lambda: line.has_acknowledged(1))
        with bench(broker.port, tls=TlsSettings()) as line:
            wait_for(lambda: bool(line.links))
        assert line.links[0].refused
        assert "certificate is not trusted" in (line.links[0].reason or "")


def test_a_certificate_file_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    wrong = tmp_path / "ca.pem"
    wrong.write_text("no certificate", encoding="utf-8")
    with pytest.raises(ConfigurationError, match=r"broker\.tls\.ca_file = .*ca\.pem"):
        Bench(1, tls=TlsSettings(ca_file=wrong)).publisher.__enter__()


# Peers that misbehave


class Peer:
    """A TCP server that answers CONNECT with given bytes, and then nothing ever."""

    def __init__(self, answer: bytes) -> None:
        self._answer = answer
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        self.connections = 0
        self._stack = ExitStack()
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> "Peer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._stack.close()
        self._server.close()

    def _serve(self) -> None:
        while True:
            try:
                stream, _ = self._server.accept()
            except OSError:
                return
            self._stack.enter_context(stream)
            self.connections += 1
            stream.sendall(self._answer)


ACCEPTED = bytes([0x20, 3, 0, 0, 0])


def test_a_broker_that_never_acknowledges_is_left_and_tried_anew() -> None:
    with Peer(ACCEPTED) as peer, bench(peer.port, acknowledge_within_s=1.0) as line:
        line.connected()
        line.send(1, 2)
        wait_for(lambda: peer.connections >= 2)
        assert "acknowledged nothing for 1 s with 2 messages in flight" in (line.links[1].reason or "")


def test_a_broker_that_never_answers_is_left_and_tried_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_mqtt_client, "CONNACK_WITHIN_S", 0.1)
    monkeypatch.setattr(_mqtt_client, "CONNECT_WITHIN_S", 0.4)
    with Peer(b"") as peer, bench(peer.port) as line:
        wait_for(lambda: peer.connections >= 2)
    assert "does not answer" in (line.links[0].reason or "")


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x20\x7f", b"\x00" * 64, b"\xff" * 64])
def test_a_peer_that_speaks_something_else_does_no_harm(answer: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_mqtt_client, "CONNACK_WITHIN_S", 0.1)
    monkeypatch.setattr(_mqtt_client, "CONNECT_WITHIN_S", 0.4)
    with Peer(answer) as peer, bench(peer.port) as line:
        wait_for(lambda: peer.connections >= 3)
    assert len(line.links) == 1


def test_a_callback_that_raises_does_not_silence_the_station(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a bug in a callback")

    monkeypatch.setattr(Bench, "_wake", fail)
    with Mosquitto(tmp_path) as broker, bench(broker.port) as line:
        line.connected()
        line.send(*range(1, 6))
        wait_for(lambda: line.has_acknowledged(1, 2, 3, 4, 5))
    assert "a bug in a callback" in caplog.text


# The embedded broker


def test_the_embedded_broker_listens_on_loopback_only_and_ends_with_its_context() -> None:
    with EmbeddedBroker(0, lambda _: None) as broker:
        assert broker.fault is None
        assert broker.process_id is not None
        process = psutil.Process(broker.process_id)
        listening = [one.laddr for one in process.net_connections("tcp") if one.status == psutil.CONN_LISTEN]
        assert [(one.ip, one.port) for one in listening] == [("127.0.0.1", broker.port)]
    assert not process.is_running()


def test_a_taken_port_is_a_fault_in_one_line_and_ends_when_the_port_is_free() -> None:
    told: list[str | None] = []
    with socket.create_server(("127.0.0.1", 0)) as squatter:
        port = squatter.getsockname()[1]
        with pytest.raises(ProtocolError, match=f"port {port} of 127.0.0.1 is taken by another program"):
            check_port(port)
        with EmbeddedBroker(port, told.append) as broker:
            assert "is taken by another program" in (broker.fault or "")
            squatter.close()
            wait_for(lambda: broker.fault is None)
            with Listener(port):
                pass
    assert len(told) == 2
    assert told[1] is None


def test_an_embedded_broker_that_dies_is_started_again_on_the_same_port() -> None:
    told: list[str | None] = []
    with EmbeddedBroker(0, told.append) as broker, bench(broker.port) as line:
        line.publisher.retain(STATUS, b"online")
        line.connected()
        assert broker.process_id is not None
        os.kill(broker.process_id, signal.SIGKILL)
        wait_for(lambda: len(line.links) == 3)
        with Listener(broker.port, STATUS) as listener:
            listener.wait_until(lambda messages: messages[-1].payload == b"online" if messages else False)
    assert told[0] is not None
    assert "died with code -9" in told[0]
    assert told[1] is None


PARENT = """
import sys
sys.path[:0] = sys.argv[1:]
from station.adapters.embedded_broker import EmbeddedBroker
with EmbeddedBroker(0, print) as broker:
    print(broker.process_id, flush=True)
    sys.stdin.read()
"""


def test_the_embedded_broker_does_not_outlive_a_killed_parent() -> None:
    with child(code=PARENT) as parent:
        assert parent.stdout is not None
        broker = psutil.Process(int(parent.stdout.readline()))
        assert broker.is_running()
        parent.kill()
    wait_for(lambda: not broker.is_running() or broker.status() == psutil.STATUS_ZOMBIE)


def test_a_subscriber_that_was_away_gets_all_that_the_embedded_broker_took() -> None:
    with EmbeddedBroker(0, lambda _: None) as broker, bench(broker.port) as line:
        with Listener(broker.port, "inspection/+/camera/+/verdict", client_id="historian"):
            pass
        line.connected()
        for start in range(1, 501, 50):
            line.send(*range(start, start + 50))
        wait_for(lambda: line.has_acknowledged(*range(1, 501)))
        with Listener(broker.port, "inspection/+/camera/+/verdict", client_id="historian") as listener:
            received = listener.wait_until(lambda messages: len(messages) >= 500)
    assert [one.payload.split(b'"sequence":')[1].split(b",")[0] for one in received] == [
        str(number).encode() for number in range(1, 501)
    ]


# Alarms


def alarm(sequence: int, topic: str = "inspection/line-1/process/oven/alarm/drift") -> OutboxRow:
    payload = str(sequence).encode()
    return OutboxRow(sequence, 0.0, Outgoing(uuid7(sequence), "alarm", topic, payload, epoch=1, sequence=sequence))


def test_the_newest_transition_of_an_alarm_is_retained_whatever_comes_from_the_backlog(tmp_path: Path) -> None:
    with Mosquitto(tmp_path) as broker, Listener(broker.port) as listener, bench(broker.port) as line:
        line.publisher.retain(alarm(1).message.topic, b"at the start")
        line.connected()
        for number, historical in ((5, False), (3, True), (4, True), (6, True)):
            assert line.publisher.send(alarm(number), historical=historical)
        wait_for(lambda: line.has_acknowledged(3, 4, 5, 6))
        listener.wait_until(lambda messages: len(messages) == 5)
        with Listener(broker.port) as late:
            (retained,) = late.wait_until(lambda messages: len(messages) == 1)
        broker.kill()
        broker.start()
        wait_for(lambda: len(line.links) == 3)
        with Listener(broker.port) as later:
            (again,) = later.wait_until(lambda messages: len(messages) == 1)
    assert (retained.payload, again.payload) == (b"6", b"6")
