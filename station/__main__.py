"""The command line of the station. Each subcommand is a module of `station.commands`, imported when it is called."""

import argparse
import importlib
import logging
import os
import sys
from collections.abc import Sequence
from typing import Any

from station import __version__
from station.adapters.journald_log import JournaldHandler, goes_to_journal
from station.commands.exit_codes import ExitCode
from station.errors import (
    BundleError,
    CalibrationError,
    CameraError,
    ConfigurationError,
    LogError,
    ModelError,
    ProtocolError,
    SensorError,
    StationError,
)

COMMANDS = {
    "demo": "show the whole station at work: simulated line, shipped model, embedded broker",
    "run": "run the station with a configuration file",
    "init": "write a commented configuration file",
    "check": "check configuration, data folder, bundles, cameras and broker without starting",
    "doctor": "look at the configuration and at this machine, and say what to do",
    "support-bundle": "collect what someone far away needs to see in one file, secrets removed",
    "product": "list the products of the line, or change over to another one",
    "bundle": "look into the library of bundles, install, activate and go back",
    "journal": "count, check, export or mend what a station has kept",
    "replay": "judge stored pictures again with what decided then, and say whether it is the same",
    "readings": "show what the process channels were when a part was judged, or write them as a log",
    "calibrate": "quality limits, flat field and scale of a camera, from pictures that it takes",
    "inspect": "judge single pictures and write annotated ones",
    "watch": "subscribe to a broker and print each verdict as it arrives",
    "bench": "measure the whole path against a bare inference loop",
    "schema": "print the JSON Schemas of the messages and of the settings",
}
"""Name → one line of help. The module has the same name, with _ for -, and two functions: `add_arguments`, `run`."""

_EPILOG = """\
exit codes:
  0  all is well
  1  failed: the account does not balance, or a thread died
  2  wrong usage
  3  a bundle is missing, altered or not what it promises
  4  a camera cannot be used
  5  the broker cannot be used
  6  a picture cannot be read
  7  a source of readings cannot be used
  8  a calibration cannot be made, or does not fit its camera
  9  a reject output cannot be used
  78 the configuration is wrong (the systemd unit does not restart on it)

begin with:
  station demo                       nothing else is needed
  station init station.toml          then edit it
  station check --config station.toml
  station run --config station.toml
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand and return its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = _parser(given).parse_args(given)
    _begin_log(options.verbose)
    try:
        return int(_module(options.command).run(options))
    except StationError as exc:
        if options.debug:
            raise
        for line in str(exc).splitlines():
            print(f"station {options.command}: {line}", file=sys.stderr)
        return int(_exit_code(exc))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of our output has gone (`| head`): nothing is wrong, and nothing more can be said.
        sys.stderr.close()
        return int(ExitCode.OK)


def _parser(given: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="station",
        description="Edge inspection station: cameras in, verdicts out over MQTT, every frame accounted for.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"inspection-station {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, summary in COMMANDS.items():
        command = commands.add_parser(
            name, help=summary, description=summary, formatter_class=argparse.ArgumentDefaultsHelpFormatter
        )
        command.add_argument("--debug", action="store_true", help="show a traceback when something fails")
        command.add_argument("-v", "--verbose", action="store_true", help="log more")
        # Only the command that was called is imported: `station run` need not load what the others need.
        if name in given:
            _module(name).add_arguments(command)
    return parser


def _module(command: str) -> Any:
    return importlib.import_module(f"station.commands.{command.replace('-', '_')}")


def _begin_log(verbose: bool) -> None:
    """Log to systemd's journal with fields where stderr leads there, else as plain lines to stderr."""
    level = logging.DEBUG if verbose else logging.INFO
    if goes_to_journal(sys.stderr, os.environ):
        logging.basicConfig(level=level, format="%(message)s", handlers=[JournaldHandler()])
    else:
        logging.basicConfig(level=level, format="%(asctime)s %(levelname)-7s %(name)s: %(message)s", stream=sys.stderr)


def _exit_code(error: StationError) -> ExitCode:
    match error:
        case ConfigurationError():
            return ExitCode.CONFIGURATION
        case BundleError() | ModelError():
            return ExitCode.BUNDLE
        case CameraError():
            return ExitCode.CAMERA
        case CalibrationError():
            return ExitCode.CALIBRATION
        case ProtocolError():
            return ExitCode.BROKER
        case SensorError() | LogError():
            return ExitCode.SENSORS
        case _:
            return ExitCode.FAILED


if __name__ == "__main__":
    sys.exit(main())
