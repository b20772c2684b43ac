"""Crops of DeepPCB's boards: folders of good ones and of one defect with masks, or of all kinds of defects without.

A board shows some ten defects of all kinds. A crop shows one, or none; its part is the picture that it was cut from.
Masks are drawn from what the data set knows: where the board differs from its template, within the labelled box.

What is a part? Templates of one folder of the data set were compared at an eighth of their size, at every shift that
leaves a fifth in common. 21,163 pairs correlate by .8 or more: they show the same copper. Of the defects of one picture
2.3 % have one of their kind at the same place of the other, within 14 px (0.3 % at another shift), and a single pair
shares three defects or more: each picture is a board of its own. Layouts are not. At .95, six chains of such pairs hold
100 to 217 pictures each, together more than half. So there are two honest groups. The picture asks what a product's
next board asks; the folder asks for a product that nobody has seen, and leaves eleven groups, of which two or three are
tested. With the picture, some of the crops that are held out look like one that trains, at the same place of a layout
with another defect or none: `station-export train` names them.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
from labelled_folders import whole_folder, write_groups

from export.layouts.deeppcb import BOARD_LABELS, find, read
from export.pictures import read_pixels
from export.samples import DatasetError, Sample
from export.synthesis.patches import Floats, Mask
from station.messages import Pixels

Field = TypeVar("Field", Pixels, Mask)
CROP_PX = 128
GOOD = "good"
BOARDS = 240
GOODS_EACH = 3
TRIES = 30
LEAST_PX = 20
"""A defect whose mask is smaller was not found beside the play between board and template."""

LEAST_PATTERN = 0.05
"""Share of copper, and of substrate, in a crop of a class: of good ones a fifth would be empty, all the same file."""


def write_crops(source: Path, defect: str, folder: Path) -> Path:
    """Crops of `BOARDS` boards, always the same ones, in `folder/good` and `folder/DEFECT`; not again if it is there.

    Raises:
        DatasetError: no DeepPCB below `source`.
    """
    if folder.is_dir():
        return folder
    boards = _boards(source)
    label = BOARD_LABELS.index(defect)
    rng = np.random.default_rng(29)
    groups: list[tuple[str, str]] = []
    with whole_folder(folder) as part:
        for kind in (GOOD, defect):
            (part / kind).mkdir()
        for index in sorted(rng.permutation(len(boards))[:BOARDS]):
            groups += [(name, boards[index].name) for name in _write_board(boards[index], label, part, rng)]
        write_groups(part, groups)
    return folder


def write_class_crops(source: Path, counts: Mapping[str, int], folder: Path, *, whole_layouts: bool = False) -> Path:
    """Crops in a folder for each class, always the same ones, from all boards; not again if `folder` is there.

    Args:
        source: the folder of DeepPCB.
        counts: `good` or a kind of defect → how many crops.
        folder: receives a folder for each class, and `groups.csv`.
        whole_layouts: the group of a crop is the layout of its board (DeepPCB's folder) and not the board's picture.

    Raises:
        DatasetError: no DeepPCB below `source`, or too few places for a class.
    """
    if folder.is_dir():
        return folder
    boards = _boards(source)
    groups: list[tuple[str, str]] = []
    with whole_folder(folder) as part:
        for index, (kind, count) in enumerate(counts.items()):
            (part / kind).mkdir()
            written = _write_class(boards, kind, count, part, np.random.default_rng((31, index)))
            if len(written) < count:
                raise DatasetError(f"{source}: has room for {len(written)} crops of {kind}; {count} are wanted")
            groups += [(name, board.group if whole_layouts else board.name) for name, board in written]
        write_groups(part, groups)
    return folder


def _boards(source: Path) -> list[Sample]:
    lists = find(source)
    if lists is None:
        raise DatasetError(f"{source}: has no trainval.txt; expected the folder of DeepPCB")
    return sorted(read(lists).samples, key=lambda sample: sample.name)


def _write_class(
    boards: Sequence[Sample], kind: str, count: int, folder: Path, rng: np.random.Generator
) -> list[tuple[str, Sample]]:
    label = None if kind == GOOD else BOARD_LABELS.index(kind)
    places = [
        (board, number)
        for board in boards
        for number in ([None] if label is None else np.flatnonzero(board.classes == label))
    ]
    written: list[tuple[str, Sample]] = []
    for at in rng.permutation(len(places)):
        if len(written) == count:
            break
        board, number = places[at]
        pixels = read_pixels(board.picture)
        corner = _around(pixels, None if number is None else board.boxes_px[number], board.boxes_px, rng)
        if corner is not None and _is_patterned(_crop(pixels, corner)):
            name = f"{kind}/{board.picture.stem}-{0 if number is None else number}.png"
            cv2.imwrite(str(folder / name), _crop(pixels, corner))
            written.append((name, board))
    return written


def _write_board(board: Sample, label: int, folder: Path, rng: np.random.Generator) -> list[str]:
    assert board.reference is not None
    pixels, template = read_pixels(board.picture), read_pixels(board.reference)
    stem = board.picture.stem
    names = []
    for number, box in enumerate(board.boxes_px[board.classes == label]):
        mask = _mask(pixels, template, box)
        corner = _around(pixels, box, board.boxes_px, rng)
        if corner is None or np.count_nonzero(_crop(mask, corner)) < LEAST_PX:
            continue
        names.append(f"{BOARD_LABELS[label]}/{stem}-{number}.png")
        cv2.imwrite(str(folder / names[-1]), _crop(pixels, corner))
        shown = _crop(mask, corner).astype(np.uint8) * 255
        cv2.imwrite(str((folder / names[-1]).with_name(f"{stem}-{number}_mask.png")), shown)
    for number in range(GOODS_EACH):
        corner = _around(pixels, None, board.boxes_px, rng)
        if corner is not None:
            names.append(f"{GOOD}/{stem}-{number}.png")
            cv2.imwrite(str(folder / names[-1]), _crop(pixels, corner))
    return names


def _is_patterned(crop: Pixels) -> bool:
    copper = float(np.mean(crop > 127))
    return LEAST_PATTERN <= copper <= 1 - LEAST_PATTERN


def _mask(pixels: Pixels, template: Pixels, box_px: Floats) -> Mask:
    changed = (np.abs(pixels.astype(int) - template) > 127).astype(np.uint8)
    # Edges are off by a pixel or two here and there.
    opened = cv2.morphologyEx(changed, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8)) > 0
    left, top, right, bottom = box_px.astype(int)
    inside = np.zeros(opened.shape, np.bool_)
    inside[top:bottom, left:right] = opened[top:bottom, left:right]
    return inside


def _around(
    pixels: Pixels, box_px: Floats | None, boxes_px: Floats, rng: np.random.Generator
) -> tuple[int, int] | None:
    """Left and top of a crop with one box whole in it, or none, and no other; None where there is no room."""
    lefts, tops, rights, bottoms = boxes_px.astype(int).T
    room = pixels.shape[1] - CROP_PX, pixels.shape[0] - CROP_PX
    for _ in range(TRIES):
        low, high = (0, 0), room
        if box_px is not None:
            left, top, right, bottom = (int(value) for value in box_px)
            low = max(right - CROP_PX, 0), max(bottom - CROP_PX, 0)
            high = min(left, room[0]), min(top, room[1])
        if low[0] > high[0] or low[1] > high[1]:
            return None
        x, y = (int(rng.integers(first, last + 1)) for first, last in zip(low, high, strict=True))
        seen = (lefts < x + CROP_PX) & (rights > x) & (tops < y + CROP_PX) & (bottoms > y)
        if np.count_nonzero(seen) == (box_px is not None):
            return x, y
    return None


def _crop(field: Field, corner: tuple[int, int]) -> Field:
    left, top = corner
    return np.ascontiguousarray(field[top : top + CROP_PX, left : left + CROP_PX])
