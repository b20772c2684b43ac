"""Measures early warning on public data, through the deployed path; nothing here is a test.

    python tests/study_process.py skab SKAB OUT      # the 34 experiments, a bundle for each, one setting for all
    python tests/study_process.py quiet SKAB OUT     # the anomaly-free log: false alarms, forecasts, cross-validation
    python tests/study_process.py nab NAB OUT        # machine temperature, learned on the probation part only
    python tests/study_process.py speed OUT/x.bundle # ticks a second

What is finished stays in OUT, so that the same command goes on after an interruption.
"""

import argparse
import csv
import json
import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.process_arguments import AUTO, CHARTS
from export.process_calibration import alarm_episodes, begins, default_limits
from export.process_evaluation import Played, evaluate_process, play
from export.process_logs import LogSet, ProcessLog, read_logs
from export.process_training import (
    Prepared,
    ProcessPlan,
    choose,
    knobs_for,
    prepare,
    shape_of,
    window_of,
    write_process_bundle,
)
from export.train_rnn import Teacher, default_knobs
from station.adapters.litert_step import load_step_model
from station.process_bundle import Cell, read_process_bundle
from station.process_messages import Readings
from station.risk import risk_of
from station.sensor_settings import LogForm
from station.window import Channel, Window

SKAB_TRAIN_ROWS = 400
LEADER_FALSE_ALARMS = 0.1355
SENSITIVITY = (0.8, 0.85, 0.9, 0.95, 1.0, 1.04, 1.08, 1.12, 1.16, 1.25, 1.5)
"""Factors on the limit."""
NAB_FILE = "realKnownCause/machine_temperature_system_failure.csv"
NAB_PROBATION_ROWS = 750
"""15 %, of at most 5,000 rows (NAB's `getProbationPeriod`)."""
NAB_FALSE_WEIGHT, NAB_MISS_WEIGHT = 0.11, 1.0
"""The standard profile."""


def part_of(logs: LogSet, first: int, last: int) -> LogSet:
    """Some rows of each log, without labels."""
    return LogSet(
        logs.channels,
        logs.units,
        None,
        tuple(
            ProcessLog(
                log.origin,
                log.sha256,
                log.time_s[first:last],
                log.values[first:last],
                np.full(len(log.time_s[first:last]), np.nan),
            )
            for log in logs.logs
        ),
    )


class Teachers:
    """One compiled network for all logs of the same shape."""

    def __init__(self) -> None:
        self._kept: dict[tuple[Any, ...], Teacher] = {}

    def of(self, prepared: Prepared, plan: ProcessPlan) -> Teacher | None:
        if plan.model in CHARTS:
            return None
        knobs = knobs_for(prepared, plan.knobs)
        shape, ticks = shape_of(prepared, knobs), window_of(prepared, knobs)
        key = (shape, ticks, knobs)
        if key not in self._kept:
            self._kept[key] = Teacher(shape, knobs, ticks)
        return self._kept[key]


def plan_of(model: str) -> ProcessPlan:
    """The defaults, for a cell or a chart."""
    cells: dict[str, Cell] = {"lstm": "lstm", "simple_rnn": "simple_rnn"}
    return ProcessPlan(model=model, knobs=default_knobs(cells.get(model, "gru")))


def make(path: Path, logs: LogSet, plan: ProcessPlan, teachers: Teachers) -> None:
    """Write a bundle, unless it is there."""
    if path.exists():
        return
    prepared = prepare(logs, plan, quiet)
    chosen = choose(prepared, plan, quiet, teachers.of(prepared, plan), compared=False)
    write_process_bundle(path, prepared, chosen, plan)


def quiet(line: str) -> None:
    """No progress."""


def statistic_of(risk: NDArray[np.float64]) -> NDArray[np.float64]:
    """Back from the risk to the statistic."""
    return np.asarray(np.sqrt(-np.log2(np.maximum(1 - risk, 1e-300))))


def skab(folder: Path, out: Path, models: Sequence[str]) -> None:
    """The protocol: per file the first 400 rows train as they are, the rest tests, pooled."""
    files = [file for part in ("valve1", "valve2", "other") for file in sorted((folder / part).glob("*.csv"))]
    teachers = Teachers()
    results: dict[str, Any] = {}
    for model in models:
        played: list[Played] = []
        for place, file in enumerate(files):
            plan = plan_of(model)
            path = out / model / f"{file.parent.name}-{file.stem}.bundle"
            logs = read_logs([file])
            make(path, part_of(logs, 0, SKAB_TRAIN_ROWS), plan, teachers)
            played.append(play(load_step_model(read_process_bundle(path)), logs.logs[0]))
            progress(f"{model} {place + 1}/{len(files)}")
        results[model] = evaluate_process(played, 1.0, SKAB_TRAIN_ROWS)
        limits = {factor: with_limit(played, factor) for factor in SENSITIVITY}
        results[f"{model}_limit_times"] = {
            str(factor): pick(evaluate_process(limits[factor], 1.0, SKAB_TRAIN_ROWS)) for factor in SENSITIVITY
        }
        results[f"{model}_shipped"] = shipped(out / model)
        if model not in CHARTS:
            results[f"{model}_cross_chosen"] = cross_chosen(limits)
            results[f"{model}_files"] = {
                f"{one.log.origin[-14:]}": pick(evaluate_process([one], 1.0, SKAB_TRAIN_ROWS)) for one in played
            }
            results[f"{model}_quantization"] = worst_drift(out / model)
    finish(out / "skab.json", results)


def cross_chosen(limits: Mapping[float, Sequence[Played]]) -> dict[str, Any]:
    """The limit's factor chosen on one half of the files, scored on the other half, and the other way round.

    Chosen is the best F1 with at most 13.55 % false alarms.
    """
    count = len(limits[1.0])
    chosen: list[Played] = []
    factors = []
    for half in (0, 1):
        others = [place for place in range(count) if place % 2 != half]
        scores = {
            factor: evaluate_process([played[place] for place in others], 1.0, SKAB_TRAIN_ROWS)
            for factor, played in limits.items()
        }
        fitting = [factor for factor in scores if (scores[factor]["far"] or 0.0) <= LEADER_FALSE_ALARMS]
        best = max(fitting, key=lambda factor: _f1(scores[factor]))
        factors.append(best)
        chosen += [limits[best][place] for place in range(count) if place % 2 == half]
    return {"factors": factors, **pick(evaluate_process(chosen, 1.0, SKAB_TRAIN_ROWS))}


def _f1(figures: Mapping[str, float | None]) -> float:
    return figures["f1"] or 0.0


def with_limit(played: Sequence[Played], factor: float) -> list[Played]:
    """The same risks with another limit."""
    changed = []
    for one in played:
        known = np.isfinite(one.risk)
        risk = np.full(len(one.risk), np.nan)
        risk[known] = [risk_of(value / factor) for value in statistic_of(one.risk[known])]
        limits = default_limits(1.0)
        changed.append(Played(one.log, one.ticks, risk, alarm_episodes(risk, limits, 1.0), one.top, one.expected))
    return changed


def shipped(folder: Path) -> dict[str, int]:
    """Model → number of bundles that have it."""
    return dict(
        Counter(str(read_process_bundle(path).manifest.configuration["shipped"]) for path in folder.glob("*.bundle"))
    )


def worst_drift(folder: Path) -> dict[str, float]:
    """Of all bundles: the largest difference between the quantized and the float step."""
    metrics = [read_process_bundle(path).manifest.metrics for path in sorted(folder.glob("*.bundle"))]
    drifts = [dict(figures["quantization"]) for figures in metrics if "quantization" in figures]
    if not drifts:
        return {"bundles": 0.0}
    return {
        "bundles": float(len(drifts)),
        "risk_apart_p99_worst": max(drift["risk_apart_p99"] for drift in drifts),
        "risk_apart_p99_median": float(np.median([drift["risk_apart_p99"] for drift in drifts])),
        "alarms_float": sum(drift["alarms_float"] for drift in drifts),
        "alarms_quantized": sum(drift["alarms_quantized"] for drift in drifts),
        "alarm_ticks_apart": sum(drift["alarm_ticks_apart"] for drift in drifts),
    }


def pick(figures: Mapping[str, float | None]) -> dict[str, float | None]:
    """The three that count."""
    return {name: figures[name] for name in ("f1", "far", "mar", "event_recall", "false_alarms")}


def quiet_log(folder: Path, out: Path, models: Sequence[str]) -> None:
    """False alarms on a part held out in time, forecasts against the last value, cross-validation over stretches."""
    logs = read_logs([folder / "anomaly-free" / "anomaly-free.csv"])
    rows = len(logs.logs[0].time_s)
    teachers = Teachers()
    results: dict[str, Any] = {}
    for model in models:
        plan = plan_of(model)
        cuts = {"first 60 %": (0, int(rows * 0.6), int(rows * 0.6), rows)}
        cuts |= {f"fold {k}": (0, 0, rows * k // 5, rows * (k + 1) // 5) for k in range(5)}
        for name, (first, last, test_first, test_last) in cuts.items():
            path = out / f"quiet-{model}-{name.replace(' ', '')}.bundle"
            if name.startswith("fold"):
                before, after = part_of(logs, 0, test_first), part_of(logs, test_last, rows)
                parts = tuple(log for log in (*before.logs, *after.logs) if len(log.time_s) > 100)
                train = LogSet(logs.channels, logs.units, None, parts)
            else:
                train = part_of(logs, first, last)
            make(path, train, plan, teachers)
            bundle = read_process_bundle(path)
            test = part_of(logs, test_first, test_last).logs[0]
            figures = evaluate_process([play(load_step_model(bundle), test)], 1.0)
            hours = figures["hours"] or 0.0
            allowed = hours / max(bundle.manifest.bound.hours_per_alarm, 1e-9)
            results[f"{model}, {name}"] = {
                "alarms": figures["alarms"],
                "hours": hours,
                "bound": bundle.manifest.bound.text,
                "alarms_allowed_by_bound": allowed,
                **({"mae": mae(bundle.manifest.metrics)} if "forecast_mae_1" in bundle.manifest.metrics else {}),
            }
            progress(f"{model} {name}: {figures['alarms']}")
    finish(out / "quiet.json", results)


def mae(metrics: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, str]]:
    """Mean absolute error of the forecasts, and the last value's, by horizon and channel."""
    found: dict[str, dict[str, str]] = {}
    for name, figures in metrics.items():
        if name.startswith("forecast_mae_"):
            horizon = name.removeprefix("forecast_mae_")
            last = metrics[f"last_value_mae_{horizon}"]
            found[horizon] = {channel: f"{value:.3f} / {last[channel]:.3f}" for channel, value in figures.items()}
    return found


def nab(folder: Path, out: Path, models: Sequence[str]) -> None:
    """Each labelled failure with its lead or delay, false alarms a week, and the standard score."""
    windows = json.loads((folder / "labels" / "combined_windows.json").read_text())[NAB_FILE]
    failures = json.loads((folder / "labels" / "combined_labels.json").read_text())[NAB_FILE]
    logs = read_logs([folder / "data" / NAB_FILE], LogForm(backwards="keep"))
    teachers = Teachers()
    results: dict[str, Any] = {"published": published(folder)}
    for model in models:
        plan = plan_of(model)
        path = out / f"nab-{model}.bundle"
        make(path, part_of(logs, 0, NAB_PROBATION_ROWS), plan, teachers)
        bundle = read_process_bundle(path)
        one = play(load_step_model(bundle), logs.logs[0])
        step_s = bundle.manifest.step_s
        onsets = [
            place for place in begins(one.alarm).tolist() if one.ticks.at_s[place] > one.log.time_s[NAB_PROBATION_ROWS]
        ]
        spans = [(seconds(first), seconds(last)) for first, last in windows]
        events = []
        for (first_s, last_s), failure in zip(spans, failures, strict=True):
            at = [float(one.ticks.at_s[place]) for place in onsets if first_s <= one.ticks.at_s[place] <= last_s]
            events.append(
                {
                    "failure": failure,
                    "lead_h": None if not at else round((seconds(failure) - at[0]) / 3600, 1),
                    "hours_into_window": None if not at else round((at[0] - first_s) / 3600, 1),
                }
            )
        false = [place for place in onsets if not any(first <= one.ticks.at_s[place] <= last for first, last in spans)]
        weeks = (len(one.ticks.at_s) - NAB_PROBATION_ROWS) * step_s / 604_800
        results[model] = {
            "events": events,
            "false_alarms": len(false),
            "false_at": [datetime.fromtimestamp(one.ticks.at_s[place], UTC).isoformat() for place in false],
            "false_alarms_per_week": len(false) / weeks,
            "standard_score": nab_score(one, onsets, spans),
            "bound": bundle.manifest.bound.text,
            "hours_in_alarm": float(one.alarm.sum()) * step_s / 3600,
        }
    finish(out / "nab.json", results)


def seconds(text: str) -> float:
    """Since 1970."""
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


def nab_score(one: Played, onsets: Sequence[int], spans: Sequence[tuple[float, float]]) -> float:
    """NAB's raw score of one file in the standard profile (Lavin and Ahmad, ICMLA 2015), from its published formula.

    A detection is the tick where an alarm comes; the best in each window counts.
    """

    def scaled(position: float) -> float:
        return -1.0 if position > 3 else 2 / (1 + math.exp(5 * position)) - 1

    at_s = one.ticks.at_s
    places = [(int(np.searchsorted(at_s, first)), int(np.searchsorted(at_s, last))) for first, last in spans]
    total = 0.0
    for first, last in places:
        inside = [
            scaled(-(last - place + 1) / (last - first + 1)) / scaled(-1.0)
            for place in onsets
            if first <= place <= last
        ]
        total += max(inside) if inside else -NAB_MISS_WEIGHT
    for place in onsets:
        if any(first <= place <= last for first, last in places):
            continue
        before = [(first, last) for first, last in places if last < place]
        if not before:
            total -= NAB_FALSE_WEIGHT
        else:
            first, last = before[-1]
            total += NAB_FALSE_WEIGHT * scaled((place - last) / (last - first))
    return total


def published(folder: Path) -> dict[str, float]:
    """Scores of other detectors on the same file."""
    with (folder / "published_standard_scores.csv").open() as stream:
        return {row["Detector"]: float(row["Score"]) for row in csv.DictReader(stream) if row["File"] == NAB_FILE}


def speed(path: Path) -> None:
    """Reading → window → step → risk, one row a tick, one core; and the bare interpreter beside it."""
    bundle = read_process_bundle(path)
    model = load_step_model(bundle)
    names = [channel.name for channel in bundle.manifest.channels]
    step_s = bundle.manifest.step_s
    window = Window([Channel(name, "s", name, 5 * step_s) for name in names], step_s=step_s)
    window.connect("s", names)
    rows = np.nan_to_num(np.tile(bundle.readings, (100, 1))[:20_000])
    readings = [Readings("s", place * step_s, 0.0, tuple(row)) for place, row in enumerate(rows.tolist())]

    def timed(work: Callable[[], None]) -> float:
        began = time.process_time()
        work()
        return len(rows) / (time.process_time() - began)

    def whole() -> None:
        for reading in readings:
            for tick in window.put(reading):
                model.step(tick.at_s, tick.values, tick.mask)

    mask = np.ones(len(names), np.bool_)

    def steps() -> None:
        for place, row in enumerate(rows):
            model.step(place * step_s, row, mask)

    network = model._network
    values, good = rows[0].astype(np.float32) * 0, mask.astype(np.float32)

    def bare() -> None:
        assert network is not None
        for _ in range(len(rows)):
            network.step(values, good)

    print(json.dumps({"channels": len(names), "ticks_per_s": timed(whole), "step_and_risk_per_s": timed(steps)}))
    if network is not None:
        print(json.dumps({"interpreter_and_state_per_s": timed(bare)}))


def finish(path: Path, results: Mapping[str, Any]) -> None:
    """Keep and print."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n")
    print(path.read_text())


def progress(line: str) -> None:
    """A line on standard error."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def main() -> None:
    """Run one study."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=["skab", "quiet", "nab", "speed"])
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path, nargs="?")
    parser.add_argument("--models", nargs="+", default=[AUTO, "gru", *CHARTS])
    arguments = parser.parse_args()
    if arguments.study == "speed":
        speed(arguments.data)
        return
    studies = {"skab": skab, "quiet": quiet_log, "nab": nab}
    studies[arguments.study](arguments.data, arguments.out, arguments.models)


if __name__ == "__main__":
    main()
