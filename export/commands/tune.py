"""Choose a bundle's threshold on frames of the simulated line, and score it on others.

    station-export tune BUNDLE --out BUNDLE

The threshold is the one with the least sum of miss rate and false-reject rate on the webs with seeds 1000 to 1019; the
score is taken on seeds 2000 to 2039. No web of either part is trained on or shown by `station demo`. Threshold, counts
and a new golden set go into the bundle.
"""

import argparse
import sys
from pathlib import Path

from export.package import golden_set, write_bundle
from export.render import CALIBRATION_SEEDS, HELD_OUT_SEEDS
from export.tune import choose_frame_threshold, count, golden_pieces, watch_line
from station.adapters.litert_model import load_model
from station.manifest import read_bundle

GOLDEN_SEED = CALIBRATION_SEEDS.stop - 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="the bundle file")
    parser.add_argument("--out", type=Path, required=True, metavar="BUNDLE", help="the file to write")
    parser.add_argument(
        "--frames", type=int, default=100, metavar="N", help="frames of each web (default: %(default)s)"
    )
    parser.add_argument(
        "--webs", type=int, default=20, metavar="N", help="webs for the threshold (default: %(default)s)"
    )
    parser.add_argument(
        "--held-out-webs", type=int, default=40, metavar="N", help="webs for the score (default: %(default)s)"
    )
    parser.add_argument(
        "--defect-share",
        type=float,
        default=0.3,
        metavar="SHARE",
        help="share of frames with a defect (default: %(default)s)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Choose, score, write."""
    bundle = read_bundle(arguments.bundle)
    model = load_model(bundle)
    manifest = bundle.manifest
    share = arguments.defect_share
    seen = watch_line(model, CALIBRATION_SEEDS[: arguments.webs], arguments.frames, share, _progress)
    thresholds = choose_frame_threshold(seen, manifest.decoding.score_floor)
    print(f"threshold {thresholds.default}: {thresholds.chosen_on}", flush=True)
    held_out = watch_line(model, HELD_OUT_SEEDS[: arguments.held_out_webs], arguments.frames, share, _progress)
    counts = count(held_out, thresholds)
    print(f"held out, {len(held_out)} frames: {counts}", flush=True)
    print(f"recall {counts.recall:.4f}, false rejects {counts.false_reject_rate:.4f}")
    cases, golden = golden_set(model, golden_pieces(GOLDEN_SEED), thresholds)
    line = {
        "frames": float(len(held_out)),
        "recall": counts.recall,
        "false_reject_rate": counts.false_reject_rate,
        "missed": float(counts.missed),
        "rejected": float(counts.rejected),
    }
    changed = manifest.model_copy(
        update={"thresholds": thresholds, "golden": cases, "metrics": {**manifest.metrics, "line_int8": line}}
    )
    written = write_bundle(arguments.out, changed, bundle.model, golden, bundle.extra)
    print(f"wrote {arguments.out}, {arguments.out.stat().st_size} bytes, sha256 {written.sha256}")
    return 0


def _progress(done: int, total: int) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(f"\r{done}/{total}" + ("\n" if done == total else ""))
