"""What to train on a labelled folder when nobody says so, and why; and whether there is enough to train on."""

from collections import Counter
from dataclasses import dataclass
from typing import Literal, get_args

from export.samples import SPLITS, Dataset, DatasetError, Problem

Task = Literal["detect", "classify", "anomaly"]
TASKS: tuple[Task, ...] = get_args(Task)

FEW_PICTURES = 8
"""With fewer training pictures of a class, what is learnt is these pictures and not the class."""

FEWEST_PICTURES = 3
"""One to train on, one to choose a threshold by, one to test."""

FEWEST_GOOD = 10
"""Good pictures that a limit of the normal can be drawn from at all."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A task that fits the labels.

    Attributes:
        task: what to train.
        why: plain words, to go on with "since".
        problems: what speaks against a good result.
    """

    task: Task
    why: str
    problems: tuple[Problem, ...]


def choose(dataset: Dataset, wanted: Task | None = None) -> Choice:
    """Find the task that the labels ask for, or check that they serve the one that is wanted.

    Boxes ask for `detect`; several classes for `classify`; good pictures alone, or with too few defects to learn from,
    for `anomaly`.

    Raises:
        DatasetError: the labels do not serve the task, there is one class only and it is not the good one, or there
            are too few pictures.
    """
    task, why = _fitting(dataset)
    if wanted is not None and wanted != task:
        _refuse_unfit(dataset, wanted)
        task, why = wanted, "you chose it"
    check = {"detect": _check_boxes, "classify": _check_classes, "anomaly": _check_good}[task]
    return Choice(task, why, tuple(check(dataset)))


def counts(dataset: Dataset) -> dict[str, Counter[str]]:
    """Class → split → pictures, or boxes where boxes are labelled; classes without any are there, too."""
    table: dict[str, Counter[str]] = {label: Counter() for label in dataset.labels}
    for split, samples in dataset.splits.items():
        for sample in samples:
            if sample.label is not None:
                table[dataset.labels[sample.label]][split] += 1
            for label in sample.classes.tolist():
                table[dataset.labels[label]][split] += 1
    return table


def has_boxes(dataset: Dataset) -> bool:
    """Whether the folder labels boxes and not whole pictures."""
    return any(sample.label is None for sample in dataset.samples)


def _fitting(dataset: Dataset) -> tuple[Task, str]:
    if has_boxes(dataset):
        return "detect", "boxes are labelled"
    train = {sample.label for sample in dataset.splits["train"]}
    good = dataset.good
    if good is not None and train == {good}:
        return "anomaly", f"there is nothing but {dataset.good_label} to train on"
    if len(train) < 2:  # noqa: PLR2004
        return _refuse_one_class(dataset)
    bad = sum(sample.label != good for sample in dataset.splits["train"])
    if good is not None and bad < FEW_PICTURES <= sum(sample.label == good for sample in dataset.splits["train"]):
        return "anomaly", f"{bad} training pictures of defects are too few to learn them from"
    masks = ", and masks show where the defects are" if any(sample.mask for sample in dataset.samples) else ""
    return "classify", f"each picture has one of {len(dataset.labels)} classes{masks}"


def _refuse_one_class(dataset: Dataset) -> tuple[Task, str]:
    names = sorted({dataset.labels[sample.label] for sample in dataset.splits["train"] if sample.label is not None})
    if names == [dataset.good_label]:
        raise DatasetError(
            f"{dataset.root}: all training pictures are of one class, {dataset.good_label}; --task anomaly trains on "
            "good parts alone; for --task classify add a folder for each kind of defect"
        )
    raise DatasetError(
        f"{dataset.root}: all training pictures are of one class, {', '.join(names)}; if these are the good parts, "
        f"name the folder good (or give --good {names[0]!r}) to train on good parts alone; else add a second class"
    )


def _refuse_unfit(dataset: Dataset, wanted: Task) -> None:
    boxes = has_boxes(dataset)
    if wanted == "detect" and not boxes:
        raise DatasetError(
            f"{dataset.root}: --task detect needs labelled boxes (COCO, Pascal VOC, YOLO or DeepPCB); "
            "here each picture has a class"
        )
    if wanted != "detect" and boxes:
        raise DatasetError(
            f"{dataset.root}: --task {wanted} needs a folder of pictures for each class; here boxes are labelled"
        )
    if wanted == "anomaly" and dataset.good is None:
        raise DatasetError(
            f"{dataset.root}: --task anomaly trains on good parts, and none of {', '.join(dataset.labels)} says good; "
            "name it with --good"
        )
    if wanted == "classify" and len({sample.label for sample in dataset.splits["train"]}) < 2:  # noqa: PLR2004
        _refuse_one_class(dataset)


def _check_boxes(dataset: Dataset) -> list[Problem]:
    if not any(len(sample.classes) for sample in dataset.splits["train"]):
        raise DatasetError(f"{dataset.root}: no box is labelled in the training pictures; there is nothing to learn")
    _need(dataset, len(dataset.samples), FEWEST_PICTURES, "pictures", "take more")
    return _few(dataset, "boxes")


def _check_classes(dataset: Dataset) -> list[Problem]:
    for label, by_split in counts(dataset).items():
        remedy = "take more, or move its folder away to train on the other classes alone"
        _need(dataset, by_split.total(), FEWEST_PICTURES, f"pictures of {label}", remedy)
    return _few(dataset, "pictures")


def _check_good(dataset: Dataset) -> list[Problem]:
    good = sum(sample.label == dataset.good for sample in dataset.splits["train"])
    _need(dataset, good, FEWEST_GOOD, f"training pictures of {dataset.good_label}", "take more")
    if all(sample.label == dataset.good for sample in dataset.samples):
        return [
            Problem(
                "",
                "there are no defects to test with: how many are found stays unknown; put some pictures into a folder "
                "of their own beside the good ones",
                "warning",
                "few",
            )
        ]
    if dataset.splits["test"] and all(sample.label == dataset.good for sample in dataset.splits["test"]):
        bad = sum(sample.label != dataset.good for sample in dataset.samples)
        return [
            Problem(
                "",
                f"no defects among the test pictures: how many are found stays unknown, since good parts alone are "
                f"trained on; put the {bad} pictures of defects into folders below test, as test/dent, to measure "
                "with them",
                "warning",
                "few",
            )
        ]
    return []


def _need(dataset: Dataset, found: int, needed: int, what: str, remedy: str) -> None:
    if found < needed:
        raise DatasetError(
            f"{dataset.root}: {found} {what} that can be used; at least {needed} are needed, and some dozens for a "
            f"useful result; {remedy}"
        )


def _few(dataset: Dataset, what: str) -> list[Problem]:
    problems = []
    for label, by_split in counts(dataset).items():
        if by_split["train"] < FEW_PICTURES:
            problems.append(
                Problem(
                    "",
                    f"{label}: {by_split['train']} training {what} are very few; expect poor results for this class",
                    "warning",
                    "few",
                )
            )
        missing = [split for split in SPLITS[1:] if dataset.splits[split] and not by_split[split]]
        if missing:
            problems.append(
                Problem(
                    "", f"{label}: no {what} in {' and '.join(missing)}: nothing is known of it there", "warning", "few"
                )
            )
    return problems
