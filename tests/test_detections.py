"""Grids to defects: whatever the network says, the boxes are sane, and the same grid gives the same defects."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from station.detections import Grid, Placement, decode, heatmap_image, overlap, sigmoid, suppress
from station.errors import InferenceError
from station.manifest import Decoding
from station.messages import Defect

LABELS = ("open", "short")
STRIDE_PX = 8
HEATMAP_SCALE, HEATMAP_ZERO = 0.07, 20
BOX_SCALE, BOX_ZERO = 0.05, -128
EMPTY = -128

Stored = npt.NDArray[np.int8]


def run(
    heatmap: Stored, box: Stored, decoding: Decoding | None = None, placement: Placement | None = None
) -> tuple[tuple[Defect, ...], float]:
    return decode(
        Grid(heatmap, HEATMAP_SCALE, HEATMAP_ZERO),
        Grid(box, BOX_SCALE, BOX_ZERO),
        labels=LABELS,
        decoding=decoding or Decoding(),
        stride_px=STRIDE_PX,
        placement=placement or Placement(heatmap.shape[0] * STRIDE_PX, heatmap.shape[1] * STRIDE_PX),
    )


def grids(rows: int = 6, columns: int = 5) -> tuple[Stored, Stored]:
    """A grid that says nothing, with boxes of two cells in each direction (4 cells × 8 px = 32 px wide)."""
    box = np.full((rows, columns, 4), BOX_ZERO + round(2 / BOX_SCALE), np.int8)
    return np.full((rows, columns, len(LABELS)), EMPTY, np.int8), box


def edges(defects: tuple[Defect, ...]) -> npt.NDArray[np.float32]:
    return np.array(
        [(d.box.x_px, d.box.y_px, d.box.x_px + d.box.width_px, d.box.y_px + d.box.height_px) for d in defects],
        np.float32,
    ).reshape(-1, 4)


@given(
    heatmap=arrays.arrays(np.int8, (6, 5, len(LABELS))),
    box=arrays.arrays(np.int8, (6, 5, 4)),
    floor=st.floats(0, 1),
    iou=st.floats(0.05, 1),
    height_px=st.integers(1, 48),
    width_px=st.integers(1, 40),
)
def test_any_grid_gives_sane_defects(
    heatmap: Stored, box: Stored, floor: float, iou: float, *, height_px: int, width_px: int
) -> None:
    decoding = Decoding(score_floor=floor, nms_iou=iou)
    placement = Placement(height_px, width_px)
    defects, best = run(heatmap, box, decoding, placement)
    found = edges(defects)
    assert np.isfinite(found).all()
    assert (found >= 0).all()
    assert (found <= np.array([width_px, height_px, width_px, height_px]) + 1e-3).all()
    scores = [defect.score for defect in defects]
    assert scores == sorted(scores, reverse=True)
    assert all(floor <= score <= best + 1e-6 for score in scores)
    assert 0 <= best <= 1
    assert suppress(found, iou + 1e-3) == list(range(len(found)))
    assert run(heatmap, box, decoding, placement) == (defects, best)


@given(heatmap=arrays.arrays(np.int8, (6, 5, len(LABELS))), box=arrays.arrays(np.int8, (6, 5, 4)))
def test_int8_grid_and_its_real_values_decode_alike(heatmap: Stored, box: Stored) -> None:
    as_int8, as_float = Grid(heatmap, HEATMAP_SCALE, HEATMAP_ZERO), Grid(box, BOX_SCALE, BOX_ZERO)
    real = decode(
        Grid(as_int8.real(heatmap)),
        Grid(as_float.real(box)),
        labels=LABELS,
        decoding=Decoding(),
        stride_px=STRIDE_PX,
        placement=Placement(48, 40),
    )
    assert run(heatmap, box, Decoding(), Placement(48, 40)) == real


def test_one_peak_becomes_one_box_around_its_cell() -> None:
    heatmap, box = grids()
    heatmap[3, 2, 1] = 100
    (defect,), best = run(heatmap, box)
    assert defect.label == "short"
    assert defect.score == pytest.approx(1 / (1 + np.exp(-(100 - HEATMAP_ZERO) * HEATMAP_SCALE)))
    assert best == pytest.approx(defect.score)
    assert edges((defect,))[0] == pytest.approx([20 - 16, 28 - 16, 20 + 16, 28 + 16])


@pytest.mark.parametrize(("height", "width"), [(1, 2), (2, 1), (2, 2), (3, 3)])
def test_a_plateau_is_one_defect_at_its_first_cell(height: int, width: int) -> None:
    heatmap, box = grids(8, 8)
    box[:] = BOX_ZERO + round(0.4 / BOX_SCALE)
    heatmap[2 : 2 + height, 3 : 3 + width, 0] = 90
    # The boxes of the plateau's cells do not overlap, so it is not the suppression that leaves one.
    (defect,), _ = run(heatmap, box)
    assert defect.box.centre_px == pytest.approx((3.5 * STRIDE_PX, 2.5 * STRIDE_PX))


def test_of_two_classes_in_one_place_the_better_stays() -> None:
    heatmap, box = grids()
    heatmap[3, 2] = (80, 90)
    defects, _ = run(heatmap, box)
    assert [defect.label for defect in defects] == ["short"]


def test_equal_scores_keep_reading_order() -> None:
    heatmap, box = grids(4, 12)
    heatmap[2, 10, 0] = heatmap[1, 1, 0] = 90
    defects, _ = run(heatmap, box)
    assert [defect.box.x_px for defect in defects] == [0, 68]


def test_cells_in_the_padding_do_not_count() -> None:
    heatmap, box = grids()
    heatmap[5, 4, 0] = 120
    defects, best = run(heatmap, box, placement=Placement(40, 32))
    assert defects == ()
    assert best < 1e-3


def test_only_the_best_candidates_are_looked_at() -> None:
    heatmap, box = grids(8, 8)
    box[:] = BOX_ZERO + round(0.4 / BOX_SCALE)
    for number, (row, column) in enumerate([(0, 0), (0, 4), (4, 0), (4, 4)]):
        heatmap[row, column, 0] = 60 + number
    defects, _ = run(heatmap, box, Decoding(max_candidates=2))
    centres = np.array([defect.box.centre_px for defect in defects])
    assert centres == pytest.approx(np.array([[36, 36], [4, 36]]))


def test_a_resized_picture_has_its_boxes_in_its_own_pixels() -> None:
    heatmap, box = grids()
    heatmap[3, 2, 0] = 100
    (defect,), _ = run(heatmap, box, placement=Placement(480, 20, scale_y=0.1, scale_x=2.0))
    assert edges((defect,))[0] == pytest.approx([2, 120, 18, 440])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_float_grid_that_is_not_finite_is_an_error(value: float) -> None:
    heatmap = np.zeros((6, 5, len(LABELS)), np.float32)
    heatmap[1, 1, 0] = value
    with pytest.raises(InferenceError, match="not finite"):
        decode(
            Grid(heatmap),
            Grid(np.ones((6, 5, 4), np.float32)),
            labels=LABELS,
            decoding=Decoding(),
            stride_px=STRIDE_PX,
            placement=Placement(48, 40),
        )


@pytest.mark.parametrize(
    ("heatmap", "box", "placement"),
    [
        ((6, 5, 3), (6, 5, 4), Placement(48, 40)),
        ((6, 5, 2), (5, 5, 4), Placement(48, 40)),
        ((6, 5, 2), (6, 5, 4), Placement(56, 40)),
    ],
)
def test_grids_that_do_not_fit_are_an_error(
    heatmap: tuple[int, ...], box: tuple[int, ...], placement: Placement
) -> None:
    with pytest.raises(InferenceError, match="do not fit"):
        run(np.zeros(heatmap, np.int8), np.zeros(box, np.int8), placement=placement)


def test_heatmap_image_is_the_largest_probability_of_each_cell() -> None:
    heatmap, _ = grids()
    heatmap[1, 2] = (20, 60)
    image = heatmap_image(Grid(heatmap, HEATMAP_SCALE, HEATMAP_ZERO), STRIDE_PX, Placement(40, 33))
    assert image.shape == (5, 5)
    assert image[1, 2] == pytest.approx(1 / (1 + np.exp(-40 * HEATMAP_SCALE)))
    assert image[0, 0] < 1e-3


def test_overlap_of_boxes() -> None:
    box = np.array([0, 0, 10, 10], np.float32)
    others = np.array([[0, 0, 10, 10], [5, 0, 15, 10], [20, 0, 30, 10], [3, 3, 3, 3]], np.float32)
    assert overlap(box, others) == pytest.approx([1, 1 / 3, 0, 0])


def test_sigmoid_does_not_overflow() -> None:
    assert sigmoid(np.array([-1e4, 0, 1e4], np.float32)) == pytest.approx([0, 0.5, 1])
