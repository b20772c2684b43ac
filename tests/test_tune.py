"""Whole frames at a threshold, and the choice of it."""

from collections.abc import Sequence
from datetime import UTC, datetime

import numpy as np
import pytest

from export.tune import GOLDEN_EDGE_PX, SeenFrame, choose_frame_threshold, count, golden_pieces
from station.manifest import Thresholds
from station.messages import Box, Capture, Defect, Scores

START = datetime(2030, 1, 1, tzinfo=UTC)


def frame(
    number: int, scores: Sequence[float], *, defective: bool, y: float = 300.0, refused: bool = False
) -> SeenFrame:
    candidates = tuple(
        Defect(label="spur", score=score, box=Box(x_px=40.0 * i, y_px=y, width_px=30, height_px=30))
        for i, score in enumerate(sorted(scores, reverse=True))
    )
    capture = Capture(None, START, 0.0, first_line=number * 544, owned_rows=(48 if number else 0, 592))
    return SeenFrame(7, capture, Scores(candidates, max(scores, default=0.0)), refused, defective)


def test_frames_are_counted_by_what_they_own() -> None:
    seen = [
        frame(0, [0.9], defective=True),
        frame(1, [0.9], defective=False, y=600.0),
        frame(2, [0.3], defective=True),
        frame(3, [], defective=False, refused=True),
        frame(4, [0.9, 0.8], defective=False),
    ]
    counts = count(seen, Thresholds(default=0.5))
    assert (counts.bad, counts.missed, counts.good, counts.rejected) == (2, 1, 3, 2)
    assert counts.recall == 0.5
    assert counts.false_reject_rate == pytest.approx(2 / 3)
    assert str(counts) == "2 of 3 good rejected, 1 of 2 bad missed"


def test_the_threshold_stands_between_good_and_bad() -> None:
    seen = [frame(n, [0.9], defective=True) for n in range(10)]
    seen += [frame(n + 10, [0.2], defective=False) for n in range(10)]
    chosen = choose_frame_threshold(seen, 0.05)
    assert 0.4 < chosen.default < 0.75
    assert chosen.chosen_on == (
        "20 frames of the simulated line, seeds 7 to 7: 0 of 10 good rejected, 0 of 10 bad missed"
    )


def test_one_loud_good_frame_does_not_cost_many_misses() -> None:
    seen = [frame(n, [0.6], defective=True) for n in range(50)]
    seen += [frame(n + 50, [0.2], defective=False) for n in range(50)]
    seen.append(frame(100, [0.95], defective=False))
    counts = count(seen, choose_frame_threshold(seen, 0.05))
    assert counts.missed == 0
    assert counts.rejected == 1


def test_nothing_defective_is_no_reason_to_fail() -> None:
    assert count([frame(0, [], defective=False)], Thresholds(default=0.5)).recall == 1.0


def test_golden_pieces_are_small_and_repeatable() -> None:
    first, again = golden_pieces(1999), golden_pieces(1999)
    for _ in range(3):
        (piece,) = next(first)
        assert piece.shape == (GOLDEN_EDGE_PX, GOLDEN_EDGE_PX)
        assert np.array_equal(piece, next(again)[0])
