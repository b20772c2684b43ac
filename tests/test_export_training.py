"""From a labelled folder to a bundle that judges: train, quantize, package, load, golden set, evaluate."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_detector import TRAIN_ARGUMENTS, draw, trained_folder

from export.__main__ import main
from station.adapters.litert_model import load_model
from station.manifest import read_bundle

pytestmark = [
    pytest.mark.training,
    # TensorFlow 2.21's tensors do not know NumPy 2's `copy` argument.
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"),
]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.getbasetemp()


def test_a_folder_becomes_a_bundle_that_finds_defects(folder: Path) -> None:
    out = trained_folder(folder)
    bundle = read_bundle(out / "tiny.bundle")
    manifest = bundle.manifest
    assert manifest.inputs[0].dtype == "uint8"
    assert manifest.inputs[0].scale == pytest.approx(1 / 255)
    assert manifest.inputs[0].zero_point == 0
    assert {case.outcome for case in manifest.golden} == {"ok", "ng"}
    assert len(manifest.calibration) == len(set(manifest.calibration)) > 10
    assert manifest.dataset["train_pictures"] == 36
    assert manifest.dataset["validation_pictures"] == 4
    assert manifest.configuration["seed"] == 3
    assert manifest.metrics["test_float"]["map"] - manifest.metrics["test_int8"]["map"] < 0.05
    model = load_model(bundle)
    pixels, labels = draw(np.random.default_rng(99), 3)
    scores = model.infer(pixels)
    found = [item for item in scores.candidates if item.score >= manifest.thresholds.of(item.label)]
    assert len(found) == len(labels)
    for left, top, right, bottom, kind in labels:
        middle = np.array([left + right, top + bottom]) / 2
        nearest = min(found, key=lambda item: float(np.abs(np.array(item.box.centre_px) - middle).sum()))
        assert np.abs(np.array(nearest.box.centre_px) - middle).max() < 5
        assert nearest.label == manifest.labels[kind - 1]


def test_evaluate_prints_one_object(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = trained_folder(folder)
    capsys.readouterr()
    assert main(["evaluate", str(out / "tiny.bundle"), "--data", str(folder / "data"), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    stored = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    assert result["map"] == pytest.approx(stored["test_int8"]["map"])
    assert result["f_score"] == pytest.approx(stored["test_int8"]["f_score"])
    assert result["pictures"] == 6
    assert result["map"] > 0.8


def test_the_same_command_goes_on_where_it_stopped(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = trained_folder(folder)
    before = read_bundle(out / "tiny.bundle").manifest
    capsys.readouterr()
    assert main([*TRAIN_ARGUMENTS, "--data", str(folder / "data"), "--out", str(out)]) == 0
    assert "going on after step 150" in capsys.readouterr().out
    after = read_bundle(out / "tiny.bundle").manifest
    assert (after.outputs, after.thresholds, after.golden) == (before.outputs, before.thresholds, before.golden)


def test_other_knobs_in_the_same_folder_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = trained_folder(folder)
    assert main([*TRAIN_ARGUMENTS, "--data", str(folder / "data"), "--out", str(out), "--batch", "4"]) == 1
    assert "other knobs" in capsys.readouterr().err


def test_a_bundle_that_cannot_be_written_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    from export.package import write_bundle  # noqa: PLC0415
    from station.errors import GoldenMismatch  # noqa: PLC0415

    bundle = read_bundle(trained_folder(folder) / "tiny.bundle")
    golden = list(bundle.manifest.golden)
    golden[0] = golden[0].model_copy(update={"score": golden[0].score - 0.2})
    manifest = bundle.manifest.model_copy(update={"golden": tuple(golden)})
    with pytest.raises(GoldenMismatch):
        write_bundle(tmp_path / "wrong.bundle", manifest, bundle.model, bundle.golden)
    assert list(tmp_path.iterdir()) == []
    whole = write_bundle(tmp_path / "right.bundle", bundle.manifest, bundle.model, bundle.golden)
    assert replace(whole, origin=bundle.origin) == bundle
