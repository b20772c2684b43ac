"""Renders what a camera sees of a flat scene whose every size is known, by no code of the station's.

The scene is a function from millimetres to reflectance; each pixel is the mean of SAMPLES × SAMPLES places in it. Then
come blur, light, gains of columns or pixels, noise, black level, and whole numbers.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float64]
Picture = npt.NDArray[np.uint8]
Scene = Callable[[Values, Values], Values]
"""(u, v) in mm → reflectance, 0..1."""
SAMPLES = 4


@dataclass(frozen=True)
class Spot:
    """A defect: an ellipse or a rectangle, turned.

    Attributes:
        u, v: centre, in mm.
        wide, tall: its axes or sides, in mm.
        turn: in radians.
        reflectance: of all of it.
    """

    u: float
    v: float
    wide: float
    tall: float
    turn: float = 0.0
    reflectance: float = 0.2
    is_round: bool = True

    @property
    def area_mm2(self) -> float:
        return self.wide * self.tall * (math.pi / 4 if self.is_round else 1.0)

    @property
    def reach_mm(self) -> tuple[float, float]:
        """Half the sides of the upright rectangle around it."""
        along, across = self.wide / 2, self.tall / 2
        cos, sin = abs(math.cos(self.turn)), abs(math.sin(self.turn))
        if self.is_round:
            return math.hypot(along * cos, across * sin), math.hypot(along * sin, across * cos)
        return along * cos + across * sin, along * sin + across * cos

    def covers(self, u: Values, v: Values) -> npt.NDArray[np.bool_]:
        x = (u - self.u) * math.cos(self.turn) + (v - self.v) * math.sin(self.turn)
        y = -(u - self.u) * math.sin(self.turn) + (v - self.v) * math.cos(self.turn)
        if self.is_round:
            return np.asarray((2 * x / self.wide) ** 2 + (2 * y / self.tall) ** 2 <= 1)
        return np.asarray((np.abs(x) <= self.wide / 2) & (np.abs(y) <= self.tall / 2))


def surface(reflectance: float, spots: Sequence[Spot] = ()) -> Scene:
    """An even surface with defects on it."""

    def scene(u: Values, v: Values) -> Values:
        seen = np.full(u.shape, reflectance)
        for spot in spots:
            seen[spot.covers(u, v)] = spot.reflectance
        return seen

    return scene


def turned(scene: Scene, turn: float, u: float, v: float) -> Scene:
    """A scene that lies turned (radians) with its origin at (u, v) of another one."""

    def outer(at_u: Values, at_v: Values) -> Values:
        x, y = at_u - u, at_v - v
        return scene(x * math.cos(turn) + y * math.sin(turn), -x * math.sin(turn) + y * math.cos(turn))

    return outer


def board(columns: int, rows: int, square_mm: float, marker_mm: float, paper: float = 0.85, ink: float = 0.06) -> Scene:
    """A ChArUco board as OpenCV itself draws it, on white paper; its origin is the board's own corner."""
    dictionary = cv2.aruco.getPredefinedDictionary(cv2.aruco.DICT_5X5_1000)
    drawn_by = cv2.aruco.CharucoBoard((columns, rows), square_mm, marker_mm, dictionary)
    per_mm = 200 / square_mm
    drawn = np.asarray(drawn_by.generateImage((columns * 200, rows * 200), marginSize=0))

    def scene(u: Values, v: Values) -> Values:
        x, y = np.floor(u * per_mm).astype(int), np.floor(v * per_mm).astype(int)
        inside = (x >= 0) & (y >= 0) & (x < columns * 200) & (y < rows * 200)
        black = np.zeros(u.shape, np.bool_)
        black[inside] = drawn[y[inside], x[inside]] < 128
        return np.where(black, ink, paper)

    return scene


def circles(columns: int, rows: int, pitch_mm: float, dot_mm: float, *, asymmetric: bool = False) -> Scene:
    """A grid of circles on white paper; its origin is the centre of the first one."""

    def scene(u: Values, v: Values) -> Values:
        row = np.clip(np.rint(v / pitch_mm), 0, rows - 1)
        step = 2 if asymmetric else 1
        shift = row % 2 if asymmetric else 0.0
        column = np.clip(np.rint((u / pitch_mm - shift) / step), 0, columns - 1)
        apart = np.hypot(u - (step * column + shift) * pitch_mm, v - row * pitch_mm)
        return np.where(apart <= dot_mm / 2, 0.06, 0.85)

    return scene


@dataclass(frozen=True)
class Camera:
    """How pixels look at the scene.

    Attributes:
        width, height: of the picture.
        to_mm: pixels (x, y) → mm (u, v); whole numbers are the middle of a pixel.
        light: `[height, width]` or a row of it: grey values that full reflectance gives.
        blur_px: standard deviation of the blur.
        black: grey value without light.
        read_noise, shot_noise: as in `station.boards.Imaging`.
    """

    width: int
    height: int
    to_mm: Callable[[Values, Values], tuple[Values, Values]]
    light: Any = 200.0
    blur_px: float = 0.8
    black: float = 6.0
    read_noise: float = 1.5
    shot_noise: float = 0.06

    def see(self, scene: Scene, seed: int) -> Picture:
        """A picture."""
        seen = np.empty((self.height, self.width))
        offsets = (np.arange(SAMPLES) + 0.5) / SAMPLES - 0.5
        x = (np.arange(self.width)[:, None] + offsets).ravel()
        for top in range(0, self.height, 64):
            rows = np.arange(top, min(top + 64, self.height))
            y = (rows[:, None] + offsets).ravel()
            u, v = self.to_mm(*np.meshgrid(x, y))
            fine = scene(u, v)
            seen[rows] = fine.reshape(len(rows), SAMPLES, self.width, SAMPLES).mean(axis=(1, 3))
        if self.blur_px:
            seen = np.asarray(cv2.GaussianBlur(seen, (0, 0), self.blur_px, borderType=cv2.BORDER_REPLICATE))
        signal = seen * self.light
        noise = np.random.default_rng(seed).normal(0, 1, signal.shape) * np.sqrt(
            self.read_noise**2 + self.shot_noise * signal
        )
        return np.asarray(np.clip(np.rint(signal + noise + self.black), 0, 255), np.uint8)


def tilted(
    width: int, height: int, mm_per_px: float, tilt_degrees: float = 0.0, swing_degrees: float = 0.0, k1: float = 0.0
) -> Callable[[Values, Values], tuple[Values, Values]]:
    """Pixels → mm on a plane that is tilted towards a pin-hole camera with a lens that bends radially.

    The lens maps a straight radius r (in focal lengths) to r (1 + k1 r²); the focal length is 1.2 picture widths. In
    the middle of the picture a pixel of the untilted plane is `mm_per_px`; there u = v = 0.
    """
    focal = 1.2 * width
    distance = mm_per_px * focal
    tilt, swing = math.radians(tilt_degrees), math.radians(swing_degrees)
    about_x = np.array([[1, 0, 0], [0, math.cos(tilt), -math.sin(tilt)], [0, math.sin(tilt), math.cos(tilt)]])
    about_y = np.array([[math.cos(swing), 0, math.sin(swing)], [0, 1, 0], [-math.sin(swing), 0, math.cos(swing)]])
    turn = about_y @ about_x

    def to_mm(x: Values, y: Values) -> tuple[Values, Values]:
        bent_x, bent_y = (x - (width - 1) / 2) / focal, (y - (height - 1) / 2) / focal
        bent = np.hypot(bent_x, bent_y)
        straight = bent.copy()
        for _ in range(20):
            straight = bent / (1 + k1 * straight**2)
        factor = np.where(bent > 0, straight / np.maximum(bent, 1e-12), 1.0)
        ray = np.stack([bent_x * factor, bent_y * factor, np.ones_like(bent)])
        # The plane through (0, 0, distance), spanned by the first two columns of the turn.
        normal = turn[:, 2]
        reach = normal[2] * distance / np.tensordot(normal, ray, 1)
        point = ray * reach - np.array([0, 0, distance]).reshape(3, *(1,) * (ray.ndim - 1))
        return np.tensordot(turn[:, 0], point, 1), np.tensordot(turn[:, 1], point, 1)

    return to_mm
