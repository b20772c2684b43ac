"""From pixels to millimetres: the maps of a scale calibration, and what one pixel is worth at each place.

Pixels are those of the picture as it is judged; x to the right, y down, whole numbers in the middle of a pixel.
"""

import cv2
import numpy as np
import numpy.typing as npt

from station.calibration import PlaneMap, WebMap

Points = npt.NDArray[np.float64]
"""`[n, 2]`"""


def to_mm(plane: PlaneMap | WebMap, points_px: Points) -> Points:
    """Where pixels `[n, 2]` lie on the plane of the parts, in mm from an origin of the target's own."""
    match plane:
        case PlaneMap():
            return _plane_to_mm(plane, points_px)
        case WebMap():
            return _web_to_mm(plane, points_px)


def _plane_to_mm(plane: PlaneMap, points_px: Points) -> Points:
    straight = points_px
    if plane.camera_matrix is not None:
        straight = undistorted(
            points_px, np.reshape(plane.camera_matrix, (3, 3)), np.asarray(plane.distortion, np.float64)
        )
    homogeneous = np.column_stack([straight, np.ones(len(straight))]) @ np.reshape(plane.homography, (3, 3)).T
    return np.asarray(homogeneous[:, :2] / homogeneous[:, 2:], np.float64)


def undistorted(points_px: Points, camera_matrix: Points, distortion: npt.NDArray[np.float64]) -> Points:
    """The places, in pixels, where the points would be without the lens's distortion."""
    found = cv2.undistortPoints(points_px.reshape(-1, 1, 2), camera_matrix, distortion, P=camera_matrix)
    return np.asarray(found.reshape(-1, 2), np.float64)


def _web_to_mm(web: WebMap, points_px: Points) -> Points:
    x, y = points_px[:, 0] - web.centre_px, points_px[:, 1]
    across = np.polynomial.polynomial.polyval(x, np.asarray(web.across)) + web.across_per_line * y
    along = np.polynomial.polynomial.polyval(x, np.asarray(web.along)) + web.along_per_line * y
    return np.column_stack([across, along])


def pixel_mm(plane: PlaneMap | WebMap, x_px: float, y_px: float) -> tuple[float, float, float]:
    """What a pixel is worth there: (mm along a row, mm along a column, mm² of its area)."""
    here = np.array([x_px, y_px])
    steps = here + np.array([[-0.5, 0], [0.5, 0], [0, -0.5], [0, 0.5]])
    left, right, top, bottom = to_mm(plane, steps)
    along_row, along_column = right - left, bottom - top
    area = abs(along_row[0] * along_column[1] - along_row[1] * along_column[0])
    return float(np.hypot(*along_row)), float(np.hypot(*along_column)), float(area)


def pixel_range_mm(plane: PlaneMap | WebMap, width_px: int, height_px: int, places: int = 9) -> tuple[float, float]:
    """Least and greatest side of a pixel (the root of its area) over the picture."""
    sides = [
        pixel_mm(plane, float(x), float(y))[2] ** 0.5
        for x in np.linspace(0, width_px - 1, places)
        for y in np.linspace(0, height_px - 1, places)
    ]
    return min(sides), max(sides)
