"""The two networks that textbooks start from, trained and tested on the same pictures: what a report compares with."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from export.classifier import PRESETS, FloatClassifier, Preset
from export.evaluate import score_samples
from export.evaluation import Task, evaluate
from export.request import Request
from export.samples import SPLITS, Dataset
from export.train_classifier import ClassifierKnobs, ClassifierTraining, LoadedPicture, completed, load_pictures
from export.train_cnn import TrainingError
from station.manifest import ClassDecoding, Thresholds
from station.whole_file import write_whole

PLAIN: tuple[Preset, ...] = tuple(preset for preset in PRESETS if preset.startswith("plain"))

SHARE = 0.03
"""Of the training's minutes, for each of them."""

MOST_MINUTES = 1.0
"""For each of them, up to `SMALL_SET` training pictures; in proportion beyond."""

LEAST_MINUTES = 0.12
"""With less, building the graph is all that there is time for, and the figures would be those of chance."""

SMALL_SET = 2000

RECORD = "plain.json"
"""In the folder of the training: what is known already is not trained again."""

MINUTES = "minutes"
CUT_SHORT = "cut_short"
"""Stand among the figures: how long the training took, and whether (1) its time was up before it had learnt all."""


def plain_figures(
    request: Request, wanted: Sequence[ClassifierKnobs], loaded: Mapping[int, tuple[list[LoadedPicture], ...]]
) -> Mapping[str, Mapping[str, float]]:
    """Train and test each plain network, in float; says in one line why where there is nothing to compare.

    Args:
        request: of the classifier beside which they stand; its test pictures are scored.
        wanted: the plain networks' knobs; the minutes are those of the whole training, of which each gets `SHARE`.
        loaded: channels → training and validation pictures, as far as they are in memory; others are read.

    Returns:
        Preset → headline figures on the test pictures, `MINUTES` and `CUT_SHORT`.

    Raises:
        DatasetError: a picture cannot be read.
        OSError: the record cannot be written.
    """
    dataset = request.dataset
    if reason := _too_small(dataset, request.minutes):
        request.say(f"plain networks: left out of the report, {reason}")
        return {}
    path = request.out / RECORD
    known = _read(path)
    for knobs in wanted:
        # More minutes alone do not make another comparison, and the split is settled in the folder.
        settled = json.loads(json.dumps(asdict(replace(knobs, minutes=None))))
        settled["train_pictures"] = len(dataset.splits["train"])
        if known.get(knobs.preset, {}).get("knobs") != settled:
            figures = _train(request, knobs, loaded)
            known[knobs.preset] = {"knobs": settled, "figures": figures}
            write_whole(path, (json.dumps(known, indent=2) + "\n").encode())
    return {knobs.preset: figures for knobs in wanted if (figures := known[knobs.preset]["figures"])}


def plain_minutes(minutes: float | None, pictures: int) -> float:
    """How long each plain network may train.

    Args:
        minutes: of the whole training; None where nothing limits it.
        pictures: training pictures.
    """
    most = MOST_MINUTES * max(1.0, pictures / SMALL_SET)
    return most if minutes is None else min(SHARE * minutes, most)


def _too_small(dataset: Dataset, minutes: float | None) -> str:
    for split in SPLITS:
        if len({sample.label for sample in dataset.splits[split]}) < 2:  # noqa: PLR2004
            return f"since the split {split} has pictures of fewer than two classes"
    if plain_minutes(minutes, len(dataset.splits["train"])) < LEAST_MINUTES:
        return f"since {minutes:.2g} minutes of training leave no time for them; {LEAST_MINUTES / SHARE:g} or more do"
    return ""


def _train(
    request: Request, knobs: ClassifierKnobs, loaded: Mapping[int, tuple[list[LoadedPicture], ...]]
) -> dict[str, float]:
    dataset = request.dataset

    def say(line: str) -> None:
        request.say(f"for comparison, {knobs.preset}: {line}")

    train, validation = loaded.get(knobs.channels) or (
        load_pictures(dataset.splits[split], knobs.channels) for split in SPLITS[:2]
    )
    knobs = replace(knobs, minutes=plain_minutes(request.minutes, len(train)))
    began = time.monotonic()
    try:
        trained = ClassifierTraining(train, validation, dataset.labels, dataset.good, knobs, say=say).train()
    except TrainingError as exc:
        say(f"left out of the report: {exc}")
        return {}
    minutes = (time.monotonic() - began) / 60
    network = FloatClassifier(
        trained.network, dataset.labels, dataset.good_label, trained.preprocessing, ClassDecoding(), trained.to_real
    )
    scored = score_samples(network, dataset.splits["test"], dataset.labels, knobs.channels)
    # None of the headline figures depends on a threshold.
    result = evaluate(
        scored, Task("classify", dataset.labels, dataset.good), Thresholds(default=0.5), intervals=False
    ).headline()
    return result | {MINUTES: round(minutes, 2), CUT_SHORT: float(minutes >= (knobs.minutes or minutes))}


def _read(path: Path) -> dict[str, Any]:
    """What is known; a file that cannot be read is made anew."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return {
            preset: one | {"knobs": completed(one["knobs"])}
            for preset, one in record.items()
            if isinstance(one["figures"], dict)
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
