"""Whole pictures as a classifier sees them in training: mirrored, turned, scaled, lit and blurred, masks alike."""

from dataclasses import dataclass, replace

import cv2
import numpy as np
import numpy.typing as npt

from station.messages import Pixels

Mask = npt.NDArray[np.bool_]

KEPT_SHARE = 0.5
"""Of a defect's area, that a view must show: what is called a break and shows none teaches that anything is one."""

TRIES = 8
"""At a view that shows so much of the defect, before the picture is only mirrored."""

MOST_POINTS = 20_000
"""Of a mask, that say how much of it is in sight."""


@dataclass(frozen=True, slots=True)
class ViewKnobs:
    """How far training pictures may differ from the stored ones.

    Attributes:
        mirror: left-right and up-down, each in half of the views.
        turn_degrees: standard deviation of a small rotation.
        zoom: largest change of scale, as a natural logarithm.
        stretch: largest change of the ratio of the sides, likewise.
        shift: largest shift, as a share of the side.
        contrast: largest change of contrast, as a natural logarithm.
        brightness: largest change in grey values.
        blur_share, noise_share: views that get a Gaussian blur of 0.4 to 1.0 px, or noise of 1 to 5 grey values.
    """

    mirror: bool = True
    turn_degrees: float = 4.0
    zoom: float = 0.18
    stretch: float = 0.08
    shift: float = 0.04
    contrast: float = 0.25
    brightness: float = 20.0
    blur_share: float = 0.25
    noise_share: float = 0.35


def random_view(
    pixels: Pixels, mask: Mask | None, size: tuple[int, int], knobs: ViewKnobs, rng: np.random.Generator
) -> tuple[Pixels, Mask | None]:
    """One view of a picture, resampled once, that shows the better part of its defect.

    Args:
        pixels: `[height, width]` or `[height, width, 3]`.
        mask: `[height, width]`, or None.
        size: height and width of the view.
        knobs: how much.
        rng: source of randomness.

    Returns:
        The view and its mask; what comes in over the edge mirrors the inside, defects and their mask alike.
    """
    defect = _points(mask) if mask is not None else np.zeros((0, 2), np.int64)
    for attempt in range(TRIES + 1):
        tried = knobs if attempt < TRIES else replace(knobs, turn_degrees=0.0, zoom=0.0, stretch=0.0, shift=0.0)
        backwards = _placing(pixels.shape[:2], size, tried, rng)
        shown = _shown(defect, backwards, size)
        # Of the defect itself: what the edge mirrors is no other part of it.
        if len(shown) >= KEPT_SHARE * len(defect):
            break
    view = _relight(_taken(pixels, backwards, size, cv2.INTER_LINEAR), knobs, rng)
    if mask is None:
        return view, None
    seen = _taken(mask.astype(np.uint8), backwards, size, cv2.INTER_NEAREST) > 0
    # In a view that is smaller than the picture, little defects may lie between the places that are sampled.
    seen[shown[:, 1], shown[:, 0]] = True
    return view, seen


def _placing(
    shape: tuple[int, ...], size: tuple[int, int], knobs: ViewKnobs, rng: np.random.Generator
) -> npt.NDArray[np.float64]:
    """From the view's pixels to the picture's, `[2, 3]`."""
    height, width = shape
    rows, columns = size
    flip_x, flip_y = (rng.random(2) < 0.5) & knobs.mirror  # noqa: PLR2004
    zoom = np.exp(rng.uniform(-knobs.zoom, knobs.zoom))
    stretch = np.exp(rng.uniform(-knobs.stretch, knobs.stretch) / 2)
    angle = np.deg2rad(rng.normal() * knobs.turn_degrees)
    shift = rng.uniform(-knobs.shift, knobs.shift, 2)
    # From the view's centre to the picture's: fit, zoom and stretch, turn, mirror, shift.
    fit = np.diag([width / columns / zoom * stretch, height / rows / zoom / stretch])
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    linear = np.diag([-1.0 if flip_x else 1.0, -1.0 if flip_y else 1.0]) @ turn @ fit
    centre = np.array([width - 1, height - 1]) / 2 + shift * [width, height]
    offset = centre - linear @ (np.array([columns - 1, rows - 1]) / 2)
    return np.asarray(np.column_stack([linear, offset]), np.float64)


def _points(mask: Mask) -> npt.NDArray[np.int64]:
    """The pixels of a mask, `[n, (x, y)]`; of very many a part that lies all over it."""
    found = np.flatnonzero(mask)
    rows, columns = np.divmod(found[:: len(found) // MOST_POINTS + 1], mask.shape[1])
    return np.stack([columns, rows], axis=1)


def _shown(
    points: npt.NDArray[np.int64], backwards: npt.NDArray[np.float64], size: tuple[int, int]
) -> npt.NDArray[np.int64]:
    """Which pixels of a view some of the picture's fall on, `[points in sight, (x, y)]`."""
    at = np.rint((points - backwards[:, 2]) @ np.linalg.inv(backwards[:, :2]).T).astype(np.int64)
    return at[((at >= 0) & (at < size[::-1])).all(axis=1)]


def _taken(
    pixels: Pixels, backwards: npt.NDArray[np.float64], size: tuple[int, int], interpolation: int
) -> npt.NDArray[np.uint8]:
    way = interpolation | cv2.WARP_INVERSE_MAP
    view = cv2.warpAffine(pixels, backwards, size[::-1], flags=way, borderMode=cv2.BORDER_REFLECT_101)
    return np.asarray(view, np.uint8)


def _relight(pixels: Pixels, knobs: ViewKnobs, rng: np.random.Generator) -> Pixels:
    values = pixels.astype(np.float32)
    mean = values.mean()
    gain = np.float32(np.exp(rng.uniform(-knobs.contrast, knobs.contrast)))
    values = (values - mean) * gain + mean + np.float32(rng.uniform(-knobs.brightness, knobs.brightness))
    if rng.random() < knobs.blur_share:
        values = np.asarray(cv2.GaussianBlur(values, (0, 0), float(rng.uniform(0.4, 1.0))), np.float32)
    if rng.random() < knobs.noise_share:
        values = values + rng.standard_normal(values.shape, np.float32) * np.float32(rng.uniform(1, 5))
    return np.asarray(np.clip(values, 0, 255), np.uint8)


def cell_cover(mask: Mask, cells: tuple[int, int], stride_px: int) -> npt.NDArray[np.uint8]:
    """Which cells of `stride_px` a mask touches, `[rows, columns]` of 0 and 1; beyond the mask there is no defect."""
    padded = np.zeros((cells[0] * stride_px, cells[1] * stride_px), np.uint8)
    height, width = min(mask.shape[0], padded.shape[0]), min(mask.shape[1], padded.shape[1])
    padded[:height, :width] = mask[:height, :width]
    return np.asarray(padded.reshape(cells[0], stride_px, cells[1], stride_px).max(axis=(1, 3)), np.uint8)
