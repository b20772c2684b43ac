"""Does the part stand where it stands on good pictures, and does it look like one at all.

A picture is brought down to a small grey one. The middle of the median good picture is looked for in it
(normalized correlation coefficient, `cv2.TM_CCOEFF_NORMED`), which neither brightness nor contrast changes: where it is
found says how far the part is moved, how well it is found says whether it is the part, whole and upright.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from station.messages import Pixels

THUMBNAIL_PX = 96
"""Longest side of the small picture."""
_MARGIN = 0.125
"""Of the small picture's sides: how far a part can be found to be moved, and what the template leaves out."""
_FLAT = 0.5
"""Grey values (standard deviation); with less there is nothing to find."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a part was found.

    Attributes:
        shift_x_px, shift_y_px: from its place on the good pictures, in pixels of the picture.
        similarity: normalized correlation with the good part, −1..1.
    """

    shift_x_px: float
    shift_y_px: float
    similarity: float


def thumbnail(pixels: Pixels) -> Pixels:
    """The small grey picture that `locate` takes."""
    factor = min(1.0, THUMBNAIL_PX / max(pixels.shape[:2]))
    size = (max(8, round(pixels.shape[1] * factor)), max(8, round(pixels.shape[0] * factor)))
    small = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    return np.asarray(small if small.ndim == 2 else cv2.cvtColor(small, cv2.COLOR_BGR2GRAY), np.uint8)  # noqa: PLR2004


def median_thumbnail(thumbnails: Sequence[Pixels]) -> Pixels:
    """The median good picture; all must be of one size."""
    return np.asarray(np.rint(np.median(np.stack(thumbnails), axis=0)), np.uint8)


def locate(seen: Pixels, template: Pixels, size_px: tuple[int, int]) -> Place:
    """Look for the template's middle.

    Args:
        seen: the thumbnail of a picture.
        template: of the same size.
        size_px: width and height of the picture itself, for the shift.
    """
    down, right = (max(1, round(edge * _MARGIN)) for edge in template.shape)
    middle = template[down : template.shape[0] - down, right : template.shape[1] - right]
    if seen.shape != template.shape or float(seen.std()) < _FLAT or float(middle.std()) < _FLAT:
        return Place(0.0, 0.0, 0.0)
    correlation = np.asarray(cv2.matchTemplate(seen, middle, cv2.TM_CCOEFF_NORMED), np.float32)
    found = np.nan_to_num(correlation, posinf=0.0, neginf=0.0)
    _, best, _, (column, row) = cv2.minMaxLoc(found)
    x = column + _vertex(found[row, :], column) - right
    y = row + _vertex(found[:, column], row) - down
    return Place(x * size_px[0] / seen.shape[1], y * size_px[1] / seen.shape[0], float(best))


@dataclass(frozen=True, slots=True)
class Framing:
    """Where the part must be.

    Attributes:
        template: the median good picture, a thumbnail.
        shift_x_px, shift_y_px: how far the part may be moved.
        similarity_min: least similarity.
    """

    template: Pixels
    shift_x_px: float
    shift_y_px: float
    similarity_min: float

    def holds(self, pixels: Pixels) -> bool:
        """Whether the part is where it must be."""
        place = locate(thumbnail(pixels), self.template, (pixels.shape[1], pixels.shape[0]))
        return (
            place.similarity >= self.similarity_min
            and abs(place.shift_x_px) <= self.shift_x_px
            and abs(place.shift_y_px) <= self.shift_y_px
        )


def _vertex(values: npt.NDArray[np.float32], index: int) -> float:
    """How far beside the largest of some values the parabola through it and its neighbours has its top."""
    if not 0 < index < len(values) - 1:
        return 0.0
    before, here, after = (float(value) for value in values[index - 1 : index + 2])
    bend = before - 2 * here + after
    return 0.0 if bend >= 0 else (before - after) / (2 * bend)
