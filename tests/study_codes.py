"""How many codes the station reads in pictures that a line spoils, and how long a picture takes.

``PYTHONPATH=. python tests/study_codes.py PICTURES [qr|barcode]`` draws so many pictures of 640 × 640 for each kind of
trouble, each with a code of its own, and reads each as it is and within a region of 240 × 240 around the code.
"""

import sys
import time
from dataclasses import replace

import cv2
import numpy as np
from drawn_codes import SIDE_PX, Sight, check_digit, ean_13, part, qr_code

from station.adapters.code_reader import OpenCvCodeReader
from station.messages import Pixels

USUAL = Sight()
"""Noise of 3 grey values, a blur of 0.6 px, turned by any angle."""
TROUBLES = {
    "usual": USUAL,
    "noise 10": replace(USUAL, noise=10.0),
    "noise 20": replace(USUAL, noise=20.0),
    "blur 1 px": replace(USUAL, blur_px=1.0),
    "blur 1.5 px": replace(USUAL, blur_px=1.5),
    "blur 2 px": replace(USUAL, blur_px=2.0),
    "dark": replace(USUAL, contrast=0.3, brightness=10.0),
    "low contrast": replace(USUAL, contrast=0.15, brightness=100.0),
    "a tenth covered": replace(USUAL, dirt=0.1),
    "a fifth covered": replace(USUAL, dirt=0.2),
}
REGION_PX = 240


def main() -> None:
    """Print a row for each trouble."""
    count, symbols = int(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "qr"
    cv2.setNumThreads(1)
    chance = np.random.default_rng(7)
    reader = OpenCvCodeReader("barcode" if symbols == "barcode" else "qr")
    print(f"{symbols}, {count} pictures each: read (%), wrong, ms median / longest; whole picture, then in a region")
    for trouble, sight in TROUBLES.items():
        columns = []
        pictures = [
            drawn(symbols, replace(sight, turn_degrees=float(chance.uniform(0, 360))), chance) for _ in range(count)
        ]
        for whole in (True, False):
            read, wrong, spent_ms = 0, 0, []
            for text, pixels, centre in pictures:
                look = pixels if whole else around(pixels, centre)
                begin_s = time.perf_counter()
                found = list(reader.read(look).texts)
                spent_ms.append((time.perf_counter() - begin_s) * 1e3)
                read += found == [text]
                wrong += any(one != text for one in found)
            columns.append(f"{100 * read / count:6.1f} {wrong:3d} {np.median(spent_ms):6.0f} / {max(spent_ms):4.0f}")
        print(f"{trouble:16} {columns[0]} | {columns[1]}", flush=True)


def drawn(symbols: str, sight: Sight, chance: np.random.Generator) -> tuple[str, Pixels, tuple[float, float]]:
    """A text, a picture with its code, and where the code's middle is."""
    if symbols == "barcode":
        number = int(chance.integers(10**11, 10**12))
        text, code = f"{number}{check_digit(number)}", ean_13(number)
    else:
        text = f"P{chance.integers(10**9):09}"
        code = qr_code(text)
    pixels, centre = part(code, sight, chance)
    return text, pixels, centre


def around(pixels: Pixels, centre: tuple[float, float]) -> Pixels:
    """The region around a place."""
    left, top = (int(np.clip(value - REGION_PX / 2, 0, SIDE_PX - REGION_PX)) for value in centre)
    return pixels[top : top + REGION_PX, left : left + REGION_PX]


if __name__ == "__main__":
    main()
