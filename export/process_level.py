"""The chart `level`: where each channel, and each direction in which channels move together, is to be expected.

How far a feature (a channel, or the score along a direction) may go has three parts, none of which looks at a label:

- *What as many independent readings allow.* The limit is the prediction interval of Student's t for one more reading
  after as many independent ones as the log holds (Hahn and Meeker, Statistical Intervals, 1991, 4.7), for all features
  and for AHEAD times as long together. The slow part of a feature and the rest have one each, and their squares
  add up: a slow part that wanders through its log once has shown little of where it may be, and its limit is wide, but
  it must not take that of the noise upon it along.
- *What the log shows.* Spreads come from stretches that were left out, about the mean of the others and along their
  directions; a reading beyond the interval widens it.
- *What each half shows of the other.* Such stretches lie between others, and a log that drifts looks quieter there
  than it is. So each half of the log teaches limits, and the other half is held against them. What stays beyond them
  drifts, and the limits are widened by as much. Which of the directions will drift next cannot be told from the one
  that did: those of one half are not those of the other. So all of them are widened alike.
"""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from export.process_calibration import remember, run_chart
from export.process_sides import halves
from export.train_rnn import ScaledRun
from station.process_bundle import LevelMonitor
from station.risk import RESIDUAL_BOUND, chart_of

Floats = npt.NDArray[np.float64]

RATES = (1.0, 0.3)
"""Single readings, or a memory of some three ticks: where spikes belong to normal operation, single readings would need
limits that hide the rest."""
ROUGH = 1.3
"""The first rate whose limits the calibration log widens by less than this, on average, is taken."""
SLOW_RATE = 0.1
"""Of the memory that tells the slow part from the rest: some ten ticks."""
AHEAD = 30.0
"""The limits are those which normal operation passes once in so many calibration logs, if it goes on as in them."""
SLACK = 2.0
"""What the calibration log shows widens a limit at most so many times, and what its halves show as many again: it may
have a fault in it."""
DRIFT_SHARE = 0.01
"""What is beyond a limit for a larger share of the other half drifts; spikes are rarer."""
LEAST_SPREAD = 0.01
"""In scales: two channels that say the same differ by their rounding."""
LEAST_INDEPENDENT = 1.5
LEAST_LENGTH, FADED = 8, 0.05
"""A shorter column shows no correlation; a smaller one is noise."""


def level_monitor(runs: Sequence[ScaledRun], members: int) -> tuple[LevelMonitor, Floats]:
    """Learn the chart.

    Args:
        runs: of normal operation, with the folds.
        members: number of folds.

    Returns:
        The monitor, and what its limits say of each tick of all runs when means, directions and spreads are those of
        the other half: 1 at the limit.
    """
    whole = _level(runs, members)
    apart = [(_level(others, members), tried) for tried, others in halves(runs, members) if tried and others]
    wider = np.ones(len(whole.limits))
    for monitor, tried in apart:
        wider = np.maximum(wider, _drift(monitor, tried))
    wider = np.minimum(wider, SLACK)
    channels = len(whole.mean)
    wider[channels:] = wider[channels:].max(initial=1.0)
    statistics = [
        run_chart(chart_of(_widened(monitor, wider), channels), tried, [None] * len(tried)) for monitor, tried in apart
    ]
    return _widened(whole, wider), np.concatenate([np.zeros(0), *statistics])


def _widened(monitor: LevelMonitor, wider: Floats) -> LevelMonitor:
    return monitor.model_copy(update={"limits": tuple((np.array(monitor.limits) * wider).tolist())})


def _drift(monitor: LevelMonitor, tried: Sequence[ScaledRun]) -> Floats:
    """How many times its limit each feature keeps to, for all but DRIFT_SHARE of the ticks that were not learned."""
    channels = len(monitor.mean)
    usual, directions = np.array(monitor.mean), np.array(monitor.directions).reshape(-1, channels)
    smooth = np.concatenate([remember(np.where(run.mask, run.values - usual, np.nan), monitor.rate) for run in tried])
    far = np.abs(np.concatenate([smooth, smooth @ directions.T], axis=1)) / np.array(monitor.limits)
    return np.array(
        [
            np.quantile(known, 1 - DRIFT_SHARE) if (known := column[np.isfinite(column)]).size else 1.0
            for column in far.T
        ]
    )


def _level(runs: Sequence[ScaledRun], members: int) -> LevelMonitor:
    """The monitor by what was left out between."""
    monitor, widened = _level_at(runs, members, RATES[0])
    for rate in RATES[1:]:
        if widened < ROUGH:
            break
        monitor, widened = _level_at(runs, members, rate)
    return monitor


def _level_at(runs: Sequence[ScaledRun], members: int, rate: float) -> tuple[LevelMonitor, float]:
    """The monitor with one memory, and how much the log's extremes widened its limits."""
    values = np.concatenate([np.where(run.mask, run.values, np.nan) for run in runs])
    usual = _means(values)
    # The chart's memory begins at the mean.
    smooth = np.concatenate([remember(np.where(run.mask, run.values - usual, np.nan), rate) for run in runs]) + usual
    fold = np.concatenate([run.fold for run in runs])
    directions = _directions(values)
    places = np.full((len(values), values.shape[1] + len(directions)), np.nan)
    for member in range(members):
        left, others = fold == member, values[fold != member]
        if len(others) > 1 and left.any():
            # Nothing is known of where a channel is that the others have no value of.
            apart = np.where(np.isfinite(others).any(axis=0), smooth[left] - _means(others), np.nan)
            places[left] = np.concatenate([apart, apart @ _directions(others).T], axis=1)
    slow = remember(places, SLOW_RATE)
    wide = np.hypot(_interval(slow), np.maximum(_interval(places - slow), LEAST_SPREAD))
    wide[~np.isfinite(places).any(axis=0)] = RESIDUAL_BOUND
    largest = np.nanmax(np.abs(places), axis=0, initial=0.0) * (1 + 1e-6)
    widened = np.clip(largest / wide, 1.0, SLACK)
    monitor = LevelMonitor(
        rate=rate,
        mean=tuple(usual.tolist()),
        directions=tuple(tuple(row) for row in directions.tolist()),
        limits=tuple((widened * wide).tolist()),
    )
    return monitor, float(widened.mean())


def _interval(places: Floats) -> Floats:
    """Half of the prediction interval of each feature's next readings, about 0: `[features]`."""
    known = np.isfinite(places).sum(axis=0)
    spread = np.sqrt(np.nansum(places**2, axis=0) / np.maximum(known, 1))
    independent = [
        max(count / _correlated_ticks(column), LEAST_INDEPENDENT)
        for count, column in zip(known.tolist(), places.T, strict=True)
    ]
    times = [
        student_quantile(1 / (AHEAD * count * len(known)), max(count - 1, 1.0)) * math.sqrt(1 + 1 / count)
        for count in independent
    ]
    return np.asarray(np.array(times) * spread)


def student_quantile(chance: float, freedom: float) -> float:
    """The distance that Student's t with `freedom` degrees of freedom exceeds, on either side, with a `chance`."""
    places = np.geomspace(1e-3, 1e7, 8001)
    density = np.exp(-(freedom + 1) / 2 * np.log1p(places * places / freedom))
    slices = np.diff(places) * (density[1:] + density[:-1]) / 2
    beyond = np.append(np.cumsum(slices[::-1])[::-1], 0.0)
    share = beyond / (beyond[0] + 1e-3 * density[0])
    return float(np.exp(np.interp(math.log(chance), np.log(np.maximum(share[::-1], 1e-300)), np.log(places[::-1]))))


def _correlated_ticks(column: Floats) -> float:
    """How many ticks of a feature are worth one independent one: 1 + 2 × the sum of its autocorrelation.

    The sum ends where the autocorrelation has faded (Geyer, Statistical Science 7, 1992).
    """
    known = column[np.isfinite(column)]
    if len(known) < LEAST_LENGTH or not known.any():
        return 1.0
    width = 1 << (2 * len(known) - 1).bit_length()
    power = np.abs(np.fft.rfft(known, width)) ** 2
    correlation = np.fft.irfft(power, width)[: len(known) // 2]
    correlation /= correlation[0]
    faded = np.flatnonzero(correlation <= FADED)
    return float(1 + 2 * correlation[1 : faded[0] if faded.size else None].sum())


def _directions(values: Floats) -> Floats:
    """Principal directions, the one with the largest variance first, `[channels, channels]`; none for one channel."""
    if values.shape[1] == 1:
        return np.zeros((0, 1))
    centred = np.nan_to_num(values - _means(values))
    _, vectors = np.linalg.eigh(centred.T @ centred)
    return np.asarray(vectors.T[::-1])


def _means(values: Floats) -> Floats:
    """Of each channel; 0, its median in the logs, where nothing is known."""
    known = np.isfinite(values).sum(axis=0)
    return np.asarray(np.nansum(values, axis=0) / np.maximum(known, 1))
