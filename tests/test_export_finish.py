"""The end of a training that does not become a bundle."""

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from export.__main__ import main
from export.dataset import DatasetError, read_dataset
from export.finish import Candidate, finish
from export.package import Draft
from station.adapters.litert_model import load_model
from station.manifest import read_bundle
from station.settings import SHIPPED_BUNDLE


def test_a_model_too_poor_for_a_golden_set_still_has_its_report(tmp_path: Path) -> None:
    folder = tmp_path / "boards"
    assert main(["render", "--out", str(folder), "--train-webs", "10", "--test-webs", "2", "--frames", "2"]) == 0
    dataset = read_dataset(folder)
    shipped = read_bundle(SHIPPED_BUNDLE)
    manifest = shipped.manifest
    # Nothing is found where nothing is seen.
    blank = tmp_path / "blank.png"
    cv2.imwrite(str(blank), np.full((640, 640), 60, np.uint8))
    unseen = [replace(sample, picture=blank, reference=blank) for sample in dataset.splits["validation"]]
    dataset = replace(dataset, splits={**dataset.splits, "validation": unseen})
    draft = Draft("poor", "1", shipped.model, manifest.labels, manifest.preprocessing, (), decoding=manifest.decoding)
    candidate = Candidate(draft, load_model(shipped), manifest.quality, {})
    out = tmp_path / "out"
    with pytest.raises(
        DatasetError, match=r"far enough from the threshold .*; no bundle is written; see .*report\.html"
    ):
        finish(candidate, dataset, out, lambda _: None)
    assert not list(out.glob("*.bundle*"))
    warnings = json.loads((out / "metrics.json").read_text(encoding="utf-8"))["warnings"]
    assert warnings[0].endswith("train longer; no bundle is written")
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "There is no bundle yet." in page
    assert "station inspect PICTURES" not in page
