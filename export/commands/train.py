"""Train a detector on a labelled folder, quantize it, score it on held-out pictures and write its bundle.

    station-export train --task detect --data DIR --out DIR --steps 20000 --seed 0

DIR holds trainval.txt, test.txt, pictures and label files in the DeepPCB layout. OUT receives NAME.bundle,
metrics.json, knobs.json and checkpoint.npz. The same command goes on after an interruption; a tenth of trainval is
held out.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from export.augment import Augmentation
from export.cnn import DetectorWidths
from export.commands.package import add_bundle_arguments, write_from
from export.dataset import read_dataset
from export.train_cnn import TrainingKnobs, train_detector


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    knobs = TrainingKnobs()
    parser.add_argument("--task", choices=["detect"], default="detect", help="what to train (default: detect)")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="the labelled folder")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="receives the bundle and the figures")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--steps", type=_positive_int, metavar="N", help=f"length of the run (default: {knobs.steps})")
    length.add_argument("--minutes", type=_positive, metavar="M", help="time budget of the training instead of steps")
    parser.add_argument("--seed", type=int, default=knobs.seed, help="of weights and crops (default: %(default)s)")
    parser.add_argument("--batch", type=_positive_int, default=knobs.batch, help="crops a step (default: %(default)s)")
    parser.add_argument(
        "--crop",
        type=_positive_int,
        default=knobs.augmentation.crop_px,
        metavar="PX",
        help="edge of a crop, a multiple of 16 (default: %(default)s)",
    )
    parser.add_argument(
        "--peak-rate", type=_positive, default=knobs.peak_rate, help="largest learning rate (default: %(default)s)"
    )
    parser.add_argument(
        "--photometric",
        type=float,
        default=knobs.augmentation.photometric_share,
        metavar="SHARE",
        help="crops that get another exposure, blur and noise; 0 for none (default: %(default)s)",
    )
    parser.add_argument(
        "--precision",
        choices=["float32", "mixed_bfloat16"],
        default=knobs.precision,
        help="number format of the training (default: %(default)s)",
    )
    parser.add_argument(
        "--reference",
        action="store_true",
        help="compare each picture with its reference, the same place without defects (a second input of the bundle)",
    )
    parser.add_argument("--colour", action="store_true", help="train on colour pictures (default: grey)")
    widths = DetectorWidths()
    parser.add_argument(
        "--widths",
        type=_positive_int,
        nargs=3,
        default=[widths.stem, widths.fine, widths.coarse],
        metavar=("STEM", "FINE", "COARSE"),
        help="channels at 1/4, 1/8 and 1/16 of the resolution (default: 32 64 96)",
    )
    add_bundle_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Train and package."""
    stem, fine, coarse = arguments.widths
    widths = replace(DetectorWidths(), stem=stem, fine=fine, coarse=coarse)
    if arguments.reference:
        widths = replace(widths, head_convolutions=widths.head_convolutions - 1)
    knobs = TrainingKnobs(
        steps=None if arguments.minutes else arguments.steps or TrainingKnobs().steps,
        minutes=arguments.minutes,
        batch=arguments.batch,
        peak_rate=arguments.peak_rate,
        precision=arguments.precision,
        channels=3 if arguments.colour else 1,
        reference=arguments.reference,
        seed=arguments.seed,
        widths=widths,
        augmentation=replace(Augmentation(), crop_px=arguments.crop, photometric_share=arguments.photometric),
    )
    dataset = read_dataset(arguments.data)
    print(", ".join(f"{name}: {len(samples)} pictures" for name, samples in dataset.splits.items()), flush=True)
    train_detector(dataset.splits["train"], len(dataset.labels), knobs, arguments.out, _say)
    write_from(
        arguments.out, dataset, arguments.name, arguments.version, _say, calibration_folder=arguments.calibration
    )
    return 0


def _say(line: str) -> None:
    print(line, flush=True)


def _positive(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise ValueError
    return value


def _positive_int(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError
    return value
