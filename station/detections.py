"""From the detector's output grid to defects: probabilities, local peaks, boxes, and one box per defect.

Nearly every cell of a grid says "nothing here", so the whole grid is only compared with one stored value; everything
after that works on the few cells that are left. The same code decodes the int8 grid of the deployed model and the float
grid of the training, so that the two can be compared.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from station.errors import InferenceError
from station.manifest import Decoding
from station.messages import Box, Defect

_LEAST_SIDE_PX = 1.0
"""A box thinner than a pixel shows nothing and cannot be compared with another one."""


@dataclass(frozen=True, slots=True, eq=False)
class Grid:
    """One output of the network: real value = scale × (stored − zero_point).

    Attributes:
        stored: `[rows, columns, depth]`, int8 or float32.
        scale: positive; 1 for a float grid.
        zero_point: 0 for a float grid.
    """

    stored: npt.NDArray[np.int8] | npt.NDArray[np.float32]
    scale: float = 1.0
    zero_point: int = 0

    def real(self, stored: npt.NDArray[np.generic]) -> npt.NDArray[np.float32]:
        """Real values of some stored ones."""
        return np.asarray(
            (stored.astype(np.float32) - np.float32(self.zero_point)) * np.float32(self.scale), np.float32
        )


@dataclass(frozen=True, slots=True)
class Placement:
    """Where the picture lies on the network's input.

    Attributes:
        height_px, width_px: of the picture.
        scale_y, scale_x: input pixels per picture pixel; 1 when the picture was not resized.
    """

    height_px: int
    width_px: int
    scale_y: float = 1.0
    scale_x: float = 1.0


def sigmoid(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Logistic function, without overflow at either end."""
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * logits)), np.float32)


def decode(
    heatmap: Grid,
    box: Grid,
    *,
    labels: tuple[str, ...],
    decoding: Decoding,
    stride_px: int,
    placement: Placement,
) -> tuple[tuple[Defect, ...], float]:
    """Find the defects.

    A cell is a candidate when no neighbour of the same class has a larger logit; of equal neighbours (256 levels make
    plateaus) the first in reading order stands for all. Overlapping boxes of any class are thinned out greedily, the
    best first; equal scores keep reading order. The result is the same on each run and each machine.

    Args:
        heatmap: logits `[rows, columns, len(labels)]`.
        box: `[rows, columns, 4]`: left, top, right, bottom from the cell's centre, in units of `box_unit_px`.
        labels: class names.
        decoding: floor, unit and overlap.
        stride_px: edge of a cell on the network's input.
        placement: where the picture lies; cells in the padding do not count.

    Returns:
        Candidates, best first, their boxes inside the picture; and the largest probability anywhere, 0..1.

    Raises:
        InferenceError: the grids do not fit each other, the labels or the picture, or are not finite.
    """
    rows, columns = _cells_inside(heatmap, box, labels, stride_px, placement)
    logits = heatmap.stored[:rows, :columns]
    best = float(sigmoid(heatmap.real(logits.max(keepdims=True).ravel()))[0])
    if not np.isfinite(best) or (logits.dtype.kind == "f" and not np.isfinite(logits).all()):
        raise InferenceError("the network's heatmap is not finite")
    floor = _stored_floor(heatmap, decoding.score_floor)
    flat = np.flatnonzero(logits >= floor)
    if not flat.size:
        return (), best
    row, column, label = np.unravel_index(flat, logits.shape)
    peaks = _is_peak(logits, row, column, label)
    row, column, label = row[peaks], column[peaks], label[peaks]
    stored = logits[row, column, label]
    order = np.argsort(-stored.astype(np.float32), kind="stable")[: decoding.max_candidates]
    row, column, label, stored = row[order], column[order], label[order], stored[order]
    scores = sigmoid(heatmap.real(stored))
    corners = _corners(box, row, column, decoding=decoding, stride_px=stride_px, placement=placement)
    # The stored floor is one comparison for the whole grid; rounding there must not let a lower score through.
    kept = (
        (scores >= decoding.score_floor)
        & (corners[:, 2] - corners[:, 0] >= _LEAST_SIDE_PX)
        & (corners[:, 3] - corners[:, 1] >= _LEAST_SIDE_PX)
    )
    scores, label, corners = scores[kept], label[kept], corners[kept]
    chosen = suppress(corners, decoding.nms_iou)
    return tuple(
        Defect(label=labels[label[index]], score=float(scores[index]), box=_box(corners[index])) for index in chosen
    ), best


def heatmap_image(heatmap: Grid, stride_px: int, placement: Placement) -> npt.NDArray[np.float32]:
    """Largest class probability per cell, `[rows, columns]` float32 in 0..1, without the padding's cells."""
    rows = -(-round(placement.height_px * placement.scale_y) // stride_px)
    columns = -(-round(placement.width_px * placement.scale_x) // stride_px)
    return sigmoid(heatmap.real(heatmap.stored[:rows, :columns].max(axis=2)))


def overlap(boxes: npt.NDArray[np.float32], others: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Intersection over union of boxes `[…, 4]` (left, top, right, bottom) with others, broadcast; 0 for empty ones."""
    sides = np.minimum(boxes[..., 2:], others[..., 2:]) - np.maximum(boxes[..., :2], others[..., :2])
    shared = np.maximum(sides, 0).prod(axis=-1)
    union = (boxes[..., 2:] - boxes[..., :2]).prod(axis=-1) + (others[..., 2:] - others[..., :2]).prod(axis=-1) - shared
    return np.asarray(shared / np.maximum(union, np.finfo(np.float32).tiny), np.float32)


def suppress(corners: npt.NDArray[np.float32], iou: float) -> list[int]:
    """Greedy non-maximum suppression over boxes `[n, 4]` that stand best first; returns the indices that stay."""
    collides = overlap(corners[:, None], corners[None]) > iou
    dropped = np.zeros(len(corners), np.bool_)
    kept = []
    for index in range(len(corners)):
        if not dropped[index]:
            kept.append(index)
            dropped |= collides[index]
    return kept


def _cells_inside(
    heatmap: Grid, box: Grid, labels: tuple[str, ...], stride_px: int, placement: Placement
) -> tuple[int, int]:
    grid_shape = heatmap.stored.shape
    rows = -(-round(placement.height_px * placement.scale_y) // stride_px)
    columns = -(-round(placement.width_px * placement.scale_x) // stride_px)
    if (
        len(grid_shape) != 3  # noqa: PLR2004
        or grid_shape[2] != len(labels)
        or box.stored.shape != (*grid_shape[:2], 4)
        or rows > grid_shape[0]
        or columns > grid_shape[1]
        or min(rows, columns) < 1
    ):
        raise InferenceError(
            f"the network's grids {grid_shape} and {box.stored.shape} do not fit {len(labels)} labels and "
            f"{rows}×{columns} cells of a {placement.height_px}×{placement.width_px} picture"
        )
    return rows, columns


def _stored_floor(heatmap: Grid, score_floor: float) -> float | np.int8:
    if score_floor <= 0:
        return -np.inf if heatmap.stored.dtype.kind == "f" else np.int8(-128)
    logit = np.inf if score_floor >= 1 else float(np.log(score_floor / (1.0 - score_floor)))
    value = logit / heatmap.scale + heatmap.zero_point
    if heatmap.stored.dtype.kind == "f":
        return value - 1e-4
    return np.int8(np.clip(np.floor(value) if np.isfinite(value) else 127, -128, 127))


def _is_peak(
    logits: npt.NDArray[np.int8] | npt.NDArray[np.float32],
    row: npt.NDArray[np.intp],
    column: npt.NDArray[np.intp],
    label: npt.NDArray[np.intp],
) -> npt.NDArray[np.bool_]:
    mine = logits[row, column, label]
    peak = np.ones(len(row), np.bool_)
    last_row, last_column = logits.shape[0] - 1, logits.shape[1] - 1
    for down in (-1, 0, 1):
        for right in (-1, 0, 1):
            if down == right == 0:
                continue
            there_row, there_column = row + down, column + right
            inside = (there_row >= 0) & (there_row <= last_row) & (there_column >= 0) & (there_column <= last_column)
            neighbour = logits[np.clip(there_row, 0, last_row), np.clip(there_column, 0, last_column), label]
            earlier = (down, right) < (0, 0)
            beaten = neighbour >= mine if earlier else neighbour > mine
            peak &= ~(inside & beaten)
    return peak


def _corners(
    box: Grid,
    row: npt.NDArray[np.intp],
    column: npt.NDArray[np.intp],
    *,
    decoding: Decoding,
    stride_px: int,
    placement: Placement,
) -> npt.NDArray[np.float32]:
    distances = box.real(box.stored[row, column]) * np.float32(decoding.box_unit_px)
    if not np.isfinite(distances).all():
        raise InferenceError("the network's boxes are not finite")
    centre = np.stack([column, row], axis=1).astype(np.float32) * np.float32(stride_px) + np.float32(stride_px / 2)
    scale = np.array([placement.scale_x, placement.scale_y], np.float32)
    limit = np.array([placement.width_px, placement.height_px], np.float32)
    low = np.clip((centre - distances[:, :2]) / scale, 0, limit)
    high = np.clip((centre + distances[:, 2:]) / scale, 0, limit)
    return np.concatenate([low, high], axis=1)


def _box(corners: npt.NDArray[np.float32]) -> Box:
    left, top, right, bottom = (float(value) for value in corners)
    return Box(x_px=left, y_px=top, width_px=right - left, height_px=bottom - top)
