"""From logs to a process bundle: window, scaling, network, calibration on cross-fitted forecasts, golden sequence.

Charts without a network are calibrated on the same logs and compared with it on stretches that none of them learned
from (`export.process_choice`), so that the choice needs no labels.
"""

import hashlib
import io
import math
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import version as installed_version
from pathlib import Path

import keras
import numpy as np
import numpy.typing as npt

from export.bundle_writer import write_checked
from export.process_arguments import AUTO, CELLS, CHARTS, LEVEL
from export.process_calibration import (
    Scaling,
    alarm_episodes,
    begins,
    bound_of,
    check_claim,
    cross_fitted,
    default_limits,
    ewma_monitor,
    forecast_monitor,
    forecasts_on_halves,
    longest_standstill,
    on_halves,
    pca_monitor,
    residuals,
    run_chart,
    scaled_parts,
    scaling_of,
)
from export.process_choice import Trial, try_chart, try_network
from export.process_level import level_monitor
from export.process_logs import LogSet, Ticks, reset_after, step_of, to_ticks
from export.rnn import NetworkShape, convert, deployed_step, step_model
from export.samples import DatasetError
from export.train_rnn import RecurrentKnobs, ScaledRun, Teacher, decay_for, fold_of, roll_out
from station.adapters.litert_step import LitertStep, load_step_model
from station.bundle_file import MODEL
from station.process_bundle import (
    GOLDEN_READINGS,
    GOLDEN_RISKS,
    EwmaMonitor,
    ForecastMonitor,
    GoldenSequence,
    LevelMonitor,
    PcaMonitor,
    ProcessBundle,
    ProcessChannel,
    ProcessManifest,
    WarnMonitor,
    read_process_bundle,
)
from station.risk import chart_of, risk_of
from station.step_model import ProcessModel, replay

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Say = Callable[[str], None]
AnyChart = LevelMonitor | PcaMonitor | EwmaMonitor
AnyMonitor = ForecastMonitor | WarnMonitor | AnyChart

GOLDEN_TICKS = 300
GOLDEN_TOLERANCE = 0.02
"""Another processor adds the same numbers in another order; the risk of the quantized step moves less than this."""
DRIFT_TICKS = 10_000
MOST_TRIED_TICKS = 40_000
"""Of the calibration logs, for the choice between monitors."""
LEAST_RUN = 64
"""A stretch without a gap that is shorter teaches nothing."""
MOST_CALIBRATION_TICKS = 200_000
TOOLS = ("tensorflow-cpu", "keras", "ai-edge-litert", "numpy")


@dataclass(frozen=True, slots=True)
class ProcessPlan:
    """What is to be made.

    Attributes:
        task: `forecast` learns normal operation, `warn` the labels.
        model: one of `CELLS` or `CHARTS`, or `AUTO`: see `choose`.
        knobs: of the network.
        name, version: of the bundle.
        step_s: the fixed step; None: found from the logs.
        use_labels: leave labelled faults out of what counts as normal.
        claim_hours: "one false alarm in so many hours" that the bundle must support; None: whatever it supports.
    """

    task: str = "forecast"
    model: str = AUTO
    knobs: RecurrentKnobs = field(default_factory=RecurrentKnobs)
    name: str = "process"
    version: str = "1"
    step_s: float | None = None
    use_labels: bool = True
    claim_hours: float | None = None


@dataclass(frozen=True, slots=True)
class Prepared:
    """Logs on the fixed step, scaled, and cut into runs of normal operation.

    Attributes:
        logs: as read.
        step_s: the fixed step.
        ticks: of each log.
        scaling: of the channels that are watched.
        runs: scaled, with folds.
        raw: for each run, `[ticks, channels]` in the channels' units, NaN where bad.
    """

    logs: LogSet
    step_s: float
    ticks: tuple[Ticks, ...]
    scaling: Scaling
    runs: tuple[ScaledRun, ...]
    raw: tuple[Floats, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Of the channels that are watched."""
        return tuple(self.logs.channels[index] for index in self.scaling.kept)


@dataclass(frozen=True, slots=True)
class Fitted:
    """A monitor with what was found on the way.

    Attributes:
        monitor: calibrated.
        statistics: of all runs' ticks, 1 at the limit: what the bound of false alarms is counted on. Limits, and what a
            chart expects, are those of the other half of the logs.
        model: bytes of the `.tflite`; empty for a chart.
        metrics: figures.
        told: of a network that forecasts: for each run the cross-fitted forecasts, `[ticks, horizons × channels]`.
    """

    monitor: AnyMonitor
    statistics: Floats
    model: bytes
    metrics: Mapping[str, Mapping[str, float]]
    told: tuple[Floats, ...] = ()


@dataclass(frozen=True, slots=True)
class Chosen:
    """The monitor to be shipped, and how all that were tried did.

    Attributes:
        model: its name, of `CELLS` or `CHARTS`.
        fitted: the monitor.
        trials: name → how it did on stretches that were left out; empty when nothing was compared.
    """

    model: str
    fitted: Fitted
    trials: Mapping[str, Trial]

    @property
    def metrics(self) -> dict[str, Mapping[str, float]]:
        """The trials' figures, for the manifest."""
        return {f"trial_{name}": trial.figures for name, trial in self.trials.items()}


def prepare(logs: LogSet, plan: ProcessPlan, say: Say) -> Prepared:
    """Bring logs onto the step, and scale them.

    Raises:
        DatasetError: there is nothing to learn from.
    """
    step_s = plan.step_s or step_of(logs.logs)
    ticks = tuple(to_ticks(log, step_s) for log in logs.logs)
    normal_only = plan.task == "forecast" and plan.use_labels
    usable = [~(log.faulty == 1) if normal_only else np.ones(len(log.at_s), bool) for log in ticks]
    values = np.concatenate([log.values[ok] for log, ok in zip(ticks, usable, strict=True)])
    mask = np.concatenate([log.mask[ok] for log, ok in zip(ticks, usable, strict=True)])
    if not len(values):
        raise DatasetError("every row is labelled as a fault: there is no normal operation to learn")
    scaling = scaling_of(values, mask)
    for index, why in scaling.excluded.items():
        say(f"warning: channel {logs.channels[index]} is left out: it {why}")
    parts = [
        (log, *part)
        for log in ticks
        for part in scaled_parts(log, scaling, normal_only=normal_only)
        if len(part[1]) >= LEAST_RUN
    ]
    if not parts:
        raise DatasetError(f"no stretch without a gap has {LEAST_RUN} ticks of {step_s:g} s")
    folds = fold_of([len(values) for _, _, values, _ in parts], plan.knobs.members)
    runs = tuple(
        ScaledRun(values, mask, fold, log.faulty[where])
        for (log, where, values, mask), fold in zip(parts, folds, strict=True)
    )
    raw = tuple(
        np.where(log.mask[where][:, scaling.kept], log.values[where][:, scaling.kept], np.nan)
        for log, where, _, _ in parts
    )
    total = sum(len(run.values) for run in runs)
    say(
        f"{len(logs.logs)} logs, {len(scaling.kept)} of {len(logs.channels)} channels, step {step_s:g} s, "
        f"{total} ticks in {len(runs)} stretches ({total * step_s / 3600:.2f} h)"
    )
    return Prepared(logs, step_s, ticks, scaling, runs, raw)


def fit(prepared: Prepared, plan: ProcessPlan, say: Say, teacher: Teacher | None = None) -> Fitted:
    """Make one monitor.

    Args:
        prepared: the logs.
        plan: its model says which.
        say: takes lines of progress.
        teacher: of the same shape and knobs, to spare the time of compiling.

    Raises:
        DatasetError: there is too little to learn from.
    """
    if plan.task == "warn":
        return _fit_warn(prepared, plan, say)
    if plan.model in CHARTS:
        return Fitted(*learn_chart(plan.model, prepared.runs, plan.knobs.members), b"", {})
    return _fit_forecast(prepared, plan, say, teacher)


def choose(
    prepared: Prepared, plan: ProcessPlan, say: Say, teacher: Teacher | None = None, *, compared: bool = True
) -> Chosen:
    """Make the monitor that the plan asks for; with `AUTO`, network or `level`, what does better on stretches left out.

    The plain charts are tried and told of, but shipped by name only: their limits are those of the log as it was, and
    say nothing of where a process that wanders will be when the log is over.

    Args:
        prepared: the logs.
        plan: what is asked for; its knobs name the cell.
        say: takes lines of progress.
        teacher: as for `fit`.
        compared: try the others as well when one is asked for by name.

    Raises:
        DatasetError: there is too little to learn from.
    """
    wanted = plan.knobs.cell if plan.model == AUTO else plan.model
    if plan.task == "warn" or (plan.model != AUTO and not compared):
        return Chosen(wanted, fit(prepared, replace(plan, model=wanted), say, teacher), {})
    made, trials = {}, {}
    for name in dict.fromkeys((wanted, *CHARTS)):
        made[name] = fit(prepared, replace(plan, model=name), say, teacher)
        trial = try_out(prepared, plan, name, made[name])
        if trial is not None:
            trials[name] = trial
    chosen = Chosen(wanted, made[wanted], trials)
    if plan.model != AUTO:
        return chosen
    best = max(trials.keys() & {wanted, LEVEL}, key=lambda name: trials[name].score, default=wanted)
    return replace(chosen, model=best, fitted=made[best])


def learn_chart(name: str, runs: Sequence[ScaledRun], members: int) -> tuple[AnyChart, Floats]:
    """One of `CHARTS`, and what it says of each half of the runs when it learns from the other one."""
    if name == LEVEL:
        return level_monitor(runs, members)
    plain = (lambda runs: pca_monitor(runs, members)) if name == "pca" else ewma_monitor
    return plain(runs), on_halves(runs, members, plain)


def try_out(prepared: Prepared, plan: ProcessPlan, name: str, fitted: Fitted) -> Trial | None:
    """How a monitor does on stretches that were left out; None: the logs are too short for that."""
    knobs = knobs_for(prepared, plan.knobs)
    runs, told = _thinned(_bounded(prepared.runs), fitted.told, knobs.members)
    if not isinstance(fitted.monitor, ForecastMonitor):
        return try_chart(runs, knobs.members, lambda others, members: learn_chart(name, others, members)[0])
    shape = shape_of(prepared, knobs)
    step = LitertStep(fitted.model, channels=shape.channels, states=shape.states, outputs=shape.outputs)
    return try_network(runs, told, step, shape, knobs)


def _thinned(
    runs: Sequence[ScaledRun], told: Sequence[Floats], members: int
) -> tuple[Sequence[ScaledRun], Sequence[Floats]]:
    """Of longer logs the first part of each fold, with the same part of the forecasts."""
    if sum(len(run.values) for run in runs) <= MOST_TRIED_TICKS:
        return runs, told
    left = dict.fromkeys(range(members), MOST_TRIED_TICKS // members)
    parts, parts_told = [], []
    for place, run in enumerate(runs):
        for member in np.unique(run.fold).tolist():
            inside = np.flatnonzero(run.fold == member)[: left[member]]
            left[member] -= len(inside)
            if len(inside) >= LEAST_RUN:
                where = slice(int(inside[0]), int(inside[-1]) + 1)
                parts.append(ScaledRun(run.values[where], run.mask[where], run.fold[where], run.faulty[where]))
                parts_told += [told[place][where]] if told else []
    return parts, parts_told


def shape_of(prepared: Prepared, knobs: RecurrentKnobs, *, forecasts: bool = True) -> NetworkShape:
    """The network for these logs."""
    return NetworkShape(
        knobs.cell,
        len(prepared.scaling.kept),
        knobs.horizons if forecasts else (),
        knobs.members,
        knobs.units,
        knobs.noise,
    )


def knobs_for(prepared: Prepared, knobs: RecurrentKnobs) -> RecurrentKnobs:
    """The knobs with the weight decay that so many ticks ask for."""
    return replace(knobs, decay=decay_for(sum(len(run.values) for run in prepared.runs)))


def window_of(prepared: Prepared, knobs: RecurrentKnobs) -> int:
    """Length of the training windows."""
    return min(knobs.ticks, max(len(run.values) for run in prepared.runs))


def _fit_forecast(prepared: Prepared, plan: ProcessPlan, say: Say, teacher: Teacher | None) -> Fitted:
    knobs = knobs_for(prepared, plan.knobs)
    shape = shape_of(prepared, knobs)
    network, loss = (teacher or Teacher(shape, knobs, window_of(prepared, knobs))).teach(prepared.runs)
    say(f"{knobs.cell}: {knobs.steps} steps, loss {loss:.4f}")
    runs = _bounded(prepared.runs)
    apart = deployed_step(network, shape, apart=True)
    told = [cross_fitted(run, roll_out(apart, run, knobs.input_clip), shape.members, shape.horizons) for run in runs]
    told = _blend_nearest(network, shape, knobs, runs, told)
    monitor = forecast_monitor(runs, told, knobs, shape.states)
    step = step_model(network, shape, apart=False)
    model, plain = convert(step, quantized=True), convert(step, quantized=False)
    metrics = _forecast_errors(runs, told, knobs.horizons, prepared.names)
    metrics["quantization"] = quantization_drift(runs, monitor, plain, model, shape)
    return Fitted(monitor, forecasts_on_halves(runs, told, knobs, shape.states), model, metrics, tuple(told))


def _blend_nearest(
    network: keras.Model, shape: NetworkShape, knobs: RecurrentKnobs, runs: Sequence[ScaledRun], told: Sequence[Floats]
) -> list[Floats]:
    """Mix the forecast one tick ahead with the reading itself, by what the cross-fitted residuals show.

    A smooth channel is its own best forecast, to less than what the noise in training leaves. The share of the network
    is the least-squares one within 0 to 1, and is folded into the weights of its head.

    Returns:
        The told forecasts as the changed network gives them.
    """
    if 1 not in shape.horizons:
        return list(told)
    first = shape.horizons.index(1) * shape.channels
    columns = slice(first, first + shape.channels)
    cut = [np.clip(run.values, -knobs.input_clip, knobs.input_clip) for run in runs]
    across, own = np.zeros(shape.channels), np.zeros(shape.channels)
    for run, rows, now in zip(runs, told, cut, strict=True):
        both = run.mask[1:] & run.mask[:-1]
        change = np.where(both, np.clip(run.values[1:] - now[:-1], -knobs.target_clip, knobs.target_clip), 0.0)
        step = np.where(both, rows[:-1, columns] - now[:-1], 0.0)
        across += (change * step).sum(axis=0)
        own += (step * step).sum(axis=0)
    share = np.clip(across / np.maximum(own, 1e-12), 0.0, 1.0)
    head = network.get_layer("head")
    kernel, bias = head.get_weights()
    for member in range(shape.members):
        place = member * shape.outputs + first
        for channel in range(shape.channels):
            kernel[:, place + channel] *= share[channel]
            bias[place + channel] *= share[channel]
            kernel[shape.width + channel, place + channel] += 1 - share[channel]
    head.set_weights([kernel, bias])
    blended = []
    for rows, now in zip(told, cut, strict=True):
        changed = rows.copy()
        changed[:, columns] = share * rows[:, columns] + (1 - share) * now
        blended.append(changed)
    return blended


def _fit_warn(prepared: Prepared, plan: ProcessPlan, say: Say) -> Fitted:
    knobs = knobs_for(prepared, plan.knobs)
    if plan.model not in CELLS:
        raise DatasetError(f"--model {plan.model} learns no labels; {', '.join(CELLS)} do")
    marks = np.concatenate([run.faulty for run in prepared.runs])
    faults, normal = int((marks == 1).sum()), int((marks == 0).sum())
    if not faults or not normal:
        raise DatasetError(
            f"the task warn needs ticks of both kinds; there are {faults} labelled as faults and {normal} as normal"
        )
    # Stretches of time would give some members no fault at all: the folds deal out pieces in turn.
    runs = tuple(
        replace(run, fold=(np.arange(len(run.values)) // _piece(prepared.runs)) % knobs.members)
        for run in prepared.runs
    )
    shape = shape_of(prepared, knobs, forecasts=False)
    network, loss = Teacher(shape, knobs, window_of(prepared, knobs)).teach(runs)
    say(f"{knobs.cell}: {knobs.steps} steps, cross-entropy {loss:.4f}")
    runs = _bounded(runs)
    apart = deployed_step(network, shape, apart=True)
    odds = [roll_out(apart, run, knobs.input_clip)[np.arange(len(run.values)), run.fold] for run in runs]
    monitor = WarnMonitor(
        cell=knobs.cell, states=shape.states, input_clip=knobs.input_clip, settle=knobs.settle, rate=0.2, offset=0.0
    )
    offset = _best_offset(runs, odds, monitor)
    monitor = monitor.model_copy(update={"offset": offset})
    statistics = np.concatenate(_warn_statistics(runs, odds, monitor))
    marks = np.concatenate([run.faulty for run in runs])
    step = step_model(network, shape, apart=False)
    model, plain = convert(step, quantized=True), convert(step, quantized=False)
    metrics = {
        "held_out": point_figures(statistics >= 1, marks),
        "quantization": quantization_drift(runs, monitor, plain, model, shape),
    }
    # The bound of false alarms is on normal operation.
    return Fitted(monitor, np.where(marks == 0, statistics, np.nan), model, metrics)


def _piece(runs: Sequence[ScaledRun]) -> int:
    return max(LEAST_RUN // 2, sum(len(run.values) for run in runs) // 64)


def _warn_statistics(runs: Sequence[ScaledRun], odds: Sequence[Floats], monitor: WarnMonitor) -> list[Floats]:
    return [
        run_chart(chart_of(monitor, run.values.shape[1]), [run], [rows[:, None]])
        for run, rows in zip(runs, odds, strict=True)
    ]


def _best_offset(runs: Sequence[ScaledRun], odds: Sequence[Floats], monitor: WarnMonitor) -> float:
    """The log-odds of the best F1 on what each member had not seen."""
    chart = chart_of(monitor, runs[0].values.shape[1])
    smooth = []
    for run, rows in zip(runs, odds, strict=True):
        chart.reset()
        for place, row in enumerate(rows):
            evidence = chart.update(run.values[place], run.mask[place], np.array([row]))
            statistic = evidence.statistic
            # Back from the statistic to the log-odds: 2^(statistic²) = 1 + e^odds.
            known = statistic is not None and statistic > 0
            smooth.append(math.log(math.expm1(statistic**2 * math.log(2))) if known and statistic else math.nan)
    table = np.array(smooth)
    marks = np.concatenate([run.faulty for run in runs])
    known_rows = np.isfinite(table) & np.isfinite(marks)
    choices = np.quantile(table[known_rows], np.linspace(0.01, 0.99, 99))
    scores = [point_figures(table >= choice, marks)["f1"] for choice in choices]
    return float(choices[int(np.argmax(scores))])


def point_figures(alarm: Bools, marks: Floats) -> dict[str, float]:
    """F1, and the shares of false and missed alarms, over labelled ticks, pooled and without any adjusting."""
    hit = int((alarm & (marks == 1)).sum())
    false = int((alarm & (marks == 0)).sum())
    missed = int((~alarm & (marks == 1)).sum())
    quiet = int((~alarm & (marks == 0)).sum())
    return {
        "f1": 2 * hit / max(2 * hit + false + missed, 1),
        "far": false / max(false + quiet, 1),
        "mar": missed / max(missed + hit, 1),
        "ticks": float(hit + false + missed + quiet),
    }


def quantization_drift(
    runs: Sequence[ScaledRun],
    monitor: ForecastMonitor | WarnMonitor,
    plain: bytes,
    quantized: bytes,
    shape: NetworkShape,
) -> dict[str, float]:
    """How far the risk of the quantized step is from that of the float one, over many ticks without a reset.

    The runs are gone through, again and again, until the ticks are enough: only a long way shows a drift of the state.
    """
    values = np.concatenate([run.values for run in runs])
    mask = np.concatenate([run.mask for run in runs])
    repeats = -(-DRIFT_TICKS // len(values))
    joined = ScaledRun(
        np.tile(values, (repeats, 1))[:DRIFT_TICKS],
        np.tile(mask, (repeats, 1))[:DRIFT_TICKS],
        np.zeros(DRIFT_TICKS, np.int64),
        np.full(DRIFT_TICKS, np.nan),
    )
    channels = values.shape[1]
    outputs = shape.outputs
    risks = []
    for model in (plain, quantized):
        step = LitertStep(model, channels=channels, states=shape.states, outputs=outputs)
        told = roll_out(step, joined, monitor.input_clip)
        chart = chart_of(monitor, channels)
        risks.append(
            np.array(
                [
                    math.nan if found is None else risk_of(found)
                    for found in (
                        chart.update(joined.values[place], joined.mask[place], told[place]).statistic
                        for place in range(DRIFT_TICKS)
                    )
                ]
            )
        )
    apart = np.abs(risks[0] - risks[1])
    apart = apart[np.isfinite(apart)]
    limits = default_limits(1.0)
    held = [alarm_episodes(risk, limits, 1.0) for risk in risks]
    return {
        "ticks": float(DRIFT_TICKS),
        "risk_apart_p99": float(np.quantile(apart, 0.99)),
        "risk_apart_max": float(apart.max()),
        "alarms_float": float(len(begins(held[0]))),
        "alarms_quantized": float(len(begins(held[1]))),
        "alarm_ticks_apart": float((held[0] != held[1]).sum()),
    }


def _forecast_errors(
    runs: Sequence[ScaledRun], told: Sequence[Floats], horizons: Sequence[int], names: Sequence[str]
) -> dict[str, Mapping[str, float]]:
    """Mean absolute error of the cross-fitted forecasts, in scales of each channel, against the last value's."""
    metrics: dict[str, Mapping[str, float]] = {}
    apart = np.concatenate([residuals(run, rows, horizons, 8) for run, rows in zip(runs, told, strict=True)])
    for place, horizon in enumerate(horizons):
        last = np.concatenate([_last_value(run, horizon) for run in runs])
        both = np.isfinite(apart[:, place]) & np.isfinite(last)
        model = np.where(both, np.abs(apart[:, place]), 0).sum(axis=0) / np.maximum(both.sum(axis=0), 1)
        plain = np.where(both, np.abs(last), 0).sum(axis=0) / np.maximum(both.sum(axis=0), 1)
        metrics[f"forecast_mae_{horizon}"] = dict(zip(names, model.tolist(), strict=True))
        metrics[f"last_value_mae_{horizon}"] = dict(zip(names, plain.tolist(), strict=True))
    return metrics


def _last_value(run: ScaledRun, horizon: int) -> Floats:
    apart = np.full(run.values.shape, np.nan)
    if horizon < len(apart):
        known = run.mask[horizon:] & run.mask[:-horizon]
        apart[horizon:] = np.where(known, run.values[horizon:] - run.values[:-horizon], np.nan)
    return apart


def _bounded(runs: Sequence[ScaledRun]) -> tuple[ScaledRun, ...]:
    """The first runs, as many as calibration can go through in a minute or two."""
    kept, total = [], 0
    for run in runs:
        if total >= MOST_CALIBRATION_TICKS:
            break
        kept.append(run)
        total += len(run.values)
    return tuple(kept)


def bundle_of(prepared: Prepared, chosen: Chosen, plan: ProcessPlan) -> tuple[ProcessManifest, ProcessBundle]:
    """The manifest, whole but for its members, and the bundle in memory with a golden sequence still to be run."""
    fitted = chosen.fitted
    step_s = prepared.step_s
    limits = default_limits(step_s)
    channels = tuple(
        ProcessChannel(
            name=prepared.logs.channels[index],
            unit=prepared.logs.units[index],
            center=float(center),
            scale=float(scale),
            flat_after_s=longest_standstill(prepared.ticks, int(index), step_s),
        )
        for index, center, scale in zip(
            prepared.scaling.kept, prepared.scaling.center, prepared.scaling.scale, strict=True
        )
    )
    bound = bound_of(fitted.statistics, limits, step_s)
    check_claim(bound, plan.claim_hours)
    longest = max(range(len(prepared.raw)), key=lambda place: len(prepared.raw[place]))
    readings = prepared.raw[longest][:GOLDEN_TICKS].astype(np.float64)
    manifest = ProcessManifest(
        name=plan.name,
        version=plan.version,
        task="warn" if plan.task == "warn" else "forecast",
        created_at=datetime.now(UTC),
        step_s=step_s,
        reset_after_s=reset_after(step_s),
        channels=channels,
        excluded={prepared.logs.channels[index]: why for index, why in prepared.scaling.excluded.items()},
        monitor=fitted.monitor,
        limits=limits,
        bound=bound,
        golden=GoldenSequence(first_at_s=0.0, tolerance=GOLDEN_TOLERANCE),
        metrics={**fitted.metrics, **chosen.metrics},
        dataset={
            "sha256": hashlib.sha256("".join(sorted(log.sha256 for log in prepared.logs.logs)).encode()).hexdigest(),
            "logs": len(prepared.logs.logs),
            "ticks": sum(len(run.values) for run in prepared.runs),
            "label": prepared.logs.label,
        },
        versions={"python": platform.python_version(), **{tool: installed_version(tool) for tool in TOOLS}},
        configuration={"task": plan.task, "model": plan.model, "shipped": chosen.model, "knobs": asdict(plan.knobs)},
        members={},
    )
    return manifest, ProcessBundle(manifest, fitted.model, readings, np.zeros(len(readings)), "0" * 64, plan.name)


def model_of(bundle: ProcessBundle) -> ProcessModel:
    """The deployed path of a bundle whose golden sequence is not known yet."""
    monitor = bundle.manifest.monitor
    network = None
    if isinstance(monitor, ForecastMonitor | WarnMonitor):
        outputs = len(monitor.horizons) * len(bundle.manifest.channels) if isinstance(monitor, ForecastMonitor) else 1
        network = LitertStep(
            bundle.model, channels=len(bundle.manifest.channels), states=monitor.states, outputs=outputs
        )
    return ProcessModel(bundle, network)


def write_process_bundle(path: Path, prepared: Prepared, chosen: Chosen, plan: ProcessPlan) -> ProcessBundle:
    """Write the bundle, read it back, replay its golden sequence, and only then give it its name.

    Raises:
        DatasetError: the calibration does not support the claim, or the golden sequence is too short for a risk.
        BundleError, GoldenMismatch: what was written does not work; nothing is left behind.
    """
    manifest, bundle = bundle_of(prepared, chosen, plan)
    risks = replay(model_of(bundle), bundle.readings, manifest.golden.first_at_s)
    if not np.isfinite(risks).any():
        raise DatasetError(f"the longest stretch without a gap, {len(risks)} ticks, is too short to warm the model up")
    members = {GOLDEN_READINGS: _table(bundle.readings), GOLDEN_RISKS: _table(risks)}
    if bundle.model:
        members[MODEL] = bundle.model

    def check(written: Path) -> ProcessBundle:
        found = read_process_bundle(written)
        load_step_model(found)
        return found

    return replace(write_checked(path, manifest, members, check), origin=str(path))


def _table(values: Floats) -> bytes:
    stream = io.BytesIO()
    np.save(stream, values, allow_pickle=False)
    return stream.getvalue()
