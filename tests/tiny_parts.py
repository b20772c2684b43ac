"""Folders of small drawn parts, good ones and defective ones, for the tests of classifiers and anomaly models."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from export.samples import Sample, no_boxes
from export.train_classifier import LoadedPicture
from station.messages import Pixels

SIDE_PX = 64
KINDS = ("good", "hole", "scratch")


def draw_part(rng: np.random.Generator, kind: str) -> tuple[Pixels, tuple[int, int]]:
    """A grey plate with grain; a dark round hole or a bright line on it. Returns the middle of the defect, (x, y)."""
    pixels = rng.normal(120, 6, (SIDE_PX, SIDE_PX))
    x, y = (int(value) for value in rng.integers(16, SIDE_PX - 16, 2))
    if kind == "hole":
        cv2.circle(pixels, (x, y), 6, 20.0, cv2.FILLED)
    if kind == "scratch":
        cv2.line(pixels, (x - 9, y - 7), (x + 9, y + 7), 240.0, 2)
    return np.clip(pixels, 0, 255).astype(np.uint8), (x, y)


def write_parts(folder: Path, counts: dict[str, int], seed: int = 3) -> Path:
    """A folder for each kind, with so many pictures."""
    rng = np.random.default_rng(seed)
    for kind, count in counts.items():
        (folder / kind).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            pixels, _ = draw_part(rng, kind)
            cv2.imwrite(str(folder / kind / f"{number:03}.png"), pixels)
    return folder


def loaded_parts(count: int, kinds: Sequence[str]) -> list[LoadedPicture]:
    """So many parts in memory, each a group of its own, of the kinds in turn; a label is the kind's place."""
    rng = np.random.default_rng(5)
    names = [f"{number}.png" for number in range(count)]
    return [
        LoadedPicture(Sample(name, Path(name), *no_boxes(), group=name), label, draw_part(rng, kinds[label])[0], None)
        for number, name in enumerate(names)
        for label in [number % len(kinds)]
    ]
