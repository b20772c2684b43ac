"""`station bench --process`: the journey of a reading against a bare loop of `Interpreter.invoke()`, in one run.

Reading → window → step → risk → alarms, on one core, in this process: readings of the simulated oven and press go
through the same `Observer` that the station uses. Stretches of both loops alternate, so that what else the machine does
meets both alike. Rates are given by the clock and by the processor time that this thread got. With many ticks the
resident memory at a tenth of them and at the end shows whether anything grows.
"""

import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from ai_edge_litert.interpreter import Interpreter

from station.adapters.system_clock import SystemClock
from station.alarm import FloodWatch
from station.bundle_file import read_file
from station.commands.assembly import load_process_bundle
from station.commands.exit_codes import ExitCode
from station.daemon import resident_mb
from station.errors import ConfigurationError
from station.ports import StepModel
from station.process import Observer
from station.process_bundle import read_process_bundle
from station.process_messages import Readings
from station.process_settings import ChannelSettings, ProcessSettings
from station.simulated_process import CHANNELS, SimulatedProcess
from station.trust import ANYONE

STRETCH = 2_000
"""Ticks of the journey between two stretches of the bare loop."""
ROWS = 20_000
"""Rows that are made beforehand and repeated, with times that go on."""
LEAST_TICKS = 10 * STRETCH
BEGIN_S = 1_767_225_600.0
SOURCE = "plc"


class _Timed:
    """Adds up clock and processor time of stretches of work."""

    def __init__(self) -> None:
        self.count = 0
        self.wall_s = 0.0
        self.cpu_s = 0.0

    def run(self, work: Callable[[], int]) -> None:
        wall_s, cpu_s = time.perf_counter(), time.thread_time()
        self.count += work()
        self.wall_s += time.perf_counter() - wall_s
        self.cpu_s += time.thread_time() - cpu_s

    def rates(self) -> dict[str, float]:
        return {
            "ticks_per_s": round(self.count / self.wall_s),
            "ticks_per_cpu_s": round(self.count / self.cpu_s),
            "us_of_processor": round(self.cpu_s / self.count * 1e6, 2),
        }


def run(bundle: Path, ticks: int, *, as_json: bool) -> ExitCode:
    """Measure and print.

    Raises:
        ConfigurationError: too few ticks, or the bundle is for other channels.
        ModelError: the bundle cannot be used.
    """
    if ticks < LEAST_TICKS:
        raise ConfigurationError(f"--ticks {ticks}: allowed are {LEAST_TICKS} and more")
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    model = load_process_bundle(read_file(bundle), str(bundle), ANYONE)
    invoke = _bare(bundle)
    journey = _Journey(bundle, model)
    journey.stretch()
    path, bare = _Timed(), _Timed()
    early_mb: float | None = None
    while path.count < ticks:
        path.run(journey.stretch)
        if invoke is not None:
            bare.run(invoke)
        if early_mb is None and path.count >= ticks / 10:
            early_mb = resident_mb(os.getpid())
    late_mb = resident_mb(os.getpid())
    figures = {
        "channels": len(CHANNELS),
        "ticks": path.count,
        "alarms": journey.alarms,
        "path": path.rates(),
        "bare_invoke": bare.rates() if invoke is not None else None,
        "rss_mb_at_a_tenth": round(early_mb or late_mb, 1),
        "rss_mb_at_the_end": round(late_mb, 1),
    }
    print(json.dumps(figures) if as_json else _text(figures))
    return ExitCode.OK


class _Journey:
    """The path of a group, fed as a source feeds it: a new row object for each tick."""

    def __init__(self, bundle: Path, model: StepModel) -> None:
        channels = {name: ChannelSettings(source=SOURCE, unit=unit) for name, unit in CHANNELS}
        self._observer = Observer(
            station="bench",
            group="oven",
            epoch=1,
            settings=ProcessSettings(bundle=bundle, channel=channels, risk_interval_s=1.0),
            flood=FloodWatch(),
            clock=SystemClock(),
            live=False,
            model=model,
        )
        self._observer.window.connect(SOURCE, [name for name, _ in CHANNELS])
        self._step_s = model.step_s
        process = SimulatedProcess(1, 1.0 / model.step_s)
        self._rows = [process.next() for _ in range(ROWS)]
        self._tick = 0
        self.alarms = 0

    def stretch(self) -> int:
        observer, rows, step_s = self._observer, self._rows, self._step_s
        for tick in range(self._tick, self._tick + STRETCH):
            at_s = BEGIN_S + tick * step_s
            found = observer.observe(Readings(SOURCE, at_s, at_s, rows[tick % ROWS]))
            if found.alarms:
                self.alarms += len(found.alarms)
        self._tick += STRETCH
        return STRETCH


def _bare(bundle: Path) -> Callable[[], int] | None:
    """The model's step alone, without setting or reading a tensor; None: the bundle has no network."""
    content = read_process_bundle(bundle)
    if not content.manifest.has_network:
        return None
    interpreter = Interpreter(model_content=content.model, num_threads=1)
    interpreter.allocate_tensors()

    def invoke() -> int:
        for _ in range(STRETCH):
            interpreter.invoke()
        return STRETCH

    return invoke


def _text(figures: dict[str, object]) -> str:
    def line(what: str, rates: object) -> str:
        assert isinstance(rates, dict)
        return (
            f"{what} {rates['ticks_per_s']:>9,} ticks/s, {rates['ticks_per_cpu_s']:,} a second of processor time, "
            f"{rates['us_of_processor']} µs each"
        )

    lines: Sequence[str] = (
        f"{figures['ticks']:,} ticks of {figures['channels']} channels, {figures['alarms']} transitions of alarms",
        line("reading → window → step → risk → alarm:", figures["path"]),
        *([line("bare Interpreter.invoke():             ", figures["bare_invoke"])] if figures["bare_invoke"] else ()),
        f"resident memory {figures['rss_mb_at_a_tenth']} MB at a tenth, {figures['rss_mb_at_the_end']} MB at the end",
    )
    return "\n".join(lines)
