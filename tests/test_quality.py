from datetime import UTC, datetime

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from station.manifest import QualityLimits
from station.messages import Capture, Pixels, Reason
from station.quality import QualityGate, measure

LIMITS = QualityLimits(mean_min=40, mean_max=200, contrast_min=5, focus_min=50)
AT = datetime(2026, 1, 1, tzinfo=UTC)


def capture(pixels: Pixels | None, **more: object) -> Capture:
    return Capture(pixels, AT, 0.0, **more)  # type: ignore[arg-type]


def scene(mean: float = 120, noise: float = 3, seed: int = 0, size: int = 640) -> Pixels:
    """A sharp checkerboard with a sensor's noise."""
    rows, columns = np.indices((size, size)) // 8
    board = mean + 30.0 * (((rows + columns) % 2) * 2 - 1)
    noisy = board + np.random.default_rng(seed).normal(0, noise, (size, size))
    return np.clip(noisy, 0, 255).astype(np.uint8)


def test_a_good_picture_passes() -> None:
    assert QualityGate(LIMITS, frozen_after=2).check(capture(scene())) == ()


@pytest.mark.parametrize(
    ("pixels", "reason"),
    [
        (scene(mean=20), Reason.DARK),
        (scene(mean=240), Reason.BRIGHT),
        (np.asarray(cv2.GaussianBlur(scene(), (0, 0), 3), np.uint8), Reason.BLURRED),
        (np.full((640, 640), 120, np.uint8), Reason.BLURRED),
        (np.full((4, 640), 120, np.uint8), Reason.WRONG_SIZE),
    ],
)
def test_what_cannot_be_judged_is_named(pixels: Pixels, reason: Reason) -> None:
    assert QualityGate(LIMITS).check(capture(pixels)) == (reason,)


def test_what_the_camera_says_of_a_picture_comes_first_and_once() -> None:
    gate = QualityGate(LIMITS)
    assert gate.check(capture(scene(mean=10), fault=Reason.PARTIAL)) == (Reason.PARTIAL, Reason.DARK)
    assert gate.check(capture(scene(), lines_lost=3)) == (Reason.LINES_LOST,)
    assert gate.check(capture(scene(), lines_lost=3, fault=Reason.LINES_LOST)) == (Reason.LINES_LOST,)
    assert gate.check(capture(None, fault=Reason.UNREADABLE)) == (Reason.UNREADABLE,)


def test_identical_pictures_are_frozen_from_the_named_count_until_one_differs() -> None:
    gate = QualityGate(QualityLimits(), frozen_after=3)
    still = scene(seed=1)
    moved = still.copy()
    moved[-1, -1] ^= 1
    answers = [gate.check(capture(picture.copy())) for picture in (still, still, still, still, moved, moved, still)]
    frozen = (Reason.FROZEN,)
    assert answers == [(), (), frozen, frozen, (), (), ()]


def test_frozen_detection_survives_a_change_of_size_and_can_be_off() -> None:
    gate = QualityGate(QualityLimits(), frozen_after=2)
    small, large = scene(size=64), scene(size=128)
    assert [gate.check(capture(picture)) for picture in (small, large, large)] == [(), (), (Reason.FROZEN,)]
    off = QualityGate(QualityLimits(), frozen_after=0)
    assert [off.check(capture(small)) for _ in range(5)] == [()] * 5


def test_colour_is_measured_as_grey() -> None:
    grey = scene(size=64)
    colour = np.asarray(cv2.cvtColor(grey, cv2.COLOR_GRAY2BGR), np.uint8)
    assert measure(colour) == measure(grey)


@given(hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, min_side=8, max_side=40)))
def test_measures_agree_with_numpy(pixels: Pixels) -> None:
    measures = measure(pixels)
    assert measures.mean == pytest.approx(pixels.mean(), abs=1e-6)
    # The variance is known to some 1e-11, of which this is the root.
    assert measures.contrast == pytest.approx(pixels.std(), abs=1e-4)
    # OpenCV mirrors at the border without repeating the edge.
    padded = np.pad(pixels.astype(float), 1, mode="reflect")
    centre = padded[1:-1, 1:-1]
    laplacian = padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:] - 4 * centre
    assert measures.focus == pytest.approx(laplacian.var(), rel=1e-6, abs=1e-6)


@given(st.lists(st.integers(0, 3), max_size=30), st.integers(1, 5))
def test_frozen_counts_runs(pictures: list[int], frozen_after: int) -> None:
    gate = QualityGate(QualityLimits(), frozen_after)
    run, last = 0, None
    for number in pictures:
        run = run + 1 if number == last else 1
        last = number
        expected = (Reason.FROZEN,) if run >= frozen_after else ()
        assert gate.check(capture(np.full((8, 8), number, np.uint8))) == expected
