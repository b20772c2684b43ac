"""The figures: matching, average precision and thresholds, against cases worked out by hand."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from export.dataset import Sample
from export.evaluate import Scored, choose_threshold, count_frames, figures, match
from export.thresholds import Counts
from station.manifest import Thresholds
from station.messages import Box, Defect

LABELS = ("a", "b")


def defect(label: str, score: float, x: float = 0.0, width: float = 10.0) -> Defect:
    return Defect(label=label, score=score, box=Box(x_px=x, y_px=0, width_px=width, height_px=10))


def scored(candidates: Sequence[tuple[str, float, bool]], truths: Sequence[int]) -> Scored:
    sample = Sample("p", Path("p"), np.zeros((0, 4), np.float32), np.array(truths, np.int64), "g")
    return Scored(
        sample,
        tuple(defect(label, score) for label, score, _ in candidates),
        np.array([right for _, _, right in candidates], np.bool_),
        np.array(truths, np.int64),
        0.01,
        0.0,
    )


def test_a_match_needs_the_class_and_more_than_a_third_of_overlap() -> None:
    boxes = np.array([[0, 0, 10, 10], [100, 0, 110, 10]], np.float32)
    classes = np.array([0, 1])
    assert match([defect("a", 0.9, 5.0)], boxes, classes, LABELS).tolist() == [True]
    assert match([defect("a", 0.9, 5.1)], boxes, classes, LABELS).tolist() == [False]
    assert match([defect("b", 0.9, 0.0)], boxes, classes, LABELS).tolist() == [False]
    assert match([], boxes, classes, LABELS).tolist() == []
    assert match([defect("b", 0.9)], boxes[:0], classes[:0], LABELS).tolist() == [False]


def test_a_labelled_box_is_taken_once_by_the_best() -> None:
    boxes = np.array([[0, 0, 10, 10]], np.float32)
    candidates = [defect("a", 0.9, 2.0), defect("a", 0.8, 0.0)]
    assert match(candidates, boxes, np.array([0]), LABELS).tolist() == [True, False]


def test_figures_by_hand() -> None:
    pictures = [
        scored([("a", 0.9, True), ("b", 0.6, False)], [0]),
        scored([("b", 0.8, True), ("a", 0.3, True)], [1, 0]),
        scored([], []),
    ]
    result = figures(pictures, LABELS, Thresholds(default=0.5))
    assert result.average_precision == {"a": 1.0, "b": 1.0}
    assert result.mean_average_precision == 1.0
    assert result.pooled_average_precision == pytest.approx((1 + 1 + 3 / 4) / 3)
    assert (result.precision, result.recall) == pytest.approx((2 / 3, 2 / 3))
    assert result.f_score == pytest.approx(2 / 3)
    assert result.frames_per_s == pytest.approx(100)
    assert result.flat()["ap_b"] == 1.0
    per_class = figures(pictures, LABELS, Thresholds(default=0.5, per_class={"a": 0.2, "b": 0.7}))
    assert per_class.f_score == 1.0
    assert count_frames(pictures, Thresholds(default=0.85)) == Counts(0, 1, 1, 2)


def test_the_threshold_lies_between_scores_where_f_is_best() -> None:
    pictures = [scored([("a", 0.9, True), ("a", 0.6, True), ("a", 0.4, False), ("a", 0.2, False)], [0, 0])]
    assert choose_threshold(pictures) == pytest.approx(0.5)
    assert choose_threshold([scored([("a", 0.9, False)], [0])]) == 0.5
    # Three equal scores stand or fall together.
    tied = [scored([("a", 0.5, True), ("a", 0.5, False), ("a", 0.5, True), ("a", 0.1, False)], [0, 0])]
    assert choose_threshold(tied) == pytest.approx(0.3)
