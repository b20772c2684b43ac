"""Teach a recurrent network on scaled sensor logs: to forecast, or to tell labelled faults.

    station-export train --task forecast --data LOGS --out OUT

The knobs stand at the top. Windows of `ticks` are drawn at random from the runs (a run has no gap); each member of the
network is blind to its own stretch of them. Channels are dropped at random, so that a missing one is nothing new.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import keras
import numpy as np
import numpy.typing as npt

from export.rnn import NetworkShape, build
from export.samples import DatasetError
from station.adapters.litert_step import MASK, VALUES, LitertStep
from station.process_bundle import Cell

Floats = npt.NDArray[np.float64]
Singles = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class RecurrentKnobs:
    """The training of one network.

    Attributes:
        cell: `gru`, `lstm` or `simple_rnn`.
        horizons: ticks ahead of the forecasts; the first is for the eye and the comparison with the last value, the
            others make the risk.
        members, units: of the network; see `export.rnn`.
        ticks: length of a window.
        settle: ticks of a window that count for nothing, while the state fills.
        batch, steps: windows a step; steps.
        peak_rate: of Adam, or of RMSprop for `simple_rnn`; falls to zero along a cosine, after a short rise.
        decay: weight of the squared weights in the loss; see `decay_for`.
        noise: added to the scaled readings.
        drop_share: of the channels, for a whole window.
        input_clip: readings beyond ± this many scales are cut, so that the network is never driven far from home.
        target_clip: the same for what it has to forecast.
        seed: of weights, windows and noise.
    """

    cell: Cell = "gru"
    horizons: tuple[int, ...] = (1, 20, 40)
    members: int = 4
    units: int = 16
    ticks: int = 96
    settle: int = 8
    batch: int = 8
    steps: int = 300
    peak_rate: float = 5e-3
    decay: float = 1e-4
    noise: float = 0.3
    drop_share: float = 0.1
    input_clip: float = 4.0
    target_clip: float = 6.0
    seed: int = 0


def decay_for(ticks: int) -> float:
    """Weight decay as a prior that fades as the data grows: 0.4 / ticks, to half a decade, from 1e-5 to 1e-3."""
    return float(np.clip(10 ** (round(2 * np.log10(0.4 / max(ticks, 1))) / 2), 1e-5, 1e-3))


def default_knobs(cell: Cell, **changes: object) -> RecurrentKnobs:
    """The knobs of a cell; `simple_rnn` is taught as textbooks begin, with RMSprop at 1e-3."""
    rate = {"peak_rate": 1e-3} if cell == "simple_rnn" else {}
    return RecurrentKnobs(**{"cell": cell, **rate, **changes})  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class ScaledRun:
    """A stretch of ticks without a gap.

    Attributes:
        values: float64 `[ticks, channels]`, scaled; 0 where the mask is False.
        mask: `[ticks, channels]`.
        fold: int `[ticks]`: the member that is blind to each tick.
        faulty: float64 `[ticks]`: 1 fault, 0 none, NaN not labelled.
    """

    values: Floats
    mask: Bools
    fold: npt.NDArray[np.int64]
    faulty: Floats


def fold_of(lengths: Sequence[int], members: int) -> list[npt.NDArray[np.int64]]:
    """Divide runs into as many stretches of time as there are members, by order."""
    total = sum(lengths)
    fold = np.minimum(np.arange(total) * members // max(total, 1), members - 1)
    return [part.astype(np.int64) for part in np.split(fold, np.cumsum(lengths)[:-1])]


class Teacher:
    """One network, compiled once, that can be taught anew on any runs of the same channels.

    Args:
        shape: with horizons a forecast is learned, without ones the labels are.
        knobs: see there.
        ticks: length of a window; at most that of the longest run.

    Raises:
        DatasetError: a window of that length leaves nothing to learn.
    """

    def __init__(self, shape: NetworkShape, knobs: RecurrentKnobs, ticks: int) -> None:
        ahead = max(shape.horizons, default=0)
        if ticks <= knobs.settle + ahead:
            raise DatasetError(
                f"the longest stretch without a gap has {ticks} ticks; more than {knobs.settle + ahead} are needed"
            )
        self._shape, self._knobs, self._ticks = shape, knobs, ticks
        keras.utils.set_random_seed(knobs.seed)
        self._network = build(shape, ticks, knobs.seed, knobs.decay)
        rate = keras.optimizers.schedules.CosineDecay(
            knobs.peak_rate / 20,
            decay_steps=max(knobs.steps - 20, 1),
            warmup_target=knobs.peak_rate,
            warmup_steps=min(20, knobs.steps // 2),
        )
        kind = keras.optimizers.RMSprop if shape.cell == "simple_rnn" else keras.optimizers.Adam
        self._optimizer = kind(rate, clipnorm=1.0)
        self._optimizer.build(self._network.trainable_variables)
        loss = _forecast_loss(shape) if shape.horizons else _fault_loss(shape)
        self._network.compile(optimizer=self._optimizer, loss=loss, jit_compile=True)
        # With the state of the noise's generator, so that the same runs give the same network again.
        variables = (*self._network.variables, *self._optimizer.variables)
        self._fresh = [(variable, variable.numpy()) for variable in variables]

    def teach(self, runs: Sequence[ScaledRun]) -> tuple[keras.Model, float]:
        """Teach it from the beginning; the network is the teacher's own and changes with the next call.

        Returns:
            The network, and the loss over the whole training.
        """
        for variable, start in self._fresh:
            variable.assign(start)
        inputs, targets = _windows(runs, self._shape, self._knobs, self._ticks)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            history = self._network.fit(
                inputs, targets, batch_size=self._knobs.batch, epochs=1, shuffle=False, verbose=0
            )
        return self._network, float(history.history["loss"][-1])


def roll_out(step: LitertStep, run: ScaledRun, input_clip: float) -> Floats:
    """Output of the step at each tick of a run, from a fresh state: `[ticks, outputs]`."""
    values = np.clip(run.values, -input_clip, input_clip).astype(np.float32)
    mask = run.mask.astype(np.float32)
    step.reset()
    return np.stack([step.step(row, good) for row, good in zip(values, mask, strict=True)])


def _windows(
    runs: Sequence[ScaledRun], shape: NetworkShape, knobs: RecurrentKnobs, ticks: int
) -> tuple[dict[str, Singles], Singles]:
    """Draw the windows of the whole training: inputs, and targets with their weights behind them."""
    generator = np.random.default_rng((knobs.seed, 7))
    starts = np.array([max(len(run.values) - ticks + 1, 0) for run in runs], np.float64)
    count = knobs.steps * knobs.batch
    chosen = generator.choice(len(runs), count, p=starts / starts.sum())
    first = (generator.random(count) * starts[chosen]).astype(int)
    kept: Bools = np.ones((count, 1, shape.channels), np.bool_)
    kept[generator.random(kept.shape) < knobs.drop_share] = False
    lone = np.flatnonzero(np.count_nonzero(kept, axis=2)[:, 0] == 0)
    kept[lone, 0, generator.integers(0, shape.channels, len(lone))] = True
    values = np.empty((count, ticks, shape.channels), np.float32)
    mask = np.empty_like(values)
    width = shape.outputs + (shape.outputs + shape.members * max(len(shape.horizons), 1))
    targets = np.zeros((count, ticks, width), np.float32)
    makers = [_targets(run, shape, knobs) for run in runs]
    for place, (which, begin) in enumerate(zip(chosen, first, strict=True)):
        window = slice(begin, begin + ticks)
        mask[place] = runs[which].mask[window] & kept[place]
        values[place] = np.clip(runs[which].values[window], -knobs.input_clip, knobs.input_clip) * mask[place]
        targets[place] = makers[which][window]
    targets[:, : knobs.settle, shape.outputs :] = 0
    return {VALUES: values, MASK: mask}, targets


def _targets(run: ScaledRun, shape: NetworkShape, knobs: RecurrentKnobs) -> Singles:
    """`[ticks, outputs + outputs + members × horizons]`: what is to be told, where that is known, and to whom."""
    ticks = len(run.values)
    blind = np.stack([run.fold == member for member in range(shape.members)], axis=1)
    if not shape.horizons:
        known = np.isfinite(run.faulty)
        return np.concatenate(
            [np.nan_to_num(run.faulty)[:, None], known[:, None], ~blind], axis=1, dtype=np.float32, casting="unsafe"
        )
    wanted = np.zeros((ticks, len(shape.horizons), shape.channels), np.float32)
    known = np.zeros_like(wanted)
    open_to = np.zeros((ticks, len(shape.horizons), shape.members), np.float32)
    for place, horizon in enumerate(shape.horizons):
        if horizon < ticks:
            wanted[:-horizon, place] = np.clip(run.values[horizon:], -knobs.target_clip, knobs.target_clip)
            known[:-horizon, place] = run.mask[horizon:]
            open_to[:-horizon, place] = ~blind[horizon:]
    return np.concatenate([table.reshape(ticks, -1) for table in (wanted, known, open_to)], axis=1)


def _forecast_loss(shape: NetworkShape) -> Callable[[object, object], object]:
    """Pseudo-Huber loss (Charbonnier et al., 1994): quadratic near, linear far, so that outliers do not rule."""
    horizons, channels, members, outputs = len(shape.horizons), shape.channels, shape.members, shape.outputs
    ops = keras.ops

    def loss(packed: object, told: object) -> object:
        lead = ops.shape(packed)[:2]
        wanted = ops.reshape(packed[..., :outputs], (*lead, 1, horizons, channels))  # type: ignore[index]
        known = ops.reshape(packed[..., outputs : 2 * outputs], (*lead, 1, horizons, channels))  # type: ignore[index]
        open_to = ops.reshape(packed[..., 2 * outputs :], (*lead, horizons, members))  # type: ignore[index]
        open_to = ops.expand_dims(ops.transpose(open_to, (0, 1, 3, 2)), -1)
        error = ops.reshape(told, (*lead, members, horizons, channels)) - wanted
        weight = known * open_to
        # The sum over members, not the mean: they share no weights, so each learns as if it were alone.
        return ops.sum((ops.sqrt(1 + error * error) - 1) * weight) * members / (ops.sum(weight) + 1e-6)

    return loss


def _fault_loss(shape: NetworkShape) -> Callable[[object, object], object]:
    """Cross-entropy, with both kinds of ticks of equal weight."""
    ops = keras.ops

    def loss(packed: object, told: object) -> object:
        faulty, known, open_to = packed[..., :1], packed[..., 1:2], packed[..., 2:]  # type: ignore[index]
        weight = known * open_to
        share = ops.sum(faulty * weight) / (ops.sum(weight) + 1e-6)
        balance = ops.where(faulty > 0, 0.5 / (share + 0.02), 0.5 / (1.02 - share))
        cross = ops.softplus(told) - faulty * told
        return ops.sum(cross * weight * balance) * shape.members / (ops.sum(weight * balance) + 1e-6)

    return loss
