"""Views and drawn defects keep masks true."""

import cv2
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from export.synthetic import draw_defects
from export.views import MOST_POINTS, ViewKnobs, cell_cover, random_view

KNOBS = ViewKnobs(contrast=0.0, brightness=0.0, blur_share=0.0, noise_share=0.0)


@given(st.integers(0, 2**32 - 1), st.integers(40, 120), st.integers(40, 120), st.sampled_from([64, 96, 128]))
def test_the_mask_follows_the_picture(seed: int, height: int, width: int, side: int) -> None:
    rng = np.random.default_rng(seed)
    pixels = np.full((height, width), 200, np.uint8)
    row, column = int(rng.integers(8, height - 8)), int(rng.integers(8, width - 8))
    cv2.rectangle(pixels, (column - 5, row - 5), (column + 5, row + 5), 0, cv2.FILLED)
    view, mask = random_view(pixels, pixels == 0, (side, side), KNOBS, rng)
    assert mask is not None
    assert view.shape == mask.shape == (side, side)
    # Inside of the mask it is dark and outside it is not, also where the edge mirrors it; the rim is mixed.
    assert mask.any()
    inner = cv2.erode(mask.astype(np.uint8), np.ones((11, 11), np.uint8)) > 0
    outer = cv2.dilate(mask.astype(np.uint8), np.ones((11, 11), np.uint8)) > 0
    assert view[inner].max(initial=0) < 120
    assert view[~outer].min(initial=255) > 80


@given(st.integers(0, 2**32 - 1), st.sampled_from([(0, 0), (0, 50), (110, 3), (119, 79)]))
def test_a_view_shows_the_better_part_of_a_defect_at_the_edge(seed: int, corner: tuple[int, int]) -> None:
    row, column = corner
    mask = np.zeros((120, 80), np.bool_)
    mask[row : row + 6, column : column + 6] = True
    strong = ViewKnobs(zoom=0.6, shift=0.2, turn_degrees=10.0)
    _, seen = random_view(np.zeros((120, 80), np.uint8), mask, (240, 160), strong, np.random.default_rng(seed))
    assert seen is not None
    # Twice as long and twice as wide; at most enlarged by the zoom besides.
    assert seen.sum() >= 0.5 * 4 * mask.sum() * np.exp(-2 * 0.6)


@given(st.integers(0, 2**32 - 1))
def test_what_the_edge_mirrors_is_not_taken_for_the_defect(seed: int) -> None:
    across = np.arange(100)
    pixels = np.tile(across, (40, 1)).astype(np.uint8)
    mask = np.tile((across < 20) | (across >= 70), (40, 1))
    shifted = ViewKnobs(False, 0.0, 0.0, 0.0, 0.4, 0.0, 0.0, 0.0, 0.0)
    view, seen = random_view(pixels, mask, (40, 100), shifted, np.random.default_rng(seed))
    assert seen is not None
    row = view[20].astype(int)
    # Where it mirrors, the grey values fall.
    in_sight = row[1:][np.diff(row) > 0]
    assert np.count_nonzero((in_sight < 20) | (in_sight >= 70)) >= 0.5 * 50 - 2
    assert (np.abs(seen[20].astype(int) - ((row < 20) | (row >= 70))).sum()) <= 4


@given(st.integers(0, 2**32 - 1), st.integers(0, 599), st.integers(0, 599))
def test_a_small_view_keeps_the_mask_of_a_little_defect(seed: int, row: int, column: int) -> None:
    mask = np.zeros((600, 600), np.bool_)
    mask[row, column] = True
    _, seen = random_view(np.zeros((600, 600), np.uint8), mask, (64, 64), ViewKnobs(), np.random.default_rng(seed))
    assert seen is not None
    assert 1 <= seen.sum() <= 2


def test_a_little_defect_in_a_small_view_is_still_moved_about() -> None:
    mask = np.zeros((600, 600), np.bool_)
    mask[200, 250] = True
    seen = [
        random_view(np.zeros((600, 600), np.uint8), mask, (64, 64), ViewKnobs(), np.random.default_rng(i))[1]
        for i in range(40)
    ]
    # Mirrored alone, it would be in one of four places.
    assert len({tuple(np.argwhere(one)[0]) for one in seen if one is not None}) > 10


@given(st.integers(0, 2**32 - 1))
def test_of_a_large_mask_the_better_part_is_in_sight_too(seed: int) -> None:
    across = np.arange(250)
    mask = np.tile((across < 50) | (across >= 175), (400, 1))
    assert mask.sum() > MOST_POINTS
    shifted = ViewKnobs(False, 0.0, 0.0, 0.0, 0.4, 0.0, 0.0, 0.0, 0.0)
    pixels = np.tile(across, (400, 1)).astype(np.uint8)
    view, seen = random_view(pixels, mask, (400, 250), shifted, np.random.default_rng(seed))
    assert seen is not None
    row = view[200].astype(int)
    in_sight = row[1:][np.diff(row) > 0]
    # Rows go out of sight as well: at most two fifths of them.
    assert np.count_nonzero((in_sight < 50) | (in_sight >= 175)) >= 0.5 * 125 - 3


def test_a_view_depends_on_its_seed_only() -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (50, 70, 3), np.uint8)
    views = [random_view(pixels, None, (64, 64), ViewKnobs(), np.random.default_rng(seed))[0] for seed in (3, 3, 4)]
    assert np.array_equal(views[0], views[1])
    assert not np.array_equal(views[0], views[2])


def test_a_cell_is_covered_when_the_mask_touches_it() -> None:
    mask = np.zeros((20, 30), np.bool_)
    mask[7, 8] = mask[19, 29] = True
    cover = cell_cover(mask, (4, 4), 8)
    assert {(int(row), int(column)) for row, column in np.argwhere(cover)} == {(0, 1), (2, 3)}


@given(st.integers(0, 2**32 - 1), st.booleans())
def test_drawn_defects_change_the_picture_where_the_mask_says(seed: int, colour: bool) -> None:
    rng = np.random.default_rng(seed)
    shape = (48, 80, 3) if colour else (48, 80)
    pixels, other = (np.clip(rng.normal(120, 8, shape), 0, 255).astype(np.uint8) for _ in range(2))
    before = pixels.copy()
    drawn, mask = draw_defects(pixels, other, rng)
    assert np.array_equal(pixels, before)
    assert drawn.shape == pixels.shape
    assert mask.shape == (48, 80)
    assert mask.any()
    assert not np.array_equal(drawn, pixels)
