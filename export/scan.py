"""Look at every picture of a listing once: can it be read, how large is it, does its mask fit, is it there twice."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from export.duplicates import EDGE_PX, Thumbnails, thumbnail
from export.pictures import bit_depth, decode, read_mask, to_8_bits
from export.samples import DatasetError, Facts, Listing, Problem, Sample
from export.synthesis.marks import learnt_from

WORKERS = 4

LEAST_BOX_PX = 0.5
"""A box that is narrower or lower holds nothing to learn from."""

OUTSIDE_AT_MOST_PX = 1.0
"""Labelling tools round; a box that reaches farther out of its picture is worth a warning."""


@dataclass(frozen=True, slots=True)
class Scan:
    """What was seen.

    Attributes:
        samples: those whose picture can be used, in their order; a mask that cannot be used is gone.
        thumbnails: uint8 `[n, 32, 32]`, of those.
        facts: sample's name → what was seen.
        blank: sample's name → its mask, which marks nothing.
        problems: the others, and what to know of these.
    """

    samples: Sequence[Sample]
    thumbnails: Thumbnails
    facts: Mapping[str, Facts]
    blank: Mapping[str, Path]
    problems: Sequence[Problem]


@dataclass(frozen=True, slots=True)
class _Seen:
    sample: Sample
    facts: Facts | None
    thumbnail: Thumbnails | None
    problems: Sequence[Problem]
    blank: Path | None = None


def scan(listing: Listing, progress: Callable[[int, int], None] | None = None) -> Scan:
    """Decode every picture and mask; leave out what cannot be used, and cut boxes to their pictures."""
    seen: list[_Seen] = []
    with ThreadPoolExecutor(WORKERS, thread_name_prefix="look-at-pictures") as pool:
        for item in pool.map(lambda sample: _look(sample, listing), listing.samples):
            seen.append(item)
            if progress is not None:
                progress(len(seen), len(listing.samples))
    facts = {item.sample.name: item.facts for item in seen if item.facts is not None}
    problems = [problem for item in seen for problem in item.problems]
    usable = [item.sample for item in seen if item.facts is not None]
    thumbnails = [item.thumbnail for item in seen if item.thumbnail is not None]
    deep = [facts[sample.name].bits for sample in usable if facts[sample.name].bits > 8]  # noqa: PLR2004
    # One depth for all: scaled each by its own, a dark picture would become as bright as the others.
    bits = max(deep, default=None)
    return Scan(
        [replace(sample, bits=bits) if facts[sample.name].bits > 8 else sample for sample in usable],  # noqa: PLR2004
        np.stack(thumbnails) if thumbnails else np.zeros((0, EDGE_PX, EDGE_PX), np.uint8),
        facts,
        {item.sample.name: item.blank for item in seen if item.blank is not None},
        [*problems, *_twins(usable, facts)],
    )


def _look(sample: Sample, listing: Listing) -> _Seen:
    try:
        data = sample.picture.read_bytes()
    except OSError as exc:
        return _unusable(sample, f"cannot be read: {exc.strerror}", "broken")
    if not data:
        return _unusable(sample, "is empty; left out", "empty")
    try:
        pixels = decode(data, 3, "")
    except DatasetError as exc:
        return _unusable(sample, f"{str(exc).removeprefix(': ')}; left out", "broken")
    height, width = pixels.shape[:2]
    grey = np.array_equal(pixels[..., 0], pixels[..., 1]) and np.array_equal(pixels[..., 1], pixels[..., 2])
    channels: Literal[1, 3] = 1 if grey else 3
    bits = 8 if pixels.dtype == np.uint8 else max(bit_depth(int(pixels.max())), 10)
    try:
        sample = replace(sample, synthetic=learnt_from(sample.picture, data))
    except DatasetError as exc:
        return _unusable(sample, f"{str(exc).removeprefix(f'{sample.picture}: ')}; left out", "broken")
    facts = Facts(width, height, channels, bits, hashlib.sha256(data).hexdigest())
    sample, problems = _within(sample, width, height, relative=listing.relative_boxes)
    blank = None
    if sample.mask is not None:
        name = sample.mask.relative_to(listing.root).as_posix()
        fits = False
        try:
            mask = read_mask(sample.mask)
        except DatasetError as exc:
            problems.append(
                Problem(
                    name,
                    f"the mask {str(exc).removeprefix(f'{sample.mask}: ')}; the picture is used without it",
                    "error",
                    "mask",
                )
            )
        else:
            fits = mask.shape == (height, width)
            if not fits:
                problems.append(
                    Problem(
                        name,
                        f"is a mask of {mask.shape[1]}×{mask.shape[0]}, its picture {sample.picture.name} has "
                        f"{width}×{height}; the picture is used without it",
                        "error",
                        "mask",
                    )
                )
            elif not mask.any():
                blank = sample.mask
        if not fits:
            sample = replace(sample, mask=None)
    return _Seen(sample, facts, thumbnail(to_8_bits(pixels)), problems, blank)


def _within(sample: Sample, width: int, height: int, *, relative: bool) -> tuple[Sample, list[Problem]]:
    """The sample with its boxes in pixels and inside of the picture; boxes that hold no pixel are left out."""
    boxes_px = sample.boxes_px * np.array([width, height, width, height], np.float32) if relative else sample.boxes_px
    clipped = np.clip(boxes_px, 0, np.array([width, height, width, height], np.float32))
    holds = ((clipped[:, 2:] - clipped[:, :2]) >= LEAST_BOX_PX).all(axis=1)
    problems = [
        Problem(
            sample.name,
            f"box {_corners(box)} holds no pixel of the picture ({width}×{height}); the box is left out",
            "error",
            "label",
        )
        for box in boxes_px[~holds]
    ]
    reaching = holds & (np.abs(clipped - boxes_px) > OUTSIDE_AT_MOST_PX).any(axis=1)
    problems += [
        Problem(
            sample.name, f"box {_corners(box)} reaches out of the picture ({width}×{height}); cut", "warning", "label"
        )
        for box in boxes_px[reaching]
    ]
    return replace(sample, boxes_px=clipped[holds].astype(np.float32), classes=sample.classes[holds]), problems


def _corners(box: npt.NDArray[np.float32]) -> str:
    return " ".join(f"{value:g}" for value in box)


def _unusable(sample: Sample, what: str, kind: Literal["broken", "empty"]) -> _Seen:
    return _Seen(sample, None, None, [Problem(sample.name, what, "error", kind)])


def _twins(samples: Sequence[Sample], facts: Mapping[str, Facts]) -> list[Problem]:
    first: dict[str, Sample] = {}
    problems = []
    for sample in samples:
        twin = first.setdefault(facts[sample.name].sha256, sample)
        if twin is sample:
            continue
        if twin.label != sample.label:
            what, kind = f"is the same file as {twin.name}, but in another class; delete the wrong one", "contradiction"
        else:
            what, kind = f"is the same file as {twin.name}", "duplicate"
        problems.append(
            Problem(sample.name, what, "warning", "contradiction" if kind == "contradiction" else "duplicate")
        )
    return problems
