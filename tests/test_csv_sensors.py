"""Replay of logs."""

import math
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from sensor_helpers import CLOCK, Heard, listen, until_state

from station.adapters.csv_sensors import CsvReplay
from station.messages import SourceStateName
from station.process_messages import ChannelQuality
from station.sensor_settings import CsvSensors

RUNNING, DOWN, FINISHED = SourceStateName.RUNNING, SourceStateName.DOWN, SourceStateName.FINISHED
LOG = "time;Pressure [bar];T\n2026-01-31T12:00:00Z;1,5;80\n2026-01-31T12:00:01Z;;81\n2026-01-31T12:00:03Z;1,7;82\n"
NOON_S = 1_769_860_800.0


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "log.csv"
    path.write_text(LOG, encoding="utf-8")
    return path


def replay(path: Path, wanted: tuple[str, ...] = (), **keys: Any) -> CsvReplay:
    settings = CsvSensors.model_validate({"kind": "csv", "path": path, "speed": 0.0, "reconnect_max_s": 0.2, **keys})
    return CsvReplay("oven", settings, CLOCK, wanted)


def to_the_end(source: CsvReplay) -> Heard:
    return listen(source, lambda heard: FINISHED in heard.states)


def test_all_columns_are_replayed_with_the_times_of_the_log(log: Path) -> None:
    with replay(log) as source:
        heard = to_the_end(source)
        assert source.read(0.05) is None
    assert heard.states == [RUNNING, FINISHED]
    assert source.points == ("Pressure", "T")
    assert [row.at_s - NOON_S for row in heard.rows] == [0, 1, 3]
    assert [row.values for row in heard.rows[::2]] == [(1.5, 80), (1.7, 82)]
    assert heard.rows[1].qualities == (ChannelQuality.NOT_A_NUMBER, ChannelQuality.GOOD)
    assert math.isnan(heard.rows[1].values[0])
    assert heard.rows[0].qualities is None


def test_points_may_have_names_of_their_own_or_be_those_that_are_wanted(log: Path) -> None:
    with replay(log, points={"oven": {"column": "T"}, "press": {"column": "Pressure [bar]"}}) as source:
        assert [row.values for row in to_the_end(source).rows[::2]] == [(80, 1.5), (82, 1.7)]
        assert source.points == ("oven", "press")
    with replay(log, wanted=("T",)) as source:
        assert [row.values for row in to_the_end(source).rows] == [(80,), (81,), (82,)]


def test_a_loop_goes_on_in_time(log: Path) -> None:
    with replay(log, loop=True) as source:
        heard = listen(source, lambda so_far: len(so_far.rows) >= 7)
    assert [row.at_s - NOON_S for row in heard.rows[:7]] == [0, 1, 3, 5, 6, 8, 10]


def test_the_replay_keeps_the_pace_that_is_asked_for(log: Path) -> None:
    began_s = time.monotonic()
    with replay(log, speed=10.0) as source:
        heard = to_the_end(source)
    assert time.monotonic() - began_s > 0.3
    times = [row.received_monotonic_s for row in heard.rows]
    assert times[2] - times[0] == pytest.approx(0.3, abs=0.2)


def test_a_slow_reader_loses_nothing_and_a_waiting_replay_can_be_left(tmp_path: Path) -> None:
    path = tmp_path / "long.csv"
    path.write_text("time,a\n" + "".join(f"{second},{second}\n" for second in range(10_000)), encoding="utf-8")
    with replay(path) as source:
        threading.Event().wait(0.2)
        assert [row.at_s for row in to_the_end(source).rows] == list(range(10_000))
        assert source.dropped == 0
    with replay(path, loop=True) as source:
        listen(source, lambda heard: bool(heard.rows))


def test_a_file_that_is_not_there_is_a_source_that_is_down_until_it_comes(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    with replay(path, wanted=("T",)) as source:
        heard = Heard()
        assert "cannot be read: No such file" in (until_state(source, DOWN, heard).reason or "")
        path.write_text(LOG, encoding="utf-8")
        until_state(source, FINISHED, heard)
    assert len(heard.rows) == 3
    assert heard.states == [DOWN, RUNNING, FINISHED]


def test_without_a_file_and_without_points_it_says_why(tmp_path: Path) -> None:
    with replay(tmp_path / "log.csv") as source:
        assert source.points == ()
        assert "cannot be read" in (until_state(source, DOWN, Heard()).reason or "")


def test_a_column_that_is_missing_and_a_line_that_is_broken_are_named(log: Path) -> None:
    with replay(log, wanted=("T", "Flow")) as source:
        reason = until_state(source, DOWN, Heard()).reason or ""
    assert "log.csv: there is no column 'Flow' of numbers; there are Pressure, T" in reason
    log.write_text(LOG + "2026-01-31T12:00:04Z;1,8;hot\n", encoding="utf-8")
    with replay(log) as source:
        heard = Heard()
        reason = until_state(source, DOWN, heard).reason or ""
        assert source.read(0.5) is None
    assert "log.csv: line 5, column 'T': 'hot' is not a number" in reason
