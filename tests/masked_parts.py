"""Folders of small drawn parts whose defects have masks, for the tests of synthesis."""

from pathlib import Path

import cv2
import numpy as np

SIDE_PX = 96


def write_masked_parts(folder: Path, *, good: int, scratch: int, seed: int = 5, colour: bool = False) -> Path:
    """Grey plates with grain, some with a bright scratch; `NAME_mask.png` beside each of those."""
    rng = np.random.default_rng(seed)
    for kind, count in (("good", good), ("scratch", scratch)):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            shape = (SIDE_PX, SIDE_PX, 3) if colour else (SIDE_PX, SIDE_PX)
            pixels = rng.normal(rng.uniform(90, 140), 6, shape)
            if kind == "scratch":
                mask = np.zeros((SIDE_PX, SIDE_PX), np.uint8)
                x, y = (int(value) for value in rng.integers(30, SIDE_PX - 30, 2))
                along, across = (int(value) for value in rng.integers(-16, 17, 2))
                cv2.line(mask, (x - along, y - across), (x + along, y + across), 255, 3)
                pixels[mask > 0] += rng.uniform(60, 90)
                cv2.imwrite(str(folder / kind / f"{number:03}_mask.png"), mask)
            cv2.imwrite(str(folder / kind / f"{number:03}.png"), np.clip(pixels, 0, 255).astype(np.uint8))
    return folder
