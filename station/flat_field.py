"""Flat-field correction: every place of a picture as bright as the brightest, pixel by pixel.

judged = (pixel − dark) × gain, in whole numbers. The gain is never below 1 and is stored in 8 bits with a step of its
own, (gain − 1) / step, so that a frame is corrected with one multiplication and one addition a byte, without a float
copy of it; a gain of up to 2 is then exact to 0.2 %. A saturated pixel stays saturated, since nobody knows how bright
it was; a pixel at a dark margin saturates when it would have done so in the middle.

Of an area camera each pixel has a gain, of a line-scan camera each column. The gain follows the white pictures where
they tell more than noise: the smooth part (lamp, lens) wholly, what differs from pixel to pixel by the share of its
variance that is not noise (Wiener's filter, one weight for the picture). What lay on the white sheet is taken from its
neighbourhood.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from station.calibration import Scan
from station.errors import CalibrationError
from station.messages import Pixels

FEW_PICTURES = 8
FEW_LINES = 256
LARGEST_GAIN = 3.0
SATURATED = 255
SATURATED_SHARE = 0.001
"""A white picture with more saturated pixels than this says nothing about its brightest places."""
LEAST_WHITE = 40.0
"""Below this mean, less dark, 8 bits are too coarse: one grey value is more than 2.5 %."""
DIM_WHITE = 100.0
UNEVEN_SHARE = 0.05
"""White pictures whose means differ by more were not taken under the same light."""
DIRT_SHARE = 0.04
"""A pixel of the mean white picture that is farther than this below its neighbourhood is dirt, if it has company."""
LEAST_DIRT_PX = 5
BLOCK_PX = 8
_TRIM = 4
_STRIPE_BYTES = 1 << 16
_DARK_IS_BRIGHT = 0.25
_BEYOND_PERCENT = 0.1
"""Share of the pixels, in percent, that may stand out of line: hot and dead ones must not set the level of all."""

Picture = tuple[str, Pixels]
"""Name and pixels."""
Plane = npt.NDArray[np.float32]


class FlatField:
    """Corrects pictures; one thread uses it.

    Args:
        gain: uint8, the shape of the pictures, or one row for a line-scan camera.
        gain_step: gain per unit.
        dark: uint8 of the same shape; None: nothing is taken away.

    Raises:
        ValueError: the shapes differ.
    """

    def __init__(self, gain: Pixels, gain_step: float, dark: Pixels | None = None) -> None:
        if dark is not None and dark.shape != gain.shape:
            raise ValueError(f"the gain map is {gain.shape}, the dark level {dark.shape}")
        self._step = gain_step
        self._lines = len(gain) == 1
        row_bytes = gain[0].nbytes
        self._stripe = max(1, _STRIPE_BYTES // row_bytes)
        self._gain = _rows(gain, self._stripe) if self._lines else gain
        self._dark = None if dark is None else _rows(dark, self._stripe) if self._lines else dark
        self._product = np.empty((self._stripe, *gain.shape[1:]), np.uint8)
        self._out = np.empty((0, *gain.shape[1:]), np.uint8)

    def fits(self, pixels: Pixels) -> bool:
        """Whether a picture has the size that this is for; a line-scan camera's may have any height."""
        return pixels.shape[1:] == self._gain.shape[1:] and (self._lines or len(pixels) == len(self._gain))

    def correct(self, pixels: Pixels) -> Pixels:
        """The corrected picture, which holds until the next call.

        Raises:
            ValueError: the picture does not fit.
        """
        if not self.fits(pixels):
            raise ValueError(f"a picture of {pixels.shape} does not fit the gain map of {self._gain.shape}")
        if len(self._out) < len(pixels):
            self._out = np.empty_like(pixels, order="C")
        for top in range(0, len(pixels), self._stripe):
            rows = slice(top, min(top + self._stripe, len(pixels)))
            beside = slice(0, rows.stop - top) if self._lines else rows
            out, product = self._out[rows], self._product[: rows.stop - top]
            light = pixels[rows]
            if self._dark is not None:
                cv2.subtract(light, self._dark[beside], dst=out)
                light = out
            cv2.multiply(light, self._gain[beside], dst=product, scale=self._step)
            cv2.add(light, product, dst=out)
        return self._out[: len(pixels)]


@dataclass(frozen=True, slots=True)
class FlatFieldResult:
    """A flat field with what it reached; the figures are those of `station.calibration.FlatFieldCalibration`.

    Attributes:
        gain: uint8, the shape of the pictures, or one row.
        gain_step: gain per unit.
        dark: uint8, of the same shape.
        checked_on: what `flatness_after` was measured on, in words.
        warnings: one line each.
    """

    gain: Pixels
    gain_step: float
    dark: Pixels | None
    white_level: float
    vignetting: float
    pattern: float
    flatness_before: float
    flatness_after: float
    limited: int
    dirt_px: int
    checked_on: str
    warnings: tuple[str, ...]


def make_flat_field(white: Sequence[Picture], dark: Sequence[Picture], scan: Scan) -> FlatFieldResult:
    """Make a flat field from pictures of an even white (or grey) surface, and from pictures with the lens covered.

    Args:
        white: at least one, all of one size, none saturated.
        dark: none, or of the same size.
        scan: `line`: one gain for each column.

    Raises:
        CalibrationError: the pictures cannot be used; the text names the file.
    """
    _check_sizes(white, dark)
    black = _dark_level([pixels for _, pixels in dark], scan) if dark else None
    _check_white(white, dark)
    warnings = _warnings(white, dark, black, scan)
    light = _light(white, black, scan)
    gain, step, limited = _gain_map(light.even, black)
    if light.dirt.any():
        warnings.append(f"dirt on the white pictures: {_spots(light.dirt)}; the gain there is its neighbourhood's")
    if limited:
        unit = "columns" if scan == "line" else "pixels"
        warnings.append(
            f"{limited} {unit} would need more than {LARGEST_GAIN:g} times the light and do not get it: dead, or the "
            "lighting leaves them in the dark"
        )
    stored_dark = None if black is None else _squeeze(np.rint(black).astype(np.uint8))
    corrector = FlatField(gain, step, stored_dark)
    checked_on, held_out = "the same pictures", white
    if len(white) >= _TRIM:
        held_out, others = white[1::2], white[::2]
        checked_on = f"{len(held_out)} pictures, with a map made from the other {len(others)}"
        part, part_step, _ = _gain_map(_light(others, black, scan).even, black)
        corrector = FlatField(part, part_step, stored_dark)
    raw = _mean([pixels for _, pixels in held_out], scan)
    corrected = _mean([corrector.correct(pixels).copy() for _, pixels in held_out], scan)
    return FlatFieldResult(
        gain=gain,
        gain_step=step,
        dark=stored_dark,
        white_level=light.level,
        vignetting=light.vignetting,
        pattern=light.pattern,
        flatness_before=_deviation(raw if black is None else raw - black, scan, light.dirt),
        flatness_after=_deviation(corrected, scan, light.dirt),
        limited=limited,
        dirt_px=int(light.dirt.sum()),
        checked_on=checked_on,
        warnings=tuple(warnings),
    )


@dataclass(frozen=True, slots=True)
class _Light:
    """What white pictures tell of the light.

    Attributes:
        even: how bright each place is, `[rows, columns, channels]`.
        dirt: `[rows, columns]`, where something lay on the sheet.
    """

    even: Plane
    dirt: npt.NDArray[np.bool_]
    level: float
    vignetting: float
    pattern: float


def _light(white: Sequence[Picture], black: Plane | None, scan: Scan) -> _Light:
    level, noise = _white_level(white, black, scan)
    even = level.copy()
    dirt = np.zeros(level.shape[:2], np.bool_)
    pattern = vignetting = 0.0
    for channel in range(level.shape[2]):
        plane = level[:, :, channel]
        smooth = _smooth(plane)
        rest = np.asarray(plane / smooth - 1, np.float32)
        part = 1.0
        if scan == "area":
            spots = _find_dirt(rest)
            dirt |= spots
            rest[spots] = 0
            part = max(0.0, 1.0 - (noise[channel] / max(_spread(rest), 1e-9)) ** 2)
        even[:, :, channel] = smooth * (1 + part * rest)
        pattern = max(pattern, _spread(rest) * part**0.5)
        vignetting = max(vignetting, 1.0 - float(smooth.min() / smooth.max()))
    return _Light(even, dirt, float(level.mean()), vignetting, pattern)


def _check_sizes(white: Sequence[Picture], dark: Sequence[Picture]) -> None:
    if not white:
        raise CalibrationError("no white picture was given")
    first, shape = white[0][0], white[0][1].shape
    for name, pixels in (*white, *dark):
        if pixels.shape != shape:
            raise CalibrationError(
                f"{name}: is {_size(pixels)}, {first} is {_size(white[0][1])}; all must be of one size"
            )


def _size(pixels: Pixels) -> str:
    return f"{pixels.shape[1]}×{pixels.shape[0]} px{' in colour' if pixels.ndim == 3 else ''}"  # noqa: PLR2004


def _check_white(white: Sequence[Picture], dark: Sequence[Picture]) -> None:
    black = float(np.mean([pixels.mean() for _, pixels in dark])) if dark else 0.0
    for name, pixels in white:
        share = float((pixels >= SATURATED).mean())
        if share > SATURATED_SHARE:
            raise CalibrationError(
                f"{name}: {share:.1%} of its pixels are saturated; take it with less light or a shorter exposure "
                f"(at most {SATURATED_SHARE:.1%} are allowed)"
            )
        mean = float(pixels.mean())
        if mean <= black:
            raise CalibrationError(
                f"{name}: has a mean of {mean:.1f}, the dark pictures have {black:.1f}: white and dark are mixed up, "
                "or the lens was covered"
            )
        if mean - black < LEAST_WHITE:
            raise CalibrationError(
                f"{name}: has a mean of {mean - black:.1f} above dark, too little to tell 1 % apart; at least "
                f"{LEAST_WHITE:g} is needed, 150 to 220 is good"
            )


def _warnings(white: Sequence[Picture], dark: Sequence[Picture], black: Plane | None, scan: Scan) -> list[str]:
    warnings = []
    means = {name: float(pixels.mean()) for name, pixels in white}
    middle = float(np.median(list(means.values())))
    if scan == "area" and len(white) < FEW_PICTURES:
        warnings.append(f"{len(white)} white pictures are few: their noise goes into the gain; take {FEW_PICTURES * 2}")
    lines = sum(len(pixels) for _, pixels in white)
    if scan == "line" and lines < FEW_LINES:
        warnings.append(f"{lines} white lines are few: their noise goes into the gain; take {FEW_LINES * 2}")
    for name, mean in means.items():
        if abs(mean / middle - 1) > UNEVEN_SHARE:
            warnings.append(f"{name}: has a mean of {mean:.1f}, the others {middle:.1f}: was the light the same?")
    if middle < DIM_WHITE:
        warnings.append(f"the white pictures are dim (mean {middle:.0f}); 150 to 220 is good")
    if black is not None and float(black.mean()) > _DARK_IS_BRIGHT * middle:
        warnings.append(f"the dark pictures have a mean of {black.mean():.0f}: was the lens covered?")
    if not dark:
        warnings.append("no dark pictures: the sensor's black level is taken for light")
    return warnings


def _white_level(white: Sequence[Picture], black: Plane | None, scan: Scan) -> tuple[Plane, list[float]]:
    """The mean white picture less dark, `[rows, columns, channels]`, and its noise as a share, for each channel."""
    pictures = [pixels for _, pixels in white]
    level = _mean(pictures, scan)
    if black is not None:
        level = np.maximum(level - black, 1.0)
    level = np.maximum(level, 1.0)
    noise = _halves(pictures, scan)
    if scan == "line" or noise is None:
        # One picture alone cannot tell its noise from the sensor's pattern: what is not smooth is taken for noise.
        return level, [1.0] * level.shape[2]
    return level, [_spread(noise[:, :, channel] / level[:, :, channel]) for channel in range(level.shape[2])]


def _mean(pictures: Sequence[Pixels], scan: Scan) -> Plane:
    """What most pictures say, `[rows, columns, channels]`.

    Of an area camera the mean of each pixel without its darkest and its brightest value, of a line-scan camera, in one
    row, the mean of each column without its outer quarters: what moves from picture to picture does not count.
    """
    shape = pictures[0].shape
    planes = [pixels.reshape(shape[0], shape[1], -1) for pixels in pictures]
    if scan == "line":
        ordered = np.sort(np.concatenate(planes).transpose(1, 2, 0), axis=-1)
        cut = ordered.shape[-1] // _TRIM
        middle = ordered[..., cut : ordered.shape[-1] - cut]
        return np.asarray(middle.mean(axis=-1, dtype=np.float32)[None], np.float32)
    total = np.zeros(planes[0].shape, np.float32)
    for plane in planes:
        total += plane
    if len(planes) < _TRIM:
        return np.asarray(total / len(planes), np.float32)
    least, greatest = planes[0].copy(), planes[0].copy()
    for plane in planes[1:]:
        np.minimum(least, plane, out=least)
        np.maximum(greatest, plane, out=greatest)
    return np.asarray((total - least - greatest) / (len(planes) - 2), np.float32)


def _dark_level(pictures: Sequence[Pixels], scan: Scan) -> Plane:
    """The mean dark picture; what differs from pixel to pixel as far as it is not noise."""
    level = _mean(pictures, scan)
    if scan == "line":
        return level
    common = np.median(level, axis=(0, 1))
    rest = level - common
    noise = _halves(pictures, scan)
    for channel in range(level.shape[2]):
        total = float(rest[:, :, channel].std())
        own = _spread(noise[:, :, channel]) if noise is not None else total
        rest[:, :, channel] *= max(0.0, 1.0 - (own / max(total, 1e-9)) ** 2)
    return np.asarray(common + rest, np.float32)


def _halves(pictures: Sequence[Pixels], scan: Scan) -> Plane | None:
    """Half the difference of the means of two halves, which is as noisy as the mean of both; None with one picture."""
    half = len(pictures) // 2
    if half == 0:
        return None
    return np.asarray((_mean(pictures[:half], scan) - _mean(pictures[half : 2 * half], scan)) / 2, np.float32)


def _smooth(plane: Plane) -> Plane:
    """What lamp and lens do: a polynomial of the fourth degree, and on it the blurred medians of small blocks."""
    rows, columns = plane.shape
    tall, wide = min(BLOCK_PX, rows), min(BLOCK_PX, columns)
    inner = plane[: rows // tall * tall, : columns // wide * wide]
    blocks = np.median(inner.reshape(rows // tall, tall, columns // wide, wide), axis=(1, 3))
    y = (np.arange(blocks.shape[0]) * tall + (tall - 1) / 2) / max(rows - 1, 1) * 2 - 1
    x = (np.arange(blocks.shape[1]) * wide + (wide - 1) / 2) / max(columns - 1, 1) * 2 - 1
    degrees_y = min(4, len(y) - 1)
    degrees_x = min(4, len(x) - 1)
    powers = [(i, j) for i in range(degrees_y + 1) for j in range(degrees_x + 1) if i + j <= 4]  # noqa: PLR2004
    terms = np.stack([np.outer(y**i, x**j).ravel() for i, j in powers], axis=1)
    values = blocks.ravel().astype(np.float64)
    used = np.ones(len(values), np.bool_)
    for _ in range(3):
        solution = np.linalg.lstsq(terms[used], values[used], rcond=None)[0]
        rest = values - terms @ solution
        used = np.abs(rest) <= max(4 * 1.4826 * float(np.median(np.abs(rest[used]))), 1e-6)
    left = np.where(used, rest, 0).reshape(blocks.shape).astype(np.float32)
    left = np.asarray(cv2.GaussianBlur(left, (0, 0), 1.0, borderType=cv2.BORDER_REPLICATE), np.float32)
    whole_y, whole_x = np.linspace(-1, 1, rows) if rows > 1 else np.zeros(1), np.linspace(-1, 1, columns)
    smooth = np.zeros((rows, columns), np.float64)
    for (i, j), weight in zip(powers, solution, strict=True):
        smooth += weight * np.outer(whole_y**i, whole_x**j)
    smooth += cv2.resize(left, (columns, rows), interpolation=cv2.INTER_LINEAR)
    return np.asarray(np.maximum(smooth, 1.0), np.float32)


def _spread(values: Plane) -> float:
    """Robust standard deviation."""
    return 1.4826 * float(np.median(np.abs(values - np.median(values))))


def _find_dirt(rest: Plane) -> npt.NDArray[np.bool_]:
    limit = max(DIRT_SHARE, 6 * _spread(rest))
    dark = (rest < -limit).astype(np.uint8)
    count, labels, figures, _ = cv2.connectedComponentsWithStats(dark, connectivity=8)
    large = [one for one in range(1, count) if figures[one, cv2.CC_STAT_AREA] >= LEAST_DIRT_PX]
    spots = np.isin(labels, large).astype(np.uint8)
    # The faint rim around a speck is dirt, too.
    return np.asarray(cv2.dilate(spots, np.ones((5, 5), np.uint8)) > 0)


def _spots(dirt: npt.NDArray[np.bool_]) -> str:
    count, _, figures, centres = cv2.connectedComponentsWithStats(dirt.astype(np.uint8), connectivity=8)
    largest = sorted(range(1, count), key=lambda one: -int(figures[one, cv2.CC_STAT_AREA]))[:3]
    places = ", ".join(
        f"{figures[one, cv2.CC_STAT_AREA]} px at {centres[one][0]:.0f}, {centres[one][1]:.0f}" for one in largest
    )
    return f"{count - 1} spots ({places}{', …' if count - 1 > len(largest) else ''})"


def _gain_map(even: Plane, black: Plane | None) -> tuple[Pixels, float, int]:
    brightest = np.percentile(even, 100 - _BEYOND_PERCENT, axis=(0, 1)).astype(np.float32)
    least = 1.0
    if black is not None:
        # What is saturated must stay so after the dark level was taken away.
        least = SATURATED / (SATURATED - float(np.percentile(black, 100 - _BEYOND_PERCENT)))
    wanted = least * brightest / even
    limited = int((wanted > LARGEST_GAIN).any(axis=2).sum())
    gain = np.clip(wanted, least, LARGEST_GAIN)
    step = max(float(gain.max()) - 1.0, 0.01) / 255
    return _squeeze(np.rint((gain - 1.0) / step).astype(np.uint8)), step, limited


def _deviation(level: Plane, scan: Scan, dirt: npt.NDArray[np.bool_]) -> float:
    """Largest deviation from the mean, as a share, over columns or over blocks on which nothing lay."""
    if scan == "area":
        rows, columns = (edge // BLOCK_PX * BLOCK_PX for edge in level.shape[:2])
        form = (rows // BLOCK_PX, BLOCK_PX, columns // BLOCK_PX, BLOCK_PX)
        clean = ~dirt[:rows, :columns].reshape(form).any(axis=(1, 3))
        level = level[:rows, :columns].reshape(*form, -1).mean(axis=(1, 3))
        level = level[clean][None] if clean.any() else level
    means = level.mean(axis=(0, 1))
    return float(np.abs(level / means - 1).max())


def _squeeze(maps: Pixels) -> Pixels:
    return np.ascontiguousarray(maps[:, :, 0] if maps.shape[2] == 1 else maps)


def _rows(row: Pixels, count: int) -> Pixels:
    return np.ascontiguousarray(np.broadcast_to(row, (count, *row.shape[1:])))
