"""An anomaly model's scores are brought to one scale on good pictures, also where these have several sizes."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as stnp

from export.train_anomaly import fit_scale, growth
from station.anomaly import decode_anomaly
from station.detections import Grid, Placement
from station.manifest import AnomalyDecoding

BANK = np.zeros((1, 1), np.int8)
PLAIN = AnomalyDecoding(feature_scale=0.1)
SMALL, LARGE = (6, 8), (40, 50)

Map = npt.NDArray[np.float32]


def outputs(distances: Map) -> tuple[tuple[Grid, Grid], Placement]:
    rows, columns = distances.shape
    return (Grid(distances[..., None]), Grid(np.zeros((rows, columns, 1), np.float32))), Placement(
        rows * 8, columns * 8
    )


def fitted(maps: Sequence[Map], decoding: AnomalyDecoding = PLAIN) -> AnomalyDecoding:
    return fit_scale(map(outputs, maps), decoding, BANK, 8)


def logit(distances: Map, decoding: AnomalyDecoding) -> float:
    (features, activation), placement = outputs(distances)
    score = decode_anomaly(
        features, activation, BANK, decoding=decoding, stride_px=8, placement=placement, heatmap=False
    ).score
    return float(np.log(score / (1 - score)))


def good_maps(seed: int, *sizes: tuple[int, int]) -> list[Map]:
    rng = np.random.default_rng(seed)
    return [rng.exponential(1.0, size).astype(np.float32) for _ in range(60) for size in sizes]


def test_good_pictures_of_all_sizes_score_alike() -> None:
    decoding = fitted(good_maps(1, SMALL, LARGE))
    unseen = good_maps(2, SMALL, LARGE)
    for kept, difference in ((decoding, 0.0), (decoding.model_copy(update={"growth": 0.0}), np.log(2000 / 48) * 1.0)):
        small, large = (
            np.mean([logit(each, kept) for each in unseen if each.shape == size]) for size in (SMALL, LARGE)
        )
        # The largest of n exponential values grows with ln n, in units of their mean.
        assert large - small == pytest.approx(difference / 0.1 / decoding.width, abs=0.12)


def test_pictures_of_one_size_keep_their_scores_and_their_quarters_say_what_others_would_have() -> None:
    maps = good_maps(3, LARGE)
    decoding = fitted(maps)
    assert decoding.usual_cells == pytest.approx(2000)
    assert decoding.growth == pytest.approx(1 / 0.1 / decoding.width, rel=0.2)
    plain = decoding.model_copy(update={"growth": 0.0})
    assert [logit(each, decoding) for each in maps] == pytest.approx([logit(each, plain) for each in maps], abs=1e-4)


def test_what_stands_in_every_picture_makes_no_difference_between_sizes() -> None:
    maps = good_maps(4, SMALL, LARGE)
    rng = np.random.default_rng(5)
    for each in maps:
        each[1, 1] = 20 + rng.normal()
    # By the quarters it would be as much as where all have one size, and nobody can know better.
    assert growth([each for each in maps if each.shape == LARGE]) > 5
    assert growth(maps) < 0.3


def test_a_scale_that_stood_before_has_no_part_in_the_new_one() -> None:
    maps = good_maps(6, SMALL, LARGE)
    assert fitted(maps, fitted(good_maps(7, LARGE))) == fitted(maps)


@given(
    st.lists(
        stnp.arrays(np.float32, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.floats(-50, 50, width=32)),
        min_size=1,
        max_size=5,
    )
)
def test_growth_is_finite_never_below_zero_and_none_of_single_cells(maps: list[Map]) -> None:
    found = growth(maps)
    assert np.isfinite(found)
    assert found >= 0
    assert found <= max(float(each.max() - each.min()) for each in maps) / np.log(2) + 1e-6
    assert growth([each[:1, :1] for each in maps]) == 0
