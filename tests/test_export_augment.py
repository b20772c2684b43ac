"""Random crops keep boxes true, and the grid's targets say what the deployed decoding reads."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from export.augment import Augmentation, Crop, erase_defects, grid_targets, random_crop
from station.detections import Grid, Placement, decode
from station.manifest import Decoding
from station.messages import Pixels

WHOLE = Augmentation(crop_px=128, photometric_share=0.0)


def scene(rng: np.random.Generator) -> tuple[Pixels, np.ndarray, np.ndarray]:
    """White, with black rectangles that fill their boxes."""
    pixels = np.full((200, 240), 255, np.uint8)
    boxes = np.array([[30, 40, 60, 58], [150, 30, 170, 70], [100, 140, 130, 160]], np.float32)
    for left, top, right, bottom in boxes.astype(int):
        pixels[top:bottom, left:right] = 0
    return pixels, boxes, rng.permutation(3)


@given(seed=st.integers(0, 2**32 - 1), scaled=st.sampled_from([0.0, 1.0]))
def test_boxes_follow_what_they_frame(seed: int, scaled: float) -> None:
    rng = np.random.default_rng(seed)
    pixels, boxes, classes = scene(rng)
    crop = random_crop(pixels, boxes, classes, Augmentation(128, photometric_share=0.0, scale_share=scaled), rng)
    assert crop.pixels.shape == (128, 128)
    dark = crop.pixels == 0
    left_over = dark.copy()
    for left, top, right, bottom in crop.boxes_px:
        inside = dark[int(top + 1.5) : int(bottom - 0.5), int(left + 1.5) : int(right - 0.5)]
        assert inside.all()
        left_over[max(int(top) - 1, 0) : int(bottom) + 2, max(int(left) - 1, 0) : int(right) + 2] = False
    # What is dark and in no box can only be the border that the warp brought in.
    assert not left_over[8:-8, 8:-8].any()


@given(seed=st.integers(0, 2**32 - 1))
def test_an_unscaled_crop_is_an_exact_copy(seed: int) -> None:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (160, 160), np.uint8)
    none = np.zeros((0, 4), np.float32), np.zeros(0, np.int64)
    crop = random_crop(pixels, *none, Augmentation(128, photometric_share=0.0, scale_share=0.0), rng).pixels
    turned = [np.rot90(side, turns) for side in (crop, crop[:, ::-1]) for turns in range(4)]
    windows = np.lib.stride_tricks.sliding_window_view(pixels, (128, 128))
    corners = windows[:, :, 0, 0]
    assert any(
        np.array_equal(windows[row, column], candidate)
        for candidate in turned
        for row, column in np.argwhere(corners == candidate[0, 0])
    )


def test_photometric_changes_keep_the_boxes() -> None:
    pixels, boxes, classes = scene(np.random.default_rng(0))
    plain = random_crop(pixels, boxes, classes, WHOLE, np.random.default_rng(4))
    changed = random_crop(pixels, boxes, classes, Augmentation(128, photometric_share=1.0), np.random.default_rng(4))
    assert np.array_equal(plain.boxes_px, changed.boxes_px)
    assert not np.array_equal(plain.pixels, changed.pixels)


def test_the_same_generator_gives_the_same_crop() -> None:
    pixels, boxes, classes = scene(np.random.default_rng(0))
    knobs = Augmentation(128, photometric_share=1.0)
    one, two = (random_crop(pixels, boxes, classes, knobs, np.random.default_rng(4)) for _ in range(2))
    assert np.array_equal(one.pixels, two.pixels)
    assert np.array_equal(one.boxes_px, two.boxes_px)


def test_a_small_or_colour_picture_can_be_cropped() -> None:
    rng = np.random.default_rng(0)
    none = np.zeros((0, 4), np.float32), np.zeros(0, np.int64)
    for shape in ((40, 300), (40, 300, 3)):
        crop = random_crop(np.full(shape, 200, np.uint8), *none, Augmentation(128, photometric_share=1.0), rng)
        assert crop.pixels.shape == (128, 128, *shape[2:])


def test_targets_decode_to_the_labels() -> None:
    boxes = np.array([[20, 24, 52, 50], [70, 60, 90, 120]], np.float32)
    crop = Crop(np.zeros((128, 128), np.uint8), boxes, np.array([1, 0]), np.ones(2, np.bool_))
    heatmap, box = grid_targets(crop, 2, 8)
    logits = np.log(np.clip(heatmap, 1e-4, 1 - 1e-4) / (1 - np.clip(heatmap, 1e-4, 1 - 1e-4)))
    defects, _ = decode(
        Grid(logits),
        Grid(box[..., :4]),
        labels=("a", "b"),
        decoding=Decoding(box_unit_px=8.0),
        stride_px=8,
        placement=Placement(128, 128),
    )
    found = {item.label: item.box for item in defects}
    assert set(found) == {"a", "b"}
    for label, (left, top, right, bottom) in zip("ba", boxes, strict=True):
        assert (found[label].x_px, found[label].y_px) == pytest.approx((left, top), abs=1e-4)
        assert (found[label].width_px, found[label].height_px) == pytest.approx((right - left, bottom - top), abs=1e-4)


def test_a_defect_that_is_mostly_cut_off_counts_neither_way() -> None:
    crop = Crop(
        np.zeros((64, 64), np.uint8), np.array([[0, 0, 16, 16]], np.float32), np.array([0]), np.zeros(1, np.bool_)
    )
    heatmap, box = grid_targets(crop, 2, 8)
    assert (heatmap[:2, :2] == -1).all()
    assert (heatmap[2:] == 0).all()
    assert not box[..., 4].any()


def test_erasing_puts_the_reference_back() -> None:
    pixels, boxes, _ = scene(np.random.default_rng(0))
    reference = np.full_like(pixels, 255)
    result, kept = erase_defects(pixels, reference, boxes, np.array([True, False, True]))
    assert kept.tolist() == [False, True, False]
    assert (result[:, :140] == 255).all()
    assert np.array_equal(result[:, 145:], pixels[:, 145:])
    assert (pixels == 0).any(axis=1).sum() > 40


def test_touching_defects_are_not_erased() -> None:
    pixels, _, _ = scene(np.random.default_rng(0))
    boxes = np.array([[30, 40, 60, 58], [58, 40, 90, 58]], np.float32)
    result, kept = erase_defects(pixels, np.full_like(pixels, 255), boxes, np.array([True, False]))
    assert kept.all()
    assert np.array_equal(result, pixels)
