"""Write a bundle: model, manifest and golden set in one zip, whole or not at all."""

import hashlib
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from export.bundle_writer import write_checked
from export.cnn import MULTIPLE_PX, STRIDE_PX
from export.dataset import Dataset, DatasetError, Sample
from export.evaluate import Scored, choose_threshold, count_frames
from export.quantize import INPUT_NAMES, describe, read_pictures
from export.samples import with_references
from export.trained_on import training_record
from station.adapters.litert_model import LitertModel, load_model
from station.bundle_file import GOLDEN, MODEL
from station.judge import above_threshold
from station.manifest import (
    AnomalyDecoding,
    Bundle,
    ClassDecoding,
    Decoding,
    GoldenCase,
    Manifest,
    Preprocessing,
    QualityLimits,
    Task,
    Thresholds,
    read_bundle,
)
from station.messages import Outcome, Pixels, Scores
from station.quality import measure
from station.readout import OUTPUT_NAMES

GOLDEN_PICTURES_OF_EACH_OUTCOME = 3
GOLDEN_CLEARANCE_STEPS = 4
"""Least distance between any candidate of a golden picture and the threshold, in quantization steps of the logits: the
tolerance of a score is one such step."""

DISTANCE_STEPS = 3.0
"""Quantization steps of an anomaly's distance by which it may differ on another processor."""

TOOLS = ("tensorflow-cpu", "keras", "ai-edge-litert", "numpy", "opencv-python-headless")


@dataclass(frozen=True, slots=True)
class Draft:
    """What a bundle will hold, before thresholds, golden set and figures are known.

    Attributes:
        name, version: of the bundle.
        model: bytes of the `.tflite`.
        labels: class names.
        preprocessing: how a picture becomes the input.
        calibration: names of the pictures that set the ranges.
        task: what it does.
        good_label: see `Manifest`.
        decoding, classification, anomaly: how the outputs of the tasks are read.
        extra: further members, by name.
        compares: the model takes a reference beside each picture.
    """

    name: str
    version: str
    model: bytes
    labels: tuple[str, ...]
    preprocessing: Preprocessing
    calibration: tuple[str, ...]
    task: Task = "detect"
    good_label: str | None = None
    decoding: Decoding = field(default_factory=Decoding)
    classification: ClassDecoding = field(default_factory=ClassDecoding)
    anomaly: AnomalyDecoding = field(default_factory=AnomalyDecoding)
    extra: Mapping[str, bytes] = field(default_factory=dict)
    compares: bool = False

    def manifest(self, created_at: datetime) -> Manifest:
        """A manifest that is whole but for the parts that need the deployed model; its golden case is a placeholder."""
        return Manifest(
            name=self.name,
            version=self.version,
            task=self.task,
            created_at=created_at,
            labels=self.labels,
            good_label=self.good_label,
            inputs=describe(self.model, INPUT_NAMES[: 2 if self.compares else 1]),
            outputs=describe(self.model, OUTPUT_NAMES[self.task]),
            preprocessing=self.preprocessing,
            decoding=self.decoding,
            classification=self.classification,
            anomaly=self.anomaly,
            thresholds=Thresholds(default=0.5),
            quality=QualityLimits(),
            golden=(GoldenCase(file=f"{GOLDEN}none.png", outcome=Outcome.OK, score=0.0, tolerance=1.0),),
            calibration=self.calibration,
            versions={tool: installed_version(tool) for tool in TOOLS} | {"python": platform.python_version()},
            members={},
        )

    def deployed(self, created_at: datetime, *, heatmap: bool = False) -> LitertModel:
        """The model in the deployed runtime, before its bundle exists.

        Args:
            created_at: of the bundle.
            heatmap: whether it returns the map as well.

        Raises:
            BundleError: the runtime does not take it.
        """
        digest = hashlib.sha256(self.model).hexdigest()
        bundle = Bundle(self.manifest(created_at), self.model, {}, digest, self.name, self.extra)
        return LitertModel(bundle, heatmap=heatmap)


def detector_preprocessing(channels: int) -> Preprocessing:
    """How the dense detector wants its pictures."""
    return Preprocessing(
        channels=1 if channels == 1 else 3, geometry="native", stride_px=STRIDE_PX, multiple_px=MULTIPLE_PX
    )


def detector_decoding() -> Decoding:
    """How the dense detector's grid is read; its boxes are in cells."""
    return Decoding(box_unit_px=float(STRIDE_PX))


def held_out_thresholds(scored: Sequence[Scored]) -> Thresholds:
    """The threshold of the best F-score on pictures that training never saw, with the counts it gives there."""
    chosen = Thresholds(default=choose_threshold(scored))
    counts = count_frames(scored, chosen)
    return chosen.model_copy(
        update={"chosen_on": f"best F-score on {len(scored)} held-out pictures: {counts.with_intervals()}"}
    )


def quality_limits(pictures: Sequence[Pixels]) -> QualityLimits:
    """Limits of the quality gate: the range of the training pictures, widened by half of what lies outside of it."""
    measures = [measure(picture) for picture in pictures]
    mean_max = max(item.mean for item in measures)
    return QualityLimits(
        mean_min=0.5 * min(item.mean for item in measures),
        mean_max=mean_max + 0.5 * (255.0 - mean_max),
        contrast_min=0.5 * min(item.contrast for item in measures),
        focus_min=0.25 * min(item.focus for item in measures),
    )


def golden_set(
    model: LitertModel, candidates: Iterable[tuple[Pixels, ...]], thresholds: Thresholds
) -> tuple[tuple[GoldenCase, ...], dict[str, bytes]]:
    """Choose the pictures farthest from any threshold and record what the deployed path says of them.

    Pictures with defects and pictures without are taken in equal numbers where there are enough. The tolerance of a
    score is one quantization step of its logit.

    Args:
        model: the deployed model.
        candidates: pictures to choose from, each with its reference for a model that compares.
        thresholds: of the bundle.

    Raises:
        DatasetError: no picture with a defect is far enough from the threshold.
    """
    chosen: dict[Outcome, list[tuple[float, tuple[Pixels, ...], Scores]]] = {Outcome.NG: [], Outcome.OK: []}
    step = score_step(model.bundle.manifest)
    for together in candidates:
        scores = model.infer(*together)
        clearance = _clearance(scores, thresholds)
        if clearance >= GOLDEN_CLEARANCE_STEPS * step:
            farthest = chosen[Outcome.NG if above_threshold(scores, thresholds) else Outcome.OK]
            farthest.append((clearance, together, scores))
            farthest.sort(key=lambda item: -item[0])
            del farthest[GOLDEN_PICTURES_OF_EACH_OUTCOME:]
    if not chosen[Outcome.NG]:
        raise DatasetError(
            "no picture with a defect is far enough from the threshold for a golden input; choose a limit that lets "
            "fewer of them through, or train longer"
        )
    cases: list[GoldenCase] = []
    pictures: dict[str, bytes] = {}
    for outcome, farthest in chosen.items():
        for _, together, scores in farthest:
            found = above_threshold(scores, thresholds)
            stem = f"{GOLDEN}{len(cases)}-{outcome}"
            files = [f"{stem}.png", f"{stem}-reference.png"][: len(together)]
            pictures |= {file: _png(pixels) for file, pixels in zip(files, together, strict=True)}
            cases.append(
                GoldenCase(
                    file=files[0],
                    reference=files[1] if len(files) > 1 else None,
                    outcome=outcome,
                    score=scores.score,
                    tolerance=_one_step(scores.score, step),
                    labels=tuple(item.label for item in found),
                    boxes=tuple(item.box for item in found),
                )
            )
    return tuple(cases), pictures


def score_step(manifest: Manifest) -> float:
    """By how much the logit of a picture's score may differ on another processor: a quantization step of its parts."""
    first = manifest.outputs[0]
    if manifest.task == "classify":
        # The score's logit is the difference of two sums of logits.
        return 2 * first.scale / manifest.classification.temperature
    if manifest.task == "anomaly":
        anomaly = manifest.anomaly
        return float(np.hypot(DISTANCE_STEPS / anomaly.width, manifest.outputs[1].scale / anomaly.map_width))
    return first.scale


def golden_candidates(
    samples: Sequence[Sample], channels: int, *, compares: bool = False, marked: bool = False
) -> Iterator[tuple[Pixels, ...]]:
    """The pictures of some samples, each followed by its reference, which serves as a picture without defects.

    With `marked`, also each with a bright and a dark bar across: good parts alone leave nothing that must be rejected.
    """
    for sample in with_references(samples):
        together = read_pictures([sample], channels, compares=compares)
        yield from together
        if marked:
            pixels = together[0][0].copy()
            height, width = pixels.shape[:2]
            pixels[height // 3 : height // 2, width // 4 : width // 2] = 255
            pixels[height // 2 : 2 * height // 3, width // 4 : width // 2] = 0
            yield (pixels, *together[0][1:])


def write_bundle(
    path: Path,
    manifest: Manifest,
    model: bytes,
    golden: Mapping[str, bytes],
    extra: Mapping[str, bytes] | None = None,
) -> Bundle:
    """Write, read back, replay the golden set, and only then give the file its name.

    Args:
        path: of the bundle; its folder is made.
        manifest: whole but for `members`, which is filled in here.
        model: bytes of the `.tflite`.
        golden: member name → PNG.
        extra: further members, by name.

    Raises:
        BundleError, GoldenMismatch: what was written does not work; nothing is left behind.
    """

    def check(written: Path) -> Bundle:
        bundle = read_bundle(written)
        load_model(bundle)
        return bundle

    bundle = write_checked(path, manifest, {MODEL: model, **golden, **(extra or {})}, check)
    return replace(bundle, origin=str(path))


def dataset_record(dataset: Dataset) -> dict[str, Any]:
    """What the manifest says of the data."""
    return {
        "layout": dataset.layout,
        **training_record(dataset),
        **{f"{split}_pictures": len(samples) for split, samples in dataset.splits.items()},
        **{f"{split}_defects": sum(len(item.classes) for item in samples) for split, samples in dataset.splits.items()},
    }


def _clearance(scores: Scores, thresholds: Thresholds) -> float:
    """Least distance in logits between a candidate and its threshold; infinite without candidates."""
    return min(
        (abs(_logit(item.score) - _logit(thresholds.of(item.label))) for item in scores.candidates), default=np.inf
    )


def _logit(score: float) -> float:
    inside = float(np.clip(score, 1e-6, 1 - 1e-6))
    return float(np.log(inside / (1 - inside)))


def _one_step(score: float, step: float) -> float:
    steepest = 1 / (1 + np.exp(-(_logit(score) + step))) - score, score - 1 / (1 + np.exp(-(_logit(score) - step)))
    return float(max(steepest)) * 1.01 + 1e-6


def _png(pixels: Pixels) -> bytes:
    done, encoded = cv2.imencode(".png", pixels, [cv2.IMWRITE_PNG_COMPRESSION, 9])
    if not done:
        raise DatasetError("OpenCV could not write a PNG")
    return encoded.tobytes()
