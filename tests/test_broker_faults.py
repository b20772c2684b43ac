"""Backlogs and cut connections, for real. `FAULTS=long` takes the full numbers (about four minutes)."""

import os
import random
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path

from delivery_helpers import message
from mosquitto import Listener, Mosquitto, wait_for
from recorder_line import in_order_of_first_arrival, running, verdicts

from station.messages import Verdict
from station.wire import decode

LONG = os.environ.get("FAULTS") == "long"
BACKLOG = 100_000 if LONG else 4_000
CUTS = 200 if LONG else 20
LIVE_RATE_HZ = 100


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
    print(f"{BACKLOG} drained at {BACKLOG / drained_s:.0f}/s; live p50 {half_s:.3f} s, longest {longest_s:.3f} s")
    assert BACKLOG / drained_s >= 5 * LIVE_RATE_HZ
    assert longest_s < 1.0


class CuttingProxy:
    """Passes a TCP connection on in pieces of any size, until it is cut."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        self._random = random.Random(1)
        self._pair: tuple[socket.socket, ...] = ()
        self._threads = [threading.Thread(target=self._serve, name="proxy")]

    def __enter__(self) -> "CuttingProxy":
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._threads[0].join()
        self.cut()
        for thread in self._threads[1:]:
            thread.join()
        self._server.close()

    def cut(self) -> None:
        """End the present connection, wherever in a packet it is."""
        for stream in self._pair:
            with suppress(OSError):
                stream.shutdown(socket.SHUT_RDWR)

    def _serve(self) -> None:
        while True:
            try:
                inner, _ = self._server.accept()
            except OSError:
                return
            outer = socket.create_connection(("127.0.0.1", self._port))
            self._pair = (inner, outer)
            for source, target in ((inner, outer), (outer, inner)):
                thread = threading.Thread(target=self._pass_on, args=(source, target), name="proxy")
                self._threads.append(thread)
                thread.start()

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while piece := source.recv(self._random.randint(1, 3000)):
                target.sendall(piece)
        for stream in (source, target):
            with suppress(OSError):
                stream.shutdown(socket.SHUT_RDWR)
        source.close()


def test_a_connection_that_is_cut_again_and_again_loses_nothing(tmp_path: Path) -> None:
    pace = threading.Event()
    with Mosquitto(tmp_path) as broker, Listener(broker.port) as listener, CuttingProxy(broker.port) as proxy:
        with running(tmp_path, proxy.port) as line:
            judged = 0
            for cut in range(1, CUTS + 1):
                wait_for(lambda cut=cut: len(line.links) >= 2 * cut - 1)  # type: ignore[misc]
                for _ in range(20):
                    judged += 1
                    line.mailbox.put(message(judged, epoch=line.epoch))
                    pace.wait(0.002)
                proxy.cut()
            cut_at_s = time.monotonic()
            wait_for(lambda: line.recorder.is_idle and len(line.links) >= 2 * CUTS + 1)
            recovered_s = time.monotonic() - cut_at_s
        received = listener.wait_until(lambda messages: len(set(verdicts(messages))) == judged)
    print(f"{CUTS} cuts, {judged} judged, {len(verdicts(received))} received, recovered in {recovered_s:.2f} s")
    assert in_order_of_first_arrival(verdicts(received, historical=False))
    assert recovered_s < 10
