"""Options of `station-export train` for early warning, without heavy imports: the parser always needs them."""

import argparse

PROCESS_TASKS = ("forecast", "warn")
CELLS = ("gru", "lstm", "simple_rnn")
CHARTS = ("pca", "ewma")


def add_label_argument(parser: argparse._ActionsContainer) -> None:
    """Declare what a sensor log's columns are."""
    parser.add_argument("--label", metavar="COLUMN", help="column of labels in the logs (default: label, anomaly, …)")


def add_training_arguments(parser: argparse._ActionsContainer) -> None:
    """Declare the options of the tasks forecast and warn."""
    parser.add_argument(
        "--model",
        choices=[*CELLS, *CHARTS],
        default="gru",
        help="recurrent cell, or a plain chart without a network (default: %(default)s)",
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
    add_label_argument(parser)
