"""Float against int8: what counts as a loss, and that one picture alone is none."""

import numpy as np
import pytest
from test_export_evaluation import HALF, picture, scored

from export.comparison import compare, doubts, losses, recalls
from export.evaluate import Scored
from export.evaluation import Task

CLASSES = Task("classify", ("crack", "good"), good=1)


def judged(truths: list[int], chances: list[float]) -> list[Scored]:
    """Pictures by their true class and the probability of a crack."""
    return [
        scored(picture(truth, f"g{number}"), chance, (chance, 1 - chance))
        for number, (truth, chance) in enumerate(zip(truths, chances, strict=True))
    ]


TRUTHS = [0] * 100 + [1] * 100
CHANCES = np.concatenate([np.linspace(0.6, 0.9, 100), np.linspace(0.1, 0.4, 100)]).tolist()


def changed(*numbers: int) -> list[float]:
    chances = list(CHANCES)
    for number in numbers:
        chances[number] = 1 - chances[number]
    return chances


def test_the_same_scores_lose_nothing() -> None:
    result = compare(judged(TRUTHS, CHANCES), judged(TRUTHS, CHANCES), CLASSES, HALF)
    assert losses(result) == []
    assert result.flips == ()
    assert result.score_shift == 0


def test_what_few_pictures_cannot_show_is_a_doubt_and_what_many_show_is_a_loss() -> None:
    before = judged(TRUTHS, CHANCES)
    one = compare(before, judged(TRUTHS, changed(5)), CLASSES, HALF)
    assert [(flip.number, flip.before, flip.after) for flip in one.flips] == [
        (5, "named crack, rejected", "named good, passed as ok")
    ]
    assert losses(one) == []
    few = judged(TRUTHS[96:104], CHANCES[96:104])
    alone = compare(few, judged(TRUTHS[96:104], changed(96)[96:104]), CLASSES, HALF)
    assert alone.after.accuracy == pytest.approx(7 / 8)
    assert losses(alone) == []
    assert "1 of 8 verdicts change, which may be chance" in doubts(alone)
    three = compare(before, judged(TRUTHS, changed(5, 6, 150)), CLASSES, HALF)
    assert three.flip_share == 0.015
    assert three.record()["flips_of_outcome"] == 3
    assert losses(three) == []
    assert "accuracy falls from 1.0000 to 0.9850, which may be chance with 200 pictures" in doubts(three)
    assert recalls(three.after) == {"crack": 0.98, "good": 0.99}
    assert ("recall of good", 1.0, 0.99) in three.changes()
    assert three.record()["figures"]["accuracy"] == {"float": 1.0, "int8": 0.985}
    many = compare(before, judged(TRUTHS, changed(*range(5, 15))), CLASSES, HALF)
    found = losses(many)
    assert "accuracy falls from 1.0000 to 0.9500, for certain by more than 0.005" in found
    assert "10 of 200 verdicts change, for certain more than 1 %" in found
    assert not any("accuracy" in text or "verdicts" in text for text in doubts(many))
    assert losses(many, metric_limit=0.1, flip_limit=0.05) == []


def test_a_better_int8_model_is_no_loss() -> None:
    result = compare(judged(TRUTHS, changed(5, 6)), judged(TRUTHS, CHANCES), CLASSES, HALF)
    assert losses(result) == []
    assert len(result.flips) == 2


def test_another_class_is_no_other_outcome() -> None:
    kinds = Task("classify", ("crack", "dent", "good"), good=2)
    float_chances = [(0.6, 0.3, 0.1), (0.2, 0.7, 0.1), (0.1, 0.3, 0.6)]
    int8_chances = [(0.4, 0.5, 0.1), (0.2, 0.7, 0.1), (0.3, 0.3, 0.4)]
    before, after = (
        [scored(picture(truth, f"g{truth}"), 1 - one[2], one) for truth, one in enumerate(chances)]
        for chances in (float_chances, int8_chances)
    )
    result = compare(before, after, kinds, HALF)
    assert [(flip.number, flip.passes) for flip in result.flips] == [(0, False), (2, True)]
    assert result.outcome_flips == 1
