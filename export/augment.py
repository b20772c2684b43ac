"""Training crops: random pieces of labelled pictures with true boxes, and the grid targets that the losses want.

All of it is NumPy and OpenCV on one picture at a time, a millisecond or two a crop, so that two cores stay free for the
training step.
"""

from dataclasses import dataclass, replace

import cv2
import numpy as np
import numpy.typing as npt

from station.messages import Pixels

PEAK_WIDTH = 0.25
"""Standard deviation of the heatmap's peak, in box widths and heights; about nine cells of a small defect count."""

BOX_FLOOR = 0.3
"""Cells whose heatmap target is at least this also learn the box."""

_BLUR_OR_NOISE_SHARE = 0.7
_SHADING_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class Augmentation:
    """Knobs of the random crops; each share is a probability in 0..1.

    Attributes:
        crop_px: edge of the square crop.
        aim_share: crops that are placed so that a defect lies inside.
        erase_share: pictures with a reference in which defects are undone.
        erase_each: defects undone in such a picture.
        scale_share: crops that are scaled.
        scale_range: largest factor; the smallest is its inverse.
        photometric_share: crops that get another exposure, blur, shading and noise.
        reference_shift_share: crops whose reference is shifted against the picture.
        reference_shift_px: by at most this much in x and in y.
    """

    crop_px: int = 320
    aim_share: float = 0.85
    erase_share: float = 0.4
    erase_each: float = 0.4
    scale_share: float = 0.5
    scale_range: float = 1.25
    photometric_share: float = 0.2
    reference_shift_share: float = 0.2
    reference_shift_px: float = 1.5


@dataclass(frozen=True, slots=True, eq=False)
class Crop:
    """A piece of a picture.

    Attributes:
        pixels: `[crop, crop]` or `[crop, crop, 3]`.
        boxes_px: float32 `[n, 4]`, left, top, right, bottom, clipped to the crop.
        classes: int64 `[n]`.
        whole: bool `[n]`; False for a defect of which too little is left to be learnt or to be called background.
        reference: the same place without defects, of the shape of `pixels`; None where there is no reference.
    """

    pixels: Pixels
    boxes_px: npt.NDArray[np.float32]
    classes: npt.NDArray[np.int64]
    whole: npt.NDArray[np.bool_]
    reference: Pixels | None = None


def erase_defects(
    pixels: Pixels,
    reference: Pixels,
    boxes_px: npt.NDArray[np.float32],
    chosen: npt.NDArray[np.bool_],
    margin_px: int = 2,
) -> tuple[Pixels, npt.NDArray[np.bool_]]:
    """Put the reference's pixels over the chosen defects; what remains is the same place without the defect.

    A box that touches another one is left alone, since undoing it would cut its neighbour.

    Returns:
        A new picture and which boxes are still there.
    """
    result = pixels.copy()
    kept = np.ones(len(boxes_px), np.bool_)
    for index in np.flatnonzero(chosen):
        left, top, right, bottom = boxes_px[index]
        touching = (
            (boxes_px[:, 0] < right + margin_px)
            & (boxes_px[:, 2] > left - margin_px)
            & (boxes_px[:, 1] < bottom + margin_px)
            & (boxes_px[:, 3] > top - margin_px)
        )
        if np.count_nonzero(touching) > 1:
            continue
        rows = slice(max(int(top) - margin_px, 0), int(bottom) + margin_px)
        columns = slice(max(int(left) - margin_px, 0), int(right) + margin_px)
        result[rows, columns] = reference[rows, columns]
        kept[index] = False
    return result, kept


def random_crop(
    pixels: Pixels,
    boxes_px: npt.NDArray[np.float32],
    classes: npt.NDArray[np.int64],
    knobs: Augmentation,
    rng: np.random.Generator,
    reference: Pixels | None = None,
) -> Crop:
    """Cut a random piece: one of the eight flips and quarter turns, scaled, with another exposure, as `knobs` say.

    A reference is cut at the same place but for a small shift, and gets an exposure of its own.
    """
    height, width = pixels.shape[:2]
    scale = 1.0
    if rng.random() < knobs.scale_share:
        scale = float(np.exp(rng.uniform(-1.0, 1.0) * np.log(knobs.scale_range)))
    span = knobs.crop_px / scale
    if len(boxes_px) and rng.random() < knobs.aim_share:
        left, top, right, bottom = boxes_px[rng.integers(len(boxes_px))]
        reach = span * 0.4
        centre_x = (left + right) / 2 + rng.uniform(-reach, reach)
        centre_y = (top + bottom) / 2 + rng.uniform(-reach, reach)
    else:
        centre_x, centre_y = rng.uniform(0, width), rng.uniform(0, height)
    # A crop stays inside the picture where the picture is large enough.
    centre_x = _inside(float(centre_x), span, width)
    centre_y = _inside(float(centre_y), span, height)
    matrix = _dihedral(int(rng.integers(8))) * scale
    half = (knobs.crop_px - 1) / 2
    if scale == 1.0:
        # Whole pixels: an unscaled crop is an exact copy.
        centre_x, centre_y = np.ceil(centre_x), np.ceil(centre_y)
    # The warp counts from pixel centres, the labels from pixel edges: half a pixel apart.
    shift = np.array([half, half]) - matrix @ np.array([centre_x - 0.5, centre_y - 0.5])
    affine = np.column_stack([matrix, shift])
    crop = _cut(pixels, affine, knobs, rng, smooth=scale != 1.0)
    beside = None
    if reference is not None:
        shifted = affine.copy()
        if rng.random() < knobs.reference_shift_share:
            shifted[:, 2] += rng.uniform(-knobs.reference_shift_px, knobs.reference_shift_px, 2)
        beside = _cut(reference, shifted, knobs, rng, smooth=scale != 1.0 or not np.array_equal(shifted, affine))
    return replace(_with_boxes(crop, boxes_px, classes, affine), reference=beside)


def grid_targets(crop: Crop, labels: int, stride_px: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Targets of one crop.

    Returns:
        heatmap `[rows, columns, labels]`: a Gaussian peak on each defect, 1 at its middle cell; −1 where nothing
        counts;
        box `[rows, columns, 5]`: left, top, right, bottom in cells and the cell's weight.
    """
    rows, columns = crop.pixels.shape[0] // stride_px, crop.pixels.shape[1] // stride_px
    heatmap = np.zeros((rows, columns, labels), np.float32)
    box = np.zeros((rows, columns, 5), np.float32)
    for (left, top, right, bottom), label, whole in zip(
        crop.boxes_px / stride_px, crop.classes, crop.whole, strict=True
    ):
        row_range = slice(max(int(top), 0), min(int(np.ceil(bottom)), rows))
        column_range = slice(max(int(left), 0), min(int(np.ceil(right)), columns))
        y = np.arange(row_range.start, row_range.stop, dtype=np.float32)[:, None] + 0.5
        x = np.arange(column_range.start, column_range.stop, dtype=np.float32)[None, :] + 0.5
        if not y.size or not x.size:
            continue
        if not whole:
            heatmap[row_range, column_range] = -1.0
            continue
        offset_y = (y - (top + bottom) / 2) / ((bottom - top) * PEAK_WIDTH)
        offset_x = (x - (left + right) / 2) / ((right - left) * PEAK_WIDTH)
        peak = np.exp(-0.5 * (offset_y**2 + offset_x**2))
        peak /= peak.max()
        region = heatmap[row_range, column_range, label]
        np.maximum(region, peak, out=region)
        mine = (peak >= BOX_FLOOR) & (peak > box[row_range, column_range, 4])
        distances = np.stack(np.broadcast_arrays(x - left, y - top, right - x, bottom - y, peak), axis=-1)
        box[row_range, column_range][mine] = distances[mine]
    np.maximum(box[..., :4], 0.0, out=box[..., :4])
    return heatmap, box


def _cut(
    pixels: Pixels, affine: npt.NDArray[np.float64], knobs: Augmentation, rng: np.random.Generator, *, smooth: bool
) -> Pixels:
    interpolation = cv2.INTER_LINEAR if smooth else cv2.INTER_NEAREST
    crop = np.asarray(cv2.warpAffine(pixels, affine, (knobs.crop_px, knobs.crop_px), flags=interpolation), np.uint8)
    if smooth and _is_binary(pixels):
        crop = np.asarray(cv2.threshold(crop, 127, 255, cv2.THRESH_BINARY)[1], np.uint8)
    return _another_exposure(crop, rng) if rng.random() < knobs.photometric_share else crop


def _inside(centre: float, span: float, size: int) -> float:
    return size / 2 if span >= size else float(np.clip(centre, span / 2, size - span / 2))


def _dihedral(which: int) -> npt.NDArray[np.float64]:
    turn = np.array([[0.0, -1.0], [1.0, 0.0]])
    flip = np.array([[-1.0, 0.0], [0.0, 1.0]])
    matrix = np.linalg.matrix_power(turn, which % 4)
    return np.asarray(matrix @ flip if which // 4 else matrix, np.float64)


def _is_binary(pixels: Pixels) -> bool:
    sample = pixels[::7, ::7]
    return bool(np.isin(sample, (0, 255)).all())


def _another_exposure(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Blur, contrast and offset, a linear shading and sensor noise, each by a random amount."""
    result = pixels.astype(np.float32)
    if rng.random() < _BLUR_OR_NOISE_SHARE:
        result = np.asarray(cv2.GaussianBlur(result, (0, 0), float(rng.uniform(0.4, 1.2))), np.float32)
    contrast = float(rng.uniform(0.45, 1.0))
    result = result * contrast + float(rng.uniform(0.0, 255.0 * (1.0 - contrast)))
    if rng.random() < _SHADING_SHARE:
        height, width = pixels.shape[:2]
        slope_y, slope_x = rng.uniform(-0.15, 0.15, 2)
        shading = (
            1.0
            + slope_y * np.linspace(-1, 1, height, dtype=np.float32)[:, None]
            + slope_x * np.linspace(-1, 1, width, dtype=np.float32)[None, :]
        ).astype(np.float32)
        result *= shading.reshape(height, width, *(1 for _ in pixels.shape[2:]))
    if rng.random() < _BLUR_OR_NOISE_SHARE:
        result += rng.standard_normal(result.shape, np.float32) * np.float32(rng.uniform(1.0, 10.0))
    return np.clip(result, 0, 255).astype(np.uint8)


def _with_boxes(
    crop: Pixels,
    boxes_px: npt.NDArray[np.float32],
    classes: npt.NDArray[np.int64],
    affine: npt.NDArray[np.float64],
) -> Crop:
    height, width = crop.shape[:2]
    corners = np.stack([boxes_px[:, :2], boxes_px[:, 2:]], axis=1) - 0.5
    moved = corners @ affine[:, :2].T + affine[:, 2] + 0.5
    boxes = np.concatenate([moved.min(axis=1), moved.max(axis=1)], axis=1).reshape(-1, 4)
    clipped = np.clip(boxes, 0, [width, height, width, height])
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    left_area = (clipped[:, 2] - clipped[:, 0]) * (clipped[:, 3] - clipped[:, 1])
    middle = (boxes[:, :2] + boxes[:, 2:]) / 2
    centred = ((middle > 0) & (middle < [width, height])).all(axis=1)
    visible = left_area > 0
    whole = centred & (left_area >= 0.6 * area)
    return Crop(
        crop,
        clipped[visible].astype(np.float32),
        classes[visible],
        whole[visible],
    )
