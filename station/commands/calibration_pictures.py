"""What every kind of `station calibrate` shares: which camera, its pictures, and where the result goes."""

import argparse
import functools
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import cv2
import numpy as np

from station import __version__
from station.adapters.camera_identity import identify
from station.adapters.camera_process import CameraProcess, plan_for
from station.adapters.folder_camera import SUFFIXES, natural_order
from station.adapters.system_clock import SystemClock
from station.calibrated import CameraCalibration, read_calibration
from station.calibration import (
    CalibrationFile,
    CalibrationKind,
    MapRef,
    Scan,
    Setup,
    SourcePicture,
    file_of,
    write_file,
)
from station.commands.camera_factory import make_camera
from station.commands.exit_codes import ExitCode
from station.commands.looks import CAMERA_WITHIN_S, check_device
from station.errors import CalibrationError, CameraError, ConfigurationError
from station.messages import CameraEvent, CameraStateName, Capture, Frame, Pixels
from station.picture import View, apply, decode
from station.settings import CameraSettings, DeviceCamera, Settings, SimulatedCamera, load

_AT = datetime.fromtimestamp(0, UTC)


@dataclass(frozen=True, slots=True)
class Shot:
    """A picture to calibrate with.

    Attributes:
        name: of its file.
        pixels: turned, cut and converted as the camera's table says.
        sha256: of its file.
    """

    name: str
    pixels: Pixels = field(repr=False)
    sha256: str

    @property
    def source(self) -> SourcePicture:
        """How a calibration file names it."""
        return SourcePicture(name=self.name, sha256=self.sha256)


@dataclass(frozen=True, slots=True)
class Subject:
    """The camera that is calibrated.

    Attributes:
        name: its name.
        table: its settings.
        folder: where its calibration stands.
        scan: how its pictures come about.
        told: the table names this folder already.
        as_judged: pictures from files are turned, cut and corrected already, as evidence is.
    """

    name: str
    table: CameraSettings
    folder: Path
    scan: Scan
    told: bool
    as_judged: bool

    def setup(self, shots: Sequence[Shot]) -> Setup:
        """What a calibration made from these pictures holds for.

        Raises:
            CalibrationError: the camera is not there.
        """
        camera_id = identify(self.table)
        if camera_id is None:
            raise CalibrationError(f"camera {self.name}: is not there, so nobody can say which one this is for")
        height, width = shots[0].pixels.shape[:2]
        return Setup.of(self.name, self.table, camera_id, self.scan, (width, height))

    def calibration(self) -> CameraCalibration | None:
        """What the camera has now; None: nothing."""
        found = read_calibration(self.folder)
        if found.is_empty or not self.folder.is_dir():
            return None
        return CameraCalibration(self.name, self.table, found, functools.partial(identify, self.table))


def shared_arguments() -> argparse.ArgumentParser:
    """Arguments of every kind that is made from a camera's pictures."""
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--config", type=Path, default=Path("station.toml"), help="configuration file")
    shared.add_argument("--camera", metavar="NAME", help="which one; default: the only one")
    shared.add_argument(
        "--pictures", type=Path, nargs="+", metavar="PATH", help="files or folders; default: taken from the camera now"
    )
    shared.add_argument(
        "--as-judged", action="store_true", help="the files are evidence: turned, cut and corrected already"
    )
    shared.add_argument(
        "--scan",
        choices=("area", "line"),
        help="of an area or a line-scan camera; default: line for the simulated line",
    )
    shared.add_argument(
        "--out", type=Path, metavar="DIR", help="default: the camera's `calibration`, or calibration/NAME by the file"
    )
    shared.add_argument("--dry-run", action="store_true", help="show the result and write nothing")
    shared.add_argument("--json", action="store_true", help="print the file's content instead of words")
    return shared


def subject_of(options: argparse.Namespace) -> Subject:
    """The camera that the arguments mean.

    Raises:
        ConfigurationError: the configuration is wrong, or has no such camera.
    """
    settings: Settings = load(options.config, os.environ)
    names = ", ".join(settings.camera)
    name = options.camera
    if name is None:
        if len(settings.camera) > 1:
            raise ConfigurationError(f"{options.config}: has several cameras; say which: --camera {names}")
        name = next(iter(settings.camera))
    if name not in settings.camera:
        raise ConfigurationError(f"{options.config}: has no camera {name!r}; it has {names}")
    table = settings.camera[name]
    default = options.config.resolve().parent / "calibration" / name
    folder = options.out.resolve() if options.out is not None else table.calibration or default
    scan: Scan = options.scan or ("line" if isinstance(table, SimulatedCamera) else "area")
    told = table.calibration is not None and table.calibration.resolve() == folder.resolve()
    return Subject(name, table, folder, scan, told, bool(options.as_judged))


def read_shots(subject: Subject, paths: Sequence[Path]) -> list[Shot]:
    """Read pictures from files and folders, in natural order, and see them as the camera's table says.

    Raises:
        CalibrationError: a file cannot be read, is no picture, or does not hold the camera's region.
    """
    shots = []
    for path in _files(paths):
        try:
            data = path.read_bytes()
            pixels = decode(data, grey=subject.table.colour == "grey")
        except (OSError, ValueError) as exc:
            raise CalibrationError(f"{path}: {exc.strerror if isinstance(exc, OSError) else exc}") from exc
        view = View(colour=subject.table.colour) if subject.as_judged else View.of(subject.table)
        seen = apply(view, Capture(pixels, _AT, 0.0))
        if seen.pixels is None or seen.fault is not None:
            raise CalibrationError(f"{path}: {pixels.shape[1]}×{pixels.shape[0]} px do not hold the camera's region")
        shots.append(Shot(path.name, np.ascontiguousarray(seen.pixels), hashlib.sha256(data).hexdigest()))
    return shots


def _files(paths: Sequence[Path]) -> list[Path]:
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = [one for one in path.iterdir() if one.suffix.lower() in SUFFIXES and not one.name.startswith(".")]
            if not inside:
                raise CalibrationError(f"{path}: there is no picture in this folder; known are {' '.join(SUFFIXES)}")
            files += sorted(inside, key=lambda one: natural_order(one.name))
        else:
            files.append(path)
    return files


def take_shots(
    subject: Subject, count: int, what: str, ask: Callable[[int], None] | None = None
) -> tuple[list[Shot], list[bytes]]:
    """Take pictures from the camera now, through its own process, as a running station does.

    Args:
        subject: the camera.
        count: how many.
        what: begins the names of the pictures.
        ask: called before each picture, with its number from 1; what the camera took meanwhile is passed over.

    Returns:
        The pictures, and each as a PNG file.

    Raises:
        CameraError: the camera cannot be used, or delivers too few.
    """
    table, clock = subject.table, SystemClock()
    if isinstance(table, DeviceCamera):
        check_device(table.device)
    shots: list[Shot] = []
    files: list[bytes] = []
    with CameraProcess(subject.name, functools.partial(make_camera, table), plan_for(table), clock) as source:
        until_s, asked = clock.monotonic_s() + table.read_deadline_s + CAMERA_WITHIN_S, 0.0
        while len(shots) < count:
            if ask is not None and asked == 0.0:
                ask(len(shots) + 1)
                asked = clock.monotonic_s()
                until_s = asked + table.read_deadline_s + CAMERA_WITHIN_S
            if clock.monotonic_s() >= until_s and table.expects == "continuous":
                raise CameraError(f"{len(shots)} of {count} pictures came in time")
            match source.read(0.2):
                case Frame() as frame:
                    pixels = frame.capture.pixels
                    late = frame.capture.captured_monotonic_s < asked
                    if pixels is not None and frame.capture.fault is None and not late:
                        png = cv2.imencode(".png", pixels)[1].tobytes()
                        name = f"{what}-{len(shots) + 1:03}.png"
                        shots.append(Shot(name, pixels.copy(), hashlib.sha256(png).hexdigest()))
                        files.append(png)
                        until_s, asked = clock.monotonic_s() + table.read_deadline_s + CAMERA_WITHIN_S, 0.0
                    frame.release()
                case CameraEvent(state=CameraStateName.STALLED) as event:
                    raise CameraError(event.reason or "delivers nothing")
                case CameraEvent(state=CameraStateName.FINISHED):
                    raise CameraError(f"has only {len(shots)} pictures; {count} are wanted")
                case _:
                    continue
    return shots, files


def keep_pictures(folder: Path, shots: Sequence[Shot], files: Sequence[bytes]) -> None:
    """Write pictures that were taken, so that the calibration can be repeated; all of them or none.

    Raises:
        CalibrationError: the folder is there already, or cannot be written.
    """
    part = folder.with_name(f".{folder.name}.part")
    try:
        part.mkdir(parents=True)
        for shot, data in zip(shots, files, strict=True):
            (part / shot.name).write_bytes(data)
        part.rename(folder)
    except OSError as exc:
        with suppress(OSError):
            for left in part.iterdir():
                left.unlink()
            part.rmdir()
        raise CalibrationError(f"{folder}: cannot be written: {exc.strerror}") from exc


def shots_for(subject: Subject, options: argparse.Namespace, kind: str, count: int) -> list[Shot]:
    """The pictures of `--pictures`, or as many taken from the camera now, which are kept beside the calibration.

    Raises:
        CalibrationError: the files cannot be used, or those taken cannot be kept.
        CameraError: the camera cannot be used.
    """
    if options.pictures is not None:
        return read_shots(subject, options.pictures)
    shots, files = take_shots(subject, count, kind)
    if not options.dry_run:
        when = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        keep_pictures(subject.folder / "pictures" / f"{kind}-{when}", shots, files)
    return shots


def of_one_size(shots: Sequence[Shot]) -> None:
    """Raise a CalibrationError that names the first picture of another size than the first."""
    for shot in shots[1:]:
        if shot.pixels.shape != shots[0].pixels.shape:
            height, width = shot.pixels.shape[:2]
            first_height, first_width = shots[0].pixels.shape[:2]
            raise CalibrationError(
                f"{shot.name}: is {width}×{height} px, {shots[0].name} is {first_width}×{first_height}; all must be of "
                "one size"
            )


def stamp(subject: Subject, shots: Sequence[Shot]) -> dict[str, object]:
    """The fields that every calibration file has, for pictures of this camera."""
    return {
        "created_at": datetime.now(UTC),
        "station_version": __version__,
        "setup": subject.setup(shots),
        "pictures": tuple(shot.source for shot in shots),
    }


def finish(
    subject: Subject,
    options: argparse.Namespace,
    kind: CalibrationKind,
    content: CalibrationFile,
    report: Sequence[str],
    maps: Sequence[tuple[MapRef, bytes]] = (),
) -> ExitCode:
    """Show the result, write it unless it is only to be shown, and say what to do next.

    Raises:
        CalibrationError: it cannot be written.
    """
    if options.json:
        print(json.dumps(content.model_dump(mode="json"), indent=1, ensure_ascii=False))
    else:
        print("\n".join(report))
        for warning in content.warnings:
            print(f"warning: {warning}")
    said = (lambda _: None) if options.json else print
    if options.dry_run:
        said("nothing was written (--dry-run)")
        return ExitCode.OK
    before = write_file(subject.folder, kind, content, maps)
    said(f"wrote {file_of(subject.folder, kind)}" + (f"; the version before is {before.name}" if before else ""))
    if not subject.told:
        said(f"name the folder in [camera.{subject.name}]: calibration = {json.dumps(str(subject.folder))}")
    said("a running station takes it at its next start")
    return ExitCode.OK
