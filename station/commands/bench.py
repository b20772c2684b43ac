"""`station bench`: the whole path against a bare loop of `Interpreter.invoke()` on the same model, in one run.

Two measurements. *Start*: the station as `station demo` starts it, in a process of its own: time from the start of the
process to the first verdict at a subscriber, and resident memory of station and camera process. *Throughput*:
frames a second from a simulated camera that waits for the model, through ring, quality gate, model, judge, journal and
broker, against the bare loop before and after it. The inference thread and the bare loop are bound to the same
processor, everything else to the others.
"""

import argparse
import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from station.adapters.litert_model import LitertModel, load_model
from station.boards import Web
from station.commands import process_bench
from station.commands.assembly import assembled
from station.commands.child_station import ChildStation
from station.commands.exit_codes import ExitCode
from station.commands.scratch import scratch_folder
from station.daemon import Station, account_balances, resident_mb
from station.errors import ConfigurationError, ProtocolError
from station.linescan import FRAME_LINES
from station.manifest import read_bundle
from station.settings import SHIPPED_BUNDLE, SHIPPED_PROCESS_BUNDLE, from_document

CAMERA = "line1"
WARM_UP_FRAMES = 30
FIRST_VERDICT_WITHIN_S = 30.0
SETTLE_S = 3.0
"""The station of the first measurement runs this long before its memory is read."""
POLL_S = 0.02


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--bundle", type=Path, default=SHIPPED_BUNDLE, help="model bundle")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of the throughput measurement")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--process", action="store_true", help="measure the path of readings instead, with the shipped process bundle"
    )
    parser.add_argument("--process-bundle", type=Path, default=SHIPPED_PROCESS_BUNDLE, help="another process bundle")
    parser.add_argument("--ticks", type=int, default=200_000, help="with --process: how many (default: %(default)s)")


@dataclass(frozen=True, slots=True)
class _Throughput:
    path_fps: float
    frames: int
    cpu_s: dict[str, float]
    p50_ms: float
    p99_ms: float


def run(options: argparse.Namespace) -> ExitCode:
    """Measure and print; fails when a frame is not accounted for.

    Raises:
        ConfigurationError: the time is too short.
        ModelError: the bundle cannot be used.
    """
    if options.process:
        return process_bench.run(options.process_bundle, options.ticks, as_json=options.json)
    if options.seconds < 1:
        raise ConfigurationError(f"--seconds {options.seconds}: allowed are 1 and more")
    processors = sorted(os.sched_getaffinity(0))
    own, others = processors[0], set(processors[1:] or processors)
    bundle = options.bundle.resolve()
    first_verdict_s, station_mb, camera_mb = _measure_start(bundle)
    model = load_model(read_bundle(bundle))
    model.infer(Web(1).render(0, FRAME_LINES))
    before = _bare_loop(model, own, options.seconds / 2)
    through = _measure_path(bundle, own, others, options.seconds)
    after = _bare_loop(model, own, options.seconds / 2)
    invoke_fps = (before + after) / 2
    figures = {
        "ratio": round(through.path_fps / invoke_fps, 3),
        "invoke_fps": round(invoke_fps, 1),
        "invoke_fps_before_after": [round(before, 1), round(after, 1)],
        "path_fps": round(through.path_fps, 1),
        "frames": through.frames,
        "capture_to_verdict_ms": {"p50": through.p50_ms, "p99": through.p99_ms},
        "cpu_s": through.cpu_s,
        "first_verdict_s": round(first_verdict_s, 2),
        "rss_mb": round(station_mb + camera_mb, 1),
        "rss_station_mb": round(station_mb, 1),
        "rss_camera_mb": round(camera_mb, 1),
        "processors": len(processors),
    }
    if options.json:
        print(json.dumps(figures))
    else:
        print("\n".join(f"{key:24} {value}" for key, value in figures.items()))
    return ExitCode.OK


def _measure_start(bundle: Path) -> tuple[float, float, float]:
    """Seconds to the first verdict; resident memory (10^6 bytes) of the station and of its camera process."""
    camera = f'[model]\nbundle = {json.dumps(str(bundle))}\n[camera.{CAMERA}]\nkind = "simulated"\nrate_fps = 30.0\n'
    with (
        scratch_folder("station-bench-") as folder,
        ChildStation(folder, "bench", camera) as station,
    ):
        first_s = _first_verdict_s(station)
        until_s = time.monotonic() + SETTLE_S
        while time.monotonic() < until_s:
            station.subscriber.receive(timeout_s=POLL_S)
        cameras = [pid for pid in _children(station.pid) if "_camera_child" in _command_line(pid)]
        return first_s, resident_mb(station.pid), sum(resident_mb(pid) for pid in cameras)


def _first_verdict_s(station: ChildStation) -> float:
    until_s = time.monotonic() + FIRST_VERDICT_WITHIN_S
    while time.monotonic() < until_s:
        received = station.subscriber.receive(timeout_s=POLL_S)
        if received is not None and received.topic.endswith("/verdict"):
            return received.at_s - station.started_s
    raise ProtocolError(f"no verdict within {FIRST_VERDICT_WITHIN_S:g} s\n{station.last_words()}")


def _bare_loop(model: LitertModel, processor: int, seconds: float) -> float:
    """Invocations a second, nothing else, on one processor."""
    with _bound_to({processor}):
        count = 0
        began_s = now_s = time.perf_counter()
        while now_s - began_s < seconds:
            model.invoke_only()
            count += 1
            now_s = time.perf_counter()
        return count / (now_s - began_s)


def _measure_path(bundle: Path, own: int, others: set[int], seconds: float) -> _Throughput:
    with scratch_folder("station-bench-") as folder, _bound_to(others):
        settings = from_document(
            {
                "station": {"name": "bench", "data_dir": str(folder)},
                "broker": {"embedded": True, "port": 0},
                "model": {"bundle": str(bundle)},
                "camera": {CAMERA: {"kind": "simulated", "rate_fps": 0.0}},
            },
            "bench",
            folder,
            {},
        )
        with assembled(settings, cpus={CAMERA: own}) as station:
            watcher = _Watcher(station, seconds)
            watcher.start()
            station.run()
            watcher.join()
            health = station.health()
            if watcher.result is None or not account_balances(health):
                raise ProtocolError(f"the path did not run as it should: {health.model_dump_json()}")
            return watcher.result


class _Watcher(threading.Thread):
    """Waits for the first frames, measures for some seconds, then stops the station."""

    def __init__(self, station: Station, seconds: float) -> None:
        super().__init__(name="bench-watcher")
        self._station = station
        self._seconds = seconds
        self.result: _Throughput | None = None

    def run(self) -> None:
        try:
            self._measure()
        finally:
            self._station.stop()

    def _measure(self) -> None:
        give_up_s = time.monotonic() + FIRST_VERDICT_WITHIN_S
        while self._judged() < WARM_UP_FRAMES:
            if time.monotonic() > give_up_s:
                return
            time.sleep(POLL_S)
        began_s, began_frames, began_cpu = time.perf_counter(), self._judged(), _cpu_seconds()
        time.sleep(self._seconds)
        ended_s, ended_frames, ended_cpu = time.perf_counter(), self._judged(), _cpu_seconds()
        latency = self._station.health().latency_ms
        assert latency is not None
        self.result = _Throughput(
            path_fps=(ended_frames - began_frames) / (ended_s - began_s),
            frames=ended_frames - began_frames,
            cpu_s={part: round(ended_cpu[part] - began_cpu.get(part, 0.0), 2) for part in ended_cpu},
            p50_ms=latency.p50,
            p99_ms=latency.p99,
        )

    def _judged(self) -> int:
        return self._station.health().cameras[CAMERA].account.judged


def _cpu_seconds() -> dict[str, float]:
    """Processor seconds so far: the inference thread, the rest of the station, the camera's process, the broker's."""
    inference = _stat_seconds(Path(f"/proc/self/task/{_inference_thread()}/stat"))
    seconds = {"inference": inference, "station": _stat_seconds(Path("/proc/self/stat")) - inference}
    for pid in _children(os.getpid()):
        part = "camera" if "_camera_child" in _command_line(pid) else "broker"
        seconds[part] = seconds.get(part, 0.0) + _stat_seconds(Path(f"/proc/{pid}/stat"))
    return seconds


def _inference_thread() -> int:
    for thread in threading.enumerate():
        if thread.name == f"camera-{CAMERA}" and thread.native_id is not None:
            return thread.native_id
    raise ProtocolError("the camera's thread has ended")


def _stat_seconds(path: Path) -> float:
    fields = path.read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [int(child) for task in tasks for child in (task / "children").read_text(encoding="ascii").split()]


def _command_line(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")


@contextmanager
def _bound_to(processors: set[int]) -> Iterator[None]:
    """Bind the calling thread, and the threads and processes that it starts, to some processors."""
    former = os.sched_getaffinity(0)
    os.sched_setaffinity(0, processors)
    try:
        yield
    finally:
        os.sched_setaffinity(0, former)
