"""From the points of a printed target to a scale: an area camera's plane and lens, or a line-scan camera's web.

*Area camera, one view*: the homography from pixels to millimetres with the least squared distances
(`cv2.findHomography`); what the lens bends is left over and stated. *Several views*: first the lens
(`cv2.calibrateCamera`, k1, k2, p1, p2; Zhang, IEEE PAMI 22, 2000), then the homography of the first view, whose target
must lie where the parts lie. *Line-scan camera*: two polynomials by linear least squares; across the web of the third
degree only where the points ask for it (see `WebMap`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
import numpy.typing as npt

from station.calibration import PlaneMap, WebMap
from station.errors import CalibrationError
from station.scale import pixel_mm, pixel_range_mm, to_mm, undistorted
from station.target import Points, Sighting

LEAST_VIEWS = 3
GOOD_VIEWS = 8
LARGEST_RESIDUAL_PX = 2.0
"""A sheet that is not quite flat and a printer that is not quite exact stay below; another geometry does not."""
BENT_PX = 0.5
"""A residual of one view above this is the lens's or a bent sheet's."""
LEAST_COVERAGE = 0.5
UNSURE_FOCUS = 0.02
"""Standard error of the focal length, as a share, above which the views were too much alike."""
ENCODER_DIFFERS = 0.01
ENCODER_WRONG = 0.1
_HALVED = 0.7
_CUBIC_FROM = 12


@dataclass(frozen=True, slots=True)
class ScaleFit:
    """A scale with the figures of `station.calibration.ScaleCalibration`.

    Attributes:
        notes: lines for the report.
        warnings: one line each.
    """

    map: PlaneMap | WebMap
    mm_per_px: tuple[float, float]
    mm_per_px_range: tuple[float, float]
    points: int
    residual_px: float
    residual_greatest_px: float
    coverage: tuple[float, float]
    lens_rms_px: float | None = None
    distortion_px: float | None = None
    along_from_encoder: bool = False
    notes: tuple[str, ...] = field(default=())
    warnings: tuple[str, ...] = field(default=())


def fit_plane(views: Sequence[Sighting], size_px: tuple[int, int]) -> ScaleFit:
    """The scale of an area camera.

    Args:
        views: the first with the target where the parts lie; the others, if any, tilted, for the lens.
        size_px: width and height of the pictures.

    Raises:
        CalibrationError: two views are neither one nor several, or the points are not those of such a target.
    """
    first = views[0]
    warnings: list[str] = []
    lens = _fit_lens(views, size_px) if len(views) > 1 else None
    straight = first.points_px if lens is None else undistorted(first.points_px, lens.matrix, lens.distortion)
    homography, _ = cv2.findHomography(straight, first.points_mm, 0)
    if homography is None:
        raise CalibrationError(f"{first.name}: the points of the target lie on one line")
    plane = PlaneMap(
        homography=tuple(float(one) for one in np.asarray(homography).ravel()),
        camera_matrix=None if lens is None else tuple(float(one) for one in lens.matrix.ravel()),
        distortion=() if lens is None else tuple(float(one) for one in lens.distortion),
    )
    rms, greatest = _residual(plane, first)
    notes: list[str] = []
    if lens is None:
        if rms > BENT_PX:
            warnings.append(
                f"one view leaves {rms:.2f} px (rms) that no flat target explains: the lens bends, or the sheet does; "
                f"{GOOD_VIEWS} tilted views tell the lens"
            )
    else:
        warnings += lens.warnings
        notes += lens.notes
    coverage = _coverage([first], size_px)
    if min(coverage) < LEAST_COVERAGE:
        warnings.append(
            f"the target spans {coverage[0]:.0%} of the picture's width and {coverage[1]:.0%} of its height: beyond it "
            "the scale is extrapolated"
        )
    x, y, _ = pixel_mm(plane, (size_px[0] - 1) / 2, (size_px[1] - 1) / 2)
    return ScaleFit(
        map=plane,
        mm_per_px=(x, y),
        mm_per_px_range=pixel_range_mm(plane, *size_px),
        points=sum(len(view.points_px) for view in views),
        residual_px=rms,
        residual_greatest_px=greatest,
        coverage=coverage,
        lens_rms_px=None if lens is None else lens.rms_px,
        distortion_px=None if lens is None else lens.bends_px,
        notes=tuple(notes),
        warnings=tuple(warnings),
    )


@dataclass(frozen=True, slots=True)
class _Lens:
    matrix: Points
    distortion: npt.NDArray[np.float64]
    rms_px: float
    bends_px: float
    notes: tuple[str, ...]
    warnings: tuple[str, ...]


def _fit_lens(views: Sequence[Sighting], size_px: tuple[int, int]) -> _Lens:
    if len(views) < LEAST_VIEWS:
        raise CalibrationError(
            f"{len(views)} views of the target: one gives the scale, {LEAST_VIEWS} or more (better {GOOD_VIEWS}), "
            "tilted this way and that, the lens as well"
        )
    solid = [np.column_stack([view.points_mm, np.zeros(len(view.points_mm))]).astype(np.float32) for view in views]
    flat = [view.points_px.astype(np.float32).reshape(-1, 1, 2) for view in views]
    try:
        rms, found, bent, _, _, errors, _, per_view = cv2.calibrateCameraExtended(
            solid, flat, size_px, np.eye(3), np.zeros(5), flags=cv2.CALIB_FIX_K3
        )
    except cv2.error as exc:
        raise CalibrationError(f"the views do not fit one camera: {exc.err}; are they of one camera and zoom?") from exc
    matrix: Points = np.array(found, np.float64)
    distortion: npt.NDArray[np.float64] = np.array(bent, np.float64).ravel()
    worst = int(np.argmax(np.asarray(per_view)))
    if not np.isfinite(rms) or rms > LARGEST_RESIDUAL_PX:
        raise CalibrationError(
            f"the views do not fit one camera and this target: {rms:.2f} px (rms), the worst is {views[worst].name} "
            f"with {float(np.asarray(per_view).ravel()[worst]):.2f} px; is the target flat, and are its numbers right?"
        )
    unsure = float(np.asarray(errors).ravel()[0] / matrix[0, 0])
    warnings = []
    if len(views) < GOOD_VIEWS:
        warnings.append(f"{len(views)} views are few for a lens; take {GOOD_VIEWS} or more")
    if unsure > UNSURE_FOCUS:
        warnings.append(f"the views are much alike (focal length ± {unsure:.0%}): tilt the target by 20 to 40 degrees")
    grid = np.stack(np.meshgrid(np.linspace(0, size_px[0] - 1, 9), np.linspace(0, size_px[1] - 1, 9)), -1).reshape(
        -1, 2
    )
    bends = float(np.linalg.norm(undistorted(grid, matrix, distortion) - grid, axis=1).max())
    note = f"{rms:.3f} px reprojection error (rms) over {len(views)} views; bends by {bends:.1f} px at most"
    return _Lens(matrix, distortion, float(rms), bends, (f"  lens                  {note}",), tuple(warnings))


def fit_web(view: Sighting, size_px: tuple[int, int], mm_per_line: float | None = None) -> ScaleFit:
    """The scale of a line-scan camera.

    Args:
        view: the target on the web.
        size_px: width and height of the picture.
        mm_per_line: how far the web moves from line to line, where the encoder or the line rate and the speed tell it.

    Raises:
        CalibrationError: the points are not those of such a target, or target and encoder contradict each other.
    """
    centre = (size_px[0] - 1) / 2
    web = _fit_polynomials(view, centre, 1)
    rms, greatest = _residual(web, view)
    columns = len(np.unique(np.round(view.points_px[:, 0] / 4)))
    if columns >= _CUBIC_FROM:
        bent = _fit_polynomials(view, centre, 3)
        bent_rms, bent_greatest = _residual(bent, view)
        if bent_rms < _HALVED * rms:
            web, rms, greatest = bent, bent_rms, bent_greatest
    across, along, _ = pixel_mm(web, centre, (size_px[1] - 1) / 2)
    warnings = []
    notes = [
        f"  across the web        {across:.5f} mm a pixel, from the target",
        f"  along the web         {along:.5f} mm a line, from the target",
    ]
    if mm_per_line is not None:
        differs = along / mm_per_line - 1
        if abs(differs) > ENCODER_WRONG:
            raise CalibrationError(
                f"{view.name}: a line is {along:.5f} mm by the target and {mm_per_line:.5f} mm by the encoder, "
                f"{differs:+.1%}: one of them is wrong"
            )
        if abs(differs) > ENCODER_DIFFERS:
            warnings.append(
                f"by the target a line is {along:.5f} mm, {differs:+.1%} from what encoder or line rate say"
            )
        ratio = mm_per_line / along
        web = web.model_copy(
            update={"across_per_line": web.across_per_line * ratio, "along_per_line": web.along_per_line * ratio}
        )
        notes[1] = f"  along the web         {mm_per_line:.5f} mm a line, from the encoder; {along:.5f} by the target"
        along = mm_per_line
    notes.append(f"  a pixel is            {along / across:.4f} times as long as it is wide")
    coverage = _coverage([view], size_px)
    if coverage[0] < LEAST_COVERAGE:
        warnings.append(f"the target spans {coverage[0]:.0%} of the web's width: beyond it the scale is extrapolated")
    return ScaleFit(
        map=web,
        mm_per_px=(across, along),
        mm_per_px_range=pixel_range_mm(web, *size_px),
        points=len(view.points_px),
        residual_px=rms,
        residual_greatest_px=greatest,
        coverage=coverage,
        along_from_encoder=mm_per_line is not None,
        notes=tuple(notes),
        warnings=tuple(warnings),
    )


def _fit_polynomials(view: Sighting, centre: float, degree: int) -> WebMap:
    x, y = (view.points_px[:, 0] - centre), view.points_px[:, 1]
    scale = max(float(np.abs(x).max()), 1.0)
    terms = np.column_stack([*((x / scale) ** power for power in range(degree + 1)), y])
    found = np.linalg.lstsq(terms, view.points_mm, rcond=None)[0]
    weights = found[:-1] / scale ** np.arange(degree + 1)[:, None]
    return WebMap(
        centre_px=centre,
        across=tuple(float(one) for one in weights[:, 0]),
        along=tuple(float(one) for one in weights[:, 1]),
        across_per_line=float(found[-1, 0]),
        along_per_line=float(found[-1, 1]),
    )


def _residual(found: PlaneMap | WebMap, view: Sighting) -> tuple[float, float]:
    """How far the points lie from where the map says, in pixels: rms, and the farthest.

    Raises:
        CalibrationError: so far that the target cannot be what was said.
    """
    apart_mm = np.linalg.norm(to_mm(found, view.points_px) - view.points_mm, axis=1)
    middle = view.points_px.mean(axis=0)
    side_mm = pixel_mm(found, float(middle[0]), float(middle[1]))[2] ** 0.5
    if not side_mm > 0:
        raise CalibrationError(f"{view.name}: the points of the target lie on one line")
    rms, greatest = float(np.sqrt((apart_mm**2).mean())) / side_mm, float(apart_mm.max()) / side_mm
    # The lens of an area camera may bend by many pixels; numbers that are wrong displace by whole squares.
    pitch_px = float(np.sort(np.linalg.norm(view.points_px[1:] - view.points_px[0], axis=1))[0])
    if rms > max(LARGEST_RESIDUAL_PX, 0.1 * pitch_px):
        raise CalibrationError(
            f"{view.name}: the points do not lie as on this target: {rms:.1f} px apart (rms); are the numbers of "
            "columns and rows and the sizes right, and is the sheet flat?"
        )
    return rms, greatest


def _coverage(views: Sequence[Sighting], size_px: tuple[int, int]) -> tuple[float, float]:
    points = np.concatenate([view.points_px for view in views])
    spans = points.max(axis=0) - points.min(axis=0)
    return float(spans[0] / size_px[0]), float(spans[1] / size_px[1])
