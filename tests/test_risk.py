"""The charts, from scaled readings and forecasts to a risk."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from station.process_bundle import EwmaMonitor, ForecastMonitor, LevelMonitor, Memory, PcaMonitor, WarnMonitor
from station.risk import Chart, ForecastChart, chart_of, risk_of

AnyMonitor = ForecastMonitor | WarnMonitor | PcaMonitor | EwmaMonitor | LevelMonitor
CHANNELS = 3
ALL = np.ones(CHANNELS, np.bool_)


def forecast_monitor(**changes: object) -> ForecastMonitor:
    values: dict[str, object] = {
        "cell": "gru",
        "states": (4,),
        "horizons": (1, 5),
        "judged": (1,),
        "input_clip": 4.0,
        "settle": 3,
        "memory": Memory(),
        "residual_spread": (1.0,) * 6,
        "memory_spread": (0.25,) * 3,
        "low": (-3.0,) * 3,
        "high": (3.0,) * 3,
        "follow": (0.0,) * 6,
        "limit": 2.5,
    }
    return ForecastMonitor.model_validate(values | changes)


def pca_monitor() -> PcaMonitor:
    return PcaMonitor(mean=(0.0, 0.0, 0.0), components=((0.6, 0.8, 0.0),), variances=(2.0,), t2_limit=9.0, q_limit=6.0)


def level_monitor() -> LevelMonitor:
    """The first two channels keep together: their difference has a limit a tenth of theirs."""
    half = 0.5**0.5
    return LevelMonitor(
        rate=1.0, mean=(0.0, 0.0, 0.0), directions=((half, half, 0.0), (half, -half, 0.0)), limits=(3, 3, 3, 4, 0.3)
    )


MONITORS = (
    forecast_monitor(),
    forecast_monitor(precision=((1.2, -0.3, 0.0), (-0.3, 1.2, 0.0), (0.0, 0.0, 1.0))),
    WarnMonitor(cell="gru", states=(4,), input_clip=4.0, settle=3, rate=0.3, offset=0.5),
    pca_monitor(),
    EwmaMonitor(rate=0.2, spread=(0.4, 0.4, 0.4), limit=3.0),
    level_monitor(),
)


def outputs_of(chart: Chart) -> NDArray[np.float64]:
    """What a network that always expects the usual would say: zeros, of a width that fits."""
    return np.zeros(6 if isinstance(chart, ForecastChart) else 1)


def feed(chart: Chart, rows: NDArray[np.float64], mask: NDArray[np.bool_] = ALL) -> list[float | None]:
    """The statistic after each row."""
    told = outputs_of(chart)
    return [chart.update(np.where(mask, row, 0.0), mask, told).statistic for row in rows]


@pytest.mark.parametrize("monitor", MONITORS, ids=lambda monitor: monitor.kind)
@settings(max_examples=30)
@given(data=st.data())
def test_a_risk_lies_in_zero_to_one_and_parts_are_not_negative(monitor: AnyMonitor, data: st.DataObject) -> None:
    chart = chart_of(monitor, CHANNELS)
    number = st.floats(-50, 50)
    for _ in range(data.draw(st.integers(1, 30))):
        mask = np.array(data.draw(st.lists(st.booleans(), min_size=CHANNELS, max_size=CHANNELS)))
        row = np.array(data.draw(st.lists(number, min_size=CHANNELS, max_size=CHANNELS)))
        evidence = chart.update(np.where(mask, row, 0.0), mask, outputs_of(chart) + data.draw(number))
        assert (evidence.parts >= 0).all()
        if evidence.statistic is not None:
            assert 0.0 <= risk_of(evidence.statistic) <= 1.0
            assert mask.any()
            assert evidence.parts[~mask].sum() == 0


def test_the_risk_is_one_half_at_the_limit_and_grows() -> None:
    assert risk_of(1.0) == 0.5
    assert risk_of(0.0) == 0.0
    assert [risk_of(value) for value in (0.5, 1.0, 2.0)] == sorted(risk_of(value) for value in (0.5, 1.0, 2.0))


def test_there_is_no_risk_before_the_first_forecast_has_come_due() -> None:
    statistics = feed(chart_of(forecast_monitor(), CHANNELS), np.zeros((20, CHANNELS)))

    assert statistics[: 5 + 3] == [None] * 8
    assert None not in statistics[8:]


def test_the_memory_of_a_lasting_shift_grows_and_stays() -> None:
    chart = chart_of(forecast_monitor(), CHANNELS)
    feed(chart, np.zeros((20, CHANNELS)))
    shifted = np.tile([3.0, 0.0, 0.0], (400, 1))

    statistics = [value for value in feed(chart, shifted) if value is not None]

    assert statistics[:30] == sorted(statistics[:30])
    assert min(statistics[30:]) > 1.0


def test_a_channel_that_wanders_by_nature_is_followed_out_of_its_range() -> None:
    still, wandering = (
        chart_of(forecast_monitor(follow=(0.0,) * 3 + (share,) * 3, high=(0.2,) * 3), CHANNELS) for share in (0.0, 1.0)
    )
    ramp = np.linspace(0, 9, 900)[:, None] * np.array([1.0, 0.0, 0.0])

    alone, followed = feed(still, ramp)[-1], feed(wandering, ramp)[-1]

    assert alone is not None
    assert followed is not None
    assert alone > 1.0 > followed


def test_a_slow_drift_counts_once_the_offset_is_used_up() -> None:
    chart = chart_of(forecast_monitor(), CHANNELS)
    feed(chart, np.zeros((20, CHANNELS)))
    ramp = np.linspace(0, 6, 4000)[:, None] * np.array([1.0, 0.0, 0.0])

    statistics = np.array([value for value in feed(chart, ramp) if value is not None])

    assert statistics[:800].max() < 1.0
    assert statistics[-200:].min() > 1.0


def test_where_channels_move_together_the_one_that_leaves_counts_more() -> None:
    correlation = np.array([[1.0, 0.9, 0.0], [0.9, 1.0, 0.0], [0.0, 0.0, 1.0]])
    monitor = forecast_monitor(precision=tuple(map(tuple, np.linalg.inv(correlation).tolist())))
    together, apart = (chart_of(monitor, CHANNELS) for _ in range(2))

    both = feed(together, np.tile([1.0, 1.0, 0.0], (40, 1)))[-1]
    one = feed(apart, np.tile([1.0, -1.0, 0.0], (40, 1)))[-1]

    assert both is not None
    assert one is not None
    assert one > 2 * both


def test_a_channel_that_drops_out_does_not_make_its_companion_look_faulty() -> None:
    correlation = np.array([[1.0, 0.99, 0.0], [0.99, 1.0, 0.0], [0.0, 0.0, 1.0]])
    chart = chart_of(forecast_monitor(precision=tuple(map(tuple, np.linalg.inv(correlation).tolist()))), CHANNELS)
    together = np.tile([1.0, 1.0, 0.0], (40, 1))
    before = feed(chart, together)[-1]

    after = feed(chart, together[:1], np.array([True, False, True]))[0]

    assert before is not None
    assert after is not None
    assert after < 1.3 * before


@pytest.mark.parametrize("monitor", MONITORS, ids=lambda monitor: monitor.kind)
def test_what_a_masked_channel_says_changes_nothing(
    monitor: AnyMonitor,
) -> None:
    mask = np.array([True, True, False])
    rows = np.random.default_rng(1).normal(size=(60, CHANNELS))
    wild = rows.copy()
    wild[:, 2] = 40.0

    assert feed(chart_of(monitor, CHANNELS), rows, mask) == feed(chart_of(monitor, CHANNELS), wild, mask)


@pytest.mark.parametrize("monitor", MONITORS, ids=lambda monitor: monitor.kind)
def test_a_chart_goes_on_from_its_memory(monitor: AnyMonitor) -> None:
    rows = np.random.default_rng(2).normal(size=(60, CHANNELS))
    whole, first, second = (chart_of(monitor, CHANNELS) for _ in range(3))
    expected = feed(whole, rows)
    feed(first, rows[:30])

    second.recall({name: table.copy() for name, table in first.memory().items()})

    assert feed(second, rows[30:]) == expected[30:]


def test_a_memory_of_another_chart_is_refused() -> None:
    for monitor in MONITORS:
        with pytest.raises((KeyError, ValueError)):
            chart_of(monitor, CHANNELS).recall({"tick": np.zeros(1), "odd": np.zeros(1)})


def test_the_warning_risk_is_the_probability_of_the_log_odds() -> None:
    chart = chart_of(WarnMonitor(cell="gru", states=(4,), input_clip=4.0, settle=0, rate=1.0, offset=0.0), CHANNELS)
    for odds in (-3.0, 0.0, 2.0):
        statistic = chart.update(np.zeros(CHANNELS), ALL, np.array([odds])).statistic
        assert statistic is not None
        assert risk_of(statistic) == pytest.approx(1 / (1 + np.exp(-odds)))


def test_pca_blames_the_channel_that_leaves_the_plane() -> None:
    chart = chart_of(pca_monitor(), CHANNELS)

    evidence = chart.update(np.array([0.0, 0.0, 5.0]), ALL, None)

    assert evidence.statistic is not None
    assert evidence.statistic > 1.0
    assert int(evidence.parts.argmax()) == 2


def test_a_level_counts_by_its_own_limit_and_names_what_it_expected() -> None:
    chart = chart_of(level_monitor(), CHANNELS)

    evidence = chart.update(np.array([0.0, 0.0, 6.0]), ALL, None)

    assert evidence.statistic == pytest.approx(2.0)
    assert int(evidence.parts.argmax()) == 2
    assert evidence.expected.tolist() == pytest.approx([0.0, 0.0, 0.0])


def test_a_relation_that_breaks_counts_where_each_channel_is_usual() -> None:
    chart = chart_of(level_monitor(), CHANNELS)

    together = chart.update(np.array([1.0, 1.0, 0.0]), ALL, None).statistic
    apart = chart.update(np.array([1.0, 0.0, 0.0]), ALL, None)

    assert together == pytest.approx(2**0.5 / 4)
    assert apart.statistic == pytest.approx(0.5**0.5 / 0.3)
    assert int(apart.parts.argmax()) == 0
    assert apart.expected.tolist() == pytest.approx([0.5, 0.5, 0.0])


def test_a_channel_that_is_missing_breaks_no_relation() -> None:
    chart = chart_of(level_monitor(), CHANNELS)

    statistic = chart.update(np.array([1.0, 0.0, 0.0]), np.array([True, False, True]), None).statistic

    assert statistic == pytest.approx(2**0.5 / 4, rel=0.05)
