"""From a labelled folder to a bundle that judges: train, quantize, package, load, golden set, evaluate."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_detector import TRAIN_ARGUMENTS, draw, trained_folder

from export.__main__ import main
from export.dataset import read_dataset
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


def test_a_training_ends_with_a_report_that_compares_float_and_int8(folder: Path) -> None:
    out = trained_folder(folder)
    record = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    assert record["comparison"]["losses"] == []
    assert record["comparison"]["flips"] <= 1
    layers = record["comparison"]["layers_sqnr_db"]
    assert len(layers) > 10
    assert min(layers.values()) > 5
    text = (out / "report.html").read_text(encoding="utf-8")
    for name in ("classes", "threshold", "quantization", "speed", "data", "configuration"):
        assert f'<section id="{name}">' in text
    assert list((out / "report").glob("scores.png"))


def test_an_int8_model_that_is_much_worse_becomes_no_bundle_unless_allowed(folder: Path, tmp_path: Path) -> None:
    from export.comparison import QuantizationLoss  # noqa: PLC0415
    from export.finish import Candidate, Demands, finish  # noqa: PLC0415
    from export.package import Draft  # noqa: PLC0415

    good = read_bundle(trained_folder(folder) / "tiny.bundle")
    manifest = good.manifest
    # The same model with its classes named the wrong way round, measured against the right one.
    draft = Draft(
        "worse", "1", good.model, manifest.labels[::-1], manifest.preprocessing, (), decoding=manifest.decoding
    )
    candidate = Candidate(draft, load_model(good), manifest.quality, {"knob": 1})
    dataset = read_dataset(folder / "data")
    said: list[str] = []
    with pytest.raises(QuantizationLoss, match=r"mAP falls from .*--allow-regression; no bundle is written; see "):
        finish(candidate, dataset, tmp_path, said.append)
    assert not list(tmp_path.glob("*.bundle*"))
    assert "int8 is worse than float: mAP falls" in (tmp_path / "report.html").read_text(encoding="utf-8")
    path = finish(candidate, dataset, tmp_path, said.append, Demands(allow_regression=True))
    assert read_bundle(path).manifest.configuration == {"knob": 1}
    assert any(line.startswith("warning: int8 is worse than float: mAP falls") for line in said)


def test_a_threshold_from_the_training_pictures_is_warned_of(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = trained_folder(folder) / "tiny.bundle"
    capsys.readouterr()
    command = ["threshold", str(bundle), "--data", str(folder / "data"), "--out", str(tmp_path / "new.bundle")]
    assert main([*command, "--split", "train"]) == 0
    assert "warning: 36 of 36 pictures were trained on" in capsys.readouterr().out
    assert main([*command, "--split", "test"]) == 0
    assert "trained on" not in capsys.readouterr().out


def test_the_same_command_goes_on_where_it_stopped(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = trained_folder(folder)
    before = read_bundle(out / "tiny.bundle").manifest
    capsys.readouterr()
    assert main([*TRAIN_ARGUMENTS, "--data", str(folder / "data"), "--out", str(out)]) == 0
    assert "going on after step 150" in capsys.readouterr().out
    after = read_bundle(out / "tiny.bundle").manifest
    assert (after.outputs, after.thresholds, after.golden) == (before.outputs, before.thresholds, before.golden)


def test_a_rule_for_the_threshold_is_obeyed_without_training_anew(folder: Path, tmp_path: Path) -> None:
    out = shutil.copytree(trained_folder(folder), tmp_path / "out")
    before = read_bundle(out / "tiny.bundle").manifest
    assert "best F-score" in before.thresholds.chosen_on
    command = [*TRAIN_ARGUMENTS, "--data", str(folder / "data"), "--out", str(out)]
    assert main([*command, "--max-false-reject", "0"]) == 0
    strict = read_bundle(out / "tiny.bundle").manifest
    assert strict.outputs == before.outputs
    assert re.search(
        r"^\d+ held-out pictures, at [\d.e-]+: 0 of .*; chosen for at most 0 % of the good ones rejected$",
        strict.thresholds.chosen_on,
    )
    package = ["package", "--data", str(folder / "data"), "--out", str(out), "--name", "tiny", "--allow-regression"]
    assert main([*package, "--costs", "1:50"]) == 0
    chosen_on = read_bundle(out / "tiny.bundle").manifest.thresholds.chosen_on
    assert "chosen for least cost at 1 a false reject and 50 a miss" in chosen_on


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
