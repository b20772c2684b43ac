"""Flat fields made from rendered pictures whose light and pixel gains are known."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from station.calibration import Scan
from station.errors import CalibrationError
from station.flat_field import FlatField, Picture, make_flat_field
from station.messages import Pixels

SHAPE = (240, 320)
WHITE = 190.0
BLACK = 6.0


def light_of(scan: Scan, seed: int = 1) -> npt.NDArray[np.float64]:
    """Vignetting, a lamp that hangs to one side, and gains that differ by 1 %."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[-1 : 1 : SHAPE[0] * 1j, -1 : 1 : SHAPE[1] * 1j]
    if scan == "line":
        across = (1 - 0.3 * x**2 + 0.05 * x) * (1 + rng.normal(0, 0.01, SHAPE[1]))
        return np.asarray(np.repeat(across[:1], SHAPE[0], axis=0), np.float64)
    return np.asarray((1 - 0.2 * (x**2 + y**2) + 0.05 * x) * (1 + rng.normal(0, 0.01, SHAPE)), np.float64)


def seen(light: npt.NDArray[np.float64], reflectance: float, seed: int) -> Pixels:
    """A picture of an even surface: shot and read noise, black level, whole numbers."""
    rng = np.random.default_rng(seed)
    signal = light * reflectance * WHITE
    noisy = signal + rng.normal(0, 1, SHAPE) * np.sqrt(3 + 0.08 * signal) + BLACK
    return np.clip(np.rint(noisy), 0, 255).astype(np.uint8)


def series(light: npt.NDArray[np.float64], reflectance: float, count: int, seed: int = 0) -> list[Picture]:
    return [(f"{reflectance:g}-{index}.png", seen(light, reflectance, seed + index)) for index in range(count)]


@pytest.mark.parametrize("scan", ["area", "line"])
def test_surfaces_of_any_brightness_come_out_even_within_one_percent(scan: Scan) -> None:
    light = light_of(scan)
    made = make_flat_field(series(light, 1.0, 16), series(light, 0.0, 8, 100), scan)
    corrector = FlatField(made.gain, made.gain_step, made.dark)
    for reflectance in (1.0, 0.5, 0.25):
        pictures = [corrector.correct(pixels).copy() for _, pixels in series(light, reflectance, 40, 500)]
        mean = np.mean(pictures, axis=0)
        parts = mean.mean(axis=0) if scan == "line" else mean.reshape(30, 8, 40, 8).mean(axis=(1, 3))
        assert np.abs(parts / parts.mean() - 1).max() < 0.01
    assert made.flatness_after < 0.01
    assert made.flatness_before > 0.2
    assert made.warnings == ()


def test_dirt_on_the_white_sheet_is_named_and_does_not_become_a_bright_spot() -> None:
    light = light_of("area")
    white = series(light, 1.0, 16)
    for _, pixels in white:
        pixels[100:108, 200:208] = 90
    made = make_flat_field(white, series(light, 0.0, 8, 100), "area")
    assert any("dirt on the white pictures: 1 spots" in one and "at 20" in one for one in made.warnings)
    corrected = FlatField(made.gain, made.gain_step, made.dark).correct(seen(light, 0.5, 900))
    assert abs(corrected[98:110, 198:210].mean() / corrected[80:130, 180:230].mean() - 1) < 0.02


def test_what_moves_over_the_sheet_leaves_nothing_behind() -> None:
    light = light_of("area")
    white = series(light, 1.0, 12)
    for index, (_, pixels) in enumerate(white):
        pixels[100:110, 10 + 20 * index : 20 + 20 * index] = 80
    made = make_flat_field(white, (), "area")
    assert made.dirt_px == 0
    assert any("no dark pictures" in one for one in made.warnings)


def test_colour_is_corrected_channel_by_channel() -> None:
    light = light_of("area")
    tints = (0.9, 1.0, 0.8)

    def coloured(reflectance: float, seed: int) -> Pixels:
        return np.stack([seen(light * tint, reflectance, 3 * seed + i) for i, tint in enumerate(tints)], axis=-1)

    made = make_flat_field([(str(i), coloured(1.0, i)) for i in range(12)], (), "area")
    corrected = np.mean([FlatField(made.gain, made.gain_step).correct(coloured(1.0, 90 + i)) for i in range(9)], axis=0)
    blocks = corrected.reshape(30, 8, 40, 8, 3).mean(axis=(1, 3))
    assert np.abs(blocks / blocks.mean(axis=(0, 1)) - 1).max() < 0.015


@pytest.mark.parametrize(
    ("white", "dark", "message"),
    [
        ([("sun.png", np.full(SHAPE, 255, np.uint8))], [], r"sun.png: 100.0% of its pixels are saturated"),
        ([("night.png", np.full(SHAPE, 20, np.uint8))], [], r"night.png: has a mean of 20.0 above dark, too little"),
        (
            [("w.png", np.full(SHAPE, 100, np.uint8))],
            [("d.png", np.full(SHAPE, 120, np.uint8))],
            r"w.png: has a mean of 100.0, the dark pictures have 120.0: white and dark are mixed up",
        ),
        (
            [("a.png", np.full(SHAPE, 150, np.uint8)), ("b.png", np.full((8, 9), 150, np.uint8))],
            [],
            r"b.png: is 9×8 px, a.png is 320×240 px; all must be of one size",
        ),
        ([], [], "no white picture"),
    ],
)
def test_pictures_that_cannot_be_used_are_named(white: list[Picture], dark: list[Picture], message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        make_flat_field(white, dark, "area")


def test_light_that_changed_and_few_pictures_are_said() -> None:
    light = light_of("area")
    white = [*series(light, 1.0, 3), ("late.png", seen(light, 0.8, 9))]
    told = make_flat_field(white, (), "area").warnings
    assert any(one.startswith("late.png: has a mean of") and "was the light the same?" in one for one in told)
    assert any("4 white pictures are few" in one for one in told)


@given(
    hnp.arrays(np.uint8, (7, 40)),
    hnp.arrays(np.uint8, st.sampled_from([(7, 40), (1, 40)])),
    st.floats(1e-4, 0.008),
    st.booleans(),
)
@settings(max_examples=60)
def test_the_corrector_does_what_its_formula_says(pixels: Pixels, gain: Pixels, step: float, subtract: bool) -> None:
    dark = np.full_like(gain, 9) if subtract else None
    corrected = FlatField(gain, step, dark).correct(pixels)
    light = np.maximum(pixels.astype(np.float64) - (9 if subtract else 0), 0)
    wanted = np.minimum(light * (1 + step * gain), 255)
    assert np.abs(corrected - wanted).max() <= 0.5 + 1e-4


@given(hnp.arrays(np.uint8, (8, 16), elements=st.integers(100, 255)), st.integers(0, 30))
@settings(max_examples=30)
def test_what_is_saturated_stays_saturated(gain_seed: Pixels, black: int) -> None:
    white = [(str(i), np.minimum(gain_seed, 250)) for i in range(4)]
    dark = [("d", np.full((8, 16), black, np.uint8))] if black else []
    made = make_flat_field(white, dark, "area")
    corrected = FlatField(made.gain, made.gain_step, made.dark).correct(np.full((8, 16), 255, np.uint8))
    assert corrected.min() >= 254


def test_a_line_camera_takes_frames_of_any_height_and_an_area_camera_does_not() -> None:
    line = FlatField(np.full((1, 32), 128, np.uint8), 1 / 128)
    assert line.correct(np.full((5, 32), 50, np.uint8)).tolist() == np.full((5, 32), 100).tolist()
    assert line.correct(np.full((900, 32), 50, np.uint8)).shape == (900, 32)
    area = FlatField(np.full((6, 32), 128, np.uint8), 1 / 128)
    with pytest.raises(ValueError, match="does not fit"):
        area.correct(np.zeros((5, 32), np.uint8))
