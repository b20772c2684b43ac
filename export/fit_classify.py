"""The first part of the task `classify`: what its options mean, and the way from class folders to a float network.

It needs neither TensorFlow nor LiteRT, and runs on each of Keras's backends that can train.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, get_args

from export.classifier import PRESETS, Preset, build_features
from export.plain_networks import PLAIN, plain_figures
from export.request import Request
from export.samples import DatasetError
from export.search import Material, search
from export.taps import TapStore
from export.train_classifier import (
    CHECKPOINT,
    ClassifierKnobs,
    ClassifierTraining,
    LoadedPicture,
    TrainedClassifier,
    classifier_preprocessing,
    completed,
    load_pictures,
)
from station.whole_file import write_whole

KNOBS = "knobs.json"

TEXTBOOK: Mapping[str, Any] = {"weight_decay": 0.0, "dropout": 0.0, "smoothing": 0.0, "looks": 1}
"""Of the plain networks, where nothing else is asked for: Adam on the cross-entropy, and early stopping."""

PLAIN_STEPS = 2000
"""They train for so many steps at least: with few pictures, epochs are short, and weights that start at random are
still far from anything after forty of them."""

PATIENT_SHARE = 0.25
"""Of the epochs: when so many have brought nothing, a plain network has learnt what it can."""


@dataclass(frozen=True, slots=True)
class FittedClassifier:
    """What is to be quantized.

    Attributes:
        knobs: with which it was trained.
        trained: the float network.
        others: headline figures of the plain networks that the report compares with.
    """

    knobs: ClassifierKnobs
    trained: TrainedClassifier
    others: Mapping[str, Mapping[str, float]]


def fit(request: Request) -> FittedClassifier:
    """Train or go on; what is finished in the folder is taken up as it is.

    Raises:
        DatasetError: the data or an option does not serve.
        TrainingError: the loss is not finite any more.
    """
    knobs = knobs_of(request)
    dataset = request.dataset
    settle_knobs(request.out, knobs)
    pictures = load_pictures(dataset.splits["train"], knobs.channels)
    held_out = load_pictures(dataset.splits["validation"], knobs.channels)
    if request.options.get("search"):

        def store_for(changed: ClassifierKnobs) -> TapStore | None:
            return _shared_store(request, changed, pictures)

        material = Material(pictures, held_out, dataset.labels, dataset.good, store_for)
        knobs = search(knobs, material, request.out, request.say)
    training = ClassifierTraining(
        pictures,
        held_out,
        dataset.labels,
        dataset.good,
        knobs,
        store=_shared_store(request, knobs, pictures),
        folder=request.out,
        say=request.say,
    )
    preprocessing = training.preprocessing
    size = "its own size" if preprocessing.scale == 1 else f"{preprocessing.scale:.3g} times its size"
    request.say(
        f"network: {knobs.preset}, {'colour' if knobs.channels == 3 else 'grey'}, "  # noqa: PLR2004
        f"each picture at {size}"
        if preprocessing.geometry != "resize"
        else f"network: {knobs.preset}, pictures squeezed to a small square"
    )
    trained = training.train()
    others: Mapping[str, Mapping[str, float]] = {}
    if request.compare:
        wanted = [_plain_knobs(request, preset) for preset in PLAIN if preset != knobs.preset]
        others = plain_figures(request, wanted, {knobs.channels: (pictures, held_out)})
    return FittedClassifier(knobs, trained, others)


def knobs_of(request: Request) -> ClassifierKnobs:
    """The knobs that a request resolves to.

    Raises:
        DatasetError: an option does not serve.
    """
    given = request.options
    defaults = ClassifierKnobs()
    preset = _preset(request.preset)
    rate: float | None = given.get("rate")
    changes: dict[str, Any] = {} if preset == "lite0" else _textbook(len(request.dataset.splits["train"]), defaults)
    changes |= {
        name: given[name]
        for name in ("optimizer", "weight_decay", "dropout", "prune", "patience", "views", "looks")
        if name in given
    }
    if "epochs" in given:
        changes |= dict.fromkeys(("epochs", "plain_epochs"), given["epochs"])
    if rate is not None:
        changes |= dict.fromkeys(("rate", "plain_rate"), rate)
    if preset != "lite0" and given.get("epochs") == 0:
        raise DatasetError(f"--epochs 0: the preset {preset} has no pretrained features; at least 1")
    if preset != "lite0" and given.get("search"):
        raise DatasetError(f"--search: the preset {preset} has a size and a rate of its own; leave the option out")
    if preset != "lite0" and given.get("prune"):
        raise DatasetError(
            f"--prune {given['prune']:g}: the preset {preset} has no channels inside of blocks; leave the option out"
        )
    if given.get("prune") and given.get("epochs") == 0:
        raise DatasetError(
            f"--prune {given['prune']:g}: --epochs 0 leaves out the fine-tuning that makes the loss good; at least 1"
        )
    if preset != "lite0" and request.size_px is not None:
        raise DatasetError(f"--size {request.size_px}: the preset {preset} has a size of its own; leave the option out")
    # The textbooks' 28×28 pictures are grey.
    colour = given.get("colour", request.dataset.channels == 3 and preset != "plain-b")  # noqa: PLR2004
    return replace(
        defaults,
        preset=preset,
        minutes=request.minutes,
        side_px=request.size_px,
        seed=request.seed,
        channels=3 if colour else 1,
        **changes,
    )


def _textbook(pictures: int, defaults: ClassifierKnobs) -> dict[str, Any]:
    epochs = max(defaults.plain_epochs, math.ceil(PLAIN_STEPS * defaults.batch / pictures))
    return {**TEXTBOOK, "plain_epochs": epochs, "patience": math.ceil(PATIENT_SHARE * epochs)}


def _plain_knobs(request: Request, preset: Preset) -> ClassifierKnobs:
    """What `--preset` would train with; the options that speak of another network's stages do not count."""
    shared = ("optimizer", "weight_decay", "dropout", "colour")
    options = {name: value for name, value in request.options.items() if name in shared}
    return knobs_of(replace(request, preset=preset, size_px=None, options=options))


def settle_knobs(folder: Path, knobs: ClassifierKnobs) -> None:
    """Write the knobs down, unless the folder holds a training with other ones: time and looks alone may change.

    Raises:
        DatasetError: it does.
    """
    path = folder / KNOBS
    stored = json.loads(json.dumps(asdict(knobs)))
    if path.is_file() and (folder / CHECKPOINT).is_file():
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as exc:
            raise DatasetError(f"{path}: cannot be read: {exc}; give another folder for --out") from exc
        # The looks come after the training.
        free = {"minutes": None, "looks": None}
        there, now = completed(before) | free, stored | free
        if there != now:
            differing = ", ".join(
                f"{name} {there.get(name)} there, {now.get(name)} now"
                for name in there | now
                if there.get(name) != now.get(name)
            )
            raise DatasetError(
                f"{folder}: holds a training with other knobs ({differing}); give the same options, or another folder "
                "for --out if the training is of an earlier version"
            )
    write_whole(path, (json.dumps(stored, indent=2) + "\n").encode())


def _preset(wanted: str | None) -> Preset:
    for preset in PRESETS:
        if wanted in {None, preset}:
            return preset
    raise DatasetError(f"--preset {wanted}: classify knows {', '.join(get_args(Preset))}")


def _shared_store(request: Request, knobs: ClassifierKnobs, pictures: list[LoadedPicture]) -> TapStore | None:
    """Kept views that the folds of a cross-validation share; their scale must be the same, too."""
    if knobs.preset != "lite0":
        return None
    preprocessing = classifier_preprocessing([item.pixels for item in pictures], knobs)
    key = f"views at {preprocessing.scale:.6f}"
    if key not in request.kept:
        request.kept[key] = TapStore(build_features(knobs.channels), preprocessing, knobs.view, knobs.seed)
    store: TapStore = request.kept[key]
    return store
