"""An anomaly model's scores are brought to one scale on good pictures, also where these have several sizes."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as stnp

from export.train_anomaly import FEW_MAPS, fit_scale, fit_sizes
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
    for kept, difference in ((decoding, 0.0), (decoding.model_copy(update={"sizes": None}), np.log(2000 / 48))):
        small, large = (
            np.mean([logit(each, kept) for each in unseen if each.shape == size]) for size in (SMALL, LARGE)
        )
        # The largest of n exponential values grows with ln n, in units of their mean.
        assert large - small == pytest.approx(difference / 0.1 / decoding.width, abs=0.12)
    assert decoding.sizes is not None
    assert (decoding.sizes.least_cells, decoding.sizes.most_cells) == (48, 2000)
    assert decoding.sizes.usual_cells == pytest.approx((48 * 2000) ** 0.5)


@pytest.mark.parametrize("maps", [good_maps(3, LARGE), good_maps(3, SMALL, LARGE)[:9], good_maps(3, (1, 1))])
def test_nothing_is_known_of_other_sizes_where_there_is_one_or_few_pictures(maps: list[Map]) -> None:
    assert fitted(maps).sizes is None


def test_what_stands_in_every_picture_makes_no_difference_between_sizes() -> None:
    maps = good_maps(4, SMALL, LARGE)
    rng = np.random.default_rng(5)
    for each in maps:
        each[1, 1] = 20 + rng.normal()
    sizes = fit_sizes(maps)
    assert sizes is not None
    # By the quarters alone it would be about 8, and without what stands there it is 1.
    assert sizes.growth < 0.3


def test_a_scale_that_stood_before_has_no_part_in_the_new_one() -> None:
    maps = good_maps(6, SMALL, LARGE)
    assert fitted(maps, fitted(good_maps(7, LARGE, SMALL))) == fitted(maps)


@given(
    st.lists(
        stnp.arrays(np.float32, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.floats(-50, 50, width=32)),
        min_size=FEW_MAPS,
        max_size=FEW_MAPS + 5,
    )
)
def test_growth_is_finite_and_never_below_zero_nor_above_what_a_quarter_can_lack(maps: list[Map]) -> None:
    sizes = fit_sizes(maps)
    if sizes is None:
        assert len({each.size for each in maps}) == 1
        return
    # One of the parts holds the largest value of all.
    assert 0 <= sizes.growth <= 0.5 * max(float(each.max() - each.min()) for each in maps) / np.log(2) + 1e-6
    assert sizes.least_cells <= sizes.usual_cells * (1 + 1e-9)
    assert sizes.usual_cells <= sizes.most_cells * (1 + 1e-9)
