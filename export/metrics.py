"""Figures over (truth, score) arrays: confusion, curves, areas, exact intervals. Plain NumPy, no files, no models.

Pictures with equal scores are one step of a curve, since no threshold can part them: int8 models have few different
scores, and figures that depend on the order of files would differ between two runs over the same data.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

CONFIDENCE = 0.95
BOOTSTRAP_DRAWS = 1000

_FRACTION_TERMS = 10_000
_FRACTION_PRECISION = 1e-15
_TINY = 1e-300
_BISECTIONS = 60


@dataclass(frozen=True, slots=True)
class Interval:
    """A range in which a figure lies with 95 % confidence, both ends in the figure's own unit."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class ClassFigures:
    """One class of a confusion matrix; a share whose denominator is 0 is 0.

    Attributes:
        pictures: how many are labelled so.
        predicted: how many were called so.
    """

    label: str
    pictures: int
    predicted: int
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """Points of a ROC curve (x false-positive rate, y true-positive rate) or PR curve (x recall, y precision).

    Attributes:
        x, y: `[points]`, 0..1.
        thresholds: `[points]`, falling; a point counts what scores at least this. The first one counts nothing.
    """

    x: Floats
    y: Floats
    thresholds: Floats


def confusion_matrix(truth: Ints, predicted: Ints, classes: int) -> Ints:
    """Counts `[classes, classes]`: row the true class, column the predicted one."""
    matrix = np.zeros((classes, classes), np.int64)
    np.add.at(matrix, (truth, predicted), 1)
    return matrix


def accuracy(matrix: Ints) -> float:
    """Share of the pictures on the diagonal; 0 without pictures."""
    return _share(int(np.trace(matrix)), int(matrix.sum()))


def class_figures(matrix: Ints, labels: Sequence[str]) -> tuple[ClassFigures, ...]:
    """Precision, recall and F1 of each class."""
    figures = []
    for index, label in enumerate(labels):
        right, pictures, predicted = (
            int(matrix[index, index]),
            int(matrix[index].sum()),
            int(matrix[:, index].sum()),
        )
        figures.append(
            ClassFigures(
                label,
                pictures,
                predicted,
                precision=_share(right, predicted),
                recall=_share(right, pictures),
                f1=_share(2 * right, pictures + predicted),
            )
        )
    return tuple(figures)


def macro_f1(matrix: Ints) -> float:
    """Mean F1 of the classes that occur, as truth or as prediction: every class counts the same, however rare."""
    figures = [one.f1 for one in class_figures(matrix, [""] * len(matrix)) if one.pictures or one.predicted]
    return float(np.mean(figures)) if figures else 0.0


def roc_curve(positive: Bools, scores: Floats) -> Curve | None:
    """ROC points, one for each distinct score; None unless both kinds occur."""
    positives, negatives = int(positive.sum()), int((~positive).sum())
    if not positives or not negatives:
        return None
    thresholds, hits, false = _steps(positive, scores)
    return Curve(
        np.concatenate([[0.0], false / negatives]),
        np.concatenate([[0.0], hits / positives]),
        np.concatenate([[np.inf], thresholds]),
    )


def auroc(positive: Bools, scores: Floats) -> float | None:
    """Area under the ROC curve: the share of (positive, negative) pairs in the right order, a tie counting half.

    That is the Mann-Whitney U statistic over its maximum (Hanley and McNeil, Radiology 143, 1982). None unless both
    kinds occur.
    """
    curve = roc_curve(positive, scores)
    return None if curve is None else float(np.trapezoid(curve.y, curve.x))


def precision_recall_curve(positive: Bools, scores: Floats, truths: int | None = None) -> Curve | None:
    """Precision over recall, one point for each distinct score; None when there is nothing to find.

    Args:
        positive: which of the scored items are right.
        scores: higher means more likely.
        truths: how many there are to find, where some were never scored (a detector's misses); default: the positives.
    """
    truths = int(positive.sum()) if truths is None else truths
    if not truths:
        return None
    thresholds, hits, false = _steps(positive, scores)
    precision = hits / np.maximum(hits + false, 1)
    return Curve(
        np.concatenate([[0.0], hits / truths]),
        np.concatenate([precision[:1] if len(precision) else [1.0], precision]),
        np.concatenate([[np.inf], thresholds]),
    )


def average_precision(positive: Bools, scores: Floats, truths: int | None = None) -> float | None:
    """Area under the precision-recall points without interpolation: the mean precision at which each truth was found.

    Truths that were never found count 0. This is the definition of TREC and scikit-learn. Arguments as for
    `precision_recall_curve`. None when there is nothing to find.
    """
    curve = precision_recall_curve(positive, scores, truths)
    return None if curve is None else float(np.sum(np.diff(curve.x) * curve.y[1:]))


def clopper_pearson(hits: int, total: int) -> Interval:
    """Exact two-sided 95 % interval of a share (Clopper and Pearson, Biometrika 26, 1934); 0..1 without any trial."""
    if not total:
        return Interval(0.0, 1.0)
    tail = (1 - CONFIDENCE) / 2
    low = 0.0 if hits == 0 else beta_quantile(tail, hits, total - hits + 1)
    high = 1.0 if hits == total else beta_quantile(1 - tail, hits + 1, total - hits)
    return Interval(low, high)


def upper_bound(hits: int, total: int) -> float:
    """Exact one-sided 95 % upper bound of a share: with none of n it is 1 − 0.05^(1/n); 1 without any trial."""
    return 1.0 if hits >= total else beta_quantile(CONFIDENCE, hits + 1, total - hits)


def beta_cdf(x: float, a: float, b: float) -> float:
    """Regularized incomplete beta function I_x(a, b), by the continued fraction DLMF 8.17.22.

    The fraction is evaluated from the front by Lentz's method (Applied Optics 15, 1976); where it converges slowly,
    the symmetry I_x(a, b) = 1 − I_{1−x}(b, a) (DLMF 8.17.4) is used.
    """
    if x <= 0:
        return 0.0
    if x >= 1:
        return 1.0
    if x > (a + 1) / (a + b + 2):
        return 1.0 - beta_cdf(1 - x, b, a)
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)) / a
    c, d, value = 1.0, 0.0, 1.0
    for term in range(_FRACTION_TERMS):
        m = term // 2
        if term == 0:
            numerator = 1.0
        elif term % 2:
            numerator = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        else:
            numerator = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        d = 1.0 + numerator * d
        c = 1.0 + numerator / c
        d = 1.0 / (d if abs(d) > _TINY else _TINY)
        c = c if abs(c) > _TINY else _TINY
        value *= c * d
        if term and abs(c * d - 1.0) < _FRACTION_PRECISION:
            break
    return min(1.0, front * (value - 1.0))


def beta_quantile(share: float, a: float, b: float) -> float:
    """The x with I_x(a, b) = share, by bisection."""
    low, high = 0.0, 1.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if beta_cdf(middle, a, b) < share:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def group_bootstrap(
    statistic: Callable[[Bools, Floats], float | None],
    positive: Bools,
    scores: Floats,
    groups: Sequence[str],
    seed: int = 0,
    draws: int = BOOTSTRAP_DRAWS,
) -> Interval | None:
    """95 % percentile interval of a figure when whole groups are drawn again with replacement.

    Pictures of the same part resemble each other: drawing single ones would promise too narrow an interval (cluster
    bootstrap, Davison and Hinkley, Bootstrap Methods, 1997, §3.8). None where the figure was undefined in most draws,
    or with a single group.
    """
    names, member_of = np.unique(np.asarray(groups), return_inverse=True)
    if len(names) < 2:  # noqa: PLR2004
        return None
    order = np.argsort(member_of, kind="stable")
    members = np.split(order, np.cumsum(np.bincount(member_of))[:-1])
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(draws):
        drawn = np.concatenate([members[index] for index in rng.integers(len(members), size=len(members))])
        value = statistic(positive[drawn], scores[drawn])
        if value is not None:
            values.append(value)
    if len(values) < draws / 2:
        return None
    low, high = np.quantile(values, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(float(low), float(high))


def _steps(positive: Bools, scores: Floats) -> tuple[Floats, Floats, Floats]:
    """Distinct scores, falling; at each the positives and the negatives that score at least that."""
    order = np.argsort(-scores, kind="stable")
    ranked, right = scores[order], positive[order]
    last = np.flatnonzero(np.append(np.diff(ranked) != 0, True)) if len(ranked) else np.zeros(0, np.int64)
    hits = np.cumsum(right)[last].astype(np.float64)
    return ranked[last], hits, last + 1.0 - hits


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
