"""How long fine-tuning takes where nobody says it."""

from hypothesis import given
from hypothesis import strategies as st

from export.pace import Length

AREAS = st.floats(1e3, 1e12)


@given(AREAS, st.floats(1.0, 100.0))
def test_more_pixels_in_a_set_never_mean_more_epochs(area_px: float, times: float) -> None:
    length = Length(1e9, 3, 20)
    assert 3 <= length.epochs(area_px * times) <= length.epochs(area_px) <= 20


@given(AREAS)
def test_as_many_pixels_are_shown_of_every_set_that_is_neither_large_nor_small(area_px: float) -> None:
    length = Length(1e9, 3, 20)
    epochs = length.epochs(area_px)
    if 3 < epochs < 20:
        assert abs(epochs * area_px - length.shown_px) <= area_px / 2
