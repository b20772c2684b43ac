"""What a model is worth on labelled pictures, for every task: from scored pictures to one record of figures.

A picture counts as bad when a defect is labelled in it, and as rejected when the station would not call it ok. That
makes one question out of three tasks: how many good parts are rejected, how many bad ones are missed. The class figures
of a classifier and the box figures of a detector stand beside it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from export.dataset import Dataset, DatasetError, Sample, Split
from export.evaluate import Figures, Scored, figures, passes
from export.metrics import (
    Bools,
    ClassFigures,
    Curve,
    Floats,
    Interval,
    Ints,
    accuracy,
    auroc,
    average_precision,
    class_figures,
    clopper_pearson,
    confusion_matrix,
    group_bootstrap,
    macro_f1,
    precision_recall_curve,
    roc_curve,
)
from export.thresholds import Choice, Costs, Counts, MaxFalseReject, Rule, choose, count_parts
from station.manifest import Manifest, Thresholds

FIGURE_NAMES = {
    "map": "mAP",
    "f_score": "F-score",
    "accuracy": "accuracy",
    "macro_f1": "macro-F1",
    "auroc": "AUROC",
    "ap": "average precision",
}
"""Headline figures in people's words."""

GOOD = "good"
DEFECT = "defect"
GOOD_ONLY_RATE = 0.01
"""What a limit on good parts alone aims at when nothing is said: one in a hundred rejected."""

ALL = "all"
"""In place of a split: every picture, for a folder that was collected for measuring only."""


@dataclass(frozen=True, slots=True)
class Task:
    """What a bundle is asked to do, as far as the figures need to know.

    Attributes:
        kind: `detect`, `classify` or `anomaly`.
        labels: classes of the samples' `label` and `classes`.
        good: index of the class without defects; None when there is none.
    """

    kind: str
    labels: tuple[str, ...]
    good: int | None


@dataclass(frozen=True, slots=True)
class GroupFigures:
    """The pictures of one group: the same part, board or lot."""

    group: str
    pictures: int
    wrong: int


@dataclass(frozen=True, slots=True)
class Caught:
    """How many pictures of one kind of defect were not called ok."""

    label: str
    pictures: int
    caught: int


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """All figures of one model on one set of pictures; what a task or a set does not have is None or empty.

    Attributes:
        task: what was asked.
        threshold: from which score a picture is rejected.
        pictures: how many.
        groups: how many different ones.
        ms_p50, ms_p95: from decoded picture to scores, on this machine.
        counts: good parts rejected and bad parts missed at the thresholds.
        scores, bad: by picture, in the order of the scored ones; `bad` is None where nothing says which are good.
        auroc, average_precision: good against bad, by the picture's score, with bootstrap intervals over groups.
        roc, precision_recall: the curves of these.
        confusion: of classes with a classifier, else of good and defect at the threshold.
        confusion_labels: of its rows and columns.
        accuracy, macro_f1: of that matrix.
        classes: precision, recall and F1 of its classes.
        boxes: of a detector.
        caught: by kind of defect.
        by_group: groups with a wrong picture, the worst first.
        peaks: (on the mask, detected pictures with a mask): where the map is strongest.
        wrong: indices of the wrongly judged pictures, the worst first.
    """

    task: Task
    threshold: float
    pictures: int
    groups: int
    ms_p50: float
    ms_p95: float
    counts: Counts | None
    scores: Floats
    bad: Bools | None
    auroc: float | None
    auroc_interval: Interval | None
    average_precision: float | None
    average_precision_interval: Interval | None
    roc: Curve | None
    precision_recall: Curve | None
    confusion: Ints | None
    confusion_labels: tuple[str, ...]
    accuracy: float | None
    macro_f1: float | None
    classes: tuple[ClassFigures, ...]
    boxes: Figures | None
    caught: tuple[Caught, ...]
    by_group: tuple[GroupFigures, ...]
    peaks: tuple[int, int] | None
    wrong: tuple[int, ...]

    @property
    def frames_per_s(self) -> float:
        """One picture after the other, at the median time."""
        return 1000 / max(self.ms_p50, 1e-6)

    def headline(self) -> dict[str, float]:
        """The figures by which models are compared: name → value in 0..1, higher is better."""
        found: dict[str, float | None] = {}
        if self.boxes is not None:
            found |= {"map": self.boxes.mean_average_precision, "f_score": self.boxes.f_score}
        if self.task.kind == "classify":
            found |= {"accuracy": self.accuracy, "macro_f1": self.macro_f1}
        found |= {"auroc": self.auroc, "ap": self.average_precision}
        return {name: value for name, value in found.items() if value is not None}

    def flat(self) -> dict[str, float]:
        """Name → number, as the manifest keeps it."""
        result = {"pictures": float(self.pictures), "frames_per_s": self.frames_per_s}
        if self.boxes is not None:
            result |= self.boxes.flat()
        result |= self.headline()
        if self.task.kind == "classify":
            for one in self.classes:
                result |= {
                    f"precision_{one.label}": one.precision,
                    f"recall_{one.label}": one.recall,
                    f"f1_{one.label}": one.f1,
                }
        if self.counts is not None:
            result |= {
                "good": float(self.counts.good),
                "good_rejected": float(self.counts.rejected),
                "bad": float(self.counts.bad),
                "bad_missed": float(self.counts.missed),
            }
        if self.peaks is not None:
            result |= {"peaks_on_mask": float(self.peaks[0]), "peaks": float(self.peaks[1])}
        return result

    def record(self) -> dict[str, Any]:
        """Everything but the curves, for `metrics.json`."""
        result: dict[str, Any] = {"threshold": self.threshold, **self.flat()}
        result["ms_p50"], result["ms_p95"] = self.ms_p50, self.ms_p95
        for name, interval in (("auroc", self.auroc_interval), ("ap", self.average_precision_interval)):
            if interval is not None:
                result[f"{name}_interval"] = [interval.low, interval.high]
        if self.counts is not None:
            for name, hits, total in (
                ("false_reject_rate", self.counts.rejected, self.counts.good),
                ("miss_rate", self.counts.missed, self.counts.bad),
            ):
                if total:
                    interval = clopper_pearson(hits, total)
                    result[name] = hits / total
                    result[f"{name}_interval"] = [interval.low, interval.high]
        if self.confusion is not None:
            result["confusion"] = {"labels": list(self.confusion_labels), "counts": self.confusion.tolist()}
        if self.caught:
            result["caught"] = {one.label: [one.caught, one.pictures] for one in self.caught}
        result["groups"] = self.groups
        result["groups_with_errors"] = [[one.group, one.wrong, one.pictures] for one in self.by_group]
        return result


def task_of(manifest: Manifest, dataset: Dataset) -> Task:
    """The question that a bundle answers on a data set whose labels are the bundle's (see `for_bundle`)."""
    return Task(manifest.task, dataset.labels, dataset.good)


def for_bundle(manifest: Manifest, dataset: Dataset) -> Dataset:
    """The data set with its labels numbered as the bundle numbers them.

    A data set may lack some of the bundle's classes, not have others. The task `anomaly` knows no classes: it takes any
    data set with a class of good parts.

    Raises:
        DatasetError: the labels do not fit; the text names them.
    """
    if manifest.task == "anomaly":
        if dataset.good_label is None:
            raise DatasetError(
                f"{dataset.root}: none of its classes {', '.join(dataset.labels)} is that of good parts, which the "
                f"bundle {manifest.name} (task anomaly) is measured against; name it good, ok or normal"
            )
        return dataset
    # A detector's good pictures have no box: the class folder of good ones needs no number of its own.
    spare = {dataset.good_label} if manifest.task == "detect" else set()
    if unknown := [label for label in dataset.labels if label not in manifest.labels and label not in spare]:
        raise DatasetError(
            f"{dataset.root}: the bundle {manifest.name} does not know its "
            f"label{'s' if len(unknown) > 1 else ''} {', '.join(unknown)}; it knows {', '.join(manifest.labels)}"
        )
    labels = (*manifest.labels, *(label for label in dataset.labels if label not in manifest.labels))
    number = np.array([labels.index(label) for label in dataset.labels], np.int64)
    splits: dict[Split, Sequence[Sample]] = {
        split: [
            replace(
                sample,
                classes=number[sample.classes],
                label=None if sample.label is None else int(number[sample.label]),
            )
            for sample in samples
        ]
        for split, samples in dataset.splits.items()
    }
    good_label = manifest.good_label if manifest.task == "classify" else dataset.good_label
    return replace(dataset, labels=labels, splits=splits, good_label=good_label)


def pictures_of(dataset: Dataset, split: str) -> Sequence[Sample]:
    """The samples of a split, or of all of them.

    Raises:
        DatasetError: there are none; the text says which splits have some.
    """
    samples = dataset.samples if split == ALL else dataset.splits[split]  # type: ignore[index]
    samples = [sample for sample in samples if sample.synthetic is None]
    if not samples:
        counts = ", ".join(f"{name}: {len(items)}" for name, items in dataset.splits.items())
        raise DatasetError(f"{dataset.root}: the split {split} has no pictures ({counts}); choose another with --split")
    return samples


def is_bad(sample: Sample, task: Task) -> bool | None:
    """Whether a defect is labelled in a picture; None where the labels do not say."""
    if sample.label is not None and task.good is not None:
        return sample.label != task.good
    return len(sample.classes) > 0 if task.kind == "detect" else None


def choose_for(scored: Sequence[Scored], task: Task, manifest: Manifest, rule: Rule | None) -> Choice:
    """Choose one threshold for every class from whole pictures, by a rule or by what the pictures allow.

    Raises:
        DatasetError: the labels do not say which pictures are good, or the rule cannot be applied to them.
    """
    truths = [is_bad(item.sample, task) for item in scored]
    if None in truths:
        raise DatasetError("the labels do not say which pictures are of good parts: name that class good, ok or normal")
    defective = np.array(truths, np.bool_)
    if rule is None:
        rule = Costs() if defective.any() else MaxFalseReject(GOOD_ONLY_RATE)
    floor = score_floor(manifest)
    scores = np.array([picture_score(item, floor) for item in scored], np.float64)
    return choose(scores, defective, rule, floor, parts=[item.sample.group for item in scored])


def picture_score(item: Scored, floor: float) -> float:
    """The score that a threshold for the whole picture is compared with: that of its best candidate."""
    return item.candidates[0].score if item.candidates else min(item.score, floor)


def score_floor(manifest: Manifest) -> float:
    """Below this score there are no candidates."""
    floors = {
        "detect": manifest.decoding.score_floor,
        "classify": manifest.classification.score_floor,
        "anomaly": manifest.anomaly.score_floor,
    }
    return floors[manifest.task]


def evaluate(scored: Sequence[Scored], task: Task, thresholds: Thresholds, *, intervals: bool = True) -> Evaluation:
    """All figures of some scored pictures, of which there is at least one.

    Args:
        scored: by one model.
        task: see `task_of`.
        thresholds: that the station judges by.
        intervals: whether to draw the bootstrap intervals, which take a second or two.
    """
    scores = np.array([item.score for item in scored], np.float64)
    truths = [is_bad(item.sample, task) for item in scored]
    bad = None if None in truths else np.array(truths, np.bool_)
    both = bad if bad is not None and 0 < bad.sum() < len(bad) else None
    rejected = np.array([not passes(item, thresholds) for item in scored], np.bool_)
    groups = [item.sample.group for item in scored]
    classified = task.kind == "classify" and all(item.sample.label is not None for item in scored)
    confusion: Ints | None = None
    labels: tuple[str, ...] = ()
    wrong: Bools = np.zeros(len(scored), np.bool_) if bad is None else bad != rejected
    if classified:
        labels = task.labels
        truth = np.array([item.sample.label for item in scored], np.int64)
        predicted = np.array([int(np.argmax(item.class_scores)) for item in scored], np.int64)
        confusion = confusion_matrix(truth, predicted, len(labels))
        wrong = wrong | (truth != predicted)
    elif bad is not None:
        labels = (GOOD, DEFECT)
        confusion = confusion_matrix(bad.astype(np.int64), rejected.astype(np.int64), 2)
    return Evaluation(
        task=task,
        threshold=thresholds.default,
        pictures=len(scored),
        groups=len(set(groups)),
        ms_p50=1e3 * float(np.quantile([item.seconds for item in scored], 0.5)),
        ms_p95=1e3 * float(np.quantile([item.seconds for item in scored], 0.95)),
        counts=None if bad is None else count_parts(bad, rejected),
        scores=scores,
        bad=bad,
        auroc=None if both is None else auroc(both, scores),
        auroc_interval=group_bootstrap(auroc, both, scores, groups) if both is not None and intervals else None,
        average_precision=None if both is None else average_precision(both, scores),
        average_precision_interval=(
            group_bootstrap(average_precision, both, scores, groups) if both is not None and intervals else None
        ),
        roc=None if both is None else roc_curve(both, scores),
        precision_recall=None if both is None else precision_recall_curve(both, scores),
        confusion=confusion,
        confusion_labels=labels,
        accuracy=None if confusion is None else accuracy(confusion),
        macro_f1=None if confusion is None else macro_f1(confusion),
        classes=() if confusion is None else class_figures(confusion, labels),
        boxes=figures(scored, task.labels, thresholds) if _has_boxes(scored, task) else None,
        caught=() if bad is None else _caught(scored, task, rejected),
        by_group=_by_group(groups, wrong),
        peaks=_peaks(scored, bad, rejected),
        wrong=_worst_first(scored, wrong, scores, bad),
    )


def _has_boxes(scored: Sequence[Scored], task: Task) -> bool:
    return task.kind == "detect" and any(len(item.truths) for item in scored)


def _caught(scored: Sequence[Scored], task: Task, rejected: Bools) -> tuple[Caught, ...]:
    found: dict[int, list[bool]] = {}
    for item, caught in zip(scored, rejected.tolist(), strict=True):
        kinds = set(item.sample.classes.tolist())
        if item.sample.label is not None:
            kinds.add(item.sample.label)
        for kind in kinds - {task.good}:
            found.setdefault(kind, []).append(caught)
    return tuple(Caught(task.labels[kind], len(which), sum(which)) for kind, which in sorted(found.items()))


def _by_group(groups: Sequence[str], wrong: Bools) -> tuple[GroupFigures, ...]:
    of: dict[str, list[bool]] = {}
    for group, failed in zip(groups, wrong.tolist(), strict=True):
        of.setdefault(group, []).append(failed)
    figures_of = [GroupFigures(group, len(which), sum(which)) for group, which in of.items() if any(which)]
    return tuple(sorted(figures_of, key=lambda one: (-one.wrong, -one.wrong / one.pictures, one.group)))


def _peaks(scored: Sequence[Scored], bad: Bools | None, rejected: Bools) -> tuple[int, int] | None:
    known = [
        item.on_mask
        for number, item in enumerate(scored)
        if item.on_mask is not None and rejected[number] and (bad is None or bad[number])
    ]
    return (sum(known), len(known)) if known else None


def _worst_first(scored: Sequence[Scored], wrong: Bools, scores: Floats, bad: Bools | None) -> tuple[int, ...]:
    """A mistake is the worse, the surer the model was of it."""

    def sureness(number: int) -> float:
        item = scored[number]
        if item.class_scores and item.sample.label is not None and len(item.class_scores) > item.sample.label:
            return max(item.class_scores) - item.class_scores[item.sample.label]
        return float(1 - scores[number] if bad is None or bad[number] else scores[number])

    return tuple(sorted(map(int, np.flatnonzero(wrong)), key=lambda number: -sureness(number)))
