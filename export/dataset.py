"""Labelled pictures on disk, read into one internal form.

Every layout ends as `Sample` records in a `Dataset`; training, quantization and evaluation know nothing else. A reader
for another layout is a module in `export.layouts`, added to `_list_samples`. Pictures that cannot be used are listed in
`Dataset.problems` and never dropped in silence.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from export.layouts import deeppcb, folders
from export.layouts.deeppcb import BOARD_LABELS
from export.layouts.folders import find_good_label
from export.pictures import read_mask, read_pixels, read_sample
from export.samples import (
    SPLITS,
    Dataset,
    DatasetError,
    Facts,
    Listing,
    Problem,
    Sample,
    Split,
)
from export.scan import scan
from export.splits import (
    GROUPS_FILE,
    SPLIT_FILE,
    TEST_SHARE,
    VALIDATION_SHARE,
    draw_splits,
    leaks,
    parse_splits,
    read_table,
)

__all__ = [
    "BOARD_LABELS",
    "SPLITS",
    "Dataset",
    "DatasetError",
    "Facts",
    "Problem",
    "Sample",
    "Split",
    "fingerprint",
    "read_dataset",
    "read_mask",
    "read_pixels",
    "read_sample",
]

_BY_SEVERITY = ("error", "warning", "note")


def read_dataset(root: Path, *, good_label: str | None = None, seed: int = 0) -> Dataset:
    """Recognize the layout of a folder, read its labels, look at every picture, and split.

    Args:
        root: the folder.
        good_label: name of the class without defects; None finds it by its name (`is_good_name`).
        seed: of the split, where the folder gives none.

    Raises:
        DatasetError: the folder or a file is missing, the layout is unknown, a line cannot be read, or nothing is
            left to train on.
    """
    if not root.is_dir():
        raise DatasetError(f"{root}: is not a folder")
    listing = _list_samples(root)
    seen = scan(listing.samples, listing.root)
    samples = list(seen.samples)
    if not samples:
        raise DatasetError(f"{root}: holds no picture that can be used{_first_of(seen.problems)}")
    problems = [*listing.problems, *seen.problems]
    samples, grouped_by = _grouped(listing, samples)
    splits, folds, split_by = _split(listing, samples, seed)
    problems += leaks(samples, splits)
    return Dataset(
        root=listing.root,
        layout=listing.layout,
        labels=listing.labels,
        splits={split: [item for item in samples if splits[item.name] == split] for split in SPLITS},
        good_label=_good_label(listing, good_label),
        problems=tuple(sorted(problems, key=lambda problem: _BY_SEVERITY.index(problem.severity))),
        facts=seen.facts,
        folds=folds,
        split_by=split_by,
        grouped_by=grouped_by,
    )


def fingerprint(samples: Sequence[Sample]) -> str:
    """sha256 over the sorted hashes of pictures and labels: the same data gives the same value on any machine."""
    digests = []
    for sample in samples:
        digest = hashlib.sha256(sample.name.encode())
        digest.update(hashlib.sha256(sample.picture.read_bytes()).digest())
        digest.update(np.ascontiguousarray(sample.boxes_px, "<f4").tobytes())
        digest.update(np.ascontiguousarray(sample.classes, "<i8").tobytes())
        if sample.label is not None:
            digest.update(b"label %d" % sample.label)
        if sample.mask is not None:
            digest.update(b"mask" + hashlib.sha256(sample.mask.read_bytes()).digest())
        digests.append(digest.digest())
    return hashlib.sha256(b"".join(sorted(digests))).hexdigest()


def _list_samples(root: Path) -> Listing:
    if (boards := deeppcb.find(root)) is not None:
        return deeppcb.read(boards)
    if folders.recognize(root):
        return folders.read(root)
    raise DatasetError(
        f"{root}: holds no known layout; expected a folder of pictures for each class, or trainval.txt and test.txt "
        "(DeepPCB) there or in its folder PCBData"
    )


def _good_label(listing: Listing, given: str | None) -> str | None:
    if given is None:
        return find_good_label(listing.labels)
    if given not in listing.labels:
        raise DatasetError(f"{listing.root}: has no class {given!r}; its classes are {', '.join(listing.labels)}")
    return given


def _grouped(listing: Listing, samples: Sequence[Sample]) -> tuple[list[Sample], str]:
    table = listing.root / GROUPS_FILE
    if table.is_file():
        groups = read_table(table, "group", samples, listing.root)
        return [replace(sample, group=groups[sample.name]) for sample in samples], GROUPS_FILE
    if listing.grouped:
        return list(samples), "the layout's own groups"
    return list(samples), "each picture by itself"


def _split(listing: Listing, samples: Sequence[Sample], seed: int) -> tuple[dict[str, Split], dict[str, int], str]:
    table = listing.root / SPLIT_FILE
    folds: dict[str, int] = {}
    if table.is_file():
        given, folds = parse_splits(table, read_table(table, "split", samples, listing.root))
        split_by = f"{SPLIT_FILE}, fold numbers" if folds else SPLIT_FILE
    elif listing.splits:
        given = {sample.name: listing.splits[sample.name] for sample in samples}
        split_by = "the folder's own lists" if listing.grouped else "the folder's own train, validation and test"
    else:
        shares: dict[Split, float] = {
            "train": 1 - VALIDATION_SHARE - TEST_SHARE,
            "validation": VALIDATION_SHARE,
            "test": TEST_SHARE,
        }
        return draw_splits(samples, seed, shares), {}, f"drawn: by class and whole groups, seed {seed}"
    trained_on = [sample for sample in samples if given[sample.name] == "train"]
    if not trained_on:
        raise DatasetError(f"{listing.root}: its split leaves nothing to train on")
    if "validation" not in given.values():
        # A threshold must be chosen on pictures that training never saw.
        shares = {"train": 1 - VALIDATION_SHARE, "validation": VALIDATION_SHARE}
        given = given | draw_splits(trained_on, seed, shares)
        split_by += f"; validation drawn from train, seed {seed}"
    return given, folds, split_by


def _first_of(problems: Sequence[Problem]) -> str:
    return f"; the first problem: {problems[0]}" if problems else ""
