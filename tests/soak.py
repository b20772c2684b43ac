"""Does memory grow? Runs `station demo` for an hour at 50 frames/s and watches its processes from outside.

    python tests/soak.py [--minutes 60] [--rate 50] [--warm-up 10] [--every 10] [--json FILE]

Each 10 s: resident memory, descriptors and threads of the station, its camera process and its broker. After the
warm-up a line is fitted to the memory. Neighbouring samples are alike (an allocator gives memory back in steps), which
makes the ordinary interval of a slope far too narrow; so the fit is over the means of blocks of `BLOCK_MINUTES`, with
Student's t for their number, and the correlation of neighbouring residuals is printed beside it: near 0 the interval
can be believed, near 1 it is still too narrow.
"""

import argparse
import json
import math
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import psutil

sys.path.append(str(Path(__file__).parents[1]))

BLOCK_MINUTES = 5.0
T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)
"""Student's t, 97.5 %, for 1, 2, … degrees of freedom; further on 2 + 2.4 / n is close enough."""
PARTS = {"_camera_child": "camera", "_broker_child": "broker", "station run": "station"}


@dataclass(frozen=True, slots=True)
class Sample:
    """What one process held at one time."""

    minute: float
    rss_mb: float
    private_mb: float
    descriptors: int
    threads: int


@dataclass(frozen=True, slots=True)
class Slope:
    """A fitted line: MB an hour with its 95 % interval, and the correlation of neighbouring residuals."""

    mb_per_hour: float
    low: float
    high: float
    residual_correlation: float


def fitted(minutes: Sequence[float], values_mb: Sequence[float], block_minutes: float) -> Slope:
    """Fit a line to block means.

    Raises:
        ValueError: there are fewer than three blocks.
    """
    blocks = np.asarray((np.asarray(minutes) - minutes[0]) // block_minutes, int)
    whole = [block for block in np.unique(blocks) if (blocks == block).sum() * 2 >= np.bincount(blocks).max()]
    if len(whole) < 3:
        raise ValueError(f"{len(whole)} blocks of {block_minutes:g} min; a line with an interval needs 3")
    hours = np.array([np.mean(np.asarray(minutes)[blocks == block]) for block in whole]) / 60
    means = np.array([np.mean(np.asarray(values_mb)[blocks == block]) for block in whole])
    centred = hours - hours.mean()
    slope = float((centred * means).sum() / (centred**2).sum())
    residuals = means - means.mean() - slope * centred
    degrees = len(whole) - 2
    error = math.sqrt(float((residuals**2).sum()) / degrees / float((centred**2).sum()))
    half = error * (T_975[degrees - 1] if degrees <= len(T_975) else 2 + 2.4 / degrees)
    power = float((residuals**2).sum())
    correlation = float((residuals[1:] * residuals[:-1]).sum()) / power if power else 0.0
    return Slope(round(slope, 3), round(slope - half, 3), round(slope + half, 3), round(correlation, 2))


def station_processes(demo: psutil.Process) -> dict[str, psutil.Process]:
    """The processes below `station demo`, by what they are."""
    found = {}
    for process in demo.children(recursive=True):
        command = " ".join(process.cmdline())
        for mark, part in PARTS.items():
            if mark in command:
                found[part] = process
                break
    return found


def sample(process: psutil.Process, began_s: float) -> Sample:
    """Look at a process."""
    with process.oneshot():
        memory = process.memory_full_info()
        return Sample(
            round((time.monotonic() - began_s) / 60, 3),
            round(memory.rss / 1e6, 3),
            round(memory.uss / 1e6, 3),
            process.num_fds(),
            process.num_threads(),
        )


def watch(minutes: float, rate_fps: float, every_s: float) -> tuple[dict[str, list[Sample]], Mapping[str, object], int]:
    """Run the demo; return the samples of each process, the demo's own account, and its exit code."""
    samples: dict[str, list[Sample]] = {}
    last = [b""]
    command = [sys.executable, "-m", "station", "demo", "--json", f"--seconds={minutes * 60}", f"--rate={rate_fps}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as demo:
        assert demo.stdout is not None

        def drain() -> None:
            for line in demo.stdout or ():
                last[0] = line

        reader = threading.Thread(target=drain, name="reader")
        reader.start()
        began_s, ended, turn = time.monotonic(), threading.Event(), 0
        processes: dict[str, psutil.Process] = {}
        while demo.poll() is None:
            turn += 1
            ended.wait(max(0.0, began_s + turn * every_s - time.monotonic()))
            try:
                if not processes or turn % 6 == 0:
                    processes = station_processes(psutil.Process(demo.pid))
                for part, process in processes.items():
                    if process.status() != psutil.STATUS_ZOMBIE:
                        samples.setdefault(part, []).append(sample(process, began_s))
            except psutil.NoSuchProcess:
                processes = {}
        reader.join()
        return samples, json.loads(last[0]), demo.returncode


def figures(samples: Mapping[str, Sequence[Sample]], warm_up_minutes: float, block_minutes: float) -> dict[str, object]:
    """Slope and extremes of each process after the warm-up."""
    result: dict[str, object] = {}
    for part, all_of in samples.items():
        steady = [one for one in all_of if one.minute >= warm_up_minutes]
        minutes = [one.minute for one in steady]
        result[part] = {
            "rss": asdict(fitted(minutes, [one.rss_mb for one in steady], block_minutes)),
            "private": asdict(fitted(minutes, [one.private_mb for one in steady], block_minutes)),
            "rss_mb": [steady[0].rss_mb, steady[-1].rss_mb],
            "rss_mb_largest": max(one.rss_mb for one in steady),
            "descriptors": sorted({one.descriptors for one in steady}),
            "threads": sorted({one.threads for one in steady}),
        }
    return result


def main() -> int:
    """Run, print, and say by the exit code whether the demo's account was good."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--rate", type=float, default=50.0, help="frames a second")
    parser.add_argument("--warm-up", type=float, default=20.0, help="minutes that are left out of the fit")
    parser.add_argument("--block", type=float, default=BLOCK_MINUTES, help="minutes of a block")
    parser.add_argument("--every", type=float, default=10.0, help="seconds between two samples")
    parser.add_argument("--json", type=Path, help="write figures and samples here")
    options = parser.parse_args()
    samples, account, code = watch(options.minutes, options.rate, options.every)
    result = figures(samples, options.warm_up, options.block)
    if options.json is not None:
        series = {part: [asdict(one) for one in all_of] for part, all_of in samples.items()}
        options.json.write_text(json.dumps({"figures": result, "account": account, "samples": series}), "utf-8")
    print(json.dumps({"figures": result, "account": account, "exit_code": code}, indent=1))
    return code


if __name__ == "__main__":
    sys.exit(main())
