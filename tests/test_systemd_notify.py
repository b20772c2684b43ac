"""The notification socket with a real datagram socket at its other end, and the journal's protocol likewise."""

import io
import logging
import os
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_station import write_pictures

from station.adapters.embedded_broker import free_port
from station.adapters.journald_log import JournaldHandler, datagram, goes_to_journal
from station.adapters.systemd_notify import SystemdNotify
from station.commands.assembly import assembled
from station.errors import ConfigurationError
from station.settings import from_document


class Hand:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.at_s = 100.0

    def now(self) -> datetime:
        return datetime.fromtimestamp(self.at_s, UTC)

    def monotonic_s(self) -> float:
        return self.at_s


@contextmanager
def listening(address: str) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address)
        manager.settimeout(5.0)
        yield manager


@pytest.mark.parametrize("abstract", [False, True])
def test_ready_alive_and_stopping_arrive(abstract: bool, tmp_path: Path) -> None:
    name = f"station-test-{uuid4()}" if abstract else str(tmp_path / "notify")
    environment = {"NOTIFY_SOCKET": f"@{name}" if abstract else name}
    with (
        listening(f"\0{name}" if abstract else name) as manager,
        SystemdNotify(environment, Hand()) as notify,
    ):
        notify.ready()
        notify.report("12 frames\nSTOPPING=1", alive=True)
        notify.stopping()
        assert [manager.recv(4096) for _ in range(3)] == [
            b"READY=1",
            b"WATCHDOG=1\nSTATUS=12 frames STOPPING=1",
            b"STOPPING=1\nSTATUS=stopping",
        ]


def test_a_station_without_progress_says_why_and_gives_no_sign_of_life(tmp_path: Path) -> None:
    address, clock = str(tmp_path / "notify"), Hand()
    with listening(address) as manager, SystemdNotify({"NOTIFY_SOCKET": address}, clock) as notify:
        notify.report("no progress: recorder", alive=False)
        assert manager.recv(4096) == b"STATUS=no progress: recorder"


@pytest.mark.parametrize(("watchdog_us", "every_s"), [("", 1.0), ("30000000", 1.0), ("2000000", 0.5), ("x", 1.0)])
def test_signs_of_life_are_as_frequent_as_the_watchdog_needs(watchdog_us: str, every_s: float, tmp_path: Path) -> None:
    address, clock = str(tmp_path / "notify"), Hand()
    environment = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": watchdog_us, "WATCHDOG_PID": str(os.getpid())}
    with listening(address) as manager, SystemdNotify(environment, clock) as notify:
        manager.setblocking(False)
        sent = 0
        for _ in range(64):
            notify.report("", alive=True)
            clock.at_s += 1 / 16
            try:
                manager.recv(4096)
                sent += 1
            except BlockingIOError:
                continue
        assert sent == 4 / every_s


def test_nothing_is_sent_where_no_service_manager_listens() -> None:
    with SystemdNotify({}, Hand()) as notify:
        notify.ready()
        notify.report("", alive=True)
        notify.stopping()


def test_a_manager_that_is_gone_is_told_once_and_does_not_stop_the_station(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with SystemdNotify({"NOTIFY_SOCKET": str(tmp_path / "gone")}, Hand()) as notify:
        notify.ready()
        notify.stopping()
    assert sum("cannot be told" in record.getMessage() for record in caplog.records) == 1


def test_an_address_that_is_none_is_a_configuration_error() -> None:
    with (
        pytest.raises(ConfigurationError, match="NOTIFY_SOCKET = 'relative'"),
        SystemdNotify({"NOTIFY_SOCKET": "relative"}, Hand()),
    ):
        pass


def test_a_station_that_runs_is_ready_shows_progress_and_says_that_it_stops(tmp_path: Path) -> None:
    write_pictures(tmp_path / "in", 2)
    document = {
        "station": {"data_dir": "data"},
        "broker": {"port": free_port()},
        "camera": {"c": {"kind": "folder", "path": "in"}},
    }
    address = str(tmp_path / "notify")
    heard: list[str] = []
    with listening(address) as manager:
        with assembled(from_document(document, "test", tmp_path, {}), {"NOTIFY_SOCKET": address}) as station:
            thread = threading.Thread(target=station.run, name="station")
            thread.start()
            try:
                # A folder that is read to its end, and no broker: the station is degraded, idle and well.
                while "2 frames, 2 kept; degraded: broker" not in "".join(heard[-1:]):
                    heard.append(manager.recv(4096).decode())
                heard.append(manager.recv(4096).decode())
            finally:
                station.stop()
                thread.join()
        heard.append(manager.recv(4096).decode())
    assert heard[0] == "READY=1"
    assert heard[-1] == "STOPPING=1\nSTATUS=stopping"
    assert all(message.startswith("WATCHDOG=1\nSTATUS=") for message in heard[1:-1])


# The journal


def parse(entry: bytes) -> dict[str, str]:
    """The native protocol, read by its own rules."""
    stream, fields = io.BytesIO(entry), {}
    while line := stream.readline():
        name, equals, value = line.rstrip(b"\n").partition(b"=")
        if not equals:
            (length,) = struct.unpack("<Q", stream.read(8))
            value = stream.read(length)
            assert stream.read(1) == b"\n"
        fields[name.decode()] = value.decode()
    return fields


def record(level: int = logging.ERROR, **extra: object) -> logging.LogRecord:
    made = logging.getLogger("station.x").makeRecord("station.x", level, "file.py", 3, "text", (), None, "f", extra)
    made.threadName = "camera-line1"
    return made


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_every_text_makes_the_round_trip(text: str) -> None:
    assert parse(datagram(record(), text))["MESSAGE"] == text


@pytest.mark.parametrize(
    ("level", "priority"),
    [
        (logging.DEBUG, "7"),
        (logging.INFO, "6"),
        (logging.WARNING, "4"),
        (logging.ERROR, "3"),
        (logging.CRITICAL, "2"),
        (45, "3"),
    ],
)
def test_levels_become_priorities(level: int, priority: str) -> None:
    assert parse(datagram(record(level), ""))["PRIORITY"] == priority


def test_camera_and_verdict_are_fields() -> None:
    fields = parse(datagram(record(camera="line1", verdict=7), "x"))
    assert (fields["STATION_CAMERA"], fields["STATION_VERDICT"]) == ("line1", "7")
    assert fields["SYSLOG_IDENTIFIER"] == "inspection-station"
    assert "STATION_CAMERA" not in parse(datagram(record(), "x"))


@pytest.mark.parametrize("length", [10, 1_000_000])
def test_a_record_arrives_also_when_it_is_too_large_for_a_datagram(length: int, tmp_path: Path) -> None:
    address = str(tmp_path / "journal")
    with listening(address) as journal:
        handler = JournaldHandler(address)
        try:
            made = record()
            made.msg = "x" * length
            handler.emit(made)
            entry, descriptors, _, _ = socket.recv_fds(journal, 65_536, 1)
        finally:
            handler.close()
        for descriptor in descriptors:
            with os.fdopen(descriptor, "rb") as stream:
                stream.seek(0)
                entry = stream.read()
    assert len(parse(entry)["MESSAGE"]) == length


def test_only_a_stream_that_leads_to_the_journal_is_taken_for_it(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w", encoding="utf-8") as stream:
        found = os.fstat(stream.fileno())
        assert goes_to_journal(stream, {"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"})
        assert not goes_to_journal(stream, {"JOURNAL_STREAM": "1:2"})
        assert not goes_to_journal(stream, {})
    assert not goes_to_journal(io.StringIO(), {"JOURNAL_STREAM": "1:2"})
