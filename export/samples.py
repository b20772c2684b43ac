"""What a labelled folder becomes: samples by split, and the list of what is wrong with it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from station.errors import StationError

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")

Severity = Literal["error", "warning", "note"]
Kind = Literal[
    "broken",
    "empty",
    "duplicate",
    "contradiction",
    "unlabelled",
    "mask",
    "label",
    "leak",
    "few",
    "ignored",
    "groups",
]


class DatasetError(StationError):
    """A data set cannot be used: the text names the file, the line and what is expected there."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Something about a labelled folder that its owner should know.

    Attributes:
        file: path relative to the data set, or "" for the folder as a whole.
        what: plain words, with what to do.
        severity: `error`: the file is left out; `warning`: it is used, and figures or training may suffer;
            `note`: passed over on purpose, or nothing to do.
        kind: for counting.
    """

    file: str
    what: str
    severity: Severity
    kind: Kind

    def __str__(self) -> str:
        return f"{self.severity}: {self.file}: {self.what}" if self.file else f"{self.severity}: {self.what}"


def worst_first(problems: Iterable[Problem]) -> tuple[Problem, ...]:
    """Errors, warnings, notes; among these what concerns the whole set before what concerns one file."""
    severities = get_args(Severity)
    return tuple(sorted(problems, key=lambda problem: (severities.index(problem.severity), problem.file != "")))


@dataclass(frozen=True, slots=True)
class Facts:
    """What was seen when a picture was decoded.

    Attributes:
        width_px, height_px: of the upright picture.
        channels: 1 where it is grey, also when it is stored in colour; else 3.
        bits: of the stored values: 8, or 10, 12, 14 or 16 for the smallest of these that holds the largest value.
        sha256: of the file, hexadecimal.
    """

    width_px: int
    height_px: int
    channels: Literal[1, 3]
    bits: int
    sha256: str


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """One labelled picture.

    Attributes:
        name: path of the picture relative to the data set, as it stands in provenance records.
        picture: the picture's file.
        boxes_px: float32 `[n, 4]`: left, top, right, bottom, in pixels of the upright picture.
        classes: int64 `[n]`, index of each box into the data set's labels.
        group: pictures of one group show the same part or board, and never stand in two splits.
        reference: the same scene without defects, pixel for pixel aligned, if there is one.
        label: class of the whole picture, index into the data set's labels; None where only boxes are labelled.
        mask: picture of the same size, non-zero where there is a defect; None where nobody drew one.
        bits: bit depth of the data set's 16-bit pictures, by which this one is scaled; None for an 8-bit picture.
        synthetic: beginnings of the sha256 of the pictures that it was made from; None for a real picture. A synthetic
            one only ever trains.
    """

    name: str
    picture: Path
    boxes_px: npt.NDArray[np.float32]
    classes: npt.NDArray[np.int64]
    group: str
    reference: Path | None = None
    label: int | None = None
    mask: Path | None = None
    bits: int | None = None
    synthetic: tuple[str, ...] | None = None


def no_boxes() -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """`boxes_px` and `classes` of a picture without boxes."""
    return np.zeros((0, 4), np.float32), np.zeros(0, np.int64)


def with_references(samples: Sequence[Sample]) -> list[Sample]:
    """The samples, and their references as further pictures without defects, which are references of themselves."""
    return [
        *samples,
        *(
            replace(
                sample,
                name=f"{sample.name} (reference)",
                picture=sample.reference,
                boxes_px=sample.boxes_px[:0],
                classes=sample.classes[:0],
            )
            for sample in samples
            if sample.reference is not None
        ),
    ]


@dataclass(frozen=True, slots=True)
class Dataset:
    """Samples by split.

    Attributes:
        root: the folder.
        layout: name of the layout that was recognized.
        labels: class names.
        splits: every split, possibly empty.
        good_label: name of the class that holds parts without defects, if there is one.
        problems: what its owner should know, worst first.
        facts: sample's name → what was seen in its picture.
        folds: sample's name → number of its fold, where `split.csv` gives folds.
        split_by: in words, what decided the splits.
        grouped_by: in words, what decided the groups.
    """

    root: Path
    layout: str
    labels: tuple[str, ...]
    splits: Mapping[Split, Sequence[Sample]]
    good_label: str | None = None
    problems: tuple[Problem, ...] = ()
    facts: Mapping[str, Facts] = field(default_factory=dict)
    folds: Mapping[str, int] = field(default_factory=dict)
    split_by: str = ""
    grouped_by: str = ""

    @property
    def samples(self) -> list[Sample]:
        """All of them: train, validation, test."""
        return [sample for split in SPLITS for sample in self.splits[split]]

    @property
    def good(self) -> int | None:
        """Index of the good class."""
        return None if self.good_label is None else self.labels.index(self.good_label)

    @property
    def channels(self) -> Literal[1, 3]:
        """3 as soon as one picture is in colour."""
        return 3 if any(facts.channels == 3 for facts in self.facts.values()) else 1  # noqa: PLR2004


@dataclass(frozen=True, slots=True)
class Listing:
    """What a layout's reader found, before a picture is opened.

    Attributes:
        root, layout, labels: as in `Dataset`.
        samples: each with its own name as group where the layout knows no groups.
        splits: sample's name → split, where folders or lists give it; all samples or none, but `validation` may be
            absent.
        problems: files that are not used, and why.
        grouped: the layout knows which pictures show the same part.
        relative_boxes: `boxes_px` are still parts of the picture's width and height.
    """

    root: Path
    layout: str
    labels: tuple[str, ...]
    samples: Sequence[Sample]
    splits: Mapping[str, Split] = field(default_factory=dict)
    problems: Sequence[Problem] = ()
    grouped: bool = False
    relative_boxes: bool = False
