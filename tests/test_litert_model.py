"""The model runtime: what it refuses, and that what it loads judges pictures of any size."""

import hashlib
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_detector import draw, trained_folder

from station.adapters.litert_model import LitertModel, check_integer_graph, load_model
from station.bundle_file import MODEL
from station.errors import BundleError, GoldenMismatch, InferenceError
from station.manifest import (
    Bundle,
    Manifest,
    read_bundle,
)
from station.messages import Outcome

pytestmark = [
    pytest.mark.training,
    # TensorFlow 2.21's tensors do not know NumPy 2's `copy` argument.
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"),
]


@pytest.fixture(scope="session")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained_folder(tmp_path_factory.getbasetemp()) / "tiny.bundle"


@pytest.fixture(scope="session")
def bundle(path: Path) -> Bundle:
    return read_bundle(path)


def test_a_picture_of_another_size_is_padded_and_judged_as_before(bundle: Bundle) -> None:
    model = load_model(bundle, heatmap=True)
    pixels, _ = draw(np.random.default_rng(1), 2)
    small = model.infer(pixels)
    wide = np.full((100, 300), 230, np.uint8)
    wide[:96, :96] = pixels
    result = model.infer(wide)
    assert result.heatmap is not None
    assert result.heatmap.shape == (13, 38)
    for defect in small.candidates:
        if defect.score > 0.5 and max(defect.box.centre_px) < 60:
            assert any(
                other.label == defect.label and np.allclose(other.box.centre_px, defect.box.centre_px, atol=4)
                for other in result.candidates
            )
    assert model.infer(pixels) == small


def test_colour_frames_are_judged_like_their_grey_form(bundle: Bundle) -> None:
    model = load_model(bundle)
    pixels, _ = draw(np.random.default_rng(2), 3)
    assert model.infer(np.repeat(pixels[..., None], 3, axis=2)) == model.infer(pixels)


def test_a_fault_with_one_picture_does_not_hurt_the_next(bundle: Bundle) -> None:
    model = load_model(bundle)
    pixels, _ = draw(np.random.default_rng(2), 3)
    before = model.infer(pixels)
    with pytest.raises(InferenceError):
        model.infer(np.zeros((4, 4), np.float32))
    with pytest.raises(InferenceError, match="region of interest"):
        model.infer(np.broadcast_to(np.uint8(0), (1 << 14, 1 << 14)))
    assert model.infer(pixels) == before


def test_two_threads_give_the_same_scores(bundle: Bundle) -> None:
    pixels, _ = draw(np.random.default_rng(2), 3)
    assert load_model(bundle, 2).infer(pixels) == load_model(bundle).infer(pixels)


def altered(bundle: Bundle, **changes: Any) -> Bundle:
    return replace(bundle, manifest=Manifest.model_validate(bundle.manifest.model_dump() | changes))


def tensor(bundle: Bundle, which: str, **changes: Any) -> dict[str, Any]:
    tensors = [item.model_dump() for item in getattr(bundle.manifest, which)]
    tensors[0] |= changes
    return {which: tensors}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (lambda b: tensor(b, "inputs", shape=(1, 64, 96, 1)), "manifest says uint8 \\[1, 64, 96, 1\\]"),
        (lambda b: tensor(b, "outputs", shape=(1, 12, 12, 5)), "manifest says int8"),
        (lambda b: tensor(b, "outputs", dtype="uint8"), "manifest says uint8"),
        (lambda b: tensor(b, "outputs", scale=b.manifest.outputs[0].scale * 1.01), "scale"),
        (lambda b: tensor(b, "outputs", zero_point=b.manifest.outputs[0].zero_point + 1), "zero point"),
        (lambda b: tensor(b, "inputs", name="image"), "no tensor image"),
        (lambda b: {"outputs": [b.manifest.outputs[0].model_dump()]}, "the 2 outputs heatmap and box"),
        (lambda b: {"labels": b.manifest.labels[:5]}, "must be int8"),
        (lambda _: {"preprocessing": {"stride_px": 4}}, "must be int8"),
        (lambda _: {"preprocessing": {"multiple_px": 12}}, "multiple_px"),
        (lambda _: {"preprocessing": {"channels": 3}}, "input picture must be uint8"),
    ],
)
def test_a_manifest_that_is_not_the_models_is_refused(
    bundle: Bundle, changes: Callable[[Bundle], dict[str, Any]], message: str
) -> None:
    with pytest.raises(BundleError, match=message):
        LitertModel(altered(bundle, **changes(bundle)))


def test_a_golden_set_that_differs_is_refused(bundle: Bundle) -> None:
    cases = [case.model_dump() for case in bundle.manifest.golden]
    wrong = next(case for case in cases if case["outcome"] == Outcome.NG)
    changes: list[dict[str, Any]] = [
        {"score": wrong["score"] - 0.3},
        {"outcome": Outcome.OK},
        {"labels": [], "boxes": []},
    ]
    for change in changes:
        with pytest.raises(GoldenMismatch, match=wrong["file"]):
            load_model(altered(bundle, golden=[wrong | change]))
    moved = [{**box, "x_px": box["x_px"] + 9} for box in wrong["boxes"]]
    with pytest.raises(GoldenMismatch, match=r"no (copper|pin-hole) at"):
        load_model(altered(bundle, golden=[wrong | {"boxes": moved}]))


def test_a_model_that_does_not_load_is_refused(bundle: Bundle) -> None:
    for content in (b"", b"not a model", bundle.model[: len(bundle.model) // 2]):
        with pytest.raises(BundleError):
            LitertModel(replace(bundle, model=content))


def test_an_altered_file_is_refused_before_the_runtime_sees_it(path: Path, tmp_path: Path) -> None:
    changed = tmp_path / "changed.bundle"
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(changed, "w") as target:
        for name in source.namelist():
            content = bytearray(source.read(name))
            if name == MODEL:
                content[len(content) // 2] ^= 1
            target.writestr(name, bytes(content))
    with pytest.raises(BundleError, match="altered"):
        read_bundle(changed)


def float_model(kind: str) -> bytes:
    import keras  # noqa: PLC0415
    import tensorflow as tf  # noqa: PLC0415

    source = keras.Input((16, 16, 1), batch_size=1)
    converter = tf.lite.TFLiteConverter.from_keras_model(
        keras.Model(source, keras.layers.Conv2D(2, 3, activation="relu")(source))
    )
    if kind == "weights only":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    return bytes(converter.convert())


@pytest.mark.parametrize("kind", ["float", "weights only"])
def test_a_model_that_is_not_full_integer_is_refused(bundle: Bundle, kind: str) -> None:
    model = float_model(kind)
    with pytest.raises(BundleError, match="float32"):
        check_integer_graph(model)
    with pytest.raises(BundleError, match="float32"):
        LitertModel(replace(bundle, model=model))


def test_a_model_with_variables_is_refused() -> None:
    import tensorflow as tf  # noqa: PLC0415

    class Counter(tf.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.total = tf.Variable(tf.zeros((1, 4)))

        @tf.function(input_signature=[tf.TensorSpec((1, 4), tf.float32)])  # type: ignore[untyped-decorator]
        def add(self, x: Any) -> Any:
            self.total.assign_add(x)
            return self.total.read_value()

    module = Counter()
    converter = tf.lite.TFLiteConverter.from_concrete_functions([module.add.get_concrete_function()], module)
    converter.experimental_enable_resource_variables = True
    with pytest.raises(BundleError, match=r"operation (VAR_HANDLE|CALL_ONCE|ASSIGN_VARIABLE|READ_VARIABLE)"):
        check_integer_graph(bytes(converter.convert()))


def test_the_reference_names_the_file_by_its_hash(path: Path, bundle: Bundle) -> None:
    assert load_model(bundle).ref.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
