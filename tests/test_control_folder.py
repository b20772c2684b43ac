"""Requests of the machine's own command line, through the folder and to the whole station."""

import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from mosquitto import Listener, Mosquitto
from test_station import SIMULATED, has_verdicts, running

from station.adapters.control_folder import FOLDER, ControlFolder, ask, is_read
from station.adapters.sqlite_journal import export
from station.errors import NotAnswered, NotRunning, StorageError
from station.ids import uuid7
from station.messages import Incoming, Origin, PauseResult, Response, Verb
from station.requests import MAX_BYTES
from station.wire import decode


def taken(control: ControlFolder) -> Incoming:
    """The next request; somebody else is about to make it."""
    waiter = threading.Event()
    for _ in range(1000):
        for incoming in control.take():
            return incoming
        waiter.wait(0.01)
    raise AssertionError("no request came")


def test_a_request_reaches_the_station_and_its_answer_the_one_who_asked(tmp_path: Path) -> None:
    with ControlFolder(tmp_path, "s") as control, ThreadPoolExecutor(1, "asking") as pool:
        future = pool.submit(ask, tmp_path, Verb.RESUME, {"camera": "c"}, 20.0)
        incoming = taken(control)
        assert (incoming.topic, incoming.origin) == ("inspection/s/request/resume", Origin.LOCAL)
        assert b'"camera": "c"' in incoming.payload
        assert incoming.reply is not None
        incoming.reply(
            b'{"id":"0190a5a0-0000-7000-8000-000000000001","station":"s","verb":"resume","transaction":"t",'
            b'"at":"2026-01-01T00:00:00Z","accepted":false,"reason":"because"}'
        )
        assert future.result().reason == "because"
    assert [path.name for path in (tmp_path / FOLDER).iterdir()] == ["lock"]


@contextmanager
def often_switched() -> Iterator[None]:
    """Threads take turns as often as those of two processes would."""
    usual_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(usual_s)


def test_files_that_come_and_go_while_the_folder_is_read_are_no_fault_of_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def hurry() -> int:
        taken_back = 0
        for _ in range(1000):
            with pytest.raises(NotAnswered) as raised:
                ask(tmp_path, Verb.RESUME, {}, 0.0)
            taken_back += "was taken back" in str(raised.value)
        return taken_back

    seen = 0
    with ControlFolder(tmp_path, "s") as control, often_switched(), ThreadPoolExecutor(1, "asking") as pool:
        future = pool.submit(hurry)
        while not future.done():
            seen += len(list(control.take()))
        # What was taken back was not done, and what was not was.
        assert seen + future.result() == 1000
    assert not caplog.records


def test_without_a_station_nothing_is_left_in_the_folder(tmp_path: Path) -> None:
    with pytest.raises(NotRunning, match="no station runs on"):
        ask(tmp_path, Verb.RESUME, {}, 1.0)
    with ControlFolder(tmp_path, "s"):
        assert is_read(tmp_path)
    assert not is_read(tmp_path)
    with pytest.raises(NotRunning):
        ask(tmp_path, Verb.RESUME, {}, 1.0)
    assert [path.name for path in (tmp_path / FOLDER).iterdir()] == ["lock"]


def test_a_request_that_nobody_takes_is_taken_back(tmp_path: Path) -> None:
    with ControlFolder(tmp_path, "s") as control:
        with pytest.raises(NotAnswered, match=r"did not answer within 0\.1 s; the request was taken back"):
            ask(tmp_path, Verb.RESUME, {}, 0.1)
        assert list(control.take()) == []


def test_a_request_that_was_taken_and_not_answered_says_so(tmp_path: Path) -> None:
    with ThreadPoolExecutor(1, "asking") as pool:
        with ControlFolder(tmp_path, "s") as control:
            future = pool.submit(ask, tmp_path, Verb.RESUME, {}, 20.0)
            taken(control)
        with pytest.raises(NotAnswered, match="stopped before it answered; it has the request"):
            future.result()


def test_a_second_station_is_refused_and_the_next_run_begins_clean(tmp_path: Path) -> None:
    with ControlFolder(tmp_path, "s"):
        with pytest.raises(StorageError, match="another running station"):
            ControlFolder(tmp_path, "s").__enter__()
        (tmp_path / FOLDER / f"{uuid7(1)}.resume").write_bytes(b"{}")
    with ControlFolder(tmp_path, "s") as control:
        assert list(control.take()) == []


def test_what_is_no_request_is_left_alone_and_what_is_too_long_is_not_read(tmp_path: Path) -> None:
    with ControlFolder(tmp_path, "s") as control:
        for name in ("notes.txt", "..resume", f"{uuid7(1)}.resume.new", f"{uuid7(2)}.answer"):
            (tmp_path / FOLDER / name).write_bytes(b"x")
        assert list(control.take()) == []
        (tmp_path / FOLDER / f"{uuid7(3)}.resume").write_bytes(bytes(10 * MAX_BYTES))
        (incoming,) = control.take()
        assert len(incoming.payload) == MAX_BYTES + 1


def test_the_command_line_needs_no_allow_list_and_is_on_record(tmp_path: Path) -> None:
    with Mosquitto(tmp_path) as broker, Listener(broker.port) as listener:
        with running(tmp_path, {"broker": {"port": broker.port}, **SIMULATED}):
            listener.wait_until(has_verdicts(1))
            data = tmp_path / "data"
            answer = ask(data, Verb.PAUSE, {"camera": "c", "duration_s": 5.0}, 20.0)
            assert (answer.accepted, answer.origin, answer.verb) == (True, Origin.LOCAL, "pause")
            assert isinstance(answer.result, PauseResult)
            assert ask(data, Verb.RESUME, {"camera": "c"}, 20.0).accepted
            refused = ask(data, Verb.RESUME, {"camera": "d", "colour": "red"}, 20.0)
            assert refused.reason == "not a ResumeRequest: colour: Extra inputs are not permitted"
        published = [one for one in listener.received if "/response/" in one.topic]
    kept = [row.message for row in export(tmp_path / "data" / "journal.sqlite") if row.message.kind == "command"]
    assert [decode(Response, one.payload).origin for one in kept] == [Origin.LOCAL] * 3
    assert [one.payload for one in published] == [one.payload for one in kept]
