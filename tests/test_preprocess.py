"""Pixels into the input tensor: padding, colour, scale, and nothing written elsewhere."""

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from station.detections import Placement
from station.errors import InferenceError
from station.manifest import Preprocessing
from station.messages import Pixels
from station.preprocess import input_size, write_input

RNG = np.random.default_rng(7)


def picture(*shape: int) -> Pixels:
    return RNG.integers(0, 256, shape, np.uint8)


def tensor_view(height: int, width: int, channels: int) -> tuple[Pixels, Pixels]:
    """A view as the runtime gives it, inside a larger piece of memory that must stay as it is."""
    memory = np.full((3, height, width, channels), 99, np.uint8)
    return memory, memory[1]


@given(height=st.integers(1, 40), width=st.integers(1, 40), pad=st.integers(0, 255), colour=st.booleans())
def test_native_pictures_are_padded_right_and_below(height: int, width: int, pad: int, colour: bool) -> None:
    preprocessing = Preprocessing(pad_value=pad)
    pixels = np.full((height, width, 3) if colour else (height, width), 7, np.uint8)
    size = input_size(pixels, preprocessing, (640, 640))
    assert all(edge % 16 == 0 and 0 <= edge - wanted < 16 for edge, wanted in zip(size, (height, width), strict=True))
    memory, view = tensor_view(*size, 1)
    assert write_input(pixels, view, preprocessing) == Placement(height, width)
    assert (view[:height, :width] == 7).all()
    assert (view[height:] == pad).all()
    assert (view[:, width:] == pad).all()
    assert (memory[0] == 99).all()
    assert (memory[2] == 99).all()


@given(
    height=st.integers(1, 90), width=st.integers(1, 90), scale=st.floats(0.1, 3), multiple=st.sampled_from([8, 16, 32])
)
def test_fitted_pictures_fill_whole_multiples(height: int, width: int, scale: float, multiple: int) -> None:
    preprocessing = Preprocessing(geometry="fitted", scale=scale, multiple_px=multiple)
    pixels = np.full((height, width), 7, np.uint8)
    size = input_size(pixels, preprocessing, (640, 640))
    for edge, wanted in zip(size, (height * scale, width * scale), strict=True):
        assert edge % multiple == 0
        shrunk, grown = wanted - edge, edge - wanted
        assert shrunk <= (multiple / 2 if wanted >= 3 * multiple else 1e-9)
        assert grown < (multiple if wanted < 3 * multiple else multiple / 2 + 1e-9)
    memory, view = tensor_view(*size, 1)
    found = write_input(pixels, view, preprocessing)
    assert found == Placement(height, width, scale_y=size[0] / height, scale_x=size[1] / width)
    assert (view == 7).all()
    assert (memory[0] == 99).all()
    assert (memory[2] == 99).all()


def test_colour_becomes_grey_as_opencv_does_it() -> None:
    pixels = picture(32, 40, 3)
    _, view = tensor_view(32, 48, 1)
    write_input(pixels, view, Preprocessing())
    assert np.array_equal(view[:, :40, 0], cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY))


def test_grey_becomes_colour_for_a_colour_model() -> None:
    pixels = picture(32, 40)
    _, view = tensor_view(32, 48, 3)
    write_input(pixels, view, Preprocessing(channels=3))
    assert (view[:, :40] == pixels[..., None]).all()


@pytest.mark.parametrize("colour", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
def test_resize_fills_the_input_and_says_by_how_much(colour: bool, channels: int) -> None:
    pixels = np.full((20, 60, 3) if colour else (20, 60), 50, np.uint8)
    preprocessing = Preprocessing.model_validate({"geometry": "resize", "channels": channels})
    assert input_size(pixels, preprocessing, (40, 30)) == (40, 30)
    memory, view = tensor_view(40, 30, channels)
    assert write_input(pixels, view, preprocessing) == Placement(20, 60, scale_y=2.0, scale_x=0.5)
    assert (view == 50).all()
    assert (memory[0] == 99).all()


def test_a_cut_out_of_a_larger_picture_works() -> None:
    whole = picture(64, 64)
    _, view = tensor_view(16, 16, 1)
    write_input(whole[8:24, 30:46], view, Preprocessing())
    assert np.array_equal(view[..., 0], whole[8:24, 30:46])


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((8, 8), np.float32),
        np.zeros((8, 8, 4), np.uint8),
        np.zeros((0, 8), np.uint8),
        np.zeros((8,), np.uint8),
        np.zeros((8, 8), np.uint16),
    ],
)
def test_what_is_no_picture_is_an_error(pixels: Pixels) -> None:
    _, view = tensor_view(16, 16, 1)
    with pytest.raises(InferenceError, match="uint8"):
        write_input(pixels, view, Preprocessing())
    with pytest.raises(InferenceError, match="uint8"):
        input_size(pixels, Preprocessing(), (16, 16))


def test_a_picture_larger_than_the_input_is_an_error() -> None:
    _, view = tensor_view(16, 16, 1)
    with pytest.raises(InferenceError, match="does not fit"):
        write_input(picture(16, 17), view, Preprocessing())


def test_a_scaled_picture_is_resized_then_padded() -> None:
    preprocessing = Preprocessing(channels=1, scale=1.5, stride_px=8, multiple_px=32, pad_value=127)
    pixels = np.full((40, 50), 90, np.uint8)
    height, width = input_size(pixels, preprocessing, (1, 1))
    assert (height, width) == (64, 96)
    tensor = np.empty((height, width, 1), np.uint8)
    placement = write_input(pixels, tensor, preprocessing)
    assert (placement.scale_y, placement.scale_x) == (1.5, 1.5)
    assert (tensor[:60, :75] == 90).all()
    assert (tensor[60:] == 127).all()
    assert (tensor[:, 75:] == 127).all()
