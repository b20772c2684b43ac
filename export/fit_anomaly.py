"""The first part of the task `anomaly`: from pictures of good parts to a float network that knows drawn defects.

It needs neither TensorFlow nor LiteRT, and runs on each of Keras's backends that can train.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from export.fit_classify import knobs_of, settle_knobs
from export.request import Request
from export.samples import DatasetError, Sample
from export.train_anomaly import anomaly_knobs, train_on_drawn
from export.train_classifier import ClassifierKnobs, LoadedPicture, TrainedClassifier, load_pictures


@dataclass(frozen=True, slots=True, eq=False)
class FittedAnomaly:
    """What the distribution of good patches is still to be added to.

    Attributes:
        knobs: with which it was trained.
        samples, good: the training split's good pictures.
        trained: the float network.
    """

    knobs: ClassifierKnobs
    samples: Sequence[Sample]
    good: Sequence[LoadedPicture]
    trained: TrainedClassifier


def fit(request: Request) -> FittedAnomaly:
    """Train or go on; what is finished in the folder is taken up as it is.

    Raises:
        DatasetError: the data or an option does not serve.
        TrainingError: the loss is not finite any more.
    """
    if request.preset not in {None, "lite0"}:
        raise DatasetError(f"--preset {request.preset}: anomaly knows lite0 only")
    dataset = request.dataset
    knobs = anomaly_knobs(knobs_of(request))
    settle_knobs(request.out, knobs)
    samples = [sample for sample in dataset.splits["train"] if sample.label == dataset.good]
    good = load_pictures(samples, knobs.channels)
    request.say(f"training on {len(good)} pictures of good parts")
    trained = train_on_drawn(good, knobs, folder=request.out, say=request.say)
    return FittedAnomaly(knobs, samples, good, trained)
