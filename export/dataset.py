"""Labelled pictures on disk, read into one internal form.

Every layout ends as `Sample` records in a `Dataset`; training, quantization and evaluation know nothing else. A reader
for another layout is a module in `export.layouts`, added to `_list_samples`. Pictures that cannot be used are listed in
`Dataset.problems` and never dropped in silence.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from export.duplicates import LookAlike, clusters, look_alikes
from export.layouts import coco, deeppcb, folders, voc, yolo
from export.layouts.deeppcb import BOARD_LABELS
from export.layouts.files import SPLIT_NAMES, files_in
from export.layouts.folders import find_good_label
from export.pictures import is_picture, read_mask, read_pixels, read_reference, read_sample
from export.samples import (
    SPLITS,
    Dataset,
    DatasetError,
    Facts,
    Listing,
    Problem,
    Sample,
    Split,
    worst_first,
)
from export.scan import Scan, scan
from export.splits import (
    GROUPS_FILE,
    SPLIT_FILE,
    TEST_SHARE,
    VALIDATION_SHARE,
    admit_synthetic,
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
    "read_reference",
    "read_sample",
]

ALIKE_AT_MOST = 0.1
"""A larger part of the pictures that all look alike says that likeness tells nothing about parts."""

ALIKE_IN_ANY_CASE = 10
"""Pictures of one part that are believed, however few there are."""


def read_dataset(
    root: Path,
    *,
    good_label: str | None = None,
    seed: int = 0,
    group_look_alikes: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> Dataset:
    """Recognize the layout of a folder, read its labels, look at every picture, and split.

    Args:
        root: the folder.
        good_label: name of the class without defects; None finds it by its name (`is_good_name`).
        seed: of the split, where the folder gives none.
        group_look_alikes: put pictures that look alike into one group where nothing else gives groups.
        progress: told how many pictures have been looked at, and of how many.

    Raises:
        DatasetError: the folder or a file is missing, the layout is unknown, a line cannot be read, or nothing is
            left to train on.
    """
    if not root.is_dir():
        raise DatasetError(f"{root}: is not a folder")
    listing = _list_samples(root)
    seen = scan(listing, progress)
    if not seen.samples:
        raise DatasetError(f"{root}: holds no picture that can be used{_first_of(seen.problems)}")
    good = _good_label(listing, good_label)
    seen, blank = _without_blank_masks(listing, seen, good)
    problems = [*listing.problems, *seen.problems, *blank]
    seen, synthetic = _apart(seen)
    if not seen.samples:
        raise DatasetError(
            f"{root}: holds synthetic pictures only; what is trained on them must be judged by real ones"
        )
    pairs, largest = _telling_pairs(seen)
    samples, grouped_by, too_alike = _grouped(
        listing, seen, pairs if group_look_alikes else [], largest if group_look_alikes else 0
    )
    splits, folds, split_by = _split(listing, samples, seed)
    _refuse_synthetic_tests(listing, synthetic)
    held_out = [sample for sample in samples if splits[sample.name] != "train"]
    synthetic, unplaced = _with_defects(synthetic)
    training, leaking = admit_synthetic(synthetic, held_out, seen.facts)
    problems += [*unplaced, *leaking]
    problems += [*too_alike, *_straddling(listing, samples, splits), *_alike_apart(samples, splits, pairs)]
    return Dataset(
        root=listing.root,
        layout=listing.layout,
        labels=listing.labels,
        splits={
            split: [item for item in samples if splits[item.name] == split] + (training if split == "train" else [])
            for split in SPLITS
        },
        good_label=good,
        problems=worst_first(problems),
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


def _apart(seen: Scan) -> tuple[Scan, list[Sample]]:
    """The real pictures, and the synthetic ones, which neither groups nor splits are drawn from."""
    real = [index for index, sample in enumerate(seen.samples) if sample.synthetic is None]
    synthetic = [sample for sample in seen.samples if sample.synthetic is not None]
    if not synthetic:
        return seen, []
    return replace(seen, samples=[seen.samples[index] for index in real], thumbnails=seen.thumbnails[real]), synthetic


def _with_defects(synthetic: Sequence[Sample]) -> tuple[list[Sample], list[Problem]]:
    """The synthetic pictures that say what they show, and an error for the others.

    Among boxes a picture without one shows a good part, and a synthetic one always shows a defect.
    """
    shown = [sample for sample in synthetic if sample.label is not None or len(sample.classes)]
    problems = [
        Problem(
            sample.name,
            "is synthetic and shows a defect, but has no box here; left out. Its boxes stand in the annotations.json "
            "that was written with it: put them into the labels of this folder",
            "error",
            "unlabelled",
        )
        for sample in synthetic
        if sample.label is None and not len(sample.classes)
    ]
    return shown, problems


def _refuse_synthetic_tests(listing: Listing, synthetic: Sequence[Sample]) -> None:
    """A folder or a table that would judge a model by synthetic pictures is an error."""
    table = listing.root / SPLIT_FILE
    given: Mapping[str, str] = listing.splits
    if table.is_file():
        given = read_table(table, "split", [], listing.root, optional=synthetic)
    for sample in synthetic:
        split = given.get(sample.name, "train")
        if SPLIT_NAMES.get(split.lower()) != "train":
            raise DatasetError(
                f"{table if table.is_file() else listing.root / sample.name}: {sample.name} is synthetic and stands in "
                f"{split}; synthetic pictures only train: say train, or leave it out"
            )


def _list_samples(root: Path) -> Listing:
    if (boards := deeppcb.find(root)) is not None:
        return deeppcb.read(boards)
    if described := coco.find(root):
        return coco.read(root, described)
    if described_each := voc.find(root):
        return voc.read(root, described_each)
    if yolo.recognize(root):
        return yolo.read(root)
    if folders.recognize(root):
        return folders.read(root)
    loose = sum(is_picture(path) for path in files_in(root))
    found = f"; its {loose} pictures have no labels" if loose else ""
    raise DatasetError(
        f"{root}: holds no known layout{found}; expected one of: a folder of pictures for each class (for example good "
        "and scratch); boxes as COCO (JSON), Pascal VOC (XML) or YOLO (text files); trainval.txt and test.txt (DeepPCB)"
    )


def _good_label(listing: Listing, given: str | None) -> str | None:
    if given is None:
        return find_good_label(listing.labels)
    if given not in listing.labels:
        raise DatasetError(f"{listing.root}: has no class {given!r}; its classes are {', '.join(listing.labels)}")
    return given


def _without_blank_masks(listing: Listing, seen: Scan, good: str | None) -> tuple[Scan, list[Problem]]:
    """Of good pictures a mask that marks nothing is right; of others it would say that there is no defect."""
    wrong = {
        sample.name: sample.label
        for sample in seen.samples
        if sample.name in seen.blank and sample.label is not None and listing.labels[sample.label] != good
    }
    problems = [
        Problem(
            seen.blank[name].relative_to(listing.root).as_posix(),
            f"is a mask that marks nothing, and {Path(name).name} shows {listing.labels[label]}; its place is taken as "
            "unknown",
            "warning",
            "mask",
        )
        for name, label in wrong.items()
    ]
    samples = [replace(sample, mask=None) if sample.name in wrong else sample for sample in seen.samples]
    return replace(seen, samples=samples), problems


def _telling_pairs(seen: Scan) -> tuple[Sequence[LookAlike], int]:
    """The look-alikes and how many pictures the largest cluster of them has; none where likeness tells nothing.

    Of parts that lie in the same place up to a pixel or two, all that were shifted alike look alike.
    """
    pairs = look_alikes(seen.thumbnails)
    members = clusters(len(seen.samples), [(pair.first, pair.second) for pair in pairs])
    largest = int(np.bincount(members).max())
    return ([] if largest > max(ALIKE_AT_MOST * len(seen.samples), ALIKE_IN_ANY_CASE) else pairs), largest


def _grouped(
    listing: Listing, seen: Scan, pairs: Sequence[LookAlike], largest: int
) -> tuple[list[Sample], str, list[Problem]]:
    """Samples with their groups, what decided them, and a warning where looks cannot tell parts apart."""
    samples = seen.samples
    table = listing.root / GROUPS_FILE
    if table.is_file():
        groups = read_table(table, "group", samples, listing.root)
        return [replace(sample, group=groups[sample.name]) for sample in samples], GROUPS_FILE, []
    if listing.grouped:
        return list(samples), "the layout's own groups", []
    problems = []
    if largest > 1 and not pairs:
        problems.append(
            Problem(
                "",
                f"{largest} pictures look so much alike that parts cannot be told apart by their looks; if parts were "
                f"shot several times, say which pictures belong together in {GROUPS_FILE}",
                "warning",
                "groups",
            )
        )
    members = clusters(len(samples), [*_same_files(seen), *((pair.first, pair.second) for pair in pairs)])
    together = len(samples) - len(set(members))
    grouped = [replace(sample, group=samples[member].group) for sample, member in zip(samples, members, strict=True)]
    return grouped, f"looks: {together} look-alikes joined others" if together else "each picture by itself", problems


def _same_files(seen: Scan) -> list[tuple[int, int]]:
    first: dict[str, int] = {}
    pairs = []
    for index, sample in enumerate(seen.samples):
        twin = first.setdefault(seen.facts[sample.name].sha256, index)
        if twin != index:
            pairs.append((twin, index))
    return pairs


def _straddling(listing: Listing, samples: Sequence[Sample], splits: Mapping[str, Split]) -> list[Problem]:
    found = leaks(samples, splits)
    if listing.grouped and listing.splits and found:
        # As its authors published it: their protocol, not their user's mistake.
        return [Problem("", f"{len(found)} groups stand in several of the layout's own splits", "note", "leak")]
    return found


def _alike_apart(samples: Sequence[Sample], splits: Mapping[str, Split], pairs: Sequence[LookAlike]) -> list[Problem]:
    """A warning for each picture that has a look-alike in another split, with the one that is most like it."""
    nearest: dict[str, tuple[float, Sample]] = {}
    for pair in pairs:
        first, second = samples[pair.first], samples[pair.second]
        if first.group == second.group or splits[first.name] == splits[second.name]:
            continue
        early, late = sorted((first, second), key=lambda sample: SPLITS.index(splits[sample.name]))
        if pair.alike > nearest.get(late.name, (0.0, early))[0]:
            nearest[late.name] = pair.alike, early
    return [
        Problem(
            name,
            f"{splits[name]}: looks like {other.name} in {splits[other.name]} (correlation {alike:.2f}); if both show "
            f"the same part, the figures will be better than the truth: give them one group in {GROUPS_FILE}",
            "warning",
            "leak",
        )
        for name, (alike, other) in sorted(nearest.items())
    ]


def _split(listing: Listing, samples: Sequence[Sample], seed: int) -> tuple[dict[str, Split], dict[str, int], str]:
    table = listing.root / SPLIT_FILE
    folds: dict[str, int] = {}
    if table.is_file():
        given, folds = parse_splits(table, read_table(table, "split", samples, listing.root))
        split_by = f"{SPLIT_FILE}, fold numbers" if folds else SPLIT_FILE
    elif set(listing.splits.values()) - {"train"}:
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
