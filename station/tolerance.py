"""Limits from a few good pictures: how far a measure may stray before it is not one of them any more.

The limit is a one-sided normal tolerance limit (ISO 16269-6; here by the approximation of the NIST/SEMATECH e-Handbook
of Statistical Methods, 7.2.6.3): with a confidence of 95 % it leaves 99.9 % of the good pictures inside. Fewer pictures
know their spread less surely, so that the factor grows: 20 pictures ask for 4.3 deviations, 10 for 5.2. What a few
minutes show is not what a year brings (the lamp ages, the lens gets dusty), so the limit is at least `margin` away.
"""

import math
from collections.abc import Sequence
from statistics import NormalDist, median

from station.calibration import Spread

COVERAGE = 0.999
CONFIDENCE = 0.95
LEAST_COUNT = 5
FEW = 20
_ROBUST = 1.4826
"""From the median distance to the standard deviation of a normal distribution."""
_OUTLIER = 6.0


def spread_of(values: Sequence[float]) -> Spread:
    """How some values are spread; at least one."""
    middle = median(values)
    deviation = _ROBUST * median([abs(value - middle) for value in values])
    return Spread(count=len(values), least=min(values), median=middle, greatest=max(values), deviation=deviation)


def factor(count: int) -> float:
    """How many deviations from the mean the tolerance limit lies; at least `LEAST_COUNT` values.

    Raises:
        ValueError: there are fewer.
    """
    if count < LEAST_COUNT:
        raise ValueError(f"{count} values; at least {LEAST_COUNT} are needed")
    wanted, sure = NormalDist().inv_cdf(COVERAGE), NormalDist().inv_cdf(CONFIDENCE)
    a = 1 - sure**2 / (2 * (count - 1))
    b = wanted**2 - sure**2 / count
    return float((wanted + math.sqrt(wanted**2 - a * b)) / a)


def reach(spread: Spread, margin: float) -> float:
    """How far from the median a limit lies: the tolerance, at least the margin, and beyond every value that was seen.

    Args:
        spread: of the good pictures.
        margin: in the measure's unit.
    """
    seen = max(spread.greatest - spread.median, spread.median - spread.least)
    return max(factor(spread.count) * spread.deviation, margin, 1.2 * seen)


def is_outlier(value: float, spread: Spread, margin: float) -> bool:
    """Whether a value is so far out that its picture does not belong to the others."""
    return abs(value - spread.median) > max(_OUTLIER * spread.deviation, margin)
