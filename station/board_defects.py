"""Puts the six defects of etched boards on a layout, each one real.

An open separates its trace, a short joins two nets, a mousebite leaves its trace whole, a spur touches nothing else,
spurious copper stands alone, a pin-hole is wholly inside copper. What cannot be placed so is not placed.

Smallest sizes, before the camera's blur: open 3 px of gap, short 3.5 px wide, mousebite 3.5 px deep and 5 px wide,
spur 4 px long and 4 px wide, spurious copper and pin-hole 4.4 px across. The faintest have `FAINTEST` of the contrast
between copper and substrate.
"""

# The figures of a drawing are its content: naming each one would hide the drawing;
# each early return of a method is one rule that a candidate breaks.
# ruff: noqa: PLR2004

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

import cv2
import numpy as np
from numpy.typing import NDArray

from station.board_layout import BELT, COPPER, SUBSTRATE, Layout

#: In the order of the types 1 to 6 of the DeepPCB data set.
BOARD_LABELS = ("open", "short", "mousebite", "spur", "copper", "pin-hole")

#: Added to each side of the changed pixels: labelled boxes of real boards hold some surroundings.
BOX_MARGIN_PX = 10

#: No box is longer than this on any side.
LARGEST_BOX_PX = 80

#: Smallest share of the contrast between copper and substrate: a residue that was left, a film that covers.
FAINTEST = 0.6

#: Least changed area of each kind times its contrast, px: below it is a rough edge and no defect.
_LEAST_PX = {"open": 10, "short": 10, "mousebite": 18, "spur": 13, "copper": 9, "pin-hole": 9}

_WINDOW = 104
_HALF = _WINDOW // 2
_SHIFT = 4
_APART_PX = 90
_TRIES = 60
_CLEAN_SUBSTRATE = 6
_CLEAN_COPPER = 12

Mask = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Placed:
    """A defect on a layout.

    label: one of `BOARD_LABELS`.
    box: x1, y1, x2, y2 of the changed pixels with their margin, px.
    contrast: share of the full contrast between copper and substrate, 0..1.
    x, y: where the window of `cover` begins on the layout.
    cover: uint8 [h, w], how much of each pixel is changed, 0..255.
    code: reflectance that it is changed to.
    """

    label: str
    box: tuple[int, int, int, int]
    contrast: float
    x: int
    y: int
    cover: Mask
    code: int

    def draw(self, art: NDArray[np.uint8]) -> None:
        """Change `art`, the drawing of the board, in place."""
        height, width = self.cover.shape
        area = art[self.y : self.y + height, self.x : self.x + width]
        share = self.cover.astype(np.float32) * np.float32(self.contrast / 255.0)
        area[:] = np.rint(area + share * (np.float32(self.code) - area)).astype(np.uint8)


def place_defects(layout: Layout, rng: Random, count: int) -> tuple[Placed, ...]:
    """Place up to `count` defects of random kinds, apart from each other."""
    surgeon = _Surgeon(layout, rng)
    placed: list[Placed] = []
    for _ in range(count):
        kinds = list(BOARD_LABELS)
        rng.shuffle(kinds)
        for kind in kinds:
            found = surgeon.attempt(kind, placed)
            if found is not None:
                placed.append(found)
                break
    return tuple(placed)


@dataclass(frozen=True, slots=True)
class _Window:
    """The surroundings of a candidate; coordinates inside it are relative to (x, y)."""

    x: int
    y: int
    art: NDArray[np.uint8]
    elements: NDArray[np.uint16]


class _Surgeon:
    def __init__(self, layout: Layout, rng: Random) -> None:
        self._layout = layout
        self._rng = rng
        self._long = [s for s in layout.segments if math.hypot(s.x2 - s.x1, s.y2 - s.y1) >= 24]
        lengths = [math.hypot(s.x2 - s.x1, s.y2 - s.y1) for s in self._long]
        self._cumulative = np.cumsum(lengths).tolist()
        self._methods: dict[str, Callable[[], Placed | None]] = {
            "open": self._open,
            "short": self._short,
            "mousebite": self._mousebite,
            "spur": self._spur,
            "copper": self._copper,
            "pin-hole": self._pinhole,
        }

    def attempt(self, kind: str, placed: list[Placed]) -> Placed | None:
        for _ in range(_TRIES):
            found = self._methods[kind]()
            if found is None:
                continue
            x1, y1, x2, y2 = found.box
            if max(x2 - x1, y2 - y1) > LARGEST_BOX_PX:
                continue
            if all(
                abs(x1 + x2 - o.box[0] - o.box[2]) > 2 * _APART_PX or abs(y1 + y2 - o.box[1] - o.box[3]) > 2 * _APART_PX
                for o in placed
            ):
                return found
        return None

    def _open(self) -> Placed | None:
        rng = self._rng
        spot = self._on_trace()
        if spot is None:
            return None
        x, y, angle, width, element = spot
        window = self._window(x, y)
        if window is None:
            return None
        # Narrower than any legal gap: two pieces of copper that face each other are not an open.
        gap = rng.uniform(3.0, 6.5)
        cover = self._band(x - window.x, y - window.y, angle, width / 2 + 2.5, gap)
        cut = cover > 127
        own = window.elements == element
        if (cut & (window.elements != 0) & ~own).any() or not (cut & (window.elements == 0)).any():
            return None
        near = self._disc(x - window.x, y - window.y, width / 2 + gap + 9)
        before = self._pieces(own & near)
        after = self._pieces(own & near & (cover < 40))
        if before != 1 or after != 2:
            return None
        return self._placed("open", window, cover, cut & own, SUBSTRATE)

    def _short(self) -> Placed | None:
        rng = self._rng
        spot = self._on_trace()
        if spot is None:
            return None
        x, y, angle, width, element = spot
        window = self._window(x, y)
        if window is None:
            return None
        normal = angle + rng.choice((-1, 1)) * math.pi / 2
        dx, dy = math.cos(normal), math.sin(normal)
        cx, cy = x - window.x, y - window.y
        start = reach = None
        other = 0
        for step in range(round(width / 2) - 2, 40):
            px, py = round(cx + dx * step), round(cy + dy * step)
            if not (2 <= px < _WINDOW - 2 and 2 <= py < _WINDOW - 2):
                return None
            here = int(window.elements[py, px])
            if start is None:
                if here == 0:
                    start = step
            elif here != 0:
                reach, other = step, here
                break
        nets = self._layout.nets
        if start is None or reach is None or not 5 <= reach - start <= 26 or nets[other] == nets[element]:
            return None
        if other in self._layout.lettering:
            return None
        middle = (start + reach - 1) / 2
        cover = self._band(
            cx + dx * middle, cy + dy * middle, normal + math.pi / 2, (reach - start) / 2 + 2.5, rng.uniform(3.5, 9.0)
        )
        added = (cover > 127) & (window.elements == 0)
        touched = self._met(window, cv2.dilate((cover > 40).astype(np.uint8), np.ones((3, 3), np.uint8)) > 0)
        if {int(nets[e]) for e in touched} != {int(nets[element]), int(nets[other])}:
            return None
        joined = (window.elements == element) | (window.elements == other)
        if self._pieces(joined | added) >= self._pieces(joined) or self._holes_in(window, cover):
            return None
        return self._placed("short", window, cover, added, COPPER)

    def _mousebite(self) -> Placed | None:
        rng = self._rng
        spot = self._on_edge()
        if spot is None:
            return None
        x, y, outward, thickness, element, window = spot
        if thickness < 6:
            return None
        depth = rng.uniform(3.5, min(11.0, max(3.7, 0.62 * thickness)))
        if thickness - depth < 2.5:
            return None
        across = rng.uniform(2.5, 3.0 + depth * 0.6)
        cover = self._blob(x, y, across, depth, outward + math.pi / 2)
        bitten = cover > 127
        own = window.elements == element
        if (bitten & (window.elements != 0) & ~own).any():
            return None
        rest = own & (cover < 40)
        near = self._disc(x, y, thickness + 14)
        if self._pieces(rest & near) != self._pieces(own & near) or self._holes_in(window, cover, 3):
            return None
        return self._placed("mousebite", window, cover, bitten & own, SUBSTRATE)

    def _spur(self) -> Placed | None:
        rng = self._rng
        spot = self._on_edge()
        if spot is None:
            return None
        x, y, outward, thickness, element, window = spot
        if thickness < 5:
            return None
        length, across = rng.uniform(4.0, 13.0), rng.uniform(2.0, 4.5)
        out = length / 2 - 1
        cover = self._blob(x + math.cos(outward) * out, y + math.sin(outward) * out, length / 2 + 1, across, outward)
        added = (cover > 127) & (window.elements == 0)
        around = cv2.dilate((cover > 40).astype(np.uint8), np.ones((9, 9), np.uint8)) > 0
        if self._met(window, around) != {element} or not self._on_board(window, around):
            return None
        own = window.elements == element
        if self._pieces(own | added) != self._pieces(own) or self._holes_in(window, cover):
            return None
        return self._placed("spur", window, cover, added, COPPER)

    def _copper(self) -> Placed | None:
        window = self._anywhere(copper=False)
        if window is None:
            return None
        cover = self._stain(9.0)
        around = cv2.dilate((cover > 40).astype(np.uint8), np.ones((11, 11), np.uint8)) > 0
        if (around & (window.elements != 0)).any() or not self._on_board(window, around):
            return None
        return self._placed("copper", window, cover, cover > 127, COPPER)

    def _pinhole(self) -> Placed | None:
        window = self._anywhere(copper=True)
        if window is None:
            return None
        # Smaller than any hole drilled into an area.
        cover = self._stain(5.5)
        around = cv2.dilate((cover > 40).astype(np.uint8), np.ones((7, 7), np.uint8)) > 0
        if (window.art[around] < COPPER - _CLEAN_COPPER).any() or not (window.elements[around] != 0).all():
            return None
        return self._placed("pin-hole", window, cover, cover > 127, SUBSTRATE)

    def _on_trace(self) -> tuple[int, int, float, int, int] | None:
        """A point inside a straight piece of trace: x, y, its direction, width and element."""
        rng = self._rng
        if not self._long:
            return None
        segment = rng.choices(self._long, cum_weights=self._cumulative)[0]
        dx, dy = segment.x2 - segment.x1, segment.y2 - segment.y1
        length = math.hypot(dx, dy)
        end = min(0.45, (segment.width_px / 2 + 6) / length)
        at = rng.uniform(end, 1 - end)
        x, y = round(segment.x1 + dx * at), round(segment.y1 + dy * at)
        if self._layout.elements[y, x] != segment.element:
            return None
        return x, y, math.atan2(dy, dx), segment.width_px, segment.element

    def _on_edge(self) -> tuple[float, float, float, float, int, _Window] | None:
        """A point on the edge of copper, away from corners.

        Returns x and y in the window, direction outward, thickness of the copper behind it in px, element, window.
        """
        rng = self._rng
        if rng.random() < 0.7:
            spot = self._on_trace()
            if spot is None:
                return None
            x, y, angle, _, element = spot
            outward = angle + rng.choice((-1, 1)) * math.pi / 2
        else:
            x, y = self._point()
            element = int(self._layout.elements[y, x])
            outward = rng.randrange(8) * math.pi / 4
            if element == 0:
                return None
        if element in self._layout.lettering:
            return None
        window = self._window(x, y)
        if window is None:
            return None
        own = window.elements == element
        dx, dy = math.cos(outward), math.sin(outward)
        edge = self._march(own, x - window.x, y - window.y, dx, dy)
        if edge is None:
            return None
        ex, ey = x - window.x + dx * edge, y - window.y + dy * edge
        thickness = self._march(own, round(ex - dx), round(ey - dy), -dx, -dy) or float(_HALF)
        # A straight edge has as much copper on its left as on its right, and none in front.
        side = 9
        for step in (-side, side):
            px, py = ex - dy * step, ey + dx * step
            behind = own[self._at(py - 2.5 * dy), self._at(px - 2.5 * dx)]
            before = own[self._at(py + 2.5 * dy), self._at(px + 2.5 * dx)]
            if not behind or before:
                return None
        # Where a trace meets its pad, a bite and a spur are hard to tell from the corner that stands there.
        if self._met(window, self._disc(ex, ey, 13)) != {element}:
            return None
        return ex, ey, outward, thickness, element, window

    @staticmethod
    def _at(value: float) -> int:
        return min(max(round(value), 0), _WINDOW - 1)

    @staticmethod
    def _march(own: NDArray[np.bool_], x: float, y: float, dx: float, dy: float) -> float | None:
        """Steps from (x, y) until the copper ends; None if it does not end within the window."""
        for step in range(1, _WINDOW):
            px, py = round(x + dx * step), round(y + dy * step)
            if not (0 <= px < _WINDOW and 0 <= py < _WINDOW):
                return None
            if not own[py, px]:
                return float(step)
        return None

    def _point(self) -> tuple[int, int]:
        height, width = self._layout.elements.shape
        return self._rng.randrange(_HALF // 2, width - _HALF // 2), self._rng.randrange(_HALF, height - _HALF)

    def _anywhere(self, copper: bool) -> _Window | None:
        for _ in range(40):
            x, y = self._point()
            if (self._layout.elements[y, x] != 0) == copper:
                return self._window(x, y)
        return None

    def _window(self, x: int, y: int) -> _Window | None:
        """The window with (x, y) near its middle; None at the edge of the web."""
        height, width = self._layout.elements.shape
        left, top = x - _HALF, y - _HALF
        if top < 0 or top + _WINDOW > height or left < 0 or left + _WINDOW > width:
            return None
        rows, columns = slice(top, top + _WINDOW), slice(left, left + _WINDOW)
        return _Window(left, top, self._layout.art[rows, columns], self._layout.elements[rows, columns])

    def _fill(self, points: list[tuple[float, float]]) -> Mask:
        cover = np.zeros((_WINDOW, _WINDOW), np.uint8)
        fixed = np.rint(np.array(points, np.float64) * (1 << _SHIFT)).astype(np.int32)
        cv2.fillPoly(cover, [fixed], 255, cv2.LINE_AA, _SHIFT)
        return cover

    def _blob(self, x: float, y: float, along: float, across: float, angle: float) -> Mask:
        """An irregular ellipse with half axes `along` the angle and `across` it."""
        rng = self._rng
        turn, points = rng.uniform(0, math.tau), []
        cos, sin = math.cos(angle), math.sin(angle)
        for i in range(11):
            at = turn + i * math.tau / 11
            u, v = along * math.cos(at) * rng.uniform(0.82, 1.2), across * math.sin(at) * rng.uniform(0.82, 1.2)
            points.append((x + u * cos - v * sin, y + u * sin + v * cos))
        return self._fill(points)

    def _stain(self, largest_px: float) -> Mask:
        """A blob in the middle of the window with half axes from 2.2 px; small ones are the more frequent."""
        rng = self._rng
        along = 2.2 + (largest_px - 2.2) * rng.random() ** 1.6
        across = max(2.2, along * rng.uniform(0.45, 1.0))
        return self._blob(_HALF + rng.random(), _HALF + rng.random(), along, across, rng.uniform(0, math.pi))

    def _band(self, x: float, y: float, angle: float, half_length: float, width: float) -> Mask:
        """A ragged band across the direction `angle`: `half_length` to both sides, `width` along it."""
        rng = self._rng
        ax, ay = math.cos(angle), math.sin(angle)
        lean = rng.uniform(-0.25, 0.25)
        sides: list[list[tuple[float, float]]] = [[], []]
        for i in range(5):
            across = half_length * (i / 2 - 1)
            for side, sign in zip(sides, (-1, 1), strict=True):
                along = sign * width / 2 * rng.uniform(0.9, 1.35) + lean * across
                side.append((x + ax * along - ay * across, y + ay * along + ax * across))
        return self._fill(sides[0] + sides[1][::-1])

    @staticmethod
    def _disc(x: float, y: float, radius: float) -> NDArray[np.bool_]:
        disc = np.zeros((_WINDOW, _WINDOW), np.uint8)
        cv2.circle(disc, (round(x), round(y)), round(radius), 1, -1)
        return disc > 0

    @staticmethod
    def _pieces(mask: NDArray[np.bool_]) -> int:
        return int(cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)[0]) - 1

    @staticmethod
    def _met(window: _Window, mask: NDArray[np.bool_]) -> set[int]:
        return set(np.unique(window.elements[mask]).tolist()) - {0}

    @staticmethod
    def _on_board(window: _Window, mask: NDArray[np.bool_]) -> bool:
        return bool((window.art[mask] >= SUBSTRATE - _CLEAN_SUBSTRATE).all())

    @staticmethod
    def _holes_in(window: _Window, cover: Mask, margin: int = 1) -> bool:
        """Whether the defect comes nearer than `margin` px to a drilled hole or the belt."""
        grown = cv2.dilate((cover > 40).astype(np.uint8), np.ones((2 * margin + 1, 2 * margin + 1), np.uint8)) > 0
        return bool((window.art[grown] < (BELT + SUBSTRATE) // 2).any())

    def _placed(self, label: str, window: _Window, cover: Mask, changed: NDArray[np.bool_], code: int) -> Placed | None:
        """Measure the box; None where too little is changed to tell the defect from a rough edge."""
        contrast = round(self._rng.uniform(FAINTEST, 1.0), 3)
        if int(changed.sum()) * contrast < _LEAST_PX[label]:
            return None
        rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
        box = (
            max(window.x + int(columns[0]) - BOX_MARGIN_PX, 0),
            window.y + int(rows[0]) - BOX_MARGIN_PX,
            min(window.x + int(columns[-1]) + 1 + BOX_MARGIN_PX, self._layout.art.shape[1]),
            window.y + int(rows[-1]) + 1 + BOX_MARGIN_PX,
        )
        used_rows, used_columns = np.flatnonzero(cover.any(axis=1)), np.flatnonzero(cover.any(axis=0))
        top, left = int(used_rows[0]), int(used_columns[0])
        tight = cover[top : int(used_rows[-1]) + 1, left : int(used_columns[-1]) + 1].copy()
        return Placed(label, box, contrast, window.x + left, window.y + top, tight, code)
