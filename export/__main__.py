"""`station-export`: train a model, score a bundle, write a bundle again, render boards."""

import argparse
import importlib
import os
import sys
import traceback
from collections.abc import Sequence

from export.chatter import without_chatter
from station.errors import StationError

COMMANDS = {
    "data": "say what stands in a labelled folder, and what is wrong with it",
    "train": "train a network on a labelled folder and write its bundle",
    "package": "quantize a finished or interrupted training and write its bundle",
    "evaluate": "score a bundle on a labelled folder, through the deployed path",
    "predict": "judge pictures with a bundle, one line each",
    "threshold": "choose a bundle's threshold anew, without training again",
    "keygen": "make a pair of keys to sign bundles with",
    "sign": "sign a bundle, so that stations which trust the key use it",
    "synthesize": "make pictures of rare defects from the few that there are",
    "render": "write rendered circuit boards as a labelled folder",
    "render-process": "write logs of the simulated oven and press",
    "tune": "choose a bundle's threshold on frames of the simulated line",
}
"""Name of the module in `export.commands`, with - for _ → what it does."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand.

    Returns:
        The exit code: 0 done, 1 an error, 2 wrong arguments, 3 trained, but the bundle can only be made where
        TensorFlow is installed, 130 interrupted.
    """
    listing = "\n".join(f"  {name:14} {text}" for name, text in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="station-export",
        description="Train, quantize, evaluate and package the station's models.",
        epilog=f"commands:\n{listing}\n\nstation-export COMMAND --help says more.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--debug", action="store_true", help="show where an error came from")
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND")
    parser.add_argument("rest", nargs=argparse.REMAINDER, metavar="...", help=argparse.SUPPRESS)
    words = sys.argv[1:] if arguments is None else arguments
    if not words:
        parser.print_help(sys.stderr)
        return 2
    chosen = parser.parse_args(words)
    # TensorFlow tells which instructions the processor has; its errors still come through.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    try:
        return _run(chosen, words)
    except KeyboardInterrupt:
        sys.stderr.write("station-export: interrupted\n")
        return 130
    except (StationError, OSError) as exc:
        if chosen.debug:
            traceback.print_exc()
        sys.stderr.write(f"station-export: error: {exc}\n")
        return 1


def _run(chosen: argparse.Namespace, words: Sequence[str]) -> int:
    # Only the chosen command is imported: TensorFlow alone takes five seconds, and not every command needs it.
    try:
        with without_chatter():
            command = importlib.import_module(f"export.commands.{chosen.command.replace('-', '_')}")
    except ModuleNotFoundError as exc:
        if chosen.debug:
            traceback.print_exc()
        sys.stderr.write(
            f"station-export: error: {chosen.command} needs the Python package {exc.name}, which is not installed; the "
            "extra `export` of inspection-station brings it along\n"
        )
        return 1
    parser = argparse.ArgumentParser(
        prog=f"station-export {chosen.command}",
        description=command.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_arguments(parser)
    return int(command.run(parser.parse_args(chosen.rest, argparse.Namespace(words=tuple(words)))))


if __name__ == "__main__":
    sys.exit(main())
