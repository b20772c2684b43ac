"""Which picture trains, which one chooses thresholds, which one is only ever tested.

Three rules: what `split.csv`, folders or lists say is obeyed; pictures of one group stay together; classes are spread
in proportion to the shares.

Groups are placed one after the other, those whose classes are most uneven first (ties in an order drawn from the
seed), each into the part that leaves the classes' shares least uneven: the largest groups choose while there is room.
scikit-learn's StratifiedGroupKFold works by the same greedy rule for equal parts.
"""

import csv
import io
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from export.layouts.files import SPLIT_NAMES, read_lines
from export.samples import SPLITS, Dataset, DatasetError, Facts, Problem, Sample, Split
from export.synthesis.marks import DIGITS

GROUPS_FILE = "groups.csv"
SPLIT_FILE = "split.csv"

VALIDATION_SHARE = 0.15
TEST_SHARE = 0.15

_NAMED_AT_MOST = 3


@dataclass(frozen=True, slots=True)
class Fold:
    """One turn of a cross-validation.

    Attributes:
        number: from 0.
        train, test: samples of the data set; together all of them.
    """

    number: int
    train: Sequence[Sample]
    test: Sequence[Sample]


def read_table(
    path: Path, column: str, samples: Sequence[Sample], root: Path, *, optional: Sequence[Sample] = ()
) -> dict[str, str]:
    """Read a table of `file` and one more column.

    A file is named by its path from the data set's folder (`/` or `\\` between the folders), or by its bare name where
    only one picture has it. Columns are separated by commas, semicolons or tabs; further columns are not read.

    Args:
        path: the file.
        column: name of the second column.
        samples: those that must have a row.
        root: the data set's folder.
        optional: those that may have one.

    Returns:
        sample's name → value, for every sample.

    Raises:
        DatasetError: a column is missing, a row names no picture or one twice, a value is empty, or a picture has no
            row.
    """
    lines = read_lines(path)
    header = lines[0] if lines else ""
    delimiter = max(",;\t", key=header.count)
    rows = csv.reader(io.StringIO("\n".join(lines)), delimiter=delimiter)
    names = [name.strip().lower() for name in next(rows, [])]
    if "file" not in names or column not in names:
        raise DatasetError(f"{path}:1: expected the columns file and {column}, found {header!r}")
    file_at, value_at = names.index("file"), names.index(column)
    by_name = _by_name([*samples, *optional])
    table: dict[str, str] = {}
    try:
        for row in rows:
            if not any(cell.strip() for cell in row):
                continue
            where = f"{path}:{rows.line_num}"
            if len(row) <= max(file_at, value_at) or not row[value_at].strip():
                raise DatasetError(f"{where}: expected a file and its {column}, found {delimiter.join(row)!r}")
            name = _normal(row[file_at])
            if name not in by_name:
                # A picture that was left out as broken may keep its row.
                if (root / name).is_file():
                    continue
                raise DatasetError(
                    f"{where}: {row[file_at]!r} is no picture of this folder; name it by its path from {root}"
                )
            sample = by_name[name]
            if sample is None:
                raise DatasetError(f"{where}: several pictures are called {name!r}; name it by its path from {root}")
            value = row[value_at].strip()
            if table.setdefault(sample.name, value) != value:
                raise DatasetError(f"{where}: {row[file_at]!r} has another {column} further up")
    except csv.Error as exc:
        raise DatasetError(f"{path}:{rows.line_num}: {exc}") from exc
    missing = [sample.name for sample in samples if sample.name not in table]
    if missing:
        raise DatasetError(
            f"{path}: has no row for {len(missing)} of {len(samples)} pictures: {some(missing)}; add the rows"
        )
    return table


def parse_splits(path: Path, table: Mapping[str, str]) -> tuple[dict[str, Split], dict[str, int]]:
    """Splits and folds out of the column `split`.

    Numbers are folds: the lowest is tested, the next one validates, the others train.

    Raises:
        DatasetError: a value is neither a split nor a number, both kinds are mixed, or nothing is left to train on.
    """
    numbers = {value for value in table.values() if value.isdecimal()}
    wrong = sorted({value for value in table.values() if value.lower() not in SPLIT_NAMES} - numbers)
    if wrong or (numbers and len(numbers) != len(set(table.values()))):
        raise DatasetError(
            f"{path}: {', '.join(wrong or sorted(set(table.values())))}: expected train, validation and test, "
            "or a number of a fold for every picture"
        )
    if not numbers:
        splits = {name: SPLIT_NAMES[value.lower()] for name, value in table.items()}
        if "train" not in splits.values():
            raise DatasetError(f"{path}: gives no picture to train")
        return splits, {}
    folds = {name: int(value) for name, value in table.items()}
    ranked = sorted(set(folds.values()))
    if len(ranked) < 3:  # noqa: PLR2004
        raise DatasetError(f"{path}: has {len(ranked)} folds; at least 3 are needed: test, validation, train")
    parts: dict[int, Split] = {ranked[0]: "test", ranked[1]: "validation"}
    return {name: parts.get(fold, "train") for name, fold in folds.items()}, folds


def draw_splits(samples: Sequence[Sample], seed: int, shares: Mapping[Split, float]) -> dict[str, Split]:
    """Deal samples out to splits: stratified, by whole groups, the same for the same seed.

    Each class stands in every split as far as it has groups for it.
    """
    wanted = [split for split in SPLITS if shares.get(split, 0) > 0]
    parts = _deal(samples, [shares[split] for split in wanted], seed)
    return {sample.name: wanted[part] for sample, part in zip(samples, parts, strict=True)}


def folds(dataset: Dataset, count: int, seed: int) -> Iterator[Fold]:
    """Turns of a cross-validation over all samples: stratified, by whole groups, the same for the same seed.

    Every real sample is tested once; synthetic ones train, except where what they were made from is tested. The folds
    of `split.csv` are taken where there are any.

    Raises:
        DatasetError: fewer than 2 folds, fewer groups than folds, or `split.csv` gives another number of folds.
    """
    samples = [sample for sample in dataset.samples if sample.synthetic is None]
    synthetic = [sample for sample in dataset.samples if sample.synthetic is not None]
    if dataset.folds:
        ranked = sorted(set(dataset.folds.values()))
        if len(ranked) != count:
            raise DatasetError(f"{dataset.root / SPLIT_FILE}: gives {len(ranked)} folds, not {count}")
        parts = [ranked.index(dataset.folds[sample.name]) for sample in samples]
    else:
        groups = len({sample.group for sample in samples})
        if not 2 <= count <= groups:  # noqa: PLR2004
            raise DatasetError(f"{dataset.root}: {count} folds of {groups} groups; expected 2 to {groups}")
        parts = _deal(samples, [1 / count] * count, seed)
    for number in range(count):
        test = [sample for sample, part in zip(samples, parts, strict=True) if part == number]
        yield Fold(
            number,
            [
                *(sample for sample, part in zip(samples, parts, strict=True) if part != number),
                *admit_synthetic(synthetic, test, dataset.facts)[0],
            ],
            test,
        )


def admit_synthetic(
    synthetic: Sequence[Sample], held_out: Sequence[Sample], facts: Mapping[str, Facts]
) -> tuple[list[Sample], list[Problem]]:
    """The synthetic pictures that may train beside these held-out ones, and an error for the others.

    What was made from a held-out picture would show the network what it is tested with.
    """
    if not synthetic:
        return [], []
    digests = {facts[sample.name].sha256[:DIGITS]: sample for sample in held_out}
    admitted, leaking = [], []
    for sample in synthetic:
        source = next((digests[digest] for digest in sample.synthetic or () if digest in digests), None)
        if source is None:
            admitted.append(sample)
        else:
            leaking.append(
                Problem(
                    sample.name,
                    f"was made from {source.name}, which is held out; left out. Where pictures were added since, the "
                    f"split was drawn anew: copy the {SPLIT_FILE} of the former training into the folder, with a row "
                    "for each new picture, or make new synthetic ones",
                    "error",
                    "leak",
                )
            )
    return admitted, leaking


def leaks(samples: Sequence[Sample], splits: Mapping[str, Split]) -> list[Problem]:
    """A warning for each group that stands in more than one split."""
    by_group: dict[str, list[Sample]] = {}
    for sample in samples:
        by_group.setdefault(sample.group, []).append(sample)
    found = []
    for group, members in by_group.items():
        parts = sorted({splits[sample.name] for sample in members}, key=SPLITS.index)
        if len(parts) > 1:
            apart = [next(sample.name for sample in members if splits[sample.name] == part) for part in parts]
            found.append(
                Problem(
                    apart[-1],
                    f"group {group!r} stands in {' and '.join(parts)} ({' and '.join(apart)}): "
                    "the figures will be better than the truth; give the whole group to one split",
                    "warning",
                    "leak",
                )
            )
    return found


def stratum(sample: Sample) -> tuple[str, int]:
    """What a sample counts as when classes are spread: its label; else its first class of boxes; else "without"."""
    if sample.label is not None:
        return ("label", sample.label)
    return ("box", int(sample.classes.min())) if len(sample.classes) else ("box", -1)


def some(names: Sequence[str]) -> str:
    """The first few of a list, in words."""
    more = len(names) - _NAMED_AT_MOST
    return ", ".join(names[:_NAMED_AT_MOST]) + (f" and {more} more" if more > 0 else "")


def _deal(samples: Sequence[Sample], shares: Sequence[float], seed: int) -> list[int]:
    """Number of a part for each sample."""
    group_names = sorted({sample.group for sample in samples})
    strata = sorted({stratum(sample) for sample in samples})
    group_index = {name: index for index, name in enumerate(group_names)}
    stratum_index = {name: index for index, name in enumerate(strata)}
    counts = np.zeros((len(group_names), len(strata)), np.int64)
    for sample in samples:
        counts[group_index[sample.group], stratum_index[stratum(sample)]] += 1
    part_of = _deal_groups(counts, np.array(shares, np.float64) / sum(shares), seed)
    return [int(part_of[group_index[sample.group]]) for sample in samples]


def _deal_groups(counts: npt.NDArray[np.int64], shares: npt.NDArray[np.float64], seed: int) -> npt.NDArray[np.int64]:
    """Part of each group; `counts` is `[groups, classes]`."""
    groups, classes = counts.shape
    parts = len(shares)
    # Full is 1 for every class in every part.
    room = counts.sum(axis=0)[None, :] * shares[:, None]
    order = np.random.default_rng((seed, 2)).permutation(groups)
    order = order[np.argsort(-counts[order].std(axis=1), kind="stable")]
    filled = np.zeros((parts, classes))
    part_of = np.zeros(groups, np.int64)
    for group in order:
        tried = (filled[None] + np.eye(parts)[:, :, None] * counts[group]) / room[None]
        unevenness = tried.std(axis=1).mean(axis=1)
        # Of parts that are equally good the emptiest.
        size = filled.sum(axis=1) / shares
        chosen = int(np.lexsort((size, np.round(unevenness, 12)))[0])
        part_of[group] = chosen
        filled[chosen] += counts[group]
    _give_each_part_each_class(counts, part_of, parts, order)
    return part_of


def _give_each_part_each_class(
    counts: npt.NDArray[np.int64], part_of: npt.NDArray[np.int64], parts: int, order: npt.NDArray[np.int64]
) -> None:
    """Move the smallest group of a class that a part lacks, from the part that has most groups of that class."""
    for klass in range(counts.shape[1]):
        holders = order[counts[order, klass] > 0]
        if len(holders) < parts:
            continue
        for part in range(parts):
            in_part = np.bincount(part_of[holders], minlength=parts)
            if in_part[part]:
                continue
            donors = holders[part_of[holders] == in_part.argmax()]
            part_of[donors[counts[donors].sum(axis=1).argmin()]] = part


def _by_name(samples: Sequence[Sample]) -> dict[str, Sample | None]:
    """Samples by path and by bare name; None where a bare name is not unique."""
    found: dict[str, Sample | None] = {}
    for sample in samples:
        bare = _normal(sample.name).rsplit("/", 1)[-1]
        found[bare] = None if bare in found else sample
    return found | {_normal(sample.name): sample for sample in samples}


def _normal(name: str) -> str:
    # The same letter can be one code point or two; disks differ.
    return unicodedata.normalize("NFC", name.strip().replace("\\", "/").removeprefix("./"))
