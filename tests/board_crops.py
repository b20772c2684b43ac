"""Crops of DeepPCB's boards: a folder with a class of good ones and a class of one defect, with masks.

A board shows some ten defects of all kinds. A crop shows one, or none; its part is the picture that it was cut from.
Masks are drawn from what the data set knows: where the board differs from its template, within the labelled box.
"""

import csv
import shutil
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np

from export.layouts.deeppcb import BOARD_LABELS, find, read
from export.pictures import read_pixels
from export.samples import DatasetError, Sample
from export.synthesis.patches import Floats, Mask
from station.messages import Pixels

Field = TypeVar("Field", Pixels, Mask)
CROP_PX = 128
BOARDS = 240
GOODS_EACH = 3
TRIES = 30
LEAST_PX = 20
"""A defect whose mask is smaller was not found beside the play between board and template."""


def write_crops(source: Path, defect: str, folder: Path) -> Path:
    """Crops of `BOARDS` boards, always the same ones, in `folder/good` and `folder/DEFECT`; not again if it is there.

    Raises:
        DatasetError: no DeepPCB below `source`.
    """
    if folder.is_dir():
        return folder
    lists = find(source)
    if lists is None:
        raise DatasetError(f"{source}: has no trainval.txt; expected the folder of DeepPCB")
    boards = sorted(read(lists).samples, key=lambda sample: sample.name)
    label = BOARD_LABELS.index(defect)
    rng = np.random.default_rng(29)
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    for kind in ("good", defect):
        (part / kind).mkdir(parents=True)
    with (part / "groups.csv").open("w", encoding="utf-8", newline="") as stream:
        groups = csv.writer(stream)
        groups.writerow(["file", "group"])
        for index in sorted(rng.permutation(len(boards))[:BOARDS]):
            for name in _write_board(boards[index], label, part, rng):
                groups.writerow([name, boards[index].name])
    part.rename(folder)
    return folder


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
            names.append(f"good/{stem}-{number}.png")
            cv2.imwrite(str(folder / names[-1]), _crop(pixels, corner))
    return names


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
