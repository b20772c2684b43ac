"""Defects cut out of labelled pictures, with the defect's mask and what the place looked like without it.

Pieces are whole defects as they are. Patches are squares of one size: a long thin defect is cut into several windows,
so that a crack stays thin; a large one is taken whole and shrunk.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from export.pictures import read_mask, read_sample
from export.samples import Dataset, DatasetError, Sample
from station.messages import Pixels

Floats = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

PATCH_PX = 64
"""Edge of a patch as models see it."""

LEAST_SIDE_PX = 24
WINDOW_PX = 96
"""Edges of the square that is cut out of the picture, before it is scaled to `PATCH_PX`: of the smallest defect, and of
a window of a long thin one."""

THINNEST_PX = 2.5
"""A defect that would be thinner than this in its patch is cut into windows instead of shrunk."""

MARGIN = 1.6
"""The square is larger than the defect by this, so that its surroundings are seen."""

LEAST_PICTURES = 3
"""With fewer there is nothing that varies, and so nothing to learn, into however many windows a long defect is cut."""

WINDOWS_EACH = 6
"""Windows of one large defect, at most: one picture must not stand for its class."""

MARGIN_PX = 8
"""Around a piece: its difference to its ground ends softly."""

SKETCH_BLUR_PX = 0.7
"""The grain of a surface is not drawn."""

_LEAST_MASK_PX = 4
_JOIN_PX = 9


@dataclass(frozen=True, slots=True, eq=False)
class Patch:
    """One defect, or a window of a large one.

    Attributes:
        pixels: float32 `[64, 64, channels]`, 0..1.
        mask: float32 `[64, 64, 1]`, 0..1, 1 where the defect is.
        ground: as `pixels`, the defect painted over from its surroundings.
        label: index of its class in the data set's labels.
        side_px: edge of the square in the picture.
        sample: where it came from.
        mask_drawn: a person drew the mask; else it was found by contrast within a box.
    """

    pixels: Floats
    mask: Floats
    ground: Floats
    label: int
    side_px: float
    sample: Sample
    mask_drawn: bool


@dataclass(frozen=True, slots=True, eq=False)
class Marked:
    """A picture with the mask of one class of its defects.

    Attributes:
        sample: where it came from.
        pixels: `[height, width]` or `[height, width, 3]`.
        mask: `[height, width]`, not empty.
        label: class of the defects.
        drawn: a person drew the mask.
    """

    sample: Sample
    pixels: Pixels
    mask: Mask
    label: int
    drawn: bool


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """One whole defect at the resolution of its picture.

    Attributes:
        mask: float32 `[height, width, 1]`, 0 or 1, with `MARGIN_PX` around it where the picture goes on.
        difference: float32 `[height, width, channels]`, by how much it differs from its ground, in parts of the grey
            scale.
        label: index of its class in the data set's labels.
        top, bottom, left, right: whether it ends where the picture does.
    """

    mask: Floats
    difference: Floats
    label: int
    top: bool
    bottom: bool
    left: bool
    right: bool


def read_marked(samples: Sequence[Sample], labels: Sequence[int], channels: int) -> list[Marked]:
    """The pictures that show defects of some classes, each with its mask.

    A mask that was drawn is taken; else what stands out within the labelled boxes. A picture with neither is left out.

    Raises:
        DatasetError: a file cannot be read.
    """
    found = []
    for sample in samples:
        for label in labels:
            if sample.label == label and sample.mask is not None:
                mask = read_mask(sample.mask)
                drawn = True
            elif (sample.classes == label).any():
                pixels = read_sample(sample, channels)
                mask = _within_boxes(pixels, sample.boxes_px[sample.classes == label])
                drawn = False
            else:
                continue
            if np.count_nonzero(mask) >= _LEAST_MASK_PX:
                found.append(Marked(sample, read_sample(sample, channels), mask, label, drawn))
    return found


def cut_patches(marked: Sequence[Marked], seed: int) -> list[Patch]:
    """Cut every defect out; a large one gives several windows."""
    return [_patch(picture, *square) for picture in marked for square in squares_of(picture, seed)]


def cut_pieces(marked: Sequence[Marked]) -> list[Piece]:
    """Every defect whole, at its own resolution."""
    pieces = []
    for picture in marked:
        ground = paint_over(picture.pixels, picture.mask)
        difference = (picture.pixels.astype(np.float32) - ground) / np.float32(255)
        difference = difference if difference.ndim == 3 else difference[..., None]  # noqa: PLR2004
        height, width = picture.mask.shape
        for piece in pieces_of(picture.mask):
            rows, columns = np.nonzero(piece)
            top, bottom = max(int(rows.min()) - MARGIN_PX, 0), min(int(rows.max()) + 1 + MARGIN_PX, height)
            left, right = max(int(columns.min()) - MARGIN_PX, 0), min(int(columns.max()) + 1 + MARGIN_PX, width)
            inside = slice(top, bottom), slice(left, right)
            pieces.append(
                Piece(
                    piece[inside].astype(np.float32)[..., None],
                    difference[inside],
                    picture.label,
                    top=top == 0,
                    bottom=bottom == height,
                    left=left == 0,
                    right=right == width,
                )
            )
    return pieces


def soften(mask: Floats) -> Floats:
    """A mask `[height, width, 1]` as the strength of a defect: a pixel further out, since its rim is a gradual one."""
    grown = cv2.dilate(np.ascontiguousarray(mask), np.ones((3, 3), np.uint8))
    return np.asarray(cv2.GaussianBlur(grown, (0, 0), 1.0), np.float32).reshape(mask.shape)


def sketch(difference: Floats, mask: Floats) -> Floats:
    """What a person would draw of a defect with one pen for dark and one for bright.

    A mask is often a wide band about a fine line, and does not say where in it the line runs.

    Args:
        difference: `[height, width, channels]`, of the defect from its ground.
        mask: `[height, width, 1]`, 0..1.

    Returns:
        `[height, width, 1]`: −1 where it is much darker than its ground, 1 where it is much brighter, else 0; much is
        what Otsu's threshold divides from little within the mask.
    """
    height, width = mask.shape[:2]
    smooth = cv2.GaussianBlur(np.ascontiguousarray(difference.mean(axis=2)), (0, 0), SKETCH_BLUR_PX)
    inside = mask[..., 0] >= 0.5  # noqa: PLR2004
    if not inside.any():
        return np.zeros((height, width, 1), np.float32)
    strength = np.abs(smooth)
    tones = np.rint(strength[inside] * (255 / max(float(strength[inside].max()), 1e-6))).astype(np.uint8)
    level, _ = cv2.threshold(tones, 0, 1, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    drawn = np.zeros((height, width), np.float32)
    drawn[inside] = np.sign(smooth[inside]) * (tones > level)
    return drawn[..., None]


def need_patches(patches: Sequence[Patch], label: int, dataset: Dataset) -> list[Patch]:
    """The patches of one class.

    Raises:
        DatasetError: there are too few of them, or none whose place is labelled.
    """
    own = [patch for patch in patches if patch.label == label]
    name = dataset.labels[label]
    pictures = sum(1 for sample in dataset.splits["train"] if sample.label == label or (sample.classes == label).any())
    if not own and pictures:
        raise DatasetError(
            f"{dataset.root}: the {pictures} training pictures of {name} say neither by a mask nor by a box where the "
            "defect is; draw a mask for each (NAME_mask.png beside NAME.jpg, white where the defect is), or take the "
            "method procedural, which needs none"
        )
    marked = len({patch.sample.name for patch in own})
    if marked < LEAST_PICTURES:
        raise DatasetError(
            f"{dataset.root}: {marked} training pictures say where they show {name}; at least {LEAST_PICTURES} are "
            "needed to learn how it varies, five or more are better (of all pictures of it some are kept to choose the "
            "threshold and to test); take more pictures and draw their masks, or make some without learning: method "
            "procedural or classical"
        )
    return own


def squares_of(picture: Marked, seed: int) -> list[tuple[float, float, float]]:
    """Left, top and edge of the squares that hold a picture's defects; a large one gives several."""
    rng = np.random.default_rng([seed, *picture.sample.name.encode()])
    squares = []
    for piece in pieces_of(picture.mask):
        rows, columns = np.nonzero(piece)
        height, width = int(np.ptp(rows)) + 1, int(np.ptp(columns)) + 1
        side = max(MARGIN * max(height, width), LEAST_SIDE_PX)
        thickness = 2 * float(cv2.distanceTransform(piece.astype(np.uint8), cv2.DIST_L2, 5).max())
        if side <= WINDOW_PX or thickness * PATCH_PX / side >= THINNEST_PX:
            centre_x, centre_y = (columns.min() + columns.max() + 1) / 2, (rows.min() + rows.max() + 1) / 2
            squares.append((centre_x - side / 2, centre_y - side / 2, side))
            continue
        windows = min(WINDOWS_EACH, int(np.ceil(max(height, width) / (WINDOW_PX / 2))))
        squares += [
            (float(columns[index]) - WINDOW_PX / 2, float(rows[index]) - WINDOW_PX / 2, float(WINDOW_PX))
            for index in rng.permutation(len(rows))[:windows]
        ]
    return squares


def pieces_of(mask: Mask) -> list[Mask]:
    """Each defect of a mask by itself; pieces that nearly touch are one."""
    joined = cv2.dilate(mask.astype(np.uint8), np.ones((_JOIN_PX, _JOIN_PX), np.uint8))
    count, numbers = cv2.connectedComponents(joined)
    pieces = [(numbers == number) & mask for number in range(1, count)]
    return [piece for piece in pieces if np.count_nonzero(piece) >= _LEAST_MASK_PX]


def cut(pixels: Pixels, left: float, top: float, side: float, edge_px: int = PATCH_PX) -> Floats:
    """A square of a picture, scaled: float32 `[edge, edge, channels]`, 0..1; beyond the picture it is mirrored."""
    warped = _warped(pixels, left, top, side, edge_px, cv2.BORDER_REFLECT)
    warped = warped if warped.ndim == 3 else warped[..., None]  # noqa: PLR2004
    return np.asarray(warped / np.float32(255), np.float32)


def cut_field(field: Floats, left: float, top: float, side: float) -> Floats:
    """A square of a field `[height, width]`, scaled: float32 `[64, 64]`; beyond the field it is 0."""
    return np.asarray(_warped(field, left, top, side, PATCH_PX, cv2.BORDER_CONSTANT), np.float32)


def _warped(field: Any, left: float, top: float, side: float, edge_px: int, border: int) -> Any:
    scale = edge_px / side
    # Pixel centres: the square's first pixel centre is half a patch pixel inside of its edge.
    affine = np.array([[scale, 0, (0.5 - left) * scale - 0.5], [0, scale, (0.5 - top) * scale - 0.5]], np.float64)
    source = field if scale >= 1 else cv2.GaussianBlur(field, (0, 0), 0.4 / scale)
    return cv2.warpAffine(source, affine, (edge_px, edge_px), flags=cv2.INTER_LINEAR, borderMode=border)


def paint_over(pixels: Pixels, mask: Mask) -> Pixels:
    """The picture without its defects, guessed from around them (Telea, J. Graphics Tools 2004)."""
    grown = cv2.dilate(mask.astype(np.uint8), np.ones((5, 5), np.uint8))
    return np.asarray(cv2.inpaint(pixels, grown, 3, cv2.INPAINT_TELEA), np.uint8)


def _patch(picture: Marked, left: float, top: float, side: float) -> Patch:
    mask = cut(picture.mask.astype(np.uint8) * 255, left, top, side)
    pixels = cut(picture.pixels, left, top, side)
    covered = np.asarray(pixels * 255, np.uint8)
    ground = paint_over(covered.squeeze(axis=2) if covered.shape[2] == 1 else covered, mask[..., 0] > 0.05)  # noqa: PLR2004
    as_float = np.asarray(ground.reshape(pixels.shape) / np.float32(255), np.float32)
    return Patch(pixels, mask, as_float, picture.label, side, picture.sample, picture.drawn)


def _within_boxes(pixels: Pixels, boxes_px: npt.NDArray[np.float32]) -> Mask:
    """What stands out from its surroundings within each box: by Otsu's threshold on the difference to the rim."""
    grey = pixels if pixels.ndim == 2 else cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY)  # noqa: PLR2004
    mask = np.zeros(grey.shape, np.bool_)
    for left, top, right, bottom in np.round(boxes_px).astype(int):
        rim = 3
        inner = grey[max(top, 0) : bottom, max(left, 0) : right]
        outer = grey[max(top - rim, 0) : bottom + rim, max(left - rim, 0) : right + rim]
        if not inner.size:
            continue
        difference = np.asarray(np.abs(inner.astype(np.int16) - int(np.median(outer))).clip(0, 255), np.uint8)
        _, standing_out = cv2.threshold(difference, 0, 1, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
        mask[max(top, 0) : bottom, max(left, 0) : right] |= standing_out.astype(np.bool_)
    return mask
