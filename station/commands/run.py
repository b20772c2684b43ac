"""`station run`: the station with a configuration file, until SIGTERM or SIGINT."""

import argparse
import ctypes
import faulthandler
import logging
import os
import signal
from pathlib import Path

from station.commands.assembly import assembled
from station.commands.exit_codes import ExitCode
from station.heap import keep_the_heap_small
from station.settings import blamed_on, load

logger = logging.getLogger(__name__)

_PR_SET_PDEATHSIG = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--config", type=Path, default=Path("station.toml"), help="configuration file")
    parser.add_argument("--end-with-parent", action="store_true", help="stop when the process that started this ends")


def run(options: argparse.Namespace) -> ExitCode:
    """Run until asked to stop; the stop is orderly: what was captured is judged, journalled and delivered.

    Raises:
        ConfigurationError: the configuration is wrong, or the data folder cannot be written.
    """
    if options.end_with_parent:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    keep_the_heap_small()
    # The watchdog ends a stuck station with SIGABRT: the log then shows where each thread stood.
    faulthandler.enable()
    settings = load(options.config, os.environ)
    with blamed_on(options.config), assembled(settings) as station:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: station.stop())
        logger.info("station %s starts with %d camera(s)", settings.station.name, len(settings.camera))
        orderly = station.run()
    logger.info("station %s has stopped", settings.station.name)
    return ExitCode.OK if orderly else ExitCode.FAILED
