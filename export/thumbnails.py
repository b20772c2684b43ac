"""Small pictures for the report: what was labelled, and what the model saw."""

from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt

from export.dataset import Sample, read_mask, read_sample
from station.annotate import annotate
from station.messages import Defect, Pixels, Scores

EDGE_PX = 260
GAP_PX = 6
CROP_PX = 120

_WHITE, _BLACK = (255, 255, 255), (0, 0, 0)


def side_by_side(sample: Sample, channels: int, scores: Scores, found: Sequence[Defect]) -> bytes:
    """PNG: the picture with its labels outlined in white, beside it the map and the boxes of the model."""
    pixels = read_sample(sample, channels)
    scale = EDGE_PX / max(pixels.shape[:2])
    left = _resized(_colour(pixels), scale)
    _outline(left, sample, scale)
    right = _resized(_colour(pixels), scale)
    smaller = [
        defect.model_copy(
            update={
                "box": defect.box.model_copy(
                    update={
                        "x_px": defect.box.x_px * scale,
                        "y_px": defect.box.y_px * scale,
                        "width_px": defect.box.width_px * scale,
                        "height_px": defect.box.height_px * scale,
                    }
                )
            }
        )
        for defect in found
    ]
    return _png(_joined(left, annotate(right, smaller, scores.heatmap)))


def close_up(sample: Sample, channels: int, box_px: npt.NDArray[np.float32], *, labelled: bool) -> bytes:
    """PNG: the surroundings of one box `left, top, right, bottom`; the box in white where labelled, else in black."""
    pixels = read_sample(sample, channels)
    height, width = pixels.shape[:2]
    left, top, right, bottom = (float(edge) for edge in box_px)
    reach = max(CROP_PX / 2, right - left, bottom - top)
    x0 = int(np.clip((left + right) / 2 - reach, 0, max(0, width - 2 * reach)))
    y0 = int(np.clip((top + bottom) / 2 - reach, 0, max(0, height - 2 * reach)))
    crop = _colour(pixels)[y0 : y0 + int(2 * reach), x0 : x0 + int(2 * reach)]
    scale = EDGE_PX * 0.6 / max(crop.shape[:2])
    crop = _resized(crop, scale)
    corners = (np.array([left - x0, top - y0, right - x0, bottom - y0]) * scale).round().astype(int)
    _frame(crop, corners, light=labelled)
    return _png(crop)


def _colour(pixels: Pixels) -> Pixels:
    return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_GRAY2BGR), np.uint8) if pixels.ndim == 2 else pixels  # noqa: PLR2004


def _resized(pixels: Pixels, scale: float) -> Pixels:
    size = max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale))
    way = cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST
    return np.ascontiguousarray(cv2.resize(pixels, size, interpolation=way), np.uint8)


def _outline(picture: Pixels, sample: Sample, scale: float) -> None:
    for box in sample.boxes_px:
        _frame(picture, (box * scale).round().astype(int), light=True)
    if sample.mask is not None:
        mask = read_mask(sample.mask).astype(np.uint8)
        shrunk = cv2.resize(mask, (picture.shape[1], picture.shape[0]), interpolation=cv2.INTER_NEAREST)
        outlines, _ = cv2.findContours(shrunk, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
        cv2.drawContours(picture, outlines, -1, _BLACK, 3)
        cv2.drawContours(picture, outlines, -1, _WHITE, 1)


def _frame(picture: Pixels, corners: npt.NDArray[np.int64], *, light: bool) -> None:
    left, top, right, bottom = (int(edge) for edge in corners)
    inner, outer = (_WHITE, _BLACK) if light else (_BLACK, _WHITE)
    cv2.rectangle(picture, (left, top), (right, bottom), outer, 3)
    cv2.rectangle(picture, (left, top), (right, bottom), inner, 1)


def _joined(left: Pixels, right: Pixels) -> Pixels:
    across = left.shape[1] <= left.shape[0] * 2
    # White between black: it shows beside any picture.
    gap = np.full((left.shape[0], GAP_PX, 3) if across else (GAP_PX, left.shape[1], 3), 255, np.uint8)
    edges = gap if not across else gap.swapaxes(0, 1)
    edges[[0, -1]] = 0
    return np.concatenate([left, gap, right], axis=1 if across else 0)


def _png(picture: Pixels) -> bytes:
    encoded = cv2.imencode(".png", picture, [cv2.IMWRITE_PNG_COMPRESSION, 9])[1]
    return encoded.tobytes()
