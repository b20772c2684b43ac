"""A sheet of samples with what is labelled in them, to look at before anything is trained."""

import math
from collections.abc import Sequence

import cv2
import numpy as np

from export.pictures import read_mask, read_sample
from export.samples import Dataset, Sample
from station.messages import Pixels

TILE_PX = 220
COLUMNS = 6
_TEXT_PX = 34
_MARK = (0, 0, 230)
_PAPER = 245
_INK = (40, 40, 40)


def draw_sheet(dataset: Dataset, of_each: int = COLUMNS, seed: int = 0) -> Pixels:
    """Some samples of each class, a row each, with masks outlined and boxes drawn; BGR.

    Raises:
        DatasetError: a picture cannot be read.
    """
    rng = np.random.default_rng(seed)
    tiles = []
    for title, samples in _by_class(dataset):
        for row in range(0, min(of_each, len(samples)), COLUMNS):
            chosen = sorted(rng.permutation(len(samples))[row : row + COLUMNS].tolist())
            drawn = [_tile(samples[index], title, dataset.labels) for index in chosen]
            blank = np.full_like(drawn[0], _PAPER)
            tiles.append(np.hstack([*drawn, *[blank] * (COLUMNS - len(drawn))]))
    return np.vstack(tiles)


def _by_class(dataset: Dataset) -> list[tuple[str, Sequence[Sample]]]:
    rows: list[tuple[str, Sequence[Sample]]] = []
    for number, label in enumerate(dataset.labels):
        members = [item for item in dataset.samples if item.label == number or number in item.classes]
        if members:
            rows.append((label, members))
    without = [item for item in dataset.samples if item.label is None and not len(item.classes)]
    return [*rows, ("no boxes", without)] if without else rows


def _tile(sample: Sample, title: str, labels: Sequence[str]) -> Pixels:
    pixels = read_sample(sample, 3)
    height, width = pixels.shape[:2]
    scale = TILE_PX / max(height, width)
    size = max(math.floor(width * scale), 1), max(math.floor(height * scale), 1)
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST
    shown = cv2.resize(pixels, size, interpolation=interpolation)
    if sample.mask is not None:
        mask = cv2.resize(read_mask(sample.mask).astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
        outlines, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(shown, outlines, -1, _MARK, 1)
    for box, label in zip(sample.boxes_px, sample.classes, strict=True):
        left, top, right, bottom = (round(float(value) * scale) for value in box)
        cv2.rectangle(shown, (left, top), (right, bottom), _MARK, 1)
        cv2.putText(
            shown, labels[label], (left, max(top - 3, 9)), cv2.FONT_HERSHEY_SIMPLEX, 0.35, _MARK, 1, cv2.LINE_AA
        )
    tile = np.full((TILE_PX + _TEXT_PX, TILE_PX + 8, 3), _PAPER, np.uint8)
    tile[_TEXT_PX : _TEXT_PX + size[1], 4 : 4 + size[0]] = shown
    # The Hershey fonts know ASCII only.
    for line, text in enumerate((title, sample.name.rsplit("/", 1)[-1])):
        written = text.encode("ascii", "replace").decode()[:36]
        cv2.putText(tile, written, (4, 13 + 14 * line), cv2.FONT_HERSHEY_SIMPLEX, 0.38, _INK, 1, cv2.LINE_AA)
    return tile
