"""How long fine-tuning takes where nobody says it."""

from hypothesis import given
from hypothesis import strategies as st

from export.pace import Length
from export.train_anomaly import LENGTH

AREAS = st.floats(1e3, 1e12)


@given(AREAS, st.floats(1.0, 100.0))
def test_more_pixels_in_a_set_never_mean_more_epochs(area_px: float, times: float) -> None:
    length = Length(1e9, 3, 20)
    assert 3 <= length.epochs(area_px * times) <= length.epochs(area_px) <= 20


@given(st.floats(6e7, 2.5e8))
def test_as_many_pixels_are_shown_of_every_set_that_is_neither_large_nor_small(area_px: float) -> None:
    length = Length(1e9, 3, 20)
    assert abs(length.epochs(area_px) * area_px - length.shown_px) <= area_px / 2


def test_small_sets_of_good_parts_are_shown_more_often() -> None:
    tile_px = 106_640
    # Each picture once as it is and once with drawn defects.
    assert [LENGTH.epochs(2 * count * tile_px) for count in (80, 650, 10_000)] == [20, 5, 3]
