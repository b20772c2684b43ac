"""`station calibrate`: what an engineer does once the camera hangs where it will stay."""

import argparse

from station.commands import calibrate_flat_field, calibrate_quality, calibrate_scale, calibrate_target
from station.commands.calibration_pictures import Subject, keep_pictures, shared_arguments, subject_of, take_shots
from station.commands.exit_codes import ExitCode
from station.errors import ConfigurationError

KINDS = {
    "quality": (calibrate_quality, "when a picture can be judged at all, from good ones"),
    "scale": (calibrate_scale, "millimetres per pixel, from a printed target"),
    "flat-field": (calibrate_flat_field, "even light and an even sensor, from pictures of a white surface"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="KIND")
    for kind, (module, summary) in KINDS.items():
        module.add_arguments(actions.add_parser(kind, parents=[shared_arguments()], help=summary, description=summary))
    summary = "a target to print, as PDF or PNG"
    calibrate_target.add_arguments(actions.add_parser("target", help=summary, description=summary))
    summary = "take pictures with the camera into a folder, for a later calibration"
    action = actions.add_parser("pictures", parents=[shared_arguments()], help=summary, description=summary)
    action.add_argument("--frames", type=int, default=16, help="how many (default: %(default)s)")
    action.add_argument("--ask", action="store_true", help="wait for Enter before each: the target is moved meanwhile")


def run(options: argparse.Namespace) -> ExitCode:
    """Calibrate one thing.

    Raises:
        CalibrationError: the pictures cannot be used, or the result not be written.
        CameraError: the camera cannot be used.
        ConfigurationError: the configuration or an argument is wrong.
    """
    if options.action == "target":
        return calibrate_target.run(options)
    subject = subject_of(options)
    match options.action:
        case "quality":
            return calibrate_quality.run(subject, options)
        case "scale":
            return calibrate_scale.run(subject, options)
        case "flat-field":
            return calibrate_flat_field.run(subject, options)
        case _:
            return _take_pictures(subject, options)


def _take_pictures(subject: Subject, options: argparse.Namespace) -> ExitCode:
    if options.out is None or options.pictures is not None:
        raise ConfigurationError(
            "pictures: --out DIR says where they go; they come from the camera, not from --pictures"
        )
    shots, files = take_shots(subject, options.frames, "picture", _ask if options.ask else None)
    keep_pictures(subject.folder, shots, files)
    print(f"wrote {len(shots)} pictures to {subject.folder}")
    return ExitCode.OK


def _ask(number: int) -> None:
    input(f"picture {number}: put the target in its place, then press Enter ")
