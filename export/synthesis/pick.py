"""Pick a way to make synthetic pictures by cross-validation on the training split, or none."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from export.dataset import DatasetError, read_mask, read_sample
from export.samples import Dataset, Sample
from export.splits import draw_splits
from export.synthesis.make import Made, Order, gather, make
from export.synthesis.methods import NONE, Method
from export.synthesis.probe import Floats, Probe, limit_for, mean_recall
from export.views import Mask
from station.messages import Pixels

FALSE_REJECTS = 0.05
FOLDS = 3
WORTH = 0.02
"""Mean recall that a method must gain over none to be picked: less is luck, and synthetic pictures cost time."""

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """A picture in memory, real or synthetic."""

    sample: Sample
    pixels: Pixels
    mask: Mask | None
    label: int | None
    bad: bool


@dataclass(frozen=True, slots=True)
class Picked:
    """What cross-validation says.

    Attributes:
        method: see `decide`.
        recalls: method → recall of each fold, mean over the classes, where at most `FALSE_REJECTS` of the good parts
            of another fold are rejected.
    """

    method: str
    recalls: Mapping[str, Sequence[float]] = field(default_factory=dict)


def pick(dataset: Dataset, order: Order, methods: Sequence[Method], seed: int, say: Say) -> Picked:
    """Try each method, and none, on parts of the training split that were not learnt from.

    Raises:
        DatasetError: the training split has too few parts for it.
    """
    real = [sample for sample in dataset.splits["train"] if sample.synthetic is None]
    parts = _parts(dataset, real, order.classes, seed)
    seen = {sample.name: look_at(dataset, sample) for sample in real}
    probe = Probe([one.pixels for one in seen.values()], dataset.channels, seed)
    probe.keep(list(seen.values()))
    recalls: dict[str, list[float]] = {}
    for number in range(FOLDS):
        test = [sample for sample in real if parts[sample.name] == number]
        calibration = [sample for sample in real if parts[sample.name] == (number + 1) % FOLDS]
        names = {sample.name for sample in test}
        # Good parts of another fold set the limit; its defects are learnt from, since they are few.
        learn = [
            sample
            for sample in real
            if sample.name not in names and (sample.label != dataset.good or sample not in calibration)
        ]
        part = replace(dataset, splits={"train": learn, "validation": [], "test": test})
        material = gather(part, order.classes, seed)
        for method in (None, *methods):
            extra: list[Seen] = []
            if method is not None:
                wanted = replace(order, method=method, seed=order.seed + number)
                made = make(part, material, wanted, say=lambda _: None)
                extra = [synthetic(dataset, one, f"{method}-{number}-{index}") for index, one in enumerate(made)]
                probe.keep(extra)
            head = probe.fit([*(seen[sample.name] for sample in learn), *extra], seed)
            good = [seen[sample.name] for sample in calibration if sample.label == dataset.good]
            limit = limit_for(probe.scores(head, good), FALSE_REJECTS)
            by_class: dict[str, Floats] = {}
            for label in order.classes:
                own = [seen[sample.name] for sample in test if sample.label == label]
                if own:
                    by_class[dataset.labels[label]] = probe.scores(head, own)
            name = method or NONE
            recalls.setdefault(name, []).append(mean_recall(by_class, limit))
            say(f"fold {number + 1} of {FOLDS}, {name}: finds {recalls[name][-1]:.2f} of the defects")
    return Picked(decide(recalls), recalls)


def decide(recalls: Mapping[str, Sequence[float]]) -> str:
    """The method that gains most over none, by `WORTH` at least and without a loss in any fold; else none.

    Args:
        recalls: method, `none` among them → recall of each fold.
    """
    gains = {method: np.subtract(values, recalls[NONE]) for method, values in recalls.items()}
    # What helps on the mean and harms in a fold would as easily harm in the training.
    safe = {method: float(gain.mean()) for method, gain in gains.items() if gain.min() >= 0 and gain.mean() >= WORTH}
    return max(safe, key=lambda method: safe[method], default=NONE)


def look_at(dataset: Dataset, sample: Sample) -> Seen:
    """Read a real picture with its mask."""
    mask: npt.NDArray[np.bool_] | None = read_mask(sample.mask) if sample.mask is not None else None
    return Seen(sample, read_sample(sample, dataset.channels), mask, sample.label, sample.label != dataset.good)


def synthetic(dataset: Dataset, made: Made, name: str) -> Seen:
    """A synthetic picture, under a name by which its features are kept."""
    like = replace(dataset.samples[0], name=name, synthetic=made.learnt_from)
    return Seen(like, made.pixels, made.mask, made.label, True)


def _parts(dataset: Dataset, real: Sequence[Sample], classes: Sequence[int], seed: int) -> dict[str, int]:
    """Number of a fold for each sample: whole groups, every class in each."""
    for label in classes:
        groups = {sample.group for sample in real if sample.label == label}
        if len(groups) < FOLDS:
            raise DatasetError(
                f"{dataset.root}: {dataset.labels[label]} has {len(groups)} parts in the training split; to compare "
                f"ways of synthesis {FOLDS} are needed; name one instead: --synthesize classical"
            )
    left = list(real)
    parts: dict[str, int] = {}
    for number in range(FOLDS - 1):
        share = 1 / (FOLDS - number)
        drawn = draw_splits(left, seed + number, {"train": 1 - share, "test": share})
        parts |= {sample.name: number for sample in left if drawn[sample.name] == "test"}
        left = [sample for sample in left if drawn[sample.name] == "train"]
    return parts | {sample.name: FOLDS - 1 for sample in left}
