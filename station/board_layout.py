"""Lays out the copper of one circuit board: what a good board may look like.

A layout is drawn by a small grammar: pads, vias and lettering are placed where there is room, then pads are joined
by traces that run in steps of 45 degrees. Three rules make a good board different from a defective one, and the tests
hold them:

* every trace ends on a pad at both ends, so a stub is never legal;
* copper that is not joined keeps `CLEARANCE_PX`, so a thin bridge is never legal;
* the traces of one net form a tree, so a cut anywhere in a trace separates two pads.

Look-alikes are legal on purpose: drilled holes in copper, test discs on bare substrate, lettering, stitching vias in
ground areas, rough edges.
"""

# The figures of a drawing are its content: naming each one would hide the drawing.
# ruff: noqa: PLR2004

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from random import Random

import cv2
import numpy as np
from numpy.typing import NDArray

#: Reflectance codes of the drawing; the imaging model turns them into grey values. Seen through a hole is the belt.
BELT, SUBSTRATE, COPPER = 0, 48, 208

#: Lines from the start of one board to the start of the next.
PITCH_LINES = 1280

#: Smallest distance between copper that is not joined.
CLEARANCE_PX = 8

# Without letters that enclose a patch of substrate the size of a pin-hole.
_LETTERS = "CEFGHJKLMNSTUVXYZ12357"
_FONT = cv2.FONT_HERSHEY_SIMPLEX

Point = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Segment:
    """One straight piece of trace, from (x1, y1) to (x2, y2), in pixels of the layout."""

    x1: int
    y1: int
    x2: int
    y2: int
    width_px: int
    element: int


@dataclass(frozen=True, slots=True)
class Layout:
    """The drawing of one board on its stretch of web.

    art: uint8 [PITCH_LINES, width], reflectance codes.
    elements: uint16 of the same shape, 0 where there is no copper, else the number of the pad, trace or area
        (a drilled hole belongs to its pad).
    nets: int32 [elements], the net each element belongs to.
    segments: all straight pieces of trace.
    lettering: elements that are text.
    """

    art: NDArray[np.uint8]
    elements: NDArray[np.uint16]
    nets: NDArray[np.int32]
    segments: tuple[Segment, ...]
    lettering: frozenset[int]


@dataclass(frozen=True, slots=True)
class _Pad:
    element: int
    x: int
    y: int
    half_x: int
    half_y: int


@dataclass(frozen=True, slots=True)
class _Zone:
    x1: int
    y1: int
    x2: int
    y2: int

    @property
    def width(self) -> int:
        return self.x2 - self.x1

    @property
    def height(self) -> int:
        return self.y2 - self.y1


def roughness_maps(
    rng: np.random.Generator, width_px: int, amplitude_px: float
) -> tuple[NDArray[np.int16], NDArray[np.uint16]]:
    """Displacement of every pixel, as `cv2.remap` takes it, that makes etched edges rough by `amplitude_px` rms."""
    grid = [np.arange(width_px, dtype=np.float32)[None, :], np.arange(PITCH_LINES, dtype=np.float32)[:, None]]
    moved = []
    for axis in grid:
        field = cv2.GaussianBlur(rng.standard_normal((PITCH_LINES, width_px), dtype=np.float32), (0, 0), 2.5)
        moved.append(axis + field * np.float32(amplitude_px / float(field.std())))
    fixed, fraction = cv2.convertMaps(moved[0], moved[1], cv2.CV_16SC2)
    return fixed.astype(np.int16, copy=False), fraction.astype(np.uint16, copy=False)


def draw_layout(rng: Random, width_px: int, roughness: tuple[NDArray[np.int16], NDArray[np.uint16]]) -> Layout:
    """Draw one board of random design; the same `rng` state gives the same board."""
    board = _Draughtsman(rng, width_px)
    board.draw()
    return board.finished(roughness)


class _Draughtsman:
    """Holds the drawing while it is being made."""

    def __init__(self, rng: Random, width_px: int) -> None:
        self._rng = rng
        self._art = np.zeros((PITCH_LINES, width_px), np.uint8)
        self._elements = np.zeros((PITCH_LINES, width_px), np.uint16)
        self._parent = [0]
        self._pads: list[_Pad] = []
        self._degree: dict[int, int] = {}
        self._segments: list[Segment] = []
        self._holes: list[tuple[int, int, int]] = []
        self._lettering: set[int] = set()
        gap = rng.randint(28, 72)
        first = gap // 2
        side = rng.randint(5, 12)
        self._body = _Zone(side, first, width_px - side, PITCH_LINES - (gap - first))
        # Each board has its own design rules, as real ones do.
        self._thin = rng.choice((6, 7, 8, 9, 11))
        self._wide = rng.choice((14, 17, 20, 24))
        self._via = rng.randint(11, 14)

    def draw(self) -> None:
        body = self._body
        cv2.rectangle(self._art, (body.x1, body.y1), (body.x2 - 1, body.y2 - 1), SUBSTRATE, -1)
        cut = self._rng.randint(6, 22)
        for x, dx in ((body.x1, cut), (body.x2 - 1, -cut)):
            for y, dy in ((body.y1, cut), (body.y2 - 1, -cut)):
                cv2.fillPoly(self._art, [np.array([(x, y), (x + dx, y), (x, y + dy)], np.int32)], BELT)
        for zone in self._zones():
            draw = self._rng.choices(
                (self._connector, self._package, self._bus, self._power, self._passives, self._test_points),
                weights=(25, 22, 22, 12, 14, 5),
            )[0]
            draw(zone)
        self._route_all()
        for _ in range(self._rng.randint(1, 3)):
            self._ground_area()
        for _ in range(self._rng.randint(1, 4)):
            self._text()

    def finished(self, roughness: tuple[NDArray[np.int16], NDArray[np.uint16]]) -> Layout:
        for x, y, radius in self._holes:
            cv2.circle(self._art, (x, y), radius, BELT, -1, cv2.LINE_AA)
        art = cv2.remap(self._art, roughness[0], roughness[1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        elements = cv2.remap(
            self._elements, roughness[0], roughness[1], cv2.INTER_NEAREST, borderMode=cv2.BORDER_REPLICATE
        )
        nets = np.array([self._root(element) for element in range(len(self._parent))], np.int32)
        return Layout(
            art.astype(np.uint8, copy=False),
            elements.astype(np.uint16, copy=False),
            nets,
            tuple(self._segments),
            frozenset(self._lettering),
        )

    def _new_element(self) -> int:
        self._parent.append(len(self._parent))
        return len(self._parent) - 1

    def _root(self, element: int) -> int:
        while self._parent[element] != element:
            self._parent[element] = self._parent[self._parent[element]]
            element = self._parent[element]
        return element

    def _free(self, x1: int, y1: int, x2: int, y2: int, clearance: int) -> bool:
        """Whether the box lies on the board and no copper comes nearer than `clearance`."""
        body = self._body
        if x1 < body.x1 + 8 or y1 < body.y1 + 8 or x2 > body.x2 - 8 or y2 > body.y2 - 8:
            return False
        around = self._elements[y1 - clearance : y2 + clearance, max(x1 - clearance, 0) : x2 + clearance]
        return not around.any()

    def _pad(self, shape: str, x: int, y: int, half_x: int, half_y: int, hole: int = 0) -> _Pad | None:
        """Place a pad (`disc`, `oval` or `rect`) with an optional drilled hole; None where there is no room."""
        if not self._free(x - half_x, y - half_y, x + half_x + 1, y + half_y + 1, CLEARANCE_PX + 1):
            return None
        element = self._new_element()
        for picture, code, line in ((self._art, COPPER, cv2.LINE_AA), (self._elements, element, cv2.LINE_8)):
            if shape == "disc":
                cv2.circle(picture, (x, y), half_x, code, -1, line)
            elif shape == "oval":
                radius = min(half_x, half_y)
                dx, dy = half_x - radius, half_y - radius
                cv2.line(picture, (x - dx, y - dy), (x + dx, y + dy), code, 2 * radius + 1, line)
            else:
                cv2.rectangle(picture, (x - half_x, y - half_y), (x + half_x, y + half_y), code, -1)
        if hole:
            self._holes.append((x, y, hole))
        pad = _Pad(element, x, y, half_x, half_y)
        self._pads.append(pad)
        self._degree[element] = 0
        return pad

    def _via_pad(self, x: int, y: int) -> _Pad | None:
        return self._pad("disc", x, y, self._via, self._via, max(5, round(self._via * 0.48)))

    def _trace(self, points: Sequence[Point], width: int, first: _Pad, last: _Pad) -> bool:
        """Join two pads along `points`; False (and nothing drawn) where something is in the way or they are joined."""
        root_a, root_b = self._root(first.element), self._root(last.element)
        if root_a == root_b:
            return False
        reach = width // 2 + CLEARANCE_PX + 2
        xs, ys = [p[0] for p in points], [p[1] for p in points]
        x1, y1, x2, y2 = min(xs) - reach, min(ys) - reach, max(xs) + reach + 1, max(ys) + reach + 1
        body = self._body
        if x1 < body.x1 + 2 or y1 < body.y1 + 2 or x2 > body.x2 - 2 or y2 > body.y2 - 2:
            return False
        if self._blocked(points, first.element, last.element):
            return False
        path = np.array(points, np.int32)
        swept = np.zeros((y2 - y1, x2 - x1), np.uint8)
        cv2.polylines(swept, [path - (x1, y1)], False, 1, width + 2 * CLEARANCE_PX)
        met = self._elements[y1:y2, x1:x2][swept > 0]
        if ((met != 0) & (met != first.element) & (met != last.element)).any():
            return False
        element = self._new_element()
        drawn = np.zeros_like(swept)
        cv2.polylines(drawn, [path - (x1, y1)], False, 1, width)
        area = self._elements[y1:y2, x1:x2]
        area[(drawn > 0) & (area == 0)] = element
        cv2.polylines(self._art, [path], False, COPPER, width, cv2.LINE_AA)
        for (xa, ya), (xb, yb) in pairwise(points):
            if (xa, ya) != (xb, yb):
                self._segments.append(Segment(xa, ya, xb, yb, width, element))
        self._parent[self._root(last.element)] = root_a
        self._parent[element] = root_a
        self._degree[first.element] += 1
        self._degree[last.element] += 1
        return True

    def _blocked(self, points: Sequence[Point], first: int, last: int) -> bool:
        """Whether other copper stands on the middle line; finds most obstacles without drawing the whole trace."""
        allowed = (0, first, last)
        for (xa, ya), (xb, yb) in pairwise(points):
            length = max(abs(xb - xa), abs(yb - ya))
            for step in range(0, length, 11):
                if int(self._elements[ya + (yb - ya) * step // length, xa + (xb - xa) * step // length]) not in allowed:
                    return True
        return False

    def _zones(self) -> list[_Zone]:
        body, rng = self._body, self._rng
        zones = []
        y = body.y1 + 14
        while body.y2 - 14 - y >= 110:
            height = min(rng.randint(150, 320), body.y2 - 14 - y)
            if rng.random() < 0.45:
                middle = rng.randint(body.x1 + body.width // 3, body.x2 - body.width // 3)
                zones.append(_Zone(body.x1 + 12, y, middle - 8, y + height))
                zones.append(_Zone(middle + 8, y, body.x2 - 12, y + height))
            else:
                zones.append(_Zone(body.x1 + 12, y, body.x2 - 12, y + height))
            y += height + 10
        return zones

    def _connector(self, zone: _Zone) -> None:
        rng = self._rng
        half_x = rng.randint(15, 26)
        half_y = half_x + rng.choice((0, 0, 4, 8))
        hole = round(half_x * rng.uniform(0.42, 0.62))
        pitch_x = 2 * half_x + rng.randint(22, 60)
        pitch_y = 2 * half_y + rng.randint(24, 90)
        first_x = zone.x1 + half_x + 4 + rng.randint(0, 20)
        for row, y in enumerate(range(zone.y1 + half_y + 8, zone.y2 - half_y - 8, pitch_y)):
            for column, x in enumerate(range(first_x, zone.x2 - half_x - 4, pitch_x)):
                if row == 0 and column == 0:
                    self._pad("rect", x, y, half_x, half_x, hole)
                else:
                    self._pad("oval" if half_y > half_x else "disc", x, y, half_x, half_y, hole)

    def _package(self, zone: _Zone) -> None:
        """Two facing rows of surface pads, each with a way out to a via."""
        rng = self._rng
        across, along = rng.randint(7, 12), rng.randint(16, 26)
        pitch = 2 * across + rng.randint(15, 24)
        upright = zone.height > 200 and rng.random() < 0.4
        extent = zone.height if upright else zone.width
        count = min((extent - 40) // pitch, rng.randint(4, 14))
        start = (zone.y1 if upright else zone.x1) + (extent - count * pitch) // 2 + pitch // 2
        middle = (zone.x1 + zone.x2) // 2 if upright else (zone.y1 + zone.y2) // 2
        apart = along + rng.randint(14, 30)
        for side in (-1, 1):
            for i in range(count):
                at = start + i * pitch
                out = middle + side * apart
                way = side * (along + self._via + 26 + (i % 3) * (2 * self._via + 12))
                if upright:
                    pad = self._pad("rect", out, at, along, across)
                    end = self._via_pad(out + way, at) if rng.random() < 0.75 else None
                else:
                    pad = self._pad("rect", at, out, across, along)
                    end = self._via_pad(at, out + way) if rng.random() < 0.75 else None
                if pad and end:
                    self._trace([(pad.x, pad.y), (end.x, end.y)], min(self._thin, across * 2 - 4), pad, end)

    def _bus(self, zone: _Zone) -> None:
        """Parallel traces with a common jog of 45 degrees, a via at each end."""
        rng = self._rng
        width = rng.choice((self._thin, self._thin, self._wide))
        radius = max(self._via, width // 2 + 5)
        pitch = radius + width // 2 + CLEARANCE_PX + rng.randint(2, 7)
        stagger = 2 * radius + CLEARANCE_PX + 4
        jog = rng.choice((0, 1, -1)) * rng.randint(24, 60)
        upright = zone.height > 230 and rng.random() < 0.5
        near, far = (zone.y1, zone.y2) if upright else (zone.x1, zone.x2)
        low, high = (zone.x1, zone.x2) if upright else (zone.y1, zone.y2)
        count = min(rng.randint(3, 14), (high - low - abs(jog) - 2 * radius - 20) // pitch)
        if count < 2 or far - near < abs(jog) + 4 * radius + 150:
            return
        base = low + radius + 10 + max(0, -jog)
        bend = near + 2 * radius + stagger + rng.randint(30, 60)
        for i in range(count):
            here, there = base + i * pitch, base + i * pitch + jog
            begin = near + radius + 10 + (i % 2) * stagger
            end = far - radius - 10 - (i % 2) * stagger
            # Shifting each bend by pitch * tan(22.5 degrees) keeps the traces parallel through the jog.
            lead = (count - i) if jog > 0 else i
            turn = bend + round(lead * pitch * 0.4142)
            course = [(here, begin), (here, turn), (there, turn + abs(jog)), (there, end)]
            if jog == 0 or not begin + radius < turn < turn + abs(jog) < end - radius:
                course = [(here, begin), (here, end)]
            points = [(a, b) if upright else (b, a) for a, b in course]
            first = self._pad("disc", *points[0], radius, radius, max(5, round(radius * 0.48)))
            last = self._pad("disc", *points[-1], radius, radius, max(5, round(radius * 0.48)))
            if first and last:
                self._trace(points, width, first, last)

    def _power(self, zone: _Zone) -> None:
        rng = self._rng
        width = rng.randint(24, 38)
        made = []
        for _ in range(rng.randint(3, 6)):
            radius = rng.randint(width // 2 + 9, width // 2 + 18)
            if zone.width <= 2 * radius + 8 or zone.height <= 2 * radius + 8:
                continue
            x = rng.randint(zone.x1 + radius + 2, zone.x2 - radius - 2)
            y = rng.randint(zone.y1 + radius + 2, zone.y2 - radius - 2)
            pad = self._pad("disc", x, y, radius, radius, rng.randint(7, max(8, radius // 2)))
            if pad:
                made.append(pad)
        for first, last in pairwise(made):
            self._join(first, last, width)

    def _passives(self, zone: _Zone) -> None:
        rng = self._rng
        for _ in range(rng.randint(4, 14)):
            half_x, half_y = rng.randint(10, 20), rng.randint(12, 24)
            spread = max(half_x, half_y) + rng.randint(8, 16)
            lying = rng.random() < 0.5
            dx, dy = (spread, 0) if lying else (0, spread)
            x = rng.randint(zone.x1 + 50, max(zone.x1 + 51, zone.x2 - 50))
            y = rng.randint(zone.y1 + 50, max(zone.y1 + 51, zone.y2 - 50))
            self._pad("rect", x - dx, y - dy, half_x, half_y)
            self._pad("rect", x + dx, y + dy, half_x, half_y)

    def _test_points(self, zone: _Zone) -> None:
        """Bare discs on the substrate: large, round and legal."""
        rng = self._rng
        for _ in range(rng.randint(2, 6)):
            radius = rng.randint(14, 24)
            x = rng.randint(zone.x1 + radius, max(zone.x1 + radius + 1, zone.x2 - radius))
            y = rng.randint(zone.y1 + radius, max(zone.y1 + radius + 1, zone.y2 - radius))
            self._pad("disc", x, y, radius, radius)

    def _join(self, first: _Pad, last: _Pad, width: int) -> bool:
        ax, ay, bx, by = first.x, first.y, last.x, last.y
        dx, dy = bx - ax, by - ay
        sx, sy = (dx > 0) - (dx < 0), (dy > 0) - (dy < 0)
        diagonal = min(abs(dx), abs(dy))
        rest_x, rest_y = (abs(dx) - diagonal) * sx, (abs(dy) - diagonal) * sy
        courses: list[list[Point]] = [
            [(ax, ay), (ax + rest_x, ay + rest_y), (bx, by)],
            [(ax, ay), (ax + diagonal * sx, ay + diagonal * sy), (bx, by)],
            [
                (ax, ay),
                (ax + rest_x // 2, ay + rest_y // 2),
                (ax + rest_x // 2 + diagonal * sx, ay + rest_y // 2 + diagonal * sy),
                (bx, by),
            ],
        ]
        self._rng.shuffle(courses)
        return any(self._trace(course, width, first, last) for course in courses)

    def _route_all(self) -> None:
        rng = self._rng
        pads = list(self._pads)
        rng.shuffle(pads)
        where = np.array([(pad.x, pad.y) for pad in pads], np.int64).reshape(-1, 2)
        for pad in pads:
            if self._degree[pad.element] >= 2:
                continue
            distance = np.abs(where - (pad.x, pad.y)).max(axis=1)
            order = np.argsort(distance, kind="stable")
            for index in order[1:9]:
                other = pads[int(index)]
                apart = int(distance[index]) - max(pad.half_x, pad.half_y) - max(other.half_x, other.half_y)
                if apart < 40 or distance[index] > 460 or self._degree[other.element] >= 3:
                    continue
                limit = 2 * min(pad.half_x, pad.half_y, other.half_x, other.half_y) - 6
                width = min(rng.choice((self._thin, self._thin, self._thin, self._wide)), limit)
                if width >= 6 and self._join(pad, other, width):
                    break

    def _ground_area(self) -> None:
        """Flood a polygon with copper where nothing else is, and stitch it with vias."""
        rng, body = self._rng, self._body
        width, height = rng.randint(140, 420), rng.randint(120, 340)
        x1 = rng.randint(body.x1 + 10, max(body.x1 + 11, body.x2 - 10 - width))
        y1 = rng.randint(body.y1 + 10, body.y2 - 10 - height)
        x2, y2 = min(x1 + width, body.x2 - 10), y1 + height
        pad = 16
        window = self._elements[y1 - pad : y2 + pad, max(x1 - pad, 0) : x2 + pad]
        left = x1 - max(x1 - pad, 0)
        margin = rng.randint(CLEARANCE_PX + 1, 14)
        disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * margin + 1, 2 * margin + 1))
        taken = cv2.dilate((window > 0).astype(np.uint8), disc)
        taken = taken[pad : pad + height, left : left + (x2 - x1)]
        cut = rng.randint(0, 60)
        w, h = x2 - x1, height
        corners = [(cut, 0), (w - 1, 0), (w - 1, h - 1 - cut), (w - 1 - cut, h - 1), (0, h - 1), (0, cut)]
        flood = np.zeros((h, w), np.uint8)
        cv2.fillPoly(flood, [np.array(corners, np.int32)], 1)
        flood[taken > 0] = 0
        # Opening takes away the slivers that no etching shop would accept, and that would look like spurs.
        smooth = cv2.morphologyEx(flood, cv2.MORPH_OPEN, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (25, 25)))
        # What two lumps have in common where they only touch is not worth calling a conductor: they are kept apart.
        neck = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (11, 11))
        count, labels, stats, _ = cv2.connectedComponentsWithStats(cv2.erode(smooth, neck), connectivity=4)
        gap = np.ones((2 * CLEARANCE_PX + 1, 2 * CLEARANCE_PX + 1), np.uint8)
        flooded = np.zeros(smooth.shape, np.bool_)
        for label in range(1, count):
            part = cv2.dilate((labels == label).astype(np.uint8), neck) > 0
            near = cv2.dilate(part.astype(np.uint8), gap) > 0
            if stats[label, cv2.CC_STAT_AREA] < 4000 or flooded[near].any():
                continue
            flooded[part] = True
            element = self._new_element()
            self._art[y1:y2, x1:x2][part] = COPPER
            self._elements[y1:y2, x1:x2][part] = element
            # The border counts as an edge only with a frame of zeros around it.
            solid = cv2.distanceTransform(np.pad(part.astype(np.uint8), 1), cv2.DIST_L2, 3)[1:-1, 1:-1].copy()
            for _ in range(rng.randint(0, 8)):
                x, y = rng.randrange(w), rng.randrange(h)
                if solid[y, x] > 22:
                    radius = rng.randint(7, 9)
                    self._holes.append((x1 + x, y1 + y, radius))
                    cv2.circle(solid, (x, y), 40, 0.0, -1)

    def _text(self) -> None:
        rng, body = self._rng, self._body
        word = "".join(rng.choice(_LETTERS) for _ in range(rng.randint(2, 5)))
        scale = rng.uniform(1.35, 2.2)
        thickness = rng.choice((3, 4, 5))
        (width, height), base = cv2.getTextSize(word, _FONT, scale, thickness)
        for _ in range(12):
            x = rng.randint(body.x1 + 12, max(body.x1 + 13, body.x2 - 12 - width))
            y = rng.randint(body.y1 + 12 + height, body.y2 - 12 - base)
            if self._free(x - 6, y - height - 6, x + width + 6, y + base + 6, CLEARANCE_PX):
                element = self._new_element()
                cv2.putText(self._art, word, (x, y), _FONT, scale, COPPER, thickness, cv2.LINE_AA)
                top, bottom = y - height - 6, y + base + 6
                ink = np.zeros((bottom - top, width + 12), np.uint8)
                cv2.putText(ink, word, (6, y - top), _FONT, scale, 1, thickness)
                self._elements[top:bottom, x - 6 : x + width + 6][ink > 0] = element
                self._lettering.add(element)
                return
