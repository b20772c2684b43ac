"""Printed targets of known size: their geometry, their drawing, and where their points stand in a picture.

Three kinds: a ChArUco board (a chessboard with coded markers, which may be seen in part), a grid of circles, and an
asymmetric grid, each second row of which is shifted by half a step. They are found through OpenCV's detectors.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt

from station.errors import CalibrationError
from station.messages import Pixels

TargetKind = Literal["charuco", "circles", "asymmetric"]

DICTIONARIES = {
    "4x4": cv2.aruco.DICT_4X4_1000,
    "5x5": cv2.aruco.DICT_5X5_1000,
    "6x6": cv2.aruco.DICT_6X6_1000,
}
LEAST_POINTS = 8
_LEAST_BLOB_PX = 12.0
_LEAST_INERTIA = 0.08
"""A circle that is seen more oblong than 3.5 to 1 is none; the bar below the target must not be taken for one."""
_LIKE = 1.6
"""Circles of one target differ by less than this in diameter, also when it is tilted."""
_MANY = 400
"""With more candidates OpenCV's graph of neighbours takes seconds and, with noise, minutes; clustering stays fast."""
_STRETCHES = (1.0, 0.5, 2.0, 0.7, 1.4, 0.33, 3.0)
"""How much a picture with oblong pixels is stretched along its lines before the target is looked for in it."""

Points = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Target:
    """A printed target.

    Attributes:
        kind: which form.
        columns, rows: squares of a ChArUco board; circles in a row, and rows.
        pitch_mm: side of a square; distance of two circles in a row; of an asymmetric grid, distance of two rows,
            which is half of that of two circles in a row.
        dot_mm: side of a marker; diameter of a circle.
        dictionary: bits of a marker, for a ChArUco board.

    Raises:
        CalibrationError: the geometry contradicts itself.
    """

    kind: TargetKind
    columns: int
    rows: int
    pitch_mm: float
    dot_mm: float
    dictionary: str = "5x5"

    def __post_init__(self) -> None:
        if min(self.columns, self.rows) < 3 or self.columns * self.rows > 4000:  # noqa: PLR2004
            raise CalibrationError(
                f"target of {self.columns}×{self.rows}: at least 3×3 are needed, at most 4000 in all"
            )
        if not (self.pitch_mm > 0 and self.dot_mm > 0):
            raise CalibrationError(f"target: sizes of {self.pitch_mm:g} and {self.dot_mm:g} mm; both must be above 0")
        if self.kind == "asymmetric" and self.rows % 2 == 0:
            raise CalibrationError(
                f"target of {self.rows} rows: an asymmetric grid with an even number of rows looks the same both ways; "
                "take an odd one"
            )
        free = self.pitch_mm if self.kind != "asymmetric" else self.pitch_mm * math.sqrt(2)
        if self.dot_mm >= free * 0.95:
            raise CalibrationError(
                f"target: {self.dot_mm:g} mm do not fit into {free:g} mm with a white rim; at most 0.95 of it"
            )
        if self.kind == "charuco" and self.dictionary not in DICTIONARIES:
            raise CalibrationError(f"target: dictionary {self.dictionary!r}; allowed: {', '.join(DICTIONARIES)}")
        if self.kind == "charuco" and self.columns * self.rows // 2 > 1000:  # noqa: PLR2004
            raise CalibrationError(f"target of {self.columns}×{self.rows}: there are 1000 different markers only")

    @property
    def words(self) -> str:
        """The target in one line."""
        match self.kind:
            case "charuco":
                form = f"ChArUco {self.columns}×{self.rows}, squares {self.pitch_mm:g} mm, markers {self.dot_mm:g} mm"
                return f"{form}, {self.dictionary}"
            case "circles":
                return f"circles {self.columns}×{self.rows}, every {self.pitch_mm:g} mm, {self.dot_mm:g} mm across"
            case "asymmetric":
                form = f"asymmetric circles {self.columns}×{self.rows}, rows every {self.pitch_mm:g} mm"
                return f"{form}, {self.dot_mm:g} mm across"

    @property
    def points_mm(self) -> Points:
        """All points, `[n, 2]`: the inner corners of a board, row by row; the centres of the circles."""
        if self.kind == "charuco":
            return np.asarray(self.board().getChessboardCorners(), np.float64)[:, :2]
        row, column = np.divmod(np.arange(self.columns * self.rows), self.columns)
        if self.kind == "circles":
            return np.column_stack([column, row]) * self.pitch_mm
        return np.column_stack([2 * column + row % 2, row]) * self.pitch_mm

    def board(self) -> cv2.aruco.CharucoBoard:
        """OpenCV's form of a ChArUco board."""
        dictionary = cv2.aruco.getPredefinedDictionary(DICTIONARIES[self.dictionary])
        return cv2.aruco.CharucoBoard((self.columns, self.rows), self.pitch_mm, self.dot_mm, dictionary)


@dataclass(frozen=True, slots=True)
class Sighting:
    """The points of a target that were found in a picture.

    Attributes:
        name: of the picture.
        points_px, points_mm: `[n, 2]` each, the same points in the same order.
    """

    name: str
    points_px: Points = field(repr=False)
    points_mm: Points = field(repr=False)


def find(target: Target, name: str, pixels: Pixels, stretches: Sequence[float] = (1.0,)) -> Sighting:
    """Find a target in a picture.

    Args:
        target: which one.
        name: of the picture, for the error's text.
        pixels: grey or BGR.
        stretches: tried in turn: the picture is made so many times as high first.

    Raises:
        CalibrationError: it is not there, or too little of it.
    """
    colour = pixels.ndim == 3  # noqa: PLR2004
    grey = np.asarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY), np.uint8) if colour else pixels
    best: tuple[Points, Points] | None = None
    for stretch in stretches:
        size = (grey.shape[1], max(1, round(grey.shape[0] * stretch)))
        shown = grey
        if stretch != 1:
            shown = np.asarray(cv2.resize(grey, size, interpolation=cv2.INTER_LINEAR), np.uint8)
        found = _find_board(target, shown) if target.kind == "charuco" else _find_circles(target, shown)
        if found is None or (best is not None and len(found[0]) <= len(best[0])):
            continue
        factor = size[1] / grey.shape[0]
        best = found[0] * (1.0, 1 / factor) + (0.0, 0.5 / factor - 0.5), found[1]
        if len(best[0]) == len(target.points_mm):
            break
    if best is None:
        whole = "" if target.kind == "charuco" else "; all of its circles must be in the picture"
        raise CalibrationError(
            f"{name}: the target ({target.words}) is not in it, or is too small, too dark, blurred or of other "
            f"numbers{whole}"
        )
    points_px, points_mm = best
    sides = [len(np.unique(np.round(points_mm[:, axis] / target.pitch_mm))) for axis in (0, 1)]
    if len(points_px) < LEAST_POINTS or min(sides) < 2:  # noqa: PLR2004
        raise CalibrationError(
            f"{name}: shows {len(points_px)} points of the target, in {sides[0]} columns and {sides[1]} rows; at least "
            f"{LEAST_POINTS} in 2 of each are needed"
        )
    return Sighting(name, points_px, points_mm)


def stretches_for(mm_per_line: float | None, target: Target, width_px: int) -> tuple[float, ...]:
    """How to stretch a line-scan camera's picture; likely ones first, where the length of a line is known."""
    if mm_per_line is None:
        return _STRETCHES
    # If the target fills the web, a pixel is so wide; half of that where it does not.
    across = float(np.ptp(target.points_mm[:, 0])) / width_px
    return (mm_per_line / across, 2 * mm_per_line / across, *_STRETCHES)


def _find_board(target: Target, grey: Pixels) -> tuple[Points, Points] | None:
    detector = cv2.aruco.CharucoDetector(target.board())
    corners, ids, _, _ = detector.detectBoard(grey)
    if ids is None or len(ids) == 0:
        return None
    numbers = np.asarray(ids).ravel()
    return np.asarray(corners, np.float64).reshape(-1, 2), target.points_mm[numbers]


def _find_circles(target: Target, grey: Pixels) -> tuple[Points, Points] | None:
    parameters = cv2.SimpleBlobDetector.Params()
    parameters.minArea = _LEAST_BLOB_PX
    parameters.maxArea = float(grey.size) / (target.columns * target.rows)
    parameters.minDistBetweenBlobs = 3.0
    parameters.filterByConvexity = True
    parameters.minConvexity = 0.8
    parameters.filterByInertia = True
    parameters.minInertiaRatio = _LEAST_INERTIA
    blobs = cv2.SimpleBlobDetector.create(parameters).detect(grey)
    count = target.columns * target.rows
    if len(blobs) < count:
        return None
    # Print beside the target has dots as well, but smaller ones than the target's.
    usual = float(np.median(sorted((blob.size for blob in blobs), reverse=True)[:count]))
    points = [blob.pt for blob in blobs if usual / _LIKE < blob.size < usual * _LIKE]
    candidates = np.asarray(points, np.float32).reshape(-1, 1, 2)
    form = cv2.CALIB_CB_SYMMETRIC_GRID if target.kind == "circles" else cv2.CALIB_CB_ASYMMETRIC_GRID
    ways = (0, cv2.CALIB_CB_CLUSTERING) if len(points) <= _MANY else (cv2.CALIB_CB_CLUSTERING,)
    for way in ways:
        # Without a detector it takes the points themselves, which its type stubs do not know.
        is_found, centres = cv2.findCirclesGrid(  # type: ignore[call-overload]
            candidates, (target.columns, target.rows), form | way, None, cv2.CirclesGridFinderParameters()
        )
        if is_found:
            return _centred(grey, np.asarray(centres, np.float64).reshape(-1, 2)), target.points_mm
    return None


def _centred(grey: Pixels, centres: Points) -> Points:
    """Centres of dark circles by their weight: the detector's own are means over a few thresholds."""
    apart = np.linalg.norm(centres[:, None] - centres[None], axis=2)
    np.fill_diagonal(apart, np.inf)
    refined = centres.copy()
    for index, (x, y) in enumerate(centres):
        reach = max(2, int(apart[index].min() * 0.5))
        top, left = max(0, round(y) - reach), max(0, round(x) - reach)
        window = grey[top : round(y) + reach + 1, left : round(x) + reach + 1].astype(np.float64)
        dark, light = np.quantile(window, 0.02), np.quantile(window, 0.9)
        weight = np.clip((light - window) / max(light - dark, 1.0) - 0.15, 0, None)
        count, labels = cv2.connectedComponents((weight > 0).astype(np.uint8))
        own = labels[min(round(y) - top, window.shape[0] - 1), min(round(x) - left, window.shape[1] - 1)]
        if count < 2 or own == 0:  # noqa: PLR2004
            continue
        weight[labels != own] = 0
        rows, columns = np.mgrid[: window.shape[0], : window.shape[1]]
        refined[index] = (
            left + float((columns * weight).sum() / weight.sum()),
            top + float((rows * weight).sum() / weight.sum()),
        )
    return refined


@dataclass(frozen=True, slots=True)
class Shape:
    """Something black on a sheet, in mm from its upper left corner.

    Attributes:
        kind: a rectangle, or a circle.
        x, y: upper left corner; centre.
        width, height: of a rectangle; of a circle the diameter, twice.
    """

    kind: Literal["rectangle", "circle"]
    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True, slots=True)
class Sheet:
    """A target with its white rim, ready to be printed.

    Attributes:
        width_mm, height_mm: of the whole sheet.
        shapes: what is black.
        text: one line below.
        text_at_mm: where that line begins, and its height: x, y of the baseline, height.
    """

    width_mm: float
    height_mm: float
    shapes: tuple[Shape, ...]
    text: str
    text_at_mm: tuple[float, float, float]


def sheet(target: Target) -> Sheet:
    """Draw a target, with a bar of whole centimetres below that shows whether the printer kept the size."""
    shapes = list(_board_shapes(target) if target.kind == "charuco" else _circle_shapes(target))
    rim = max(target.pitch_mm, 8.0)
    right = max(shape.x + (shape.width if shape.kind == "rectangle" else shape.width / 2) for shape in shapes)
    bottom = max(shape.y + (shape.height if shape.kind == "rectangle" else shape.height / 2) for shape in shapes)
    width = max(right + 2 * rim, 60.0)
    bar = min(100.0, math.floor((width - 2 * rim) / 10) * 10.0)
    placed = [Shape(one.kind, one.x + rim, one.y + rim, one.width, one.height) for one in shapes]
    bar_top = bottom + 2 * rim
    placed.append(Shape("rectangle", rim, bar_top, bar, 2.0))
    letters = min(2.5, (width - 2 * rim) / 50)
    text = f"{target.words}; the bar is {bar:g} mm"
    return Sheet(width, bar_top + 12.0, tuple(placed), text, (rim, bar_top + 4.0 + letters, letters))


def _board_shapes(target: Target) -> Iterator[Shape]:
    board = target.board()
    dictionary = cv2.aruco.getPredefinedDictionary(DICTIONARIES[target.dictionary])
    bits = dictionary.markerSize + 2
    marked = set()
    for number, corners in zip(np.asarray(board.getIds()).ravel(), board.getObjPoints(), strict=True):
        left, top = np.asarray(corners)[:, :2].min(axis=0)
        marked.add((int(left // target.pitch_mm), int(top // target.pitch_mm)))
        picture = cv2.aruco.generateImageMarker(dictionary, int(number), bits)
        side = target.dot_mm / bits
        for row, column in zip(*np.nonzero(np.asarray(picture) == 0), strict=True):
            yield Shape("rectangle", float(left) + column * side, float(top) + row * side, side, side)
    for row in range(target.rows):
        for column in range(target.columns):
            if (column, row) not in marked:
                at = column * target.pitch_mm, row * target.pitch_mm
                yield Shape("rectangle", *at, target.pitch_mm, target.pitch_mm)


def _circle_shapes(target: Target) -> Iterator[Shape]:
    for x, y in target.points_mm + target.dot_mm / 2:
        yield Shape("circle", float(x), float(y), target.dot_mm, target.dot_mm)
