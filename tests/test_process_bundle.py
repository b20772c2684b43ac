"""From a small log to a process bundle, and its use through the deployed path."""

import json
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from export.__main__ import main
from export.process_arguments import AUTO
from export.process_calibration import bound_of, check_claim, default_limits, poisson_upper
from export.process_logs import read_logs, step_of, to_ticks
from export.process_report import choice_of
from export.process_training import ProcessPlan, choose, fit, prepare, shape_of, window_of, write_process_bundle
from export.rnn import NetworkShape, build, deployed_step
from export.samples import DatasetError
from export.train_rnn import Teacher, default_knobs
from station.adapters.litert_step import load_step_model
from station.bundle_file import MANIFEST, MODEL
from station.errors import BundleError, GoldenMismatch, LogError
from station.process_bundle import GOLDEN_RISKS, Cell, is_process_bundle, read_process_bundle
from station.step_model import replay

TICKS = 700
FAULT = slice(500, 650)


def readings(seed: int, *, faulty: bool) -> NDArray[np.float64]:
    """Pressure in Pa and flow that follow one load, a temperature that wanders, a dead channel."""
    generator = np.random.default_rng(seed)
    load = np.sin(np.arange(TICKS) / 15)
    noise = generator.normal(size=(3, TICKS))
    table = np.stack(
        [
            3e5 + 4e4 * load + 2e3 * noise[0],
            50 + 5 * load + 0.5 * noise[1],
            180 + np.cumsum(0.02 * noise[2]),
            np.full(TICKS, 7.0),
        ],
        axis=1,
    )
    if faulty:
        table[FAULT, 0] -= 1.5e5
    return table


def write_log(path: Path, seed: int = 1, *, faulty: bool = False, labelled: bool = False) -> Path:
    """A CSV log with units in the header, some empty cells and, if wanted, labels."""
    table = readings(seed, faulty=faulty)
    lines = ["time,pressure [Pa],flow [l/min],oven [°C],spare" + (",anomaly" if labelled else "")]
    for place, row in enumerate(table):
        cells = ["" if (place + column) % 97 == 0 else f"{value:.6g}" for column, value in enumerate(row)]
        if labelled:
            cells.append("" if place % 50 == 0 else str(int(faulty and FAULT.start <= place < FAULT.stop)))
        lines.append(f"{1_700_000_000 + 2 * place}," + ",".join(cells))
    path.write_text("\n".join(lines) + "\n")
    return path


def small(cell: Cell, **changes: object) -> ProcessPlan:
    """A training of a second or two."""
    knobs = default_knobs(cell, members=2, units=6, ticks=64, horizons=(1, 6, 12), steps=30, **changes)
    return ProcessPlan(model=cell, knobs=knobs)


def make(folder: Path, plan: ProcessPlan) -> Path:
    """A bundle on a log of normal operation."""
    prepared = prepare(read_logs([write_log(folder / "normal.csv")]), plan, lambda _: None)
    path = folder / "process.bundle"
    write_process_bundle(path, prepared, choose(prepared, plan, lambda _: None, compared=False), plan)
    return path


def altered(path: Path, changes: Mapping[str, bytes | None]) -> Path:
    """A copy with some members replaced, or left out."""
    copy = path.with_name("altered.bundle")
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(copy, "w") as target:
        for name in source.namelist():
            content = changes[name] if name in changes else source.read(name)
            if content is not None:
                target.writestr(name, content)
    return copy


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("gru"), small("gru"))


@pytest.mark.training
def test_a_bundle_knows_its_channels_and_leaves_the_dead_one_out(bundle: Path) -> None:
    manifest = read_process_bundle(bundle).manifest

    assert [(channel.name, channel.unit) for channel in manifest.channels] == [
        ("pressure", "Pa"),
        ("flow", "l/min"),
        ("oven", "°C"),
    ]
    assert "stands still" in manifest.excluded["spare"]
    assert manifest.step_s == 2.0
    assert manifest.bound.alarms == 0
    assert is_process_bundle(bundle)


@pytest.mark.training
def test_the_quantized_step_keeps_close_to_the_float_one(bundle: Path) -> None:
    drift = read_process_bundle(bundle).manifest.metrics["quantization"]

    assert drift["ticks"] == 10_000
    assert drift["risk_apart_p99"] <= 0.02
    assert drift["alarms_float"] == drift["alarms_quantized"]


@pytest.mark.training
def test_a_damaged_bundle_is_refused(bundle: Path) -> None:
    with pytest.raises(BundleError, match="was altered"):
        read_process_bundle(altered(bundle, {GOLDEN_RISKS: b"x"}))
    with pytest.raises(BundleError, match=f"{MODEL} is missing"):
        read_process_bundle(altered(bundle, {MODEL: None}))
    with pytest.raises(BundleError, match="JSON"):
        read_process_bundle(altered(bundle, {MANIFEST: b"{"}))
    half = bundle.with_name("half.bundle")
    half.write_bytes(bundle.read_bytes()[:2000])
    with pytest.raises(BundleError, match="whole zip"):
        read_process_bundle(half)


@pytest.mark.training
def test_another_risk_than_validated_is_a_mismatch(bundle: Path) -> None:
    found = read_process_bundle(bundle)
    found.risks[-1] += 0.1

    with pytest.raises(GoldenMismatch, match=f"tick {len(found.risks) - 1}"):
        load_step_model(found)


@pytest.mark.training
def test_a_restart_goes_on_where_it_was(bundle: Path) -> None:
    found = read_process_bundle(bundle)
    model, again = load_step_model(found), load_step_model(found)
    rows = found.readings
    mask = np.isfinite(rows)
    for place in range(100):
        model.step(2.0 * place, np.nan_to_num(rows[place]), mask[place])

    assert again.restore(model.snapshot())
    one = model.step(200.0, np.nan_to_num(rows[100]), mask[100])
    two = again.step(200.0, np.nan_to_num(rows[100]), mask[100])
    assert one.risk == two.risk
    np.testing.assert_array_equal(one.expected, two.expected)
    assert not again.restore(b"not a snapshot")
    assert again.step(0.0, np.nan_to_num(rows[0]), mask[0]).risk is None


@pytest.mark.training
def test_a_fault_is_found_and_named_and_normal_operation_is_not(bundle: Path) -> None:
    model = load_step_model(read_process_bundle(bundle))

    def risks(seed: int, *, faulty: bool) -> NDArray[np.float64]:
        return replay(model, readings(seed, faulty=faulty)[:, :3], 0.0)

    assert np.nanmax(risks(5, faulty=False)) < 0.5
    assert np.nanmax(risks(5, faulty=True)[FAULT]) >= 0.5
    model.reset()
    table = readings(5, faulty=True)[: FAULT.start + 20, :3]
    for place, row in enumerate(table):
        said = model.step(2.0 * place, row, np.ones(3, np.bool_))
    assert said.shares.argmax() == 0
    assert said.shares.sum() == pytest.approx(1.0)


@pytest.mark.training
@pytest.mark.parametrize("cell", ["gru", "lstm", "simple_rnn"])
def test_the_step_gives_what_the_sequence_gives(cell: Cell) -> None:
    shape = NetworkShape(cell, channels=3, horizons=(1, 4), members=2, units=5)
    network = build(shape, None, 3, 0.0)
    generator = np.random.default_rng(0)
    values = generator.normal(size=(1, 40, 3)).astype(np.float32)
    mask = (generator.random((1, 40, 3)) > 0.2).astype(np.float32)
    values *= mask
    step = deployed_step(network, shape, apart=True, quantized=False)

    told = np.stack([step.step(row, good) for row, good in zip(values[0], mask[0], strict=True)])

    wanted = np.asarray(network({"values": values, "mask": mask}, training=False))[0]
    np.testing.assert_allclose(told, wanted, atol=1e-4)
    mean = deployed_step(network, shape, quantized=False)
    first = mean.step(values[0, 0], mask[0, 0])
    np.testing.assert_allclose(first, wanted[0].reshape(2, -1).mean(axis=0), atol=1e-4)


def test_members_do_not_see_each_other() -> None:
    shape = NetworkShape("gru", 2, (1, 6), members=2, units=6)
    network = build(shape, 20, 0, 0.0)

    recurrent = network.get_layer("recurrent").get_weights()[1]

    assert np.abs(recurrent[:6].reshape(6, 3, 12)[:, :, 6:]).max() == 0
    assert np.abs(recurrent[:6].reshape(6, 3, 12)[:, :, :6]).min() > 0


@pytest.mark.training
def test_one_teacher_teaches_twice_the_same(tmp_path: Path) -> None:
    plan = small("gru")
    prepared = prepare(read_logs([write_log(tmp_path / "a.csv")]), plan, lambda _: None)
    teacher = Teacher(shape_of(prepared, plan.knobs), plan.knobs, window_of(prepared, plan.knobs))

    first, second = (fit(prepared, plan, lambda _: None, teacher) for _ in range(2))

    np.testing.assert_allclose(first.statistics, second.statistics, rtol=1e-3)


@pytest.mark.training
@pytest.mark.parametrize("model", ["level", "pca", "ewma"])
def test_a_plain_chart_is_shipped_trained_and_used_the_same_way(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = write_log(tmp_path / "normal.csv")
    out = tmp_path / "out"

    assert main(["train", str(log), "--task", "forecast", "--model", model, "--out", str(out)]) == 0

    faulty = write_log(tmp_path / "faulty.csv", 5, faulty=True, labelled=True)
    capsys.readouterr()
    assert main(["evaluate", str(out / "process.bundle"), "--data", str(faulty), "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["events"] == figures["events_found"] == 1
    assert figures["f1"] > 0.8
    assert main(["predict", str(out / "process.bundle"), str(faulty)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "time,risk,alarm,top_channel,actual,expected"
    assert len(lines) == TICKS + 1
    assert any(",alarm,pressure," in line for line in lines[FAULT.start : FAULT.stop])
    page = (out / "report.html").read_text()
    assert f"{model}: as asked for" in page
    assert "stretches of the logs that the monitor had not learned from" in page


@pytest.mark.training
def test_without_a_model_named_what_does_best_is_shipped_and_the_figures_of_all_are_told(tmp_path: Path) -> None:
    plan = replace(small("gru"), model=AUTO)
    prepared = prepare(read_logs([write_log(tmp_path / "normal.csv")]), plan, lambda _: None)

    chosen = choose(prepared, plan, lambda _: None)
    manifest = write_process_bundle(tmp_path / "auto.bundle", prepared, chosen, plan).manifest

    assert set(chosen.trials) == {"gru", "level", "pca", "ewma"}
    assert chosen.trials[chosen.model].score == max(chosen.trials[name].score for name in ("gru", "level")) > 0
    assert manifest.configuration["shipped"] == chosen.model
    assert {name for name in manifest.metrics if name.startswith("trial_")} == {
        f"trial_{name}" for name in chosen.trials
    }
    assert manifest.metrics["trial_level"]["score"] == chosen.trials["level"].score
    assert choice_of(manifest).startswith(f"{chosen.model}: of network and level it does better on these logs")


@pytest.mark.training
def test_labelled_faults_teach_a_warning(tmp_path: Path) -> None:
    for seed in (1, 2):
        write_log(tmp_path / f"{seed}.csv", seed, faulty=True, labelled=True)
    plan = ProcessPlan(task="warn", model="gru", knobs=default_knobs("gru", members=2, units=6, steps=60))
    prepared = prepare(read_logs([tmp_path]), plan, lambda _: None)

    found = choose(prepared, plan, lambda _: None)
    bundle = write_process_bundle(tmp_path / "warn.bundle", prepared, found, plan)

    assert found.fitted.metrics["held_out"]["f1"] > 0.8
    risks = replay(load_step_model(bundle), readings(9, faulty=True)[:, :3], 0.0)
    assert np.nanmean(risks[FAULT] >= 0.5) > 0.8
    assert np.nanmean(risks[: FAULT.start] >= 0.5) < 0.2


def test_labels_of_one_kind_teach_nothing(tmp_path: Path) -> None:
    plan = ProcessPlan(task="warn", model="gru", knobs=default_knobs("gru"))
    prepared = prepare(read_logs([write_log(tmp_path / "a.csv", labelled=True)]), plan, lambda _: None)

    with pytest.raises(DatasetError, match="both kinds"):
        fit(prepared, plan, lambda _: None)


def test_a_claim_that_the_log_does_not_support_is_refused() -> None:
    bound = bound_of(np.zeros(3600 * 6), default_limits(1.0), 1.0)

    assert bound.hours_per_alarm == pytest.approx(6 / 2.9957, rel=1e-3)
    check_claim(bound, 1.9)
    with pytest.raises(DatasetError, match="cannot be claimed"):
        check_claim(bound, 2.1)


def test_a_log_of_which_nothing_could_be_judged_supports_nothing() -> None:
    bound = bound_of(np.full(60, np.nan), default_limits(1.0), 1.0)
    assert (bound.hours, bound.hours_per_alarm) == (0.0, 0.0)
    assert bound.text.startswith("no bound of false alarms: the logs are too short")
    with pytest.raises(DatasetError, match="cannot be claimed"):
        check_claim(bound, 0.1)


def test_the_poisson_bound_is_that_of_the_tables() -> None:
    # Garwood's upper limits of 95 % for 0, 1, 2 and 10 counts.
    assert [round(poisson_upper(count), 2) for count in (0, 1, 2, 10)] == [3.0, 4.74, 6.3, 16.96]


def test_logs_that_do_not_go_together_are_refused(tmp_path: Path) -> None:
    write_log(tmp_path / "a.csv")
    (tmp_path / "b.csv").write_text("time,pressure [bar],flow,oven,spare\n1700000000,1,2,3,4\n1700000002,1,2,3,4\n")
    with pytest.raises(DatasetError, match="pressure is in bar"):
        read_logs([tmp_path])
    (tmp_path / "b.csv").write_text("time,pressure,flow,oven\n1700000000,1,2,3\n1700000002,1,2,3\n")
    with pytest.raises(DatasetError, match="no column 'spare'"):
        read_logs([tmp_path])
    (tmp_path / "b.csv").write_text("pressure,flow\n1,2\n")
    with pytest.raises(LogError, match="timestamps"):
        read_logs([tmp_path])
    with pytest.raises(DatasetError, match="is no log"):
        read_logs([tmp_path / "nothing"])


def test_the_step_is_that_of_the_log_and_rows_find_their_ticks(tmp_path: Path) -> None:
    log = read_logs([write_log(tmp_path / "a.csv", faulty=True, labelled=True)]).logs[0]

    step_s = step_of([log])
    ticks = to_ticks(log, step_s)

    assert step_s == 2.0
    assert ticks.of_row.tolist() == list(range(TICKS))
    assert np.isnan(ticks.faulty[0])
    assert ticks.faulty[FAULT][1] == 1


def test_constant_logs_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("time,a\n" + "\n".join(f"{1_700_000_000 + place},5" for place in range(200)) + "\n")

    with pytest.raises(DatasetError, match="no channel moves"):
        prepare(read_logs([path]), ProcessPlan(), lambda _: None)


@pytest.mark.training
def test_one_tick_ahead_the_forecast_is_no_worse_than_the_last_value(bundle: Path) -> None:
    metrics = read_process_bundle(bundle).manifest.metrics

    for channel, error in metrics["forecast_mae_1"].items():
        assert error <= 1.05 * metrics["last_value_mae_1"][channel]
