"""The same training K times, each time tested on another part: how much a figure depends on the luck of the split."""

import json
import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from export.request import Request
from export.samples import Dataset, DatasetError, Split
from export.splits import VALIDATION_SHARE, Fold, admit_synthetic, draw_splits, folds
from station.whole_file import write_whole

RECORD = "cross_validation.json"
METRICS = "metrics.json"
ASKED = "folds.json"
"""What the folds in the folder were asked for: those of another training are not taken for these."""


def cross_validate(
    request: Request, count: int, split_seed: int, train: Callable[[Request], Path]
) -> Mapping[str, Mapping[str, float]]:
    """Train and test on each fold, in `OUT/fold-N`; a fold that is finished is not trained again.

    Returns:
        Name of a figure of the int8 model on the fold's test part → mean, deviation (of the sample), least, most.
        The same stands with each fold's figures in `OUT/cross_validation.json`.

    Raises:
        DatasetError: the folds cannot be made, the folder holds folds of another training, or a training cannot use
            its part.
    """
    results: list[Mapping[str, float]] = []
    for number, turn in enumerate(_turns(request, count, split_seed), 1):
        record = turn.out / METRICS
        if not record.is_file():
            _tell_of_synthetic(request, turn.dataset)
            try:
                train(turn)
            except DatasetError as exc:
                # A model too poor for a bundle has figures all the same.
                if not record.is_file():
                    raise
                request.say(f"fold {number} of {count}: {exc}")
        results.append(_figures(record))
    summary = {name: _spread([result[name] for result in results]) for name in _shared(results)}
    content = {"folds": count, "summary": summary, "test_int8": results}
    write_whole(request.out / RECORD, (json.dumps(content, indent=2) + "\n").encode())
    return summary


def fit_folds(request: Request, count: int, split_seed: int, fit: Callable[[Request], object]) -> None:
    """The first part of `cross_validate`, which takes up what is trained here: each fold's float network.

    Raises:
        DatasetError: as `cross_validate`.
    """
    for turn in _turns(request, count, split_seed):
        if not (turn.out / METRICS).is_file():
            _tell_of_synthetic(request, turn.dataset)
            fit(turn)


def fold_parts(dataset: Dataset, count: int, split_seed: int) -> Iterator[tuple[Fold, Dataset]]:
    """Each fold, and the data set of its training: a part of what trains is held out for the threshold.

    Raises:
        DatasetError: the folds cannot be made.
    """
    for fold in folds(dataset, count, split_seed):
        yield fold, _part(dataset, fold, split_seed)


def _turns(request: Request, count: int, split_seed: int) -> Iterator[Request]:
    """What each fold is asked to do."""
    _settle(request, count)
    for fold, part in fold_parts(request.dataset, count, split_seed):
        request.say(f"fold {fold.number + 1} of {count}: {len(fold.train)} to train, {len(fold.test)} to test")
        # Only its figures count: what int8 loses in a part is no reason to stop.
        # The final training compares, once is enough.
        yield replace(
            request,
            dataset=part,
            out=request.out / f"fold-{fold.number}",
            allow_regression=True,
            compare=False,
        )


def _settle(request: Request, count: int) -> None:
    asked: dict[str, Any] = {
        "folds": count,
        "seed": request.seed,
        "size_px": request.size_px,
        "preset": request.preset,
        "options": {name: str(value) for name, value in sorted(request.options.items())},
    }
    if request.rule is not None:
        asked["rule"] = repr(request.rule)
    if request.synthesis:
        asked["synthesis"] = list(request.synthesis)
    path = request.out / ASKED
    content = (json.dumps(asked, indent=2) + "\n").encode()
    if path.is_file() and path.read_bytes() != content:
        raise DatasetError(
            f"{request.out}: holds folds of a training with other options ({ASKED}); give the same ones, or another "
            "folder for --out"
        )
    write_whole(path, content)


def _part(dataset: Dataset, fold: Fold, seed: int) -> Dataset:
    shares: dict[Split, float] = {"train": 1 - VALIDATION_SHARE, "validation": VALIDATION_SHARE}
    real = [sample for sample in fold.train if sample.synthetic is None]
    drawn = draw_splits(real, seed, shares)
    validation = [sample for sample in real if drawn[sample.name] == "validation"]
    synthetic = [sample for sample in fold.train if sample.synthetic is not None]
    admitted, _ = admit_synthetic(synthetic, validation, dataset.facts)
    train = [sample for sample in real if drawn[sample.name] == "train"]
    return replace(dataset, splits={"train": [*train, *admitted], "validation": validation, "test": fold.test})


def _tell_of_synthetic(request: Request, part: Dataset) -> None:
    there = sum(sample.synthetic is not None for sample in request.dataset.samples)
    admitted = sum(sample.synthetic is not None for sample in part.splits["train"])
    if admitted < there:
        request.say(
            f"  {there - admitted} of {there} synthetic pictures are left out: what they were made from is tested or "
            "chooses the threshold here; --synthesize METHOD makes new ones for each fold"
        )


def _figures(path: Path) -> dict[str, float]:
    try:
        record: Any = json.loads(path.read_text(encoding="utf-8"))
        return {name: float(value) for name, value in record["test_int8"].items() if isinstance(value, int | float)}
    except (OSError, ValueError, KeyError, AttributeError) as exc:
        raise DatasetError(f"{path}: holds no figures of a test (test_int8); delete it and train again") from exc


def _shared(results: list[Mapping[str, float]]) -> list[str]:
    """Figures that every fold has: a class may be absent from one."""
    return [name for name in results[0] if all(name in result for result in results)]


def _spread(values: list[float]) -> dict[str, float]:
    return {
        "mean": statistics.fmean(values),
        "deviation": statistics.stdev(values),
        "least": min(values),
        "most": max(values),
    }
