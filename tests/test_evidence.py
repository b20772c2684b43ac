"""Which pictures are kept, what goes first, and that what stands in the folder is whole, whatever happens."""

import hashlib
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from delivery_helpers import FakeClock
from delivery_helpers import verdict as plain_verdict
from hypothesis import given, settings
from hypothesis import strategies as st
from mosquitto import Listener, Mosquitto
from test_station import eventually, folder_camera, has_verdicts, running, verdicts

from station import wire
from station.adapters.evidence_store import QUEUE_PICTURES, EvidenceStore
from station.boards import Web
from station.evidence import BY_VALUE, Bounds, Kept, Shelf, classify
from station.ids import uuid7
from station.judged_with import EvidenceRecord
from station.linescan import FRAME_LINES
from station.messages import EvidenceClass, EvidenceDrop, Outcome, Pixels, Reason, Verdict
from station.settings import EvidenceClassSettings, EvidenceSettings

PLENTY = 1 << 40
EVERY_OK = EvidenceSettings(ok_share=1.0, min_free_bytes=0)


def scored(outcome: Outcome, score: float | None, sequence: int = 1) -> Verdict:
    return plain_verdict(sequence, outcome=outcome).model_copy(update={"score": score, "threshold": 0.5})


# Which class


@pytest.mark.parametrize(
    ("outcome", "score", "expected"),
    [
        (Outcome.NG, 0.9, EvidenceClass.NG),
        (Outcome.NG, 0.51, EvidenceClass.NG),
        (Outcome.UNKNOWN, None, EvidenceClass.UNKNOWN),
        (Outcome.OK, 0.45, EvidenceClass.BORDERLINE),
        (Outcome.OK, 0.1, None),
    ],
)
def test_the_class_follows_outcome_and_score(
    outcome: Outcome, score: float | None, expected: EvidenceClass | None
) -> None:
    assert classify(scored(outcome, score), EvidenceSettings(ok_share=0.0)) is expected


def test_without_a_margin_nothing_is_borderline_and_a_class_of_no_bytes_is_not_wanted() -> None:
    assert classify(scored(Outcome.OK, 0.5), EvidenceSettings(ok_share=0.0, borderline_margin=0.0)) is None
    none = EvidenceSettings(unknown=EvidenceClassSettings(max_bytes=0))
    assert classify(scored(Outcome.UNKNOWN, None), none) is None


def test_the_sample_of_ok_frames_has_the_size_that_was_asked_for_and_is_always_the_same() -> None:
    frames = [scored(Outcome.OK, 0.0, number) for number in range(1, 4001)]
    for share in (0.0, 0.1, 1.0):
        asked = EvidenceSettings(ok_share=share)
        chosen = [classify(one, asked) is EvidenceClass.OK for one in frames]
        assert abs(sum(chosen) - 4000 * share) <= 6 * (4000 * share * (1 - share)) ** 0.5
        assert chosen == [classify(one, asked) is EvidenceClass.OK for one in frames]


# What goes first

KINDS = st.sampled_from(BY_VALUE)
SIZES = st.integers(1, 1000)
ITEMS = st.lists(st.tuples(KINDS, SIZES, st.integers(0, 50)), max_size=25)


@st.composite
def bounds(draw: st.DrawFn) -> Bounds:
    """As they come from the configuration, only smaller."""
    classes = {
        kind.value: EvidenceClassSettings(
            max_bytes=draw(st.none() | st.integers(0, 8000)), min_free_bytes=draw(st.none() | st.integers(0, 5000))
        )
        for kind in BY_VALUE
    }
    made = EvidenceSettings(min_free_bytes=draw(st.integers(0, 5000)), **classes)  # type: ignore[arg-type]
    found = Bounds.of(made)
    return Bounds(draw(st.integers(0, 10_000)), found.class_max_bytes, found.min_free_bytes)


def shelf_of(items: list[tuple[EvidenceClass, int, int]]) -> Shelf:
    """Each item at its own moment; several may share a millisecond, and they come in no order."""
    shelf = Shelf()
    for kind, size, at_ms in items:
        shelf.add(Kept(uuid7(1_700_000_000_000 + at_ms), "c", kind, size))
    return shelf


def remove(shelf: Shelf, items: tuple[Kept, ...]) -> None:
    for item in items:
        assert shelf.remove_oldest(item.kind) == item


@given(ITEMS)
def test_a_shelf_keeps_each_class_in_order_of_age_and_counts_it(items: list[tuple[EvidenceClass, int, int]]) -> None:
    shelf = shelf_of(items)
    for kind in BY_VALUE:
        held = list(shelf.oldest_first(kind))
        assert held == sorted(held)
        assert shelf.bytes_of(kind) == sum(item.size_bytes for item in held)
        assert shelf.count_of(kind) == len(held) == sum(one[0] is kind for one in items)


@given(ITEMS, bounds(), st.integers(0, 10_000), KINDS, SIZES)
def test_what_is_deleted_makes_the_bounds_hold_and_is_no_more_than_it_takes(
    items: list[tuple[EvidenceClass, int, int]], limits: Bounds, free_bytes: int, new: EvidenceClass, size: int
) -> None:
    shelf = shelf_of(items)
    due = shelf.make_room(limits, free_bytes).delete
    room = shelf.make_room(limits, free_bytes, new, size)
    before = {kind: list(shelf.oldest_first(kind)) for kind in BY_VALUE}
    remove(shelf, room.delete)
    freed = sum(item.size_bytes for item in room.delete)
    # What the bounds alone demand goes first, and a refused picture makes nothing else go.
    assert room.delete[: len(due)] == due
    if room.refused is not None:
        assert room.delete == due
        size = 0
    else:
        assert free_bytes + freed - size >= limits.min_free_bytes[new]
        assert shelf.bytes_of(new) + size <= limits.class_max_bytes.get(new, PLENTY)
        # Nothing goes for a new picture that is worth more than it.
        assert all(BY_VALUE.index(item.kind) <= BY_VALUE.index(new) for item in room.delete[len(due) :])
    assert shelf.total_bytes + size <= limits.max_bytes
    for kind in BY_VALUE:
        assert shelf.bytes_of(kind) <= limits.class_max_bytes.get(kind, PLENTY)
        assert free_bytes + freed >= limits.min_free_bytes[kind] or shelf.count_of(kind) == 0
    # A class gives way for room that all share only when every class that is worth less has nothing left.
    for item in room.delete:
        within = sum(one.size_bytes for one in before[item.kind]) + (size if item.kind is new else 0)
        if within <= limits.class_max_bytes.get(item.kind, limits.max_bytes):
            worth_less = BY_VALUE[: BY_VALUE.index(item.kind)]
            assert all(shelf.count_of(kind) == 0 for kind in worth_less)


@given(ITEMS, bounds(), KINDS, SIZES)
def test_a_picture_that_is_admitted_finds_room_in_the_budget(
    items: list[tuple[EvidenceClass, int, int]], limits: Bounds, new: EvidenceClass, size: int
) -> None:
    shelf = shelf_of(items)
    remove(shelf, shelf.make_room(limits, PLENTY).delete)
    assert shelf.admits(limits, new, size) is (shelf.make_room(limits, PLENTY, new, size).refused is None)


def test_a_new_picture_leaves_the_last_bytes_of_the_disk_and_old_ones_stay() -> None:
    bounds = Bounds.of(EvidenceSettings(min_free_bytes=0), left_bytes=1000)
    shelf = Shelf()
    items = [Kept(uuid7(number), "c", EvidenceClass.NG, 400) for number in range(3)]
    for item in items:
        shelf.add(item)
    assert shelf.make_room(bounds, 10).delete == ()
    assert shelf.make_room(bounds, 1400, EvidenceClass.NG, 400).delete == ()
    assert shelf.make_room(bounds, 1399, EvidenceClass.NG, 400).delete == (items[0],)
    refused = shelf.make_room(bounds, 100, EvidenceClass.NG, 400)
    assert (refused.refused, refused.delete) == ("free_space", ())


def test_a_less_valuable_class_never_counts_with_less_free_space_than_a_more_valuable_one() -> None:
    found = Bounds.of(EvidenceSettings(min_free_bytes=100, unknown=EvidenceClassSettings(min_free_bytes=500)))
    assert list(found.min_free_bytes.values()) == [100, 500, 500, 500]
    assert found.min_free_bytes[EvidenceClass.NG] == 100


# The store


class Disk:
    """A folder whose free space the test decides."""

    def __init__(self, folder: Path, **asked: Any) -> None:
        self.folder = folder
        self.clock = FakeClock()
        self.free_bytes = PLENTY
        self.faults: list[str | None] = []
        self.asked = EVERY_OK.model_copy(update=asked)
        self._sequence = 0

    @contextmanager
    def store(self, promised: Sequence[Verdict] = ()) -> Iterator[EvidenceStore]:
        with EvidenceStore(
            self.folder,
            self.asked,
            self.faults.append,
            self.clock,
            promised=promised,
            free_bytes=lambda _: self.free_bytes,
        ) as store:
            yield store

    def verdict(self, outcome: Outcome = Outcome.NG, camera: str = "top") -> Verdict:
        """The next one; time passes."""
        self._sequence += 1
        self.clock.pass_s(0.01)
        return plain_verdict(self._sequence, camera=camera, outcome=outcome, at=self.clock.now()).model_copy(
            update={"reasons": (Reason.BLURRED,) if outcome is Outcome.UNKNOWN else ()}
        )

    def keep(self, store: EvidenceStore, outcome: Outcome = Outcome.NG, pixels: Pixels | None = None) -> Verdict:
        """Judge, commit and write one picture."""
        published = store.keep(self.verdict(outcome), noise() if pixels is None else pixels)
        store.committed([wire.outgoing(published)])
        store.step(0)
        return published

    def files(self) -> list[str]:
        return sorted(str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if path.is_file())

    def pictures(self) -> list[Path]:
        return sorted(self.folder.rglob("*.png"))


def noise(height: int = 48, width: int = 64, seed: int = 1) -> Pixels:
    """A picture that does not shrink when it is encoded."""
    return np.random.default_rng(seed).integers(0, 256, (height, width), np.uint8)


def decoded(path: Path) -> Pixels:
    return np.asarray(cv2.imread(str(path), cv2.IMREAD_UNCHANGED), np.uint8)


def record(path: Path) -> EvidenceRecord:
    return wire.decode(EvidenceRecord, path.read_bytes())


@pytest.mark.parametrize("shape", [(48, 64), (31, 17, 3)])
def test_a_picture_is_kept_without_loss_with_the_verdict_as_it_was_published(
    tmp_path: Path, shape: tuple[int, ...]
) -> None:
    disk = Disk(tmp_path)
    pixels = np.random.default_rng(3).integers(0, 256, shape, np.uint8)
    with disk.store() as store:
        published = disk.keep(store, pixels=pixels)
        figures = store.health
    assert published.evidence == f"evidence/2026-01-01/top/ng/{published.id}.png"
    path = tmp_path / published.evidence
    assert np.array_equal(decoded(path), pixels)
    beside = record(path.with_suffix(".json"))
    assert beside.verdict == published
    assert published.model is not None
    assert beside.bundle_sha256 == published.model.sha256
    assert beside.picture_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (figures.written, figures.missing, figures.queue_depth) == (1, 0, 0)
    assert figures.kept[EvidenceClass.NG] == 1
    assert figures.size_bytes == sum((tmp_path / name).stat().st_size for name in disk.files())
    assert len(disk.files()) == 2


def test_the_camera_gets_its_memory_back_before_the_picture_is_written(tmp_path: Path) -> None:
    disk = Disk(tmp_path)
    pixels, before = noise(), noise()
    with disk.store() as store:
        published = store.keep(disk.verdict(), pixels)
        pixels[:] = 0
        store.committed([wire.outgoing(published)])
        store.step(0)
    assert np.array_equal(decoded(tmp_path / str(published.evidence)), before)


def test_nothing_is_written_before_the_verdict_is_committed(tmp_path: Path) -> None:
    disk = Disk(tmp_path)
    with disk.store() as store:
        published = store.keep(disk.verdict(), noise())
        store.step(0)
        assert disk.files() == []
        assert store.health.queue_depth == 1
        store.committed([wire.outgoing(disk.verdict()), wire.outgoing(published)])
        store.step(0)
        assert len(disk.files()) == 2


def test_a_frame_without_pixels_and_one_that_is_not_wanted_have_no_reference(tmp_path: Path) -> None:
    disk = Disk(tmp_path, ok_share=0.0)
    with disk.store() as store:
        unwanted, blind = disk.verdict(Outcome.OK), disk.verdict(Outcome.UNKNOWN)
        assert store.keep(unwanted, noise()) is unwanted
        assert store.keep(blind, None) is blind
        assert store.health.dropped == {}


def test_pictures_that_find_no_room_in_memory_are_counted_and_not_promised(tmp_path: Path) -> None:
    disk = Disk(tmp_path)
    with disk.store() as store:
        taken = [store.keep(disk.verdict(), noise()) for _ in range(QUEUE_PICTURES + 3)]
        assert [one.evidence is None for one in taken] == [False] * QUEUE_PICTURES + [True] * 3
        assert store.health.dropped == {EvidenceDrop.OVERLOAD: 3}
        store.committed([wire.outgoing(one) for one in taken])
        for _ in range(QUEUE_PICTURES):
            store.step(0)
        assert (store.health.written, store.health.queue_depth) == (QUEUE_PICTURES, 0)
        assert store.keep(disk.verdict(), noise()).evidence is not None


def test_the_oldest_of_the_least_valuable_class_goes_first(tmp_path: Path) -> None:
    disk = Disk(tmp_path, max_bytes=40_000)
    with disk.store() as store:
        ok = [disk.keep(store, Outcome.OK) for _ in range(4)]
        unknown = [disk.keep(store, Outcome.UNKNOWN) for _ in range(4)]
        left = [one.id for one in [*ok, *unknown] if (tmp_path / str(one.evidence)).exists()]
        assert left == [*[one.id for one in ok[-(len(left) - 4) :]], *[one.id for one in unknown]]
        ng = [disk.keep(store, Outcome.NG) for _ in range(20)]
        assert store.health.kept[EvidenceClass.OK] == store.health.kept[EvidenceClass.UNKNOWN] == 0
        # All is full of ng: what is worth less is not promised, and nothing goes for it.
        assert disk.keep(store, Outcome.OK).evidence is None
        assert store.health.dropped == {EvidenceDrop.BUDGET: 1}
        newest = [one for one in ng if (tmp_path / str(one.evidence)).exists()]
        assert newest == ng[-len(newest) :]
        assert len(newest) > 5
        assert sum((tmp_path / name).stat().st_size for name in disk.files()) == store.health.size_bytes <= 40_000
    assert disk.faults == []
    assert not (tmp_path / "evidence/2026-01-01/top/ok").exists()


def test_the_index_is_built_again_from_the_folder(tmp_path: Path) -> None:
    disk = Disk(tmp_path)
    with disk.store() as store:
        for outcome in (*[Outcome.OK] * 2, *[Outcome.UNKNOWN] * 3, *[Outcome.NG] * 4):
            disk.keep(store, outcome)
        before = store.health
    with disk.store() as store:
        store.step(0)
        assert (store.health.kept, store.health.size_bytes) == (before.kept, before.size_bytes)
        assert store.health.deleted == 0
    # Bounds that were made smaller while the station was down are kept from the start, in the same order.
    disk.asked = disk.asked.model_copy(update={"max_bytes": before.size_bytes // 2})
    with disk.store() as store:
        store.step(0)
        assert list(store.health.kept.values()) == [0, 0, 0, 4]


def test_files_of_others_and_of_a_crash_are_told_apart(tmp_path: Path) -> None:
    disk = Disk(tmp_path)
    with disk.store() as store:
        kept = tmp_path / str(disk.keep(store).evidence)
    foreign = [
        tmp_path / "evidence" / "README",
        tmp_path / "evidence" / "notes" / "top" / "ng" / kept.name,
        kept.with_name("photo.png"),
        kept.with_name(".photo.png.part"),
        kept.with_name(f"ffffffff{kept.name[8:]}"),
        # Named as the station does, but of another day: somebody moved it here.
        kept.with_name(f"{uuid7(1_600_000_000_000)}.png"),
    ]
    for path in foreign:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"mine")
    leftover = kept.with_name(f".{kept.name}.part")
    leftover.write_bytes(b"half a pic")
    disk.free_bytes = 0
    disk.asked = disk.asked.model_copy(update={"min_free_bytes": 1000})
    with disk.store() as store:
        store.step(0)
        assert store.health.deleted == 1
    assert not kept.exists()
    assert not leftover.exists()
    assert all(path.read_bytes() == b"mine" for path in foreign)


def test_nothing_is_deleted_while_there_is_no_index(tmp_path: Path) -> None:
    disk = Disk(tmp_path)
    with disk.store() as store:
        kept = tmp_path / str(disk.keep(store).evidence)
    aside = tmp_path / "aside"
    (tmp_path / "evidence").rename(aside)
    (tmp_path / "evidence").write_bytes(b"not a folder")
    disk.free_bytes = 0
    disk.asked = disk.asked.model_copy(update={"min_free_bytes": 1000})
    with disk.store() as store:
        for _ in range(3):
            store.step(0)
            disk.clock.pass_s(5)
        assert len(disk.faults) == 1
        assert "evidence cannot be read and written" in str(disk.faults[0])
        assert store.health.deleted == 0
        assert store.keep(disk.verdict(), noise()).evidence is None
        assert store.health.dropped == {EvidenceDrop.FAULT: 1}
        (tmp_path / "evidence").unlink()
        aside.rename(tmp_path / "evidence")
        disk.free_bytes = PLENTY
        disk.clock.pass_s(5)
        store.step(0)
        assert disk.faults[1:] == [None]
        assert kept.exists()
        assert store.health.kept[EvidenceClass.NG] == 1


def test_a_damaged_sidecar_harms_nothing(tmp_path: Path) -> None:
    disk = Disk(tmp_path)
    with disk.store() as store:
        first, second, third = (tmp_path / str(disk.keep(store).evidence) for _ in range(3))
    first.with_suffix(".json").write_bytes(b"\0" * 700)
    second.with_suffix(".json").write_bytes(b"\xff{")
    second.unlink()
    # A crash after the sidecar and before the picture.
    third.unlink()
    with disk.store() as store:
        store.step(0)
        assert store.health.kept[EvidenceClass.NG] == 3
        assert store.health.size_bytes == sum((tmp_path / name).stat().st_size for name in disk.files())
    assert first.exists()
    assert second.with_suffix(".missing").read_bytes() == b"\xff{"
    mark = record(third.with_suffix(".missing"))
    assert mark.missing == "the station ended before the picture was written"
    assert f"{mark.verdict.id}.png" == third.name
    assert (mark.picture_bytes, third.with_suffix(".json").exists()) == (None, False)


def test_little_free_space_is_told_once_ng_may_stay_and_it_recovers(tmp_path: Path) -> None:
    disk = Disk(tmp_path, min_free_bytes=1_000_000, ng=EvidenceClassSettings(min_free_bytes=0))
    with disk.store() as store:
        disk.keep(store, Outcome.OK)
        disk.keep(store, Outcome.NG)
        disk.free_bytes = 500_000
        disk.clock.pass_s(20)
        store.step(0)
        assert list(store.health.kept.values()) == [0, 0, 0, 1]
        assert disk.keep(store, Outcome.NG).evidence is not None
        for _ in range(5):
            assert disk.keep(store, Outcome.UNKNOWN).evidence is None
            disk.clock.pass_s(3)
        assert len(disk.faults) == 1
        assert "too little space is free on the disk (min_free_bytes = 1000000)" in str(disk.faults[0])
        assert "no pictures of ok, borderline, unknown are kept" in str(disk.faults[0])
        assert store.health.dropped == {EvidenceDrop.FAULT: 5}
        disk.free_bytes = PLENTY
        disk.clock.pass_s(3)
        store.step(0)
        assert disk.faults[1:] == [None]
        assert disk.keep(store, Outcome.UNKNOWN).evidence is not None
        assert store.health.missing == 0


def test_on_a_full_disk_no_picture_is_promised_that_only_a_more_valuable_one_could_make_room_for(
    tmp_path: Path,
) -> None:
    disk = Disk(tmp_path)
    with disk.store() as store:
        first = disk.keep(store, Outcome.NG)
        disk.free_bytes = 500
        lost = disk.keep(store, Outcome.UNKNOWN)
        assert lost.evidence is not None
        store.step(0)
        assert disk.keep(store, Outcome.UNKNOWN).evidence is None
        mark = record((tmp_path / lost.evidence).with_suffix(".missing"))
        assert mark.missing == "too little space is free on the disk"
        assert "no pictures of ok, borderline, unknown are kept" in str(disk.faults[0])
        second = disk.keep(store, Outcome.NG)
        assert (tmp_path / str(second.evidence)).exists()
        # The mark went first, then the older picture of a defect.
        assert disk.pictures() == [tmp_path / str(second.evidence)]
        assert not (tmp_path / str(first.evidence)).exists()


@contextmanager
def file_size_limit(size_bytes: int) -> Iterator[None]:
    """Let the operating system refuse larger files: a write that fails in the middle, for real."""
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, former[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)


def test_a_picture_that_cannot_be_written_is_marked_and_the_store_recovers(tmp_path: Path) -> None:
    disk = Disk(tmp_path)
    with disk.store() as store:
        whole = disk.keep(store)
        with file_size_limit(2000):
            lost = disk.keep(store)
            assert lost.evidence is not None
            assert (store.health.missing, store.health.queue_depth) == (1, 0)
            for _ in range(4):
                assert disk.keep(store).evidence is None
                disk.clock.pass_s(3)
        assert len(disk.faults) == 1
        assert "File too large; verdicts go on without pictures" in str(disk.faults[0])
        assert [path.name for path in disk.pictures()] == [f"{whole.id}.png"]
        assert len(disk.files()) == 2
        disk.clock.pass_s(3)
        store.step(0)
        assert disk.faults[1:] == [None]
        mark = record((tmp_path / lost.evidence).with_suffix(".missing"))
        assert mark.verdict == lost
        assert mark.missing is not None
        assert "File too large" in mark.missing
        assert disk.keep(store).evidence is not None
        assert store.health.kept[EvidenceClass.NG] == 3


def test_what_an_orderly_stop_leaves_unwritten_is_marked(tmp_path: Path) -> None:
    disk = Disk(tmp_path)
    with disk.store() as store:
        store.step(0)
        published, uncommitted = (store.keep(disk.verdict(), noise()) for _ in range(2))
        store.committed([wire.outgoing(published)])
    assert disk.files() == [str(Path(str(published.evidence)).with_suffix(".missing"))]
    assert uncommitted.evidence is not None


def test_what_a_kill_took_is_marked_at_the_next_start(tmp_path: Path) -> None:
    disk = Disk(tmp_path)
    with disk.store() as store:
        kept = disk.keep(store)
        taken = store.keep(disk.verdict(), noise())
    unwanted = disk.verdict()
    elsewhere = disk.verdict().model_copy(update={"evidence": "../../etc/passwd.png"})
    for _ in range(2):
        with disk.store([kept, taken, unwanted, elsewhere]) as store:
            store.step(0)
            assert store.health.kept[EvidenceClass.NG] == 2
    mark = record((tmp_path / str(taken.evidence)).with_suffix(".missing"))
    assert mark.verdict == taken
    assert mark.missing is not None
    assert len(disk.files()) == 3


EVENTS = st.lists(
    st.tuples(st.sampled_from(Outcome), st.sampled_from(["top", "side"]), st.integers(8, 60), st.booleans())
    | st.integers(0, 60_000),
    max_size=30,
)


@settings(max_examples=60)
@given(EVENTS)
def test_every_reference_leads_to_a_picture_a_mark_or_a_deletion(
    events: list[tuple[Outcome, str, int, bool] | int],
) -> None:
    with tempfile.TemporaryDirectory() as name:
        disk = Disk(Path(name), max_bytes=15_000, min_free_bytes=20_000, ng=EvidenceClassSettings(min_free_bytes=1000))
        promised: list[Verdict] = []
        kept = dict.fromkeys(BY_VALUE, 0)
        with disk.store() as store:
            for event in events:
                if isinstance(event, int):
                    disk.free_bytes = event
                    disk.clock.pass_s(15)
                else:
                    outcome, camera, edge, step_back = event
                    disk.clock.wall_step_s -= 3600 * step_back
                    published = store.keep(disk.verdict(outcome, camera), noise(edge, edge))
                    store.committed([wire.outgoing(published)])
                    promised += [published] if published.evidence else []
                store.step(0)
                figures = store.health
                kept = dict(figures.kept)
                stems = Counter(Path(one).stem for one in disk.files())
                assert figures.size_bytes == sum((disk.folder / one).stat().st_size for one in disk.files())
                assert figures.size_bytes <= 15_000
                assert sum(figures.kept.values()) == len(stems) == len(promised) - figures.deleted
                assert figures.written + figures.missing == len(promised)
                assert stems.keys() <= {str(one.id) for one in promised}
        with disk.store() as again:
            disk.free_bytes = PLENTY
            again.step(0)
            assert again.health.kept == kept


WRITER = """
import resource
import signal
import sys
from datetime import UTC, datetime
from pathlib import Path
import numpy as np
from delivery_helpers import verdict
from station import wire
from station.adapters.evidence_store import EvidenceStore
from station.adapters.system_clock import SystemClock
from station.messages import Outcome
from station.settings import EvidenceSettings

folder, largest = sys.argv[1:]
if largest:
    # Whoever writes more is killed by the kernel, with the file written up to this byte.
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(largest), int(largest)))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
noise = np.random.default_rng(1).integers(0, 256, (700, 900), np.uint8)
with EvidenceStore(Path(folder), EvidenceSettings(min_free_bytes=0), print, SystemClock()) as store:
    for sequence in range(1, 100_000):
        made = verdict(sequence, outcome=Outcome.NG, at=datetime.now(UTC))
        pixels = noise if sequence > 3 or not largest else noise[:50]
        store.committed([wire.outgoing(store.keep(made, pixels))])
        store.step(0)
"""


@contextmanager
def writer(folder: Path, largest: str = "") -> Iterator[subprocess.Popen[bytes]]:
    """A process that writes pictures until it is killed."""
    here = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": f"{here}{os.pathsep}{here.parent}"}
    with subprocess.Popen([sys.executable, "-c", WRITER, str(folder), largest], env=environment) as child:
        try:
            yield child
        finally:
            child.kill()


def check_whole(path: Path) -> None:
    """Assert that a picture is what its sidecar says."""
    assert record(path.with_suffix(".json")).picture_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert decoded(path).shape[1] == 900


def test_a_writer_killed_in_mid_write_leaves_no_half_picture_that_looks_whole(tmp_path: Path) -> None:
    with writer(tmp_path, largest="200000") as child:
        assert child.wait() == -signal.SIGXFSZ
    (half,) = tmp_path.rglob("*.part")
    assert half.stat().st_size == 200_000
    disk = Disk(tmp_path)
    assert len(disk.pictures()) == 3
    with disk.store() as store:
        store.step(0)
        assert store.health.kept[EvidenceClass.NG] == 4
    for path in disk.pictures():
        check_whole(path)
    (mark,) = tmp_path.rglob("*.missing")
    assert record(mark).missing == "the station ended before the picture was written"
    assert len(disk.files()) == 7
    assert not half.exists()


def test_a_writer_killed_at_any_moment_leaves_pictures_that_are_whole(tmp_path: Path) -> None:
    chance = random.Random(4)
    for _ in range(3):
        written = len(list(tmp_path.rglob("*.png")))
        with writer(tmp_path):
            eventually(lambda least=written: len(list(tmp_path.rglob("*.png"))) > least + 3)  # type: ignore[misc]
            threading.Event().wait(chance.uniform(0, 0.02))
    disk = Disk(tmp_path)
    pictures = disk.pictures()
    for path in pictures:
        check_whole(path)
    with disk.store() as store:
        store.step(0)
        assert sum(store.health.kept.values()) == len({Path(one).stem for one in disk.files()}) >= len(pictures) >= 12
    assert not list(tmp_path.rglob(".*"))
    assert {path.with_suffix(".png") for path in tmp_path.rglob("*.json")} == set(pictures)


# The whole station


def test_the_picture_of_a_defect_stands_on_disk_under_the_verdicts_reference(tmp_path: Path) -> None:
    web = Web(11, defect_share=0.99)
    (tmp_path / "in").mkdir()
    for number in range(8):
        cv2.imwrite(str(tmp_path / "in" / f"{number}.png"), web.render(number * FRAME_LINES, FRAME_LINES))
    (tmp_path / "in" / "8.png").write_bytes(b"this is no picture")
    with Mosquitto(tmp_path) as broker, Listener(broker.port) as listener:
        document = {
            "broker": {"port": broker.port},
            "evidence": {"ok_share": 0.0, "borderline_margin": 0.0},
            **folder_camera(tmp_path / "in"),
        }
        with running(tmp_path, document) as station:
            received = listener.wait_until(has_verdicts(9))
        figures = station.health().evidence
    found = verdicts(received)
    ng = [one for one in found if one.outcome is Outcome.NG]
    assert ng
    for one in found:
        assert (one.evidence is not None) is (one.outcome is Outcome.NG)
    for one in ng:
        path = tmp_path / "data" / str(one.evidence)
        assert np.array_equal(decoded(path), decoded(tmp_path / "in" / str(one.source)))
        assert record(path.with_suffix(".json")).verdict == one
    assert figures is not None
    assert (figures.written, figures.missing, dict(figures.dropped)) == (len(ng), 0, {})
    assert len(list((tmp_path / "data" / "evidence").rglob("*.png"))) == len(ng)


def test_without_evidence_no_folder_is_made(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    cv2.imwrite(str(tmp_path / "in" / "0.png"), noise(640, 640))
    document = {"broker": {"port": 1}, "evidence": {"enabled": False}, **folder_camera(tmp_path / "in")}
    with running(tmp_path, document) as station:
        eventually(lambda: station.health().cameras["c"].account.judged == 1)
        assert station.health().evidence is None
    assert not (tmp_path / "data" / "evidence").exists()
