"""The whole station with real parts: camera processes, shipped bundle, journal on disk, broker, client."""

import socket
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import pytest
from mosquitto import Listener, Mosquitto, Received

from station import wire
from station.adapters.embedded_broker import free_port
from station.boards import Web
from station.commands.assembly import assembled
from station.daemon import Station, account_balances
from station.linescan import FRAME_LINES
from station.messages import CameraState, CameraStateName, Health, Outcome, Reason, Status, StatusName, Verdict
from station.settings import SHIPPED_BUNDLE, from_document

PATIENCE_S = 30.0


def write_pictures(folder: Path, count: int, seed: int = 7) -> list[str]:
    """Frames of a rendered web that has no defect."""
    folder.mkdir(exist_ok=True)
    web = Web(seed, defect_share=0.0)
    names = [f"{number:03}.png" for number in range(count)]
    for number, name in enumerate(names):
        cv2.imwrite(str(folder / name), web.render(number * FRAME_LINES, FRAME_LINES))
    return names


@contextmanager
def running(folder: Path, document: dict[str, Any]) -> Iterator[Station]:
    """The station in this process, stopped in order at the end."""
    document = {"station": {"name": "s", "data_dir": "data", "health_interval_s": 0.2}, **document}
    settings = from_document(document, "test", folder, {})
    orderly: list[bool] = []
    with assembled(settings) as station:
        thread = threading.Thread(target=lambda: orderly.append(station.run()), name="station")
        thread.start()
        try:
            yield station
        finally:
            station.stop()
            thread.join()
        assert orderly == [True]
        assert account_balances(station.health())


@contextmanager
def embedded(folder: Path, document: dict[str, Any]) -> Iterator[tuple[Station, Listener]]:
    """The station with its embedded broker, and a client."""
    port = free_port()
    with running(folder, {"broker": {"embedded": True, "port": port}, **document}) as station:
        eventually(lambda: _listens(port))
        with Listener(port, "inspection/#") as listener:
            yield station, listener


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def eventually(condition: Callable[[], bool], within_s: float = PATIENCE_S) -> None:
    """Wait for something that only the outside world can do."""
    waiter = threading.Event()
    deadline_s = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline_s, "it did not come about"
        waiter.wait(0.02)


def verdicts(received: list[Received]) -> list[Verdict]:
    return [wire.decode(Verdict, one.payload) for one in received if one.topic.endswith("/verdict")]


def statuses(received: list[Received]) -> list[Status]:
    return [wire.decode(Status, one.payload) for one in received if one.topic.endswith("/status")]


def states(received: list[Received]) -> list[CameraState]:
    return [wire.decode(CameraState, one.payload) for one in received if one.topic.endswith("/state")]


def has_verdicts(count: int) -> Callable[[list[Received]], bool]:
    return lambda received: sum(one.topic.endswith("/verdict") for one in received) >= count


def historical(received: list[Received]) -> list[Received]:
    return [one for one in received if one.topic.endswith("/verdict") and one.historical]


def folder_camera(path: Path, **more: Any) -> dict[str, Any]:
    return {"camera": {"c": {"kind": "folder", "path": str(path), **more}}}


SIMULATED = {"camera": {"c": {"kind": "simulated", "rate_fps": 20.0}}}


def test_each_picture_of_a_folder_gets_one_verdict_in_order(tmp_path: Path) -> None:
    names = write_pictures(tmp_path / "in", 12)
    (tmp_path / "in" / "005.png").write_bytes(b"this is no picture")
    with Mosquitto(tmp_path) as broker, Listener(broker.port) as listener:
        with running(tmp_path, {"broker": {"port": broker.port}, **folder_camera(tmp_path / "in")}):
            received = listener.wait_until(has_verdicts(12))
            listener.wait_until(lambda got: any(one.state is CameraStateName.FINISHED for one in states(got)))
        received = listener.wait_until(lambda got: statuses(got)[-1].status is StatusName.OFFLINE)
    found = verdicts(received)
    assert [one.source for one in found] == names
    assert [one.sequence for one in found] == list(range(1, 13))
    assert len({one.id for one in found}) == 12
    assert [one.outcome for one in found if one.source != "005.png"] == [Outcome.OK] * 11
    assert (found[5].outcome, found[5].reasons) == (Outcome.UNKNOWN, (Reason.UNREADABLE,))
    assert statuses(received)[0].status is StatusName.ONLINE
    last = [wire.decode(Health, one.payload) for one in received if one.topic.endswith("/health")][-1]
    account = last.cameras["c"].account
    assert (account.captured, account.ok, account.unknown, account.pending) == (12, 11, 1, 0)
    assert last.valid_until > last.at


def test_a_restart_goes_on_after_the_last_picture_that_has_a_verdict(tmp_path: Path) -> None:
    names = write_pictures(tmp_path / "in", 4)
    document = {"broker": {"port": free_port()}, **folder_camera(tmp_path / "in", mode="watch")}
    with running(tmp_path, document) as station:
        eventually(lambda: station.health().cameras["c"].account.judged == 4)
        first_epoch = station.health().cameras["c"].epoch
    write_pictures(tmp_path / "more", 6)
    for name in ("004.png", "005.png"):
        (tmp_path / "more" / name).rename(tmp_path / "in" / name)
    with (
        Mosquitto(tmp_path) as broker,
        Listener(broker.port) as listener,
        running(tmp_path, {**document, "broker": {"port": broker.port}}),
    ):
        received = listener.wait_until(has_verdicts(6))
    assert [one.source for one in verdicts(received)] == [*names, "004.png", "005.png"]
    assert [one.epoch > first_epoch for one in verdicts(received)] == [False] * 4 + [True] * 2
    gaps = [one.payload for one in received if one.topic.endswith("/gap")]
    assert len(gaps) == 1
    assert b"station_down" in gaps[0]


def test_all_verdicts_from_before_the_broker_arrive_marked_historical(tmp_path: Path) -> None:
    write_pictures(tmp_path / "in", 20)
    with Mosquitto(tmp_path, "allow_anonymous true\npersistence false") as broker:
        # A session that the broker keeps makes the subscription older than the station's first connection.
        with Listener(broker.port, "inspection/s/#", client_id="patient"):
            pass
        port = broker.port
        # The station reaches the broker through a door that is closed at first.
        door = free_port()
        document = {"broker": {"port": door}, **folder_camera(tmp_path / "in", mode="loop", rate_fps=100.0)}
        with running(tmp_path, document) as station:
            eventually(lambda: station.health().cameras["c"].account.judged >= 200)
            with forwarding(door, port), Listener(port, "inspection/s/#", client_id="patient") as listener:
                received = listener.wait_until(lambda got: len(historical(got)) >= 200)
    assert [one.sequence for one in verdicts(historical(received))][:200] == list(range(1, 201))


def test_a_missing_or_altered_bundle_makes_every_frame_unknown_until_it_is_mended(tmp_path: Path) -> None:
    bundle = tmp_path / "boards.bundle"
    with embedded(tmp_path, {"model": {"bundle": str(bundle)}, **SIMULATED}) as (_, listener):
        received = listener.wait_until(has_verdicts(3))
        assert {one.outcome for one in verdicts(received)} == {Outcome.UNKNOWN}
        assert {one.reasons for one in verdicts(received)} == {(Reason.MODEL_FAULT,)}
        listener.wait_until(lambda got: _names_fault(got, "cannot be read"))
        _alter(SHIPPED_BUNDLE, bundle)
        listener.wait_until(lambda got: _names_fault(got, "model.tflite was altered"))
        whole = tmp_path / "whole"
        whole.write_bytes(SHIPPED_BUNDLE.read_bytes())
        whole.rename(bundle)
        received = listener.wait_until(lambda got: statuses(got)[-1].status is StatusName.ONLINE)
        received = listener.wait_until(has_verdicts(len(verdicts(received)) + 5))
        assert verdicts(received)[-1].outcome is not Outcome.UNKNOWN
        assert verdicts(received)[-1].model is not None


def _names_fault(received: list[Received], text: str) -> bool:
    return any(text in fault.reason for status in statuses(received) for fault in status.faults)


def _alter(source: Path, target: Path) -> None:
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for info in old.infolist():
            content = bytearray(old.read(info))
            if info.filename == "model.tflite":
                content[len(content) // 2] ^= 1
            new.writestr(info.filename, bytes(content))


def test_a_camera_that_is_missing_is_told_once_and_recovers(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    with embedded(tmp_path, folder_camera(folder, mode="loop", rate_fps=20.0)) as (_, listener):
        received = listener.wait_until(lambda got: any(one.state is CameraStateName.STALLED for one in states(got)))
        assert "is not a folder" in str(states(received)[-1].reason)
        listener.wait_until(lambda got: statuses(got)[-1].status is StatusName.DEGRADED)
        write_pictures(tmp_path / "new", 3)
        (tmp_path / "new").rename(folder)
        received = listener.wait_until(has_verdicts(3))
        received = listener.wait_until(lambda got: statuses(got)[-1].status is StatusName.ONLINE)
        assert [one.state for one in states(received)].count(CameraStateName.STALLED) == 1


def test_a_port_that_is_taken_is_a_fault_and_not_the_end(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        document = {"broker": {"embedded": True, "port": port}, **SIMULATED}
        with running(tmp_path, document) as station:
            eventually(lambda: station.health().cameras["c"].account.judged >= 3)
            assert any("is taken by another program" in fault.reason for fault in station.faults())
            # Whoever answers there is not our broker.
            taken.setblocking(False)
            with pytest.raises(BlockingIOError):
                taken.accept()
            taken.close()
            eventually(lambda: _listens(port))
            with Listener(port) as listener:
                listener.wait_until(has_verdicts(3))


def test_a_login_that_the_broker_refuses_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    passwords = tmp_path / "passwords"
    passwords.touch(mode=0o600)
    broker_lines = f"allow_anonymous false\npassword_file {passwords}"
    with Mosquitto(tmp_path, broker_lines) as broker:
        document = {"broker": {"port": broker.port, "username": "a", "password": "wrong"}, **SIMULATED}
        with running(tmp_path, document) as station:
            eventually(lambda: any("refused" in fault.reason for fault in station.faults()))
            eventually(lambda: station.health().cameras["c"].account.judged >= 20)
    told = [record for record in caplog.records if record.levelname == "ERROR" and "refused" in record.getMessage()]
    assert len(told) == 1
    assert "wrong" not in told[0].getMessage()


@contextmanager
def forwarding(door: int, port: int) -> Iterator[None]:
    """Forward TCP connections from one port to another."""
    stop = threading.Event()
    threads: list[threading.Thread] = []
    server = socket.create_server(("127.0.0.1", door))
    server.settimeout(0.05)

    def pump(source: socket.socket, target: socket.socket) -> None:
        with source, target:
            source.settimeout(0.05)
            while not stop.is_set():
                try:
                    data = source.recv(65536)
                except TimeoutError:
                    continue
                except OSError:
                    return
                if not data:
                    return
                target.sendall(data)

    def accept() -> None:
        while not stop.is_set():
            try:
                near, _ = server.accept()
            except TimeoutError:
                continue
            far = socket.create_connection(("127.0.0.1", port))
            for pair in ((near, far.dup()), (far, near.dup())):
                threads.append(threading.Thread(target=pump, args=pair))
                threads[-1].start()

    accepting = threading.Thread(target=accept)
    accepting.start()
    try:
        yield
    finally:
        stop.set()
        accepting.join()
        for thread in threads:
            thread.join()
        server.close()
