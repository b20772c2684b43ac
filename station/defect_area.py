"""How large a defect is: the area of what differs from its surroundings, inside and close around the model's box.

Method, for a box of a picture:

1. Background: with a reference picture, that picture, brought to the same brightness; without one, the plane through
   the frame of pixels around the box, fitted twice, the second time without what lies far from it.
2. Difference from it. Its noise is the robust deviation on the frame. A frame that is itself uneven (tracks, print,
   texture) makes the noise so large that no defect stands out, and the box's area is what is left to say.
3. Contrast: the mean difference over the core of the defect, what reaches half of the contrast and is connected.
4. Area = the sum of all differences in and close around the defect, divided by the contrast: a pixel that is half
   covered counts half, and blur, which moves light and loses none, does not change the sum.

It depends on nothing but the pixels and the box, and its cost goes with the size of the box. A defect that is smaller
than the blur never shows its full contrast and comes out too large; the README states from which size on it is right.
"""

import cv2
import numpy as np
import numpy.typing as npt

from station.messages import Box, Pixels

_FRAME_PX = 4
"""Least width of the frame around the box whose pixels are background."""
_APART_PX = 3
"""Pixels between the box and that frame: boxes are tight, and blur reaches beyond them."""
_CLEAR = 5.0
"""A defect whose contrast is less than this many deviations of the background cannot be measured."""
_SKIRT_PX = 2
"""How far blur spreads the rim that still counts; each pixel more adds its noise."""
_CORE_PX = 5
_LARGEST_SIDE_PX = 1024
"""A larger box is shrunk before it is measured."""

Values = npt.NDArray[np.float32]


def defect_area_px(pixels: Pixels, box: Box, reference: Pixels | None = None) -> float | None:
    """Area of the defect in a box, in pixels; None when nothing stands out clearly there.

    Args:
        pixels: the picture, grey or BGR.
        box: where the model found the defect.
        reference: the same place without defects, of the same shape.
    """
    side = max(box.width_px, box.height_px)
    reach = _APART_PX + max(_FRAME_PX, round(side / 8))
    left, top = int(box.x_px) - reach, int(box.y_px) - reach
    right = int(np.ceil(box.x_px + box.width_px)) + reach
    bottom = int(np.ceil(box.y_px + box.height_px)) + reach
    window = (slice(max(top, 0), min(bottom, pixels.shape[0])), slice(max(left, 0), min(right, pixels.shape[1])))
    seen = _grey(pixels[window])
    if min(seen.shape) < _CORE_PX:
        return None
    inner = np.zeros(seen.shape, np.bool_)
    inner[
        max(int(box.y_px) - _APART_PX - window[0].start, 0) : int(np.ceil(box.y_px + box.height_px))
        + _APART_PX
        - window[0].start,
        max(int(box.x_px) - _APART_PX - window[1].start, 0) : int(np.ceil(box.x_px + box.width_px))
        + _APART_PX
        - window[1].start,
    ] = True
    shrunk = min(1.0, _LARGEST_SIDE_PX / max(seen.shape))
    beside = None if reference is None else _grey(reference[window])
    if shrunk < 1:
        size = (round(seen.shape[1] * shrunk), round(seen.shape[0] * shrunk))
        inner = cv2.resize(inner.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0
        factor = seen.size / (size[0] * size[1])
        seen = np.asarray(cv2.resize(seen, size, interpolation=cv2.INTER_AREA), np.float32)
        if beside is not None:
            beside = np.asarray(cv2.resize(beside, size, interpolation=cv2.INTER_AREA), np.float32)
    else:
        factor = 1.0
    difference, noise = _difference(seen, beside, ~inner)
    area = _area(difference, noise, inner)
    return None if area is None else area * factor


def _grey(pixels: Pixels) -> Values:
    grey = pixels if pixels.ndim == 2 else cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY)  # noqa: PLR2004
    return np.asarray(grey, np.float32)


def _difference(seen: Values, reference: Values | None, frame: npt.NDArray[np.bool_]) -> tuple[Values, float]:
    """The picture less its background, and the robust deviation of that on the frame."""
    values = seen if reference is None else seen - reference
    rows, columns = np.nonzero(frame)
    if len(rows) < 4 * _FRAME_PX:
        return values, np.inf
    terms = np.column_stack([np.ones(len(rows)), columns, rows])
    there = values[frame].astype(np.float64)
    used = np.ones(len(there), np.bool_)
    for _ in range(2):
        plane = np.linalg.lstsq(terms[used], there[used], rcond=None)[0]
        rest = there - terms @ plane
        spread = 1.4826 * float(np.median(np.abs(rest[used] - np.median(rest[used]))))
        used = np.abs(rest) <= max(3 * spread, 1.0)
    y, x = np.mgrid[: seen.shape[0], : seen.shape[1]]
    # Rounding to whole grey values alone has a deviation of 1/√12.
    noise = max(float(rest[used].std()), float(np.quantile(np.abs(rest), 0.9)) / 2, 12**-0.5)
    return np.asarray(values - (plane[0] + plane[1] * x + plane[2] * y), np.float32), noise


def _area(difference: Values, noise: float, inner: npt.NDArray[np.bool_]) -> float | None:
    inside = np.where(inner, difference, 0)
    far = np.abs(inside) > 3 * noise
    if not far.any():
        return None
    signed = difference if float(inside[far].sum()) > 0 else -difference
    peak = float(np.quantile(signed[inner & (signed > 3 * noise)], 0.9))
    contrast = peak
    for _ in range(2):
        strong = ((signed > contrast / 2) & inner).astype(np.uint8)
        count, labels, figures, _ = cv2.connectedComponentsWithStats(strong, connectivity=8)
        if count < 2:  # noqa: PLR2004
            return None
        defect = labels == 1 + int(np.argmax(figures[1:, cv2.CC_STAT_AREA]))
        core = cv2.erode(defect.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
        deep = cv2.erode(core.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
        core = deep if int(deep.sum()) >= _CORE_PX else core
        if int(core.sum()) >= _CORE_PX:
            contrast = float(signed[core].mean())
        else:
            contrast = float(np.sort(signed[defect])[-_CORE_PX:].mean())
    if contrast < _CLEAR * noise:
        return None
    skirt = cv2.dilate(defect.astype(np.uint8), np.ones((2 * _SKIRT_PX + 1,) * 2, np.uint8)) > 0
    return float(signed[skirt].sum()) / contrast
