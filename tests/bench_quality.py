"""What does the look at a picture before it is judged cost? Time of one frame on one core, beside a copy of its bytes.

    python tests/bench_quality.py [--side 640] [--rounds 15] [--frames 40]

Gate and copy take turns, so that what else the machine does hits both alike. Time is processor time of this process,
which is bound to one core. The median of the rounds counts; the fastest and the slowest stand beside it.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime

import cv2
import numpy as np

from station.manifest import QualityLimits
from station.messages import Capture, Pixels
from station.quality import QualityGate

LIMITS = QualityLimits(mean_min=40, mean_max=200, contrast_min=5, focus_min=50)
PICTURES = 4


def main() -> None:
    """Measure and print one line for the gate and one for the copy."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=640, metavar="PX", help="of the square picture")
    parser.add_argument("--rounds", type=int, default=15, metavar="N")
    parser.add_argument("--frames", type=int, default=40, metavar="N", help="in a round")
    arguments = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    cv2.setNumThreads(1)
    rng = np.random.default_rng(0)
    shape = (arguments.side, arguments.side)
    pictures: list[Pixels] = [rng.normal(120, 20, shape).clip(0, 255).astype(np.uint8) for _ in range(PICTURES)]
    captures = [Capture(pixels, datetime.now(UTC), 0.0) for pixels in pictures]
    gate = QualityGate(LIMITS, frozen_after=5)
    work: dict[str, Callable[[int], object]] = {
        "quality gate": lambda turn: gate.check(captures[turn % PICTURES]),
        "copy": lambda turn: pictures[turn % PICTURES].copy(),
    }
    spent_us: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(arguments.rounds):
        for name, do in work.items():
            began_s = time.process_time()
            for turn in range(arguments.frames):
                do(turn)
            spent_us[name].append(1e6 * (time.process_time() - began_s) / arguments.frames)
    for name, rounds_us in spent_us.items():
        print(
            f"{name}: {statistics.median(rounds_us):.0f} µs a frame of {arguments.side}×{arguments.side} "
            f"({min(rounds_us):.0f} to {max(rounds_us):.0f})"
        )


if __name__ == "__main__":
    main()
