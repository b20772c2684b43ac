"""Cameras that stand still, as the whole station meets them: a stopped process, and a source that accepts and never
sends; and what is left when the station itself is killed."""

import os
import select
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from fault_tools import LONG, station_process, table
from mjpeg_server import mjpeg_camera
from mosquitto import Listener, Mosquitto, Received

from station.messages import CameraState, CameraStateName, Verdict
from station.wire import decode

pytestmark = [pytest.mark.fault, pytest.mark.timeout(600 if LONG else 300)]

TURNS = 5 if LONG else 1
AWAY_S = 20.0 if LONG else 4.0
DEADLINE_S = 2.0
BUSY_S = 2.0
"""What a busy machine may add to a deadline."""
AGAIN_WITHIN_S = 5.0
PATIENCE_S = 120.0
CONFIGURATION = """\
version = 1
[station]
name = "line-1"
data_dir = "data"
[broker]
port = {port}
[evidence]
enabled = false
[camera.top]
kind = "stream"
url = "{url}"
read_deadline_s = {deadline_s}
"""


def states(received: list[Received]) -> list[CameraStateName]:
    return [decode(CameraState, one.payload).state for one in received if one.topic.endswith("/state")]


def verdicts(received: list[Received]) -> int:
    return sum(one.topic.endswith("/verdict") for one in received)


def camera_process(station: int) -> psutil.Process:
    found = [one for one in psutil.Process(station).children() if "_camera_child" in " ".join(one.cmdline())]
    assert len(found) == 1
    return found[0]


def seconds_until(listener: Listener, after: int, condition: Callable[[list[Received]], bool]) -> float:
    """How long it takes until what arrives after the first `after` messages meets a condition."""
    begin_s = time.monotonic()
    listener.wait_until(lambda received: condition(received[after:]), PATIENCE_S)
    return time.monotonic() - begin_s


def test_a_camera_that_stands_still_is_told_once_replaced_and_back(tmp_path: Path) -> None:
    stalled_s: dict[str, list[float]] = {"stopped process": [], "silent source": []}
    again_s: dict[str, list[float]] = {"stopped process": [], "silent source": []}
    with (
        Mosquitto(tmp_path) as broker,
        Listener(broker.port) as listener,
        mjpeg_camera(50.0) as camera,
        station_process(
            tmp_path, CONFIGURATION.format(port=broker.port, url=camera.url, deadline_s=DEADLINE_S)
        ) as station,
    ):
        station.start()
        listener.wait_until(lambda received: verdicts(received) >= 50, PATIENCE_S)
        for _ in range(TURNS):
            child, seen = camera_process(station.pid), listener.count
            child.send_signal(signal.SIGSTOP)
            stalled_s["stopped process"].append(
                seconds_until(listener, seen, lambda new: CameraStateName.STALLED in states(new))
            )
            # The source was there all the time: it is back as soon as the child is gone.
            again_s["stopped process"].append(
                seconds_until(listener, seen, lambda new: CameraStateName.RUNNING in states(new) and verdicts(new) > 20)
            )
            assert camera_process(station.pid).pid != child.pid
            assert states(listener.after(seen)) == [CameraStateName.STALLED, CameraStateName.RUNNING]

            seen = listener.count
            camera.process.send_signal(signal.SIGSTOP)
            stalled_s["silent source"].append(
                seconds_until(listener, seen, lambda new: CameraStateName.STALLED in states(new))
            )
            threading.Event().wait(AWAY_S)
            camera.process.send_signal(signal.SIGCONT)
            again_s["silent source"].append(
                seconds_until(listener, seen, lambda new: CameraStateName.RUNNING in states(new) and verdicts(new) > 20)
            )
            assert states(listener.after(seen)) == [CameraStateName.STALLED, CameraStateName.RUNNING]
        last = camera_process(station.pid)
        ended = os.pidfd_open(last.pid)
        try:
            begin_s = time.monotonic()
            station.kill()
            assert select.select([ended], [], [], PATIENCE_S)[0]
            orphan_s = time.monotonic() - begin_s
        finally:
            os.close(ended)
        received = listener.received
    gaps = [one for one in received if one.topic.endswith("/gap") and b"camera_stalled" in one.payload]
    table(
        f"camera stands still, {TURNS} times each",
        {
            "deadline (s)": DEADLINE_S,
            **{f"{what}: stalled after (s)": max(found) for what, found in stalled_s.items()},
            **{f"{what}: frames again after (s)": max(found) for what, found in again_s.items()},
            "gaps declared": len(gaps),
            "station killed: camera process gone after (s)": orphan_s,
        },
    )
    assert max(max(found) for found in stalled_s.values()) < DEADLINE_S + BUSY_S
    assert max(max(found) for found in again_s.values()) < AGAIN_WITHIN_S + BUSY_S
    assert len(gaps) == 2 * TURNS
    assert orphan_s < 1 + BUSY_S
    sequences = [decode(Verdict, one.payload).sequence for one in received if one.topic.endswith("/verdict")]
    assert sorted(set(sequences)) == list(range(1, max(sequences) + 1))
