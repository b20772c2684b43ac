"""An endless web of printed circuit boards as a line-scan camera sees it, rendered deterministically.

`Web(seed)` is a pure function of seed and line number: any slicing gives the same pixels, and the true defects can be
computed by another process from the seed alone. Boards follow each other every `PITCH_LINES` lines; a lot of
`LOT_BOARDS` boards uses `LOT_DESIGNS` designs, as on a line that makes a few products at a time.

The demo's camera sees substrate at 60 and copper at 170 of 255 in the middle of the web, 18 % darker at the margins,
with a noise of about 3 grey values on substrate and 5 on copper, and a blur of 0.8 px (standard deviation).
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass
from random import Random

import cv2
import numpy as np
from numpy.typing import NDArray

from station.board_defects import BOARD_LABELS, LARGEST_BOX_PX, Placed, place_defects
from station.board_layout import COPPER, PITCH_LINES, SUBSTRATE, Layout, draw_layout, roughness_maps
from station.messages import Pixels

__all__ = [
    "BOARD_LABELS",
    "LARGEST_BOX_PX",
    "LARGEST_SHARE",
    "PITCH_LINES",
    "SHARE_LINES",
    "Imaging",
    "TrueDefect",
    "Web",
]

LOT_BOARDS = 360
LOT_DESIGNS = 6

#: `defect_share` is told for frames that own this many lines.
SHARE_LINES = 544

LEAST_WIDTH_PX = 320
LARGEST_SHARE = 0.99

_BLOCK = 32
_NOISE_VALUES = 1 << 20
_FLICKER_VALUES = 1 << 12
_KEPT_DESIGNS = LOT_DESIGNS
_KEPT_BOARDS = 4
_KEPT_PLACINGS = 64
_MARGIN_PX = 8
_WORD = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Imaging:
    """The camera and its lamp.

    substrate, contrast: grey values of bare board, and of copper above it, in the middle of the web.
    vignetting: share of light lost at the margins of the web.
    tilt: difference of light between left and right margin, as a share.
    drift: slow change of the light along the web, as a share.
    flicker: change of the light from line to line, as a share (standard deviation).
    column_gain: fixed-pattern gain error of the pixels, as a share (standard deviation).
    read_noise: grey values (standard deviation).
    shot_noise: grey values of variance per grey value of signal.
    blur_px: standard deviation of the blur.
    roughness_px: how far etched edges stray, rms.
    texture: mottling of the surfaces in reflectance codes (standard deviation).
    """

    substrate: float = 60.0
    contrast: float = 110.0
    vignetting: float = 0.18
    tilt: float = 0.03
    drift: float = 0.05
    flicker: float = 0.004
    column_gain: float = 0.010
    read_noise: float = 2.5
    shot_noise: float = 0.10
    blur_px: float = 0.8
    roughness_px: float = 0.3
    texture: float = 2.0

    @classmethod
    def varied(cls, seed: int) -> Imaging:
        """A camera drawn at random from a range that holds the default well inside: for training."""
        rng = Random(_mix(seed, 0x1A6))
        substrate = rng.uniform(32, 95)
        return cls(
            substrate=substrate,
            contrast=rng.uniform(75, min(150, 232 - substrate)),
            vignetting=rng.uniform(0.02, 0.32),
            tilt=rng.uniform(-0.12, 0.12),
            drift=rng.uniform(0.0, 0.10),
            flicker=rng.uniform(0.0, 0.010),
            column_gain=rng.uniform(0.0, 0.020),
            read_noise=rng.uniform(0.8, 4.0),
            shot_noise=rng.uniform(0.02, 0.20),
            blur_px=rng.uniform(0.5, 1.25),
            roughness_px=rng.uniform(0.1, 0.45),
            texture=rng.uniform(0.5, 4.0),
        )


@dataclass(frozen=True, slots=True)
class TrueDefect:
    """A defect that the web really has.

    label: one of `BOARD_LABELS`.
    box: x1, y1, x2, y2 in px; y in absolute lines of the web.
    contrast: share of the full contrast between copper and substrate, 0..1.
    """

    label: str
    box: tuple[int, int, int, int]
    contrast: float

    @property
    def centre(self) -> tuple[float, float]:
        """x in px, y in absolute lines."""
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2


@dataclass(frozen=True, slots=True)
class _Design:
    layout: Layout
    image: NDArray[np.uint8]


def _mix(*numbers: int) -> int:
    """Hash integers to 64 bits (the finalizer of SplitMix64: Steele, Lea and Flood, OOPSLA 2014)."""
    value = 0
    for number in numbers:
        value = (value + (number & _WORD) + 0x9E3779B97F4A7C15) & _WORD
        value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
        value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _WORD
        value ^= value >> 31
    return value


class Web:
    """The endless web of one seed.

    seed: chooses boards, defects and noise.
    width_px: pixels across the web, at least 320.
    defect_share: share of frames (of `SHARE_LINES` lines) that hold the centre of a defect, 0 to 0.99.
    imaging: the camera; the demo's by default.
    rise: (line, share): boards from this line on have another share.

    Not for use from several threads. Line numbers start at 0.
    """

    def __init__(
        self,
        seed: int,
        width_px: int = 640,
        defect_share: float = 0.1,
        imaging: Imaging | None = None,
        rise: tuple[int, float] | None = None,
    ) -> None:
        if width_px < LEAST_WIDTH_PX:
            raise ValueError(f"width_px = {width_px}; allowed: {LEAST_WIDTH_PX} or more")
        risen_from, risen_share = rise or (0, defect_share)
        for share in (defect_share, risen_share):
            if not 0.0 <= share <= LARGEST_SHARE:
                raise ValueError(f"defect_share = {share}; allowed: 0 to {LARGEST_SHARE}")
        self.seed = seed
        self.width_px = width_px
        self.imaging = imaging or Imaging()
        self._risen_from_board = -(-risen_from // PITCH_LINES)
        self._mean_defects = _mean_defects(defect_share)
        self._mean_risen = _mean_defects(risen_share)
        self._designs: OrderedDict[int, _Design] = OrderedDict()
        self._placed: OrderedDict[int, tuple[Placed, ...]] = OrderedDict()
        self._boards: OrderedDict[tuple[int, bool], NDArray[np.uint8]] = OrderedDict()
        self._prepare()

    def _prepare(self) -> None:
        look, width = self.imaging, self.width_px
        rng = np.random.default_rng(_mix(self.seed, 0xC0))
        self._roughness = roughness_maps(rng, width, look.roughness_px)
        self._noise = rng.standard_normal(_NOISE_VALUES, dtype=np.float32)
        grain = cv2.GaussianBlur(rng.standard_normal((PITCH_LINES + 256, width + 64), dtype=np.float32), (0, 0), 1.5)
        self._texture = np.clip(np.rint(grain * (look.texture / float(grain.std()))), -100, 100).astype(np.int8)
        self._flicker = (rng.standard_normal(_FLICKER_VALUES) * look.flicker).astype(np.float32)
        across = np.linspace(-1.0, 1.0, width)
        light = 1.0 - look.vignetting * across**2 + look.tilt / 2 * across
        light *= 1.0 + rng.standard_normal(width) * look.column_gain
        scale = look.contrast / (COPPER - SUBSTRATE)
        self._gain = (light * scale).astype(np.float32)
        self._offset = (light * (look.substrate - scale * SUBSTRATE)).astype(np.float32)
        self._phase = float(rng.uniform(0, math.tau))

    def render(self, first_line: int, lines: int, *, defects: bool = True) -> Pixels:
        """What the camera sees of the lines from `first_line` on: uint8 [lines, width_px].

        Without `defects` it is the same picture, down to the noise, of the boards as they should be.
        """
        self._check(first_line, lines)
        out = np.empty((lines, self.width_px), np.uint8)
        line, end = first_line, first_line + lines
        while line < end:
            stop = min(end, (line // _BLOCK + 1) * _BLOCK)
            self._expose(line, stop, defects, out[line - first_line : stop - first_line])
            line = stop
        return out

    def prepare(self, line: int) -> None:
        """Draw all designs of the lot at `line` now, so that rendering goes on without pauses."""
        lot = line // PITCH_LINES // LOT_BOARDS
        for number in range(LOT_DESIGNS):
            self._drawn(lot * LOT_DESIGNS + number)

    def artwork(self, first_line: int, lines: int, *, defects: bool = True) -> NDArray[np.uint8]:
        """The etched boards without the camera: reflectance codes, uint8 [lines, width_px]."""
        self._check(first_line, lines)
        out = np.empty((lines, self.width_px), np.uint8)
        line, end = first_line, first_line + lines
        while line < end:
            index, row = divmod(line, PITCH_LINES)
            stop = min(end, (index + 1) * PITCH_LINES)
            art = self._design(index).layout.art
            if defects:
                art = art.copy()
                for defect in self._defects_of(index):
                    defect.draw(art)
            out[line - first_line : stop - first_line] = art[row : row + stop - line]
            line = stop
        return out

    def _expose(self, first: int, stop: int, defects: bool, out: NDArray[np.uint8]) -> None:
        """One block of lines through lamp, lens and sensor; all operations are per pixel, so slicing cannot matter."""
        look, width = self.imaging, self.width_px
        index, row = divmod(first, PITCH_LINES)
        board = self._board(index, defects)
        lines = np.arange(first, stop)
        light = 1.0 + look.drift * (
            0.6 * np.sin(lines * (math.tau / 23_000) + self._phase) + 0.4 * np.sin(lines * (math.tau / 5_100))
        )
        light += self._flicker[(lines * 2_654_435_761 >> 7) % _FLICKER_VALUES]
        # Numpy's own loops, not a fused multiply-add: the same value whatever the length of the row.
        signal = np.multiply(board[row : row + stop - first], self._gain, dtype=np.float32)
        signal += self._offset
        signal *= light.astype(np.float32)[:, None]
        block = first // _BLOCK
        start = _mix(self.seed, 0x401, block) % (_NOISE_VALUES - _BLOCK * width) + (first - block * _BLOCK) * width
        noise = self._noise[start : start + signal.size].reshape(signal.shape)
        np.maximum(signal, 0.0, out=signal)
        sigma = signal * np.float32(look.shot_noise)
        sigma += np.float32(look.read_noise**2)
        np.sqrt(sigma, out=sigma)
        sigma *= noise
        signal += sigma
        np.rint(signal, out=signal)
        np.clip(signal, 0.0, 255.0, out=signal)
        out[:] = signal

    def defects(self, first_line: int, stop_line: int) -> tuple[TrueDefect, ...]:
        """The defects whose centre lies on the lines [first_line, stop_line), in the order of their boards.

        Nothing is rendered: only the layouts are drawn, once per design.
        """
        found = []
        for index in range(first_line // PITCH_LINES, -(-stop_line // PITCH_LINES)):
            base = index * PITCH_LINES
            for placed in self._defects_of(index):
                x1, y1, x2, y2 = placed.box
                defect = TrueDefect(placed.label, (x1, y1 + base, x2, y2 + base), placed.contrast)
                if first_line <= defect.centre[1] < stop_line:
                    found.append(defect)
        return tuple(found)

    @staticmethod
    def _check(first_line: int, lines: int) -> None:
        if first_line < 0 or lines < 1:
            raise ValueError(f"lines {first_line} + {lines}; allowed: from 0, at least one")

    def _design(self, index: int) -> _Design:
        lot = index // LOT_BOARDS
        return self._drawn(lot * LOT_DESIGNS + _mix(self.seed, 0xDE5, index) % LOT_DESIGNS)

    def _drawn(self, key: int) -> _Design:
        found = self._designs.get(key)
        if found is None:
            layout = draw_layout(Random(_mix(self.seed, 0x1A7, key)), self.width_px, self._roughness)
            image = cv2.GaussianBlur(layout.art, (0, 0), self.imaging.blur_px)
            found = _Design(layout, image.astype(np.uint8, copy=False))
            self._designs[key] = found
            if len(self._designs) > _KEPT_DESIGNS:
                self._designs.popitem(last=False)
        else:
            self._designs.move_to_end(key)
        return found

    def _defects_of(self, index: int) -> tuple[Placed, ...]:
        found = self._placed.get(index)
        if found is None:
            rng = Random(_mix(self.seed, 0xDEF, index))
            count = _poisson(rng, self._mean_defects if index < self._risen_from_board else self._mean_risen)
            found = place_defects(self._design(index).layout, rng, count) if count else ()
            self._placed[index] = found
            if len(self._placed) > _KEPT_PLACINGS:
                self._placed.popitem(last=False)
        return found

    def _board(self, index: int, defects: bool) -> NDArray[np.uint8]:
        """The blurred codes of one board with its own grain."""
        found = self._boards.get((index, defects))
        if found is None:
            design = self._design(index)
            found = design.image
            placed = self._defects_of(index) if defects else ()
            if placed:
                found = found.copy()
                art = design.layout.art.copy()
                for defect in placed:
                    defect.draw(art)
                for defect in placed:
                    self._blur_around(defect, art, found)
            shift = _mix(self.seed, 0x7E, index)
            dy, dx = shift % 256, (shift >> 8) % 64
            grain = self._texture[dy : dy + PITCH_LINES, dx : dx + self.width_px]
            found = cv2.add(found, grain, dtype=cv2.CV_8U).astype(np.uint8, copy=False)
            self._boards[index, defects] = found
            if len(self._boards) > _KEPT_BOARDS:
                self._boards.popitem(last=False)
        return found

    def _blur_around(self, defect: Placed, art: NDArray[np.uint8], image: NDArray[np.uint8]) -> None:
        """Blur again where the defect changed the drawing: the result is that of blurring the whole."""
        height, width = art.shape
        h, w = defect.cover.shape
        y1, y2 = max(defect.y - _MARGIN_PX, 0), min(defect.y + h + _MARGIN_PX, height)
        x1, x2 = max(defect.x - _MARGIN_PX, 0), min(defect.x + w + _MARGIN_PX, width)
        oy1, oy2 = max(y1 - _MARGIN_PX, 0), min(y2 + _MARGIN_PX, height)
        ox1, ox2 = max(x1 - _MARGIN_PX, 0), min(x2 + _MARGIN_PX, width)
        blurred = cv2.GaussianBlur(art[oy1:oy2, ox1:ox2], (0, 0), self.imaging.blur_px)
        image[y1:y2, x1:x2] = blurred[y1 - oy1 : y2 - oy1, x1 - ox1 : x2 - ox1]


def _mean_defects(share: float) -> float:
    """Defects on a board: they come independently of each other, so that their number is a Poisson variable."""
    return -math.log1p(-share) * PITCH_LINES / SHARE_LINES


def _poisson(rng: Random, mean: float) -> int:
    limit, product, count = math.exp(-mean), rng.random(), 0
    while product > limit:
        product *= rng.random()
        count += 1
    return count
