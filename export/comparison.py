"""The int8 model against the float one it was made from, on the same held-out pictures: what did quantization cost?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from export.evaluate import Scored, passes
from export.evaluation import FIGURE_NAMES, Evaluation, Task, evaluate
from export.metrics import clopper_pearson
from station.errors import StationError
from station.manifest import Thresholds

METRIC_LIMIT = 0.005
FLIP_LIMIT = 0.01
"""What quantization may cost unless somebody says otherwise: of each headline figure, and of the verdicts."""
RESAMPLES = 200
_LOW = 0.025


class QuantizationLoss(StationError):
    """The int8 model is worse than the float one by more than the limit; the text says by what and what to do."""


@dataclass(frozen=True, slots=True)
class LayerError:
    """How far one layer's output is from the float network's.

    Attributes:
        name: of the layer's output.
        operation: of the runtime, as CONV_2D.
        sqnr_db: signal to quantization noise, 10 log10(Σ float² / Σ (float − int8)²), over all pictures; larger is
            better: 20 dB is an error of a tenth of the signal.
    """

    name: str
    operation: str
    sqnr_db: float


@dataclass(frozen=True, slots=True)
class Flip:
    """A picture that the two models judge differently.

    Attributes:
        number: of the picture in the scored ones.
        before, after: verdict of the float and of the int8 model, in words.
        passes: whether one of them lets the part go and the other one does not; else only the class differs.
    """

    number: int
    before: str
    after: str
    passes: bool


@dataclass(frozen=True, slots=True, eq=False)
class Comparison:
    """Both models on the same pictures.

    Attributes:
        before, after: the figures, float and int8.
        flips: pictures with another verdict or class.
        score_shift: 95 % of the pictures' scores differ by at most this.
        layers: in the order of the graph, empty where not measured.
        surely_lost: by how much a headline figure falls at least, with 97.5 % confidence (paired bootstrap over the
            pictures, percentile method: Efron & Tibshirani 1993, ch. 13); of those that fall by more than the limit.
    """

    before: Evaluation
    after: Evaluation
    flips: tuple[Flip, ...]
    score_shift: float
    layers: tuple[LayerError, ...] = ()
    surely_lost: Mapping[str, float] = field(default_factory=dict)

    @property
    def flip_share(self) -> float:
        """Share of the pictures with another verdict or class."""
        return len(self.flips) / max(self.after.pictures, 1)

    @property
    def outcome_flips(self) -> int:
        """Pictures that one model passes as ok and the other one does not."""
        return sum(flip.passes for flip in self.flips)

    def changes(self) -> list[tuple[str, float, float]]:
        """(name, float, int8) of each headline figure, then of each class's recall."""
        before, after = self.before.headline(), self.after.headline()
        rows = [(name, value, after[name]) for name, value in before.items() if name in after]
        recall_after = recalls(self.after)
        rows += [
            (f"recall of {label}", value, recall_after[label])
            for label, value in recalls(self.before).items()
            if label in recall_after
        ]
        return rows

    def record(self) -> dict[str, Any]:
        """For `metrics.json`."""
        return {
            "flips": len(self.flips),
            "flips_of_outcome": self.outcome_flips,
            "flip_share": self.flip_share,
            "score_shift_95": self.score_shift,
            "figures": {name: {"float": before, "int8": after} for name, before, after in self.changes()},
            "layers_sqnr_db": {one.name: round(one.sqnr_db, 1) for one in self.layers},
        }


def recalls(evaluation: Evaluation) -> dict[str, float]:
    """Recall by class: of a classifier its classes, else the share of each kind of defect that was not called ok."""
    if evaluation.task.kind == "classify" and evaluation.classes:
        return {one.label: one.recall for one in evaluation.classes if one.pictures}
    return {one.label: one.caught / one.pictures for one in evaluation.caught}


def compare(
    before: Sequence[Scored],
    after: Sequence[Scored],
    task: Task,
    thresholds: Thresholds,
    layers: Sequence[LayerError] = (),
) -> Comparison:
    """Compare two models that have scored the same pictures in the same order."""
    shift = np.array([abs(a.score - b.score) for a, b in zip(after, before, strict=True)], np.float64)
    flips = [
        Flip(number, said[0], said[1], passes(a, thresholds) != passes(b, thresholds))
        for number, (a, b) in enumerate(zip(before, after, strict=True))
        if (said := (verdict(a, task, thresholds), verdict(b, task, thresholds)))[0] != said[1]
    ]
    result = Comparison(
        before=evaluate(before, task, thresholds),
        after=evaluate(after, task, thresholds),
        flips=tuple(flips),
        score_shift=float(np.quantile(shift, 0.95)),
        layers=tuple(layers),
    )
    if not any(lost > METRIC_LIMIT for lost in _lost(result.before.headline(), result.after.headline()).values()):
        return result
    return replace(result, surely_lost=_surely_lost(before, after, task, thresholds))


def _lost(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    return {name: value - after[name] for name, value in before.items() if name in after}


def _surely_lost(
    before: Sequence[Scored], after: Sequence[Scored], task: Task, thresholds: Thresholds
) -> dict[str, float]:
    rng = np.random.default_rng(0)
    losses_of: dict[str, list[float]] = {}
    for _ in range(RESAMPLES):
        drawn = rng.integers(len(after), size=len(after))
        figures = [
            evaluate([items[number] for number in drawn], task, thresholds, intervals=False).headline()
            for items in (before, after)
        ]
        for name, lost in _lost(figures[0], figures[1]).items():
            losses_of.setdefault(name, []).append(lost)
    return {name: float(np.quantile(lost, _LOW)) for name, lost in losses_of.items()}


def verdict(item: Scored, task: Task, thresholds: Thresholds) -> str:
    """What the station would do with a picture, and of a classifier the class."""
    outcome = "passed as ok" if passes(item, thresholds) else "rejected"
    if task.kind != "classify" or not item.class_scores:
        return outcome
    named = f"named {task.labels[int(np.argmax(item.class_scores))]}"
    # Where every class is a kind of defect, nothing passes.
    return named if task.good is None else f"{named}, {outcome}"


def losses(comparison: Comparison, metric_limit: float = METRIC_LIMIT, flip_limit: float = FLIP_LIMIT) -> list[str]:
    """What is lost beyond the limits for certain, one sentence each.

    A handful of test pictures can neither show a loss nor that there is none: what lies over a limit by chance, as far
    as anybody can tell, is among the `doubts`.
    """
    before, after = comparison.before.headline(), comparison.after.headline()
    found = [
        f"{FIGURE_NAMES[name]} falls from {before[name]:.4f} to {after[name]:.4f}, for certain by more than "
        f"{metric_limit:g}"
        for name in _lost(before, after)
        if comparison.surely_lost.get(name, 0.0) > metric_limit
    ]
    if clopper_pearson(len(comparison.flips), comparison.after.pictures).low > flip_limit:
        found.append(f"{_flips(comparison)}, for certain more than {100 * flip_limit:g} %")
    return found


def doubts(comparison: Comparison, metric_limit: float = METRIC_LIMIT, flip_limit: float = FLIP_LIMIT) -> list[str]:
    """What lies over the limits, but may do so by chance, one sentence each."""
    before, after = comparison.before.headline(), comparison.after.headline()
    found = [
        f"{FIGURE_NAMES[name]} falls from {before[name]:.4f} to {after[name]:.4f}, which may be chance with "
        f"{comparison.after.pictures} pictures"
        for name, lost in _lost(before, after).items()
        if lost > metric_limit and comparison.surely_lost.get(name, 0.0) <= metric_limit
    ]
    certain = clopper_pearson(len(comparison.flips), comparison.after.pictures).low > flip_limit
    if comparison.flip_share > flip_limit and not certain:
        found.append(f"{_flips(comparison)}, which may be chance")
    return found


def _flips(comparison: Comparison) -> str:
    return f"{len(comparison.flips)} of {comparison.after.pictures} verdicts change"
