"""Journal and pictures on a real file system of 64 MB that another program fills to the last byte."""

import threading
from pathlib import Path

import pytest
from fault_tools import LONG, filling, small_file_system, station_process, table
from mosquitto import Listener, Mosquitto, Received, wait_for
from recorder_line import running
from recorder_line import verdicts as numbers_in

from station.adapters.sqlite_journal import export, verify
from station.messages import Gap, Health, Status, StatusName, Verdict
from station.wire import decode

pytestmark = [pytest.mark.fault, pytest.mark.timeout(900 if LONG else 300)]

PATIENCE_S = 120.0
DISK_BYTES = 64 << 20
FULL_S = 60.0 if LONG else 4.0
OVERFLOWING = 18_000 if LONG else 1_500
"""Verdicts judged after the disk refused the first."""
SPOOL_BYTES = 400_000
"""Of the memory for verdicts while the disk refuses; the station's own is twenty times as large."""
CONFIGURATION = """\
version = 1
[station]
name = "line-1"
data_dir = "{data}"
health_interval_s = 0.5
[broker]
port = {port}
[evidence]
min_free_bytes = 0
[camera.top]
kind = "simulated"
rate_fps = 20.0
defect_share = 0.9
"""


def of_kind(received: list[Received], kind: str) -> list[bytes]:
    return [one.payload for one in received if one.topic.endswith(f"/{kind}")]


def verdicts(received: list[Received]) -> list[Verdict]:
    return [decode(Verdict, payload) for payload in of_kind(received, "verdict")]


def gaps(received: list[Received]) -> list[Gap]:
    return [decode(Gap, payload) for payload in of_kind(received, "gap")]


def status(received: list[Received]) -> Status:
    return decode(Status, of_kind(received, "status")[-1])


def faults(received: list[Received]) -> set[str]:
    return {fault.what for fault in status(received).faults}


def test_the_station_judges_and_publishes_on_a_full_disk_and_recovers(tmp_path: Path) -> None:
    with (
        small_file_system(tmp_path, DISK_BYTES) as disk,
        Mosquitto(tmp_path) as broker,
        Listener(broker.port) as listener,
        station_process(tmp_path, CONFIGURATION.format(data=disk / "data", port=broker.port)) as station,
    ):
        station.start()
        listener.wait_until(lambda received: len(verdicts(received)) >= 40, PATIENCE_S)
        with filling(disk):
            listener.wait_until(lambda received: faults(received) >= {"journal", "evidence"}, PATIENCE_S)
            before = len(verdicts(listener.received))
            threading.Event().wait(FULL_S)
            during = len(verdicts(listener.received)) - before
        listener.wait_until(lambda received: status(received).status is StatusName.ONLINE, PATIENCE_S)
        listener.wait_until(lambda received: verdicts(received)[-1].durable, PATIENCE_S)
        assert station.stop() == 0
        received = listener.wait_until(lambda received: status(received).status is StatusName.OFFLINE)
        journalled = [row.message.sequence for row in export(disk / "data" / "journal.sqlite") if row.message.sequence]
        whole = verify(disk / "data" / "journal.sqlite").fault is None
    log = station.log.read_text(encoding="utf-8")
    found = verdicts(received)
    account = decode(Health, of_kind(received, "health")[-1]).cameras["top"].account
    told = {
        "journal": log.count("verdicts are published with durable: false"),
        "journal recovered": log.count("verdicts are durable again"),
    }
    table(
        f"full file system of {DISK_BYTES >> 20} MB for {FULL_S:g} s",
        {
            "captured": account.captured,
            "judged": account.judged,
            "received": len({one.id for one in found}),
            "received while it was full, per s": during / FULL_S,
            "durable: false": sum(not one.durable for one in found),
            "in the journal at last": len(set(journalled)),
            "in gaps": sum(gap.count or 0 for gap in gaps(received)),
            "lost": account.judged - len({one.id for one in found}),
            "said": told,
        },
    )
    assert account.balanced
    assert account.captured == account.judged == len({one.id for one in found}) == len(set(journalled))
    assert during / FULL_S > 10
    assert sum(not one.durable for one in found) > 0
    assert told == {"journal": 1, "journal recovered": 1}
    assert gaps(received) == []
    assert whole


def test_what_finds_no_room_on_disk_and_in_memory_is_declared_to_the_last_one(tmp_path: Path) -> None:
    with (
        small_file_system(tmp_path, DISK_BYTES) as disk,
        Mosquitto(tmp_path) as broker,
        Listener(broker.port, client_id="patient") as listener,
    ):
        with running(disk, broker.port, spool_bytes=SPOOL_BYTES) as line:
            line.judge(1, 200)
            wait_for(lambda: line.recorder.is_idle)
            broker.stop()
            with filling(disk):
                judged = 200
                while line.recorder.fault is None:
                    judged += 1
                    line.judge(judged, judged)
                    threading.Event().wait(0.001)
                line.judge(judged + 1, judged + OVERFLOWING)
                judged += OVERFLOWING
                wait_for(lambda: line.recorder.committed == judged)
            broker.go_on()
            wait_for(lambda: line.recorder.fault is None and line.recorder.is_idle)
            line.judge(judged + 1, judged + 100)
            judged += 100
            wait_for(lambda: line.recorder.committed == judged and line.recorder.is_idle)
        received = listener.wait_until(lambda messages: max(numbers_in(messages)) == judged)
        declared = gaps(received)
        whole = verify(disk / "journal.sqlite").fault is None
    arrived = set(numbers_in(received))
    named = sum(gap.count or 0 for gap in declared)
    table(
        "full disk while the broker stands still",
        {
            "judged": judged,
            "received": len(arrived),
            "in gaps": named,
            "gaps": len(declared),
            "lost and not declared": judged - len(arrived) - named,
        },
    )
    assert named > 0
    assert len(arrived) + named == judged
    missing = set(range(1, judged + 1)) - arrived
    assert all(any((gap.first_sequence or 0) <= one <= (gap.last_sequence or 0) for gap in declared) for one in missing)
    assert {gap.why for gap in declared} == {"disk_full"}
    assert whole
