"""`station readings`, and what `station check` says of a process group."""

import json
import math
from datetime import timedelta
from pathlib import Path

import pytest
from delivery_helpers import FakeClock, verdict
from process_helpers import BEGIN
from test_process import Group, kept

from station import wire
from station.__main__ import main
from station.adapters.sqlite_journal import SqliteJournal
from station.messages import ProcessState, ProcessStateName
from station.sensor_log import read_log
from station.settings import SHIPPED_PROCESS_BUNDLE, JournalSettings
from station.simulated_process import CHANNELS

CONFIGURATION = """\
version = 1
[station]
data_dir = "data"
[camera.top]
kind = "simulated"
transport_delay_s = 2.0
"""


@pytest.fixture
def station(tmp_path: Path) -> Path:
    """A configuration beside a data folder with ten readings: pressure 60, 61, … bar from the first second on."""
    path = tmp_path / "station.toml"
    path.write_text(CONFIGURATION, encoding="utf-8")
    (tmp_path / "data").mkdir()
    rows = [(50.0, 60.0 + second) for second in range(9)]
    kept(Group().rows((math.nan, 60.0), *((t, p + 1) for t, p in rows)), tmp_path / "data" / "readings.sqlite")
    return path


def test_it_tells_what_the_pressure_was_when_a_part_passed(station: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = ProcessState(state=ProcessStateName.NORMAL, risk=0.1, as_of=BEGIN + timedelta(seconds=5), complete=True)
    judged = verdict(1, at=BEGIN + timedelta(seconds=7.5)).model_copy(update={"process": {"oven": state}})
    clock = FakeClock()
    with SqliteJournal(
        station.parent / "data" / "journal.sqlite", JournalSettings(), station="line-1", clock=clock
    ) as journal:
        clock.pass_s((judged.captured_at - clock.now()).total_seconds())
        journal.commit([wire.outgoing(judged)], ())
    assert main(["readings", "--config", str(station), "--verdict", str(judged.id), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["as_published"]["oven"]["state"] == "normal"
    assert found["groups"]["oven"]["at"] == "2026-01-01T00:00:05.000+00:00"
    assert found["groups"]["oven"]["channels"]["pressure"] == {"value": 64.0, "unit": "bar", "quality": "good"}
    assert main(["readings", "--config", str(station), "--verdict", str(judged.id)]) == 0
    assert "pressure                 64 bar" in capsys.readouterr().out


def test_a_stretch_of_time_is_a_log_to_train_on(station: Path, tmp_path: Path) -> None:
    since, out = (BEGIN + timedelta(seconds=1)).isoformat(), tmp_path / "log.csv"
    assert main(["readings", "--config", str(station), "--since", since, "--out", str(out)]) == 0
    log = read_log(out)
    assert log.columns == ("temperature", "pressure")
    assert log.units == {"temperature": "°C", "pressure": "bar"}
    assert log.values[:, 1].tolist() == [60.0 + row for row in range(10)]
    assert math.isnan(log.values[0, 0])


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--at", "2026-01-01T00:00:05Z", "--group", "press"], "there are no readings of it; there are of oven"),
        (["--verdict", "0197a6b2-0000-7000-8000-000000000007"], "does not exist"),
    ],
)
def test_what_is_not_there_is_told(
    station: Path, arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["readings", "--config", str(station), *arguments]) == 1
    assert text in capsys.readouterr().err


def test_check_compares_a_groups_channels_with_its_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def configured(unit: str) -> str:
        channels = "".join(
            f'channel.{name} = {{ source = "plc", unit = "{unit if name == "press_pressure" else its}" }}\n'
            for name, its in CHANNELS
        )
        path = tmp_path / f"{unit}.toml"
        path.write_text(
            f'{CONFIGURATION}[sensors.plc]\nkind = "simulated"\n[process.oven]\n'
            f'bundle = "{SHIPPED_PROCESS_BUNDLE}"\n{channels}',
            encoding="utf-8",
        )
        return str(path)

    assert main(["check", "--offline", "--config", configured("bar")]) == 0
    assert "8 channels, golden sequence reproduced" in capsys.readouterr().out
    assert main(["check", "--offline", "--config", configured("Pa")]) == 78
    assert "press_pressure.unit = 'Pa': the bundle expects 'bar'" in capsys.readouterr().out
