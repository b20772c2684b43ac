"""Other forms of the shipped bundle, written and read back as the export does it."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from export.bundle_writer import write_checked
from station.adapters.litert_model import LitertModel
from station.bundle_file import GOLDEN, MANIFEST, MODEL
from station.judge import above_threshold
from station.manifest import Bundle, GoldenCase, Manifest, read_bundle
from station.messages import Outcome
from station.settings import SHIPPED_BUNDLE


def variant(path: Path, version: str, **changes: Any) -> Path:
    """The shipped bundle as another version, with other fields of its manifest; the golden set stays as it was."""
    whole = read_bundle(SHIPPED_BUNDLE)
    changed = whole.manifest.model_copy(update={"version": version, **changes})
    _written(path, whole, changed)
    return path


def wrong_golden(path: Path, version: str) -> Path:
    """A bundle that promises scores which its model does not give."""
    cases = tuple(
        case.model_copy(update={"score": abs(case.score - 0.4)}) for case in read_bundle(SHIPPED_BUNDLE).manifest.golden
    )
    return variant(path, version, golden=cases)


def enlarging(path: Path, version: str) -> Path:
    """A bundle that is right for its small golden pictures, and whose model fails on pictures of 1100 × 1100 px."""
    whole = read_bundle(SHIPPED_BUNDLE)
    preprocessing = whole.manifest.preprocessing.model_copy(update={"scale": 8.0})
    model = LitertModel(
        Bundle(
            whole.manifest.model_copy(update={"preprocessing": preprocessing}),
            whole.model, whole.golden, whole.sha256, whole.origin,
        )
    )  # fmt: skip
    pictures, cases = {}, []
    for case in whole.manifest.golden:
        picture = cv2.imdecode(np.frombuffer(whole.golden[case.file], np.uint8), cv2.IMREAD_GRAYSCALE)
        assert picture is not None
        small = np.asarray(picture[:96, :96], np.uint8)
        scores = model.infer(small)
        found = above_threshold(scores, whole.manifest.thresholds)
        pictures[case.file] = cv2.imencode(".png", small)[1].tobytes()
        cases.append(
            GoldenCase(
                file=case.file,
                outcome=Outcome.NG if found else Outcome.OK,
                score=scores.score,
                tolerance=0.1,
                labels=tuple(one.label for one in found),
                boxes=tuple(one.box for one in found),
            )
        )
    changed = whole.manifest.model_copy(
        update={"version": version, "preprocessing": preprocessing, "golden": tuple(cases)}
    )
    _written(path, whole, changed, pictures)
    return path


def _written(path: Path, whole: Bundle, manifest: Manifest, golden: dict[str, bytes] | None = None) -> None:
    members = {MODEL: whole.model, **(golden or whole.golden), **whole.extra}
    assert all(name == MODEL or name.startswith(GOLDEN) for name in members)
    assert json.loads(manifest.model_dump_json())["version"] == manifest.version
    assert MANIFEST not in members
    write_checked(path, manifest, members, read_bundle)
