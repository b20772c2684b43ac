"""From a map of scores to the places that stand out: one box for each, in pixels of the picture."""

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from station.detections import Placement
from station.messages import Box

EDGE_SHARE = 0.5
"""A place reaches as far as the map stays above this share of its peak, the usual full width at half maximum."""


@dataclass(frozen=True, slots=True)
class Region:
    """A place that stands out.

    Attributes:
        score: the map's value at the peak.
        box: around the place, in pixels of the picture.
    """

    score: float
    box: Box


def cells_inside(shape: tuple[int, ...], stride_px: int, placement: Placement) -> tuple[int, int]:
    """Rows and columns of a map `[rows, columns, …]` that hold a part of the picture; the rest is padding."""
    rows = -(-round(placement.height_px * placement.scale_y) // stride_px)
    columns = -(-round(placement.width_px * placement.scale_x) // stride_px)
    return min(rows, shape[0]), min(columns, shape[1])


def find_regions(
    heat: npt.NDArray[np.float32], *, floor: float, limit: int, stride_px: int, placement: Placement
) -> tuple[Region, ...]:
    """The places that stand out, best first; of equal peaks the first in reading order.

    Args:
        heat: `[rows, columns]` in 0..1, cells inside the picture only.
        floor: a peak below this is no place.
        limit: at most so many.
        stride_px: edge of a cell on the network's input.
        placement: where the picture lies on the input.
    """
    left = heat.copy()
    found: list[Region] = []
    while len(found) < limit:
        row, column = np.unravel_index(int(left.argmax()), left.shape)
        peak = float(left[row, column])
        if peak < floor or peak <= 0:
            break
        _, numbered = cv2.connectedComponents((left >= peak * EDGE_SHARE).astype(np.uint8))
        member = np.asarray(numbered) == numbered[row, column]
        rows, columns = np.flatnonzero(member.any(axis=1)), np.flatnonzero(member.any(axis=0))
        edges = int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
        found.append(Region(peak, _box(edges, stride_px, placement)))
        left[member] = 0.0
    return tuple(found)


def _box(edges: tuple[int, int, int, int], stride_px: int, placement: Placement) -> Box:
    left, right = (min(edge * stride_px / placement.scale_x, placement.width_px) for edge in (edges[0], edges[2]))
    top, bottom = (min(edge * stride_px / placement.scale_y, placement.height_px) for edge in (edges[1], edges[3]))
    return Box(x_px=left, y_px=top, width_px=right - left, height_px=bottom - top)
