"""Choose a bundle's threshold on frames of the simulated line, judged as the station judges them.

The frames go through assembly, the deployed model, ownership of seams and the quality gate; whole frames are counted,
since a frame is what is rejected or missed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np

from export.thresholds import Costs, Counts, cheapest, count_parts, logit, options_on_grid
from station.adapters.litert_model import LitertModel
from station.boards import Web
from station.judge import above_threshold
from station.linescan import FrameAssembler, SeamOwner
from station.manifest import Thresholds
from station.messages import Capture, Pixels, Scores, Slice
from station.quality import QualityGate

SLICE_LINES = 160
GOLDEN_EDGE_PX = 160
GOLDEN_CANDIDATES = 400
GRID_STEP = 0.05
GRID_END = 4.0
"""In logits: what a frame's defects are depends on the threshold at its seams, so it is simulated for each."""


@dataclass(frozen=True, slots=True)
class SeenFrame:
    """One frame of the line with what the model says of it.

    Attributes:
        seed: of the web.
        capture: the frame, without its pixels.
        scores: of the deployed model.
        unjudgeable: the quality gate refused it.
        defective: the truth: a defect has its centre on the rows that the frame owns.
    """

    seed: int
    capture: Capture
    scores: Scores
    unjudgeable: bool
    defective: bool


def watch_line(
    model: LitertModel,
    seeds: Sequence[int],
    frames: int,
    defect_share: float,
    progress: Callable[[int, int], None] | None = None,
) -> list[SeenFrame]:
    """Score the first `frames` frames of the demo's camera over the web of each seed."""
    seen: list[SeenFrame] = []
    for number, seed in enumerate(seeds):
        web = Web(seed, defect_share=defect_share)
        gate = QualityGate(model.bundle.manifest.quality)
        for capture in _frames(web, frames):
            assert capture.pixels is not None
            assert capture.first_line is not None
            assert capture.owned_rows is not None
            start, stop = capture.owned_rows
            seen.append(
                SeenFrame(
                    seed=seed,
                    capture=_without_pixels(capture),
                    scores=model.infer(capture.pixels),
                    unjudgeable=bool(gate.check(capture)),
                    defective=bool(web.defects(capture.first_line + start, capture.first_line + stop)),
                )
            )
        if progress:
            progress(number + 1, len(seeds))
    return seen


def rejected_frames(seen: Sequence[SeenFrame], thresholds: Thresholds) -> list[bool]:
    """For each frame whether the station would not call it ok."""
    result = []
    seams = SeamOwner()
    seed = None
    for frame in seen:
        if frame.seed != seed:
            seed, seams = frame.seed, SeamOwner()
        assert frame.capture.first_line is not None
        assert frame.capture.owned_rows is not None
        found = above_threshold(frame.scores, thresholds)
        mine = seams.claim(frame.capture.first_line, frame.capture.owned_rows, found)
        result.append(frame.unjudgeable or bool(mine))
    return result


def count(seen: Sequence[SeenFrame], thresholds: Thresholds) -> Counts:
    """Whole frames at these thresholds; one that cannot be judged is caught, or rejected."""
    return count_parts(
        np.array([frame.defective for frame in seen], np.bool_),
        np.array(rejected_frames(seen, thresholds), np.bool_),
    )


def choose_frame_threshold(seen: Sequence[SeenFrame], floor: float) -> Thresholds:
    """The threshold with the least sum of miss rate and false-reject rate, where it has most room in logits.

    Args:
        seen: frames that training never saw.
        floor: the bundle's score floor; below it there is nothing to compare.
    """
    grid = np.arange(logit(floor) + GRID_STEP, GRID_END, GRID_STEP)
    candidates = options_on_grid(grid.tolist(), lambda threshold: count(seen, Thresholds(default=threshold)))
    chosen = cheapest(candidates, Costs())
    seeds = sorted({frame.seed for frame in seen})
    return Thresholds(
        default=chosen.threshold,
        chosen_on=f"{len(seen)} frames of the simulated line, seeds {seeds[0]} to {seeds[-1]}: {chosen.counts}",
    )


def golden_pieces(seed: int) -> Iterator[tuple[Pixels, ...]]:
    """Small pieces of a web with many defects: a noisy picture does not compress, and a bundle is to stay small."""
    web = Web(seed, defect_share=0.9)
    for number in range(GOLDEN_CANDIDATES):
        left = number * 97 % (web.width_px - GOLDEN_EDGE_PX)
        yield (web.render(number * 700, GOLDEN_EDGE_PX)[:, left : left + GOLDEN_EDGE_PX].copy(),)


def _frames(web: Web, frames: int) -> list[Capture]:
    assembler = FrameAssembler(web.width_px)
    captures: list[Capture] = []
    line = 0
    epoch = datetime.fromtimestamp(0, UTC)
    while len(captures) < frames:
        captures += assembler.feed(Slice(web.render(line, SLICE_LINES), line, epoch, 0.0))
        line += SLICE_LINES
    return captures[:frames]


def _without_pixels(capture: Capture) -> Capture:
    return Capture(
        pixels=None,
        captured_at=capture.captured_at,
        captured_monotonic_s=capture.captured_monotonic_s,
        source=capture.source,
        first_line=capture.first_line,
        owned_rows=capture.owned_rows,
    )
