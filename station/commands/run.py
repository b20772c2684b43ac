"""`station run`: the station with a configuration file, until SIGTERM or SIGINT."""

import argparse
import ctypes
import faulthandler
import logging
import os
import signal
from contextlib import suppress
from pathlib import Path

from station.commands.assembly import assembled
from station.commands.exit_codes import ExitCode
from station.settings import blamed_on, load

logger = logging.getLogger(__name__)

_PR_SET_PDEATHSIG = 1
_M_MMAP_THRESHOLD, _M_ARENA_MAX = -3, -8
ARENAS = 2
"""Heaps of the C library that the threads share. By default each of a dozen threads has its own, and what the busiest
moment of each left in it free is of no use to the others: a station that runs for months then grows by steps."""
MAPPED_FROM_BYTES = 128 * 1024
"""From this size on a block is mapped by itself and goes back to the system when it is free. By default the C library
moves pictures into the heap after it has freed the first one, and each that lies beside something small and lasting
leaves a hole there."""


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
    with suppress(AttributeError):
        # Another C library than glibc has no such call, and no such arenas.
        for parameter, value in ((_M_ARENA_MAX, ARENAS), (_M_MMAP_THRESHOLD, MAPPED_FROM_BYTES)):
            ctypes.CDLL(None).mallopt(parameter, value)
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
