"""A process that ages slowly: what its log teaches must hold for the days to come, or say that it does not."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from export.__main__ import main
from export.process_calibration import (
    alarm_episodes,
    begins,
    bound_of,
    default_limits,
    on_halves,
    pca_monitor,
    run_chart,
)
from export.process_choice import try_chart
from export.process_level import level_monitor
from export.process_sides import cut_out, halves, longer_side
from export.train_rnn import ScaledRun, fold_of
from station.process_bundle import LevelMonitor
from station.risk import chart_of, risk_of

MEMBERS = 4
LEARNED, TICKS = 2000, 3000
FAULT = slice(2500, 3000)
LOGS = 20


def ageing(seed: int, *, faulty: bool = False) -> NDArray[np.float64]:
    """Three channels that follow one load and drift apart, and one that only drifts."""
    generator = np.random.default_rng(seed)
    load = np.zeros(TICKS)
    for place in range(1, TICKS):
        load[place] = 0.95 * load[place - 1] + 0.31 * generator.normal()
    age = np.cumsum(generator.normal(size=(TICKS, 3)), axis=0) * 0.01
    values = np.stack([load, load + age[:, 0], age[:, 1] - load, age[:, 2]], axis=1)
    values += 0.3 * generator.normal(size=values.shape)
    if faulty:
        values[FAULT, 1] += 6 * values[:LEARNED, 1].std()
    return values


def run_of(values: NDArray[np.float64]) -> ScaledRun:
    fold = fold_of([len(values)], MEMBERS)[0]
    return ScaledRun(values, np.ones(values.shape, np.bool_), fold, np.full(len(values), np.nan))


def in_alarm(monitor: LevelMonitor, values: NDArray[np.float64]) -> NDArray[np.bool_]:
    said = run_chart(chart_of(monitor, values.shape[1]), [run_of(values)], [None])
    return alarm_episodes(np.array([risk_of(statistic) for statistic in said]), default_limits(1.0), 1.0)


def test_the_drift_of_the_log_goes_on_without_an_alarm_and_a_fault_is_found() -> None:
    alarms, allowed, disturbed, found = 0, 0.0, 0, []
    for seed in range(LOGS):
        monitor, statistics = level_monitor([run_of(ageing(seed)[:LEARNED])], MEMBERS)
        begun = len(begins(in_alarm(monitor, ageing(seed)[LEARNED:])))
        bound = bound_of(statistics, default_limits(1.0), 1.0)
        alarms += begun
        allowed += (TICKS - LEARNED) / 3600 / bound.hours_per_alarm
        disturbed += begun > 0
        found.append(in_alarm(monitor, ageing(seed, faulty=True))[FAULT].mean())

    # By what is left out between other stretches alone, 7 of these 20 logs alarmed, 17 times.
    assert disturbed <= 4
    assert alarms <= allowed
    assert min(found) > 0.95


def test_a_log_that_drifts_supports_less_than_one_that_does_not() -> None:
    steady = run_of(np.random.default_rng(1).normal(size=(LEARNED, 4)))
    ageing_run = run_of(ageing(3)[:LEARNED])

    bounds = [
        bound_of(on_halves([run], MEMBERS, lambda runs: pca_monitor(runs, MEMBERS)), default_limits(1.0), 1.0)
        for run in (steady, ageing_run)
    ]

    assert bounds[0].hours == bounds[1].hours == pytest.approx(LEARNED / 3600)
    assert bounds[1].alarms > bounds[0].alarms
    assert bounds[1].hours_per_alarm < bounds[0].hours_per_alarm


@given(st.lists(st.integers(1, 40), min_size=1, max_size=4), st.integers(2, 5), st.data())
def test_nothing_is_learned_from_both_sides_of_what_is_tried(
    lengths: list[int], members: int, data: st.DataObject
) -> None:
    total = sum(lengths)
    number = np.arange(float(total))[:, None]
    folds = fold_of(lengths, members)
    parts = np.split(number, np.cumsum(lengths)[:-1])
    runs = [
        ScaledRun(part, np.ones(part.shape, np.bool_), fold, np.full(len(part), np.nan))
        for part, fold in zip(parts, folds, strict=True)
    ]
    member = data.draw(st.integers(0, members - 1))

    kept = [longer_side(run.fold, member, members) for run in runs]
    learned = np.concatenate([np.zeros(0), *(run.values[:, 0] for run in cut_out(runs, kept, members))])
    tried = number[np.concatenate(folds) == member, 0]

    if tried.size:
        assert (learned < tried.min()).all() or (learned > tried.max()).all()
        assert len(learned) >= (total - len(tried)) // 2 - members

    pair = halves(runs, members)
    seen = [np.concatenate([np.zeros(0), *(run.values[:, 0] for run in tried)]) for tried, _ in pair]
    assert np.concatenate(seen).tolist() == number[:, 0].tolist()
    assert [sum(len(run.values) for run in others) for _, others in pair] == [len(half) for half in reversed(seen)]


def test_a_monitor_is_tried_on_a_drift_that_it_saw_one_side_of_only() -> None:
    run = run_of(np.linspace(0, 40, 1600)[:, None] + np.random.default_rng(2).normal(size=(1600, 3)))
    shown: list[tuple[float, float]] = []

    def learn(runs: Sequence[ScaledRun], members: int) -> LevelMonitor:
        values = np.concatenate([part.values[:, 0] for part in runs])
        shown.append((float(values.min()), float(values.max())))
        return level_monitor(runs, members)[0]

    assert try_chart([run], MEMBERS, learn) is not None
    # Folds of ten each; the inner ones have twice as much on one side.
    assert [(round(low / 10), round(high / 10)) for low, high in shown] == [(1, 4), (2, 4), (0, 2), (0, 3)]


def test_a_channel_that_only_one_half_knows_disturbs_neither() -> None:
    values = np.random.default_rng(3).normal(size=(1200, 3))
    mask = np.ones(values.shape, np.bool_)
    mask[:650, 2] = False
    run = ScaledRun(np.where(mask, values, 0.0), mask, fold_of([1200], MEMBERS)[0], np.full(1200, np.nan))

    monitor, statistics = level_monitor([run], MEMBERS)

    assert np.isfinite(monitor.limits).all()
    assert bound_of(statistics, default_limits(1.0), 1.0).alarms == 0
    assert in_alarm(monitor, values + np.array([4.0 * max(monitor.limits[:2]), 0.0, 0.0])).mean() > 0.9


def write_log(path: Path, values: NDArray[np.float64], *, labelled: bool = False) -> Path:
    """Pressures in Pa, a dead channel."""
    lines = ["time,inlet [Pa],outlet [Pa],flow,oven,spare" + (",fault" if labelled else "")]
    for place, row in enumerate(values):
        cells = [f"{2e5 + 3e3 * row[0]:.7g}", f"{1e5 + 2e3 * row[1]:.7g}", f"{row[2]:.5g}", f"{180 + row[3]:.6g}", "7"]
        if labelled:
            cells.append("" if place % 50 == 0 else str(int(FAULT.start <= place + LEARNED < FAULT.stop)))
        lines.append(f"{1_700_000_000 + place}," + ",".join(cells))
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.training
def test_the_command_makes_a_bundle_that_bears_the_drift_and_tells_the_fault(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = write_log(tmp_path / "normal.csv", ageing(2)[:LEARNED])
    faulty = write_log(tmp_path / "faulty.csv", ageing(2, faulty=True)[LEARNED:], labelled=True)
    out = tmp_path / "out"

    asked = ["--task", "forecast", "--model", "level", "--no-baselines", "--out", str(out)]
    assert main(["train", str(log), *asked]) == 0
    capsys.readouterr()
    assert main(["evaluate", str(out / "process.bundle"), "--data", str(faulty), "--json"]) == 0

    figures = json.loads(capsys.readouterr().out)
    assert figures["false_alarms"] == 0
    assert figures["events"] == figures["events_found"] == 1
    assert figures["mar"] < 0.1
