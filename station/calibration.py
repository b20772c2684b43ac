"""What a camera's calibration is on disk: one folder a camera, one file a kind, old versions beside the new one.

::

    calibration/line1/quality.json            limits of the quality gate, chosen from good pictures
    calibration/line1/flat-field.json         what makes the light and the sensor even, with its maps beside it
    calibration/line1/scale.json              millimetres per pixel
    calibration/line1/flat-field.20260105T101500.123456Z.json   the version before, under the time it was made

Each file says what it was made of and for which setup it holds: the camera's own id, size, view and controls. A picture
that a file needs (a gain map) is a PNG beside it, named and checked by its sha256, so that old versions keep theirs.
A file gets its name only when all of it is on the disk.
"""

import hashlib
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import cv2
import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from station.errors import CalibrationError
from station.manifest import QualityLimits
from station.messages import Name, Pixels
from station.section import Region
from station.settings import BaseCamera, DeviceCamera
from station.whole_file import write_whole

Scan = Literal["area", "line"]
"""An area camera takes a picture at once; a line-scan camera takes it line by line, so that the belt makes one axis."""


class CalibrationKind(StrEnum):
    """What can be calibrated; also the name of the file."""

    QUALITY = "quality"
    FLAT_FIELD = "flat-field"
    SCALE = "scale"


class Form(BaseModel):
    """Base of everything in a calibration file."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Setup(Form):
    """What a calibration was made with, and holds for.

    Attributes:
        camera: its name in the configuration.
        camera_id: what tells this very camera from another one, see `station.adapters.camera_identity`.
        scan: how the pictures come about.
        width_px, height_px: of the pictures as they are judged; the height of a line-scan camera's pictures is free.
        rotate_degrees, region, colour: the camera's keys of the same names.
        controls: the values that the configuration sets.
    """

    camera: Name
    camera_id: str
    scan: Scan
    width_px: int = Field(ge=1)
    height_px: int = Field(ge=1)
    rotate_degrees: int = 0
    region: Region | None = None
    colour: str = "grey"
    controls: Mapping[str, float] = Field(default_factory=dict)

    @classmethod
    def of(cls, camera: str, settings: BaseCamera, camera_id: str, scan: Scan, size_px: tuple[int, int]) -> "Setup":
        """The setup that a camera's table describes; `size_px` is (width, height)."""
        controls = settings.controls if isinstance(settings, DeviceCamera) else {}
        return cls(
            camera=camera,
            camera_id=camera_id,
            scan=scan,
            width_px=size_px[0],
            height_px=size_px[1],
            rotate_degrees=settings.rotate_degrees,
            region=settings.region,
            colour=settings.colour,
            controls={str(name): value for name, value in controls.items()},
        )


class SourcePicture(Form):
    """A picture that a calibration was made from.

    Attributes:
        name: of the file.
        sha256: of the file.
    """

    name: str
    sha256: str


class MapRef(Form):
    """A picture beside the file.

    Attributes:
        file: its name, in the same folder.
        sha256: of the file.
    """

    file: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*\.png$")
    sha256: str


class CalibrationFile(Form):
    """What every kind states.

    Attributes:
        created_at: when it was made.
        station_version: by which version of the station.
        setup: what it holds for.
        pictures: what it was made from.
        warnings: what was said when it was made.
    """

    schema_version: Literal[1] = 1
    created_at: datetime
    station_version: str
    setup: Setup
    pictures: tuple[SourcePicture, ...]
    warnings: tuple[str, ...] = ()


class Spread(Form):
    """How one measure was spread over the pictures.

    Attributes:
        count: pictures that count.
        least, median, greatest: of the measure.
        deviation: robust standard deviation: 1.4826 times the median distance from the median.
    """

    count: int
    least: float
    median: float
    greatest: float
    deviation: float


class FramingLimits(Form):
    """Where the part must be.

    Attributes:
        template: the median good picture, small and grey.
        shift_x_px, shift_y_px: how far it may be moved from its place.
        similarity_min: least normalized correlation with the template.
    """

    template: MapRef
    shift_x_px: float = Field(gt=0)
    shift_y_px: float = Field(gt=0)
    similarity_min: float = Field(ge=-1, lt=1)


class QualityCalibration(CalibrationFile):
    """`quality.json`

    Attributes:
        corrected_with: sha256 of the flat field's gain map that the pictures were corrected with; None: with none.
        limits: of the quality gate, in place of the bundle's.
        measured: measure → its spread over the pictures.
        rule: how the limits follow from the spread.
        framing: None: the pictures have no common place to hold a part to.
        outliers: pictures that were left out because they differ from the others.
    """

    kind: Literal["quality"] = "quality"
    corrected_with: str | None = None
    limits: QualityLimits
    measured: Mapping[str, Spread]
    rule: str
    framing: FramingLimits | None = None
    outliers: tuple[str, ...] = ()


class FlatFieldCalibration(CalibrationFile):
    """`flat-field.json`: judged pixel = (pixel − dark) × (1 + gain_step × gain map).

    Attributes:
        gain: the gain map, 8 bits; of a line-scan camera one row.
        gain_step: gain per unit of the map.
        dark: the dark level, 8 bits, of the same size; None: no dark pictures were given.
        white_level: mean grey value of the white pictures, less dark.
        vignetting: share of light that the darkest place of the smoothed white picture lacks against the brightest.
        pattern: standard deviation of what is not smooth, as a share.
        flatness_before, flatness_after: largest deviation of the mean white picture from its mean, as a share, over
            blocks of 8 by 8 pixels (of a line-scan camera: over columns), as it came and corrected.
        limited: pixels or columns that would need more than the greatest gain, and got that.
        checked_on: which pictures `flatness_after` was measured on, in words.
        dirt_px: pixels that were taken from their neighbourhood since something lay there.
    """

    kind: Literal["flat-field"] = "flat-field"
    gain: MapRef
    gain_step: float = Field(gt=0)
    dark: MapRef | None = None
    white_level: float
    vignetting: float
    pattern: float
    flatness_before: float
    flatness_after: float
    limited: int = 0
    checked_on: str
    dirt_px: int = 0


class PlaneMap(Form):
    """From the pixels of an area camera to millimetres on the plane where the parts lie.

    A pixel goes through the lens model backwards where there is one (`cv2.undistortPoints`, result in pixels again),
    then through the homography.

    Attributes:
        homography: 3 by 3, row by row.
        camera_matrix: 3 by 3, row by row; None: no lens model.
        distortion: OpenCV's k1, k2, p1, p2, k3.
    """

    form: Literal["plane"] = "plane"
    homography: tuple[float, ...] = Field(min_length=9, max_length=9)
    camera_matrix: Annotated[tuple[float, ...], Field(min_length=9, max_length=9)] | None = None
    distortion: tuple[float, ...] = ()


class WebMap(Form):
    """From the pixels of a line-scan camera to millimetres on the web.

    Across (u) and along (v), each a polynomial of x plus a share of y:
    u = Σ across[i] × xⁱ + across_per_line × y, and v likewise; x is counted from `centre_px`.

    Attributes:
        centre_px: the column from which x is counted.
        across, along: coefficients for x⁰, x¹, …, in mm.
        across_per_line, along_per_line: mm for each line.
    """

    form: Literal["web"] = "web"
    centre_px: float
    across: tuple[float, ...] = Field(min_length=2, max_length=4)
    along: tuple[float, ...] = Field(min_length=2, max_length=4)
    across_per_line: float
    along_per_line: float


class ScaleCalibration(CalibrationFile):
    """`scale.json`

    Attributes:
        target: the printed target, in words.
        map: from pixels to millimetres.
        mm_per_px_x, mm_per_px_y: in the middle of the picture, along its rows and its columns.
        mm_per_px_least, mm_per_px_greatest: the square root of a pixel's area, over the picture.
        points: of the target, all views together.
        residual_px: how far the points lie from where the map says, rms.
        residual_greatest_px: the same, the farthest.
        lens_rms_px: reprojection error of the lens model (`cv2.calibrateCamera`), rms; None: no lens model.
        distortion_px: how far the lens moves a point, at most, over the picture; None: no lens model.
        coverage: share of the picture's width and height that the target spans.
        along_from: `target`, or `encoder` when the length of a line was given.
    """

    kind: Literal["scale"] = "scale"
    target: str
    map: Annotated[PlaneMap | WebMap, Field(discriminator="form")]
    mm_per_px_x: float = Field(gt=0)
    mm_per_px_y: float = Field(gt=0)
    mm_per_px_least: float = Field(gt=0)
    mm_per_px_greatest: float = Field(gt=0)
    points: int
    residual_px: float
    residual_greatest_px: float
    lens_rms_px: float | None = None
    distortion_px: float | None = None
    coverage: tuple[float, float]
    along_from: Literal["target", "encoder"] = "target"


AnyCalibration = TypeVar("AnyCalibration", bound=CalibrationFile)

FORMS: Mapping[CalibrationKind, type[CalibrationFile]] = {
    CalibrationKind.QUALITY: QualityCalibration,
    CalibrationKind.FLAT_FIELD: FlatFieldCalibration,
    CalibrationKind.SCALE: ScaleCalibration,
}


def file_of(folder: Path, kind: CalibrationKind) -> Path:
    """Where the present version of a kind stands."""
    return folder / f"{kind}.json"


def read_file(folder: Path, form: type[AnyCalibration], kind: CalibrationKind) -> AnyCalibration | None:
    """Read the present version of one kind; None: there is none.

    Raises:
        CalibrationError: the folder or the file cannot be read, or is not such a file.
    """
    path = file_of(folder, kind)
    try:
        if not folder.is_dir():
            raise CalibrationError(f"{folder}: there is no such folder; `station calibrate` writes it")
        text = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise CalibrationError(f"{path}: cannot be read: {exc.strerror}") from exc
    try:
        return form.model_validate_json(text)
    except ValidationError as exc:
        first = exc.errors(include_url=False)[0]
        field = ".".join(str(level) for level in first["loc"]) or "text"
        raise CalibrationError(f"{path}: {field}: {first['msg']}") from None


def read_map(folder: Path, ref: MapRef) -> Pixels:
    """Read and check a picture beside a calibration file.

    Raises:
        CalibrationError: it is missing, altered or no picture of 8 bits.
    """
    path = folder / ref.file
    try:
        data = path.read_bytes()
    except OSError as exc:
        raise CalibrationError(f"{path}: cannot be read: {exc.strerror}") from exc
    if hashlib.sha256(data).hexdigest() != ref.sha256:
        raise CalibrationError(f"{path}: is not the file that the calibration was written with (sha256 differs)")
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.dtype != np.uint8:
        raise CalibrationError(f"{path}: is no picture of 8 bits")
    return np.asarray(pixels, np.uint8)


def encode_map(kind: CalibrationKind, what: str, pixels: Pixels) -> tuple[MapRef, bytes]:
    """A picture as it goes beside a calibration file, lossless, with its reference."""
    data = cv2.imencode(".png", pixels)[1].tobytes()
    sha256 = hashlib.sha256(data).hexdigest()
    return MapRef(file=f"{kind}-{what}-{sha256[:12]}.png", sha256=sha256), data


def write_file(
    folder: Path, kind: CalibrationKind, content: CalibrationFile, maps: Sequence[tuple[MapRef, bytes]] = ()
) -> Path | None:
    """Make this the present version; the one before stays beside it, under the time it was made.

    Returns:
        Where the version before stands now; None: there was none.

    Raises:
        CalibrationError: the folder cannot be written; the version before is still the present one.
    """
    path = file_of(folder, kind)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for ref, data in maps:
            write_whole(folder / ref.file, data)
        before = _keep_version(path)
        write_whole(path, content.model_dump_json(indent=1).encode() + b"\n")
    except OSError as exc:
        raise CalibrationError(f"{folder}: cannot be written: {exc.strerror}") from exc
    return before


def _keep_version(path: Path) -> Path | None:
    """Give the present version a second name; a crash afterwards leaves both."""
    if not path.exists():
        return None
    try:
        made_at = CalibrationFile.model_validate_json(path.read_bytes(), extra="ignore").created_at
    except ValidationError:
        # Whatever stands there is not ours to judge, but to keep.
        made_at = datetime.fromtimestamp(path.stat().st_mtime, UTC)
    kept = path.with_suffix(f".{made_at.astimezone(UTC):%Y%m%dT%H%M%S.%fZ}.json")
    with suppress(FileExistsError):
        os.link(path, kept)
    return kept


def differences(made_for: Setup, now: Setup, kind: CalibrationKind) -> list[str]:
    """In what a setup differs from the one that a calibration of this kind was made for, in words.

    All controls count for quality and flat field; for the scale only the focus does, which changes the enlargement.
    """
    found = []
    if made_for.camera_id != now.camera_id:
        found.append(f"the camera was {made_for.camera_id}, now it is {now.camera_id}")
    for key in ("rotate_degrees", "region", "colour"):
        was, has = getattr(made_for, key), getattr(now, key)
        if was != has and not (kind is CalibrationKind.SCALE and key == "colour"):
            found.append(f"{key} was {_shown(was)}, now it is {_shown(has)}")
    # Where the region differs, so does the size: one reason is enough.
    heights_differ = made_for.scan == "area" and made_for.height_px != now.height_px
    if made_for.region == now.region and (made_for.width_px != now.width_px or heights_differ):
        found.append(
            f"pictures were {made_for.width_px}×{made_for.height_px} px, now they are {now.width_px}×{now.height_px}"
        )
    for name in sorted({*made_for.controls, *now.controls}):
        if kind is CalibrationKind.SCALE and name != "focus":
            continue
        before, after = made_for.controls.get(name), now.controls.get(name)
        if before != after:
            found.append(f"{name} was {_shown(before)}, now it is {_shown(after)}")
    return found


def _shown(value: object) -> str:
    match value:
        case None:
            return "not set"
        case Region():
            return f"{value.width_px}×{value.height_px} px at {value.x_px}, {value.y_px}"
        case float():
            return f"{value:g}"
        case _:
            return str(value)
