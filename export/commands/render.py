"""Write rendered circuit boards as a labelled data set.

    station-export render --out DIR

OUT receives PNG pictures, label files `x1 y1 x2 y2 type`, trainval.txt and test.txt in the DeepPCB layout, beside each
picture the same one without defects, and provenance.json with the seeds. The same options give the same files. Seeds
below 1000 belong to demonstrations, 1000 to 1999 to the choice of thresholds, 2000 to 9999 to scoring, 90000 and above
to the representative set of the quantization, which `--pieces` writes instead: small pictures without labels.
"""

import argparse
from pathlib import Path

from export.render import RenderKnobs, render_dataset, render_pieces


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    knobs = RenderKnobs()
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="new or empty folder")
    parser.add_argument(
        "--train-webs", type=int, default=knobs.train_webs, metavar="N", help="webs to train on (default: %(default)s)"
    )
    parser.add_argument(
        "--test-webs", type=int, default=knobs.test_webs, metavar="N", help="webs to score on (default: %(default)s)"
    )
    parser.add_argument(
        "--frames", type=int, default=knobs.frames, metavar="N", help="pictures of each web (default: %(default)s)"
    )
    parser.add_argument(
        "--first-seed", type=int, default=knobs.first_seed, metavar="N", help="of the first web (default: %(default)s)"
    )
    parser.add_argument(
        "--defect-share",
        type=float,
        default=knobs.defect_share,
        metavar="SHARE",
        help="share of pictures with a defect, 0 to 0.99 (default: %(default)s)",
    )
    parser.add_argument("--pieces", type=int, metavar="N", help="write N pictures for the quantization instead")


def run(arguments: argparse.Namespace) -> int:
    """Render."""
    if arguments.pieces is not None:
        render_pieces(arguments.out, arguments.pieces, _say)
        return 0
    knobs = RenderKnobs(
        train_webs=arguments.train_webs,
        test_webs=arguments.test_webs,
        frames=arguments.frames,
        first_seed=arguments.first_seed,
        defect_share=arguments.defect_share,
    )
    render_dataset(arguments.out, knobs, _say)
    return 0


def _say(line: str) -> None:
    print(line, flush=True)
