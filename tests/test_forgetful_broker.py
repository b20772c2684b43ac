"""A mosquitto as Debian ships it, killed in mid-stream, forgets what it acknowledged; `request/replay` restores it.

The station's own replay after a reconnect is switched off here, so that nothing but the request helps.
"""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from fault_tools import LONG, station_process, table
from mjpeg_server import mjpeg_camera
from mosquitto import Listener, Mosquitto, Received

from station.messages import Verdict
from station.wire import decode

pytestmark = [pytest.mark.fault, pytest.mark.timeout(600 if LONG else 300)]

KILLS = 5 if LONG else 1
BETWEEN = 2_000 if LONG else 300
"""Verdicts between two kills."""
PATIENCE_S = 120.0
AS_SHIPPED = "allow_anonymous true\npersistence true\npersistence_location {folder}/"
CONFIGURATION = """\
version = 1
[station]
name = "line-1"
data_dir = "data"
[broker]
port = {port}
replay_window_s = 0.0
reconnect_max_s = 0.5
[commands]
allow = ["replay"]
[evidence]
enabled = false
[camera.top]
kind = "stream"
url = "{url}"
buffer_frames = 256
"""


class Seen:
    """The verdicts that a listener has, each decoded once."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._taken = 0
        self._sequences: set[int] = set()
        self.newest = (0, 0)

    @property
    def sequences(self) -> set[int]:
        return self._take(self._listener.received)

    def wait_until(self, condition: Callable[[set[int]], bool]) -> None:
        self._listener.wait_until(lambda received: condition(self._take(received)), PATIENCE_S)

    def wait_for_more(self, count: int) -> None:
        enough = len(self.sequences) + count
        self.wait_until(lambda sequences: len(sequences) >= enough)

    def _take(self, received: list[Received]) -> set[int]:
        for one in received[self._taken :]:
            if one.topic.endswith("/verdict"):
                verdict = decode(Verdict, one.payload)
                self._sequences.add(verdict.sequence)
                self.newest = max(self.newest, (verdict.sequence, verdict.epoch))
        self._taken = len(received)
        return self._sequences


def replayed(listener: Listener, number: int, epoch: int, last: int) -> int:
    """Ask for everything up to this sequence number again; how many the station says it sends."""
    request = {
        "transaction": str(number),
        "camera": "top",
        "epoch": epoch,
        "first_sequence": 1,
        "last_sequence": last,
    }
    before = listener.count
    listener.publish("inspection/line-1/request/replay", json.dumps(request).encode())
    received = listener.wait_until(
        lambda received: any(one.topic.endswith("response/replay") for one in received[before:]), PATIENCE_S
    )
    answer = json.loads(next(one.payload for one in received[before:] if one.topic.endswith("response/replay")))
    assert answer["accepted"], answer
    return int(answer["result"]["rows"])


def test_a_replay_restores_what_a_killed_broker_forgot(tmp_path: Path) -> None:
    forgotten = {"subscriber that was away": 0, "subscriber that was connected": 0}
    asked = lost = 0
    with (
        Mosquitto(tmp_path, AS_SHIPPED.format(folder=tmp_path)) as broker,
        mjpeg_camera(100.0) as camera,
        station_process(tmp_path, CONFIGURATION.format(port=broker.port, url=camera.url)) as station,
        Listener(broker.port) as connected,
    ):
        station.start()
        present = Seen(connected)
        known: set[int] = set()
        for number in range(KILLS):
            with Listener(broker.port, client_id="patient") as patient:
                away = Seen(patient)
                away.wait_until(lambda sequences: len(sequences) >= 20)
                known |= away.sequences
            # The broker now keeps for the patient subscriber what it acknowledges to the station.
            present.wait_for_more(BETWEEN)
            broker.kill()
            broker.start()
            present.wait_for_more(50)
            last, epoch = present.newest
            with Listener(broker.port, client_id="patient") as patient:
                away = Seen(patient)
                wanted = set(range(1, last + 1))
                forgotten["subscriber that was connected"] += len(wanted - present.sequences)
                forgotten["subscriber that was away"] += len(wanted - known - away.sequences)
                asked += replayed(patient, number, epoch, last)
                away.wait_until((wanted - known).issubset)
                present.wait_until(wanted.issubset)
                known |= away.sequences
                lost += len(wanted - known) + len(wanted - present.sequences)
        assert station.stop() == 0
    table(
        f"broker as Debian ships it, killed {KILLS} times",
        {
            "verdicts": max(present.sequences),
            **{f"forgotten for the {who}": count for who, count in forgotten.items()},
            "sent again on request": asked,
            "lost after the replay": lost,
        },
    )
    assert lost == 0
    assert forgotten["subscriber that was away"] > BETWEEN // 2
