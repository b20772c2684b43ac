"""Choose a bundle's threshold anew, on pictures that training never saw, and say it in counts.

    station-export threshold BUNDLE --data DIR --max-false-reject 0.01 --out NEW.bundle
    station-export threshold BUNDLE --data NEW --split all --max-miss 0 --out NEW.bundle
    station-export threshold BUNDLE --data DIR --costs 1:50 --bad-share 0.02 --out NEW.bundle

Nothing is trained: the model's bytes stay, the threshold, its counts and the golden set are new. Give one of three
rules: the largest share of good parts that may be rejected (then as few bad ones as possible are missed), the largest
share of bad parts that may be missed (then as few good ones as possible are rejected), or what a false reject and a
miss cost. Without a rule both rates count the same. Pictures of good parts alone will do: then the limit is set by the
largest share that may be rejected (default 0.01). Warnings say what so few pictures cannot show.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np

from export.dataset import SPLITS, Sample, read_dataset
from export.evaluate import score_samples
from export.evaluation import ALL, choose_for, for_bundle, pictures_of, task_of
from export.package import golden_candidates, golden_set, write_bundle
from export.progress import ProgressLine
from export.rule_options import add_rule_arguments, rule_of
from export.samples import with_references
from export.thresholds import overlap_warning
from export.trained_on import count_trained_on
from station.adapters.litert_model import load_model
from station.manifest import Bundle, Thresholds, read_bundle
from station.messages import Pixels


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="the bundle file")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="labelled folder")
    parser.add_argument(
        "--split",
        choices=[*SPLITS, ALL],
        default="validation",
        help="which part of it; all for a folder of pictures that are new to the model (default: %(default)s)",
    )
    add_rule_arguments(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="BUNDLE", help="the file to write")


def run(arguments: argparse.Namespace) -> int:
    """Score, choose, write."""
    rule = rule_of(arguments)
    bundle = read_bundle(arguments.bundle)
    manifest = bundle.manifest
    dataset = for_bundle(manifest, read_dataset(arguments.data))
    task = task_of(manifest, dataset)
    samples = pictures_of(dataset, arguments.split)
    model = load_model(bundle)
    # A board's own reference is a good part of the same kind.
    scored = score_samples(
        model,
        with_references(samples),
        dataset.labels,
        manifest.preprocessing.channels,
        ProgressLine("scoring"),
        compares=manifest.compares,
    )
    choice = choose_for(scored, task, manifest, rule)
    where = f"{len(scored)} pictures ({arguments.data.name}, {arguments.split})"
    thresholds = Thresholds(default=choice.threshold, chosen_on=f"{where}, {choice.text}")
    candidates = _candidates(bundle, samples)
    cases, golden = golden_set(model, candidates, thresholds)
    changed = manifest.model_copy(update={"thresholds": thresholds, "golden": cases})
    written = write_bundle(arguments.out, changed, bundle.model, golden, bundle.extra)
    print(f"before: {manifest.thresholds.default:.4g}")
    print(f"{where}\n{choice.text}")
    for warning in (*overlap_warning(count_trained_on(manifest, dataset, samples), len(samples)), *choice.warnings):
        print(f"warning: {warning}")
    print(f"wrote {arguments.out}, {arguments.out.stat().st_size} bytes, sha256 {written.sha256}")
    return 0


def _candidates(bundle: Bundle, samples: Sequence[Sample]) -> Iterator[tuple[Pixels, ...]]:
    """The new pictures, for an anomaly model marked ones, too; then the old golden ones.

    Good parts alone would leave no defect among them, and the old ones may be none by a higher threshold.
    """
    manifest = bundle.manifest
    yield from golden_candidates(
        samples,
        manifest.preprocessing.channels,
        compares=manifest.compares,
        marked=manifest.task == "anomaly",
    )
    for case in manifest.golden:
        yield tuple(_decode(bundle.golden[name]) for name in (case.file, case.reference) if name is not None)


def _decode(encoded: bytes) -> Pixels:
    return np.asarray(cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_UNCHANGED), np.uint8)
