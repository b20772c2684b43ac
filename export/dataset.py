"""Labelled pictures on disk, read into one internal form.

Every layout ends as `Sample` records in a `Dataset`; training, quantization and evaluation know nothing else. A reader
for another layout is a function from a folder to a `Dataset`, added to `read_dataset`.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt

from station.errors import StationError
from station.messages import Pixels

BOARD_LABELS = ("open", "short", "mousebite", "spur", "copper", "pin-hole")
"""DeepPCB's types 1 to 6, in order."""

HOLDOUT_SHARE = 0.1
"""Part of trainval that training never sees: thresholds are chosen there."""

WHOLE_GROUPS_FROM = 20
"""With so many groups, whole ones are held out."""

_LIST_COLUMNS = 2
_BOX_COLUMNS = 5

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


class DatasetError(StationError):
    """A data set cannot be used: the text names the file, the line and what is expected there."""


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """One labelled picture.

    Attributes:
        name: path of the picture relative to the data set, as it stands in provenance records.
        picture: the picture's file.
        boxes_px: float32 `[n, 4]`: left, top, right, bottom.
        classes: int64 `[n]`, index into the data set's labels.
        group: pictures of one group show the same part or board.
        reference: the same scene without defects, pixel for pixel aligned, if there is one.
    """

    name: str
    picture: Path
    boxes_px: npt.NDArray[np.float32]
    classes: npt.NDArray[np.int64]
    group: str
    reference: Path | None = None


@dataclass(frozen=True, slots=True)
class Dataset:
    """Samples by split.

    Attributes:
        root: the folder.
        layout: name of the layout that was recognized.
        labels: class names.
        splits: every split, possibly empty.
    """

    root: Path
    layout: str
    labels: tuple[str, ...]
    splits: Mapping[Split, Sequence[Sample]]


def read_dataset(root: Path) -> Dataset:
    """Recognize the layout of a folder and read its labels (not its pictures).

    Raises:
        DatasetError: the folder or a file is missing, the layout is unknown, or a line cannot be read.
    """
    if not root.is_dir():
        raise DatasetError(f"{root}: is not a folder")
    for folder in (root, root / "PCBData"):
        if (folder / "trainval.txt").is_file():
            return _read_deeppcb(folder)
    raise DatasetError(
        f"{root}: holds no known layout; expected trainval.txt and test.txt (DeepPCB) there or in its folder PCBData"
    )


def read_pixels(path: Path, channels: int = 1) -> Pixels:
    """Read a picture as `[height, width]` (one channel) or `[height, width, 3]`.

    Raises:
        DatasetError: the file is missing or no picture.
    """
    try:
        encoded = np.frombuffer(path.read_bytes(), np.uint8)
    except OSError as exc:
        raise DatasetError(f"{path}: cannot be read: {exc.strerror}") from exc
    flag = cv2.IMREAD_GRAYSCALE if channels == 1 else cv2.IMREAD_COLOR
    decoded = cv2.imdecode(encoded, flag) if encoded.size else None
    if decoded is None:
        raise DatasetError(f"{path}: is not a whole picture")
    return np.ascontiguousarray(decoded, dtype=np.uint8)


def fingerprint(samples: Sequence[Sample]) -> str:
    """sha256 over the sorted hashes of pictures and labels: the same data gives the same value on any machine."""
    digests = []
    for sample in samples:
        digest = hashlib.sha256(sample.name.encode())
        digest.update(hashlib.sha256(sample.picture.read_bytes()).digest())
        digest.update(np.ascontiguousarray(sample.boxes_px, "<f4").tobytes())
        digest.update(np.ascontiguousarray(sample.classes, "<i8").tobytes())
        digests.append(digest.digest())
    return hashlib.sha256(b"".join(sorted(digests))).hexdigest()


def _read_deeppcb(folder: Path) -> Dataset:
    train, validation = _hold_out(_read_list(folder, folder / "trainval.txt"))
    test_list = folder / "test.txt"
    test = _read_list(folder, test_list) if test_list.is_file() else []
    return Dataset(folder, "deeppcb", BOARD_LABELS, {"train": train, "validation": validation, "test": test})


def _hold_out(samples: Sequence[Sample]) -> tuple[list[Sample], list[Sample]]:
    """Split off `HOLDOUT_SHARE` so that the same board is on one side only, as far as the groups tell."""
    by_group: dict[str, list[Sample]] = {}
    for sample in samples:
        by_group.setdefault(sample.group, []).append(sample)
    train: list[Sample] = []
    held_out: list[Sample] = []
    whole_groups = len(by_group) >= WHOLE_GROUPS_FROM
    every = round(1 / HOLDOUT_SHARE)
    for number, members in enumerate(by_group.values(), start=1):
        if whole_groups:
            (train if number % every else held_out).extend(members)
            continue
        # Few groups: each must be trained on. Neighbours in the list were cut from the same panel, so a block at the
        # end is held out and not single pictures.
        kept = len(members) - round(len(members) * HOLDOUT_SHARE)
        train += members[:kept]
        held_out += members[kept:]
    return train, held_out


def _read_list(folder: Path, listing: Path) -> list[Sample]:
    samples = []
    for number, line in enumerate(_lines(listing), start=1):
        if not line.strip():
            continue
        names = line.split()
        if len(names) != _LIST_COLUMNS:
            raise DatasetError(f"{listing}:{number}: expected a picture and a label file, found {line.strip()!r}")
        picture, reference = _find_picture(folder, names[0], f"{listing}:{number}")
        boxes_px, classes = _read_boxes(folder / names[1])
        samples.append(
            Sample(
                name=picture.relative_to(folder).as_posix(),
                picture=picture,
                boxes_px=boxes_px,
                classes=classes,
                group=Path(names[0]).parts[0],
                reference=reference,
            )
        )
    if not samples:
        raise DatasetError(f"{listing}: names no pictures")
    return samples


def _find_picture(folder: Path, name: str, where: str) -> tuple[Path, Path | None]:
    """The lists name `A/B/ID.jpg`; on disk stand `ID_test` and `ID_temp`, or a picture of exactly that name."""
    listed = folder / name
    for suffix in (".png", listed.suffix):
        tested = listed.with_name(f"{listed.stem}_test{suffix}")
        if tested.is_file():
            template = listed.with_name(f"{listed.stem}_temp{suffix}")
            return tested, template if template.is_file() else None
    if listed.is_file():
        return listed, None
    raise DatasetError(f"{where}: picture {name} is missing (looked for {listed.stem}_test.png beside it as well)")


def _read_boxes(path: Path) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    rows: list[list[int]] = []
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        try:
            row = [int(value) for value in line.replace(",", " ").split()]
        except ValueError:
            row = []
        if len(row) != _BOX_COLUMNS or row[2] <= row[0] or row[3] <= row[1] or not 1 <= row[4] <= len(BOARD_LABELS):
            raise DatasetError(
                f"{path}:{number}: expected x1 y1 x2 y2 type, x1 < x2, y1 < y2, type 1 to {len(BOARD_LABELS)}, "
                f"found {line.strip()!r}"
            )
        rows.append(row)
    table = np.array(rows, np.int64).reshape(-1, 5)
    return table[:, :4].astype(np.float32), table[:, 4] - 1


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except OSError as exc:
        raise DatasetError(f"{path}: cannot be read: {exc.strerror}") from exc
    except UnicodeDecodeError as exc:
        raise DatasetError(f"{path}: is not UTF-8 text: byte {exc.start}") from exc
