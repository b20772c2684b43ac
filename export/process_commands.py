"""What `station-export train`, `evaluate` and `predict` do for the tasks forecast and warn."""

import argparse
import csv
import json
import math
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from export.folder_lock import alone_in
from export.process_arguments import CELLS, log_form
from export.process_evaluation import Played, check_units, evaluate_process, play
from export.process_logs import LogSet, read_logs
from export.process_report import choice_of, trials_of, write_process_report
from export.process_training import (
    ProcessPlan,
    choose,
    prepare,
    write_process_bundle,
)
from export.samples import DatasetError
from export.train_rnn import default_knobs
from station.adapters.litert_step import load_step_model
from station.process_bundle import Cell, ProcessBundle, read_process_bundle
from station.sensor_settings import LogForm
from station.step_model import ProcessModel

METRICS = "metrics.json"


def run_training(arguments: argparse.Namespace, data: Path, out: Path) -> int:
    """Train, calibrate, compare, and write the bundle, its figures and its report into `out`."""
    changes: dict[str, Any] = {"seed": arguments.seed}
    if arguments.steps:
        changes["steps"] = arguments.steps
    cell: Cell = arguments.model if arguments.model in CELLS else "gru"
    plan = ProcessPlan(
        task=arguments.task,
        model=arguments.model,
        knobs=default_knobs(cell, **changes),
        name=arguments.name or "process",
        version=arguments.version,
        step_s=arguments.step,
        claim_hours=arguments.claim_hours,
    )
    logs = read_logs([data], log_form(arguments), label=arguments.label, channels=arguments.channels)
    with alone_in(out):
        prepared = prepare(logs, plan, _say)
        chosen = choose(prepared, plan, _say, compared=not arguments.no_baselines)
        bundle = write_process_bundle(out / f"{plan.name}.bundle", prepared, chosen, plan)
        record = record_of(bundle)
        (out / METRICS).write_text(json.dumps(record, indent=2) + "\n")
        write_process_report(out, bundle, [play(load_step_model(bundle), log) for log in logs_for(bundle, logs)])
    for line in lines_of(bundle):
        _say(line)
    return 0


def record_of(bundle: ProcessBundle) -> dict[str, Any]:
    """The bundle's figures for machines."""
    manifest = bundle.manifest
    return {
        "bundle": manifest.name,
        "sha256": bundle.sha256,
        "task": manifest.task,
        "monitor": manifest.monitor.kind,
        "model": manifest.configuration["shipped"],
        "step_s": manifest.step_s,
        "channels": [channel.name for channel in manifest.channels],
        "excluded": dict(manifest.excluded),
        "bound": manifest.bound.model_dump(),
        "metrics": {name: dict(figures) for name, figures in manifest.metrics.items()},
    }


def lines_of(bundle: ProcessBundle) -> list[str]:
    """The same for people."""
    manifest = bundle.manifest
    lines = [f"{manifest.name} {manifest.version}: {manifest.bound.text}"]
    metrics = manifest.metrics
    lines += [
        f"  {name}: finds {np.mean(list(found.values())):.0%} of faults put into stretches that were left out "
        f"({', '.join(f'{kind} {share:.0%}' for kind, share in found.items())}), "
        f"alarms on {figures['false']:.1%} of the rest"
        for name, figures, found in trials_of(manifest)
    ]
    lines.append(f"  shipped: {choice_of(manifest)}")
    if "quantization" in metrics:
        drift = metrics["quantization"]
        lines.append(
            f"  quantized against float over {drift['ticks']:.0f} ticks: the risk differs by "
            f"{drift['risk_apart_p99']:.4f} at the 99th percentile"
        )
    return lines


def logs_for(bundle: ProcessBundle, logs: LogSet) -> list[Any]:
    """The logs with the bundle's channels only, in its order.

    Raises:
        DatasetError: a channel is not in the logs.
    """
    wanted = [channel.name for channel in bundle.manifest.channels]
    missing = [name for name in wanted if name not in logs.channels]
    if missing:
        raise DatasetError(f"{logs.logs[0].origin}: has no column {missing[0]!r}, which the bundle watches")
    places = [logs.channels.index(name) for name in wanted]
    return [replace(log, values=log.values[:, places]) for log in logs.logs]


def run_evaluation(arguments: argparse.Namespace) -> int:
    """Score a process bundle on labelled logs."""
    model, bundle, logs = _open(arguments.bundle, arguments.data, log_form(arguments), arguments.label)
    played = [play(model, log) for log in logs.logs]
    figures = evaluate_process(played, model.step_s)
    names = {"bundle": bundle.ref.name, "sha256": bundle.sha256, "logs": len(played)}
    if arguments.json:
        print(json.dumps({**names, **figures, "bound": bundle.manifest.bound.model_dump()}))
        return 0
    print(f"{bundle.ref.name} {bundle.ref.version} on {len(played)} logs, {figures['rows']:.0f} rows")
    for name, value in figures.items():
        print(f"  {name:22} {'-' if value is None else f'{value:.4g}'}")
    print(f"  {bundle.manifest.bound.text}")
    return 0


def run_prediction(arguments: argparse.Namespace) -> int:
    """Write one row a tick to standard output: time, risk, alarm state, top channel with actual and expected value.

    Raises:
        DatasetError: there is not exactly one log.
    """
    if len(arguments.files) != 1 or not arguments.files[0].is_file():
        raise DatasetError(f"bundle {arguments.bundle} watches a process: exactly one log (CSV) is expected")
    model, bundle, logs = _open(arguments.bundle, arguments.files[0], log_form(arguments), None)
    _write_rows(sys.stdout, play(model, logs.logs[0]), [channel.name for channel in bundle.manifest.channels])
    return 0


def _write_rows(stream: TextIO, played: Played, names: list[str]) -> None:
    table = csv.writer(stream)
    table.writerow(["time", "risk", "alarm", "top_channel", "actual", "expected"])
    for place, at_s in enumerate(played.ticks.at_s.tolist()):
        risk, top = float(played.risk[place]), int(played.top[place])
        state = "not_ready" if math.isnan(risk) else "alarm" if played.alarm[place] else "normal"
        actual = played.ticks.values[place, top] if top >= 0 else math.nan
        expected = played.expected[place, top] if top >= 0 else math.nan
        table.writerow(
            [
                datetime.fromtimestamp(at_s, UTC).isoformat().replace("+00:00", "Z"),
                "" if math.isnan(risk) else f"{risk:.4f}",
                state,
                names[top] if top >= 0 else "",
                "" if math.isnan(actual) else f"{actual:.6g}",
                "" if math.isnan(expected) else f"{expected:.6g}",
            ]
        )


def _open(
    bundle_path: Path, data: Path, form: LogForm, label: str | None
) -> tuple[ProcessModel, ProcessBundle, LogSet]:
    bundle = read_process_bundle(bundle_path)
    model = load_step_model(bundle)
    logs = read_logs([data], form, label=label, channels=[channel.name for channel in bundle.manifest.channels])
    check_units(bundle.manifest, logs)
    return model, bundle, logs


def _say(line: str) -> None:
    print(line, flush=True)


def _quiet(line: str) -> None:
    """The charts beside the chosen model say nothing of their own."""
