"""`station calibrate target`: write a target to print, and the arguments that name it."""

import argparse
from pathlib import Path

from station.commands.exit_codes import ExitCode
from station.errors import CalibrationError, ConfigurationError
from station.target import DICTIONARIES, Target, sheet
from station.target_print import pdf, png

LARGEST_PX = 200_000_000


def add_geometry(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments that describe a target."""
    parser.add_argument(
        "--target", choices=("charuco", "circles", "asymmetric"), default="charuco", help="default: %(default)s"
    )
    parser.add_argument("--columns", type=int, default=11, help="squares, or circles, in a row (default: %(default)s)")
    parser.add_argument("--rows", type=int, default=8, help="rows (default: %(default)s)")
    parser.add_argument(
        "--pitch-mm",
        type=float,
        default=15.0,
        help="side of a square; distance of circles; of an asymmetric grid, of its rows (default: %(default)s)",
    )
    parser.add_argument(
        "--dot-mm", type=float, help="side of a marker, or diameter of a circle (default: 0.7 or 0.5 of --pitch-mm)"
    )
    parser.add_argument(
        "--dictionary", choices=sorted(DICTIONARIES), default="5x5", help="bits of a marker (default: %(default)s)"
    )


def target_of(options: argparse.Namespace, stretch: float = 1.0) -> Target:
    """The target that the arguments describe; `stretch`: how many times too large the printer made it.

    Raises:
        CalibrationError: the geometry contradicts itself.
    """
    share = 0.7 if options.target == "charuco" else 0.5
    dot_mm = options.dot_mm if options.dot_mm is not None else round(share * options.pitch_mm, 3)
    return Target(
        options.target, options.columns, options.rows, options.pitch_mm * stretch, dot_mm * stretch, options.dictionary
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    add_geometry(parser)
    parser.add_argument("--dpi", type=int, default=600, help="of a PNG; best the printer's own (default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="name.pdf or name.png")


def run(options: argparse.Namespace) -> ExitCode:
    """Write the file.

    Raises:
        CalibrationError: the geometry contradicts itself, or the file cannot be written.
        ConfigurationError: an argument is wrong.
    """
    path: Path = options.out
    target = target_of(options)
    drawn = sheet(target)
    match path.suffix.lower():
        case ".pdf":
            data = pdf(drawn)
        case ".png":
            pixels = drawn.width_mm * drawn.height_mm * (options.dpi / 25.4) ** 2
            if options.dpi < 1 or pixels > LARGEST_PX:
                raise ConfigurationError(f"--dpi {options.dpi}: makes {pixels:.3g} pixels; at most {LARGEST_PX:.0e}")
            data = png(drawn, options.dpi)
        case suffix:
            raise ConfigurationError(f"--out {path}: {suffix or 'no suffix'}; allowed are .pdf and .png")
    try:
        path.write_bytes(data)
    except OSError as exc:
        raise CalibrationError(f"{path}: cannot be written: {exc.strerror}") from exc
    print(f"wrote {path}: {target.words}; {drawn.width_mm:g}×{drawn.height_mm:g} mm")
    print("print it at 100 %, not fitted to the page; then measure the bar below it: scale takes it as --bar-mm")
    dots = f" --dot-mm {target.dot_mm:g}" + (f" --dictionary {target.dictionary}" if target.kind == "charuco" else "")
    print(
        f"station calibrate scale --target {target.kind} --columns {target.columns} --rows {target.rows} "
        f"--pitch-mm {target.pitch_mm:g}{dots}"
    )
    return ExitCode.OK
