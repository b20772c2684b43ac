"""The report: one page that needs nothing else, PNG files beside it, and metrics.json."""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest

from export.comparison import LayerError, compare
from export.dataset import Dataset, Sample, read_dataset
from export.evaluate import Scored, score_samples
from export.evaluation import Task, evaluate
from export.report import Report, write_report
from station.manifest import Manifest, read_bundle
from station.messages import Box, Defect, Pixels, Scores
from station.settings import SHIPPED_BUNDLE

LABELS = ("good", "scratch <deep>")


class ByBrightness:
    """Calls a picture bad the surer the brighter its brightest spot: a model that errs in a known way."""

    def __init__(self, shift: float = 0.0) -> None:
        self._shift = shift

    def infer(self, pixels: Pixels, reference: Pixels | None = None) -> Scores:
        assert reference is None
        score = float(np.clip(pixels.max() / 255 + self._shift, 0.01, 0.99))
        row, column = np.unravel_index(int(pixels.argmax()), pixels.shape)
        box = Box(x_px=max(0, int(column) - 5), y_px=max(0, int(row) - 5), width_px=10, height_px=10)
        heat = np.asarray(cv2.resize(pixels, (8, 6)) / 255, np.float32)
        defect = Defect(label=LABELS[1], score=score, box=box)
        return Scores((defect,), score, heat, class_scores=(1 - score, score))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Grey tiles; the scratched ones have a bright line, one too faint and one good tile with a bright spot."""
    root = tmp_path_factory.mktemp("tiles")
    rng = np.random.default_rng(2)
    for label, count in zip(LABELS, (30, 12), strict=True):
        (root / "test" / label).mkdir(parents=True)
        (root / "train" / label).mkdir(parents=True)
        for number in range(count):
            pixels = rng.integers(40, 90, (60, 80), np.uint8)
            if label != "good":
                cv2.line(pixels, (10, 10 + number), (60, 30), 120 if number == 0 else 230, 2)
            elif number == 0:
                pixels[30, 40] = 250
            cv2.imwrite(str(root / "test" / label / f"{number:02}.png"), pixels)
            cv2.imwrite(str(root / "train" / label / f"{number:02}.png"), pixels[::-1])
    return root


@pytest.fixture(scope="module")
def manifest() -> Manifest:
    return read_bundle(SHIPPED_BUNDLE).manifest.model_copy(
        update={"name": "tiles", "task": "classify", "labels": LABELS, "good_label": "good"}
    )


def report_on(dataset: Dataset, manifest: Manifest, samples: Sequence[Sample]) -> Report:
    thresholds = manifest.thresholds.model_copy(update={"default": 0.6})
    manifest = manifest.model_copy(update={"thresholds": thresholds})
    task = Task("classify", dataset.labels, dataset.good)
    scored: list[Scored] = score_samples(ByBrightness(), samples, dataset.labels, 1)
    before = score_samples(ByBrightness(0.15), samples, dataset.labels, 1)
    layers = (LayerError("first", "CONV_2D", 31.5), LayerError("second", "ADD", 9.25))
    return Report(
        manifest=manifest,
        sha256="ab" * 32,
        bundle_bytes=1_234_567,
        dataset=dataset,
        split="test",
        scored=scored,
        evaluation=evaluate(scored, task, thresholds),
        explain=lambda sample: ByBrightness().infer(
            np.asarray(cv2.imread(str(sample.picture), cv2.IMREAD_GRAYSCALE), np.uint8)
        ),
        comparison=compare(before, scored, task, thresholds, layers),
        folds=[{"accuracy": 0.9, "auroc": 0.95}, {"accuracy": 0.8, "auroc": 0.85}],
        others={"plain-a": {"accuracy": 0.7, "macro_f1": 0.6, "minutes": 0.43, "cut_short": 1.0}},
        warnings=["these pictures are <few>"],
        configuration={"epochs": 3, "widths": {"stem": 32}},
        further={"validation_int8": {"accuracy": 0.5}},
    )


class Tags(HTMLParser):
    """Collects every tag with its attributes, and checks that what is opened is closed."""

    EMPTY = frozenset({"meta", "img", "source", "rect", "br"})

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert tag in self.EMPTY or self.open.pop() == tag


def test_a_report_is_whole_by_itself(folder: Path, manifest: Manifest, tmp_path: Path) -> None:
    dataset = read_dataset(folder)
    report = report_on(dataset, manifest, dataset.splits["test"])
    path = write_report(tmp_path / "out", report)
    text = path.read_text(encoding="utf-8")
    tags = Tags()
    tags.feed(text)
    assert tags.open == []
    for tag, attributes in tags.found:
        assert tag not in {"script", "link", "iframe"}
        for name in ("src", "srcset", "href"):
            if (value := attributes.get(name)) is not None:
                assert value.startswith(("data:image/png;base64,", "#")), value[:40]
    assert "http" not in text
    assert "scratch <deep>" not in text
    assert "scratch &lt;deep&gt;" in text
    links = {attributes["href"] for tag, attributes in tags.found if tag == "a"}
    assert links == {f"#{attributes['id']}" for tag, attributes in tags.found if tag == "section"}


def test_a_report_says_it_in_words(folder: Path, manifest: Manifest, tmp_path: Path) -> None:
    dataset = read_dataset(folder)
    report = report_on(dataset, manifest, dataset.splits["test"])
    text = write_report(tmp_path, report).read_text(encoding="utf-8").replace("\u00a0", " ")
    plain = re.sub(r"<[^>]+>", " ", text)
    assert "Of 100 good parts it would reject about 3." in plain
    assert "Of 100 bad parts it would miss about 8." in plain
    assert "1 of 12 missed; 95 % interval 0.21 % to 38.5 %." in plain
    assert "these pictures are &lt;few&gt;" in plain
    assert re.search(r"accuracy falls|verdicts? change", plain)
    assert "± standard deviation" in plain
    assert "plain-a (float)" in plain
    assert "0.4, cut short" in plain
    assert "passed as ok" in plain
    assert "scratch &lt;deep&gt; is recognized worst, 91.7 % of 12 pictures" in plain
    assert "station inspect PICTURES --bundle tiles.bundle --out marked" in plain
    assert "1 of 2 layers are below 15 dB" in plain
    assert "widths.stem" in plain


def test_pictures_and_metrics_lie_beside_the_page(folder: Path, manifest: Manifest, tmp_path: Path) -> None:
    dataset = read_dataset(folder)
    report = report_on(dataset, manifest, dataset.splits["test"])
    write_report(tmp_path, report)
    names = {path.name for path in (tmp_path / "report").iterdir()}
    assert {"roc.png", "precision-recall.png", "scores.png", "mistake-01.png", "mistake-02.png"} <= names
    for name in names:
        assert cv2.imread(str(tmp_path / "report" / name)) is not None
    record = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    assert record["test_int8"]["good_rejected"] == 1
    assert record["test_int8"]["bad_missed"] == 1
    assert record["validation_int8"] == {"accuracy": 0.5}
    assert record["comparison"]["layers_sqnr_db"] == {"first": 31.5, "second": 9.2}
    assert record["folds"][1]["auroc"] == 0.85
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.json", "report", "report.html"]


def test_a_perfect_model_has_no_mistakes_to_show(folder: Path, manifest: Manifest, tmp_path: Path) -> None:
    dataset = read_dataset(folder)
    samples = [sample for sample in dataset.splits["test"] if not sample.name.endswith("00.png")]
    report = replace(report_on(dataset, manifest, samples), comparison=None, folds=(), others={}, warnings=())
    text = write_report(tmp_path, report).read_text(encoding="utf-8")
    assert "None of the 40 pictures is judged wrongly." in text
    assert "None of 29 good parts was rejected." in text
    assert "Nothing was judged wrongly, but 40 pictures cannot show much" in text
    assert "No other threshold would have judged these pictures better." in text
    assert not re.search('id="(quantization|folds|others)"', text)
