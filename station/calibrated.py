"""A camera's calibration while it is in use: what of it fits, and what that does to pictures and defects.

Each kind is used as long as the setup is the one that it was made for: the camera's own id, the size of the pictures,
rotation, region, colour, controls. A kind that does not fit is not used, and said: without flat field the pictures are
judged as they come, without quality limits the bundle's hold, without scale no defect has an area. Quality limits that
were chosen on corrected pictures need that very flat field. With `uncalibrated = "unknown"` nothing is judged then.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from station.calibration import (
    CalibrationFile,
    CalibrationKind,
    FlatFieldCalibration,
    PlaneMap,
    QualityCalibration,
    ScaleCalibration,
    Scan,
    Setup,
    WebMap,
    differences,
    read_file,
    read_map,
)
from station.defect_area import defect_area_px
from station.errors import CalibrationError
from station.flat_field import FlatField
from station.framing import Framing
from station.manifest import QualityLimits
from station.messages import Capture, Defect, Pixels
from station.scale import pixel_mm
from station.settings import BaseCamera

_WITHOUT = {
    CalibrationKind.QUALITY: "the bundle's quality limits hold",
    CalibrationKind.FLAT_FIELD: "pictures are judged as they come",
    CalibrationKind.SCALE: "defects have no area",
}


@dataclass(frozen=True, slots=True)
class Calibration:
    """All that a camera's calibration folder holds.

    Attributes:
        folder: where it was read from.
        quality, flat_field, scale: the present version of each kind; None: there is none, or it cannot be read.
        template: the good picture of the quality's framing.
        corrector: the flat field, ready for use.
        unreadable: kind → why it cannot be read.
    """

    folder: Path
    quality: QualityCalibration | None = None
    flat_field: FlatFieldCalibration | None = None
    scale: ScaleCalibration | None = None
    template: Pixels | None = None
    corrector: FlatField | None = None
    unreadable: tuple[tuple[CalibrationKind, str], ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing in it, not even something that cannot be read."""
        return not (self.quality or self.flat_field or self.scale or self.unreadable)

    def files(self) -> tuple[tuple[CalibrationKind, CalibrationFile], ...]:
        """The kinds that can be read."""
        kinds = (
            (CalibrationKind.FLAT_FIELD, self.flat_field),
            (CalibrationKind.QUALITY, self.quality),
            (CalibrationKind.SCALE, self.scale),
        )
        return tuple((kind, file) for kind, file in kinds if file is not None)


def read_calibration(folder: Path) -> Calibration:
    """Read a camera's calibration folder; a kind that cannot be read is named in the result, the others are used."""
    found = Calibration(folder)
    unreadable: list[tuple[CalibrationKind, str]] = []
    try:
        quality = read_file(folder, QualityCalibration, CalibrationKind.QUALITY)
        framing = quality.framing if quality is not None else None
        template = read_map(folder, framing.template) if framing is not None else None
        found = replace(found, quality=quality, template=template)
    except CalibrationError as exc:
        unreadable.append((CalibrationKind.QUALITY, str(exc)))
    try:
        flat = read_file(folder, FlatFieldCalibration, CalibrationKind.FLAT_FIELD)
        if flat is not None:
            gain = read_map(folder, flat.gain)
            dark = read_map(folder, flat.dark) if flat.dark is not None else None
            found = replace(found, flat_field=flat, corrector=_corrector(folder, flat, gain, dark))
    except CalibrationError as exc:
        unreadable.append((CalibrationKind.FLAT_FIELD, str(exc)))
    try:
        found = replace(found, scale=read_file(folder, ScaleCalibration, CalibrationKind.SCALE))
    except CalibrationError as exc:
        unreadable.append((CalibrationKind.SCALE, str(exc)))
    return replace(found, unreadable=tuple(unreadable))


def _corrector(folder: Path, flat: FlatFieldCalibration, gain: Pixels, dark: Pixels | None) -> FlatField:
    setup = flat.setup
    wanted = (1 if setup.scan == "line" else setup.height_px, setup.width_px)
    if gain.shape[:2] != wanted:
        raise CalibrationError(
            f"{folder / flat.gain.file}: is {gain.shape[1]}×{gain.shape[0]} px, not as its file says"
        )
    try:
        return FlatField(gain, flat.gain_step, dark)
    except ValueError as exc:
        raise CalibrationError(f"{folder / flat.gain.file}: {exc}") from exc


class CameraCalibration:
    """What a camera uses of its calibration now. One thread uses it.

    Args:
        camera: the camera's name.
        settings: its table.
        calibration: what was read.
        identify: the camera's own id; None: it is not there now.
    """

    def __init__(
        self,
        camera: str,
        settings: BaseCamera,
        calibration: Calibration,
        identify: Callable[[], str | None],
    ) -> None:
        self._camera = camera
        self._settings = settings
        self._calibration = calibration
        self._identify = identify
        self._size_px: tuple[int, int] | None = None
        self._height_is_free = any(file.setup.scan == "line" for _, file in calibration.files())
        self._used: frozenset[CalibrationKind] = frozenset()
        self._problem: str | None = None
        self._controls: dict[str, float] | None = None
        self.look()

    @property
    def problem(self) -> str | None:
        """What does not fit, and what that means, in one line; None: all of it is used."""
        return self._problem

    @property
    def corrected_with(self) -> str | None:
        """Sha256 of the gain map that pictures are corrected with; None: with none."""
        flat = self._calibration.flat_field
        return flat.gain.sha256 if CalibrationKind.FLAT_FIELD in self._used and flat is not None else None

    @property
    def summary(self) -> str:
        """What is used, with the dates."""
        return ", ".join(
            f"{kind} of {file.created_at:%Y-%m-%d}" for kind, file in self._calibration.files() if kind in self._used
        )

    @property
    def framing(self) -> Framing | None:
        """Where the part must be; None: it does not matter."""
        quality, template = self._calibration.quality, self._calibration.template
        if CalibrationKind.QUALITY not in self._used or quality is None or quality.framing is None or template is None:
            return None
        wanted = quality.framing
        return Framing(template, wanted.shift_x_px, wanted.shift_y_px, wanted.similarity_min)

    @property
    def scale(self) -> PlaneMap | WebMap | None:
        """From pixels to millimetres; None: it is not known."""
        scale = self._calibration.scale
        return scale.map if CalibrationKind.SCALE in self._used and scale is not None else None

    def limits(self, of_bundle: QualityLimits) -> QualityLimits:
        """The quality limits that hold: the station's own where they fit, else the bundle's."""
        quality = self._calibration.quality
        return quality.limits if CalibrationKind.QUALITY in self._used and quality is not None else of_bundle

    def look(self) -> bool:
        """Compare the setup with that of the calibration anew; True when something has changed.

        To be called when the camera was opened: another one may hang there now.
        """
        before = self._used, self._problem
        reasons: list[str] = []
        used = set()
        if self._calibration.is_empty:
            reasons.append(f"{self._calibration.folder}: there is no calibration in it; `station calibrate` writes it")
        for kind, why in self._calibration.unreadable:
            reasons.append(f"{kind}: {why}; {_WITHOUT[kind]}")
        for kind, file in self._calibration.files():
            differs = differences(file.setup, self._setup_now(file.setup), kind)
            if kind is CalibrationKind.QUALITY:
                differs += self._other_flat_field(CalibrationKind.FLAT_FIELD in used)
            if differs:
                reasons.append(f"{kind}: {', '.join(differs)}; {_WITHOUT[kind]}")
            else:
                used.add(kind)
        self._used = frozenset(used)
        self._problem = "; ".join(reasons) or None
        return before != (self._used, self._problem)

    def _setup_now(self, made_for: Setup) -> Setup:
        size = self._size_px or (made_for.width_px, made_for.height_px)
        scan: Scan = made_for.scan
        now = Setup.of(self._camera, self._settings, self._identify() or made_for.camera_id, scan, size)
        return now if self._controls is None else now.model_copy(update={"controls": self._controls})

    def _other_flat_field(self, is_used: bool) -> list[str]:
        quality, flat = self._calibration.quality, self._calibration.flat_field
        has = flat.gain.sha256 if flat is not None and is_used else None
        if quality is None or quality.corrected_with == has:
            return []
        if has is None:
            return ["its pictures were corrected by a flat field that is not used now"]
        return ["its pictures were not corrected by the flat field of now"]

    def take_controls(self, controls: Mapping[str, float]) -> bool:
        """The camera has these controls from now on; True when that changes what is used."""
        if controls == self._controls:
            return False
        self._controls = dict(controls)
        return self.look()

    def see(self, capture: Capture) -> bool:
        """Take note of a picture's size; True when that changes what is used."""
        pixels = capture.pixels
        if pixels is None or capture.fault is not None:
            return False
        size = (pixels.shape[1], pixels.shape[0])
        if self._size_px is not None and (
            size == self._size_px or (self._height_is_free and size[0] == self._size_px[0])
        ):
            return False
        self._size_px = size
        return self.look()

    def correct(self, pixels: Pixels) -> Pixels:
        """The picture by the flat field, or as it is where none is used; holds until the next call."""
        corrector = self._calibration.corrector
        if CalibrationKind.FLAT_FIELD not in self._used or corrector is None or not corrector.fits(pixels):
            return pixels
        return corrector.correct(pixels)


def with_areas(
    pixels: Pixels, defects: Sequence[Defect], scale: PlaneMap | WebMap, reference: Pixels | None
) -> tuple[Defect, ...]:
    """The defects with their areas in mm².

    Args:
        pixels: the picture that was judged.
        defects: boxes in its pixels.
        scale: of that picture.
        reference: the same place without defects, if there is such a picture of the same size.
    """
    if reference is not None and reference.shape != pixels.shape:
        reference = None
    measured = []
    for defect in defects:
        area_px = defect_area_px(pixels, defect.box, reference)
        area_from = "box" if area_px is None else "outline"
        if area_px is None:
            area_px = defect.box.width_px * defect.box.height_px
        area = area_px * pixel_mm(scale, *defect.box.centre_px)[2]
        measured.append(defect.model_copy(update={"area_mm2": area, "area_from": area_from}))
    return tuple(measured)
