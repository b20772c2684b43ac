"""A broker that was away, is restarted or stands still, and a network that cuts, delays and swallows; all for real."""

import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from delivery_helpers import message
from fault_tools import LONG, table
from mosquitto import Listener, Mosquitto, wait_for
from recorder_line import Line, in_order_of_first_arrival, running, verdicts

from station.messages import Verdict
from station.settings import JournalSettings
from station.wire import decode

pytestmark = [pytest.mark.fault, pytest.mark.timeout(900 if LONG else 300)]

BACKLOG = 100_000 if LONG else 4_000
CUTS = 200 if LONG else 20
RESTARTS = 10 if LONG else 2
STOPPED_S = 60.0 if LONG else 3.0
ACKNOWLEDGE_WITHIN_S = 10.0 if LONG else 1.0
"""The long form takes the default."""
HALF_OPEN = 10 if LONG else 2
LIVE_RATE_HZ = 100
RECOVERED_WITHIN_S = 10.0
KEEPING = "allow_anonymous true\npersistence true\nautosave_on_changes true\nautosave_interval 1\npersistence_location"
"""A broker that keeps what it acknowledged, as the README says."""


def test_a_backlog_drains_faster_than_live_and_does_not_hold_live_verdicts_up(tmp_path: Path) -> None:
    with Mosquitto(tmp_path, running=False) as broker:
        with running(tmp_path, broker.port) as line:
            line.judge(1, BACKLOG)
            wait_for(lambda: line.recorder.committed == BACKLOG)
        broker.start()
        pace = threading.Event()
        put_at_s: list[float] = []
        with Listener(broker.port) as listener, running(tmp_path, broker.port) as line:
            wait_for(lambda: bool(line.links))
            begin_s = time.monotonic()
            while listener.count < BACKLOG + len(put_at_s):
                put_at_s.append(time.monotonic())
                line.mailbox.put(message(len(put_at_s), epoch=line.epoch))
                pace.wait(begin_s + len(put_at_s) / LIVE_RATE_HZ - time.monotonic())
                if listener.count >= BACKLOG:
                    break
            drained_s = time.monotonic() - begin_s
            wait_for(lambda: line.recorder.is_idle)
            received = listener.wait_until(lambda _: listener.count >= BACKLOG + len(put_at_s))
    live = verdicts(received, historical=False)
    assert live == list(range(1, len(put_at_s) + 1))
    assert verdicts(received, historical=True) == list(range(1, BACKLOG + 1))
    arrived_at_s = {
        decode(Verdict, one.payload).sequence: one.at_s
        for one in received
        if one.topic.endswith("/verdict") and not one.historical
    }
    waits_s = sorted(arrived_at_s[number + 1] - at_s for number, at_s in enumerate(put_at_s))
    half_s, longest_s = waits_s[len(waits_s) // 2], waits_s[-1]
    journal_bytes = (tmp_path / "journal.sqlite").stat().st_size
    table(
        f"broker down for {BACKLOG:,} verdicts",
        {
            "verdicts in the backlog": BACKLOG,
            "lost": BACKLOG - len(set(verdicts(received, historical=True))),
            "drained, verdicts/s": BACKLOG / drained_s,
            "live meanwhile, verdicts/s": LIVE_RATE_HZ,
            "live p50 (s)": half_s,
            "live longest (s)": longest_s,
            "journal (bytes)": journal_bytes,
            "journal's bound (bytes)": JournalSettings().max_bytes,
        },
    )
    assert journal_bytes <= JournalSettings().max_bytes
    assert BACKLOG / drained_s >= 5 * LIVE_RATE_HZ
    assert longest_s < 1.0


class Wire:
    """One connection through the proxy."""

    def __init__(self, near: socket.socket, far: socket.socket) -> None:
        self.ends = (near, far)
        self.swallows = threading.Event()

    def cut(self) -> None:
        for end in self.ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


class Proxy:
    """Passes TCP connections on in pieces of any size. It can cut the present one wherever in a packet it is, swallow
    all that comes on it and leave it open, and delay each piece."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        self.longest_delay_s = 0.0
        self._random = random.Random(1)
        self._wires: list[Wire] = []
        self._threads = [threading.Thread(target=self._serve, name="proxy")]
        self._pace = threading.Event()

    def __enter__(self) -> "Proxy":
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._threads[0].join()
        for wire in self._wires:
            wire.cut()
        for thread in self._threads[1:]:
            thread.join()
        self._server.close()

    def cut(self) -> None:
        """End the present connection."""
        if self._wires:
            self._wires[-1].cut()

    def half_open(self) -> None:
        """Let the present connection stand, and nothing come through it any more."""
        self._wires[-1].swallows.set()

    def _serve(self) -> None:
        while True:
            try:
                near, _ = self._server.accept()
            except OSError:
                return
            wire = Wire(near, socket.create_connection(("127.0.0.1", self._port)))
            self._wires.append(wire)
            for source, target in (wire.ends, wire.ends[::-1]):
                thread = threading.Thread(target=self._pass_on, args=(wire, source, target), name="proxy")
                self._threads.append(thread)
                thread.start()

    def _pass_on(self, wire: Wire, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while piece := source.recv(self._random.randint(1, 3000)):
                if self.longest_delay_s:
                    self._pace.wait(self._random.uniform(0, self.longest_delay_s))
                if not wire.swallows.is_set():
                    target.sendall(piece)
        wire.cut()
        source.close()


@contextmanager
def judging(line: Line, rate_hz: float) -> Iterator[Callable[[], int]]:
    """Judge all the time at a rate; gives a function that says how many there are so far."""
    stop = threading.Event()
    count = [0]

    def work() -> None:
        begin_s = time.monotonic()
        while not stop.wait(max(0.0, begin_s + count[0] / rate_hz - time.monotonic())):
            line.mailbox.put(message(count[0] + 1, epoch=line.epoch))
            count[0] += 1

    thread = threading.Thread(target=work, name="judging")
    thread.start()
    try:
        yield lambda: count[0]
    finally:
        stop.set()
        thread.join()


def seconds_until_received(listener: Listener, up_to: int) -> float:
    """How long it takes until the verdicts up to this number have arrived."""
    begin_s = time.monotonic()
    missing, seen = set(range(1, up_to + 1)), 0

    def arrived() -> bool:
        nonlocal seen
        new = listener.after(seen)
        seen += len(new)
        missing.difference_update(verdicts(new))
        return not missing

    wait_for(arrived)
    return time.monotonic() - begin_s


def show(what: str, judged: int, listener: Listener, recovered_s: list[float]) -> None:
    numbers = verdicts(listener.received)
    table(
        what,
        {
            "judged": judged,
            "received": len(set(numbers)),
            "duplicates": len(numbers) - len(set(numbers)),
            "lost": judged - len(set(numbers)),
            "recovered within (s)": max(recovered_s),
        },
    )
    assert set(numbers) == set(range(1, judged + 1))
    assert in_order_of_first_arrival(verdicts(listener.received, historical=False))
    assert max(recovered_s) < RECOVERED_WITHIN_S


def test_a_connection_that_is_cut_again_and_again_loses_nothing(tmp_path: Path) -> None:
    pace = threading.Event()
    recovered_s = []
    with Mosquitto(tmp_path) as broker, Listener(broker.port) as listener, Proxy(broker.port) as proxy:
        with running(tmp_path, proxy.port) as line:
            judged = 0
            for cut in range(1, CUTS + 1):
                begin_s = time.monotonic()
                wait_for(lambda cut=cut: len(line.links) >= 2 * cut - 1)  # type: ignore[misc]
                recovered_s.append(time.monotonic() - begin_s)
                for _ in range(20):
                    judged += 1
                    line.mailbox.put(message(judged, epoch=line.epoch))
                    pace.wait(0.002)
                proxy.cut()
            begin_s = time.monotonic()
            wait_for(lambda: line.recorder.is_idle and len(line.links) >= 2 * CUTS + 1)
            recovered_s.append(time.monotonic() - begin_s)
        listener.wait_until(lambda messages: len(set(verdicts(messages))) == judged)
        show(f"connection cut {CUTS} times in mid-packet", judged, listener, recovered_s)


def test_a_connection_that_swallows_everything_is_noticed_by_missing_acknowledgements(tmp_path: Path) -> None:
    recovered_s = []
    with Mosquitto(tmp_path) as broker, Listener(broker.port) as listener, Proxy(broker.port) as proxy:
        proxy.longest_delay_s = 0.02
        with running(tmp_path, proxy.port, acknowledge_within_s=1.0) as line:
            with judging(line, LIVE_RATE_HZ) as judged:
                for turn in range(HALF_OPEN):
                    wait_for(lambda turn=turn: len(line.links) >= 2 * turn + 1)  # type: ignore[misc]
                    proxy.half_open()
                    recovered_s.append(seconds_until_received(listener, judged() + 10))
            wait_for(lambda: line.recorder.is_idle)
        listener.wait_until(lambda messages: len(set(verdicts(messages))) == judged())
        show(f"connection half open {HALF_OPEN} times, every piece delayed", judged(), listener, recovered_s)


def test_a_broker_that_stands_still_is_left_and_found_again(tmp_path: Path) -> None:
    with Mosquitto(tmp_path) as broker, Listener(broker.port) as listener:
        with running(tmp_path, broker.port, acknowledge_within_s=ACKNOWLEDGE_WITHIN_S) as line:
            with judging(line, LIVE_RATE_HZ) as judged:
                seconds_until_received(listener, 10)
                broker.stop()
                threading.Event().wait(STOPPED_S)
                told = [link.reason for link in line.links if not link.connected]
                broker.go_on()
                recovered_s = [seconds_until_received(listener, judged())]
            wait_for(lambda: line.recorder.is_idle)
        listener.wait_until(lambda messages: len(set(verdicts(messages))) == judged())
        show(f"broker stopped with SIGSTOP for {STOPPED_S:g} s", judged(), listener, recovered_s)
    assert len(told) == 1
    assert "acknowledged nothing" in str(told[0])


def test_a_broker_that_is_restarted_again_and_again_loses_nothing(tmp_path: Path) -> None:
    recovered_s = []
    with (
        Mosquitto(tmp_path, f"{KEEPING} {tmp_path}/") as broker,
        Listener(broker.port, client_id="patient") as listener,
    ):
        with running(tmp_path, broker.port) as line:
            with judging(line, LIVE_RATE_HZ) as judged:
                for _ in range(RESTARTS):
                    seconds_until_received(listener, judged() + 10)
                    broker.terminate()
                    threading.Event().wait(0.5)
                    broker.start()
                    recovered_s.append(seconds_until_received(listener, judged()))
            wait_for(lambda: line.recorder.is_idle)
        listener.wait_until(lambda messages: len(set(verdicts(messages))) == judged())
        show(f"broker restarted {RESTARTS} times", judged(), listener, recovered_s)
