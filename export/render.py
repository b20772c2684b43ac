"""Write rendered boards as a labelled data set, in the layout of DeepPCB.

    station-export render --out DIR

Each web has its own boards and its own camera (`Imaging.varied`), so that what is trained on them does not depend on
one lamp or one lens. Pictures of one web stand on one side of the split only. Beside each picture stands the same
picture without defects, `ID_temp.png`, down to the noise.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

import cv2
import numpy as np

from station.boards import BOARD_LABELS, LARGEST_SHARE, PITCH_LINES, Imaging, TrueDefect, Web
from station.errors import StationError
from station.linescan import FRAME_LINES
from station.messages import Pixels

DEMO_SEEDS = range(1_000)
CALIBRATION_SEEDS = range(1_000, 2_000)
HELD_OUT_SEEDS = range(2_000, 10_000)
TRAINING_SEEDS = range(10_000, 90_000)
QUANTIZATION_SEEDS = range(90_000, 100_000)
"""Which seeds are for what: a web that was trained on is never judged."""

PROVENANCE = "provenance.json"
WEBS_PER_GROUP = 10
PIECE_EDGE_PX = 192

_LINES_PER_WEB = 300 * PITCH_LINES


class RenderError(StationError):
    """The data set cannot be written: the text names the folder or the option and what is allowed."""


@dataclass(frozen=True, slots=True)
class RenderKnobs:
    """What is rendered.

    Attributes:
        train_webs, test_webs: webs on each side of the split.
        frames: pictures of each web.
        first_seed: seed of the first web; the others follow.
        defect_share: share of pictures with a defect, 0 to 0.99; 0.95 puts three on each on average.
        width_px: across the web; the pictures are 640 lines high.
    """

    train_webs: int = 400
    test_webs: int = 30
    frames: int = 5
    first_seed: int = TRAINING_SEEDS.start
    defect_share: float = 0.95
    width_px: int = 640


def render_dataset(folder: Path, knobs: RenderKnobs, say: Callable[[str], None]) -> None:
    """Render the pictures of `knobs` into `folder`; the same knobs give the same files.

    Raises:
        RenderError: the folder is not empty or cannot be written, or a knob is out of range.
    """
    _check(folder, knobs)
    sides = (("trainval.txt", 0, knobs.train_webs), ("test.txt", knobs.train_webs, knobs.test_webs))
    webs = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for listing, before, count in sides:
            lines: list[str] = []
            for number in range(before, before + count):
                seed = knobs.first_seed + number
                names, record = _render_web(folder, seed, number // WEBS_PER_GROUP, knobs)
                lines += names
                webs.append({**record, "side": listing.removesuffix(".txt")})
                if (number + 1) % 20 == 0:
                    say(f"{number + 1} of {knobs.train_webs + knobs.test_webs} webs")
            (folder / listing).write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        provenance = {"renderer": "station.boards", "knobs": asdict(knobs), "labels": BOARD_LABELS, "webs": webs}
        (folder / PROVENANCE).write_text(json.dumps(provenance, indent=1) + "\n", encoding="utf-8")
    except OSError as exc:
        raise RenderError(f"{folder}: cannot be written: {exc.strerror}") from exc
    say(f"{folder}: {(knobs.train_webs + knobs.test_webs) * knobs.frames} pictures")


def render_pieces(folder: Path, count: int, say: Callable[[str], None]) -> None:
    """Render `count` small pictures without labels: the representative set that sets the ranges of a quantized model.

    Each comes from a web and a camera of its own, every fourth from the demo's camera; all but every fourth show a
    defect.

    Raises:
        RenderError: the folder is not empty or cannot be written, or the count is out of range.
    """
    if not 1 <= count <= len(QUANTIZATION_SEEDS):
        raise RenderError(f"--pieces = {count}; allowed: 1 to {len(QUANTIZATION_SEEDS)}")
    _check_empty(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        records = [_render_piece(folder, seed) for seed in QUANTIZATION_SEEDS[:count]]
        provenance = {"renderer": "station.boards", "edge_px": PIECE_EDGE_PX, "labels": BOARD_LABELS, "pieces": records}
        (folder / PROVENANCE).write_text(json.dumps(provenance, indent=1) + "\n", encoding="utf-8")
    except OSError as exc:
        raise RenderError(f"{folder}: cannot be written: {exc.strerror}") from exc
    say(f"{folder}: {count} pictures")


def _render_piece(folder: Path, seed: int) -> dict[str, object]:
    demo_camera = seed % 4 == 0
    imaging = Imaging() if demo_camera else Imaging.varied(seed)
    web = Web(seed, defect_share=0.95, imaging=imaging)
    rng = Random(seed)
    first_line = rng.randrange(_LINES_PER_WEB)
    left = rng.randrange(web.width_px - PIECE_EDGE_PX)
    found = web.defects(first_line, first_line + 2 * PITCH_LINES)
    if seed % 4 != 1 and found:
        # The kinds take turns where the board has them.
        wanted = BOARD_LABELS[seed % len(BOARD_LABELS)]
        x, y = next((d for d in found if d.label == wanted), found[0]).centre
        first_line = max(int(y) - rng.randrange(40, PIECE_EDGE_PX - 40), 0)
        left = min(max(int(x) - rng.randrange(40, PIECE_EDGE_PX - 40), 0), web.width_px - PIECE_EDGE_PX)
    pixels = web.render(first_line, PIECE_EDGE_PX)[:, left : left + PIECE_EDGE_PX].copy()
    file = f"{seed:06d}.png"
    _write_picture(folder / file, pixels)
    shown = [
        d.label
        for d in web.defects(first_line, first_line + PIECE_EDGE_PX)
        if left <= d.centre[0] < left + PIECE_EDGE_PX
    ]
    return {
        "file": file,
        "seed": seed,
        "first_line": first_line,
        "left_px": left,
        "camera": "demo" if demo_camera else "varied",
        "defects": shown,
    }


def _check_empty(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RenderError(f"{folder}: is not an empty folder")


def _check(folder: Path, knobs: RenderKnobs) -> None:
    _check_empty(folder)
    for name, value, least in (
        ("train-webs", knobs.train_webs, 1),
        ("test-webs", knobs.test_webs, 1),
        ("frames", knobs.frames, 1),
        ("first-seed", knobs.first_seed, 0),
    ):
        if value < least:
            raise RenderError(f"--{name} = {value}; allowed: {least} or more")
    if knobs.train_webs % WEBS_PER_GROUP:
        # The last tenth of each group is held out for thresholds: with ten webs in a group that is one whole web.
        raise RenderError(f"--train-webs = {knobs.train_webs}; allowed: a multiple of {WEBS_PER_GROUP}")
    if not 0 <= knobs.defect_share <= LARGEST_SHARE:
        raise RenderError(f"--defect-share = {knobs.defect_share}; allowed: 0 to {LARGEST_SHARE}")


def _render_web(folder: Path, seed: int, group: int, knobs: RenderKnobs) -> tuple[list[str], dict[str, object]]:
    """Write the pictures of one web; return their lines in the list and the record of what they are."""
    imaging = Imaging.varied(seed)
    web = Web(seed, knobs.width_px, knobs.defect_share, imaging)
    name = f"{group:05d}"
    pictures, labels = folder / f"group{name}" / name, folder / f"group{name}" / f"{name}_not"
    pictures.mkdir(parents=True, exist_ok=True)
    labels.mkdir(parents=True, exist_ok=True)
    names = []
    counts: Counter[str] = Counter()
    first_lines = []
    for number, first_line in enumerate(_first_lines(seed, knobs.frames)):
        key = f"{seed:06d}_{number:02d}"
        defects = web.defects(first_line, first_line + FRAME_LINES)
        _write_picture(pictures / f"{key}_test.png", web.render(first_line, FRAME_LINES))
        _write_picture(pictures / f"{key}_temp.png", web.render(first_line, FRAME_LINES, defects=False))
        (labels / f"{key}.txt").write_text("".join(_label(d, first_line) for d in defects), encoding="utf-8")
        names.append(f"group{name}/{name}/{key}.jpg group{name}/{name}_not/{key}.txt")
        counts.update(d.label for d in defects)
        first_lines.append(first_line)
    return names, {"seed": seed, "imaging": asdict(imaging), "first_lines": first_lines, "defects": dict(counts)}


def _first_lines(seed: int, frames: int) -> Iterator[int]:
    rng = Random(seed)
    for _ in range(frames):
        yield rng.randrange(_LINES_PER_WEB)


def _label(defect: TrueDefect, first_line: int) -> str:
    x1, y1, x2, y2 = defect.box
    top, bottom = max(y1 - first_line, 0), min(y2 - first_line, FRAME_LINES)
    return f"{x1} {top} {x2} {bottom} {BOARD_LABELS.index(defect.label) + 1}\n"


def _write_picture(path: Path, pixels: Pixels) -> None:
    # Level 1: noise does not compress better for being given more time.
    whole, encoded = cv2.imencode(".png", pixels, [cv2.IMWRITE_PNG_COMPRESSION, 1])
    if not whole:
        raise RenderError(f"{path}: the picture could not be encoded")
    path.write_bytes(np.asarray(encoded, np.uint8).tobytes())
