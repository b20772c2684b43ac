"""A labelled folder of small drawn pictures and a small network, for the tests of training, bundle and runtime."""

import functools
from pathlib import Path

import cv2
import numpy as np

from station.messages import Pixels

SIDE_PX = 96
COPPER, PIN_HOLE = 5, 6
"""Types as the label files write them."""

Label = tuple[int, int, int, int, int]


def draw(rng: np.random.Generator, defects: int) -> tuple[Pixels, list[Label]]:
    """Black bars on white; dark blots on the white, or light holes in the bars, all well apart."""
    pixels = np.full((SIDE_PX, SIDE_PX), 230, np.uint8)
    pixels[32:64] = 20
    labels: list[Label] = []
    for place in rng.permutation(9)[:defects]:
        row, column = divmod(int(place), 3)
        x, y = 16 + 32 * column + int(rng.integers(-4, 5)), 16 + 32 * row + int(rng.integers(-4, 5))
        hole = row == 1
        cv2.circle(pixels, (x, y), 5, 230 if hole else 20, cv2.FILLED)
        labels.append((x - 10, y - 10, x + 10, y + 10, PIN_HOLE if hole else COPPER))
    return pixels, labels


def write_folder(folder: Path, train: int = 40, test: int = 6) -> Path:
    """A folder in the DeepPCB layout, with templates beside the pictures."""
    rng = np.random.default_rng(5)
    for listing, count in (("trainval", train), ("test", test)):
        lines = []
        for number in range(count):
            group = f"group{number % 2}"
            stem = f"{listing}{number:03}"
            (folder / group / "pictures").mkdir(parents=True, exist_ok=True)
            (folder / group / "labels").mkdir(parents=True, exist_ok=True)
            pixels, labels = draw(rng, 1 + number % 3)
            clean, _ = draw(rng, 0)
            cv2.imwrite(str(folder / group / "pictures" / f"{stem}_test.png"), pixels)
            cv2.imwrite(str(folder / group / "pictures" / f"{stem}_temp.png"), clean)
            text = "".join(" ".join(str(value) for value in label) + "\n" for label in labels)
            (folder / group / "labels" / f"{stem}.txt").write_text(text, encoding="utf-8")
            lines.append(f"{group}/pictures/{stem}.jpg {group}/labels/{stem}.txt\n")
        (folder / f"{listing}.txt").write_text("".join(lines), encoding="utf-8")
    return folder


TRAIN_ARGUMENTS = [
    *("train", "--task", "detect", "--steps", "150", "--batch", "8", "--crop", "96", "--precision", "float32"),
    *("--widths", "16", "16", "16", "--photometric", "0", "--seed", "3", "--peak-rate", "0.01", "--name", "tiny"),
]


@functools.cache
def trained_folder(folder: Path) -> Path:
    """Train, quantize and package once for all tests of a session; returns the folder with `tiny.bundle`."""
    # TensorFlow is imported only where a test trains.
    from export.__main__ import main  # noqa: PLC0415

    data = write_folder(folder / "data")
    assert main([*TRAIN_ARGUMENTS, "--data", str(data), "--out", str(folder / "out")]) == 0
    return folder / "out"
