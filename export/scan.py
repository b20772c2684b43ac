"""Look at every picture of a listing once: can it be read, how large is it, does its mask fit, is it there twice."""

import hashlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from export.pictures import bit_depth, decode, decode_file
from export.samples import DatasetError, Facts, Problem, Sample

WORKERS = 4


@dataclass(frozen=True, slots=True)
class Scan:
    """What was seen.

    Attributes:
        samples: those whose picture can be used, in their order.
        facts: sample's name → what was seen.
        problems: the others, and what to know of these.
    """

    samples: Sequence[Sample]
    facts: Mapping[str, Facts]
    problems: Sequence[Problem]


@dataclass(frozen=True, slots=True)
class _Seen:
    sample: Sample
    facts: Facts | None
    problems: Sequence[Problem]


def scan(samples: Sequence[Sample], root: Path) -> Scan:
    """Decode every picture and mask; leave out what cannot be used."""
    with ThreadPoolExecutor(WORKERS, thread_name_prefix="look-at-pictures") as pool:
        seen = list(pool.map(lambda sample: _look(sample, root), samples))
    facts = {item.sample.name: item.facts for item in seen if item.facts is not None}
    problems = [problem for item in seen for problem in item.problems]
    usable = [item.sample for item in seen if item.facts is not None]
    deep = [facts[sample.name].bits for sample in usable if facts[sample.name].bits > 8]  # noqa: PLR2004
    # One depth for all: scaled each by its own, a dark picture would become as bright as the others.
    bits = max(deep, default=None)
    return Scan(
        [replace(sample, bits=bits) if facts[sample.name].bits > 8 else sample for sample in usable],  # noqa: PLR2004
        facts,
        [*problems, *_twins(usable, facts)],
    )


def _look(sample: Sample, root: Path) -> _Seen:
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
    facts = Facts(width, height, channels, bits, hashlib.sha256(data).hexdigest())
    problems: list[Problem] = []
    if sample.mask is not None:
        name = sample.mask.relative_to(root).as_posix()
        try:
            mask_height, mask_width = decode_file(sample.mask, 1).shape
        except DatasetError as exc:
            problems.append(Problem(name, f"{str(exc).removeprefix(f'{sample.mask}: ')}; not used", "error", "mask"))
        else:
            if (mask_height, mask_width) != (height, width):
                problems.append(
                    Problem(
                        name,
                        f"is {mask_width}×{mask_height}, its picture {width}×{height}; not used",
                        "error",
                        "mask",
                    )
                )
        if problems:
            sample = replace(sample, mask=None)
    return _Seen(sample, facts, problems)


def _unusable(sample: Sample, what: str, kind: Literal["broken", "empty"]) -> _Seen:
    return _Seen(sample, None, [Problem(sample.name, what, "error", kind)])


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
