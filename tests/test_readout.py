"""Outputs of classifiers and anomaly models become scores, places and refusals."""

import io

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as stnp

from station.anomaly import decode_anomaly, nearest_distance, read_bank
from station.classification import decode_classes
from station.detections import Grid, Placement
from station.errors import BundleError, InferenceError
from station.manifest import AnomalyDecoding, ClassDecoding, SizeScale
from station.messages import Scores
from station.regions import find_regions

LABELS = ("crack", "good", "hole")
PLACEMENT = Placement(30, 40)


def classify(
    logits: list[float], activation: npt.NDArray[np.float32], good: str | None = "good", temperature: float = 1.0
) -> Scores:
    return decode_classes(
        Grid(np.array(logits, np.float32)),
        Grid(activation),
        labels=LABELS,
        good_label=good,
        decoding=ClassDecoding(temperature=temperature),
        stride_px=8,
        placement=PLACEMENT,
        heatmap=True,
    )


def activation_at(row: int, column: int, channel: int, channels: int = 2) -> npt.NDArray[np.float32]:
    activation = np.full((6, 8, channels), -6.0, np.float32)
    activation[row, column, channel] = 3.0
    return activation


def test_the_score_is_the_probability_of_not_being_good_and_the_box_stands_at_the_peak() -> None:
    scores = classify([1.0, 2.0, 4.0], activation_at(2, 3, 1))
    powers = np.exp([1.0, 2.0, 4.0])
    assert scores.class_scores == pytest.approx(tuple(powers / powers.sum()))
    assert scores.score == pytest.approx(1 - powers[1] / powers.sum())
    (candidate,) = scores.candidates
    assert (candidate.label, candidate.score) == ("hole", scores.score)
    assert (candidate.box.x_px, candidate.box.y_px) == (24, 16)
    assert (candidate.box.width_px, candidate.box.height_px) == (8, 8)
    assert scores.heatmap is not None
    assert scores.heatmap.shape == (4, 5)


def test_the_padding_holds_no_peak() -> None:
    activation = activation_at(1, 1, 0)
    activation[5, 7] = 9.0
    (candidate,) = classify([4.0, 2.0, 1.0], activation).candidates
    assert candidate.box.centre_px == (12, 12)


def test_without_a_good_class_the_best_class_decides() -> None:
    scores = classify([1.0, 3.0, 2.0], activation_at(0, 0, 1, 3), good=None)
    assert scores.candidates[0].label == "good"
    assert scores.score == max(scores.class_scores)


def test_a_higher_temperature_is_less_sure() -> None:
    sure, unsure = (classify([0.0, 0.0, 4.0], activation_at(0, 0, 1), "good", value) for value in (1.0, 4.0))
    assert sure.score > unsure.score


def test_outputs_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InferenceError, match="do not fit 3 labels"):
        classify([1.0, 2.0], activation_at(0, 0, 0))
    with pytest.raises(InferenceError, match="do not fit 3 labels"):
        classify([1.0, 2.0, 3.0], activation_at(0, 0, 0, 3))
    with pytest.raises(InferenceError, match="not finite"):
        classify([1.0, float("nan"), 3.0], activation_at(0, 0, 0))


@given(stnp.arrays(np.float32, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.floats(0, 1, width=32)))
def test_places_lie_inside_the_picture_and_the_best_comes_first(heat: npt.NDArray[np.float32]) -> None:
    placement = Placement(heat.shape[0] * 8 - 3, heat.shape[1] * 8 - 5, 1.0, 1.0)
    places = find_regions(heat, floor=0.25, limit=4, stride_px=8, placement=placement)
    assert [place.score for place in places] == sorted((place.score for place in places), reverse=True)
    if heat.max() >= 0.25:
        assert places[0].score == heat.max()
    for place in places:
        assert place.score >= 0.25
        assert place.box.x_px + place.box.width_px <= placement.width_px
        assert place.box.y_px + place.box.height_px <= placement.height_px


@given(st.integers(0, 2**32 - 1))
def test_distances_are_those_of_a_plain_search(seed: int) -> None:
    rng = np.random.default_rng(seed)
    patches, bank = (rng.integers(-128, 128, (count, 12)).astype(np.int8) for count in (7, 5))
    plain = [min(np.linalg.norm(patch.astype(int) - row.astype(int)) for row in bank) for patch in patches]
    np.testing.assert_allclose(nearest_distance(patches, bank), plain, rtol=1e-6)


def test_a_strange_patch_is_found_where_it_is() -> None:
    bank = np.array([[0, 0], [10, 0]], np.int8)
    features = np.zeros((5, 6, 2), np.int8)
    features[:, 3:, 0] = 10
    features[1, 2] = (0, 40)
    scores = decode_anomaly(
        Grid(features, 0.5, 0),
        Grid(np.zeros((5, 6, 1), np.int8)),
        bank,
        decoding=AnomalyDecoding(offset=20, width=4, feature_scale=0.5),
        stride_px=8,
        placement=Placement(40, 48),
        heatmap=True,
    )
    assert scores.score == pytest.approx(1 / (1 + np.exp(-5)), abs=1e-6)
    (candidate,) = scores.candidates
    assert candidate.label == "anomaly"
    assert candidate.box.centre_px == (20, 12)


@pytest.mark.parametrize(
    ("sizes", "lower"),
    [
        (None, 0.0),
        (SizeScale(growth=0.5, usual_cells=10, least_cells=5, most_cells=90), 0.5 * np.log(30 / 10)),
        # Sizes that were not seen are taken as the nearest that was.
        (SizeScale(growth=0.5, usual_cells=10, least_cells=5, most_cells=20), 0.5 * np.log(20 / 10)),
        (SizeScale(growth=0.5, usual_cells=90, least_cells=60, most_cells=99), 0.5 * np.log(60 / 90)),
    ],
)
def test_a_picture_of_more_cells_than_usual_needs_a_stronger_anomaly(sizes: SizeScale | None, lower: float) -> None:
    features = np.zeros((5, 6, 2), np.int8)
    features[1, 2] = (0, 40)
    scores = decode_anomaly(
        Grid(features, 0.5, 0),
        Grid(np.zeros((5, 6, 1), np.int8)),
        np.zeros((1, 2), np.int8),
        decoding=AnomalyDecoding(offset=36, width=4, feature_scale=0.5, sizes=sizes),
        stride_px=8,
        placement=Placement(40, 48),
        heatmap=True,
    )
    assert scores.score == pytest.approx(1 / (1 + np.exp(lower - 1)), abs=1e-6)
    assert scores.heatmap is not None
    assert scores.heatmap[1, 2] == scores.score == scores.candidates[0].score


def test_a_bank_that_is_none_is_refused() -> None:
    def stored(array: npt.NDArray[np.generic]) -> bytes:
        stream = io.BytesIO()
        np.save(stream, array)
        return stream.getvalue()

    objects = io.BytesIO()
    np.save(objects, np.array([{}], object), allow_pickle=True)
    assert read_bank(stored(np.zeros((3, 4), np.int8)), 4).shape == (3, 4)
    for content, features in (
        (b"", 4),
        (b"not an array", 4),
        (objects.getvalue(), 4),
        (stored(np.zeros((3, 4), np.float32)), 4),
        (stored(np.zeros((0, 4), np.int8)), 4),
        (stored(np.zeros((3, 4), np.int8)), 5),
        (stored(np.zeros((3, 300), np.int8)), 300),
    ):
        with pytest.raises(BundleError, match="bank"):
            read_bank(content, features)
