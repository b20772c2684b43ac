"""A detector that compares each picture with its reference: from the labelled folder to verdicts of the station."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from tiny_detector import TRAIN_ARGUMENTS, draw, write_folder

from export.__main__ import main
from station.adapters.litert_model import load_model
from station.bundle_file import GOLDEN
from station.commands.assembly import load_bundle
from station.errors import BundleError, InferenceError, ModelError
from station.manifest import (
    Bundle,
    read_bundle,
)
from station.messages import Pixels
from station.section import Region
from station.settings import SHIPPED_BUNDLE, FolderCamera
from station.trust import ANYONE

pytestmark = [
    pytest.mark.training,
    # TensorFlow 2.21's tensors do not know NumPy 2's `copy` argument.
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"),
]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("comparing")
    data = write_folder(folder / "data")
    assert main([*TRAIN_ARGUMENTS, "--reference", "--data", str(data), "--out", str(folder / "out")]) == 0
    return folder / "out" / "tiny.bundle"


@pytest.fixture(scope="module")
def bundle(path: Path) -> Bundle:
    return read_bundle(path)


def pair(seed: int, defects: int) -> tuple[Pixels, Pixels, int]:
    rng = np.random.default_rng(seed)
    pixels, labels = draw(rng, defects)
    return pixels, draw(rng, 0)[0], len(labels)


def test_the_bundle_holds_pairs_and_finds_what_differs(bundle: Bundle) -> None:
    manifest = bundle.manifest
    assert [tensor.name for tensor in manifest.inputs] == ["picture", "reference"]
    assert all(case.reference in bundle.golden for case in manifest.golden)
    model = load_model(bundle)
    pixels, clean, defects = pair(99, 3)

    def found(beside: Pixels) -> int:
        return sum(item.score >= manifest.thresholds.of(item.label) for item in model.infer(pixels, beside).candidates)

    assert found(clean) == defects
    assert found(pixels) == 0, "what the reference shows as well is no defect"


def test_a_missing_or_unlike_reference_is_refused(bundle: Bundle) -> None:
    model = load_model(bundle)
    pixels, clean, _ = pair(1, 1)
    with pytest.raises(InferenceError, match="there is none"):
        model.infer(pixels)
    with pytest.raises(InferenceError, match="96×96 px, its reference 96×48"):
        model.infer(pixels, clean[:48])
    assert load_model(bundle, reference=clean).infer(pixels) == model.infer(pixels, clean)


def test_a_golden_case_without_its_reference_is_refused(bundle: Bundle) -> None:
    cases = tuple(case.model_copy(update={"reference": None}) for case in bundle.manifest.golden)
    manifest = bundle.manifest.model_copy(update={"golden": cases})
    with pytest.raises(ModelError, match=f"golden picture {GOLDEN}.*there is none"):
        load_model(Bundle(manifest, bundle.model, bundle.golden, bundle.sha256, "x"))


def test_inputs_of_two_shapes_are_refused(bundle: Bundle) -> None:
    first, second = bundle.manifest.inputs
    manifest = bundle.manifest.model_copy(update={"inputs": (first, second.model_copy(update={"shape": (1, 8, 8, 1)}))})
    with pytest.raises(BundleError, match="reference"):
        load_model(Bundle(manifest, bundle.model, bundle.golden, bundle.sha256, "x"))


def test_a_camera_names_the_good_part(path: Path, tmp_path: Path) -> None:
    pixels, clean, _ = pair(7, 2)
    cv2.imwrite(str(tmp_path / "good.png"), clean)
    (tmp_path / "note.png").write_text("no picture")
    bundle = (path.read_bytes(), str(path), ANYONE)

    def camera(reference: Path | None = None, region: Region | None = None) -> FolderCamera:
        return FolderCamera(kind="folder", path=tmp_path, reference=reference, region=region)

    assert load_bundle(camera(tmp_path / "good.png"), 1, *bundle).model.infer(pixels).candidates
    with pytest.raises(ModelError, match="name that one in the camera's `reference`"):
        load_bundle(camera(), 1, *bundle)
    with pytest.raises(ModelError, match=r"missing\.png: cannot be read"):
        load_bundle(camera(tmp_path / "missing.png"), 1, *bundle)
    with pytest.raises(ModelError, match=r"note\.png: is not a picture"):
        load_bundle(camera(tmp_path / "note.png"), 1, *bundle)
    with pytest.raises(ModelError, match="96×96 px do not hold the camera's region"):
        load_bundle(camera(tmp_path / "good.png", Region(x_px=90, y_px=0, width_px=20, height_px=20)), 1, *bundle)
    with pytest.raises(ModelError, match="takes no reference"):
        load_bundle(camera(tmp_path / "good.png"), 1, SHIPPED_BUNDLE.read_bytes(), "shipped", ANYONE)
