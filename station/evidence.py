"""Which pictures are evidence, what they are called, and which go first when room is short. No clock, no disk.

The classes in growing value are `ok` (a sample), `borderline`, `unknown`, `ng`. Where room is short, the oldest picture
of the least valuable class goes first, and no picture ever makes room for one of a class that is worth less.

A picture is named after its verdict: ``evidence/<day>/<camera>/<class>/<verdict id>.png``, relative to the data folder.
The id is a UUIDv7 (RFC 9562, section 5.7), so that day and age stand in the name: the index can be rebuilt from names
and sizes alone.
"""

import re
import struct
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal
from uuid import UUID

from station.messages import EvidenceClass, Outcome, Verdict
from station.settings import EvidenceSettings

FOLDER = "evidence"
"""Below the data folder."""
BY_VALUE = (EvidenceClass.OK, EvidenceClass.BORDERLINE, EvidenceClass.UNKNOWN, EvidenceClass.NG)
"""The classes, least valuable first."""
DAY = re.compile(r"\d{4}-\d{2}-\d{2}")
# Beginning with 0: times up to the year 2527, so that each is a date.
_UUID7 = r"0[0-9a-f]{7}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"
FILE = re.compile(rf"(?P<id>{_UUID7})\.(?P<suffix>png|json|missing)")
"""A file of the store; anything else in its folders is somebody else's."""
UNFINISHED = re.compile(rf"\.{_UUID7}\.(png|json|missing)\.part")
"""A file that a crash left half written."""
_SAMPLE_BITS = 32


def classify(verdict: Verdict, settings: EvidenceSettings) -> EvidenceClass | None:
    """Return the class of evidence that a verdict's picture is; None when it is not wanted.

    An `ok` is borderline when its score lies within `borderline_margin` of its threshold. The sample of the others is
    drawn by the random bits of the verdict's id: no counter, so it cannot fall into step with anything periodic on the
    line, and a restart changes nothing.
    """
    found = class_of(verdict, settings)
    if found is EvidenceClass.OK and verdict.id.int % (1 << _SAMPLE_BITS) >= settings.ok_share * (1 << _SAMPLE_BITS):
        return None
    return None if settings.of(found).max_bytes == 0 else found


def class_of(verdict: Verdict, settings: EvidenceSettings) -> EvidenceClass:
    """Return the class of evidence that a verdict's picture would be."""
    match verdict.outcome:
        case Outcome.NG:
            return EvidenceClass.NG
        case Outcome.UNKNOWN:
            return EvidenceClass.UNKNOWN
        case _ if _is_borderline(verdict, settings.borderline_margin):
            return EvidenceClass.BORDERLINE
        case _:
            return EvidenceClass.OK


def _is_borderline(verdict: Verdict, margin: float) -> bool:
    if verdict.score is None or verdict.threshold is None:
        return False
    return margin > 0 and abs(verdict.score - verdict.threshold) <= margin


@dataclass(frozen=True, slots=True, order=True)
class Kept:
    """One picture in the store, or the mark of one that is missing; they sort by age, oldest first.

    Attributes:
        id: of its verdict, a UUIDv7.
        camera: the camera's name.
        kind: the class of evidence.
        size_bytes: of everything stored under this id.
        missing: there is a mark instead of the picture.
    """

    id: UUID
    camera: str
    kind: EvidenceClass
    size_bytes: int
    missing: bool = False

    @property
    def folder(self) -> str:
        """Its folder, relative to the data folder."""
        day = datetime.fromtimestamp((self.id.int >> 80) / 1e3, UTC).date()
        return f"{FOLDER}/{day.isoformat()}/{self.camera}/{self.kind.value}"

    @property
    def reference(self) -> str:
        """The picture's path relative to the data folder: what the verdict's `evidence` holds."""
        return f"{self.folder}/{self.id}.png"


@dataclass(frozen=True, slots=True)
class Bounds:
    """What the store may take.

    Attributes:
        max_bytes: all classes together.
        class_max_bytes: each class for itself; no entry: only `max_bytes` counts.
        min_free_bytes: what must stay free on the disk before a picture of the class is kept; never less for a class
            than for a more valuable one, so that the less valuable always gives way first.
        left_bytes: what a new picture leaves free on the disk in any case; what is there already is not deleted for it.
    """

    max_bytes: int
    class_max_bytes: Mapping[EvidenceClass, int]
    min_free_bytes: Mapping[EvidenceClass, int]
    left_bytes: int = 0

    @classmethod
    def of(cls, settings: EvidenceSettings, left_bytes: int = 0) -> "Bounds":
        """The bounds that the configuration asks for."""
        free: dict[EvidenceClass, int] = {}
        least = 0
        for kind in reversed(BY_VALUE):
            own = settings.of(kind).min_free_bytes
            least = free[kind] = max(least, settings.min_free_bytes if own is None else own)
        limits = {kind: settings.of(kind).max_bytes for kind in BY_VALUE}
        class_limits = {kind: limit for kind, limit in limits.items() if limit is not None}
        return cls(settings.max_bytes, class_limits, free, left_bytes)

    def free_after_bytes(self, kind: EvidenceClass) -> int:
        """What must be free on the disk after a new picture of this class."""
        return max(self.min_free_bytes[kind], self.left_bytes)


@dataclass(frozen=True, slots=True)
class Room:
    """What must be deleted, in this order, and whether the new picture then has room.

    Attributes:
        delete: oldest of the least valuable first.
        refused: why the new picture has no room even so; what is in `delete` must go all the same. None: it has room.
    """

    delete: tuple[Kept, ...]
    refused: Literal["budget", "free_space"] | None = None


class _Row:
    """Items of one class in order of age, packed: as objects they take ten times as much, and a station that keeps five
    pictures a second would seem to leak."""

    _FORM = struct.Struct(">16sHQ?")
    _CHUNK_BYTES = 1024 * _FORM.size

    def __init__(self, kind: EvidenceClass) -> None:
        self._kind = kind
        self._cameras: list[str] = []
        self._chunks: deque[bytearray] = deque()
        self._begin = 0
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Kept]:
        begin = self._begin
        for chunk in self._chunks:
            for offset in range(begin, len(chunk), self._FORM.size):
                yield self._item(chunk, offset)
            begin = 0

    def append(self, item: Kept) -> None:
        if item.camera not in self._cameras:
            self._cameras.append(item.camera)
        if not self._chunks or len(self._chunks[-1]) >= self._CHUNK_BYTES:
            self._chunks.append(bytearray())
        camera = self._cameras.index(item.camera)
        self._chunks[-1] += self._FORM.pack(item.id.bytes, camera, item.size_bytes, item.missing)
        self._count += 1

    def newest(self) -> Kept:
        return self._item(self._chunks[-1], len(self._chunks[-1]) - self._FORM.size)

    def take_newest(self) -> Kept:
        item = self.newest()
        del self._chunks[-1][-self._FORM.size :]
        self._count -= 1
        self._drop_empty()
        return item

    def take_oldest(self) -> Kept:
        item = self._item(self._chunks[0], self._begin)
        self._begin += self._FORM.size
        self._count -= 1
        self._drop_empty()
        return item

    def _drop_empty(self) -> None:
        if self._begin == len(self._chunks[0]):
            self._chunks.popleft()
            self._begin = 0
        elif not self._chunks[-1]:
            self._chunks.pop()

    def _item(self, chunk: bytearray, offset: int) -> Kept:
        number, camera, size_bytes, missing = self._FORM.unpack_from(chunk, offset)
        return Kept(UUID(bytes=number), self._cameras[camera], self._kind, size_bytes, missing)


@dataclass(slots=True)
class Shelf:
    """The index: what is kept, by class and age. Not safe for several threads."""

    _kept: dict[EvidenceClass, _Row] = field(default_factory=lambda: {kind: _Row(kind) for kind in BY_VALUE})
    _bytes: dict[EvidenceClass, int] = field(default_factory=lambda: dict.fromkeys(BY_VALUE, 0))
    _missing: int = 0

    def add(self, item: Kept) -> None:
        """Put an item in its place; quick for the newest one, and where items come about in order."""
        row = self._kept[item.kind]
        later: list[Kept] = []
        while row and item < row.newest():
            later.append(row.take_newest())
        for one in (item, *reversed(later)):
            row.append(one)
        self._bytes[item.kind] += item.size_bytes
        self._missing += item.missing

    def remove_oldest(self, kind: EvidenceClass) -> Kept:
        """Forget the oldest item of a class.

        Raises:
            IndexError: there is none.
        """
        item = self._kept[kind].take_oldest()
        self._bytes[kind] -= item.size_bytes
        self._missing -= item.missing
        return item

    def oldest_first(self, kind: EvidenceClass) -> Iterator[Kept]:
        """The items of a class."""
        return iter(self._kept[kind])

    def bytes_of(self, kind: EvidenceClass) -> int:
        """What a class takes."""
        return self._bytes[kind]

    @property
    def total_bytes(self) -> int:
        """What all classes take."""
        return sum(self._bytes.values())

    @property
    def missing(self) -> int:
        """Items that are marks of missing pictures."""
        return self._missing

    def count_of(self, kind: EvidenceClass) -> int:
        """Items of a class."""
        return len(self._kept[kind])

    def admits(self, bounds: Bounds, kind: EvidenceClass, size_bytes: int) -> bool:
        """Whether a new item fits into the budget once everything that may make room for it has gone."""
        if size_bytes > bounds.class_max_bytes.get(kind, bounds.max_bytes):
            return False
        above = BY_VALUE[BY_VALUE.index(kind) + 1 :]
        return sum(self._bytes[one] for one in above) + size_bytes <= bounds.max_bytes

    def make_room(self, bounds: Bounds, free_bytes: int, new: EvidenceClass | None = None, new_bytes: int = 0) -> Room:
        """Say what must go, so that the bounds hold with a new item of class `new`; nothing is changed.

        Args:
            bounds: what the store may take.
            free_bytes: on the disk, now.
            new: class of the item to be added; None: none is.
            new_bytes: its size.
        """
        plan = _Plan(self, free_bytes)
        for kind in BY_VALUE:
            plan.shrink(kind, bounds.class_max_bytes.get(kind, bounds.max_bytes))
            plan.release(kind, bounds.min_free_bytes[kind])
        for kind in BY_VALUE:
            plan.shrink(kind, bounds.max_bytes - plan.others(kind))
        if new is None:
            return Room(tuple(plan.chosen))
        due = len(plan.chosen)
        if not self.admits(bounds, new, new_bytes):
            return Room(tuple(plan.chosen), "budget")
        plan.shrink(new, bounds.class_max_bytes.get(new, bounds.max_bytes) - new_bytes)
        for kind in BY_VALUE[: BY_VALUE.index(new) + 1]:
            plan.shrink(kind, bounds.max_bytes - new_bytes - plan.others(kind))
            plan.release(kind, bounds.free_after_bytes(kind) + new_bytes)
        if plan.free_bytes - new_bytes < bounds.free_after_bytes(new):
            return Room(tuple(plan.chosen[:due]), "free_space")
        return Room(tuple(plan.chosen))


class _Plan:
    """A shelf as it would be after some of the oldest items have gone."""

    def __init__(self, shelf: Shelf, free_bytes: int) -> None:
        self.free_bytes = free_bytes
        self.chosen: list[Kept] = []
        self._left = {kind: shelf.oldest_first(kind) for kind in BY_VALUE}
        self._bytes = {kind: shelf.bytes_of(kind) for kind in BY_VALUE}

    def others(self, kind: EvidenceClass) -> int:
        """What the other classes take."""
        return sum(self._bytes.values()) - self._bytes[kind]

    def shrink(self, kind: EvidenceClass, limit_bytes: int) -> None:
        """Let items go until the class takes no more than this, or has none left."""
        while self._bytes[kind] > limit_bytes and self._take(kind):
            pass

    def release(self, kind: EvidenceClass, free_bytes: int) -> None:
        """Let items go until this much is free on the disk, or the class has none left."""
        while self.free_bytes < free_bytes and self._take(kind):
            pass

    def _take(self, kind: EvidenceClass) -> bool:
        item = next(self._left[kind], None)
        if item is None:
            return False
        self.chosen.append(item)
        self._bytes[kind] -= item.size_bytes
        self.free_bytes += item.size_bytes
        return True
