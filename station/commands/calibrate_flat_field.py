"""`station calibrate flat-field`: even light and an even sensor, from pictures of a white surface."""

import argparse
from pathlib import Path

from station.calibration import CalibrationKind, FlatFieldCalibration, encode_map
from station.commands.calibration_pictures import Subject, finish, read_shots, shots_for, stamp
from station.commands.exit_codes import ExitCode
from station.errors import ConfigurationError
from station.flat_field import BLOCK_PX, FlatFieldResult, make_flat_field


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--frames", type=int, default=16, help="white pictures to take (default: %(default)s)")
    parser.add_argument("--dark", type=Path, nargs="+", metavar="PATH", help="pictures taken with the lens covered")


def run(subject: Subject, options: argparse.Namespace) -> ExitCode:
    """Make the flat field and write it.

    Raises:
        CalibrationError: the pictures cannot be used.
        CameraError: the camera cannot be used.
        ConfigurationError: an argument is wrong.
    """
    if options.frames < 1:
        raise ConfigurationError(f"--frames {options.frames}: allowed are 1 and more")
    if subject.as_judged:
        raise ConfigurationError("--as-judged: evidence is corrected already; a flat field needs pictures as they come")
    dark = read_shots(subject, options.dark) if options.dark else []
    white = shots_for(subject, options, "white", options.frames)
    made = make_flat_field(
        [(shot.name, shot.pixels) for shot in white], [(shot.name, shot.pixels) for shot in dark], subject.scan
    )
    gain, gain_png = encode_map(CalibrationKind.FLAT_FIELD, "gain", made.gain)
    maps = [(gain, gain_png)]
    dark_ref = None
    if made.dark is not None:
        dark_ref, dark_png = encode_map(CalibrationKind.FLAT_FIELD, "dark", made.dark)
        maps.append((dark_ref, dark_png))
    common = stamp(subject, white)
    content = FlatFieldCalibration.model_validate(
        {
            **common,
            "pictures": tuple(shot.source for shot in (*white, *dark)),
            "warnings": made.warnings,
            "gain": gain,
            "gain_step": made.gain_step,
            "dark": dark_ref,
            "white_level": made.white_level,
            "vignetting": made.vignetting,
            "pattern": made.pattern,
            "flatness_before": made.flatness_before,
            "flatness_after": made.flatness_after,
            "checked_on": made.checked_on,
            "limited": made.limited,
            "dirt_px": made.dirt_px,
        }
    )
    report = _report(subject, made, len(white), len(dark))
    return finish(subject, options, CalibrationKind.FLAT_FIELD, content, report, maps)


def _report(subject: Subject, made: FlatFieldResult, white: int, dark: int) -> list[str]:
    over = "columns" if subject.scan == "line" else f"blocks of {BLOCK_PX}×{BLOCK_PX} px"
    unit = "column" if subject.scan == "line" else "pixel"
    greatest = 1 + made.gain_step * float(made.gain.max())
    return [
        f"camera {subject.name}: flat field from {white} white and {dark} dark pictures, one gain for each {unit}",
        f"  white level           {made.white_level:.1f} of 255",
        f"  light lost, smooth    {made.vignetting:.1%} at the darkest place",
        f"  sensor's pattern      {made.pattern:.2%} (standard deviation)",
        f"  gain                  1 to {greatest:.3f}, in steps of {made.gain_step:.5f}",
        f"  evenness before       within {made.flatness_before:.2%} of the mean, over {over}",
        f"  evenness after        within {made.flatness_after:.2%} of the mean, on {made.checked_on}",
    ]
