"""DeepPCB: `trainval.txt` and `test.txt`, a line a picture: picture file, label file; a reference beside it.

::

    DIR/trainval.txt              group1/b/1.jpg group1/b_not/1.txt
    DIR/test.txt
    DIR/group1/b/1_test.png       the picture
    DIR/group1/b/1_temp.png       its reference: the same place without defects
    DIR/group1/b_not/1.txt        one line a defect: x1 y1 x2 y2 type

A tenth of trainval is held out for the threshold.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from export.layouts.files import read_lines
from export.samples import DatasetError, Listing, Sample, Split

BOARD_LABELS = ("open", "short", "mousebite", "spur", "copper", "pin-hole")
"""Types 1 to 6, in order."""

HOLDOUT_SHARE = 0.1
"""Part of trainval that training never sees: thresholds are chosen there."""

WHOLE_GROUPS_FROM = 20
"""With so many groups, whole ones are held out."""

_LIST_COLUMNS = 2
_BOX_COLUMNS = 5


def find(root: Path) -> Path | None:
    """The folder that holds `trainval.txt`: the one given, or its folder PCBData."""
    return next((folder for folder in (root, root / "PCBData") if (folder / "trainval.txt").is_file()), None)


def read(folder: Path) -> Listing:
    """Read the lists and the label files.

    Raises:
        DatasetError: a file is missing, or a line cannot be read.
    """
    train, validation = _hold_out(_read_list(folder, folder / "trainval.txt"))
    test_list = folder / "test.txt"
    test = _read_list(folder, test_list) if test_list.is_file() else []
    parts: dict[Split, Sequence[Sample]] = {"train": train, "validation": validation, "test": test}
    splits = {sample.name: split for split, samples in parts.items() for sample in samples}
    return Listing(folder, "deeppcb", BOARD_LABELS, [*train, *validation, *test], splits, grouped=True)


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
    for number, line in enumerate(read_lines(listing), start=1):
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
    for number, line in enumerate(read_lines(path), start=1):
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
