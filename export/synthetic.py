"""Defects drawn on pictures of good parts, for learning what a defect may look like where none was ever photographed.

Five kinds, in the manner of CutPaste (Li et al., CVPR 2021) and of simulated anomalies (Zavrtanik et al., ICCV 2021):
blots, cracks, pieces from elsewhere, chipped edges, and uneven light. None of them is meant to be lifelike: together
they teach that the usual texture is usual.
"""

from collections.abc import Callable

import cv2
import numpy as np
import numpy.typing as npt

from export.views import Mask
from station.messages import Pixels

Soft = npt.NDArray[np.float32]
"""Strength of a defect at each pixel, 0..1."""

_VISIBLE = 0.3
"""A pixel whose strength is at least this belongs to the mask."""


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
    kinds: tuple[Callable[..., tuple[npt.NDArray[np.float32], Soft]], ...] = (_blot, _crack, _piece, _chip, _shade)
    for _ in range(int(rng.integers(1, 4))):
        kind = kinds[int(rng.choice(len(kinds), p=(0.35, 0.25, 0.15, 0.1, 0.15)))]
        painted, soft = kind(result, other, rng)
        weight = soft if result.ndim == 2 else soft[..., None]  # noqa: PLR2004
        result = result * (1 - weight) + painted * weight
        mask |= soft >= _VISIBLE
    if not mask.any():
        row, column = int(rng.integers(pixels.shape[0])), int(rng.integers(pixels.shape[1]))
        result[row : row + 4, column : column + 4] = 255 - result[row, column]
        mask[row : row + 4, column : column + 4] = True
    return np.asarray(np.clip(result, 0, 255), np.uint8), mask


def _blot(pixels: npt.NDArray[np.float32], _: Pixels, rng: np.random.Generator) -> tuple[npt.NDArray[np.float32], Soft]:
    """A small round or ragged spot, darker or brighter."""
    height, width = pixels.shape[:2]
    radius = float(np.exp(rng.uniform(np.log(1.5), np.log(max(3.0, 0.07 * min(height, width))))))
    soft = _place(_ragged(radius, rng), (height, width), rng)
    return _shifted(pixels, rng), soft


def _crack(
    pixels: npt.NDArray[np.float32], _: Pixels, rng: np.random.Generator
) -> tuple[npt.NDArray[np.float32], Soft]:
    """A thin line that wanders."""
    height, width = pixels.shape[:2]
    steps = int(rng.integers(8, 30))
    length = float(rng.uniform(0.1, 0.6)) * min(height, width) / steps
    angles = rng.uniform(0, 2 * np.pi) + np.cumsum(rng.normal(0, 0.35, steps))
    start = rng.uniform(0, 1, 2) * [width, height]
    points = start + np.cumsum(length * np.stack([np.cos(angles), np.sin(angles)], axis=1), axis=0)
    line = np.zeros((height, width), np.uint8)
    thickness = int(rng.integers(1, 4))
    cv2.polylines(line, [np.round(points).astype(np.int32).reshape(-1, 1, 2)], False, 255, thickness, cv2.LINE_AA)
    soft = np.asarray(cv2.GaussianBlur(line, (0, 0), float(rng.uniform(0.4, 0.9))), np.float32) / 255
    return _shifted(pixels, rng), np.minimum(soft * 1.4, 1)


def _piece(
    pixels: npt.NDArray[np.float32], other: Pixels, rng: np.random.Generator
) -> tuple[npt.NDArray[np.float32], Soft]:
    """A piece of another place or part, perhaps turned."""
    height, width = pixels.shape[:2]
    radius = float(rng.uniform(0.04, 0.14)) * min(height, width)
    soft = _place(_ragged(max(radius, 3), rng), (height, width), rng)
    source = np.asarray(cv2.resize(other, (width, height)), np.float32)
    turned = source[::-1, ::-1] if rng.random() < 0.5 else source  # noqa: PLR2004
    moved = np.roll(turned, (int(rng.integers(height)), int(rng.integers(width))), axis=(0, 1))
    return moved + np.float32(rng.normal(0, 15)), soft


def _chip(pixels: npt.NDArray[np.float32], _: Pixels, rng: np.random.Generator) -> tuple[npt.NDArray[np.float32], Soft]:
    """A piece broken off at the edge of the picture: even in tone."""
    height, width = pixels.shape[:2]
    radius = float(rng.uniform(0.05, 0.18)) * min(height, width)
    side = int(rng.integers(4))
    along = float(rng.uniform(0, 1))
    centre = [(along * width, 0), (along * width, height - 1), (0, along * height), (width - 1, along * height)][side]
    soft = _place(_ragged(max(radius, 3), rng), (height, width), rng, centre)
    tone = float(rng.uniform(0, 255))
    return np.full_like(pixels, tone) + 0.2 * (pixels - pixels.mean()), soft


def _shade(
    pixels: npt.NDArray[np.float32], _: Pixels, rng: np.random.Generator
) -> tuple[npt.NDArray[np.float32], Soft]:
    """A large area that is darker or brighter, without an edge."""
    height, width = pixels.shape[:2]
    radius = float(rng.uniform(0.12, 0.35)) * min(height, width)
    soft = _place(_ragged(max(radius, 4), rng), (height, width), rng)
    soft = np.asarray(cv2.GaussianBlur(soft, (0, 0), radius / 3), np.float32)
    return _shifted(pixels, rng, least=0.12), soft


def _shifted(pixels: npt.NDArray[np.float32], rng: np.random.Generator, least: float = 0.15) -> npt.NDArray[np.float32]:
    """The picture in another tone, by a share of the grey scale."""
    step = float(rng.uniform(least, 0.5)) * 255 * (1 if rng.random() < 0.4 else -1)  # noqa: PLR2004
    return pixels * np.float32(rng.uniform(0.5, 1.0)) + np.float32(0.25 * pixels.mean() + step)


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
