"""Quantize the checkpoint of a training, score it on held-out pictures and write its bundle.

    station-export package --data DIR --out DIR

OUT is the folder of `station-export train`, finished or interrupted. The threshold is chosen on the held-out tenth of
trainval; float and int8 figures on that part and on the test split go into the manifest, metrics.json and report.html.
Where int8 is, for certain, worse than float by more than 0.005 of a headline figure, or judges more than 1 % of the
pictures differently, no bundle is written unless --allow-regression is given.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from export.backend import refuse_other_backends
from export.calibration_set import CALIBRATION_PICTURES, calibration_set
from export.cnn import FloatDetector
from export.comparison import LayerError
from export.dataset import Dataset, DatasetError, read_dataset
from export.finish import Candidate, Demands, finish
from export.folder_lock import alone_in
from export.layer_errors import LAYER_PICTURES, layer_errors
from export.package import Draft, detector_decoding, detector_preprocessing, quality_limits
from export.quantize import (
    INPUT_NAMES,
    padded_size,
    quantize,
    read_folder,
    read_pictures,
    serving_network,
)
from export.rule_options import add_rule_arguments, refuse_rule, rule_of
from export.train_cnn import load_checkpoint, load_knobs
from station.manifest import Preprocessing
from station.messages import Pixels
from station.preprocess import write_input


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="the labelled folder it was trained on")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the folder of the training")
    add_bundle_arguments(parser)
    add_rule_arguments(parser)


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
    parser.add_argument(
        "--allow-regression", action="store_true", help="write the bundle even if int8 is worse than float by too much"
    )


def run(arguments: argparse.Namespace) -> int:
    """Package."""
    refuse_other_backends("package")
    rule = rule_of(arguments)
    if not arguments.out.is_dir():
        raise DatasetError(f"{arguments.out}: is not the folder of a training; train first")
    dataset = read_dataset(arguments.data)
    if rule is not None:
        refuse_rule(rule, dataset, "detect")
    # A training that is at work would replace the checkpoint, and then the bundle, under its hands.
    with alone_in(arguments.out):
        write_from(
            arguments.out,
            dataset,
            arguments.name,
            arguments.version,
            print,
            calibration_folder=arguments.calibration,
            demands=Demands(allow_regression=arguments.allow_regression, rule=rule),
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
    demands: Demands | None = None,
) -> Path:
    """Make the bundle of the checkpoint that stands in a folder; returns the bundle's path.

    The quantization's ranges come from the PNG pictures of `calibration_folder`, or from training pictures. The limits
    of the quality gate come from training pictures in either case.

    Raises:
        DatasetError: there is no checkpoint, or the data set has no held-out pictures.
        QuantizationLoss: int8 is worse than float by more than the limits, and `demands` does not allow it.
        BundleError, GoldenMismatch: the quantized model does not work.
    """
    knobs = load_knobs(folder)
    network = load_checkpoint(folder, len(dataset.labels), knobs)
    train = dataset.splits["train"]
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
    size = padded_size(calibration_pictures[0][0], preprocessing)
    names = INPUT_NAMES[: len(calibration_pictures[0])]

    def layers() -> Sequence[LayerError]:
        shown = [
            {name: _padded(pixels, size, preprocessing) for name, pixels in zip(names, together, strict=True)}
            for together in training_pictures[:LAYER_PICTURES]
        ]
        return layer_errors(serving_network(network, size, names, preprocessing.channels), draft.model, shown)

    return finish(
        Candidate(
            draft=draft,
            exact=FloatDetector(network, dataset.labels, preprocessing, decoding),
            quality=quality_limits([together[0] for together in training_pictures]),
            configuration=json.loads((folder / "knobs.json").read_text(encoding="utf-8")),
            layers=layers,
        ),
        dataset,
        folder,
        say,
        demands,
    )


def _padded(pixels: Pixels, size: tuple[int, int], preprocessing: Preprocessing) -> Pixels:
    tensor = np.empty((*size, preprocessing.channels), np.uint8)
    write_input(np.ascontiguousarray(pixels[: size[0], : size[1]]), tensor, preprocessing)
    return tensor[None]
