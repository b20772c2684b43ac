"""Fit the classifier's head on features that stay as they are.

A head that is trained step by step learns a few dozen parts by heart long before it has learnt what a defect is. A
linear one is fitted to the optimum in seconds, and how simple it must be is found on parts that were left out:

- The map: each cell's features, of all resolutions, tell its class. Where masks show the defects they teach it; where
  only the picture's class is known, all of its cells are taken for defects at first, then those that looked most like
  it (self-training, as multiple-instance learning does: Andrews et al., NIPS 2002).
- The picture's logits: the largest, least and mean value of each feature, and of the map. The map's values are those
  that a map gives which was fitted without this part (stacking, Wolpert, Neural Networks 5, 1992); its values on the
  parts that it was fitted on would be too good.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from export.classifier import LATERALS, MAP_CELLS, MAPS, Statistics, readings
from export.logistic import Linear, best_penalty, fit
from export.taps import Taps

Floats = npt.NDArray[np.float32]

PARTS = 3
"""Into so many the groups are dealt; each is left out in turn."""

CELL_VIEWS = 2
"""Of each picture, for the map; its cells are many as it is."""

DEFECT_CELLS = 40
BESIDE_CELLS = 8
GOOD_CELLS = 12
"""Cells of one view: on a defect, beside it, of a good picture."""

ROUNDS = 2
LIKELY_SHARE = 0.15
"""Of the cells of a picture without a mask: so many show its defect, in each round of self-training."""

USUAL = 0.995
"""Share of cells without a defect that the map calls good: it is fitted on cells of which a third show one."""

CELL_PENALTY = 0.01
MAP_WEIGHT = 3.0
"""The map's values are few and say much: the penalty holds them back less than the features."""

_LEAST_DEVIATION = 1e-2


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """A picture with its kept views.

    Attributes:
        label: its class.
        group: pictures of the same part have the same one.
        views: at least one.
    """

    label: int
    group: str
    views: Sequence[Taps]


@dataclass(frozen=True, slots=True, eq=False)
class Head:
    """What was fitted.

    Attributes:
        cells: from a cell's features to the map's logits.
        pooled: from the pooled features, in the order of `readings`, to the picture's logits.
        mean: of the pooled features.
        penalty: that was chosen.
        loss: cross-entropy on parts that were left out, in nats, classes weighted.
    """

    cells: Linear
    pooled: Linear
    mean: npt.NDArray[np.float64]
    penalty: float
    loss: float


def fit_head(
    pictures: Sequence[Seen],
    labels: int,
    good: int | None,
    weights: Sequence[float],
    statistics: Statistics,
    seed: int,
    say: Callable[[str], None],
) -> Head:
    """Fit map and logits.

    Args:
        pictures: of at least two classes.
        labels: how many classes there are.
        good: the class without defects.
        weights: of a picture of each class.
        statistics: that bring the features to one scale.
        seed: of what is drawn.
        say: takes the progress lines.
    """
    fitter = _Fitter(pictures, labels, good, statistics, seed)
    everything = range(len(pictures))
    parts = _deal([item.group for item in pictures], seed)
    by_map: dict[tuple[int, int], Floats] = {}
    for part in np.unique(parts):
        say(f"fitting the map without part {part + 1} of {PARTS}")
        rest = [index for index in everything if parts[index] != part]
        cells = fitter.fit_cells(rest if fitter.has_two(rest) else everything)
        for index in everything:
            if parts[index] == part:
                by_map |= {(index, view): fitter.pool_map(index, view, cells) for view in fitter.views(index)}
    say("fitting map and logits")
    cells = fitter.fit_cells(everything)
    keys = list(by_map)
    features = np.stack([np.concatenate([fitter.pool(*key), by_map[key]]) for key in keys])
    owners = np.array([index for index, _ in keys])
    truth = np.array([pictures[index].label for index in owners], np.int64)
    mean = features.mean(axis=0)
    scale = 1 / (features.std(axis=0) + _LEAST_DEVIATION)
    scale[-by_map[keys[0]].size :] *= MAP_WEIGHT
    scaled = (features - mean) * scale
    importance = np.array([weights[pictures[index].label] / len(pictures[index].views) for index in owners])
    penalty, loss = best_penalty(scaled, truth, importance, labels, parts[owners])
    found = fit(scaled, truth, importance, labels, penalty)
    return Head(cells, Linear(found.kernel * scale[:, None], found.bias), np.asarray(mean, np.float64), penalty, loss)


def put_head(network: keras.Model, head: Head) -> None:
    """Give a network of `build_classifier` the weights of a head."""
    start = 0
    for number, (lateral, name) in enumerate(zip(LATERALS, MAPS, strict=True)):
        width = network.get_layer(lateral).output.shape[-1]
        # Depth to space with equal copies is enlargement.
        kernel = np.tile(head.cells.kernel[start : start + width], (1, 4**number))
        network.get_layer(name).set_weights([kernel[None, None], np.zeros(kernel.shape[1])])
        start += width
    sums = network.get_layer("map")
    sums.set_weights([sums.get_weights()[0], head.cells.bias])
    start = 0
    names = readings()
    for name in names:
        layer = network.get_layer(f"logits_{name}")
        stop = start + layer.get_weights()[0].shape[0]
        kernel = head.pooled.kernel[start:stop]
        # Each of them has a mean of zero: large ones that cancel would lose what int8 cannot hold.
        bias = -head.mean[start:stop] @ kernel + head.pooled.bias * (name == names[-1])
        layer.set_weights([kernel, bias])
        start = stop


class _Fitter:
    """Features of cells and pictures, brought to one scale."""

    def __init__(
        self, pictures: Sequence[Seen], labels: int, good: int | None, statistics: Statistics, seed: int
    ) -> None:
        self._pictures = pictures
        self._labels = labels
        self._good = good
        self._defects = [label for label in range(labels) if label != good]
        self._statistics = statistics
        self._seed = seed

    def views(self, index: int) -> range:
        """Numbers of a picture's views."""
        return range(len(self._pictures[index].views))

    def has_two(self, chosen: Sequence[int]) -> bool:
        """Whether these pictures are of two classes at least."""
        return len({self._pictures[index].label for index in chosen}) > 1

    def pool(self, index: int, view: int) -> Floats:
        """The pooled features of a view, in the order of `readings`, without the map's."""
        scaled = self._scaled(self._pictures[index].views[view])
        pools = [[x.max(axis=(0, 1)) for x in scaled], [x.min(axis=(0, 1)) for x in scaled]]
        pools.append([x.mean(axis=(0, 1)) for x in scaled])
        return np.concatenate([np.concatenate(values) for values in pools])

    def pool_map(self, index: int, view: int, cells: Linear) -> Floats:
        """The largest and the mean value of the map of a view, for each kind of defect."""
        found = self._map(self._pictures[index].views[view], cells)
        return np.concatenate([found.max(axis=(0, 1)), found.mean(axis=(0, 1))]).astype(np.float32)

    def fit_cells(self, chosen: Sequence[int]) -> Linear:
        """Fit the map on some pictures."""
        cells = None
        unmasked = any(
            self._pictures[index].label != self._good and view.cover is None
            for index in chosen
            for view in self._pictures[index].views[:CELL_VIEWS]
        )
        for _ in range(1 + ROUNDS if unmasked else 1):
            rng = np.random.default_rng((self._seed, 19))
            drawn = [
                self._draw(self._pictures[index].label, view, cells, rng)
                for index in chosen
                for view in self._pictures[index].views[:CELL_VIEWS]
            ]
            features = np.concatenate([part for part, _ in drawn])
            truth = np.concatenate([label for _, label in drawn])
            counts = np.bincount(truth, minlength=self._labels)
            model = fit(features, truth, 1.0 / counts[truth], self._labels, CELL_PENALTY)
            usual = self._good if self._good is not None else slice(None)
            kernel = model.kernel[:, self._defects] - np.mean(np.atleast_2d(model.kernel.T[usual]), axis=0)[:, None]
            cells = Linear(kernel, self._prior(features @ kernel, truth))
        assert cells is not None
        return cells

    def _prior(self, values: npt.NDArray[Any], truth: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """Biases with which few cells without the defect are taken for one, as few as there are in a picture."""
        return np.array(
            [
                -np.quantile(values[truth == self._good if self._good is not None else truth != label, number], USUAL)
                for number, label in enumerate(self._defects)
            ]
        )

    def _draw(
        self, label: int, taps: Taps, cells: Linear | None, rng: np.random.Generator
    ) -> tuple[Floats, npt.NDArray[np.int64]]:
        """Some cells of a view, and their classes."""
        grid = self._cells(taps)
        flat = grid.reshape(-1, grid.shape[-1])
        order = rng.permutation(len(flat))
        if label == self._good:
            return flat[order[:GOOD_CELLS]], np.full(min(GOOD_CELLS, len(flat)), label, np.int64)
        if taps.cover is not None and taps.cover.any():
            covered = taps.cover.reshape(-1)[order] > 0
            shown = order[covered][:DEFECT_CELLS]
            beside = order[~covered][:BESIDE_CELLS] if self._good is not None else order[:0]
        elif cells is not None:
            likely = max(4, round(LIKELY_SHARE * len(flat)))
            values = self._map(taps, cells)[..., self._defects.index(label)].reshape(-1)
            shown, beside = rng.permutation(np.argsort(values)[-likely:])[:DEFECT_CELLS], order[:0]
        else:
            shown, beside = order[:DEFECT_CELLS], order[:0]
        usual = label if self._good is None else self._good
        truth = np.concatenate([np.full(len(shown), label), np.full(len(beside), usual)])
        return flat[np.concatenate([shown, beside])], truth.astype(np.int64)

    def _map(self, taps: Taps, cells: Linear) -> Floats:
        """As the network computes it, `[rows, columns, kinds of defects]`."""
        scaled = self._scaled(taps)
        rows, columns = scaled[0].shape[:2]
        total = np.broadcast_to(cells.bias.astype(np.float32), (rows, columns, len(cells.bias)))
        start = 0
        for number, x in enumerate(scaled):
            kernel = cells.kernel[start : start + x.shape[-1]].astype(np.float32)
            total = total + _enlarged(x @ kernel, 2**number)[:rows, :columns]
            start += x.shape[-1]
        return _box_mean(total)

    def _cells(self, taps: Taps) -> Floats:
        """Features of each cell, all resolutions joined and averaged as the map is, `[rows, columns, features]`."""
        scaled = self._scaled(taps)
        rows, columns = scaled[0].shape[:2]
        enlarged = [_enlarged(x, 2**number)[:rows, :columns] for number, x in enumerate(scaled)]
        return _box_mean(np.concatenate(enlarged, axis=-1))

    def _scaled(self, taps: Taps) -> list[Floats]:
        assert taps.deep is not None, "the head needs features of all resolutions"
        statistics = self._statistics
        return [
            (x.astype(np.float32) - mean) / deviation
            for x, mean, deviation in zip(
                (taps.fine, taps.coarse, taps.deep), statistics.means, statistics.deviations, strict=True
            )
        ]


def _deal(groups: Sequence[str], seed: int) -> npt.NDArray[np.int64]:
    """A part for each group, in about equal numbers of groups."""
    names = sorted(set(groups))
    order = np.random.default_rng((seed, 23)).permutation(len(names))
    part = {names[index]: number % PARTS for number, index in enumerate(order)}
    return np.array([part[name] for name in groups], np.int64)


def _enlarged(x: Floats, ratio: int) -> Floats:
    return np.asarray(x.repeat(ratio, axis=0).repeat(ratio, axis=1), np.float32)


def _box_mean(x: Floats) -> Floats:
    """Mean over the cells around each, of those that there are, as average pooling takes it."""
    rows, columns = x.shape[:2]
    reach = MAP_CELLS // 2
    padded = np.pad(x, ((reach, reach), (reach, reach), (0, 0)))
    ones = np.pad(np.ones((rows, columns, 1), np.float32), ((reach, reach), (reach, reach), (0, 0)))
    window = [(row, column) for row in range(MAP_CELLS) for column in range(MAP_CELLS)]
    total = sum(padded[row : row + rows, column : column + columns] for row, column in window)
    count = sum(ones[row : row + rows, column : column + columns] for row, column in window)
    return np.asarray(total / count, np.float32)
