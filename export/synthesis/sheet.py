"""Real defects and synthetic ones beside each other, to be looked at."""

from collections.abc import Sequence

import cv2
import numpy as np

from export.synthesis.patches import Floats
from station.messages import Pixels

TILE_PX = 112
COLUMNS = 8
_INK = (40, 40, 40)
_PAPER = 245
_TITLE_PX = 22


def draw_pairs(rows: Sequence[tuple[str, Floats]]) -> Pixels:
    """Rows of patches `[n, 64, 64, channels]` in 0..1 under their titles, up to `COLUMNS` of each; BGR."""
    strips = []
    for title, patches in rows:
        strip = np.full((TILE_PX + _TITLE_PX, TILE_PX * COLUMNS, 3), _PAPER, np.uint8)
        for column, patch in enumerate(patches[:COLUMNS]):
            tile = cv2.resize(np.asarray(patch * 255, np.uint8), (TILE_PX, TILE_PX), interpolation=cv2.INTER_CUBIC)
            tile = tile if tile.ndim == 3 else cv2.cvtColor(tile, cv2.COLOR_GRAY2BGR)  # noqa: PLR2004
            strip[_TITLE_PX:, column * TILE_PX : (column + 1) * TILE_PX] = tile
        written = title.encode("ascii", "replace").decode()
        cv2.putText(strip, written, (4, 15), cv2.FONT_HERSHEY_SIMPLEX, 0.42, _INK, 1, cv2.LINE_AA)
        strips.append(strip)
    return np.vstack(strips)
