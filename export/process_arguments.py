"""Options of `station-export train` for early warning, without heavy imports: the parser always needs them."""

import argparse

from pydantic import ValidationError

from export.samples import DatasetError
from station.sensor_settings import LogForm

PROCESS_TASKS = ("forecast", "warn")
CELLS = ("gru", "lstm", "simple_rnn")
LEVEL = "level"
CHARTS = (LEVEL, "pca", "ewma")
AUTO = "auto"


def add_log_arguments(parser: argparse._ActionsContainer, *, labelled: bool = True) -> None:
    """Declare how sensor logs are written, for what is not found out from them."""
    if labelled:
        parser.add_argument("--label", metavar="COLUMN", help="column of labels (default: label, anomaly, …)")
    parser.add_argument(
        "--separator", choices=[";", ",", "tab", "|"], help="between the cells (default: by the heading)"
    )
    parser.add_argument("--decimal", choices=[".", ","], help="decimal sign (default: by the first rows)")
    parser.add_argument("--time-column", metavar="COLUMN", help="column with the time (default: by its name)")
    parser.add_argument(
        "--time-format",
        metavar="FORM",
        help="such as %%d.%%m.%%Y %%H:%%M:%%S (default: ISO 8601, or a count since 1970)",
    )
    parser.add_argument(
        "--time-zone", metavar="ZONE", help="of times that name none, such as Europe/Berlin (default: UTC)"
    )
    parser.add_argument(
        "--backwards",
        choices=["error", "keep"],
        help="what to do with a log whose time goes back, as at the end of summer time (default: error)",
    )


def log_form(arguments: argparse.Namespace) -> LogForm:
    """The form of the logs that the options of `add_log_arguments` name.

    Raises:
        DatasetError: the time zone is not known.
    """
    names = ("separator", "decimal", "time_column", "time_format", "time_zone", "backwards")
    given = {name: value for name in names if (value := getattr(arguments, name, None)) is not None}
    if given.get("separator") == "tab":
        given["separator"] = "\t"
    try:
        return LogForm.model_validate(given)
    except ValidationError as exc:
        first = exc.errors(include_url=False)[0]
        option = str(first["loc"][0]).replace("_", "-")
        raise DatasetError(f"--{option} {first['input']}: {first['msg'].removeprefix('Value error, ')}") from None


def add_training_arguments(parser: argparse._ActionsContainer) -> None:
    """Declare the options of the tasks forecast and warn."""
    parser.add_argument(
        "--model",
        choices=[AUTO, *CELLS, *CHARTS],
        default=AUTO,
        help="recurrent cell, or a chart without a network (default: gru or level, what does better there)",
    )
    parser.add_argument("--step", type=float, metavar="S", help="fixed step in seconds (default: the logs' median)")
    parser.add_argument(
        "--channels", nargs="+", default=[], metavar="COLUMN", help="columns to watch (default: all columns of numbers)"
    )
    parser.add_argument(
        "--claim-hours",
        type=float,
        metavar="H",
        help="refuse a bundle whose calibration does not support one false alarm in H hours",
    )
    parser.add_argument("--no-baselines", action="store_true", help="do not compare with the plain charts")
    add_log_arguments(parser)
