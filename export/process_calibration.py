"""From logs of normal operation to the numbers of a process bundle: scaling, spreads, limits, and what they support.

Nothing here looks at a label, and every residual that is calibrated on comes from a member that never saw its tick.
The bound of false alarms is counted where each half of the logs judges the other: a log that drifts supports less.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from export.process_logs import Ticks
from export.process_sides import earlier_half, halves, masked
from export.samples import DatasetError
from export.train_rnn import RecurrentKnobs, ScaledRun
from station.process_bundle import (
    EwmaMonitor,
    FalseAlarmBound,
    ForecastMonitor,
    Memory,
    PcaMonitor,
    ProcessLimits,
)
from station.risk import RESIDUAL_BOUND, Chart, chart_of, risk_of

Floats = npt.NDArray[np.float64]

NORMAL = 1.4826
"""Median absolute deviation → standard deviation of a normal distribution."""
LEAST_LIMIT = 2.6
"""A mean square of remembered residuals below this many of their own spreads is no sign of anything, however quiet the
calibration log was."""
MOST_LIMIT = 5.2
"""A log of "normal operation" with a fault in it must not raise the limit until no fault can reach it; what stands
above in the calibration log counts as alarms."""
CONFIDENCE = 0.95
LEAST_LEARNED = 32
"""Ticks with a residual that spreads can be told from."""
MOST_WHITENED = 128
"""Judged horizons × channels whose correlations are kept; beyond, the matrix would be larger than the network."""
LEAST_GOOD_SHARE = 0.5
LEAST_VARIANCE = 1e-12
"""Of a principal component; below, it is rounding."""
FLAT_FACTOR = 5.0
"""A channel that stands still for this many times longer than ever in the training logs is taken for a dead sensor."""
FLAT_LEAST_STEPS = 60
FLAT_MOST_SHARE = 0.1
"""A channel that stood still for more than this share of the logs may do so for ever."""


@dataclass(frozen=True, slots=True)
class Scaling:
    """Robust centre and spread of the channels that are worth watching.

    Attributes:
        kept: indices of the channels in the logs.
        center, scale: `[kept]`, in the channels' units.
        excluded: index of a channel → why it is not watched.
    """

    kept: npt.NDArray[np.int64]
    center: Floats
    scale: Floats
    excluded: dict[int, str]


def scaling_of(values: Floats, mask: npt.NDArray[np.bool_]) -> Scaling:
    """Find centre and spread of each channel, `[ticks, channels]`.

    The spread is the larger of NORMAL × median absolute deviation and half of the standard deviation, so that a channel
    of few levels, whose median deviation is 0, has one as well.

    Raises:
        DatasetError: no channel moves.
    """
    kept, center, scale, excluded = [], [], [], {}
    for index in range(values.shape[1]):
        good = values[mask[:, index], index]
        if len(good) < max(LEAST_GOOD_SHARE * len(values), 2):
            excluded[index] = f"has values in {len(good)} of {len(values)} ticks only"
            continue
        middle = float(np.median(good))
        spread = max(NORMAL * float(np.median(np.abs(good - middle))), 0.5 * float(good.std()))
        # Rounding alone moves a mean by some 1e-15 of its size: that is no movement.
        if spread <= 1e-9 * abs(middle) or spread < np.finfo(float).tiny * 1e20:
            excluded[index] = f"stands still at {middle:g}"
            continue
        kept.append(index)
        center.append(middle)
        scale.append(spread)
    if not kept:
        raise DatasetError("no channel moves: there is nothing to watch")
    return Scaling(np.array(kept), np.array(center), np.array(scale), excluded)


def longest_standstill(ticks: Sequence[Ticks], index: int, step_s: float) -> float | None:
    """After how many seconds without any change a channel is bad; None: it may stand still for ever."""
    longest, total = 0, 0
    for log in ticks:
        values = log.values[log.mask[:, index], index]
        total += len(values)
        if len(values):
            places = np.flatnonzero(np.concatenate([[True], np.diff(values) != 0, [True]]))
            longest = max(longest, int(np.diff(places).max()))
    after = max(FLAT_FACTOR * longest, FLAT_LEAST_STEPS)
    return None if after > FLAT_MOST_SHARE * total else after * step_s


def scaled_parts(
    ticks: Ticks, scaling: Scaling, *, normal_only: bool
) -> list[tuple[slice, Floats, npt.NDArray[np.bool_]]]:
    """Stretches of a log without a gap, scaled: (where, values, mask)."""
    mask = ticks.mask[:, scaling.kept]
    values = np.where(mask, (ticks.values[:, scaling.kept] - scaling.center) / scaling.scale, 0.0)
    values = np.clip(values, -RESIDUAL_BOUND, RESIDUAL_BOUND)
    cuts = set(ticks.begins) | {len(values)}
    bad = ticks.faulty == 1 if normal_only else np.zeros(len(values), bool)
    cuts |= set((np.flatnonzero(np.diff(bad.astype(int)) != 0) + 1).tolist())
    edges = sorted(cuts | {0})
    return [
        (slice(begin, end), values[begin:end], mask[begin:end])
        for begin, end in itertools.pairwise(edges)
        if end > begin and not bad[begin]
    ]


def cross_fitted(run: ScaledRun, told: Floats, members: int, horizons: Sequence[int]) -> Floats:
    """For each target the forecast of the member that is blind to it.

    Args:
        run: with the folds.
        told: `[ticks, members × horizons × channels]`, each member's output.
        members: how many.
        horizons: ticks ahead.

    Returns:
        `[ticks, horizons × channels]`, as one member's output.
    """
    ticks, channels = run.values.shape
    told = told.reshape(ticks, members, len(horizons), channels)
    chosen = np.empty((ticks, len(horizons), channels))
    for place, horizon in enumerate(horizons):
        target = np.minimum(np.arange(ticks) + horizon, ticks - 1)
        chosen[:, place] = told[np.arange(ticks), run.fold[target], place]
    return chosen.reshape(ticks, -1)


def residuals(run: ScaledRun, told: Floats, horizons: Sequence[int], settle: int) -> Floats:
    """`[ticks, horizons, channels]` reading less forecast, NaN where there is none."""
    ticks, channels = run.values.shape
    told = told.reshape(ticks, len(horizons), channels)
    apart = np.full((ticks, len(horizons), channels), np.nan)
    for place, horizon in enumerate(horizons):
        apart[horizon + settle :, place] = run.values[horizon + settle :] - told[settle : ticks - horizon, place]
    return np.where(run.mask[:, None], apart, np.nan)


def forecast_monitor(
    runs: Sequence[ScaledRun], told: Sequence[Floats], knobs: RecurrentKnobs, states: tuple[int, ...]
) -> ForecastMonitor:
    """Calibrate on cross-fitted forecasts.

    Args:
        runs: of normal operation.
        told: for each run `[ticks, horizons × channels]`, from `cross_fitted`.
        knobs: of the network.
        states: units of its state tensors.
    """
    memory = Memory()
    judged = tuple(range(1, len(knobs.horizons))) or (0,)
    apart = [residuals(run, rows, knobs.horizons, knobs.settle) for run, rows in zip(runs, told, strict=True)]
    pooled = np.concatenate(apart)
    with np.errstate(invalid="ignore"):
        count = np.isfinite(pooled).sum(axis=0)
        root = np.sqrt(np.nansum(pooled**2, axis=0) / np.maximum(count, 1))
        middle = NORMAL * np.nan_to_num(_nan_median(np.abs(pooled)))
    # What no residual is known of says nothing.
    spread = np.where(count > 0, np.maximum(np.maximum(root, middle), 1e-6), RESIDUAL_BOUND)
    least = math.sqrt(memory.rate / (2 - memory.rate))
    remembered = np.concatenate(
        [remember(np.clip(rows / spread, -memory.clip, memory.clip)[:, judged], memory.rate) for rows in apart]
    )
    kept = np.sqrt(np.nansum(remembered**2, axis=0) / np.maximum(np.isfinite(remembered).sum(axis=0), 1))
    kept = np.maximum(kept, least)
    readings = [np.where(run.mask, run.values, np.nan) for run in runs]
    everything = np.concatenate([*readings, np.zeros((1, readings[0].shape[1]))])
    monitor = ForecastMonitor(
        cell=knobs.cell,
        states=states,
        horizons=knobs.horizons,
        judged=judged,
        input_clip=knobs.input_clip,
        settle=knobs.settle,
        memory=memory,
        residual_spread=tuple(spread.ravel().tolist()),
        memory_spread=tuple(kept.ravel().tolist()),
        low=tuple(np.nanmin(everything, axis=0).tolist()),
        high=tuple(np.nanmax(everything, axis=0).tolist()),
        follow=tuple(np.concatenate([_kept(readings, horizon) for horizon in knobs.horizons]).tolist()),
        precision=_precision(remembered / kept, memory.rate),
        limit=1.0,
    )
    statistics = run_chart(chart_of(monitor, spread.shape[1]), runs, told)
    return monitor.model_copy(update={"limit": limit_of(statistics, LEAST_LIMIT, MOST_LIMIT)})


def forecasts_on_halves(
    runs: Sequence[ScaledRun], told: Sequence[Floats], knobs: RecurrentKnobs, states: tuple[int, ...]
) -> Floats:
    """What a network's statistic is at each tick of all runs when it is calibrated on the other half of them.

    The arguments are those of `forecast_monitor`. NaN where there is none, and where the other half is too short to
    calibrate on.
    """
    statistics = np.full(sum(len(run.values) for run in runs), np.nan)
    early = np.concatenate(earlier_half(runs))
    for tried in (early, ~early):
        learned = masked(runs, np.split(~tried, np.cumsum([len(run.values) for run in runs])[:-1]))
        apart = [residuals(run, rows, knobs.horizons, knobs.settle) for run, rows in zip(learned, told, strict=True)]
        if sum(int(np.isfinite(rows).any(axis=(1, 2)).sum()) for rows in apart) >= LEAST_LEARNED:
            monitor = forecast_monitor(learned, told, knobs, states)
            said = run_chart(chart_of(monitor, runs[0].values.shape[1]), runs, told)
            statistics[tried] = said[tried]
    return statistics


def _kept(readings: Sequence[Floats], horizon: int) -> Floats:
    """How much of its deviation each channel still has after some ticks, 0..1, `[channels]`.

    The square root of the autocorrelation, since the noise of both readings takes its share of that. One tick ahead the
    network itself starts from the reading.
    """
    channels = readings[0].shape[1]
    if horizon == 1:
        return np.zeros(channels)
    together = np.concatenate(readings)
    middle = np.nansum(together, axis=0) / np.maximum(np.isfinite(together).sum(axis=0), 1)
    both, own, pairs, count = (np.zeros(channels) for _ in range(4))
    for rows in readings:
        apart = rows - middle
        products = apart[horizon:] * apart[:-horizon]
        both += np.nansum(products, axis=0)
        pairs += np.isfinite(products).sum(axis=0)
        own += np.nansum(apart**2, axis=0)
        count += np.isfinite(apart).sum(axis=0)
    correlation = (both / np.maximum(pairs, 1)) / np.maximum(own / np.maximum(count, 1), LEAST_VARIANCE)
    return np.asarray(np.sqrt(np.clip(correlation, 0.0, 1.0)))


def _precision(places: Floats, rate: float) -> tuple[tuple[float, ...], ...]:
    """Inverse of the correlation of remembered residuals, `[ticks, judged, channels]`.

    Shrunk towards independence (Ledoit and Wolf, Journal of Multivariate Analysis 88, 2004) by the share of parts
    against parts and independent ticks; a memory makes 2 / rate ticks about one.
    """
    table = places.reshape(len(places), -1)
    table = table[np.isfinite(table).all(axis=1)]
    width = table.shape[1]
    if width > MOST_WHITENED:
        return ()
    independent = max(len(table) * rate / 2, 1.0)
    shrink = width / (width + independent)
    found = table.T @ table / max(len(table), 1)
    inverse = np.linalg.inv((1 - shrink) * found + shrink * np.eye(width))
    square = float(np.einsum("ti,ij,tj->t", table, inverse, table).mean()) / width if len(table) else 1.0
    # Half of it takes the parts one by one: faults that move channels together, as normal operation does, count too.
    mixed = (inverse / max(square, LEAST_VARIANCE) + np.eye(width)) / 2
    return tuple(tuple(row) for row in mixed.tolist())


def pca_monitor(runs: Sequence[ScaledRun], members: int) -> PcaMonitor:
    """T² and Q as textbooks have them: components for nine tenths of the variance, limits from data left out."""
    pooled = np.concatenate([run.values for run in runs])
    fold = np.concatenate([run.fold for run in runs])
    whole = _components(pooled)
    statistics = np.full((len(pooled), 2), np.nan)
    for member in range(members):
        others = pooled[fold != member]
        if len(others) < 2 or not (fold == member).any():  # noqa: PLR2004
            continue
        monitor = _components(others)
        centred = pooled[fold == member] - np.array(monitor.mean)
        scores = centred @ np.array(monitor.components).T
        error = centred - scores @ np.array(monitor.components)
        statistics[fold == member] = np.stack(
            [(scores**2 / np.array(monitor.variances)).sum(axis=1), (error**2).sum(axis=1)], axis=1
        )
    limits = np.maximum(np.nanquantile(statistics, 0.99, axis=0), 1e-9)
    monitor = whole.model_copy(update={"t2_limit": float(limits[0]), "q_limit": float(limits[1])})
    ratios = np.sqrt(np.nan_to_num(statistics / limits).max(axis=1))
    limit = limit_of(ratios, 1.0, 2.0)
    return monitor.model_copy(update={"t2_limit": float(limits[0]) * limit**2, "q_limit": float(limits[1]) * limit**2})


def ewma_monitor(runs: Sequence[ScaledRun]) -> EwmaMonitor:
    """An average of about ten ticks for each channel; its spread is that of the averages themselves."""
    rate = 0.1
    averages = np.concatenate([remember(np.where(run.mask, run.values, np.nan), rate) for run in runs])
    spread = np.sqrt(np.nansum(averages**2, axis=0) / np.maximum(np.isfinite(averages).sum(axis=0), 1))
    spread = np.where(np.isfinite(averages).any(axis=0), spread, RESIDUAL_BOUND)
    monitor = EwmaMonitor(rate=rate, spread=tuple(np.maximum(spread, 1e-6).tolist()), limit=1.0)
    statistics = run_chart(chart_of(monitor, len(spread)), runs, [None] * len(runs))
    return monitor.model_copy(update={"limit": limit_of(statistics, 3.0, 6.0)})


def on_halves(
    runs: Sequence[ScaledRun], members: int, make: Callable[[Sequence[ScaledRun]], PcaMonitor | EwmaMonitor]
) -> Floats:
    """What a chart says of each half of the runs when it learns from the other one, at each tick of all."""
    said = [
        run_chart(chart_of(make(others), runs[0].values.shape[1]), tried, [None] * len(tried))
        for tried, others in halves(runs, members)
        if tried and others
    ]
    return np.concatenate([np.zeros(0), *said])


def run_chart(chart: Chart, runs: Sequence[ScaledRun], told: Sequence[Floats | None]) -> Floats:
    """The chart's statistic at each tick of all runs, each from a fresh start; NaN where there is none."""
    found = []
    for run, rows in zip(runs, told, strict=True):
        chart.reset()
        for place in range(len(run.values)):
            evidence = chart.update(run.values[place], run.mask[place], None if rows is None else rows[place])
            found.append(math.nan if evidence.statistic is None else evidence.statistic)
    return np.array(found)


def limit_of(statistics: Floats, least: float, most: float) -> float:
    """The largest statistic of the calibration log, within bounds: above it, it would have been silent."""
    known = statistics[np.isfinite(statistics)]
    largest = float(known.max()) * (1 + 1e-6) if known.size else least
    return float(np.clip(largest, least, most))


def default_limits(step_s: float) -> ProcessLimits:
    """One half of the risk at the limit; an alarm is over when ten ticks in a row are clear of it."""
    return ProcessLimits(off_delay_s=10 * step_s)


def alarm_episodes(risk: Floats, limits: ProcessLimits, step_s: float) -> npt.NDArray[np.bool_]:
    """Whether the alarm's condition holds at each tick, by the rules of `station.alarm`, without anybody's answer."""
    holds = np.zeros(len(risk), bool)
    active, since = False, -1
    on_ticks, off_ticks = round(limits.on_delay_s / step_s), round(limits.off_delay_s / step_s)
    for place, value in enumerate(risk.tolist()):
        if math.isnan(value):
            since = -1
        elif (value < limits.risk - limits.deadband) if active else (value >= limits.risk):
            since = place if since < 0 else since
            if place - since >= (off_ticks if active else on_ticks):
                active, since = not active, -1
        else:
            since = -1
        holds[place] = active
    return holds


def begins(holds: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Places where a condition comes."""
    return np.flatnonzero(np.diff(np.concatenate([[0], holds.astype(int)])) == 1)


def bound_of(statistics: Floats, limits: ProcessLimits, step_s: float) -> FalseAlarmBound:
    """What a calibration log supports.

    Alarms of a process in control come as a Poisson process at most as fast as λ, where n or fewer in T hours have a
    probability of 5 %; without any, λ = 3/T (the rule of three: Hanley and Lippman-Hand, JAMA 249, 1983).

    Args:
        statistics: 1 at the limit, from a monitor that had not seen the ticks.
        limits: with the alarm's delays.
        step_s: the fixed step.
    """
    known = np.isfinite(statistics)
    hours = float(known.sum()) * step_s / 3600
    risk = np.array([risk_of(value) if ok else math.nan for value, ok in zip(statistics.tolist(), known, strict=True)])
    alarms = len(begins(alarm_episodes(risk, limits, step_s)))
    supported = hours / poisson_upper(alarms)
    text = (
        f"at most one false alarm in {_hours(supported)} on data like the calibration log, 95 % "
        f"({alarms} alarms in {_hours(hours)})"
        if hours
        else "no bound of false alarms: the logs are too short for one half to judge the other"
    )
    return FalseAlarmBound(hours=hours, alarms=alarms, hours_per_alarm=supported, text=text)


def check_claim(bound: FalseAlarmBound, hours: float | None) -> None:
    """Refuse a claim that the calibration log does not support.

    Raises:
        DatasetError: it says by how much longer the log would have to be.
    """
    if hours is not None and hours > bound.hours_per_alarm:
        needed = hours * poisson_upper(bound.alarms)
        raise DatasetError(
            f"one false alarm in {_hours(hours)} cannot be claimed: {_hours(bound.hours)} of calibration with "
            f"{bound.alarms} alarms support one in {_hours(bound.hours_per_alarm)} (95 %); {_hours(needed)} are needed"
        )


def poisson_upper(count: int) -> float:
    """The mean of a Poisson distribution of which `count` or fewer have a probability of 1 − CONFIDENCE."""
    low, high = 0.0, 10.0 + 3 * count
    for _ in range(80):
        middle = (low + high) / 2
        term = total = math.exp(-middle)
        for place in range(1, count + 1):
            term *= middle / place
            total += term
        low, high = (middle, high) if total > 1 - CONFIDENCE else (low, middle)
    return high


def with_folds(
    parts: Sequence[tuple[Floats, npt.NDArray[np.bool_]]], folds: Sequence[npt.NDArray[np.int64]]
) -> list[ScaledRun]:
    """Runs of unlabelled ticks."""
    return [
        ScaledRun(values, mask, fold, np.full(len(values), np.nan))
        for (values, mask), fold in zip(parts, folds, strict=True)
    ]


def _hours(hours: float) -> str:
    if hours >= 48:  # noqa: PLR2004
        return f"{hours / 24:.1f} days"
    return f"{hours:.1f} h" if hours >= 1 else f"{hours * 60:.1f} min"


def _components(pooled: Floats) -> PcaMonitor:
    mean = pooled.mean(axis=0)
    _, singular, rows = np.linalg.svd(pooled - mean, full_matrices=False)
    variances = singular**2 / max(len(pooled) - 1, 1)
    kept = max(1, int(np.searchsorted(np.cumsum(variances) / max(variances.sum(), LEAST_VARIANCE), 0.9)) + 1)
    kept = min(kept, int((variances > LEAST_VARIANCE).sum()) or 1)
    return PcaMonitor(
        mean=tuple(mean.tolist()),
        components=tuple(tuple(row) for row in rows[:kept].tolist()),
        variances=tuple(np.maximum(variances[:kept], LEAST_VARIANCE).tolist()),
        t2_limit=1.0,
        q_limit=1.0,
    )


def remember(rows: Floats, rate: float) -> Floats:
    """Exponentially weighted mean along the ticks; NaN leaves it where it was."""
    mean = np.zeros(rows.shape[1:])
    kept = np.full(rows.shape, np.nan)
    for place, row in enumerate(rows):
        known = np.isfinite(row)
        mean = mean + rate * np.where(known, row - mean, 0.0)
        kept[place] = np.where(known, mean, np.nan)
    return kept


def _nan_median(table: Floats) -> Floats:
    known = np.isfinite(table).any(axis=0)
    return np.where(known, np.nanmedian(np.where(known, table, 0.0), axis=0), 0.0)
