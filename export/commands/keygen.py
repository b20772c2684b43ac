"""Make a pair of keys to sign bundles with.

    station-export keygen keys/line-2026

writes keys/line-2026.key.pem, which signs and stays where bundles are made, and keys/line-2026.pub.pem, which each
station gets and names in `trust.keys`. The id that is printed tells keys apart; `trust.revoked` takes it.
"""

import argparse
from pathlib import Path

from export.signing import make_keys
from station.errors import ConfigurationError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("name", type=Path, metavar="NAME", help="folder and beginning of the two files' names")
    parser.add_argument(
        "--passphrase-file", type=Path, metavar="FILE", help="encrypt the private key with this file's first line"
    )


def run(arguments: argparse.Namespace) -> int:
    """Make them, and say what to do with them."""
    private, public, identifier = make_keys(arguments.name, passphrase(arguments.passphrase_file))
    print(f"key {identifier}")
    print(f"{private}: signs bundles; keep it secret, and keep a copy")
    print(f'{public}: for each station; name it there: trust.keys = ["…/{public.name}"]')
    return 0


def passphrase(path: Path | None) -> bytes | None:
    """The first line of a file; None without one.

    Raises:
        ConfigurationError: it cannot be read, or the line is empty.
    """
    if path is None:
        return None
    try:
        line = path.read_bytes().partition(b"\n")[0].rstrip(b"\r")
    except OSError as exc:
        raise ConfigurationError(f"--passphrase-file {path}: cannot be read: {exc.strerror}") from exc
    if not line:
        raise ConfigurationError(f"--passphrase-file {path}: the first line is empty")
    return line
