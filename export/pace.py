"""The pace of a stage of training: how long it goes on, how fast it learns, and when it has learnt enough."""

import math
import time
from dataclasses import dataclass
from typing import Any

import keras

SAY_EVERY_S = 10.0
"""So often a training says how far it is."""


@dataclass(frozen=True, slots=True)
class Length:
    """How long fine-tuning takes where the knobs name no epochs.

    Attributes:
        shown_px: pixels that it shows: the same time whatever the pictures' size and number.
        least, most: epochs, so that it is not too few of a large set or too many of a small one.
    """

    shown_px: float
    least: int
    most: int

    def epochs(self, area_px: float) -> int:
        """For pictures of so many pixels, on the network's input, all together."""
        return min(max(round(self.shown_px / area_px), self.least), self.most)


class StageClock:
    """Time that a stage has taken, over all of its runs."""

    def __init__(self, spent_s: float, limit_s: float) -> None:
        """Go on.

        Args:
            spent_s: in earlier runs.
            limit_s: that the stage may take in all; infinite: as long as it wants.
        """
        self._began = time.monotonic() - spent_s
        self._said = time.monotonic()
        self.limit_s = limit_s

    @property
    def spent_s(self) -> float:
        """In this run and the earlier ones."""
        return time.monotonic() - self._began

    @property
    def share(self) -> float:
        """Of the limit that is spent."""
        return self.spent_s / self.limit_s

    @property
    def over(self) -> bool:
        """Whether the limit is reached."""
        return self.spent_s >= self.limit_s

    def due(self) -> bool:
        """Whether it is time for another line."""
        if time.monotonic() - self._said < SAY_EVERY_S:
            return False
        self._said = time.monotonic()
        return True


class EarlyStopping:
    """Keeps the weights with the least validation loss, and says when nothing better is to come."""

    def __init__(self, patience: int) -> None:
        """Begin with nothing seen; patience: epochs without a better loss that are enough, 0: never."""
        self.patience = patience
        self._waited = 0
        self._least: tuple[float, list[Any]] | None = None

    @property
    def settled(self) -> bool:
        """Whether the patience is at its end."""
        return 0 < self.patience <= self._waited

    def look(self, loss: float, model: keras.Model) -> None:
        """Take note of an epoch's loss, and of the weights that gave it where it is the least so far."""
        if self._least is None or loss < self._least[0]:
            self._least, self._waited = (loss, model.get_weights()), 0
        else:
            self._waited += 1

    def put_back(self, model: keras.Model) -> None:
        """Give a model the best weights, if any were looked at."""
        if self._least is not None:
            model.set_weights(self._least[1])


def rate_at(peak: float, done: float) -> float:
    """The learning rate at a share of the stage, 0..1: rises over the first tenth, then falls to a hundredth.

    It falls along a cosine (Loshchilov & Hutter, ICLR 2017, "SGDR", without restarts).
    """
    return peak * min(1.0, done / 0.1 + 0.02) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))
