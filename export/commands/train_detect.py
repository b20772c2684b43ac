"""The task `detect`: the way from labelled boxes to a bundle."""

from pathlib import Path

from export.commands.package import write_from
from export.finish import Demands
from export.fit_detect import fit
from export.request import Request


def train(request: Request) -> Path:
    """Train or go on, quantize and write the bundle.

    Raises:
        DatasetError: the data or an option does not serve; see `train_detector` and `write_from`.
        TrainingError: the loss is not finite any more.
    """
    fit(request)
    return write_from(
        request.out,
        request.dataset,
        request.name,
        request.version,
        request.say,
        calibration_folder=request.options.get("calibration"),
        demands=Demands(allow_regression=request.allow_regression, rule=request.rule),
    )
