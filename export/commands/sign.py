"""Sign a bundle, so that stations which trust the key use it.

    station-export sign detector.bundle --key keys/line-2026.key.pem

The signature covers every byte of every member. A bundle may have several signatures: while one key takes the place of
another, sign with both. The file gets another sha256 by it.
"""

import argparse
from pathlib import Path

from export.commands.keygen import passphrase
from export.signing import read_private_key, signed
from station.bundle_file import head_of, open_members, read_file
from station.manifest import open_bundle
from station.process_bundle import open_process_bundle
from station.whole_file import write_whole


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="the bundle file")
    parser.add_argument("--key", type=Path, required=True, metavar="FILE", help="private key, NAME.key.pem")
    parser.add_argument("--passphrase-file", type=Path, metavar="FILE", help="its first line opens the private key")
    parser.add_argument("--out", type=Path, metavar="BUNDLE", help="the file to write (default: the bundle itself)")


def run(arguments: argparse.Namespace) -> int:
    """Sign what is a bundle, and nothing else."""
    key = read_private_key(arguments.key, passphrase(arguments.passphrase_file))
    origin = str(arguments.bundle)
    data = read_file(arguments.bundle)
    contents = open_members(data, origin)
    bundle = open_process_bundle(data, origin) if head_of(contents, origin).is_process else open_bundle(data, origin)
    whole = signed(data, origin, key)
    out = arguments.out or arguments.bundle
    write_whole(out, whole)
    after = open_members(whole, str(out))
    print(f"{bundle.ref.name} {bundle.ref.version}: signed by {', '.join(one.key for one in after.signatures)}")
    print(f"wrote {out}, {len(whole)} bytes, sha256 {after.sha256}")
    return 0
