"""`station init`: write a commented configuration file."""

import argparse
from pathlib import Path

from station.commands.exit_codes import ExitCode
from station.configuration_text import TEMPLATE
from station.errors import ConfigurationError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("file", nargs="?", type=Path, default=Path("station.toml"), help="file to write")
    parser.add_argument("--force", action="store_true", help="write over an existing file")


def run(options: argparse.Namespace) -> ExitCode:
    """Write the file; an existing one is kept unless --force is given.

    Raises:
        ConfigurationError: the file exists or cannot be written.
    """
    path: Path = options.file
    try:
        with path.open("w" if options.force else "x", encoding="utf-8") as stream:
            stream.write(TEMPLATE.format(file=path))
    except FileExistsError as exc:
        raise ConfigurationError(f"{path}: exists already; choose another name, or --force to write over it") from exc
    except OSError as exc:
        raise ConfigurationError(f"{path}: cannot be written: {exc.strerror}") from exc
    print(f"wrote {path}; now edit it, then: station check --config {path}")
    return ExitCode.OK
