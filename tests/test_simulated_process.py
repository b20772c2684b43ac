"""The simulated oven and press, as a model and as a source."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from export.render_process import ProcessKnobs, render_logs
from station.adapters.simulated_sensors import SimulatedSensors
from station.boards import SHARE_LINES, Web
from station.errors import ConfigurationError
from station.messages import SourceStateName
from station.process_messages import Readings, SourceEvent
from station.sensor_log import read_log
from station.simulated_process import CHANNELS, DEFECTS_AFTER_S, SimulatedProcess


class FakeClock:
    """Time that passes only when somebody waits."""

    def __init__(self) -> None:
        self.passed_s = 0.0

    def now(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self.passed_s)

    def monotonic_s(self) -> float:
        return 100.0 + self.passed_s

    def wait(self, seconds: float) -> None:
        self.passed_s += seconds


def rows(
    seed: int, count: int, drift_after_s: float | None = None
) -> "np.ndarray[tuple[int, int], np.dtype[np.float64]]":
    process = SimulatedProcess(seed, 10.0, drift_after_s)
    return np.array([process.next() for _ in range(count)])


def test_the_same_seed_gives_the_same_rows() -> None:
    assert (rows(3, 1200) == rows(3, 1200)).all()
    assert (rows(3, 1200) != rows(4, 1200)).any(axis=0).all()


def test_a_drift_changes_nothing_before_it_begins() -> None:
    assert (rows(3, 600, drift_after_s=30.0)[:300] == rows(3, 300)).all()


def test_the_controller_hides_the_drift_until_the_defects_rise() -> None:
    drifting = rows(5, 900, drift_after_s=30.0)
    names = [name for name, _ in CHANNELS]
    oven = drifting[:, names.index("oven_temperature")]
    output = drifting[:, names.index("heater_output")]
    hidden = slice(300, 300 + int(DEFECTS_AFTER_S * 10 * 0.75))
    assert abs(oven[hidden] - 180.0).max() < 3.0
    assert output[hidden][-20:].mean() > output[:300].mean() + 10
    assert oven[-50:].mean() < 170.0


@pytest.mark.parametrize(("rate_hz", "drift_after_s"), [(0.0, None), (10.0, -1.0)])
def test_values_that_are_not_allowed_are_refused(rate_hz: float, drift_after_s: float | None) -> None:
    with pytest.raises(ValueError, match="allowed"):
        SimulatedProcess(1, rate_hz, drift_after_s)


def test_the_source_gives_its_rows_at_their_time() -> None:
    clock = FakeClock()
    with SimulatedSensors("sim", clock, seed=3, rate_hz=10.0, wait=clock.wait) as source:
        assert source.points == tuple(name for name, _ in CHANNELS)
        assert source.read(1.0) == SourceEvent("sim", SourceStateName.RUNNING, clock.now().timestamp())
        first, second = source.read(1.0), source.read(1.0)
        assert source.read(0.01) is None
        clock.wait(10.0)
        late = source.read(1.0)
    begin_s = datetime(2026, 1, 1, tzinfo=UTC).timestamp()
    expected = SimulatedProcess(3)
    assert first == Readings("sim", begin_s, 100.0, expected.next())
    assert second == Readings("sim", begin_s + 0.1, 100.1, expected.next())
    assert isinstance(late, Readings)
    assert late.at_s == pytest.approx(begin_s + 0.2)


def test_the_logs_are_read_as_logs_are(tmp_path: Path) -> None:
    (path,) = render_logs(tmp_path / "out", ProcessKnobs(logs=1, minutes=0.1, drift_after_s=3.0))
    log = read_log(path)
    assert log.columns == (*(name for name, _ in CHANNELS), "anomaly")
    assert log.units["press_pressure"] == "bar"
    assert np.diff(log.time_s) == pytest.approx(0.1, abs=1e-6)
    assert log.column("anomaly").tolist() == [0.0] * 30 + [1.0] * 30
    with pytest.raises(ConfigurationError, match="is not empty"):
        render_logs(tmp_path / "out", ProcessKnobs())


def test_defects_rise_from_a_line_on() -> None:
    plain, rising = Web(7, defect_share=0.1), Web(7, defect_share=0.1, rise=(100 * SHARE_LINES, 0.5))
    assert plain.defects(0, 98 * SHARE_LINES) == rising.defects(0, 98 * SHARE_LINES)
    after = range(102, 302)
    frames = [rising.defects(n * SHARE_LINES, (n + 1) * SHARE_LINES) for n in after]
    assert 0.4 < sum(map(bool, frames)) / len(after) < 0.6
