"""A mosquitto as Debian ships it, killed in mid-stream, forgets what it acknowledged; `request/replay` restores it.

The station's own replay after a reconnect is switched off here, so that nothing but the request helps.
"""

import json
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


def verdicts(received: list[Received]) -> list[Verdict]:
    return [decode(Verdict, one.payload) for one in received if one.topic.endswith("/verdict")]


def sequences(received: list[Received]) -> set[int]:
    return {verdict.sequence for verdict in verdicts(received)}


def new_verdicts(listener: Listener, count: int) -> None:
    """Wait until this many more have arrived."""
    before = listener.count
    listener.wait_until(lambda received: len(verdicts(received[before:])) >= count, PATIENCE_S)


def all_there(listener: Listener, known: set[int], wanted: set[int]) -> None:
    """Wait until what is wanted has arrived, or was there before."""
    listener.wait_until(lambda received: wanted <= known | sequences(received), PATIENCE_S)


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
        known: set[int] = set()
        for number in range(KILLS):
            with Listener(broker.port, client_id="patient") as patient:
                patient.wait_until(lambda received: len(sequences(received)) >= 20, PATIENCE_S)
                known |= sequences(patient.received)
            # The broker now keeps for the patient subscriber what it acknowledges to the station.
            new_verdicts(connected, BETWEEN)
            broker.kill()
            broker.start()
            new_verdicts(connected, 50)
            last, epoch = max((one.sequence, one.epoch) for one in verdicts(connected.received))
            with Listener(broker.port, client_id="patient") as patient:
                wanted = set(range(1, last + 1))
                forgotten["subscriber that was connected"] += len(wanted - sequences(connected.received))
                forgotten["subscriber that was away"] += len(wanted - known - sequences(patient.received))
                asked += replayed(patient, number, epoch, last)
                all_there(patient, known, wanted)
                all_there(connected, set(), wanted)
                known |= sequences(patient.received)
                lost += len(wanted - known) + len(wanted - sequences(connected.received))
        assert station.stop() == 0
        all_of = connected.received
    table(
        f"broker as Debian ships it, killed {KILLS} times",
        {
            "verdicts": max(sequences(all_of)),
            **{f"forgotten for the {who}": count for who, count in forgotten.items()},
            "sent again on request": asked,
            "lost after the replay": lost,
        },
    )
    assert lost == 0
    assert forgotten["subscriber that was away"] > BETWEEN // 2
