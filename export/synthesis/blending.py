"""Put a defect into a picture of a good part: where, how large and how strong, with a true mask."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from export.synthesis.patches import Floats, Mask, cut
from station.messages import Pixels

VISIBLE = 0.5
"""A pixel whose strength is at least this belongs to the mask."""

LEAST_PX = 6
"""A defect of fewer pixels is no defect to learn."""

LARGEST_SHARE = 0.6
"""A defect that fills more of its square is a change of the whole surface, and its outline is the square's."""

FAINTEST = 4.0
"""A defect that changes the picture by less than this many grey values, on the mean of its mask, cannot be seen."""

TRIES = 40


@dataclass(frozen=True, slots=True)
class Variation:
    """How much a defect is varied when it is put into a picture.

    Attributes:
        size: largest change of its size, as a natural logarithm.
        contrast: likewise of its strength.
        each: defects in a picture, at most.
    """

    size: float = 0.25
    contrast: float = 0.25
    each: int = 2


@dataclass(frozen=True, slots=True, eq=False)
class Drawn:
    """A defect to be put onto a square of a good picture.

    Attributes:
        alpha: float32 `[edge, edge, 1]`, 0..1.
        difference: float32 `[edge, edge, channels]`, what is added where alpha is 1, in parts of the grey scale.
    """

    alpha: Floats
    difference: Floats


Draw = Callable[[Floats, np.random.Generator], Drawn]
"""Makes a defect for a square of a good picture, `[edge, edge, channels]` in 0..1."""


def put_defects(
    pixels: Pixels, draw: Draw, sides_px: Sequence[float], variation: Variation, rng: np.random.Generator
) -> tuple[Pixels, Mask] | None:
    """A copy of a good picture with one defect or more.

    Args:
        pixels: `[height, width]` or `[height, width, 3]`.
        draw: makes the defect for a place.
        sides_px: edges of the squares that real defects have.
        variation: how much to vary.
        rng: source of randomness.

    Returns:
        The picture and the mask of its defects; None when no try gave a defect that can be seen.
    """
    result = np.asarray(pixels / np.float32(255), np.float32)
    mask = np.zeros(pixels.shape[:2], np.bool_)
    for _ in range(int(rng.integers(1, variation.each + 1))):
        for _ in range(TRIES):
            side = float(rng.choice(np.asarray(sides_px))) * float(np.exp(rng.uniform(-1, 1) * variation.size))
            left, top = place(pixels.shape[:2], side, rng)
            strength = float(np.exp(rng.uniform(-1, 1) * variation.contrast))
            drawn = draw(cut(np.asarray(result * 255, np.uint8), left, top, side), rng)
            put = _put(result, drawn, left, top, side, strength)
            if put is not None:
                result, spot = put
                mask |= spot
                break
    if not mask.any():
        return None
    return np.asarray(np.clip(np.rint(result * 255), 0, 255), np.uint8), mask


def place(size: tuple[int, ...], side: float, rng: np.random.Generator) -> tuple[float, float]:
    """Left and top of a square whose middle lies anywhere on a picture of height and width; it may stand over."""
    return float(rng.uniform(0, size[1]) - side / 2), float(rng.uniform(0, size[0]) - side / 2)


def faded(edge_px: int) -> Floats:
    """1 inside, falling to 0 at the rim of a square: no defect ends in a straight line by itself."""
    ramp = np.clip(np.minimum(np.arange(edge_px) + 0.5, edge_px - np.arange(edge_px) - 0.5) / (0.12 * edge_px), 0, 1)
    return np.asarray(np.minimum.outer(ramp, ramp)[..., None], np.float32)


def _put(
    picture: Floats, drawn: Drawn, left: float, top: float, side: float, strength: float
) -> tuple[Floats, Mask] | None:
    height, width = picture.shape[:2]
    edge = drawn.alpha.shape[0]
    scale = side / edge
    affine = np.array([[scale, 0, left + 0.5 * scale - 0.5], [0, scale, top + 0.5 * scale - 0.5]], np.float64)

    def onto(field: Floats) -> npt.NDArray[np.float32]:
        warped = cv2.warpAffine(np.ascontiguousarray(field), affine, (width, height), flags=cv2.INTER_LINEAR)
        return np.asarray(warped, np.float32)

    alpha = onto(drawn.alpha * faded(edge))
    spot = alpha >= VISIBLE
    area = int(np.count_nonzero(spot))
    if area < LEAST_PX or area > LARGEST_SHARE * min(side * side, float(height * width)):
        return None
    difference = onto(drawn.difference)
    if picture.ndim == 3:  # noqa: PLR2004
        alpha = alpha[..., None]
        difference = difference.reshape(picture.shape)
    changed = np.clip(picture + strength * alpha * difference, 0, 1)
    if 255 * float(np.abs(changed - picture)[spot].mean()) < FAINTEST:
        return None
    return changed, spot
