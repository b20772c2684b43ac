"""Pictures of parts with a code on them, and what a camera on a line makes of them: noise, blur, turn, light, dirt."""

from dataclasses import dataclass

import cv2
import numpy as np

from station.messages import Pixels

SIDE_PX = 640
_LEFT_ODD = (
    "0001101",
    "0011001",
    "0010011",
    "0111101",
    "0100011",
    "0110001",
    "0101111",
    "0111011",
    "0110111",
    "0001011",
)
_PARITY = ("OOOOOO", "OOEOEE", "OOEEOE", "OOEEEO", "OEOOEE", "OEEOOE", "OEEEOO", "OEOEOE", "OEOEEO", "OEEOEO")
"""The first digit stands in the parity of the six left ones (GS1 General Specifications, section 5.2.1)."""


@dataclass(frozen=True, slots=True)
class Sight:
    """How a camera sees a part.

    Attributes:
        noise: standard deviation of the sensor's noise, grey values.
        blur_px: standard deviation of the blur.
        turn_degrees: how the part lies.
        contrast, brightness: grey value = contrast × value + brightness.
        dirt: share of the code's side that a spot of dirt covers.
    """

    noise: float = 3.0
    blur_px: float = 0.6
    turn_degrees: float = 0.0
    contrast: float = 0.8
    brightness: float = 20.0
    dirt: float = 0.0


def qr_code(text: str, module_px: int = 5) -> Pixels:
    """A QR code of error correction level M with its quiet zone."""
    parameters = cv2.QRCodeEncoder.Params()
    parameters.correction_level = cv2.QRCODE_ENCODER_CORRECT_LEVEL_M
    modules = cv2.QRCodeEncoder.create(parameters).encode(text)
    dark = np.argwhere(modules == 0)
    (top, left), (bottom, right) = dark.min(0), dark.max(0) + 1
    return _with_quiet_zone(np.asarray(modules[top:bottom, left:right], np.uint8), module_px, module_px)


def ean_13(number: int, module_px: int = 2) -> Pixels:
    """A barcode of twelve digits and the check digit."""
    digits = [int(digit) for digit in f"{number:012}"]
    digits.append(check_digit(number))
    left = "".join(
        _LEFT_ODD[digit] if parity == "O" else _inverted(_LEFT_ODD[digit])[::-1]
        for digit, parity in zip(digits[1:7], _PARITY[digits[0]], strict=True)
    )
    right = "".join(_inverted(_LEFT_ODD[digit]) for digit in digits[7:])
    bars = np.array([[0 if bar == "1" else 255 for bar in f"101{left}01010{right}101"]], np.uint8)
    return _with_quiet_zone(bars, module_px, 45 * module_px, quiet=10)


def check_digit(number: int) -> int:
    """The thirteenth digit (GS1 General Specifications, section 7.9)."""
    weighted = sum(int(digit) * (3 if place % 2 else 1) for place, digit in enumerate(f"{number:012}"))
    return -weighted % 10


def part(code: Pixels, sight: Sight, chance: np.random.Generator, *more: Pixels) -> tuple[Pixels, tuple[float, float]]:
    """A part with its code, 640 × 640 grey, as a camera sees it, and where the code's middle is, (x, y) in pixels.

    `more` codes stand below the first.
    """
    pixels = np.full((SIDE_PX, SIDE_PX), 150.0, np.float32)
    cv2.rectangle(pixels, (90, 60), (560, 600), 120.0, cv2.FILLED)
    for _ in range(12):
        centre = tuple(int(value) for value in chance.integers(60, 580, 2))
        cv2.circle(pixels, centre, int(chance.integers(4, 14)), float(chance.integers(60, 220)), cv2.FILLED)
    middle = np.zeros(3)
    for place, one in enumerate((code, *more)):
        height, width = one.shape
        top, left = (int(value) for value in chance.integers((150, 150), (340 - height // 2, 480 - width)))
        top += place * 220
        pixels[top : top + height, left : left + width] = one
        if place == 0:
            middle = np.array((left + width / 2, top + height / 2, 1.0))
        if sight.dirt and place == 0:
            spot = max(1, int(sight.dirt * min(height, width) / 2))
            at = (left + int(chance.integers(width)), top + int(chance.integers(height)))
            cv2.circle(pixels, at, spot, 70.0, cv2.FILLED)
    turn = cv2.getRotationMatrix2D((SIDE_PX / 2, SIDE_PX / 2), sight.turn_degrees, 1.0)
    pixels = np.asarray(cv2.warpAffine(pixels, turn, (SIDE_PX, SIDE_PX), borderValue=150.0), np.float32)
    if sight.blur_px:
        pixels = np.asarray(cv2.GaussianBlur(pixels, (0, 0), sight.blur_px), np.float32)
    seen = sight.contrast * pixels + sight.brightness + chance.normal(0.0, sight.noise, pixels.shape)
    x_px, y_px = turn @ middle
    return np.clip(seen, 0, 255).astype(np.uint8), (float(x_px), float(y_px))


def _with_quiet_zone(modules: Pixels, across_px: int, along_px: int, quiet: int = 4) -> Pixels:
    grown = np.repeat(np.repeat(modules, along_px, 0), across_px, 1)
    edge = quiet * across_px
    return np.pad(grown, edge, constant_values=255)


def _inverted(bars: str) -> str:
    return bars.translate(str.maketrans("01", "10"))
