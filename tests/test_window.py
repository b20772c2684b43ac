"""Irregular readings onto a fixed step."""

import math
import random
from collections.abc import Iterable, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from station.errors import ConfigurationError
from station.messages import SourceStateName
from station.process_messages import QUALITIES, ChannelQuality, Readings, SourceEvent, Tick
from station.window import MAX_WAITING, Channel, Window

BEGIN_S = 1_700_000_000.0
NAN = math.nan
GOOD, ABSENT = ChannelQuality.GOOD, ChannelQuality.ABSENT


def window(*channels: Channel, **options: float) -> Window:
    made = Window(channels or (channel("a"), channel("b")), step_s=1.0, **options)
    for source in {one.source for one in made.channels}:
        made.connect(source, [one.point for one in made.channels if one.source == source])
    return made


def channel(name: str, source: str = "plc", **options: float | None) -> Channel:
    return Channel(name, source, name, **{"max_age_s": 3.0, **options})  # type: ignore[arg-type]


def row(
    at_s: float, *values: float, qualities: Sequence[ChannelQuality] | None = None, source: str = "plc"
) -> Readings:
    return Readings(source, BEGIN_S + at_s, 0.0, values, tuple(qualities) if qualities else None)


def feed(made: Window, rows: Iterable[Readings], now_s: float | None = None) -> list[Tick]:
    return [tick for one in rows for tick in made.put(one, None if now_s is None else BEGIN_S + now_s)]


def qualities(tick: Tick) -> list[ChannelQuality]:
    return [QUALITIES[code] for code in tick.codes]


def test_rows_on_the_step_close_their_own_tick() -> None:
    ticks = feed(window(), [row(t, t, 10 * t) for t in range(4)])
    assert [tick.at_s - BEGIN_S for tick in ticks] == [0, 1, 2, 3]
    assert [tick.values.tolist() for tick in ticks] == [[0, 0], [1, 10], [2, 20], [3, 30]]
    assert all(tick.mask.all() and tick.enough and not tick.restart for tick in ticks)


def test_rows_between_the_steps_count_for_the_next_one() -> None:
    ticks = feed(window(), [row(0.0, 1, 1), row(0.4, 2, 2), row(0.9, 3, 3), row(1.3, 4, 4), row(2.0, 5, 5)])
    assert [(tick.at_s - BEGIN_S, tick.values[0]) for tick in ticks] == [(0, 1), (1, 3), (2, 5)]


def test_a_value_is_held_until_its_age_and_then_the_channel_is_bad() -> None:
    rows = [row(0, 1, 1)] + [row(t, 0, 2, qualities=[ABSENT, GOOD]) for t in range(1, 7)]
    ticks = feed(window(), rows)
    assert [bool(tick.mask[0]) for tick in ticks] == [True, True, True, True, False, False]
    assert ticks[3].values[0] == 1
    assert ticks[4].values[0] == 0
    assert qualities(ticks[4]) == [ChannelQuality.STALE, GOOD]


def test_scale_and_offset_come_before_the_range() -> None:
    made = window(channel("a", scale=0.1, offset=-20.0, minimum=0.0, maximum=100.0))
    ticks = feed(made, [row(0, 300.0), row(1, 1300.0), row(2, 200.0), row(3, 1200.0), row(4, 199.9)])
    assert [tick.values[0] for tick in ticks] == pytest.approx([10.0, 0.0, 0.0, 100.0, 0.0])
    assert [qualities(tick)[0] for tick in ticks] == [
        GOOD,
        ChannelQuality.OUT_OF_RANGE,
        GOOD,
        GOOD,
        ChannelQuality.OUT_OF_RANGE,
    ]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_bad_and_never_zero_for_the_model(value: float) -> None:
    tick = feed(window(), [row(0, value, 1.0)])[0]
    assert qualities(tick) == [ChannelQuality.NOT_A_NUMBER, GOOD]
    assert not tick.mask[0]
    assert np.isfinite(tick.values).all()


def test_values_that_are_all_the_same_are_a_flat_line_and_small_moves_are_stuck() -> None:
    made = window(channel("a", flat_after_s=3.0), channel("b", flat_after_s=3.0, deadband=0.5), channel("c"))
    ticks = feed(made, [row(t, 7.0, 7.0 + 0.1 * (t % 2), 7.0) for t in range(6)])
    assert [qualities(tick)[0] for tick in ticks] == [GOOD] * 3 + [ChannelQuality.FLAT_LINE] * 3
    assert [qualities(tick)[1] for tick in ticks] == [GOOD] * 3 + [ChannelQuality.STUCK] * 3
    assert [qualities(tick)[2] for tick in ticks] == [GOOD] * 6
    assert qualities(feed(made, [row(6, 8.0, 8.0, 7.0)])[0]) == [GOOD] * 3


def test_repeated_and_out_of_order_rows_change_nothing() -> None:
    made = window()
    ticks = feed(made, [row(0, 1, 1), row(1, 2, 2), row(1, 9, 9), row(0, 8, 8), row(2, 3, 3)])
    assert [tick.values[0] for tick in ticks] == [1, 2, 3]
    assert (made.counts.repeated, made.counts.out_of_order, made.counts.late) == (1, 1, 2)


def test_with_lateness_rows_may_come_out_of_order() -> None:
    made = window(lateness_s=2.0)
    ticks = feed(made, [row(t, t, t) for t in (0, 2, 1, 4, 3, 5, 6)])
    assert [(tick.at_s - BEGIN_S, tick.values[0]) for tick in ticks] == [(0, 0), (1, 1), (2, 2), (3, 3), (4, 4)]


def test_a_row_that_comes_after_its_tick_counts_for_the_next_one() -> None:
    made = window(channel("a", "p"), channel("b", "q"))
    made.put(row(0, 1, source="p"))
    made.put(row(0, 1, source="q"))
    made.advance(BEGIN_S + 1.6)
    assert made.put(row(0.8, 5, source="p")) == []
    assert made.counts.late == 1
    assert made.advance(BEGIN_S + 2.6)[-1].values[0] == 5


def test_a_tick_waits_for_every_living_source_and_not_for_a_dead_one() -> None:
    made = window(channel("a", "p"), channel("b", "q"))
    assert feed(made, [row(0, 1, source="p"), row(1, 2, source="p")], now_s=0.2) == []
    assert len(feed(made, [row(0, 1, source="q")], now_s=0.3)) == 1
    ticks = made.source_changed(SourceEvent("q", SourceStateName.DOWN, BEGIN_S + 1, "gone"))
    assert [qualities(tick) for tick in ticks] == [[GOOD, ChannelQuality.SOURCE_FAULT]]
    ticks = feed(made, [row(2, 3, source="p")], now_s=2.0)
    assert [qualities(tick) for tick in ticks] == [[GOOD, ChannelQuality.SOURCE_FAULT]]
    assert feed(made, [row(3, 3, source="q"), row(3, 3, source="p")], now_s=3.0)[-1].mask.all()


def test_silence_does_not_stop_the_ticks() -> None:
    made = window()
    feed(made, [row(0, 1, 1)], now_s=0)
    ticks = made.advance(BEGIN_S + 10.6)
    assert [tick.at_s - BEGIN_S for tick in ticks] == list(range(1, 11))
    assert [tick.enough for tick in ticks] == [True] * 3 + [False] * 7


def test_a_source_that_never_speaks_leaves_its_channels_missing() -> None:
    made = window()
    made.advance(BEGIN_S)
    assert qualities(made.advance(BEGIN_S + 1.6)[-1]) == [ChannelQuality.MISSING] * 2


def test_rows_that_hold_some_points_close_only_the_ticks_before_them() -> None:
    made = window()
    ticks = feed(
        made,
        [
            row(0, 1, NAN, qualities=[GOOD, ABSENT]),
            row(0, NAN, 2, qualities=[ABSENT, GOOD]),
            row(1, 3, NAN, qualities=[GOOD, ABSENT]),
        ],
    )
    assert [tick.values.tolist() for tick in ticks] == [[1, 2]]


def test_a_long_gap_restarts_and_a_short_one_is_made_up() -> None:
    made = window(reset_after_s=10.0)
    assert len(feed(made, [row(0, 1, 1), row(8, 2, 2)])) == 9
    ticks = feed(made, [row(1000.4, 3, 3), row(1001.4, 4, 4)])
    assert [(tick.at_s - BEGIN_S, tick.restart, tick.values[0]) for tick in ticks] == [(1001, True, 3)]
    assert made.counts.restarts == 1


def test_a_clock_that_was_set_back_begins_anew() -> None:
    made = window()
    feed(made, [row(t, 1, 1) for t in range(3)], now_s=3.0)
    made.advance(BEGIN_S - 3600)
    ticks = feed(made, [row(-3600 + t, t, t) for t in range(2)], now_s=-3599.0)
    assert ticks[0].restart
    assert [tick.values[0] for tick in ticks] == [0, 1]


def test_a_row_from_the_future_is_a_wrong_clock() -> None:
    made = window()
    feed(made, [row(0, 1, 1)], now_s=0.0)
    assert feed(made, [row(3600, 2, 2)], now_s=0.5) == []
    assert qualities(made.advance(BEGIN_S + 1.6)[0]) == [ChannelQuality.WRONG_TIME] * 2
    assert made.counts.wrong_time == 1


def test_too_few_good_channels_are_told() -> None:
    made = window(*(channel(name) for name in "abcd"), min_good=0.5)
    ticks = feed(made, [row(0, 1, NAN, 1, NAN), row(1, 1, NAN, NAN, NAN)])
    assert [tick.enough for tick in ticks] == [True, False]


def test_a_point_that_the_source_does_not_have_is_refused() -> None:
    made = Window([channel("pressure")], step_s=1.0)
    with pytest.raises(ConfigurationError, match=r"pressure: point = 'pressure': .* no such point; it has flow"):
        made.connect("plc", ["flow"])


def test_a_row_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="a row of 1 values for 2 points"):
        window().put(row(0, 1))


@given(
    rows=st.lists(
        st.tuples(
            st.floats(0, 60, allow_nan=False),
            st.lists(st.floats(allow_nan=True, allow_infinity=True), min_size=2, max_size=2),
            st.lists(st.sampled_from(ChannelQuality), min_size=2, max_size=2),
        ),
        max_size=60,
    ),
    lateness_s=st.sampled_from([0.0, 0.5, 3.0]),
    live=st.booleans(),
)
def test_whatever_comes_ticks_are_in_order_without_holes_and_finite(
    rows: list[tuple[float, list[float], list[ChannelQuality]]], lateness_s: float, live: bool
) -> None:
    made = window(channel("a", minimum=-10.0, maximum=10.0, flat_after_s=2.0), channel("b"), lateness_s=lateness_s)
    ticks: list[Tick] = []
    now_s = 0.0
    for at_s, values, given_qualities in rows:
        now_s = max(now_s, at_s)
        ticks += made.put(row(at_s, *values, qualities=given_qualities), BEGIN_S + now_s if live else None)
    if live:
        ticks += made.advance(BEGIN_S + now_s + 10)
    times = [tick.at_s for tick in ticks]
    assert times == [times[0] + step for step in range(len(times))] if times else True
    for tick in ticks:
        assert np.isfinite(tick.values).all()
        assert not tick.values[~tick.mask].any()
        assert (tick.mask == (tick.codes == 0)).all()
        assert ABSENT not in qualities(tick)
        assert tick.enough == (tick.mask.sum() >= 1)
        if tick.mask[0]:
            assert -10 <= tick.values[0] <= 10


@given(
    offsets=st.lists(st.floats(-0.4, 0.4), min_size=5, max_size=40),
    seed=st.integers(0, 1000),
)
def test_shuffling_within_the_lateness_changes_no_tick(offsets: list[float], seed: int) -> None:
    rows = [row(step + offset, step, -step) for step, offset in enumerate(offsets)]
    chance = random.Random(seed)
    shuffled = sorted(rows, key=lambda one: one.at_s + chance.uniform(0, 1.9))
    end = row(len(rows) + 10, 0, 0)

    def ticks(ordered: Sequence[Readings]) -> dict[float, list[float]]:
        made = window(lateness_s=2.0, reset_after_s=1000.0)
        return {tick.at_s: tick.values.tolist() for tick in feed(made, [*ordered, end])}

    straight, mixed = ticks(rows), ticks(shuffled)
    common = straight.keys() & mixed.keys()
    assert len(common) >= len(rows)
    assert {at: straight[at] for at in common} == {at: mixed[at] for at in common}


def test_what_waits_is_bounded() -> None:
    made = window(lateness_s=1e6, reset_after_s=1e9)
    ticks = feed(made, [row(t, t, t) for t in range(3 * MAX_WAITING)])
    assert len(ticks) > MAX_WAITING
    assert [tick.values[0] for tick in ticks] == list(range(len(ticks)))
