"""Can this picture be judged at all: exposure, contrast, focus, frozen, and what the camera itself says of it."""

from dataclasses import dataclass

import cv2
import numpy as np

from station.framing import Framing
from station.manifest import QualityLimits
from station.messages import Capture, Pixels, Reason

LEAST_SIDE_PX = 8
"""Smaller pictures hold not one grid cell of a detector."""

_PROBE_ROWS = 16


@dataclass(frozen=True, slots=True)
class Measures:
    """What the limits are compared with.

    Attributes:
        mean: mean grey value, 0..255.
        contrast: standard deviation of the grey values.
        focus: variance of the Laplacian (Pech-Pacheco et al., "Diatom autofocusing in brightfield microscopy",
            ICPR 2000); 3 by 3 kernel with 4 neighbours.
    """

    mean: float
    contrast: float
    focus: float


def measure(pixels: Pixels) -> Measures:
    """Measure a picture, `[height, width]` or `[height, width, 3]` BGR; limits must come from this same code."""
    grey = pixels if pixels.ndim == 2 else cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY)  # noqa: PLR2004
    mean, contrast = cv2.meanStdDev(grey)
    # Sum and sum of squares take a tenth of what meanStdDev takes over 16-bit values.
    laplacian = cv2.Laplacian(grey, cv2.CV_16S)
    laplacian_mean = cv2.sumElems(laplacian)[0] / laplacian.size
    focus = cv2.norm(laplacian, cv2.NORM_L2SQR) / laplacian.size - laplacian_mean**2
    return Measures(float(mean[0, 0]), float(contrast[0, 0]), max(0.0, focus))


class QualityGate:
    """One camera's gate; it remembers the last picture, so each camera has its own.

    Args:
        limits: from the bundle's manifest, or from the station's own calibration.
        frozen_after: this many identical pictures in a row are frozen; 0 switches it off.
        framing: where the part must be; None: it does not matter.
    """

    def __init__(self, limits: QualityLimits, frozen_after: int = 0, framing: Framing | None = None) -> None:
        self._limits = limits
        self._framing = framing
        self._frozen_after = frozen_after
        self._last: Pixels | None = None
        self._repeats = 1

    def hold_to(self, limits: QualityLimits, framing: Framing | None) -> None:
        """Compare with these from the next picture on."""
        self._limits, self._framing = limits, framing

    @property
    def limits(self) -> QualityLimits:
        """What pictures are held against."""
        return self._limits

    @property
    def repeats(self) -> int:
        """How many identical pictures in a row the last one ended; 1 where nobody counts."""
        return self._repeats

    def expect(self, pixels: Pixels, repeats: int) -> None:
        """Take the next picture, this one, for the last of so many identical ones in a row."""
        self._last, self._repeats = pixels, repeats - 1

    def check(self, capture: Capture) -> tuple[Reason, ...]:
        """Say why the capture cannot be judged; empty when it can. The most telling reason comes first."""
        reasons = [] if capture.fault is None else [capture.fault]
        pixels = capture.pixels
        if pixels is None:
            return tuple(reasons)
        if min(pixels.shape[:2]) < LEAST_SIDE_PX:
            reasons.append(Reason.WRONG_SIZE)
            return tuple(dict.fromkeys(reasons))
        if capture.lines_lost:
            reasons.append(Reason.LINES_LOST)
        if self._frozen_after and self._count_repeats(pixels) >= self._frozen_after:
            reasons.append(Reason.FROZEN)
        reasons += self._exposure_and_focus(measure(pixels))
        if not reasons and self._framing is not None and not self._framing.holds(pixels):
            reasons.append(Reason.MISPLACED)
        return tuple(dict.fromkeys(reasons))

    def _exposure_and_focus(self, measures: Measures) -> list[Reason]:
        limits = self._limits
        if measures.mean < limits.mean_min:
            return [Reason.DARK]
        if measures.mean > limits.mean_max:
            return [Reason.BRIGHT]
        # A picture without contrast has no focus to speak of either: one reason is enough.
        if measures.contrast < limits.contrast_min or measures.focus < limits.focus_min:
            return [Reason.BLURRED]
        return []

    def _count_repeats(self, pixels: Pixels) -> int:
        last = self._last
        if last is not None and last.shape == pixels.shape and _identical(last, pixels):
            self._repeats += 1
            return self._repeats
        self._repeats = 1
        if last is None or last.shape != pixels.shape:
            self._last = pixels.copy()
        else:
            np.copyto(last, pixels)
        return self._repeats


def _identical(one: Pixels, other: Pixels) -> bool:
    # A sensor's noise shows in the first few rows; only pictures that agree there are compared whole.
    step = max(1, one.shape[0] // _PROBE_ROWS)
    return bool(np.array_equal(one[::step], other[::step])) and bool(np.array_equal(one, other))
