"""A labelled folder in words and in numbers, for people and for machines."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from export.choice import counts, has_boxes
from export.samples import SPLITS, Dataset, Problem

_SIZES_NAMED = 3


def describe(dataset: Dataset) -> list[str]:
    """Layout, classes by split, sizes, colour, groups and split, a line each."""
    what = "boxes" if has_boxes(dataset) else "pictures"
    table = counts(dataset)
    width = max(len(what), *(len(label) for label in table)) + 2
    pictures, classes = counted(len(dataset.samples), "picture"), counted(len(dataset.labels), "class", "classes")
    lines = [
        f"{dataset.root}: {dataset.layout}, {pictures}, {classes}",
        "",
        f"  {what:{width}}" + "".join(f"{split:>12}" for split in SPLITS),
    ]
    for label, by_split in table.items():
        good = "   good" if label == dataset.good_label else ""
        lines.append(f"  {label:{width}}" + "".join(f"{by_split[split]:12}" for split in SPLITS) + good)
    if has_boxes(dataset):
        lines.append(f"  {'pictures':{width}}" + "".join(f"{len(dataset.splits[split]):12}" for split in SPLITS))
    groups = len({sample.group for sample in dataset.samples})
    masks = sum(sample.mask is not None for sample in dataset.samples)
    references = sum(sample.reference is not None for sample in dataset.samples)
    lines += [
        "",
        f"  sizes: {_sizes(dataset)}",
        f"  colour: {_colours(dataset)}{_depth(dataset)}",
        f"  groups: {groups} ({dataset.grouped_by})",
        f"  split: {dataset.split_by}",
    ]
    if masks:
        lines.append(f"  masks: {masks}")
    if references:
        lines.append(f"  references: {references}")
    return lines


def counted(number: int, one: str, many: str = "") -> str:
    """A number with its noun: 1 picture, 2 pictures."""
    return f"{number} {one if number == 1 else many or f'{one}s'}"


def describe_problems(problems: Sequence[Problem], at_most: int | None = None) -> list[str]:
    """The problems, worst first, and how many more there are; notes only where all are wanted."""
    shown = list(problems) if at_most is None else [item for item in problems if item.severity != "note"][:at_most]
    lines = [f"  {problem}" for problem in shown]
    left = Counter(item.severity for item in problems[len(shown) :])
    if left:
        more = ", ".join(counted(number, severity) for severity, number in left.items())
        lines.append(f"  … and {more}; `station-export data` lists them all")
    return lines


def record(dataset: Dataset) -> dict[str, Any]:
    """The same for machines."""
    return {
        "root": str(dataset.root),
        "layout": dataset.layout,
        "labels": list(dataset.labels),
        "good_label": dataset.good_label,
        "pictures": {split: len(dataset.splits[split]) for split in SPLITS},
        "boxes": {split: sum(len(sample.classes) for sample in dataset.splits[split]) for split in SPLITS},
        "classes": {label: {split: by_split[split] for split in SPLITS} for label, by_split in counts(dataset).items()},
        "sizes": dict(_size_counts(dataset).most_common()),
        "channels": dataset.channels,
        "bits": max((facts.bits for facts in dataset.facts.values()), default=8),
        "groups": len({sample.group for sample in dataset.samples}),
        "grouped_by": dataset.grouped_by,
        "split_by": dataset.split_by,
        "masks": sum(sample.mask is not None for sample in dataset.samples),
        "references": sum(sample.reference is not None for sample in dataset.samples),
        "problems": [
            {"file": item.file, "kind": item.kind, "severity": item.severity, "what": item.what}
            for item in dataset.problems
        ],
    }


def _size_counts(dataset: Dataset) -> Counter[str]:
    return Counter(f"{facts.width_px}×{facts.height_px}" for facts in dataset.facts.values())


def _sizes(dataset: Dataset) -> str:
    sizes = _size_counts(dataset)
    named = ", ".join(f"{size} ({number})" for size, number in sizes.most_common(_SIZES_NAMED))
    if len(sizes) <= _SIZES_NAMED:
        return named
    widths = [facts.width_px for facts in dataset.facts.values()]
    heights = [facts.height_px for facts in dataset.facts.values()]
    return (
        f"{len(sizes)} different ones, {min(widths)} to {max(widths)} wide and {min(heights)} to {max(heights)} high; "
        f"most often {named}"
    )


def _colours(dataset: Dataset) -> str:
    grey = sum(facts.channels == 1 for facts in dataset.facts.values())
    if grey == len(dataset.facts):
        return "all grey"
    return "all in colour" if not grey else f"{len(dataset.facts) - grey} in colour, {grey} grey"


def _depth(dataset: Dataset) -> str:
    bits = max((facts.bits for facts in dataset.facts.values()), default=8)
    return "" if bits == 8 else f"; {bits} bits, scaled to 8 by 255/{(1 << bits) - 1}"  # noqa: PLR2004
