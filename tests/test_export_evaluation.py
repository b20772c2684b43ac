"""One record of figures for every task, against cases worked out by hand."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from export.dataset import Dataset, DatasetError, Sample
from export.evaluate import Scored, score_samples
from export.evaluation import ALL, Caught, GroupFigures, Task, evaluate, for_bundle, pictures_of
from export.samples import no_boxes
from export.thresholds import Counts
from station.manifest import Manifest, Thresholds, read_bundle
from station.messages import Box, Defect, Pixels, Scores
from station.settings import SHIPPED_BUNDLE

HALF = Thresholds(default=0.5)


def picture(label: int | None, group: str = "g", boxes: Sequence[int] = ()) -> Sample:
    corners = np.tile(np.array([0, 0, 10, 10], np.float32), (len(boxes), 1))
    return Sample("p", Path("p"), corners, np.array(boxes, np.int64), group, label=label)


def scored(sample: Sample, score: float, classes: tuple[float, ...] = (), on_mask: bool | None = None) -> Scored:
    found = Defect(label="any", score=score, box=Box(x_px=0, y_px=0, width_px=10, height_px=10))
    return Scored(
        sample, (found,), np.zeros(1, np.bool_), sample.classes, 0.004, score, class_scores=classes, on_mask=on_mask
    )


def test_a_classifier_by_hand() -> None:
    task = Task("classify", ("crack", "good", "hole"), good=1)
    result = evaluate(
        [
            scored(picture(1, "a"), 0.1, (0.05, 0.9, 0.05)),
            scored(picture(1, "a"), 0.7, (0.6, 0.3, 0.1)),
            scored(picture(0, "b"), 0.8, (0.7, 0.2, 0.1), on_mask=True),
            scored(picture(0, "b"), 0.9, (0.2, 0.1, 0.7), on_mask=False),
            scored(picture(2, "c"), 0.2, (0.1, 0.8, 0.1), on_mask=False),
        ],
        task,
        HALF,
    )
    assert result.counts == Counts(rejected=1, good=2, missed=1, bad=3)
    assert result.confusion is not None
    assert result.confusion.tolist() == [[1, 0, 1], [1, 1, 0], [0, 1, 0]]
    assert result.accuracy == pytest.approx(2 / 5)
    assert result.macro_f1 == pytest.approx((1 / 2 + 1 / 2 + 0) / 3)
    # Good 0.1 and 0.7 against bad 0.8, 0.9 and 0.2: five of the six pairs are in order.
    assert result.auroc == pytest.approx(5 / 6)
    assert result.caught == (Caught("crack", 2, 2), Caught("hole", 1, 0))
    assert result.by_group == (GroupFigures("c", 1, 1), GroupFigures("a", 2, 1), GroupFigures("b", 2, 1))
    # The hole that was missed has a mask, too, but only what was detected can point at it.
    assert result.peaks == (1, 2)
    # The surest mistakes first: the hole called good, the crack called hole, the good one called crack.
    assert result.wrong == (4, 3, 1)
    assert set(result.headline()) == {"accuracy", "macro_f1", "auroc", "ap"}
    assert result.frames_per_s == pytest.approx(250)
    record = json.loads(json.dumps(result.record()))
    assert record["confusion"]["labels"] == ["crack", "good", "hole"]
    assert record["false_reject_rate"] == 0.5
    assert record["recall_crack"] == 0.5


def test_good_parts_alone_train_an_anomaly_model_and_any_defect_tests_it() -> None:
    task = Task("anomaly", ("good", "crack", "hole"), good=0)
    result = evaluate(
        [scored(picture(0), 0.4), scored(picture(0), 0.6), scored(picture(1), 0.9), scored(picture(2), 0.3)], task, HALF
    )
    assert result.counts == Counts(1, 2, 1, 2)
    assert result.confusion_labels == ("good", "defect")
    assert result.confusion is not None
    assert result.confusion.tolist() == [[1, 1], [1, 1]]
    assert result.caught == (Caught("crack", 1, 1), Caught("hole", 1, 0))
    assert result.auroc == 0.5
    assert set(result.headline()) == {"auroc", "ap"}
    assert result.auroc_interval is None


def test_a_detector_is_measured_by_its_boxes_and_by_whole_pictures() -> None:
    task = Task("detect", ("spur", "open"), good=None)
    result = evaluate([scored(picture(None, boxes=[0]), 0.9), scored(picture(None), 0.2)], task, HALF)
    assert result.counts == Counts(0, 1, 0, 1)
    assert result.boxes is not None
    assert result.boxes.defects == 1
    assert result.caught == (Caught("spur", 1, 1),)
    only_good = evaluate([scored(picture(None), 0.2)], task, HALF)
    assert only_good.boxes is None
    assert only_good.auroc is None
    assert only_good.counts == Counts(0, 1, 0, 0)


def test_without_a_good_class_there_are_only_classes() -> None:
    result = evaluate([scored(picture(0), 0.9, (0.9, 0.1))], Task("classify", ("crack", "hole"), None), HALF)
    assert result.counts is None
    assert result.auroc is None
    assert result.accuracy == 1.0
    assert result.wrong == ()


def dataset(labels: tuple[str, ...], good: str | None = None) -> Dataset:
    samples = [picture(index, boxes=[index]) for index in range(len(labels))]
    return Dataset(Path("data"), "folders", labels, {"train": samples, "validation": [], "test": []}, good_label=good)


def test_labels_are_numbered_as_the_bundle_numbers_them() -> None:
    manifest: Manifest = read_bundle(SHIPPED_BUNDLE).manifest
    known = manifest.labels
    fitted = for_bundle(manifest, dataset((known[2], known[0])))
    assert fitted.labels == known
    assert [sample.label for sample in fitted.splits["train"]] == [2, 0]
    assert [sample.classes.tolist() for sample in fitted.splits["train"]] == [[2], [0]]
    with pytest.raises(DatasetError, match="does not know its label dent; it knows open, short"):
        for_bundle(manifest, dataset((known[0], "dent")))
    # Pictures without a box need no class of their own.
    assert for_bundle(manifest, dataset((known[0], "good"), good="good")).good_label == "good"


def test_an_empty_split_says_which_ones_have_pictures() -> None:
    data = dataset(("a", "b"))
    assert len(pictures_of(data, ALL)) == 2
    with pytest.raises(DatasetError, match=r"the split test has no pictures \(train: 2, validation: 0, test: 0\)"):
        pictures_of(data, "test")


class Pointing:
    """A model that says where it looks."""

    def __init__(self, row: int, column: int) -> None:
        self._map = np.zeros((4, 5), np.float32)
        self._map[row, column] = 1.0

    def infer(self, pixels: Pixels, reference: Pixels | None = None) -> Scores:  # noqa: ARG002 (of the Protocol)
        return Scores((), float(pixels.mean() > 0), self._map)


@pytest.mark.parametrize(("row", "column", "on_mask"), [(0, 0, False), (1, 2, True), (3, 4, False)])
def test_the_strongest_cell_of_the_map_is_looked_up_in_the_mask(
    row: int, column: int, on_mask: bool, tmp_path: Path
) -> None:
    pixels, mask = np.full((40, 60), 90, np.uint8), np.zeros((40, 60), np.uint8)
    mask[15, 30] = 255
    cv2.imwrite(str(tmp_path / "p.png"), pixels)
    cv2.imwrite(str(tmp_path / "m.png"), mask)
    boxes_px, classes = no_boxes()
    sample = Sample("p", tmp_path / "p.png", boxes_px, classes, "g", label=0, mask=tmp_path / "m.png")
    (item,) = score_samples(Pointing(row, column), [sample], ("a",), 1)
    assert item.on_mask is on_mask
    (item,) = score_samples(Pointing(row, column), [replace(sample, mask=None)], ("a",), 1)
    assert item.on_mask is None
