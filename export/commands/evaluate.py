"""Score a bundle on a labelled folder, through the deployed path: bundle, LiteRT, decoding.

    station-export evaluate BUNDLE --data DIR --split test --json
    station-export evaluate BUNDLE --data NEW --split all --report OUT

DIR is any labelled folder that `station-export train` takes; its labels must be the bundle's, or some of them. A
picture is bad when a defect is labelled in it, and rejected when the station would not call it ok. Of a detector, a
box is right at an intersection over union above 0.33 with a labelled one of the same class; mAP is the mean over the
classes of the area under the precision-recall points; the F-score is taken at the bundle's thresholds.
"""

import argparse
import json
import sys
from pathlib import Path

from export.dataset import SPLITS, read_dataset
from export.evaluate import rescore, score_samples
from export.evaluation import ALL, FIGURE_NAMES, Evaluation, evaluate, for_bundle, pictures_of, task_of
from export.option_types import count_from
from export.process_arguments import add_log_arguments
from export.process_commands import run_evaluation
from export.progress import ProgressLine
from export.report import Report, write_report
from export.thresholds import overlap_warning, percent
from export.trained_on import count_trained_on
from station.adapters.litert_model import load_model
from station.manifest import read_bundle
from station.process_bundle import is_process_bundle


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="the bundle file")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="the labelled folder")
    parser.add_argument(
        "--split", choices=[*SPLITS, ALL], default="test", help="which part of it (default: %(default)s)"
    )
    parser.add_argument(
        "--threads", type=count_from(1), metavar="N", default=1, help="of the runtime (default: %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_log_arguments(parser)
    parser.add_argument(
        "--report", type=Path, metavar="DIR", help="write report.html, its pictures and metrics.json into this folder"
    )


def run(arguments: argparse.Namespace) -> int:
    """Evaluate and print."""
    if is_process_bundle(arguments.bundle):
        return run_evaluation(arguments)
    bundle = read_bundle(arguments.bundle)
    manifest = bundle.manifest
    dataset = for_bundle(manifest, read_dataset(arguments.data))
    samples = pictures_of(dataset, arguments.split)
    # The map takes time that the station does not spend; the figures need it only where there are masks.
    model = load_model(bundle, arguments.threads, heatmap=any(sample.mask for sample in samples))
    channels = manifest.preprocessing.channels
    scored = score_samples(
        model, samples, dataset.labels, channels, ProgressLine("scoring"), compares=manifest.compares
    )
    result = evaluate(scored, task_of(manifest, dataset), manifest.thresholds)
    warnings = list(overlap_warning(count_trained_on(manifest, dataset, samples), len(samples)))
    if arguments.report is not None:
        shown = load_model(bundle, arguments.threads, heatmap=True)
        path = write_report(
            arguments.report,
            Report(
                manifest=manifest,
                sha256=bundle.sha256,
                bundle_bytes=arguments.bundle.stat().st_size,
                dataset=dataset,
                split=arguments.split,
                scored=scored,
                evaluation=result,
                explain=lambda sample: rescore(shown, sample, channels, compares=manifest.compares),
                warnings=warnings,
                configuration=manifest.configuration,
            ),
        )
        sys.stderr.write(f"wrote {path}\n")
    if arguments.json:
        names = {"bundle": bundle.ref.name, "sha256": bundle.sha256, "split": arguments.split}
        print(json.dumps({**names, **result.record()}))
        return 0
    print(f"{bundle.ref.name} {bundle.ref.version}, {manifest.task}, on {result.pictures} pictures ({arguments.split})")
    for line in (*describe(result), *(f"warning: {text}" for text in warnings)):
        print(line)
    print(f"{result.frames_per_s:.0f} pictures/s from decoded pixels to scores, {arguments.threads} thread")
    return 0


def describe(result: Evaluation) -> list[str]:
    """The figures as lines for people."""
    lines = []
    if result.counts is not None:
        lines.append(f"at threshold {result.threshold:.4g}: {result.counts.with_intervals()}")
    lines.append("   ".join(f"{FIGURE_NAMES[name]} {value:.4f}" for name, value in result.headline().items()))
    if result.boxes is not None:
        boxes = result.boxes
        lines.append(f"{boxes.defects} defects: precision {boxes.precision:.4f}, recall {boxes.recall:.4f}")
        lines += [f"  {label:14} AP {value:.4f}" for label, value in boxes.average_precision.items()]
    elif result.task.kind == "classify":
        lines += [
            f"  {one.label:14} {one.pictures:5} pictures   precision {one.precision:.3f}   recall {one.recall:.3f}   "
            f"F1 {one.f1:.3f}"
            for one in result.classes
        ]
    else:
        lines += [f"  {one.label:14} {one.caught} of {one.pictures} caught" for one in result.caught]
    if result.peaks is not None:
        on_mask, of = result.peaks
        lines.append(
            f"the map is strongest on the mask in {on_mask} of {of} detected pictures ({percent(on_mask / of)})"
        )
    return [line for line in lines if line]
