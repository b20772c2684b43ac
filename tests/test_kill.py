"""SIGKILL of the whole station at random moments, counted against numbers that the cameras stamp into their pictures.

The cameras, the broker and the subscriber stand outside the station and live on. One camera sends a live stream: what
it exposes while nobody looks is gone, and has to be named in a gap. The other drops files: of these nothing may be
missing at all.
"""

import random
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from uuid import UUID

import pytest
from fault_tools import LONG, StationProcess, station_process, table
from mosquitto import Listener, Mosquitto, Received, wait_for
from numbered_camera import Sent, numbered_cameras, read_number
from tiny_detector import trained_folder

from station.adapters.sqlite_journal import verify
from station.messages import Gap, Verdict
from station.wire import decode

pytestmark = [
    pytest.mark.fault,
    pytest.mark.training,
    pytest.mark.timeout(3600 if LONG else 300),
    # TensorFlow 2.21's tensors do not know NumPy 2's `copy` argument.
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"),
]

KILLS = 100 if LONG else 4
RATE_FPS = 80.0
"""Of each of the two cameras."""
LONGEST_LIFE_S = 4.0 if LONG else 1.0
"""From a start's first verdict to the kill, at most."""
KEPT_FILES = 500
EARLY_SHARE = 0.15
"""Kills that come at any moment after the start, without waiting for a verdict."""

CONFIGURATION = """\
version = 1
[station]
name = "line-1"
data_dir = "data"
[broker]
port = {port}
reconnect_max_s = 0.5
[model]
bundle = "{bundle}"
[evidence]
max_bytes = 20_000_000
[camera.live]
kind = "stream"
url = "{cameras.url}"
buffer_frames = 256
[camera.file]
kind = "folder"
mode = "watch"
path = "{cameras.folder}"
"""


@dataclass
class Seen:
    """What a subscriber that lives on has received."""

    verdicts: dict[UUID, Verdict] = field(default_factory=dict)
    gaps: dict[UUID, Gap] = field(default_factory=dict)
    starts: set[tuple[int, str]] = field(default_factory=set)
    messages: int = 0
    taken: int = 0
    newest_file: int = 0
    cleared: int = 0

    def take(self, received: Sequence[Received]) -> None:
        for one in received:
            if one.topic.endswith("/verdict"):
                verdict = decode(Verdict, one.payload)
                assert self.verdicts.setdefault(verdict.id, verdict) == verdict, "one id for two verdicts"
                self.starts.add((verdict.epoch, verdict.camera))
                self.messages += 1
                if verdict.camera == "file":
                    self.newest_file = max(self.newest_file, source_number(verdict))
            elif one.topic.endswith("/gap"):
                gap = decode(Gap, one.payload)
                self.gaps[gap.id] = gap
        self.taken += len(received)

    def both_cameras_since(self, epoch: int) -> bool:
        """Whether both cameras have verdicts of a start later than the one with this number."""
        return len({camera for later, camera in self.starts if later > epoch}) == 2

    def newest_epoch(self) -> int:
        return max((epoch for epoch, _ in self.starts), default=0)

    def of(self, camera: str) -> list[Verdict]:
        chosen = [verdict for verdict in self.verdicts.values() if verdict.camera == camera]
        return sorted(chosen, key=lambda verdict: (verdict.epoch, verdict.sequence))


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained_folder(tmp_path_factory.getbasetemp()) / "tiny.bundle"


def follow(listener: Listener, seen: Seen, folder: Path, condition: Callable[[], bool]) -> None:
    """Take what arrives until a condition holds; clear away pictures that were judged, as somebody does on every line,
    but not the newest, which the station goes by after a restart."""

    def met() -> bool:
        seen.take(listener.after(seen.taken))
        while seen.cleared < seen.newest_file - KEPT_FILES:
            seen.cleared += 1
            (folder / f"{seen.cleared:07}.jpg").unlink(missing_ok=True)
        return condition()

    wait_for(met, 120)


def killed_again_and_again(station: StationProcess, listener: Listener, seen: Seen, folder: Path, kills: int) -> float:
    """Start and kill; return how long the station ran in all."""
    chance = random.Random(20260101)
    pause = threading.Event()
    ran_s = 0.0
    for _ in range(kills):
        before = seen.newest_epoch()
        began_s = time.monotonic()
        station.start()
        if chance.random() >= EARLY_SHARE:
            follow(listener, seen, folder, lambda before=before: seen.both_cameras_since(before))  # type: ignore[misc]
        pause.wait(chance.uniform(0, LONGEST_LIFE_S))
        assert station.is_running
        station.kill()
        ran_s += time.monotonic() - began_s
    return ran_s


def test_nothing_is_lost_when_the_station_is_killed_again_and_again(tmp_path: Path, bundle: Path) -> None:
    with (
        Mosquitto(tmp_path) as broker,
        Listener(broker.port) as listener,
        numbered_cameras(RATE_FPS, tmp_path) as (cameras, exposing),
        station_process(tmp_path, CONFIGURATION.format(port=broker.port, bundle=bundle, cameras=cameras)) as station,
    ):
        seen = Seen()
        ran_s = killed_again_and_again(station, listener, seen, cameras.folder, KILLS)
        before = seen.newest_epoch()
        began_s = time.monotonic()
        station.start()
        follow(listener, seen, cameras.folder, lambda: seen.both_cameras_since(before))
        ran_s += time.monotonic() - began_s
        assert exposing.stdin is not None
        exposing.stdin.close()
        exposing.wait()
        sent = {kind: cameras.sent(kind) for kind in ("live", "file")}
        newest = sent["file"][-1].number
        follow(listener, seen, cameras.folder, lambda: seen.newest_file == newest)
        assert station.stop() == 0
        seen.take(listener.after(seen.taken))
    journal = tmp_path / "data" / "journal.sqlite"
    assert verify(journal).fault is None
    with sqlite3.connect(f"file:{journal}?mode=ro", uri=True) as database:
        journalled = {UUID(bytes=row[0]) for row in database.execute("SELECT id FROM journal WHERE kind = 'verdict'")}
        waiting = database.execute("SELECT count(*) FROM outbox").fetchone()[0]
    database.close()
    live, in_gap, in_flight, unnamed = live_account(seen, sent["live"])
    files = {source_number(verdict) for verdict in seen.of("file")}
    lost_files = {one.number for one in sent["file"]} - files
    table(
        f"{KILLS} times SIGKILL at random moments",
        {
            "kills": KILLS,
            "starts whose verdicts arrived": len({epoch for epoch, _ in seen.starts}),
            "sent by the cameras": sum(map(len, sent.values())),
            "judged": len(journalled),
            "in gaps": in_gap,
            "of these in flight at a kill": in_flight,
            "station_down gaps": sum(gap.why == "station_down" for gap in seen.gaps.values()),
            "received": len(seen.verdicts),
            "duplicates": seen.messages - len(seen.verdicts),
            "lost": len(journalled - seen.verdicts.keys()) + len(lost_files) + len(unnamed),
            "verdicts/s while it ran": len(journalled) / ran_s,
            "verdicts/s from a start's first to its last": rate_of_starts(seen),
        },
    )
    assert journalled == seen.verdicts.keys()
    assert waiting == 0
    assert not lost_files
    assert not unnamed
    assert len(live) == len(seen.of("live")), "two verdicts for one live picture"
    assert len(files) == len(seen.of("file")), "two verdicts for one file"
    assert {gap.why for gap in seen.gaps.values()} <= {"station_down"}


def rate_of_starts(seen: Seen) -> float:
    """Verdicts a second, without the time that a start takes."""
    spans: dict[int, tuple[datetime, datetime, int]] = {}
    for verdict in seen.verdicts.values():
        first, last, count = spans.get(verdict.epoch, (verdict.captured_at, verdict.captured_at, 0))
        spans[verdict.epoch] = min(first, verdict.captured_at), max(last, verdict.captured_at), count + 1
    return sum(count for _, _, count in spans.values()) / sum(
        (last - first).total_seconds() for first, last, _ in spans.values()
    )


def source_number(verdict: Verdict) -> int:
    assert verdict.source is not None
    number = int(verdict.source.removesuffix(".jpg"))
    assert read_number(verdict.defects) == number, f"the picture {number} was not read"
    return number


def live_account(seen: Seen, sent: Sequence[Sent]) -> tuple[dict[int, Verdict], int, int, list[int]]:
    """Join the live camera's own list with what was received.

    Within one start, sequence numbers and stamped numbers go in step: a frame without pixels is known by its place.

    Returns:
        Number → verdict; how many of the others lie in a `station_down` gap, and how many of these had a viewer; and
        the numbers that are nowhere.
    """
    verdicts = seen.of("live")
    offsets: dict[int, Counter[int]] = {}
    for verdict in verdicts:
        if (number := read_number(verdict.defects)) is not None and verdict.defects:
            offsets.setdefault(verdict.epoch, Counter())[number - verdict.sequence] += 1
    assert all(len(found) == 1 for found in offsets.values()), f"numbers out of step: {offsets}"
    offset = {epoch: next(iter(found)) for epoch, found in offsets.items()}
    judged = {verdict.sequence + offset[verdict.epoch]: verdict for verdict in verdicts}
    first_of = {epoch: 1 + offset[epoch] for epoch in offset}
    bounds = []
    for gap in seen.gaps.values():
        if gap.camera == "live" and gap.why == "station_down":
            assert gap.epoch is not None
            assert gap.first_sequence is not None
            last_before = gap.first_sequence - 1 + offset[gap.epoch]
            first_after = min(number for epoch, number in first_of.items() if epoch > gap.epoch)
            assert gap.began == judged[last_before].captured_at
            assert gap.ended == judged[first_after].captured_at
            bounds.append((last_before, first_after))
    missing = [one for one in sent if one.number not in judged]
    named = [one for one in missing if any(before < one.number < after for before, after in bounds)]
    numbers = {one.number for one in named}
    unnamed = [one.number for one in missing if one.number not in numbers]
    # The line stops while the station runs: what comes after its last verdict was never due.
    return judged, len(named), sum(one.watched for one in named), unnamed
