"""The quality gate's limits and the part's place, chosen from good pictures."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist, median

import cv2
import numpy as np

from station.calibration import Scan, Spread
from station.errors import CalibrationError
from station.framing import locate, median_thumbnail, thumbnail
from station.manifest import QualityLimits
from station.messages import Pixels
from station.quality import Measures, measure
from station.tolerance import FEW, LEAST_COUNT, is_outlier, reach, spread_of

MEAN_MARGIN = 0.10
"""Share of the mean grey value: LEDs lose a tenth of their light within about a year of shifts, before anyone looks."""
CONTRAST_MARGIN = 0.25
FOCUS_MARGIN = 0.50
"""Shares of contrast and focus: a blur that grows from 0.8 to 1.2 px takes about half of the focus measure away."""
SHIFT_MARGIN = 0.01
"""Share of the picture's longest side: a small picture cannot tell less for sure."""
SIMILARITY_MARGIN = 0.10
LEAST_SIMILARITY = 0.5
"""With a lower median the good pictures have nothing in common that could be in its place."""
LARGEST_SHIFT = 0.1
"""Share of a side; a part that may be moved farther than this is not held to a place."""
MANY_OUTLIERS = 0.1
_NOISE_MASK = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32)
"""Blind to planes and to straight edges along rows and columns; of noise it makes 6 times its deviation."""

RULE = (
    "one-sided tolerance limit, 99.9 % of good pictures with 95 % confidence (ISO 16269-6), around the median; "
    "contrast and focus by their logarithms; at least 10 % of the mean, 25 % of the contrast, half of the focus away"
)


@dataclass(frozen=True, slots=True)
class ChosenFraming:
    """Where the part must be, with the picture to look for; see `station.framing.Framing`."""

    template: Pixels
    shift_x_px: float
    shift_y_px: float
    similarity_min: float


@dataclass(frozen=True, slots=True)
class ChosenQuality:
    """Limits with what they were chosen from.

    Attributes:
        limits: for the gate.
        measured: measure → spread over the pictures that count.
        framing: None: there is none, and `why_no_framing` says why.
        outliers: pictures that do not belong to the others.
        warnings: one line each.
    """

    limits: QualityLimits
    measured: Mapping[str, Spread]
    framing: ChosenFraming | None
    why_no_framing: str
    outliers: tuple[str, ...]
    warnings: tuple[str, ...]


def choose_quality(pictures: Sequence[tuple[str, Pixels]], scan: Scan) -> ChosenQuality:
    """Choose limits from good pictures, corrected as the running station corrects them.

    Args:
        pictures: name and pixels; all of one size.
        scan: a web has no place to be held to.

    Raises:
        CalibrationError: there are too few pictures.
    """
    if len(pictures) < LEAST_COUNT:
        raise CalibrationError(
            f"{len(pictures)} good pictures; at least {LEAST_COUNT} are needed, {FEW} or more are good"
        )
    measures = {name: measure(pixels) for name, pixels in pictures}
    outliers = _outliers(measures)
    counted = {name: one for name, one in measures.items() if name not in outliers}
    warnings = [f"{name}: left out, it differs from the others: {why}" for name, why in outliers.items()]
    if len(counted) < LEAST_COUNT:
        raise CalibrationError(f"only {len(counted)} of {len(pictures)} pictures are alike: {'; '.join(warnings)}")
    if len(outliers) > MANY_OUTLIERS * len(pictures):
        warnings.append(f"{len(outliers)} of {len(pictures)} pictures differ: are they all good, under the same light?")
    if len(counted) < FEW:
        warnings.append(f"{len(counted)} pictures are few: the limits are wider than {FEW} or more would make them")
    means = spread_of([one.mean for one in counted.values()])
    contrasts = spread_of([math.log(max(one.contrast, 1e-6)) for one in counted.values()])
    focuses = spread_of([math.log(max(one.focus, 1e-6)) for one in counted.values()])
    mean_reach = reach(means, MEAN_MARGIN * means.median)
    limits = QualityLimits(
        mean_min=round(max(0.0, means.median - mean_reach), 2),
        mean_max=round(min(255.0, means.median + mean_reach), 2),
        contrast_min=round(math.exp(contrasts.median - reach(contrasts, -math.log(1 - CONTRAST_MARGIN))), 3),
        focus_min=round(math.exp(focuses.median - reach(focuses, -math.log(1 - FOCUS_MARGIN))), 3),
    )
    noise = median(_focus_of_noise(pixels) for name, pixels in pictures if name in counted)
    if noise >= limits.focus_min:
        warnings.append(
            f"no blur can be told: noise alone gives a focus of {noise:.0f}, the limit is {limits.focus_min:g}; more "
            "light, or fine lines in the view that are always there, would help"
        )
    measured = {
        "mean": means,
        "contrast": spread_of([one.contrast for one in counted.values()]),
        "focus": spread_of([one.focus for one in counted.values()]),
    }
    framing, why = None, "a web has no place to be held to"
    if scan == "area":
        good = [pixels for name, pixels in pictures if name in counted]
        framing, why, places = _framing(good)
        measured |= places
    return ChosenQuality(limits, measured, framing, why, tuple(outliers), tuple(warnings))


def _focus_of_noise(pixels: Pixels) -> float:
    """What is left of the focus measure when nothing in the picture is sharp any more.

    Noise by the mask of Immerkær (Computer Vision and Image Understanding 64, 1996), through the median, which details
    of the picture do not move; the Laplacian with 4 neighbours makes 20 times its variance.
    """
    grey = pixels if pixels.ndim == 2 else cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY)  # noqa: PLR2004
    answer = np.abs(cv2.filter2D(np.asarray(grey, np.float32), -1, _NOISE_MASK))
    deviation = float(np.median(answer)) / (6 * NormalDist().inv_cdf(0.75))
    return 20 * deviation**2


def _outliers(measures: Mapping[str, Measures]) -> dict[str, str]:
    found: dict[str, str] = {}
    means = spread_of([one.mean for one in measures.values()])
    contrasts = spread_of([math.log(max(one.contrast, 1e-6)) for one in measures.values()])
    focuses = spread_of([math.log(max(one.focus, 1e-6)) for one in measures.values()])
    for name, one in measures.items():
        if is_outlier(one.mean, means, MEAN_MARGIN * means.median):
            found[name] = f"mean {one.mean:.1f}, usual {means.median:.1f}"
        elif is_outlier(math.log(max(one.contrast, 1e-6)), contrasts, -math.log(1 - CONTRAST_MARGIN)):
            found[name] = f"contrast {one.contrast:.1f}, usual {math.exp(contrasts.median):.1f}"
        elif is_outlier(math.log(max(one.focus, 1e-6)), focuses, -math.log(1 - FOCUS_MARGIN)):
            found[name] = f"focus {one.focus:.0f}, usual {math.exp(focuses.median):.0f}"
    return found


def _framing(pictures: Sequence[Pixels]) -> tuple[ChosenFraming | None, str, dict[str, Spread]]:
    height, width = pictures[0].shape[:2]
    small = [thumbnail(pixels) for pixels in pictures]
    template = median_thumbnail(small)
    places = [locate(one, template, (width, height)) for one in small]
    measured = {
        "shift_x_px": spread_of([place.shift_x_px for place in places]),
        "shift_y_px": spread_of([place.shift_y_px for place in places]),
        "similarity": spread_of([place.similarity for place in places]),
    }
    similar = measured["similarity"]
    if similar.median < LEAST_SIMILARITY:
        return None, f"the pictures have no common view (similarity {similar.median:.2f})", measured
    margin = SHIFT_MARGIN * max(width, height)
    shift_x, shift_y = (
        abs(one.median) + reach(one, margin) for one in (measured["shift_x_px"], measured["shift_y_px"])
    )
    if shift_x > LARGEST_SHIFT * width or shift_y > LARGEST_SHIFT * height:
        return None, f"the part lies in no fixed place (up to {max(shift_x, shift_y):.0f} px apart)", measured
    least = similar.median - reach(similar, SIMILARITY_MARGIN)
    if least <= 0:
        return None, f"the pictures differ too much (similarity from {similar.least:.2f})", measured
    return ChosenFraming(template, round(shift_x, 2), round(shift_y, 2), round(least, 3)), "", measured
