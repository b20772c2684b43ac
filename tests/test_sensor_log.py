"""Sensor logs in CSV, as loggers, historians and spreadsheets write them."""

import math
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from station import sensor_log
from station.errors import LogError
from station.sensor_log import SensorLog, name_and_unit, read_blocks, read_log
from station.sensor_settings import LogForm

Write = Callable[[str], Path]
NOON_S = datetime(2026, 1, 31, 12, tzinfo=UTC).timestamp()


@pytest.fixture
def log_file(tmp_path: Path) -> Write:
    def write(text: str) -> Path:
        path = tmp_path / "log.csv"
        path.write_bytes(text.encode("utf-8"))
        return path

    return write


def form(**keys: object) -> LogForm:
    return LogForm.model_validate(keys)


@pytest.mark.parametrize(
    "text",
    [
        "timestamp,pressure,temperature\n2026-01-31 12:00:00,1.5,80\n2026-01-31 12:00:01,,81.25\n",
        "pressure;Time;temperature\n1.5;2026-01-31T12:00:00Z;80\n;2026-01-31T12:00:01Z;81.25\n",
        (
            "\ufeffdatetime\tpressure\ttemperature\r\n2026-01-31T14:00:00+02:00\t1.5\t80\r\n"
            "2026-01-31T14:00:01+02:00\tNaN\t81.25"
        ),
        "date;pressure;temperature\n2026-01-31T12:00:00,0Z;1,5;80\n2026-01-31T12:00:01,0Z;Bad;81,25\n",
        'timestamp,pressure,temperature\n2026-01-31 12:00:00,"1,5","80"\n2026-01-31 12:00:01,,"81,25"\n',
        f"timestamp,pressure,temperature\n{NOON_S},1.5,80\n{NOON_S + 1},null,81.25\n",
        f"timestamp,pressure,temperature\n{NOON_S * 1e3:.0f},1.5,80\n{NOON_S * 1e3 + 1e3:.0f},n/a,81.25\n",
        f"ts|pressure|temperature\n{NOON_S * 1e6:.0f}|1.5|80\n{NOON_S * 1e6 + 1e6:.0f}||81.25\n",
        f"ts|pressure|temperature\n{NOON_S * 1e9:.0f}|1.5|80\n{NOON_S * 1e9 + 1e9:.0f}||81.25\n",
        (
            "# a logger's remark\n\ntimestamp,pressure [bar],temperature (°C),\n"
            "2026-01-31 12:00:00,1.5,80,\n\n2026-01-31 12:00:01, ,81.25,\n"
        ),
        "timestamp,pressure,temperature\n,bar,°C\n2026-01-31 12:00:00,1.5,80\n2026-01-31 12:00:01,,81.25\n",
        ",pressure,temperature\n2026-01-31 12:00:00,1.5,80\n2026-01-31 12:00:01,--,81.25\n",
        ",timestamp,pressure,temperature\n0,2026-01-31 12:00:00,1.5,80\n1,2026-01-31 12:00:01,,8.125e1\n",
    ],
    ids=[
        "comma",
        "semicolon",
        "tab",
        "decimal-comma",
        "quotes",
        "s",
        "ms",
        "us",
        "ns",
        "bracket",
        "row",
        "noname",
        "index",
    ],
)
def test_the_layouts_of_many_loggers_are_the_same_log(log_file: Write, text: str) -> None:
    log = read_log(log_file(text))
    assert log.columns == ("pressure", "temperature")
    assert log.time_s.tolist() == pytest.approx([NOON_S, NOON_S + 1], abs=1e-5)
    assert log.values[:, 1].tolist() == [80, 81.25]
    assert log.values[0, 0] == 1.5
    assert math.isnan(log.values[1, 0])
    assert log.units in ({}, {"pressure": "bar", "temperature": "°C"})


def test_a_column_is_found_by_its_name_with_or_without_its_unit(log_file: Write) -> None:
    log = read_log(log_file("timestamp,P [Pa],state\n2026-01-31,5,idle\n2026-02-01,6,run\n"))
    assert log.column("P").tolist() == log.column("P [Pa]").tolist() == [5, 6]
    assert log.text == {"state": ("idle", "run")}
    with pytest.raises(LogError, match=r"column 'Q' is not in it; it has P"):
        log.column("Q")
    with pytest.raises(LogError, match="column 'state' holds text"):
        log.column("state")


def test_dead_channels_and_unlabelled_rows_are_nan(log_file: Write) -> None:
    log = read_log(log_file("timestamp,P,dead,class\n2026-01-31,1e7,,\n2026-02-01,1.1e7,,0\n2026-02-02,1.2e7,,101\n"))
    assert log.columns == ("P", "dead", "class")
    assert np.isnan(log.column("dead")).all()
    assert np.array_equal(log.column("class"), [math.nan, 0, 101], equal_nan=True)


@pytest.mark.parametrize(
    ("text", "keys", "message"),
    [
        ("", {}, "is empty"),
        ("\n\n", {}, "is empty"),
        ("a,b\n", {}, "has a header row and no other"),
        ("temperature\n80\n", {}, "line 1: no separator"),
        ("a,b\n1,2\n", {}, r"line 2: no column of timestamps: none of a, b has a name such as"),
        ("t,b\n1,2\n", {"time_column": "when"}, r"line 1: no column 'when' \(time_column\); there are t, b"),
        ("time,a,a\n2026-01-31,1,2\n", {}, "line 1: two columns are called 'a'"),
        ("time,a\n2026-01-31,1\n2026-02-01,1,2\n", {}, "line 3: 3 cells where the header row has 2"),
        ("time,a,b\n2026-01-31,1,2\n2026-02-01,1\n", {}, "line 3: 2 cells where the header row has 3"),
        ("time,a\n2026-01-31,1,5\n", {}, "line 2: 3 cells .* a decimal comma need another separator"),
        ('time,a\n2026-01-31,"1\n', {}, "line 2: a quote is not closed"),
        ("time;a\n2026-01-31;1.5\n2026-02-01;x\n", {}, "line 3, column 'a': 'x' is not a number"),
        ("time;a\n2026-01-31;1.5\n2026-02-01;1,5\n", {"decimal": "."}, "line 3, column 'a': .* set decimal = \",\""),
        ("time;a\n2026-01-31;1,5\n2026-02-01;1.5\n", {}, "line 3, column 'a': '1.5' .* decimal sign is ','"),
        ("time;a\n2026-01-31;1.234,5\n", {}, "line 2, column 'a': '1.234,5' is not a number"),
        ("time,a\n2026-01-31,1\n2026-02-01,1_000\n", {}, "line 3, column 'a': '1_000' is not a number"),
        ("time,a\nyesterday,1\n", {}, "line 2, column 'time': 'yesterday' is not a timestamp"),
        ("time,a\n2026-01-31,1\n,2\n", {}, "line 3, column 'time': '' is not a timestamp"),
        ("time,a\n1,1\n,2\n", {}, "line 3, column 'time': '' is not a timestamp"),
        ("time,a\n31.01.2026,1\n", {}, "line 2, column 'time': .* set time_format"),
        (
            "time,a\n2026-01-31,1\n\n2026-01-30,2\n",
            {},
            "line 4, column 'time': time goes backwards: 2026-01-30T00:00:00Z",
        ),
        ("time,a\n20,1\n10,2\n", {}, "line 3, column 'time': time goes backwards"),
        ("time,a\n2026-01-31T12:00:00Z,1\n2026-01-31T12:00:01,1\n", {}, "line 3.*mixed time zones: .* names no zone"),
        ("time,a\n2026-01-31T12:00:00,1\n2026-01-31T12:00:01Z,1\n", {}, "line 3.*mixed time zones: .* names a zone"),
        ("time,a\n2026-01-31T12:00Z,1\n2026-01-31T14:00:01+02:00,1\n", {}, r"line 3.*UTC\+00:00, then UTC\+02:00"),
        ("time,a\n1,1\0\n", {}, "after line 0: control characters"),
    ],
)
def test_what_is_no_log_is_refused_with_file_line_and_column(
    log_file: Write, text: str, keys: dict[str, object], message: str
) -> None:
    with pytest.raises(LogError, match=message) as caught:
        read_log(log_file(text), form(**keys))
    assert "log.csv" in str(caught.value)


def test_a_file_that_is_missing_or_in_another_encoding_is_named(tmp_path: Path) -> None:
    with pytest.raises(LogError, match=r"absent\.csv: cannot be read: No such file"):
        read_log(tmp_path / "absent.csv")
    path = tmp_path / "log.csv"
    path.write_bytes("time,T\n2026-01-31,5\n2026-02-01,5 °C\n".encode("latin-1"))
    with pytest.raises(LogError, match=r"line 3: is not UTF-8 text: byte 0xb0 at 14"):
        read_log(path)


def test_a_log_that_steps_back_can_be_kept_as_it_is(log_file: Write) -> None:
    log = read_log(log_file("time,a\n20,1\n10,2\n30,3\n"), form(backwards="keep"))
    assert log.time_s.tolist() == [20, 10, 30]


def test_another_form_of_timestamp_is_read_as_the_settings_say(log_file: Write) -> None:
    log = read_log(
        log_file("when;a\n31.01.2026 13:00;1\n"),
        form(time_column="when", time_format="%d.%m.%Y %H:%M", time_zone="Europe/Berlin"),
    )
    assert log.time_s.tolist() == [NOON_S]


@pytest.mark.parametrize("block_bytes", [60, 4_000_000])
def test_the_hour_that_summer_time_ends_with_is_read_as_repeated(
    log_file: Write, monkeypatch: pytest.MonkeyPatch, block_bytes: int
) -> None:
    monkeypatch.setattr(sensor_log, "BLOCK_BYTES", block_bytes)
    begin = datetime(2026, 10, 24, 23, 30, tzinfo=UTC)
    instants = [begin + timedelta(minutes=10 * number) for number in range(24)]
    zone = ZoneInfo("Europe/Berlin")
    rows = "".join(f"{one.astimezone(zone).replace(tzinfo=None)},1\n" for one in instants)
    log = read_log(log_file("time,a\n" + rows), form(time_zone="Europe/Berlin"))
    assert log.time_s.tolist() == [one.timestamp() for one in instants]
    with_offsets = "".join(f"{one.astimezone(zone).isoformat()},1\n" for one in instants)
    assert read_log(log_file("time,a\n" + with_offsets)).time_s.tolist() == log.time_s.tolist()


@settings(max_examples=50)
@given(
    st.lists(
        st.tuples(st.integers(0, 3600), *[st.one_of(st.none(), st.floats(-1e9, 1e9))] * 3), min_size=1, max_size=30
    ),
    st.sampled_from([(";", "."), (";", ","), (",", "."), ("\t", ","), ("|", ".")]),
    st.sampled_from(["utc", "naive", "epoch"]),
    st.integers(20, 400),
)
def test_what_is_written_is_read_in_blocks_of_any_size(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[tuple[int, float | None, float | None, float | None]],
    signs: tuple[str, str],
    stamps: str,
    block_bytes: int,
) -> None:
    separator, decimal = signs
    at_s = NOON_S
    times, lines = [], []
    for step_s, *cells in rows:
        at_s += step_s
        times.append(at_s)
        at = datetime.fromtimestamp(at_s, UTC)
        stamp = {"utc": at.isoformat(), "naive": f"{at:%Y-%m-%d %H:%M:%S}", "epoch": f"{at_s:.0f}"}[stamps]
        shown = ["" if cell is None else repr(cell).replace(".", decimal) for cell in cells]
        lines.append(separator.join([stamp, *shown]))
    path = tmp_path_factory.mktemp("log") / "log.csv"
    path.write_text(separator.join(["time", "a", "b", "c"]) + "\n" + "\n".join(lines), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sensor_log, "BLOCK_BYTES", block_bytes)
        log = read_log(path, form(decimal=decimal))
    assert log.time_s.tolist() == times
    wanted = [[math.nan if cell is None else cell for cell in row[1:]] for row in rows]
    assert np.array_equal(log.values, np.array(wanted), equal_nan=True)


@settings(max_examples=60)
@given(st.text(max_size=200), st.text(alphabet='0123456789.,;-:TZ \n"time', max_size=200))
def test_whatever_a_file_holds_it_is_a_log_or_an_error(
    tmp_path_factory: pytest.TempPathFactory, header: str, body: str
) -> None:
    path = tmp_path_factory.mktemp("log") / "log.csv"
    for text in (header, f"time,a\n{body}", f"{header}\n{body}"):
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        try:
            log = read_log(path)
        except LogError:
            continue
        assert log.values.shape == (len(log.time_s), len(log.columns))


@given(st.text(max_size=30))
def test_a_unit_is_what_stands_in_brackets_at_the_end(header: str) -> None:
    name, unit = name_and_unit(header)
    assert name_and_unit(name + (f" [{unit}]" if unit else ""))[0] in (name, name_and_unit(name)[0])
    assert name_and_unit("Volume flow [l/min]") == ("Volume flow", "l/min")
    assert name_and_unit("T (°C)") == ("T", "°C")


def test_a_log_is_read_with_little_memory(log_file: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sensor_log, "BLOCK_BYTES", 1000)
    path = log_file("time,a\n" + "".join(f"{second},1.5\n" for second in range(10_000)))
    blocks: list[SensorLog] = list(read_blocks(path))
    assert max(len(block.time_s) for block in blocks) < 300
    assert sum(len(block.time_s) for block in blocks) == 10_000


def test_the_public_logs_are_read_as_they_are(public_data: Path) -> None:
    log = read_log(public_data / "SKAB" / "valve1" / "0.csv")
    assert log.columns[-3:] == ("Volume Flow RateRMS", "anomaly", "changepoint")
    assert len(log.columns) == 10
    machine = public_data / "NAB" / "data" / "realKnownCause" / "machine_temperature_system_failure.csv"
    with pytest.raises(LogError, match="line 10151, column 'timestamp': time goes backwards"):
        read_log(machine)
    assert len(read_log(machine, form(backwards="keep")).time_s) == 22_695
