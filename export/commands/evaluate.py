"""Score a bundle on a labelled folder, through the deployed path: bundle, LiteRT, decoding.

    station-export evaluate BUNDLE --data DIR --split test --json

A detection is right at an intersection over union above 0.33 with a box of the same class. mAP is the mean over the
classes of the area under the precision-recall points; the F-score is taken at the bundle's thresholds.
"""

import argparse
import json
import sys
from pathlib import Path

from export.dataset import SPLITS, DatasetError, read_dataset
from export.evaluate import count_frames, figures, score_samples
from station.adapters.litert_model import load_model
from station.manifest import read_bundle


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="the bundle file")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="the labelled folder")
    parser.add_argument("--split", choices=SPLITS, default="test", help="which part of it (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="of the runtime (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(arguments: argparse.Namespace) -> int:
    """Evaluate and print."""
    bundle = read_bundle(arguments.bundle)
    model = load_model(bundle, arguments.threads)
    manifest = bundle.manifest
    dataset = read_dataset(arguments.data)
    if dataset.labels != manifest.labels:
        raise DatasetError(
            f"{arguments.data}: its labels {', '.join(dataset.labels)} "
            f"are not the bundle's {', '.join(manifest.labels)}"
        )
    scored = score_samples(
        model, dataset.splits[arguments.split], dataset.labels, manifest.preprocessing.channels, _progress
    )
    result = figures(scored, dataset.labels, manifest.thresholds)
    rejected, good, missed, bad = count_frames(scored, manifest.thresholds)
    values = result.flat() | {"good_rejected": rejected, "good": good, "bad_missed": missed, "bad": bad}
    if arguments.json:
        names = {"bundle": bundle.ref.name, "sha256": bundle.sha256, "split": arguments.split}
        print(json.dumps({**names, "threshold": manifest.thresholds.default, **values}))
        return 0
    print(f"{bundle.ref.name} {bundle.ref.version} on {result.pictures} pictures with {result.defects} defects")
    print(f"mAP {result.mean_average_precision:.4f}   pooled AP {result.pooled_average_precision:.4f}")
    for label, value in result.average_precision.items():
        print(f"  {label:12} AP {value:.4f}")
    print(
        f"F {result.f_score:.4f} at threshold {manifest.thresholds.default:.3f} "
        f"(precision {result.precision:.4f}, recall {result.recall:.4f})"
    )
    print(f"pictures: {rejected} of {good} good rejected, {missed} of {bad} bad missed")
    print(f"{result.frames_per_s:.0f} pictures/s from decoded pixels to boxes, {arguments.threads} thread")
    return 0


def _progress(done: int, total: int) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(f"\r{done}/{total}" + ("\n" if done == total else ""))
