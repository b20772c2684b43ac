"""How fast are bundles beside each other? Bytes, and time of a frame from picture to scores on one core.

    python tests/bench_bundles.py WHOLE.bundle PRUNED.bundle [--side 224] [--rounds 15] [--frames 20]

The bundles take turns, so that what else the machine does hits all of them alike. Time is processor time of this
process, which is bound to one core. The median of the rounds counts; the fastest and the slowest stand beside it.
"""

import argparse
import os
import statistics
import time
from pathlib import Path

import numpy as np

from station.adapters.litert_model import load_model
from station.manifest import read_bundle
from station.messages import Pixels

WARM_UP_FRAMES = 5


def main() -> None:
    """Measure and print one line a bundle."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", type=Path, nargs="+", metavar="BUNDLE")
    parser.add_argument("--side", type=int, default=224, metavar="PX", help="of the square picture")
    parser.add_argument("--rounds", type=int, default=15, metavar="N")
    parser.add_argument("--frames", type=int, default=20, metavar="N", help="of each bundle in a round")
    arguments = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    bundles = [read_bundle(path) for path in arguments.bundles]
    models = [load_model(bundle) for bundle in bundles]
    shape = (arguments.side, arguments.side)
    frame: Pixels = np.random.default_rng(0).normal(120, 20, shape).clip(0, 255).astype(np.uint8)
    for model in models:
        for _ in range(WARM_UP_FRAMES):
            model.infer(frame)
    spent_ms: list[list[float]] = [[] for _ in models]
    for _ in range(arguments.rounds):
        for model, rounds_ms in zip(models, spent_ms, strict=True):
            began_s = time.process_time()
            for _ in range(arguments.frames):
                model.infer(frame)
            rounds_ms.append(1000 * (time.process_time() - began_s) / arguments.frames)
    first_ms = statistics.median(spent_ms[0])
    for path, bundle, rounds_ms in zip(arguments.bundles, bundles, spent_ms, strict=True):
        median_ms = statistics.median(rounds_ms)
        print(
            f"{path}: bundle {path.stat().st_size} bytes, model {len(bundle.model)} bytes; {median_ms:.2f} ms a frame "
            f"({min(rounds_ms):.2f} to {max(rounds_ms):.2f}), {median_ms / first_ms:.2f} of the first"
        )


if __name__ == "__main__":
    main()
