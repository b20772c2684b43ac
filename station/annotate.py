"""A picture with what was found in it: the heatmap laid over, boxes and labels drawn."""

from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt

from station.messages import Defect, Pixels

_RED = (60, 60, 255)
_DARK = (20, 20, 20)
_HEAT_SHARE = 0.45
_FONT = cv2.FONT_HERSHEY_SIMPLEX


def annotate(pixels: Pixels, defects: Sequence[Defect], heatmap: npt.NDArray[np.float32] | None) -> Pixels:
    """Return a BGR copy with heatmap and boxes.

    Args:
        pixels: `[height, width]` or `[height, width, 3]` BGR.
        defects: drawn as boxes with label and score.
        heatmap: `[rows, columns]` in 0..1, stretched over the whole picture; None draws none. Cells near 0 leave the
            picture as it is.
    """
    picture = cv2.cvtColor(pixels, cv2.COLOR_GRAY2BGR) if pixels.ndim == 2 else pixels.copy()  # noqa: PLR2004
    height, width = picture.shape[:2]
    if heatmap is not None:
        heat = cv2.resize(np.clip(heatmap, 0, 1), (width, height), interpolation=cv2.INTER_LINEAR)
        colours = cv2.applyColorMap(np.rint(heat * 255).astype(np.uint8), cv2.COLORMAP_INFERNO)
        share = (heat * _HEAT_SHARE)[..., None]
        picture = np.rint(picture * (1 - share) + colours * share).astype(np.uint8)
    scale = max(0.4, min(height, width) / 1200)
    for defect in defects:
        box = defect.box
        corner = round(box.x_px), round(box.y_px)
        opposite = round(box.x_px + box.width_px), round(box.y_px + box.height_px)
        cv2.rectangle(picture, corner, opposite, _RED, max(1, round(scale * 2)))
        text = f"{defect.label} {defect.score:.2f}"
        (text_width, text_height), _ = cv2.getTextSize(text, _FONT, scale, 1)
        left = min(max(0, corner[0]), max(0, width - text_width))
        # Above the box, or inside it where it touches the upper edge.
        base = corner[1] - 4 if corner[1] > text_height + 6 else corner[1] + text_height + 4
        corner_of_text = left - 1, base - text_height - 2
        cv2.rectangle(picture, corner_of_text, (left + text_width + 1, base + 3), _DARK, cv2.FILLED)
        cv2.putText(picture, text, (left, base), _FONT, scale, _RED, 1, cv2.LINE_AA)
    return np.asarray(picture, np.uint8)
