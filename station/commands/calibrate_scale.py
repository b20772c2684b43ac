"""`station calibrate scale`: millimetres per pixel from a printed target."""

import argparse

from station.calibration import CalibrationKind, ScaleCalibration
from station.commands.calibrate_target import add_geometry, target_of
from station.commands.calibration_pictures import Subject, finish, of_one_size, shots_for, stamp
from station.commands.exit_codes import ExitCode
from station.errors import ConfigurationError
from station.scale_fit import ScaleFit, fit_plane, fit_web
from station.target import Target, find, stretches_for


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    add_geometry(parser)
    parser.add_argument(
        "--bar-mm",
        type=float,
        nargs=2,
        metavar=("MEASURED", "PRINTED"),
        help="length of the bar on the sheet, and what its text says it should be",
    )
    line = parser.add_argument_group("line-scan cameras")
    line.add_argument("--mm-per-line", type=float, help="how far the web moves from line to line, by the encoder")
    line.add_argument("--line-rate-hz", type=float, help="lines a second; with --speed-mm-s, instead of --mm-per-line")
    line.add_argument("--speed-mm-s", type=float, help="of the web")


def run(subject: Subject, options: argparse.Namespace) -> ExitCode:
    """Find the target, fit the scale and write it.

    Raises:
        CalibrationError: the target is not in the pictures, or contradicts itself.
        CameraError: the camera cannot be used.
        ConfigurationError: an argument is wrong.
    """
    stretch = 1.0
    if options.bar_mm is not None:
        measured, printed = options.bar_mm
        if not (printed > 0 and abs(measured / printed - 1) < 0.2):  # noqa: PLR2004
            raise ConfigurationError(
                f"--bar-mm {measured:g} {printed:g}: more than a fifth apart; MEASURED comes first"
            )
        stretch = measured / printed
    target = target_of(options, stretch)
    mm_per_line = _mm_per_line(options)
    if mm_per_line is not None and subject.scan != "line":
        raise ConfigurationError("--mm-per-line, --line-rate-hz: only a line-scan camera has lines (--scan line)")
    shots = shots_for(subject, options, "target", 1)
    of_one_size(shots)
    height, width = shots[0].pixels.shape[:2]
    if subject.scan == "line":
        if len(shots) > 1:
            raise ConfigurationError("--pictures: one picture of the target is wanted of a line-scan camera")
        view = find(target, shots[0].name, shots[0].pixels, stretches_for(mm_per_line, target, width))
        fitted = fit_web(view, (width, height), mm_per_line)
    else:
        fitted = fit_plane([find(target, shot.name, shot.pixels) for shot in shots], (width, height))
    content = ScaleCalibration.model_validate(
        {
            **stamp(subject, shots),
            "warnings": fitted.warnings,
            "target": target.words,
            "map": fitted.map,
            "mm_per_px_x": fitted.mm_per_px[0],
            "mm_per_px_y": fitted.mm_per_px[1],
            "mm_per_px_least": fitted.mm_per_px_range[0],
            "mm_per_px_greatest": fitted.mm_per_px_range[1],
            "points": fitted.points,
            "residual_px": fitted.residual_px,
            "residual_greatest_px": fitted.residual_greatest_px,
            "lens_rms_px": fitted.lens_rms_px,
            "distortion_px": fitted.distortion_px,
            "coverage": fitted.coverage,
            "along_from": "encoder" if fitted.along_from_encoder else "target",
        }
    )
    return finish(subject, options, CalibrationKind.SCALE, content, _report(subject, target, fitted, len(shots)))


def _mm_per_line(options: argparse.Namespace) -> float | None:
    rate, speed, given = options.line_rate_hz, options.speed_mm_s, options.mm_per_line
    if (rate is None) != (speed is None):
        raise ConfigurationError("--line-rate-hz and --speed-mm-s: both are needed")
    if rate is not None and given is not None:
        raise ConfigurationError("--mm-per-line: or --line-rate-hz with --speed-mm-s, not both")
    for name, value in (("--line-rate-hz", rate), ("--speed-mm-s", speed), ("--mm-per-line", given)):
        if value is not None and not value > 0:
            raise ConfigurationError(f"{name} {value:g}: must be above 0")
    return float(speed / rate) if rate is not None else given


def _report(subject: Subject, target: Target, fitted: ScaleFit, count: int) -> list[str]:
    x, y = fitted.mm_per_px
    return [
        f"camera {subject.name}: scale from {target.words}, {fitted.points} points in {count} pictures",
        f"  in the middle         {x:.5f} mm a pixel along a row, {y:.5f} mm along a column",
        f"  over the picture      {fitted.mm_per_px_range[0]:.5f} to {fitted.mm_per_px_range[1]:.5f} mm a pixel",
        *fitted.notes,
        f"  points lie            {fitted.residual_px:.3f} px (rms) off, {fitted.residual_greatest_px:.3f} px at most",
        f"  target spans          {fitted.coverage[0]:.0%} of the width, {fitted.coverage[1]:.0%} of the height",
    ]
