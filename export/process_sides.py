"""Logs cut in time, so that what is learned on one side of a moment can be tried on the other.

A process that drifts is nearest to itself. A stretch that is left out *between* others lies within what they show, and
says too little of what comes when the logs are over; a stretch with nothing but its past (or, since a wandering process
looks the same backwards, its future) is as far away as the days to come are.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from export.train_rnn import ScaledRun, fold_of

Bools = npt.NDArray[np.bool_]


def longer_side(fold: npt.NDArray[np.int64], member: int, members: int) -> Bools:
    """Which ticks lie on the side of one fold where there are more folds; where they are as many, before it."""
    return np.asarray(fold < member if 2 * member >= members - 1 else fold > member)


def earlier_half(runs: Sequence[ScaledRun]) -> list[Bools]:
    """For each run, which ticks lie in the first half of all."""
    ends = np.cumsum([len(run.values) for run in runs])
    return [np.arange(end - len(run.values), end) < ends[-1] // 2 for run, end in zip(runs, ends.tolist(), strict=True)]


def cut_out(runs: Sequence[ScaledRun], kept: Sequence[Bools], members: int) -> list[ScaledRun]:
    """One stretch of each run, with folds of its own; runs of which nothing is kept are left out."""
    parts = []
    for run, inside in zip(runs, kept, strict=True):
        places = np.flatnonzero(inside)
        if places.size:
            parts.append(part_of(run, slice(int(places[0]), int(places[-1]) + 1)))
    folds = fold_of([len(part.values) for part in parts], members) if parts else []
    return [replace(part, fold=fold) for part, fold in zip(parts, folds, strict=True)]


def part_of(run: ScaledRun, where: slice) -> ScaledRun:
    """A stretch of a run."""
    return ScaledRun(run.values[where], run.mask[where], run.fold[where], run.faulty[where])


def masked(runs: Sequence[ScaledRun], kept: Sequence[Bools]) -> list[ScaledRun]:
    """The runs in whole, with the channels known in some ticks only."""
    return [replace(run, mask=run.mask & inside[:, None]) for run, inside in zip(runs, kept, strict=True)]


def halves(runs: Sequence[ScaledRun], members: int) -> list[tuple[list[ScaledRun], list[ScaledRun]]]:
    """The two halves in time: (tried, learned from), the earlier one tried first."""
    early = earlier_half(runs)
    first, second = cut_out(runs, early, members), cut_out(runs, [~inside for inside in early], members)
    return [(first, second), (second, first)]
