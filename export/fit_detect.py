"""The first part of the task `detect`: what its options mean, and the way from labelled boxes to a float network.

It needs neither TensorFlow nor LiteRT, and runs on each of Keras's backends that can train.
"""

import statistics
from dataclasses import replace

from export.augment import Augmentation
from export.cnn import DetectorWidths
from export.request import Request
from export.samples import Dataset, DatasetError
from export.train_cnn import TrainingKnobs, train_detector

_CROP_MULTIPLE_PX = 16
_LEAST_CROP_PX = 64


def fit(request: Request) -> None:
    """Train or go on; the network stands in the folder's checkpoint.

    Raises:
        DatasetError: the data or an option does not serve; see `train_detector`.
        TrainingError: the loss is not finite any more.
    """
    if request.preset is not None:
        raise DatasetError(f"--preset {request.preset}: detect has one network; leave the option out, or give --widths")
    given = request.options
    widths = DetectorWidths()
    if "widths" in given:
        stem, fine, coarse = given["widths"]
        widths = replace(widths, stem=stem, fine=fine, coarse=coarse)
    compares = bool(given.get("reference"))
    if compares:
        widths = replace(widths, head_convolutions=widths.head_convolutions - 1)
    defaults = TrainingKnobs()
    knobs = replace(
        defaults,
        steps=given.get("steps"),
        minutes=None if "steps" in given else request.minutes,
        batch=given.get("batch", defaults.batch),
        peak_rate=given.get("peak_rate", defaults.peak_rate),
        precision=given.get("precision", defaults.precision),
        channels=3 if given.get("colour", request.dataset.channels == 3) else 1,  # noqa: PLR2004
        reference=compares,
        seed=request.seed,
        widths=widths,
        augmentation=replace(
            defaults.augmentation,
            crop_px=request.size_px or _crop_px(request.dataset, defaults.augmentation),
            photometric_share=given.get("photometric", defaults.augmentation.photometric_share),
        ),
    )
    request.say(
        f"network: the dense detector, on {'colour' if knobs.channels == 3 else 'grey'} crops of "  # noqa: PLR2004
        f"{knobs.augmentation.crop_px}×{knobs.augmentation.crop_px} px; the bundle takes whole pictures"
    )
    train_detector(request.dataset.splits["train"], len(request.dataset.labels), knobs, request.out, request.say)


def _crop_px(dataset: Dataset, augmentation: Augmentation) -> int:
    """The usual crop, or as much as small pictures fill."""
    edges = [max(facts.width_px, facts.height_px) for facts in dataset.facts.values()]
    filled = -(-round(statistics.median(edges)) // _CROP_MULTIPLE_PX) * _CROP_MULTIPLE_PX
    return min(augmentation.crop_px, max(filled, _LEAST_CROP_PX))
