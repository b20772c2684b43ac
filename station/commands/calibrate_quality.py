"""`station calibrate quality`: when a picture can be judged at all, from good ones."""

import argparse
from collections.abc import Sequence
from datetime import UTC, datetime

from station.calibration import CalibrationKind, FramingLimits, QualityCalibration, encode_map
from station.commands.calibration_pictures import Shot, Subject, finish, of_one_size, shots_for, stamp
from station.commands.exit_codes import ExitCode
from station.errors import ConfigurationError
from station.messages import Capture, Pixels
from station.quality_choice import RULE, ChosenQuality, choose_quality
from station.tolerance import LEAST_COUNT


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--frames", type=int, default=30, help="good pictures to take (default: %(default)s)")


def run(subject: Subject, options: argparse.Namespace) -> ExitCode:
    """Choose the limits and write them.

    Raises:
        CalibrationError: the pictures cannot be used.
        CameraError: the camera cannot be used.
        ConfigurationError: an argument is wrong.
    """
    if options.frames < LEAST_COUNT:
        raise ConfigurationError(f"--frames {options.frames}: allowed are {LEAST_COUNT} and more")
    shots = shots_for(subject, options, "good", options.frames)
    of_one_size(shots)
    pictures, corrected_with = _corrected(subject, shots)
    chosen = choose_quality(pictures, subject.scan)
    framing, maps = None, []
    if chosen.framing is not None:
        template, png = encode_map(CalibrationKind.QUALITY, "template", chosen.framing.template)
        maps.append((template, png))
        framing = FramingLimits(
            template=template,
            shift_x_px=chosen.framing.shift_x_px,
            shift_y_px=chosen.framing.shift_y_px,
            similarity_min=chosen.framing.similarity_min,
        )
    content = QualityCalibration.model_validate(
        {
            **stamp(subject, shots),
            "warnings": chosen.warnings,
            "corrected_with": corrected_with,
            "limits": chosen.limits,
            "measured": chosen.measured,
            "rule": RULE,
            "framing": framing,
            "outliers": chosen.outliers,
        }
    )
    report = _report(subject, chosen, corrected=corrected_with is not None)
    return finish(subject, options, CalibrationKind.QUALITY, content, report, maps)


def _corrected(subject: Subject, shots: Sequence[Shot]) -> tuple[list[tuple[str, Pixels]], str | None]:
    """The pictures as the gate will see them, and the flat field that made them so."""
    calibration = subject.calibration()
    if calibration is None:
        return [(shot.name, shot.pixels) for shot in shots], None
    calibration.see(Capture(shots[0].pixels, datetime.now(UTC), 0.0))
    if subject.as_judged or calibration.corrected_with is None:
        return [(shot.name, shot.pixels) for shot in shots], calibration.corrected_with
    return [(shot.name, calibration.correct(shot.pixels).copy()) for shot in shots], calibration.corrected_with


def _report(subject: Subject, chosen: ChosenQuality, *, corrected: bool) -> list[str]:
    limits, measured = chosen.limits, chosen.measured
    note = ", corrected by the flat field" if corrected else ""
    lines = [
        f"camera {subject.name}: quality limits from {measured['mean'].count} good pictures{note}",
        f"  {'':12}{'least':>9}{'median':>9}{'greatest':>10}{'deviation':>11}   limit",
    ]
    wanted = {
        "mean": f"{limits.mean_min:g} to {limits.mean_max:g}",
        "contrast": f"{limits.contrast_min:g} or more",
        "focus": f"{limits.focus_min:g} or more",
    }
    if chosen.framing is not None:
        wanted["shift_x_px"] = f"{chosen.framing.shift_x_px:g} px or less"
        wanted["shift_y_px"] = f"{chosen.framing.shift_y_px:g} px or less"
        wanted["similarity"] = f"{chosen.framing.similarity_min:g} or more"
    for name, spread in measured.items():
        lines.append(
            f"  {name:12}{spread.least:9.2f}{spread.median:9.2f}{spread.greatest:10.2f}{spread.deviation:11.3f}"
            f"   {wanted.get(name, 'none')}"
        )
    if chosen.framing is None:
        lines.append(f"  no framing: {chosen.why_no_framing}")
    lines.append(f"  rule: {RULE}")
    return lines
