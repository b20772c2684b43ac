"""Write logs of the simulated oven and press, to train on or to score.

    station-export render-process --out DIR
    station-export render-process --out DIR --first-seed 1000 --minutes 3 --drift-after 60

DIR receives one CSV file for each log: `timestamp`, eight channels with their units, and with `--drift-after` the
label `anomaly`. The same options give the same files. Seeds below 1000 belong to demonstrations, 1000 to 1999 to
scoring, 2000 and above to training.
"""

import argparse
from pathlib import Path

from export.render_process import ProcessKnobs, onset_and_defects, render_logs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    knobs = ProcessKnobs()
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="new or empty folder")
    parser.add_argument("--logs", type=int, default=knobs.logs, metavar="N", help="files (default: %(default)s)")
    parser.add_argument(
        "--minutes", type=float, default=knobs.minutes, metavar="M", help="length of each (default: %(default)s)"
    )
    parser.add_argument(
        "--first-seed", type=int, default=knobs.first_seed, metavar="N", help="of the first log (default: %(default)s)"
    )
    parser.add_argument(
        "--rate", type=float, default=knobs.rate_hz, metavar="HZ", help="rows a second (default: %(default)s)"
    )
    parser.add_argument("--drift-after", type=float, metavar="S", help="the heater begins to fail; default: never")


def run(arguments: argparse.Namespace) -> int:
    """Write the logs."""
    knobs = ProcessKnobs(
        logs=arguments.logs,
        minutes=arguments.minutes,
        first_seed=arguments.first_seed,
        rate_hz=arguments.rate,
        drift_after_s=arguments.drift_after,
    )
    try:
        paths = render_logs(arguments.out, knobs)
    except ValueError as exc:
        print(f"station-export render-process: {exc}", flush=True)
        return 2
    print(f"wrote {len(paths)} logs to {arguments.out}: {onset_and_defects(knobs)}", flush=True)
    return 0
