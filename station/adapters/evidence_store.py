"""The store of pictures: lossless PNG files beside the journal, each with its verdict as a JSON file.

Order of things. `keep` decides in the camera's thread, from what is in memory, whether a picture is wanted and has
room; if so it copies the pixels and puts the reference into the verdict, which then goes to the journal. When the
journal has the verdict, `committed` lets the picture go to the one thread that calls `step`, and only that thread
touches the disk. So no verdict waits for a picture, and no picture exists without its verdict.

What a reference promises. A verdict without one: no picture was wanted, or none was taken (`health` counts why). A
verdict with one: the picture was taken; then there is the PNG, or a ``.missing`` file with the verdict and the reason
in its place, except when the picture was deleted since to keep the bounds. Where a kill came while pictures were still
in memory (at most `QUEUE_PICTURES`), the next start marks them, as far as their verdicts are among the `promised`.

On the disk. The sidecar ``<id>.json`` is written first, then ``<id>.png``, each as a hidden ``.part`` file that is
synced (fdatasync) before it gets its name: a name never stands for half a file, not even after a power cut. Folders are
not synced, so a power cut may take the newest files altogether. Deleting takes the sidecar first, too. So a sidecar
without a picture is one that a crash came before; at the next start it becomes a ``.missing`` file. A picture without a
sidecar is kept as any other.

The index is built from the names and sizes in the folder at each start; nothing is deleted before it is whole, and only
files that are named as this store names them, in the folder where it would put them, are ever deleted.
"""

import hashlib
import os
import re
import shutil
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self
from uuid import UUID

import cv2

from station.errors import ProtocolError
from station.evidence import BY_VALUE, DAY, FILE, FOLDER, UNFINISHED, Bounds, Kept, Shelf, class_of, classify
from station.judged_with import EvidenceRecord, JudgedWith
from station.mailbox import Mailbox, Overflow
from station.messages import (
    EvidenceClass,
    EvidenceDrop,
    EvidenceHealth,
    Outgoing,
    Pixels,
    Verdict,
)
from station.ports import Clock
from station.settings import EvidenceSettings
from station.whole_file import write_whole
from station.wire import decode, encode

QUEUE_PICTURES = 32
"""Pictures in memory at most: those whose verdicts are on their way to the journal and those that wait for the disk."""
QUEUE_BYTES = 64_000_000
"""Their pixels at most; a single picture may be larger."""
LOOK_EVERY_S = 10.0
"""How often free space is looked at while no picture comes."""
RETRY_S = 2.0
"""How often a disk that refused is tried again."""
MARKS = 1024
"""Marks of missing pictures that wait for a disk that refuses; the oldest of more are forgotten, and only counted."""
PROBE_BYTES = 65_536
AMPLE = 8
"""Pictures for which there must be space before a class that found none is kept again."""
_CAMERA = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")
_REFUSED = {
    "budget": "the budget is used up by more valuable pictures",
    "free_space": "too little space is free on the disk",
}
_NOT_FOUND = "not there at the next start: never written, or deleted to keep the bounds"
_NEVER_WRITTEN = "the station ended before the picture was written"


@dataclass(frozen=True, slots=True)
class _Picture:
    """A picture that was taken, with its verdict as it is published and what decided it."""

    kind: EvidenceClass
    pixels: Pixels
    record: EvidenceRecord


@dataclass(frozen=True, slots=True)
class _Mark:
    """What is to be written in place of a picture."""

    kind: EvidenceClass
    record: EvidenceRecord
    reason: str


class EvidenceStore:
    """Pictures in the data folder, within bounds.

    Args:
        data_dir: the data folder; the pictures go below its folder `evidence`.
        settings: which pictures, and the bounds.
        on_fault: told what is wrong with the store, and None when all is well again; only on a change.
        clock: paces looks and retries.
        promised: the newest verdicts of former runs: those whose picture was never written are marked.
        left_bytes: what new pictures leave free on the disk in any case, for those who must be able to write.
        free_bytes: says how much is free on the disk of a folder; raises OSError.
    """

    def __init__(
        self,
        data_dir: Path,
        settings: EvidenceSettings,
        on_fault: Callable[[str | None], None],
        clock: Clock,
        *,
        promised: Sequence[Verdict] = (),
        left_bytes: int = 0,
        free_bytes: Callable[[Path], int] = lambda folder: shutil.disk_usage(folder).free,
    ) -> None:
        self._data_dir = data_dir
        self._root = data_dir / FOLDER
        self._settings = settings
        self._bounds = Bounds.of(settings, left_bytes)
        self._on_fault = on_fault
        self._clock = clock
        self._promised = promised
        self._free_bytes = free_bytes
        # The lock guards what the cameras' threads and the writer share; it is never held over work with the disk.
        self._lock = threading.Lock()
        self._shelf = Shelf()
        self._waiting: dict[UUID, _Picture] = {}
        self._queue: Mailbox[_Picture] = Mailbox(QUEUE_PICTURES, Overflow.DROP_NEWEST)
        self._held = 0
        self._held_bytes = 0
        self._dropped: Counter[EvidenceDrop] = Counter()
        self._written = self._missing = self._deleted = 0
        self._short: frozenset[EvidenceClass] = frozenset()
        self._disk_fault: str | None = None
        self._told: str | None = None
        self._usual_bytes = 0
        self._indexed = False
        self._look_at_s = float("-inf")
        self._marks: deque[_Mark] = deque(maxlen=MARKS)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        """Mark what was not written; nobody may call `step` any more."""
        for picture in self._queue.take_all(0):
            self._lose(picture, _NEVER_WRITTEN)
        with self._lock:
            self._waiting.clear()

    def keep(
        self,
        verdict: Verdict,
        pixels: Pixels | None,
        *,
        wanted: bool = False,
        judged_with: Callable[[], JudgedWith] | None = None,
    ) -> Verdict:
        """Copy the picture if it is wanted and there is room; any thread, never waits for the disk.

        Args:
            verdict: decides whether the picture is wanted, and how much it is worth.
            pixels: the picture.
            wanted: somebody asked for this one, whatever the verdict.
            judged_with: says what decided the verdict; asked when the picture is taken, and only then.

        Returns:
            The verdict to hand to the journal: with the picture's reference if it was taken, else as it was.
        """
        kind = class_of(verdict, self._settings) if wanted else classify(verdict, self._settings)
        if kind is None or pixels is None:
            return verdict
        with self._lock:
            reason = self._objection(kind, pixels.nbytes)
            if reason is not None:
                self._dropped[reason] += 1
                return verdict
            self._held += 1
            self._held_bytes += pixels.nbytes
        reference = Kept(verdict.id, verdict.camera, kind, 0).reference
        published = verdict.model_copy(update={"evidence": reference})
        picture = _Picture(kind, pixels.copy(), _record(published, judged_with() if judged_with is not None else None))
        with self._lock:
            self._waiting[verdict.id] = picture
        return published

    def committed(self, messages: Sequence[Outgoing]) -> None:
        """These messages are in the journal, or on their way without it: their pictures may be written."""
        with self._lock:
            pictures = [(self._waiting.pop(one.id), one.payload) for one in messages if one.id in self._waiting]
        for picture, payload in pictures:
            # The part's id may have come after the picture was taken.
            record = picture.record.model_copy(update={"verdict": decode(Verdict, payload)})
            # There is always room: no more pictures are held than the queue takes.
            self._queue.put(replace(picture, record=record))

    def step(self, timeout_s: float) -> None:
        """Write one picture, or wait up to `timeout_s` for one; look after bounds and faults when that is due."""
        if self._clock.monotonic_s() >= self._look_at_s:
            self._look()
        picture = self._queue.take(timeout_s)
        if picture is not None:
            self._store(picture)

    @property
    def health(self) -> EvidenceHealth:
        """Figures for the `health` topic; any thread."""
        with self._lock:
            return EvidenceHealth(
                kept={kind: self._shelf.count_of(kind) for kind in BY_VALUE},
                size_bytes=self._shelf.total_bytes,
                written=self._written,
                dropped=dict(self._dropped),
                missing=self._missing,
                deleted=self._deleted,
                queue_depth=self._held,
            )

    def _objection(self, kind: EvidenceClass, size_bytes: int) -> EvidenceDrop | None:
        """Why a picture cannot be taken. Its PNG is taken to be as large as its pixels."""
        if self._disk_fault is not None or kind in self._short:
            return EvidenceDrop.FAULT
        if not self._shelf.admits(self._bounds, kind, size_bytes):
            return EvidenceDrop.BUDGET
        if self._held >= QUEUE_PICTURES or (self._held and self._held_bytes + size_bytes > QUEUE_BYTES):
            return EvidenceDrop.OVERLOAD
        return None

    # The writer's thread

    def _store(self, picture: _Picture) -> None:
        if self._disk_fault is not None:
            self._lose(picture, self._disk_fault)
            return
        try:
            # OpenCV's own PNG settings are its fast ones: with a level given it takes several times as long.
            encoded = cv2.imencode(".png", picture.pixels)[1].tobytes()
        except cv2.error as exc:
            self._lose(picture, f"cannot be encoded: {exc.err}")
            return
        sidecar = _sidecar(picture.record, encoded)
        verdict = picture.record.verdict
        item = Kept(verdict.id, verdict.camera, picture.kind, len(encoded) + len(sidecar))
        self._usual_bytes = item.size_bytes
        try:
            room = self._shelf.make_room(self._bounds, self._free_bytes(self._root), item.kind, item.size_bytes)
            self._delete(room.delete)
            if room.refused is None:
                self._write(item, sidecar, encoded)
        except OSError as exc:
            self._failed(exc)
            self._lose(picture, str(self._disk_fault))
            return
        if room.refused is not None:
            self._look_at_s = float("-inf")
            self._lose(picture, _REFUSED[room.refused])
            return
        with self._lock:
            self._shelf.add(item)
            self._written += 1
            self._let_go(picture)

    def _write(self, item: Kept, sidecar: bytes, encoded: bytes) -> None:
        path = self._data_dir / item.reference
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path.with_suffix(".json"), sidecar, sync_folder=False)
        try:
            write_whole(path, encoded, sync_folder=False)
        except OSError:
            with suppress(OSError):
                path.with_suffix(".json").unlink(missing_ok=True)
            raise

    def _lose(self, picture: _Picture, reason: str) -> None:
        with self._lock:
            self._missing += 1
            self._let_go(picture)
        self._marks.append(_Mark(picture.kind, picture.record, reason))
        if self._disk_fault is None:
            try:
                self._write_marks()
            except OSError as exc:
                self._failed(exc)

    def _let_go(self, picture: _Picture) -> None:
        self._held -= 1
        self._held_bytes -= picture.pixels.nbytes

    def _write_marks(self) -> None:
        if not self._marks:
            return
        while self._marks:
            mark = self._marks[0]
            content = encode(mark.record.model_copy(update={"missing": mark.reason}))
            verdict = mark.record.verdict
            item = Kept(verdict.id, verdict.camera, mark.kind, len(content), missing=True)
            path = (self._data_dir / item.reference).with_suffix(".missing")
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, content, sync_folder=False)
            self._marks.popleft()
            with self._lock:
                self._shelf.add(item)
        # A mark does not ask for room first, since it must not be refused; it takes the place of what is worth less.
        self._delete(self._shelf.make_room(self._bounds, self._free_bytes(self._root)).delete)

    def _look(self) -> None:
        """Build the index if there is none, delete what is over the bounds, and see whether a fault is over."""
        try:
            if not self._indexed:
                self._build_index()
            free = self._free_bytes(self._root)
            self._delete(self._shelf.make_room(self._bounds, free).delete)
            if self._disk_fault is not None:
                self._probe()
            self._write_marks()
            free = self._free_bytes(self._root)
        except OSError as exc:
            self._failed(exc)
            return
        short = {one for one in BY_VALUE if self._finds_no_space(one, free)}
        with self._lock:
            self._disk_fault = None
            self._short = frozenset(short)
        self._look_at_s = self._clock.monotonic_s() + (RETRY_S if short else LOOK_EVERY_S)
        self._tell(self._shortage(short))

    def _finds_no_space(self, kind: EvidenceClass, free_bytes: int) -> bool:
        """Whether a picture of this class would be refused, although others make room for it as far as they may.

        A class that was refused must find more than it needs, so that a fault does not come and go with each picture.
        """
        need_bytes = self._usual_bytes * (AMPLE if kind in self._short else 1)
        return self._shelf.make_room(self._bounds, free_bytes, kind, need_bytes).refused == "free_space"

    def _shortage(self, short: set[EvidenceClass]) -> str | None:
        if not short:
            return None
        names = ", ".join(one.value for one in BY_VALUE if one in short)
        least = min(self._bounds.min_free_bytes[one] for one in short)
        limit = f"min_free_bytes = {least}"
        if least < self._bounds.left_bytes:
            limit = f"the last {self._bounds.left_bytes} bytes are the journal's"
        return f"too little space is free on the disk ({limit}); no pictures of {names} are kept"

    def _failed(self, exc: OSError) -> None:
        reason = f"{self._root} cannot be {'written' if self._indexed else 'read and written'}: {exc.strerror}"
        with self._lock:
            self._disk_fault = reason
        self._look_at_s = self._clock.monotonic_s() + RETRY_S
        self._tell(f"{reason}; verdicts go on without pictures")

    def _tell(self, fault: str | None) -> None:
        if fault != self._told:
            self._told = fault
            self._on_fault(fault)

    def _probe(self) -> None:
        """See whether the disk takes a picture again.

        Raises:
            OSError: it does not.
        """
        path = self._root / "probe"
        self._root.mkdir(parents=True, exist_ok=True)
        write_whole(path, bytes(PROBE_BYTES), sync_folder=False)
        path.unlink()

    def _delete(self, items: Iterable[Kept]) -> None:
        for item in items:
            path = self._data_dir / item.reference
            for suffix in (".json", ".missing", ".png"):
                path.with_suffix(suffix).unlink(missing_ok=True)
            # Folders go with their last picture; one that holds a file of somebody else stays.
            with suppress(OSError):
                for folder in (path.parent, *path.parent.parents[:2]):
                    folder.rmdir()
            with self._lock:
                self._shelf.remove_oldest(item.kind)
                self._deleted += 1

    # The index

    def _build_index(self) -> None:
        """Read the folder.

        Raises:
            OSError: a folder cannot be read, or what a crash left cannot be put right.
        """
        self._root.mkdir(parents=True, exist_ok=True)
        found: list[Kept] = []
        for camera, kind, folder in self._folders():
            found += self._read_folder(camera, kind, folder)
        shelf = Shelf()
        for item in sorted(found):
            shelf.add(item)
        with self._lock:
            self._shelf = shelf
        there = {item.id for item in found}
        for verdict in self._promised:
            named = _class_in(verdict)
            if named is not None and verdict.id not in there:
                self._marks.append(_Mark(named, _record(verdict), _NOT_FOUND))
        self._promised = ()
        self._indexed = True

    def _folders(self) -> Iterator[tuple[str, EvidenceClass, Path]]:
        for day in _subfolders(self._root, DAY):
            for camera in _subfolders(day, _CAMERA):
                for kind in BY_VALUE:
                    folder = camera / kind.value
                    if folder.is_dir() and not folder.is_symlink():
                        yield camera.name, kind, folder

    def _read_folder(self, camera: str, kind: EvidenceClass, folder: Path) -> Iterator[Kept]:
        sizes: dict[UUID, dict[str, int]] = {}
        with os.scandir(folder) as entries:
            for entry in entries:
                if not entry.is_file(follow_symlinks=False):
                    continue
                if UNFINISHED.fullmatch(entry.name):
                    Path(entry.path).unlink(missing_ok=True)
                elif name := FILE.fullmatch(entry.name):
                    sizes.setdefault(UUID(name["id"]), {})[name["suffix"]] = entry.stat().st_size
        for one, files in sizes.items():
            missing = "png" not in files
            path = self._data_dir / Kept(one, camera, kind, 0).reference
            if path.parent != folder:
                # Somebody moved it here: not a place where the store would look for it.
                continue
            size_bytes = sum(files.values())
            if missing and "json" in files:
                size_bytes = _mark_unfinished(path.with_suffix(".json"))
            yield Kept(one, camera, kind, size_bytes, missing)


def _subfolders(folder: Path, pattern: re.Pattern[str]) -> Iterator[Path]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False) and pattern.fullmatch(entry.name):
                yield Path(entry.path)


def _class_in(verdict: Verdict) -> EvidenceClass | None:
    """The class that a verdict's reference names; None when it has none of the form in use here."""
    return next(
        (kind for kind in BY_VALUE if Kept(verdict.id, verdict.camera, kind, 0).reference == verdict.evidence), None
    )


def _record(verdict: Verdict, judged_with: JudgedWith | None = None) -> EvidenceRecord:
    bundle_sha256 = verdict.model.sha256 if verdict.model else None
    return EvidenceRecord(verdict=verdict, bundle_sha256=bundle_sha256, judged_with=judged_with)


def _sidecar(record: EvidenceRecord, encoded: bytes) -> bytes:
    written = {"picture_sha256": hashlib.sha256(encoded).hexdigest(), "picture_bytes": len(encoded)}
    return encode(record.model_copy(update=written))


def _mark_unfinished(sidecar: Path) -> int:
    """Turn a sidecar whose picture was never written into a mark; return the mark's size in bytes."""
    content = sidecar.read_bytes()
    try:
        record = decode(EvidenceRecord, content)
    except ProtocolError:
        # Damaged, but it still tells that a picture is missing.
        sidecar.rename(sidecar.with_suffix(".missing"))
        return len(content)
    nothing = {"picture_sha256": None, "picture_bytes": None, "missing": _NEVER_WRITTEN}
    mark = encode(record.model_copy(update=nothing))
    write_whole(sidecar.with_suffix(".missing"), mark, sync_folder=False)
    sidecar.unlink()
    return len(mark)
