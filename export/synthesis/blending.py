"""Put a defect into a picture of a good part: where, how large and how strong, with a true mask."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
import numpy.typing as npt

from export.synthesis.patches import Floats, Mask, Piece, cut, sketch, soften
from station.messages import Pixels

VISIBLE = 0.5
"""A pixel whose strength is at least this belongs to the mask."""

LEAST_PX = 6
"""A defect of fewer pixels is no defect to learn."""

LARGEST_SHARE = 0.6
"""A defect that fills more of its square is a change of the whole surface, and its outline is the square's."""

FAINTEST = 4.0
"""A defect that changes the picture by less than this many grey values, on the mean of its mask, cannot be seen."""

KNOT_PX = 21.0
"""Distance of the knots of the field that bends a shape: a long crack is bent many times, not torn."""

TRIES = 40


@dataclass(frozen=True, slots=True)
class Variation:
    """How much a defect is varied when it is put into a picture.

    Attributes:
        size: largest change of its size, as a natural logarithm.
        contrast: likewise of its strength.
        each: defects in a picture, at most.
        bend_px: standard deviation by which a painted shape is bent.
    """

    size: float = 0.25
    contrast: float = 0.25
    each: int = 2
    bend_px: float = 3.2


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


Paint = Callable[[Floats, Floats, Floats, np.random.Generator], Floats]
"""Paints a shape: from a good picture `[height, width, channels]` in 0..1, the strength and the sketch, each
`[height, width, 1]`, to the difference at each pixel, as the picture."""


def put_pieces(
    pixels: Pixels, pieces: Sequence[Piece], paint: Paint | None, variation: Variation, rng: np.random.Generator
) -> tuple[Pixels, Mask] | None:
    """A copy of a good picture with one real defect or more, or with other ones of such shapes.

    They keep their resolution but for `variation.size`, and are mirrored, not turned: what lies along the grain of a
    part still does. What ended at an edge of its picture ends there again.

    Args:
        pixels: `[height, width]` or `[height, width, 3]`.
        pieces: real defects of one class.
        paint: paints the shapes anew; None: they look as they did.
        variation: how much to vary.
        rng: source of randomness.

    Returns:
        The picture and the mask of its defects; None when no try gave a defect that can be seen.
    """
    result = np.asarray(pixels / np.float32(255), np.float32).reshape(*pixels.shape[:2], -1)
    mask = np.zeros(pixels.shape[:2], np.bool_)
    for _ in range(int(rng.integers(1, variation.each + 1))):
        for _ in range(TRIES):
            piece = _mirrored(pieces[int(rng.integers(len(pieces)))], rng)
            shape, difference = _varied(piece, variation, paint is not None, rng)
            shape, difference = _onto(shape, difference, piece, pixels.shape[:2], rng)
            strength = float(np.exp(rng.uniform(-1, 1) * variation.contrast))
            spot = shape[..., 0] >= VISIBLE
            if not LEAST_PX <= np.count_nonzero(spot) <= LARGEST_SHARE * spot.size:
                continue
            alpha = soften(shape)
            if paint is not None:
                difference = paint(result, alpha, sketch(difference, shape), rng)
            changed = np.asarray(np.clip(result + strength * alpha * difference, 0, 1), np.float32)
            if 255 * float(np.abs(changed - result)[spot].mean()) >= FAINTEST:
                result = changed
                mask |= spot
                break
    if not mask.any():
        return None
    return np.asarray(np.clip(np.rint(result * 255), 0, 255), np.uint8).reshape(pixels.shape), mask


def bent(field: Floats, bend_px: float, rng: np.random.Generator) -> Floats:
    """A shape `[height, width, n]`, n at most 4, moved smoothly by some `bend_px`."""
    height, width = field.shape[:2]
    knots = [max(2, round(length / KNOT_PX) + 1) for length in (height, width)]
    shifts = rng.normal(0, bend_px, (*knots, 2)).astype(np.float32)
    moved = np.asarray(cv2.resize(shifts, (width, height), interpolation=cv2.INTER_CUBIC), np.float32)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    seen = cv2.remap(np.ascontiguousarray(field), x + moved[..., 0], y + moved[..., 1], cv2.INTER_LINEAR)
    return np.asarray(seen, np.float32).reshape(field.shape)


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


def _mirrored(piece: Piece, rng: np.random.Generator) -> Piece:
    across, down = rng.random(2) < 0.5  # noqa: PLR2004
    if across:
        mask, difference = piece.mask[:, ::-1], piece.difference[:, ::-1]
        piece = replace(piece, mask=mask, difference=difference, left=piece.right, right=piece.left)
    if down:
        mask, difference = piece.mask[::-1], piece.difference[::-1]
        piece = replace(piece, mask=mask, difference=difference, top=piece.bottom, bottom=piece.top)
    return piece


def _varied(piece: Piece, variation: Variation, painted: bool, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Shape and difference in another size, as `piece`; bent where they are painted anew."""
    factor = float(np.exp(rng.uniform(-1, 1) * variation.size))
    height, width = piece.mask.shape[:2]
    size = max(round(width * factor), 3), max(round(height * factor), 3)

    def resized(field: Floats) -> Floats:
        scaled = cv2.resize(np.ascontiguousarray(field), size, interpolation=cv2.INTER_LINEAR)
        return np.asarray(scaled, np.float32).reshape(size[1], size[0], -1)

    shape, difference = resized(piece.mask), resized(piece.difference)
    if not painted:
        return shape, difference
    both = bent(np.concatenate([shape, difference], axis=-1), variation.bend_px, rng)
    return both[..., :1], both[..., 1:]


def _onto(
    shape: Floats, difference: Floats, piece: Piece, size: tuple[int, ...], rng: np.random.Generator
) -> tuple[Floats, Floats]:
    """Both on an empty picture of height and width: at the edge that the defect ended at, else anywhere within."""

    def first(length: int, room: int, *, low: bool, high: bool) -> int:
        if low or high:
            return 0 if low else room - length
        return int(rng.integers(0, max(room - length, 0) + 1))

    height, width = shape.shape[:2]
    top = first(height, size[0], low=piece.top, high=piece.bottom)
    left = first(width, size[1], low=piece.left, high=piece.right)
    to = slice(max(top, 0), min(top + height, size[0])), slice(max(left, 0), min(left + width, size[1]))
    of = slice(to[0].start - top, to[0].stop - top), slice(to[1].start - left, to[1].stop - left)
    whole_shape = np.zeros((size[0], size[1], 1), np.float32)
    whole_difference = np.zeros((size[0], size[1], difference.shape[2]), np.float32)
    whole_shape[to], whole_difference[to] = shape[of], difference[of]
    return whole_shape, whole_difference


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
