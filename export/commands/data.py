"""Say what stands in a labelled folder before anything is trained on it: classes, splits, sizes, and what is wrong.

    station-export data DIR
    station-export data DIR --sheet samples.png
    station-export data DIR --groups DIR/groups.csv --splits DIR/split.csv

The sheet shows samples of each class with their masks and boxes: look at it. Files that cannot be used are listed, and
so are pictures that look alike and stand in two splits. With --groups and --splits the groups and splits that a
training would use are written as tables, to be corrected and obeyed from then on.
"""

import argparse
import csv
import io
import json
import shlex
from pathlib import Path

import cv2

from export.choice import choose
from export.dataset import read_dataset
from export.option_types import count_from
from export.progress import ProgressLine
from export.samples import Dataset, DatasetError, worst_first
from export.sheet import COLUMNS, draw_sheet
from export.summary import counted, describe, describe_problems, record
from station.whole_file import write_whole


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("folder", type=Path, metavar="DIR", help="the labelled folder")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--sheet", type=Path, metavar="FILE", help="write samples with their labels drawn, a PNG")
    parser.add_argument(
        "--of-each",
        type=count_from(1),
        default=COLUMNS,
        metavar="N",
        help="samples a class on the sheet (default: %(default)s)",
    )
    parser.add_argument("--good", metavar="NAME", help="the class without defects (default: found by its name)")
    parser.add_argument("--groups", type=Path, metavar="FILE", help="write the groups as a table (file, group)")
    parser.add_argument("--splits", type=Path, metavar="FILE", help="write the splits as a table (file, split)")
    parser.add_argument(
        "--each-by-itself",
        action="store_true",
        help="do not put pictures that look alike into one group; with --groups this can be made to last",
    )


def run(arguments: argparse.Namespace) -> int:
    """Look and print."""
    dataset = read_dataset(
        arguments.folder,
        good_label=arguments.good,
        group_look_alikes=not arguments.each_by_itself,
        progress=ProgressLine("looking at the pictures"),
    )
    try:
        choice = choose(dataset)
        task, why, problems = str(choice.task), choice.why, worst_first((*dataset.problems, *choice.problems))
    except DatasetError as exc:
        # What is there is told all the same: it is the way to find out what is missing.
        task, why, problems = "", str(exc), dataset.problems
    if arguments.sheet is not None:
        done, encoded = cv2.imencode(".png", draw_sheet(dataset, arguments.of_each))
        if not done:
            raise DatasetError("OpenCV could not write a PNG")
        write_whole(arguments.sheet, encoded.tobytes())
    for path, column in ((arguments.groups, "group"), (arguments.splits, "split")):
        if path is not None:
            write_whole(path, _table(dataset, column).encode())
    if arguments.json:
        print(json.dumps(record(dataset) | {"task": task or None, "task_reason": why}))
        return 0
    for line in describe(dataset):
        print(line)
    print(f"  task: {task}, since {why}" if task else f"  no task: {why}")
    if problems:
        print(f"\n{counted(len(problems), 'thing')} to know:")
        for line in describe_problems(problems):
            print(line)
    if arguments.sheet is not None:
        print(f"\nwrote {arguments.sheet}: look whether the labels are right")
    if task:
        print(f"\nnext: station-export train {shlex.quote(str(arguments.folder))}")
    return 0


def _table(dataset: Dataset, column: str) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["file", column])
    rows = [
        (sample.name, sample.group if column == "group" else split)
        for split, samples in dataset.splits.items()
        for sample in samples
    ]
    writer.writerows(sorted(rows))
    return text.getvalue()
