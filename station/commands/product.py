"""`station product`: which products there are, and a changeover to another one."""

import argparse
import getpass
import os
from pathlib import Path

from station.adapters.control_folder import ask
from station.adapters.product_file import ProductFile
from station.commands.exit_codes import ExitCode
from station.commands.looks import as_owner, bundles
from station.errors import BundleError, ConfigurationError, NotRunning, StationError
from station.messages import ChangeoverResult, Verb
from station.settings import Settings, load

WITHIN_S = 150.0
"""Longer than any changeover may take, behind another command that is being carried out."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--config", type=Path, default=Path("station.toml"), help="configuration file")
    actions.add_parser("list", parents=[shared], help="print the products; an asterisk marks the one that runs")
    action = actions.add_parser("change", parents=[shared], help="change over: at once, or at the next start")
    action.add_argument("product", help="name or number")


def run(options: argparse.Namespace) -> ExitCode:
    """List products or change over.

    Raises:
        ConfigurationError: the configuration is wrong, or there is no such product.
        BundleError: without a running station, a bundle of the product cannot be used.
        StationError: the station refused or did not answer, or the choice could not be noted.
    """
    settings = load(options.config, os.environ)
    if not settings.product:
        raise ConfigurationError(f"{options.config}: there is no product: write a table [product.<name>]")
    if options.action == "list":
        return _list(settings)
    return _change(settings, options.product)


def _list(settings: Settings) -> ExitCode:
    with as_owner(settings.station.data_dir):
        noted = ProductFile(settings.station.data_dir).load()
    present = noted if noted in settings.product else settings.changeover.start or next(iter(settings.product))
    width = max(map(len, settings.product))
    for name, product in settings.product.items():
        number = "-" if product.number is None else product.number
        print(f"{'*' if name == present else ' '} {name:{width}}  {number}")
    return ExitCode.OK


def _change(settings: Settings, wanted: str) -> ExitCode:
    name = _named(settings, wanted)
    data_dir = settings.station.data_dir
    with as_owner(data_dir):
        try:
            answer = ask(data_dir, Verb.CHANGE_PRODUCT, {"product": name, "by": f"{getpass.getuser()}"}, WITHIN_S)
        except NotRunning as exc:
            wrong = [one for one in bundles(settings, name) if one.code is not ExitCode.OK]
            if wrong:
                raise BundleError(f"{wrong[0].what}: {wrong[0].text}; the next start begins as before") from exc
            ProductFile(data_dir).save(name)
            print(f"{exc}; its next start begins with {name}")
            return ExitCode.OK
    if not answer.accepted:
        raise StationError(answer.reason or "refused")
    result = answer.result
    if isinstance(result, ChangeoverResult) and result.former != result.product:
        print(f"{result.product} runs in place of {result.former}, after {result.took_ms:.1f} ms")
    else:
        print(f"{name} runs already")
    return ExitCode.OK


def _named(settings: Settings, wanted: str) -> str:
    if wanted in settings.product:
        return wanted
    for name, product in settings.product.items():
        if product.number is not None and wanted == str(product.number):
            return name
    known = ", ".join(
        name if one.number is None else f"{name} ({one.number})" for name, one in settings.product.items()
    )
    raise ConfigurationError(f"there is no product {wanted!r}; there are {known}")
