"""Quantize the checkpoint of a training, score it on held-out pictures and write its bundle.

    station-export package --data DIR --out DIR

OUT is the folder of `station-export train`, finished or interrupted. The threshold is chosen on the held-out tenth of
trainval; float and int8 figures on that part and on the test split go into the manifest and into metrics.json.
"""

import argparse
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from export.cnn import FloatDetector
from export.dataset import Dataset, DatasetError, read_dataset
from export.evaluate import Detector, figures, score_samples
from export.package import (
    Draft,
    dataset_record,
    detector_decoding,
    detector_preprocessing,
    golden_candidates,
    golden_set,
    held_out_thresholds,
    quality_limits,
    with_references,
    write_bundle,
)
from export.quantize import CALIBRATION_PICTURES, calibration_set, quantize, read_folder, read_pictures
from export.train_cnn import load_checkpoint, load_knobs

METRICS = "metrics.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="the labelled folder it was trained on")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the folder of the training")
    add_bundle_arguments(parser)


def add_bundle_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what names the bundle."""
    parser.add_argument("--name", default="detector", help="of the bundle and its file (default: %(default)s)")
    parser.add_argument(
        "--calibration",
        type=Path,
        metavar="DIR",
        help="PNG pictures that set the quantization's ranges (default: a stratified draw from the training split)",
    )
    parser.add_argument("--version", default="1", help="of the bundle (default: %(default)s)")


def run(arguments: argparse.Namespace) -> int:
    """Package."""
    dataset = read_dataset(arguments.data)
    write_from(
        arguments.out, dataset, arguments.name, arguments.version, print, calibration_folder=arguments.calibration
    )
    return 0


def write_from(
    folder: Path,
    dataset: Dataset,
    name: str,
    version: str,
    say: Callable[[str], None],
    *,
    calibration_folder: Path | None = None,
) -> Path:
    """Make the bundle of the checkpoint that stands in a folder; returns the bundle's path.

    The quantization's ranges come from the PNG pictures of `calibration_folder`, or from training pictures. The limits
    of the quality gate come from training pictures in either case.

    Raises:
        DatasetError: there is no checkpoint, or the data set has no held-out pictures.
        BundleError, GoldenMismatch: the quantized model does not work.
    """
    knobs = load_knobs(folder)
    network = load_checkpoint(folder, len(dataset.labels), knobs)
    train, held_out = dataset.splits["train"], with_references(dataset.splits["validation"])
    if not held_out:
        raise DatasetError(
            f"{dataset.root}: too few pictures to hold a tenth out for the threshold; at least 10 a group"
        )
    preprocessing, decoding = detector_preprocessing(knobs.channels), detector_decoding()
    drawn = calibration_set(train, len(dataset.labels), CALIBRATION_PICTURES, knobs.seed)
    training_pictures = read_pictures(drawn, knobs.channels, compares=knobs.reference)
    if calibration_folder is None:
        calibration, calibration_pictures = tuple(sample.name for sample in drawn), training_pictures
    elif knobs.reference:
        raise DatasetError(
            f"--calibration {calibration_folder}: a detector that compares is calibrated on pairs; leave the option "
            "out, so that pairs are drawn from the training split"
        )
    else:
        calibration, calibration_pictures = read_folder(calibration_folder, knobs.channels)
    say(f"quantizing, calibrated on {len(calibration)} pictures")
    draft = Draft(
        name=name,
        version=version,
        model=quantize(network, calibration_pictures, preprocessing),
        labels=dataset.labels,
        preprocessing=preprocessing,
        decoding=decoding,
        calibration=calibration,
        compares=knobs.reference,
    )
    created_at = datetime.now(UTC)
    deployed = draft.deployed(created_at)
    detectors: dict[str, Detector] = {
        "int8": deployed,
        "float": FloatDetector(network, dataset.labels, preprocessing, decoding),
    }
    say(f"scoring {len(held_out)} held-out pictures")
    scored = {
        ("validation", kind): score_samples(
            detector, held_out, dataset.labels, knobs.channels, compares=knobs.reference
        )
        for kind, detector in detectors.items()
    }
    thresholds = held_out_thresholds(scored["validation", "int8"])
    if test := dataset.splits["test"]:
        say(f"scoring {len(test)} test pictures")
        for kind, detector in detectors.items():
            scored["test", kind] = score_samples(
                detector, test, dataset.labels, knobs.channels, compares=knobs.reference
            )
    metrics = {
        f"{split}_{kind}": figures(items, dataset.labels, thresholds).flat() for (split, kind), items in scored.items()
    }
    cases, golden = golden_set(
        deployed, golden_candidates(dataset.splits["validation"], knobs.channels, compares=knobs.reference), thresholds
    )
    manifest = draft.manifest(created_at).model_copy(
        update={
            "thresholds": thresholds,
            "quality": quality_limits([together[0] for together in training_pictures]),
            "golden": cases,
            "metrics": metrics,
            "dataset": dataset_record(dataset),
            "configuration": json.loads((folder / "knobs.json").read_text(encoding="utf-8")),
        }
    )
    path = folder / f"{name}.bundle"
    bundle = write_bundle(path, manifest, draft.model, golden)
    record: dict[str, Any] = {"bundle": path.name, "sha256": bundle.sha256, "threshold": thresholds.default, **metrics}
    (folder / METRICS).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    for which, values in metrics.items():
        say(f"{which}: mAP {values['map']:.4f}, F {values['f_score']:.4f}")
    say(f"threshold {thresholds.default:.3f}: {thresholds.chosen_on}")
    say(f"wrote {path}, {path.stat().st_size} bytes, sha256 {bundle.sha256}")
    return path
