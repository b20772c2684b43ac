"""The search for size, rate and dropout: what it takes, what it leaves, and that it is not done twice."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export import search as module
from export.samples import Sample, no_boxes
from export.search import RECORD, Material, search
from export.train_classifier import ClassifierKnobs, LoadedPicture
from export.train_cnn import TrainingError

KNOBS = ClassifierKnobs(minutes=20.0)
LABELS = ("good", "bad")


def pictures(count: int) -> list[LoadedPicture]:
    pixels = np.zeros((200, 200), np.uint8)
    names = [f"{number}.png" for number in range(count)]
    samples = [Sample(name, Path(name), *no_boxes(), group=name) for name in names]
    return [LoadedPicture(sample, number % 2, pixels, None) for number, sample in enumerate(samples)]


class Trained:
    """Stands for a training, and knows beforehand what comes of it."""

    losses: dict[int | None, float]
    orders: dict[tuple[float, float], float]
    trained: list[ClassifierKnobs]

    def __init__(self, *given: Any, **_: Any) -> None:
        self._knobs: ClassifierKnobs = given[4]
        self.head_loss = float("nan")
        self.reached: float | None = None

    def train(self) -> None:
        self.trained.append(self._knobs)
        self.head_loss = self.losses[self._knobs.side_px]
        if self._knobs.epochs != 0:
            self.reached = self.orders[round(self._knobs.rate / KNOBS.rate, 3), self._knobs.dropout]
            if np.isnan(self.reached):
                raise TrainingError("the loss is not finite")


def found(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    losses: dict[int | None, float],
    orders: dict[tuple[float, float], float],
    knobs: ClassifierKnobs = KNOBS,
) -> ClassifierKnobs:
    Trained.losses, Trained.orders, Trained.trained = losses, orders, []
    monkeypatch.setattr(module, "ClassifierTraining", Trained)
    return search(knobs, Material(pictures(12), pictures(6), LABELS, 0, lambda _: None), folder, lambda _: None)


USUAL = {(1.0, 0.2): 0.80, (0.4, 0.2): 0.70, (2.5, 0.2): 0.75, (1.0, 0.5): 0.78}


def test_the_usual_settings_stay_where_nothing_is_clearly_better(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = found(tmp_path, monkeypatch, {None: 0.50, 140: 0.49, 280: 0.60}, {**USUAL, (2.5, 0.2): 0.805})
    assert (chosen.side_px, chosen.rate, chosen.dropout) == (None, KNOBS.rate, KNOBS.dropout)
    assert chosen.minutes == pytest.approx(20 * (1 - module.SHARE))


def test_a_better_size_is_taken_and_the_rates_are_tried_at_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = found(tmp_path, monkeypatch, {None: 0.50, 140: 0.52, 280: 0.40}, {**USUAL, (0.4, 0.2): 0.86})
    assert (chosen.side_px, chosen.dropout) == (280, KNOBS.dropout)
    assert chosen.rate == pytest.approx(0.4 * KNOBS.rate)
    short = [knobs for knobs in Trained.trained if knobs.epochs != 0]
    assert {knobs.side_px for knobs in short} == {280}
    assert all(knobs.minutes is not None and knobs.minutes <= 20 * module.SHARE / 4 for knobs in short)


def test_a_rate_that_is_too_high_is_a_bad_one_and_no_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {None: 0.50, 140: 0.49, 280: 0.60}
    chosen = found(tmp_path / "high", monkeypatch, sizes, {**USUAL, (2.5, 0.2): float("nan")})
    assert chosen.rate == KNOBS.rate
    with pytest.raises(TrainingError):
        found(tmp_path / "usual", monkeypatch, sizes, {**USUAL, (1.0, 0.2): float("nan")})


def test_sizes_and_rates_are_compared_by_the_whole_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    knobs = ClassifierKnobs(minutes=20.0, prune=0.5)
    chosen = found(tmp_path, monkeypatch, {None: 0.50, 140: 0.49, 280: 0.60}, USUAL, knobs)
    assert chosen.prune == 0.5
    # Pruning comes after the fine-tuning that they are looked for.
    assert {(one.epochs, one.prune) for one in Trained.trained} == {(0, 0.0), (None, 0.0)}


def test_what_was_found_is_not_looked_for_again_unless_the_question_is_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = found(tmp_path, monkeypatch, {None: 0.50, 140: 0.30, 280: 0.60}, {**USUAL, (1.0, 0.5): 0.9})
    again = found(tmp_path, monkeypatch, {}, {})
    assert again == first
    assert not Trained.trained
    # Nor if the record is of a version that knew fewer knobs.
    record = json.loads((tmp_path / RECORD).read_text(encoding="utf-8"))
    del record["asked"]["fine_tunings"]
    (tmp_path / RECORD).write_text(json.dumps(record), encoding="utf-8")
    assert found(tmp_path, monkeypatch, {}, {}) == first
    assert not Trained.trained
    # How often the finished network looks is no part of the question.
    once = found(tmp_path, monkeypatch, {}, {}, ClassifierKnobs(minutes=20.0, looks=1))
    assert once == replace(first, looks=1)
    assert not Trained.trained
    other = ClassifierKnobs(minutes=20.0, side_px=100)
    chosen = found(tmp_path, monkeypatch, {100: 0.5}, USUAL, other)
    assert chosen.side_px == 100
    assert {knobs.side_px for knobs in Trained.trained} == {100}


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"asked": 3, "changes": {}}'])
def test_a_damaged_record_is_written_anew(content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / RECORD).write_text(content, encoding="utf-8")
    found(tmp_path, monkeypatch, {None: 0.50, 140: 0.49, 280: 0.60}, USUAL)
    assert len(Trained.trained) == 7
    assert '"tried"' in (tmp_path / RECORD).read_text(encoding="utf-8")
