"""`station check`: look at everything that `station run` needs, without starting it."""

import argparse
import os
from collections.abc import Iterator
from pathlib import Path

from station.commands import looks
from station.commands.exit_codes import ExitCode
from station.commands.looks import Finding, report
from station.commands.order_factory import need_order_extras
from station.commands.part_id_factory import need_part_id_extras
from station.commands.sensor_factory import need_extras
from station.settings import blamed_on, load


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--config", type=Path, default=Path("station.toml"), help="configuration file")
    parser.add_argument(
        "--offline", action="store_true", help="check configuration, data folder and bundles only: no camera, no broker"
    )


def run(options: argparse.Namespace) -> ExitCode:
    """Print one line for each thing; the exit code is that of the first kind that failed.

    Raises:
        ConfigurationError: the configuration is wrong, or the data folder cannot be written.
    """
    return report(_findings(options.config, offline=options.offline))


def _findings(path: Path, *, offline: bool) -> Iterator[Finding]:
    settings = load(path, os.environ)
    yield Finding(f"configuration {path}")
    with blamed_on(path):
        need_extras(settings)
        need_order_extras(settings.changeover)
        need_part_id_extras(settings.camera)
        folder, running = looks.data_folder(settings)
    yield folder
    yield from looks.bundles(settings)
    if offline:
        yield from looks.calibrations(settings)
    else:
        yield from looks.cameras(settings, running=running)
        yield looks.broker(settings, running=running)
        yield from looks.sensors(settings, running=running)
        yield from looks.orders(settings, running=running)
        yield from looks.part_ids(settings, running=running)
        yield from looks.rejects(settings, running=running)
