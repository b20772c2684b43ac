"""Defects drawn on pictures of good parts, for learning what a defect may look like where none was ever photographed.

Six kinds, in the manner of CutPaste (Li et al., CVPR 2021) and of simulated anomalies (Zavrtanik et al., ICCV 2021):
blots, cracks, pieces from elsewhere, chipped edges, uneven light, and a surface that is another from some line on.
None of them is meant to be lifelike: together they teach that the usual texture is usual. Many are faint, and change
the tone that stands there by a share of it: loud ones teach nothing about those that are not.
"""

from collections.abc import Callable

import cv2
import numpy as np
import numpy.typing as npt

from export.views import Mask
from station.messages import Pixels

Soft = npt.NDArray[np.float32]
"""Strength of a defect at each pixel, 0..1."""

Painted = tuple[npt.NDArray[np.float32], Soft]
"""What stands where the defect is, and how strongly it covers the picture."""

_VISIBLE = 0.3
"""A pixel whose strength is at least this belongs to the mask."""

_RIMMED = 0.35
"""Share of blots, cracks and chips with a bright and a dark rim, as a dent has under light from one side."""


def draw_defects(pixels: Pixels, other: Pixels, rng: np.random.Generator) -> tuple[Pixels, Mask]:
    """A copy of a good picture with one to three defects.

    Args:
        pixels: `[height, width]` or `[height, width, 3]`.
        other: another good picture, with as many channels: pieces are taken from it.
        rng: source of randomness.

    Returns:
        The picture and the mask of its defects, which is not empty.
    """
    result = pixels.astype(np.float32)
    mask = np.zeros(pixels.shape[:2], np.bool_)
    kinds: tuple[Callable[..., Painted], ...] = (_blot, _crack, _piece, _chip, _shade, _field)
    for _ in range(int(rng.integers(1, 4))):
        kind = kinds[int(rng.choice(len(kinds), p=(0.3, 0.25, 0.12, 0.13, 0.1, 0.1)))]
        painted, soft = kind(result, other, rng)
        result += (painted - result) * _over(soft, result)
        if kind in {_blot, _crack, _chip} and rng.random() < _RIMMED:
            result += _over(_rim(soft, rng), result)
        # Of a surface that changes only the line where it does so is seen.
        mask |= (soft > 1 - _VISIBLE) & (soft < 1) if kind is _field else soft >= _VISIBLE
    if not mask.any():
        row, column = int(rng.integers(pixels.shape[0])), int(rng.integers(pixels.shape[1]))
        result[row : row + 4, column : column + 4] = 255 - result[row, column]
        mask[row : row + 4, column : column + 4] = True
    return np.asarray(np.clip(result, 0, 255), np.uint8), mask


def _blot(pixels: npt.NDArray[np.float32], _: Pixels, rng: np.random.Generator) -> Painted:
    """A small round or ragged spot, darker or brighter."""
    height, width = pixels.shape[:2]
    radius = float(np.exp(rng.uniform(np.log(1.5), np.log(max(3.0, 0.08 * min(height, width))))))
    return _toned(pixels, rng), _place(_ragged(radius, rng), (height, width), rng)


def _crack(pixels: npt.NDArray[np.float32], _: Pixels, rng: np.random.Generator) -> Painted:
    """A thin line that wanders, stronger and weaker on its way."""
    height, width = pixels.shape[:2]
    steps = int(rng.integers(10, 40))
    length = float(np.exp(rng.uniform(np.log(0.06), 0.0))) * min(height, width) / steps
    angles = rng.uniform(0, 2 * np.pi) + np.cumsum(rng.normal(0, rng.uniform(0.05, 0.5), steps))
    start = rng.uniform(0, 1, 2) * [width, height]
    points = start + np.cumsum(length * np.stack([np.cos(angles), np.sin(angles)], axis=1), axis=0)
    line = np.zeros((height, width), np.uint8)
    thickness = int(rng.choice([1, 1, 1, 2, 2, 3]))
    first = 0
    while first < steps - 1:
        last = first + int(rng.integers(3, 12))
        part = np.round(points[first : last + 1]).astype(np.int32).reshape(-1, 1, 2)
        cv2.polylines(line, [part], False, int(rng.integers(120, 256)), thickness, cv2.LINE_AA)
        first = last
    soft = np.asarray(cv2.GaussianBlur(line, (0, 0), float(rng.uniform(0.4, 1.0))), np.float32) / 255
    return _toned(pixels, rng, least=0.1, most=0.75), np.minimum(soft * 1.3, 1)


def _piece(pixels: npt.NDArray[np.float32], other: Pixels, rng: np.random.Generator) -> Painted:
    """A piece of another place or part, perhaps turned."""
    height, width = pixels.shape[:2]
    radius = float(rng.uniform(0.04, 0.14)) * min(height, width)
    soft = _place(_ragged(max(radius, 3), rng), (height, width), rng)
    source = np.asarray(cv2.resize(other, (width, height)), np.float32)
    turned = source[::-1, ::-1] if rng.random() < 0.5 else source  # noqa: PLR2004
    moved = np.roll(turned, (int(rng.integers(height)), int(rng.integers(width))), axis=(0, 1))
    # Half of them in the tone that stands there, so that texture alone tells.
    step = pixels.mean() - moved.mean() if rng.random() < 0.5 else rng.normal(0, 15)  # noqa: PLR2004
    return moved + np.float32(step), soft


def _chip(pixels: npt.NDArray[np.float32], _: Pixels, rng: np.random.Generator) -> Painted:
    """A piece broken off at the edge of the picture: even in tone, or a dent."""
    height, width = pixels.shape[:2]
    radius = float(rng.uniform(0.05, 0.18)) * min(height, width)
    side = int(rng.integers(4))
    along = float(rng.uniform(0, 1))
    centre = [(along * width, 0), (along * width, height - 1), (0, along * height), (width - 1, along * height)][side]
    soft = _place(_ragged(max(radius, 3), rng), (height, width), rng, centre)
    if rng.random() < 0.6:  # noqa: PLR2004
        return _toned(pixels, rng, least=0.15, most=0.8), soft
    return np.full_like(pixels, rng.uniform(0, 255)) + 0.2 * (pixels - pixels.mean()), soft


def _shade(pixels: npt.NDArray[np.float32], _: Pixels, rng: np.random.Generator) -> Painted:
    """A large area that is darker or brighter, with or without an edge."""
    height, width = pixels.shape[:2]
    radius = float(rng.uniform(0.12, 0.35)) * min(height, width)
    soft = _place(_ragged(max(radius, 4), rng), (height, width), rng)
    soft = np.asarray(cv2.GaussianBlur(soft, (0, 0), radius / float(rng.uniform(3, 30))), np.float32)
    return _toned(pixels, rng, least=0.1, most=0.5), soft


def _field(pixels: npt.NDArray[np.float32], other: Pixels, rng: np.random.Generator) -> Painted:
    """From a wavy line on, which runs along or across, the surface has another tone or is that of another part."""
    height, width = pixels.shape[:2]
    angle = float(rng.integers(4)) * np.pi / 2 + float(rng.normal(0, 0.1))
    y, x = np.mgrid[:height, :width].astype(np.float32)
    x, y = x - width * float(rng.uniform(0.2, 0.8)), y - height * float(rng.uniform(0.2, 0.8))
    waves = float(rng.normal(0, 2)) * np.sin((y * np.cos(angle) - x * np.sin(angle)) / float(rng.uniform(5, 30)))
    beyond = x * np.cos(angle) + y * np.sin(angle) + waves
    soft = np.asarray(np.clip(beyond / float(rng.uniform(1, 6)) + 0.5, 0, 1), np.float32)
    if rng.random() < 0.5:  # noqa: PLR2004
        return _toned(pixels, rng, least=0.08, most=0.4), soft
    return np.asarray(cv2.resize(other, (width, height)), np.float32)[::-1], soft


def _toned(
    pixels: npt.NDArray[np.float32], rng: np.random.Generator, least: float = 0.06, most: float = 0.6
) -> npt.NDArray[np.float32]:
    """The picture darker, more often than brighter, by a share of its tone; its texture may fade."""
    share = np.float32(np.exp(rng.uniform(np.log(least), np.log(most))))
    # Around the tone of the place, or of the whole picture: a hole shows what lies below.
    tone = cv2.GaussianBlur(pixels, (0, 0), 4) if rng.random() < 0.5 else pixels.mean(axis=(0, 1))  # noqa: PLR2004
    faded = np.asarray(tone + (pixels - tone) * np.float32(rng.uniform(0.5, 1)), np.float32)
    if rng.random() < 0.7:  # noqa: PLR2004
        return faded * (1 - share)
    if rng.random() < 0.5:  # noqa: PLR2004
        return faded * (1 + share)
    return faded + share * np.float32(rng.uniform(0.3, 1)) * (255 - faded)


def _rim(soft: Soft, rng: np.random.Generator) -> Soft:
    """Grey values to be added along an outline, bright on one side and dark on the other."""
    smooth = cv2.GaussianBlur(soft, (0, 0), float(rng.uniform(0.6, 1.5)))
    angle = float(rng.uniform(0, 2 * np.pi))
    slope = np.cos(angle) * cv2.Sobel(smooth, cv2.CV_32F, 1, 0) + np.sin(angle) * cv2.Sobel(smooth, cv2.CV_32F, 0, 1)
    return np.asarray(slope * rng.uniform(5, 40), np.float32)


def _over(field: Soft, pixels: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """One value for all channels of a pixel."""
    return field if pixels.ndim == 2 else field[..., None]  # noqa: PLR2004


def _ragged(radius: float, rng: np.random.Generator) -> Soft:
    """An ellipse with a wavy outline and a soft edge, in a square just large enough."""
    ratio = float(np.exp(rng.uniform(-0.7, 0.7)))
    half = int(np.ceil(radius * 2.2)) + 2
    y, x = np.mgrid[-half : half + 1, -half : half + 1].astype(np.float32)
    angle = float(rng.uniform(0, np.pi))
    across, along = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    bearing = np.arctan2(along, across)
    outline = np.ones_like(bearing)
    for waves in (2, 3, 5):
        outline += 0.12 * float(rng.normal()) * np.sin(waves * bearing + float(rng.uniform(0, 2 * np.pi)))
    distance = np.hypot(across / ratio, along * ratio) / np.maximum(outline, 0.3)
    edge = max(1.0, 0.15 * radius)
    return np.asarray(np.clip((radius - distance) / edge + 0.5, 0, 1), np.float32)


def _place(
    shape: Soft, size: tuple[int, int], rng: np.random.Generator, centre: tuple[float, float] | None = None
) -> Soft:
    """Put a small field somewhere in a picture of zeros; what stands out over the edge is cut off."""
    height, width = size
    x, y = centre or (float(rng.uniform(0, width)), float(rng.uniform(0, height)))
    top, left = round(y) - shape.shape[0] // 2, round(x) - shape.shape[1] // 2
    result = np.zeros(size, np.float32)
    rows = slice(max(top, 0), max(min(top + shape.shape[0], height), 0))
    columns = slice(max(left, 0), max(min(left + shape.shape[1], width), 0))
    result[rows, columns] = shape[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
    return result
