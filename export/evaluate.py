"""Labelled pictures through a model, and the figures of its boxes by the protocol of the DeepPCB benchmark.

A detection is right when its box overlaps a box of the same class that no better detection has taken by more than 0.33
(intersection over union). Average precision is the area under the precision-recall points without interpolation: the
mean over all labelled defects of the precision at the score at which each was found, 0 for those never found; this is
what the ICDAR 2015 evaluation computes, which that benchmark borrows, except that equal scores count as one point. mAP
is its mean over the classes. The F-score is 2PR/(P+R) over all classes together, at thresholds that were chosen
elsewhere.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from export.dataset import DatasetError, Sample, read_mask, read_reference, read_sample
from export.metrics import average_precision
from export.thresholds import Counts, count_parts
from station.detections import overlap
from station.judge import above_threshold, judge
from station.manifest import Thresholds
from station.messages import Box, Defect, Outcome, Pixels, Scores

RIGHT_OVERLAP = 0.33
"""DeepPCB README, "Benchmarks"."""


class Detector(Protocol):
    """What can be evaluated: the deployed model and the float network alike."""

    def infer(self, pixels: Pixels, reference: Pixels | None = None) -> Scores:
        """Score one picture, beside its reference for a detector that compares."""


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """One labelled picture with what a model said of it.

    Attributes:
        candidates: best first.
        right: bool per candidate: its box is that of a labelled defect.
        truths: labelled defects by class index.
        seconds: time from decoded picture to candidates.
        score: the picture's score.
        class_scores: of a classifier, by label of the bundle.
        on_mask: whether the strongest cell of the map touches the defect mask; None without map or mask.
    """

    sample: Sample
    candidates: tuple[Defect, ...]
    right: npt.NDArray[np.bool_]
    truths: npt.NDArray[np.int64]
    seconds: float
    score: float
    class_scores: tuple[float, ...] = ()
    on_mask: bool | None = None


@dataclass(frozen=True, slots=True)
class Figures:
    """Figures of the boxes.

    Attributes:
        mean_average_precision: mean of `average_precision` over the classes that occur.
        average_precision: by class.
        pooled_average_precision: all classes in one ranking.
        f_score, precision, recall: at the thresholds.
        pictures, defects: how many were labelled.
        frames_per_s: from decoded picture to boxes, one after the other.
    """

    mean_average_precision: float
    average_precision: Mapping[str, float]
    pooled_average_precision: float
    f_score: float
    precision: float
    recall: float
    pictures: int
    defects: int
    frames_per_s: float

    def flat(self) -> dict[str, float]:
        """Name → number, as the manifest keeps it."""
        figures = {
            "map": self.mean_average_precision,
            "pooled_ap": self.pooled_average_precision,
            "f_score": self.f_score,
            "precision": self.precision,
            "recall": self.recall,
            "pictures": float(self.pictures),
            "defects": float(self.defects),
            "frames_per_s": self.frames_per_s,
        }
        return figures | {f"ap_{label}": value for label, value in self.average_precision.items()}


def score_samples(
    detector: Detector,
    samples: Sequence[Sample],
    labels: tuple[str, ...],
    channels: int,
    progress: Callable[[int, int], None] | None = None,
    *,
    compares: bool = False,
) -> list[Scored]:
    """Run a detector over labelled pictures and mark which candidates are right.

    Args:
        compares: give the detector each picture's reference as well.

    Raises:
        DatasetError: there are none, or a picture or its reference cannot be read.
    """
    if not samples:
        raise DatasetError("there are no pictures to evaluate on")
    scored = []
    for number, sample in enumerate(samples, start=1):
        pixels = read_sample(sample, channels)
        beside = read_reference(sample, channels) if compares else None
        began = time.perf_counter()
        scores = detector.infer(pixels, beside)
        seconds = time.perf_counter() - began
        right = match(scores.candidates, sample.boxes_px, sample.classes, labels)
        scored.append(
            Scored(
                sample,
                scores.candidates,
                right,
                sample.classes,
                seconds,
                scores.score,
                class_scores=scores.class_scores,
                on_mask=_peak_on_mask(scores.heatmap, sample),
            )
        )
        if progress is not None:
            progress(number, len(samples))
    return scored


def rescore(detector: Detector, sample: Sample, channels: int, *, compares: bool = False) -> Scores:
    """Run a detector over one sample again, for the pictures of a report.

    Raises:
        DatasetError: the picture or its reference cannot be read.
    """
    return detector.infer(read_sample(sample, channels), read_reference(sample, channels) if compares else None)


def match(
    candidates: Sequence[Defect],
    boxes_px: npt.NDArray[np.float32],
    classes: npt.NDArray[np.int64],
    labels: tuple[str, ...],
) -> npt.NDArray[np.bool_]:
    """Which candidates (best first) are right; each labelled box is taken once, by the best that overlaps it enough."""
    numbers = {label: index for index, label in enumerate(labels)}
    taken = np.zeros(len(boxes_px), np.bool_)
    right = np.zeros(len(candidates), np.bool_)
    for index, candidate in enumerate(candidates):
        ious = overlap(corners(candidate.box), boxes_px)
        ious[taken | (classes != numbers.get(candidate.label, -1))] = 0.0
        if len(ious) and ious.max() > RIGHT_OVERLAP:
            taken[int(ious.argmax())] = True
            right[index] = True
    return right


def corners(box: Box) -> npt.NDArray[np.float32]:
    """Left, top, right, bottom."""
    return np.array([box.x_px, box.y_px, box.x_px + box.width_px, box.y_px + box.height_px], np.float32)


def figures(scored: Sequence[Scored], labels: tuple[str, ...], thresholds: Thresholds) -> Figures:
    """All figures of a detector's boxes."""
    ranking = [
        (candidate.label, candidate.score, bool(right))
        for item in scored
        for candidate, right in zip(item.candidates, item.right, strict=True)
    ]
    scores = np.array([score for _, score, _ in ranking], np.float64)
    right = np.array([right for _, _, right in ranking], np.bool_)
    names = np.array([label for label, _, _ in ranking], np.str_)
    truths = np.concatenate([item.truths for item in scored])
    per_class = {
        label: average_precision(right[names == label], scores[names == label], int(np.sum(truths == index))) or 0.0
        for index, label in enumerate(labels)
        if np.any(truths == index)
    }
    reported = np.array([score >= thresholds.of(label) for label, score, _ in ranking], np.bool_)
    hits = int(np.sum(reported & right))
    precision = hits / max(int(reported.sum()), 1)
    recall = hits / max(len(truths), 1)
    return Figures(
        mean_average_precision=float(np.mean(list(per_class.values()))) if per_class else 0.0,
        average_precision=per_class,
        pooled_average_precision=average_precision(right, scores, len(truths)) or 0.0,
        f_score=2 * precision * recall / (precision + recall) if hits else 0.0,
        precision=precision,
        recall=recall,
        pictures=len(scored),
        defects=len(truths),
        frames_per_s=len(scored) / max(sum(item.seconds for item in scored), 1e-9),
    )


def choose_threshold(scored: Sequence[Scored]) -> float:
    """The threshold with the best F-score; halfway to the next lower score, so that no score stands on it.

    Where several are equally good, the middle one. The caller sees to it that the pictures were held out.
    """
    scores = np.array([candidate.score for item in scored for candidate in item.candidates], np.float64)
    right = np.concatenate([item.right for item in scored])
    truths = sum(len(item.truths) for item in scored)
    if not right.any():
        return 0.5
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    hits = np.cumsum(right[order])
    f_score = 2 * hits / (np.arange(1, len(ranked) + 1) + truths)
    lower = np.append(ranked[1:], ranked[-1] * 0.5)
    # Between equal scores there is no place for a threshold.
    f_score[lower == ranked] = -1.0
    best = np.flatnonzero(f_score >= f_score.max() - 1e-9)
    middle = best[len(best) // 2]
    return float(np.clip((ranked[middle] + lower[middle]) / 2, 1e-3, 1 - 1e-3))


def count_frames(scored: Sequence[Scored], thresholds: Thresholds) -> Counts:
    """Whole pictures at the thresholds; a picture is bad when a defect is labelled in it."""
    return count_parts(
        np.array([len(item.truths) > 0 for item in scored], np.bool_),
        np.array([not passes(item, thresholds) for item in scored], np.bool_),
    )


def passes(item: Scored, thresholds: Thresholds) -> bool:
    """Whether the station would call the picture ok."""
    scores = Scores(item.candidates, item.score)
    return judge(scores, above_threshold(scores, thresholds), thresholds, ()).outcome is Outcome.OK


def _peak_on_mask(heatmap: npt.NDArray[np.float32] | None, sample: Sample) -> bool | None:
    """Whether the cell with the largest value touches the mask; the first such cell in reading order."""
    if heatmap is None or sample.mask is None:
        return None
    mask = read_mask(sample.mask)
    if not mask.any():
        return None
    rows, columns = heatmap.shape
    row, column = divmod(int(heatmap.argmax()), columns)
    height, width = mask.shape
    cell = mask[
        row * height // rows : -(-(row + 1) * height // rows),
        column * width // columns : -(-(column + 1) * width // columns),
    ]
    return bool(cell.any())
