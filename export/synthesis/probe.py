"""A small detector that is trained in seconds, to tell whether synthetic pictures help before a real training does.

The pretrained network stays as it is; only two small layers on its features learn which 8 px cells show a defect. A
picture's score is the mean of its highest cells.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import keras
import numpy as np
import numpy.typing as npt
from keras import layers

from export.classifier import build_trunk
from export.taps import Picture, Taps, TapStore
from export.train_classifier import ClassifierKnobs, classifier_preprocessing
from export.views import ViewKnobs

Floats = npt.NDArray[np.float32]

TOP_CELLS = 5
"""Cells whose mean is a picture's score: one alone would be a matter of luck."""

GOOD_CELLS = 80
HARD_CELLS = 20
"""Cells of each good picture that are learnt from: drawn ones, and in the second round those that scored highest."""

DEFECT_CELLS = 150
"""Cells with a defect of each picture, at most: one large defect must not stand for all."""

HIDDEN = 48
EPOCHS = 6
BATCH = 512
RATE = 1e-3


class Labelled(Picture, Protocol):
    """A picture that may show a defect."""

    @property
    def bad(self) -> bool:
        """Whether it does."""


@dataclass(frozen=True, slots=True)
class Head:
    """What was learnt, on features brought to one scale."""

    network: keras.Model
    mean: Floats
    deviation: Floats

    def score(self, cells: Floats) -> float:
        """Of one picture, from its cells `[rows × columns, features]`: the larger the more likely a defect."""
        logits = self.logits(cells)
        return float(np.sort(logits)[-TOP_CELLS:].mean())

    def logits(self, cells: Floats) -> Floats:
        """Of each cell."""
        scaled = (cells - self.mean) / self.deviation
        return np.asarray(self.network.predict_on_batch(scaled), np.float32)[:, 0]


class Probe:
    """Keeps the features of pictures, and trains heads on them.

    Args:
        pictures: those that set the working size.
        channels: 1 or 3.
        seed: of heads and draws.
    """

    def __init__(self, pictures: Sequence[npt.NDArray[np.uint8]], channels: int, seed: int) -> None:
        preprocessing = classifier_preprocessing(pictures, ClassifierKnobs(channels=3 if channels == 3 else 1))  # noqa: PLR2004
        self._store = TapStore(build_trunk(channels), preprocessing, ViewKnobs(), seed)

    def keep(self, pictures: Sequence[Picture]) -> None:
        """Compute the features of some pictures, unless they are there already; names tell them apart."""
        self._store.keep(pictures, 0, lambda _: None)

    def cells(self, picture: Picture) -> tuple[Floats, npt.NDArray[np.bool_]]:
        """A kept picture's features, `[rows × columns, 152]`, and which cells its mask touches."""
        taps = self._store.view(picture, 0)
        return joined(taps), covered(taps)

    def fit(self, pictures: Sequence[Labelled], seed: int, *, alike: bool = True) -> Head:
        """Learn from kept pictures: cells of defects against cells of good pictures, twice.

        The second time with those cells of good pictures that looked most like defects the first time.

        Args:
            pictures: with and without defects.
            seed: of weights and draws.
            alike: each picture with a defect weighs the same; else each cell does, and a patch counts for many cracks.
        """
        rng = np.random.default_rng((seed, 17))
        defects, goods = [], []
        for picture in pictures:
            cells, cover = self.cells(picture)
            if picture.bad:
                own = np.flatnonzero(cover)
                defects.append(cells[rng.permutation(own)[:DEFECT_CELLS]])
            else:
                goods.append(cells)
        if not defects or not goods:
            raise ValueError("a detector needs pictures with and without defects")
        positives = np.concatenate(defects)
        shares = np.concatenate(
            [np.full(len(cells), 1 / len(cells) if alike else 1) for cells in defects if len(cells)]
        )
        drawn = [cells[rng.permutation(len(cells))[:GOOD_CELLS]] for cells in goods]
        negatives = np.concatenate(drawn)
        first = _fit(positives, shares, negatives, seed)
        hardest = [cells[np.argsort(first.logits(cells))[-HARD_CELLS:]] for cells in goods]
        return _fit(positives, shares, np.concatenate([negatives, *hardest]), seed)

    def scores(self, head: Head, pictures: Sequence[Picture]) -> Floats:
        """Of each kept picture."""
        return np.array([head.score(self.cells(picture)[0]) for picture in pictures], np.float32)


def joined(taps: Taps) -> Floats:
    """Features at an eighth and a sixteenth of the resolution, the second repeated, for each cell."""
    fine = taps.fine.astype(np.float32)
    coarse = np.repeat(np.repeat(taps.coarse.astype(np.float32), 2, axis=0), 2, axis=1)
    both = np.concatenate([fine, coarse[: fine.shape[0], : fine.shape[1]]], axis=-1)
    return both.reshape(-1, both.shape[-1])


def covered(taps: Taps) -> npt.NDArray[np.bool_]:
    """Which cells the picture's mask touches."""
    rows, columns = taps.fine.shape[:2]
    return np.zeros(rows * columns, np.bool_) if taps.cover is None else taps.cover.reshape(-1).astype(np.bool_)


def recall_at(bad: Floats, limit: float) -> float:
    """Share of pictures with defects that score above a limit."""
    return float((bad > limit).mean()) if len(bad) else float("nan")


def limit_for(good: Floats, false_rejects: float) -> float:
    """The smallest score that at most this share of good pictures is above."""
    allowed = int(np.floor(false_rejects * len(good)))
    return float(np.sort(good)[len(good) - 1 - allowed])


def mean_recall(by_class: Mapping[str, Floats], limit: float) -> float:
    """Mean of the classes' recalls: a class of many pictures counts as much as one of few."""
    return float(np.mean([recall_at(scores, limit) for scores in by_class.values()]))


def _fit(positives: Floats, shares: npt.NDArray[np.float64], negatives: Floats, seed: int) -> Head:
    keras.utils.set_random_seed(seed)
    every = np.concatenate([positives, negatives])
    mean, deviation = every.mean(axis=0), every.std(axis=0) + 1e-3
    inputs = (every - mean) / deviation
    targets = np.concatenate([np.ones(len(positives)), np.zeros(len(negatives))]).astype(np.float32)
    # Both sides weigh the same, however many cells they have.
    weights = np.concatenate([shares / shares.sum(), np.full(len(negatives), 1 / len(negatives))]) * len(every) / 2
    network = keras.Sequential(
        [
            keras.Input((every.shape[1],)),
            layers.Dropout(0.1),
            layers.Dense(HIDDEN, activation="relu"),
            layers.Dropout(0.3),
            layers.Dense(1),
        ]
    )
    network.compile(
        keras.optimizers.AdamW(RATE, weight_decay=0.01), loss=keras.losses.BinaryCrossentropy(from_logits=True)
    )
    network.fit(inputs, targets, sample_weight=weights, batch_size=BATCH, epochs=EPOCHS, verbose=0)
    return Head(network, mean, deviation)
