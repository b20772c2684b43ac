"""The head that is fitted on fixed features: the optimum is found, and the map finds places that no mask has shown."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from export.classifier import Statistics
from export.linear_head import Head, Seen, fit_head
from export.logistic import PENALTIES, best_penalty, cross_entropy, fit
from export.taps import Taps

WIDTHS = (8, 6, 4)
PLAIN = Statistics(
    tuple(np.zeros(width, np.float32) for width in WIDTHS), tuple(np.ones(width, np.float32) for width in WIDTHS)
)
Place = tuple[int, int]


@settings(max_examples=40)
@given(st.integers(0, 2**32 - 1), st.integers(2, 5), st.integers(1, 8), st.sampled_from([0.01, 0.1, 1.0]))
def test_no_small_step_from_the_fit_is_better(seed: int, classes: int, width: int, penalty: float) -> None:
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(60, width)).astype(np.float32)
    labels = rng.integers(classes, size=60)
    weights = rng.uniform(0.1, 3.0, 60)
    model = fit(features, labels, weights, classes, penalty)

    def loss(kernel: npt.NDArray[np.float64], bias: npt.NDArray[np.float64]) -> float:
        entropy = cross_entropy(features @ kernel + bias, labels)
        return float(np.average(entropy, weights=weights)) + 0.5 * penalty * float(np.sum(kernel**2))

    least = loss(model.kernel, model.bias)
    for _ in range(10):
        kernel = model.kernel + 0.05 * rng.normal(size=model.kernel.shape)
        bias = model.bias + 0.05 * rng.normal(size=classes)
        assert loss(kernel, bias) > least - 1e-4


def test_the_penalty_holds_back_where_features_say_nothing() -> None:
    rng = np.random.default_rng(5)
    labels = rng.integers(2, size=90)
    parts = np.arange(90) % 3
    noise = rng.normal(size=(90, 40)).astype(np.float32)
    telling = noise + 3 * labels[:, None].astype(np.float32)
    weights = np.ones(90)
    assert best_penalty(noise, labels, weights, 2, parts)[0] == max(PENALTIES)
    penalty, loss = best_penalty(telling, labels, weights, 2, parts)
    assert penalty < max(PENALTIES)
    assert loss < 0.1


def draw(rng: np.random.Generator, kind: int | None, *, masked: bool) -> tuple[Taps, Place]:
    """Features of 12×16 cells in which a defect of a kind lifts one channel of 3×3 of them."""
    fine, coarse, deep = (
        rng.normal(size=(12 // ratio, 16 // ratio, width)) for ratio, width in zip((1, 2, 4), WIDTHS, strict=True)
    )
    cover = np.zeros((12, 16), np.uint8) if masked else None
    row, column = int(rng.integers(1, 11)), int(rng.integers(1, 15))
    if kind is not None:
        fine[row - 1 : row + 2, column - 1 : column + 2, kind] += 5
        if cover is not None:
            cover[row - 1 : row + 2, column - 1 : column + 2] = 1
    parts = (part.astype(np.float16) for part in (fine, coarse, deep))
    fine16, coarse16, deep16 = parts
    return Taps(fine16, coarse16, deep16, cover), (row, column)


def fitted(*, good: bool, masked: bool) -> Head:
    rng = np.random.default_rng(11)
    kinds: list[int | None] = [None, 0, 1] if good else [0, 1]
    pictures = []
    for number in range(72):
        label = number % len(kinds)
        views = [draw(rng, kinds[label], masked=masked)[0] for _ in range(2)]
        pictures.append(Seen(label, f"part {number // 2}", views))
    return fit_head(pictures, len(kinds), 0 if good else None, [1.0] * len(kinds), PLAIN, 0, lambda _: None)


def found_share(head: Head, *, good: bool) -> tuple[float, float]:
    """Share of new pictures whose class, and of defects whose place is found."""
    rng = np.random.default_rng(12)
    kinds: list[int | None] = [None, 0, 1] if good else [0, 1]
    right = near = 0
    for number in range(60):
        label = number % len(kinds)
        taps, place = draw(rng, kinds[label], masked=False)
        assert taps.deep is not None
        grids = [
            np.asarray(part, np.float64).repeat(ratio, 0).repeat(ratio, 1)
            for part, ratio in ((taps.fine, 1), (taps.coarse, 2), (taps.deep, 4))
        ]
        maps = head.cells.logits(np.concatenate(grids, axis=-1))
        padded = np.pad(maps, ((1, 1), (1, 1), (0, 0)), mode="edge")
        smooth = np.mean([padded[i : i + 12, j : j + 16] for i in range(3) for j in range(3)], axis=0)
        small = [np.asarray(part, np.float64) for part in (taps.fine, taps.coarse, taps.deep)]
        pooled = [*(part.max(axis=(0, 1)) for part in small), *(part.min(axis=(0, 1)) for part in small)]
        pooled += [part.mean(axis=(0, 1)) for part in small] + [smooth.max(axis=(0, 1)), smooth.mean(axis=(0, 1))]
        right += int(head.pooled.logits((np.concatenate(pooled) - head.mean)[None]).argmax()) == label
        kind = kinds[label]
        if kind is not None:
            row, column = np.unravel_index(smooth[..., kind].argmax(), smooth.shape[:2])
            near += max(abs(int(row) - place[0]), abs(int(column) - place[1])) <= 1
    return right / 60, near / sum(kinds[number % len(kinds)] is not None for number in range(60))


def test_masks_teach_the_map_where_defects_are() -> None:
    right, near = found_share(fitted(good=True, masked=True), good=True)
    assert right >= 0.95
    assert near >= 0.95


@pytest.mark.parametrize("masked", [True, False])
def test_few_cells_of_good_pictures_are_taken_for_defects(masked: bool) -> None:
    head = fitted(good=True, masked=masked)
    rng = np.random.default_rng(13)
    alarms = []
    for _ in range(40):
        taps, _ = draw(rng, None, masked=False)
        assert taps.deep is not None
        grids = [
            np.asarray(part, np.float64).repeat(ratio, 0).repeat(ratio, 1)
            for part, ratio in ((taps.fine, 1), (taps.coarse, 2), (taps.deep, 4))
        ]
        maps = head.cells.logits(np.concatenate(grids, axis=-1))
        smooth = np.mean([maps[i : i + 10, j : j + 14] for i in range(3) for j in range(3)], axis=0)
        alarms.append((smooth > 0).any(axis=-1).mean())
    assert np.mean(alarms) < 0.05


def test_the_map_finds_the_place_without_a_mask() -> None:
    right, near = found_share(fitted(good=True, masked=False), good=True)
    assert right >= 0.95
    assert near >= 0.9


def test_kinds_of_defects_are_told_apart_without_good_parts() -> None:
    right, near = found_share(fitted(good=False, masked=False), good=False)
    assert right >= 0.95
    assert near >= 0.8
