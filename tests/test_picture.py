from datetime import UTC, datetime

import cv2
import numpy as np
import pytest
import simplejpeg
from hypothesis import given
from hypothesis import strategies as st

from station.messages import Capture, Pixels, Reason
from station.picture import View, apply, decode
from station.section import Region
from station.settings import FolderCamera

AT = datetime(2026, 1, 1, tzinfo=UTC)
GREY = np.arange(20 * 30, dtype=np.uint16).reshape(20, 30).astype(np.uint8)
COLOUR = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)


def capture(pixels: Pixels | None, **more: object) -> Capture:
    return Capture(pixels, AT, 0.0, **more)  # type: ignore[arg-type]


def test_without_wishes_a_grey_picture_stays_itself() -> None:
    assert apply(View(), capture(GREY)).pixels is GREY


def test_a_capture_without_pixels_passes() -> None:
    bare = capture(None, fault=Reason.OVERLOAD)
    assert apply(View(90, Region(x_px=0, y_px=0, width_px=8, height_px=8)), bare) is bare


@given(st.sampled_from([0, 90, 180, 270]), st.integers(0, 12), st.integers(0, 12), st.integers(8, 20))
def test_rotation_comes_before_the_region(degrees: int, x_px: int, y_px: int, side_px: int) -> None:
    view = View(degrees, Region(x_px=x_px, y_px=y_px, width_px=side_px, height_px=8))  # type: ignore[arg-type]
    turned = np.rot90(GREY, -degrees // 90)
    result = apply(view, capture(GREY))
    assert result.pixels is not None
    if x_px + side_px <= turned.shape[1] and y_px + 8 <= turned.shape[0]:
        assert result.fault is None
        np.testing.assert_array_equal(result.pixels, turned[y_px : y_px + 8, x_px : x_px + side_px])
    else:
        assert result.fault is Reason.WRONG_SIZE
        np.testing.assert_array_equal(result.pixels, turned)


def test_a_fault_is_not_replaced_by_a_missing_region() -> None:
    view = View(region=Region(x_px=25, y_px=0, width_px=8, height_px=8))
    assert apply(view, capture(GREY, fault=Reason.PARTIAL)).fault is Reason.PARTIAL


def test_colours() -> None:
    as_grey, as_bgr = apply(View(colour="grey"), capture(COLOUR)), apply(View(colour="bgr"), capture(COLOUR))
    swapped = apply(View(colour="rgb"), capture(COLOUR))
    assert as_grey.pixels is not None
    np.testing.assert_array_equal(as_grey.pixels, cv2.cvtColor(COLOUR, cv2.COLOR_BGR2GRAY))
    assert as_bgr.pixels is COLOUR
    assert swapped.pixels is not None
    np.testing.assert_array_equal(swapped.pixels, COLOUR[:, :, ::-1])
    widened = apply(View(colour="bgr"), capture(GREY)).pixels
    assert widened is not None
    np.testing.assert_array_equal(widened, np.repeat(GREY[:, :, None], 3, axis=2))


def test_owned_rows_and_line_numbers_move_with_a_region() -> None:
    view = View(region=Region(x_px=0, y_px=4, width_px=30, height_px=10))
    result = apply(view, capture(GREY, owned_rows=(2, 18), first_line=1000))
    assert (result.owned_rows, result.first_line) == ((0, 10), 1004)


def test_owned_rows_turn_over() -> None:
    result = apply(View(180), capture(GREY, owned_rows=(2, 15), first_line=1000))
    assert (result.owned_rows, result.first_line) == ((5, 18), 1000)


def test_a_quarter_turn_of_a_line_scan_frame_is_refused() -> None:
    with pytest.raises(ValueError, match=r"rotate_degrees = 90.*0 or 180"):
        apply(View(90), capture(GREY, owned_rows=(0, 20)))


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tiff"])
def test_decoding_is_lossless_where_the_format_is(suffix: str) -> None:
    for pixels in (GREY, COLOUR):
        encoded = cv2.imencode(suffix, pixels)[1].tobytes()
        np.testing.assert_array_equal(decode(encoded, grey=pixels.ndim == 2), pixels)


def test_one_bit_and_sixteen_bit_pictures_become_eight_bits() -> None:
    deep = cv2.imencode(".png", GREY.astype(np.uint16) * 257)[1].tobytes()
    np.testing.assert_array_equal(decode(deep, grey=True), GREY)
    black_and_white = cv2.imencode(".png", (GREY > 99).astype(np.uint8) * 255, [cv2.IMWRITE_PNG_BILEVEL, 1])[1]
    np.testing.assert_array_equal(decode(black_and_white.tobytes(), grey=True), (GREY > 99) * 255)


@given(st.binary(max_size=200))
def test_bytes_that_are_no_picture_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"is not a (whole )?picture"):
        decode(data, grey=True)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".webp"])
@given(st.floats(0.0, 0.99))
def test_part_of_a_picture_is_refused(suffix: str, share: float) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (150, 150), np.uint8)
    encoded = cv2.imencode(suffix, noise)[1].tobytes()
    with pytest.raises(ValueError, match=r"is not a (whole )?picture"):
        decode(encoded[: int(len(encoded) * share)], grey=True)


def textured() -> Pixels:
    noise = np.random.default_rng(0).integers(0, 255, (160, 200), np.uint8)
    return np.asarray(cv2.GaussianBlur(noise, (0, 0), 2), np.uint8)


@pytest.mark.parametrize("more", [[], [cv2.IMWRITE_JPEG_PROGRESSIVE, 1], [cv2.IMWRITE_JPEG_RST_INTERVAL, 4]])
def test_a_jpeg_whose_data_are_damaged_is_refused_though_it_has_its_end_mark(more: list[int]) -> None:
    whole = cv2.imencode(".jpg", textured(), [cv2.IMWRITE_JPEG_QUALITY, 95, *more])[1].tobytes()
    assert decode(whole, grey=True).shape == decode(whole + b"a camera's own", grey=True).shape == (160, 200)
    middle = len(whole) * 6 // 10
    for damaged in (whole[:middle] + b"\xff\xd9", whole[:middle] + bytes(200) + whole[middle + 200 :]):
        with pytest.raises(ValueError, match="is a damaged JPEG: "):
            decode(damaged, grey=True)


@pytest.mark.parametrize("colours", ["RGB", "GRAY", "CMYK"])
def test_jpegs_of_every_colour_space_are_decoded(colours: str) -> None:
    channels = {"RGB": 3, "GRAY": 1, "CMYK": 4}[colours]
    pixels = np.dstack([textured()] * channels).copy()
    assert decode(simplejpeg.encode_jpeg(pixels, colorspace=colours), grey=False).shape == (160, 200, 3)


def test_the_view_of_settings() -> None:
    region = Region(x_px=1, y_px=2, width_px=8, height_px=9)
    settings = FolderCamera.model_validate(
        {"kind": "folder", "path": "x", "rotate_degrees": 90, "colour": "rgb", "region": region}
    )
    assert View.of(settings) == View(90, region, "rgb")
