"""Look for the size, the rate and the regularization that suit the pictures, within a share of the time.

    station-export train DIR --search

First the size: at each, the head is fitted on features as they are, and its cross-entropy on parts that are left out in
turn says how well the size suits. Then short trainings with other rates and dropouts, each at its best on the held-out
pictures. The usual settings are tried first and stay unless others are better by a margin: with few held-out pictures
the best of several is partly luck. What was found is kept in the folder of the training, and not looked for again.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from export.taps import TapStore
from export.train_classifier import (
    ClassifierKnobs,
    ClassifierTraining,
    LoadedPicture,
    Say,
    completed,
    working_scale,
)
from export.train_cnn import TrainingError
from station.whole_file import write_whole

SHARE = 0.35
"""Of the minutes, for the search; without a limit of time it has `MINUTES`."""

MINUTES = 10.0
SIZES = (1.0, 0.7, 1.4)
"""Times the usual side."""

TRIALS = ((1.0, 0.2), (0.4, 0.2), (2.5, 0.2), (1.0, 0.5))
"""Times the usual rate, and dropout."""

SIZE_MARGIN = 0.03
"""By this share of its cross-entropy another size has to be better than the usual one."""

TRIAL_MARGIN = 0.01
"""By so much of the mean of macro-F1 and AUROC another trial has to be better than the usual one."""

RECORD = "search.json"


@dataclass(frozen=True, slots=True)
class Tried:
    """One attempt.

    Attributes:
        changes: knobs that differ.
        figure: cross-entropy in nats (size), or mean of macro-F1 and AUROC (rate and dropout).
        minutes: what it took.
    """

    changes: Mapping[str, Any]
    figure: float
    minutes: float


@dataclass(frozen=True, slots=True)
class Material:
    """What is trained on.

    Attributes:
        pictures, held_out: the splits.
        labels, good: class names, and the index of the class without defects.
        store_for: kept features for a size.
    """

    pictures: Sequence[LoadedPicture]
    held_out: Sequence[LoadedPicture]
    labels: tuple[str, ...]
    good: int | None
    store_for: Callable[[ClassifierKnobs], TapStore | None]


def search(knobs: ClassifierKnobs, material: Material, folder: Path, say: Say) -> ClassifierKnobs:
    """The knobs with what was found, and the minutes that are left.

    Args:
        knobs: where to start from; what was asked for there (a size) is not looked for.
        material: what is trained on.
        folder: keeps the record.
        say: takes the progress lines.

    Raises:
        DatasetError: there are fewer than two classes.
        TrainingError: the loss is not finite with the usual settings; another rate at which it is not is a bad one.
    """
    asked = json.loads(json.dumps(asdict(replace(knobs, minutes=None))))
    # The looks come after the training: with others the question is the same.
    del asked["looks"]
    path = folder / RECORD
    changes = _read(path, asked)
    minutes = SHARE * knobs.minutes if knobs.minutes else MINUTES
    if changes is None:
        seeker = _Seeker(knobs, material, say, time.monotonic() + 60 * minutes)
        changes = seeker.size() if knobs.side_px is None else {}
        changes = {**changes, **seeker.rate(changes)}
        content = {
            "asked": asked,
            "tried": [asdict(one) for one in seeker.tried],
            "changes": changes,
        }
        write_whole(path, (json.dumps(content, indent=2) + "\n").encode())
    say("search: " + (", ".join(f"{name} {value:.4g}" for name, value in changes.items()) or "the usual settings stay"))
    return replace(knobs, **changes, minutes=knobs.minutes - minutes if knobs.minutes else None)


class _Seeker:
    def __init__(self, knobs: ClassifierKnobs, material: Material, say: Say, until_s: float) -> None:
        self._knobs = knobs
        self._material = material
        self._say = say
        self._until_s = until_s
        self.tried: list[Tried] = []

    def size(self) -> dict[str, Any]:
        """Another size, or nothing."""
        pixels = [item.pixels for item in self._material.pictures]
        side = float(np.median(np.sqrt([one.shape[0] * one.shape[1] for one in pixels]))) * working_scale(pixels, None)
        half_s = (self._until_s - time.monotonic()) / 2
        began = time.monotonic()
        found: list[tuple[float, dict[str, Any]]] = []
        for factor in SIZES:
            spent_s = time.monotonic() - began
            # A size takes about as long as its area says.
            if found and spent_s / len(found) * max(1.0, factor**2) > half_s - spent_s:
                break
            changes: dict[str, Any] = {} if factor == 1 else {"side_px": round(side * factor)}
            knobs = replace(self._knobs, **changes, epochs=0, prune=0.0, views=1, minutes=None)
            training = self._train(knobs, [])
            found.append((training.head_loss, changes))
            self._record(changes, training.head_loss, "cross-entropy", time.monotonic() - began - spent_s)
        usual = found[0][0]
        loss, changes = min(found, key=lambda one: one[0])
        return changes if loss < (1 - SIZE_MARGIN) * usual else {}

    def rate(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        """Another rate or dropout, or nothing."""
        if not self._material.held_out or self._knobs.epochs == 0:
            return {}
        each_s = (self._until_s - time.monotonic()) / len(TRIALS)
        found: list[tuple[float, dict[str, Any]]] = []
        for factor, dropout in TRIALS:
            began = time.monotonic()
            own: dict[str, Any] = {}
            if factor != 1:
                own["rate"] = factor * self._knobs.rate
            if dropout != TRIALS[0][1]:
                own["dropout"] = dropout
            # The head's fit and the features come off the trial's time.
            knobs = replace(self._knobs, **changes, **own, prune=0.0, views=1, minutes=max(each_s, 1.0) / 60)
            try:
                reached = self._train(knobs, self._material.held_out).reached
            except TrainingError as exc:
                if not own:
                    raise
                self._say(f"search: {exc}")
                reached = 0.0
            if reached is None:
                return {}
            found.append((reached, own))
            self._record(own, reached, "mean of macro-F1 and AUROC", time.monotonic() - began)
        usual = found[0][0]
        reached, own = max(found, key=lambda one: one[0])
        return own if reached > usual + TRIAL_MARGIN else {}

    def _train(self, knobs: ClassifierKnobs, held_out: Sequence[LoadedPicture]) -> ClassifierTraining:
        material = self._material
        training = ClassifierTraining(
            material.pictures,
            held_out,
            material.labels,
            material.good,
            knobs,
            store=material.store_for(knobs),
            say=lambda line: self._say(f"search: {line}"),
        )
        training.train()
        return training

    def _record(self, changes: Mapping[str, Any], figure: float, name: str, seconds: float) -> None:
        self.tried.append(Tried(dict(changes), figure, seconds / 60))
        what = ", ".join(f"{knob} {value:.4g}" for knob, value in changes.items()) or "usual settings"
        self._say(f"search: {what}: {name} {figure:.3f}, {seconds / 60:.1f} min")


def _read(path: Path, asked: Mapping[str, Any]) -> dict[str, Any] | None:
    """What was found before for the same question; None: nothing."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        changes: dict[str, Any] = content["changes"]
        return changes if completed(content["asked"]) == asked else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
