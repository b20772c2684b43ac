"""What a level's limits rest on, and how monitors are compared on stretches that they did not learn from."""

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from export.process_choice import KINDS, try_chart
from export.process_level import level_monitor, student_quantile
from export.train_rnn import ScaledRun, fold_of
from station.process_bundle import EwmaMonitor, LevelMonitor

MEMBERS = 4


def run_of(values: NDArray[np.float64]) -> ScaledRun:
    fold = fold_of([len(values)], MEMBERS)[0]
    return ScaledRun(values, np.ones(values.shape, np.bool_), fold, np.full(len(values), np.nan))


def walk(seed: int, ticks: int, forgets: float) -> NDArray[np.float64]:
    """A first-order process of variance 1."""
    generator = np.random.default_rng(seed)
    values = generator.normal(size=ticks)
    for place in range(1, ticks):
        values[place] = (1 - forgets) * values[place - 1] + np.sqrt(1 - (1 - forgets) ** 2) * values[place]
    return values


def test_student_quantiles_are_those_of_the_tables() -> None:
    table = {(0.05, 1): 12.706, (0.05, 10): 2.228, (0.01, 5): 4.032, (0.001, 100): 3.390}
    for (chance, freedom), expected in table.items():
        assert student_quantile(chance, freedom) == pytest.approx(expected, rel=2e-3)


def test_a_channel_that_wanders_once_through_its_log_has_a_wide_limit() -> None:
    quick, slow = walk(1, 2000, 0.9), walk(2, 2000, 0.002)

    monitor, statistics = level_monitor([run_of(np.stack([quick, slow], axis=1))], MEMBERS)

    assert monitor.limits[0] < 5 * quick.std()
    assert monitor.limits[1] > 6 * slow.std()
    assert np.nanmax(statistics) <= 1.0


def test_a_relation_that_holds_in_each_stretch_gets_a_narrow_limit() -> None:
    load = walk(3, 2000, 0.05)
    noise = np.random.default_rng(4).normal(size=(2, 2000)) * 0.05

    monitor, _ = level_monitor([run_of(np.stack([load + noise[0], load + noise[1]], axis=1))], MEMBERS)

    apart = min(range(2), key=lambda place: monitor.limits[2 + place])
    assert monitor.limits[2 + apart] < 0.1 * monitor.limits[0]
    assert monitor.directions[apart][0] * monitor.directions[apart][1] == pytest.approx(-0.5, abs=0.01)


def test_a_chart_is_tried_on_what_it_did_not_learn_from() -> None:
    load = walk(5, 1600, 0.2)
    noise = np.random.default_rng(6).normal(size=(3, 1600)) * 0.1
    run = run_of((load + noise).T)
    seen: list[int] = []

    def learn(runs: Sequence[ScaledRun], members: int) -> LevelMonitor:
        seen.append(sum(len(one.values) for one in runs))
        return level_monitor(runs, members)[0]

    trial = try_chart([run], MEMBERS, learn)

    assert seen == [1200, 800, 800, 1200]
    assert trial is not None
    assert set(trial.found) == set(KINDS)
    assert trial.found["relation"] > 0.5
    assert trial.found["step"] > 0.8
    assert trial.false < 0.05
    assert trial.score == pytest.approx(np.mean(list(trial.found.values())) - trial.false)


def test_what_alarms_in_normal_operation_is_worth_less() -> None:
    run = run_of(np.stack([walk(seed, 1200, 0.3) for seed in (7, 8, 9)], axis=1))

    careful, eager = (
        try_chart([run], MEMBERS, lambda *_, limit=limit: EwmaMonitor(rate=0.3, spread=(1.0,) * 3, limit=limit))
        for limit in (3.0, 0.05)
    )

    assert careful is not None
    assert eager is not None
    assert careful.false < 0.05
    assert eager.false > 0.9
    assert eager.score < careful.score


def test_too_short_a_log_gives_no_trial() -> None:
    assert (
        try_chart([run_of(np.zeros((80, 2)))], MEMBERS, lambda runs, members: level_monitor(runs, members)[0]) is None
    )
