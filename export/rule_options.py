"""Options that say by which rule a threshold is chosen, and whether the pictures at hand allow it."""

import argparse
import math

from export.evaluation import Task, is_bad
from export.option_types import share
from export.samples import Dataset, DatasetError, with_references
from export.thresholds import Costs, MaxFalseReject, MaxMiss, Rule

MOST_UNEQUAL = 1e6
"""Of two costs: beyond that the cheaper one is lost in rounding."""


def add_rule_arguments(parser: argparse._ActionsContainer) -> None:
    """Declare the options, of which one names a rule."""
    rule = parser.add_mutually_exclusive_group()
    rule.add_argument(
        "--max-false-reject", type=share, metavar="R", help="largest share of good parts rejected, 0 to 1"
    )
    rule.add_argument("--max-miss", type=share, metavar="R", help="largest share of bad parts missed, 0 to 1")
    rule.add_argument("--costs", type=_costs, metavar="FR:MISS", help="cost of a false reject and of a miss, as 1:50")
    parser.add_argument(
        "--bad-share", type=share, metavar="P", help="with --costs: share of bad parts on the line (default: 0.5)"
    )


def rule_of(arguments: argparse.Namespace) -> Rule | None:
    """The rule that was asked for; None: none was.

    Raises:
        DatasetError: `--bad-share` without `--costs`.
    """
    if arguments.bad_share is not None and arguments.costs is None:
        raise DatasetError("--bad-share: goes with --costs only")
    if arguments.max_false_reject is not None:
        return MaxFalseReject(arguments.max_false_reject)
    if arguments.max_miss is not None:
        return MaxMiss(arguments.max_miss)
    if arguments.costs is not None:
        false_reject, miss = arguments.costs
        return Costs(false_reject, miss, 0.5 if arguments.bad_share is None else arguments.bad_share)
    return None


def refuse_rule(rule: Rule, dataset: Dataset, kind: str, where: str = "") -> None:
    """Say before a training what would be said after it: that a rule cannot be applied to what is held out.

    Args:
        rule: that was asked for.
        dataset: what the training has.
        kind: its task, `detect`, `classify` or `anomaly`.
        where: stands before the message.

    Raises:
        DatasetError: it cannot.
    """
    task = Task(kind, dataset.labels, dataset.good)
    truths = [is_bad(sample, task) for sample in with_references(dataset.splits["validation"])]
    if None in truths:
        what = (
            "the labels do not say which pictures are of good parts; name that class good, ok or normal, or say which "
            "it is with --good, or leave the rule out"
        )
    elif False not in truths:
        what = "no picture of a good part is held out; add some, or leave the rule out"
    elif True not in truths and not isinstance(rule, MaxFalseReject):
        what = "no picture of a bad part is held out, so misses cannot be counted; add some, or give --max-false-reject"
    else:
        return
    raise DatasetError(f"{where}threshold for {rule}: {what}")


def _costs(text: str) -> tuple[float, float]:
    try:
        false_reject, miss = (float(part) for part in text.split(":"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text}: expected two numbers, as 1:50") from None
    if not (0 < false_reject < math.inf and 0 < miss < math.inf):
        raise argparse.ArgumentTypeError(f"{text}: both costs must be above 0, and finite")
    if max(false_reject, miss) > MOST_UNEQUAL * min(false_reject, miss):
        raise argparse.ArgumentTypeError(
            f"{text}: one counts for nothing beside the other; use --max-miss 0, or --max-false-reject 0"
        )
    return false_reject, miss
