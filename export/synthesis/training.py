"""Synthetic pictures for a training: made from its training split, and kept beside its result."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from export.request import Request
from export.samples import Dataset, DatasetError, Sample
from export.synthesis.make import Order, gather, make, with_synthetic, write
from export.synthesis.methods import AUTO, CHOICE, METHODS, NEED_NO_PLACE, NONE, QUICK, Method
from export.synthesis.pick import WORTH, pick
from export.train_classifier import CHECKPOINT
from export.train_gan import GanKnobs
from station.whole_file import write_whole

FOLDER = "synthetic"
GAN_FOLDER = "gan"
GAN_SHARE = 0.4
"""Of a training's minutes, for the network that makes its pictures."""

Say = Callable[[str], None]
Result = TypeVar("Result")


def add_to_training(
    dataset: Dataset, wanted: str, count: int, seed: int, out: Path, say: Say, minutes: float | None = None
) -> Dataset:
    """The data set with synthetic pictures of its defects in the training split.

    Args:
        dataset: real pictures; its splits are final.
        wanted: name of a method, or `auto`.
        count: pictures of each class of defects.
        seed: of everything that is drawn.
        out: the training's folder; it receives the pictures in `synthetic` and `synthesis.json`, which says what was
            picked and why. A network that was trained before is found in `gan`.
        say: takes lines for people.
        minutes: for a network to learn; None: as long as `station-export synthesize` gives it.

    Raises:
        DatasetError: a class cannot be learnt, a network collapsed, or the folder holds a training with other
            synthetic pictures.
    """
    folder = out / FOLDER
    before = _settle(out, wanted, count, seed)
    classes = _defects(dataset, wanted)
    _tell_of_others(dataset, classes, say)
    gan = replace(GanKnobs(), minutes=minutes) if minutes else GanKnobs()
    order = Order(classes, count, seed=seed)
    method, reason = _choice_of(before, wanted) or _choose(dataset, wanted, order, say)
    # Before the pictures are made: where that is interrupted, the same command goes on.
    record = {"wanted": wanted, "method": method or NONE, "count": count, "seed": seed, **reason}
    write_whole(out / CHOICE, (json.dumps(record, indent=2) + "\n").encode())
    shutil.rmtree(folder, ignore_errors=True)
    samples: list[Sample] = []
    if method is not None:
        order = replace(order, method=method, gan=gan)
        names = ", ".join(dataset.labels[label] for label in classes)
        say(f"making {count} pictures of each of {names}: {method}, {METHODS[method]}")
        material = gather(dataset, classes, seed)
        samples = write(folder, dataset, order, make(dataset, material, order, folder=out / GAN_FOLDER, say=say))
    return with_synthetic(dataset, samples)


def synthesizing(train: Callable[[Request], Result]) -> Callable[[Request], Result]:
    """The same training with the pictures that `Request.synthesis` asks for.

    They are made from that training's own split: each fold of a cross-validation has its own.
    """

    def train_with_more(request: Request) -> Result:
        if request.synthesis is None:
            return train(request)
        wanted, count = request.synthesis
        minutes = None
        if request.minutes and wanted == "gan":
            minutes = min(GAN_SHARE * request.minutes, GanKnobs().minutes)
        more = add_to_training(request.dataset, wanted, count, request.seed, request.out, request.say, minutes)
        left = request.minutes - minutes if request.minutes and minutes else request.minutes
        return train(replace(request, dataset=more, minutes=left))

    return train_with_more


def _settle(out: Path, wanted: str, count: int, seed: int) -> dict[str, Any] | None:
    """What was made in the folder before, the same that is asked for now; None: nothing."""
    path = out / CHOICE
    begun = (out / CHECKPOINT).is_file()
    try:
        before: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if begun:
            raise DatasetError(
                f"{out}: holds a training without synthetic pictures; give another folder for --out"
            ) from None
        return None
    except (OSError, ValueError) as exc:
        raise DatasetError(f"{path}: cannot be read: {exc}; give another folder for --out") from exc
    asked = {"wanted": wanted, "count": count, "seed": seed}
    if any(before.get(name) != value for name, value in asked.items()):
        if begun:
            raise DatasetError(
                f"{out}: holds a training with other synthetic pictures ({before.get('wanted')}, {before.get('count')} "
                "of each class); give the same, or another folder for --out"
            )
        return None
    return before


def _choice_of(before: dict[str, Any] | None, wanted: str) -> tuple[Method | None, dict[str, Any]] | None:
    """What `auto` picked before, with the figures that it was picked by."""
    if before is None or wanted != AUTO:
        return None
    method = next((method for method in METHODS if method == before.get("method")), None)
    return method, {"recalls": before.get("recalls", {})}


def _tell_of_others(dataset: Dataset, classes: list[int], say: Say) -> None:
    """Name the defects that none are made of."""
    shown = {sample.label for sample in dataset.splits["train"] if sample.label is not None} - {dataset.good}
    others = sorted(dataset.labels[label] for label in shown - set(classes))
    if others:
        say(f"none are made of {', '.join(others)}: no training picture of it has a mask or a box")


def _choose(dataset: Dataset, wanted: str, order: Order, say: Say) -> tuple[Method | None, dict[str, Any]]:
    for method in METHODS:
        if wanted == method:
            return method, {}
    assert wanted == AUTO
    picked = pick(dataset, order, QUICK, order.seed, say)
    means = {name: sum(values) / len(values) for name, values in picked.recalls.items()}
    told = ", ".join(f"{name} {mean:.2f}" for name, mean in sorted(means.items(), key=lambda item: -item[1]))
    why = f", since no way gains {100 * WORTH:g} points without a loss in any fold" if picked.method == NONE else ""
    say(f"synthesis: {picked.method}{why} (defects found by a quick detector at 5 % false rejects: {told})")
    chosen = next((method for method in METHODS if method == picked.method), None)
    return chosen, {"recalls": {name: list(values) for name, values in picked.recalls.items()}}


def _defects(dataset: Dataset, wanted: str) -> list[int]:
    """Classes of defects that stand in the training split, and whose place is labelled where that has to be known."""
    train = dataset.splits["train"]
    boxed = {int(label) for sample in train for label in sample.classes}
    shown = {sample.label for sample in train if sample.label is not None}
    labelled = {sample.label for sample in train if sample.label is not None and sample.mask is not None}
    classes = sorted(((shown if wanted in NEED_NO_PLACE else labelled) | boxed) - {dataset.good})
    if not classes:
        raise DatasetError(
            f"{dataset.root}: no training picture says by a mask or a box where its defect is, and --synthesize "
            f"{wanted} needs that; draw a mask for each (NAME_mask.png beside NAME.jpg, white where the defect is), "
            "take --synthesize procedural, which draws defects and needs none, or leave it out"
        )
    return classes
