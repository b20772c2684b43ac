"""Which monitor to ship, found out without labels: each is tried on stretches of the logs that it did not learn from.

Into each left-out stretch faults of several kinds are put, one at a time, in the scales of the channels. A monitor is
worth the share of faulty ticks that it finds, less the share of other ticks on which it alarms: on the stretch as it
is, and after a fault is over. A chart learns anew from what lies on one side of the stretch, the longer one: nothing
that lies on both sides tells it where a slow drift goes in between. So do a network's spreads and limits; for the
stretch as it is, that member forecasts which is blind to it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from export.process_calibration import forecast_monitor, run_chart
from export.process_sides import cut_out, longer_side, masked, part_of
from export.rnn import NetworkShape
from export.train_rnn import RecurrentKnobs, ScaledRun, roll_out
from station.adapters.litert_step import LitertStep
from station.process_bundle import EwmaMonitor, LevelMonitor, PcaMonitor
from station.risk import RESIDUAL_BOUND, chart_of

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

KINDS = ("step", "drift", "noise", "stuck", "relation", "level", "oscillation")
SIZES = (1.5, 3.0)
"""In scales of the channel; kinds and stretches take them in turn."""
PERIOD_TICKS = 24
"""Of the oscillation."""
LEAST_STRETCH = 32
MOST_STRETCH = 800
"""Ticks of a left-out stretch that are tried; its faults last half of it."""
WARM_TICKS = 100
"""What a network sees before the stretch."""


@dataclass(frozen=True, slots=True)
class Trial:
    """How a monitor did on stretches that it did not learn from.

    Attributes:
        found: kind of fault → share of its ticks on which the monitor alarms.
        false: share of the other ticks on which it does.
    """

    found: Mapping[str, float]
    false: float

    @property
    def score(self) -> float:
        """What it is worth, at most 1; 0 is no better than chance."""
        return float(np.mean(list(self.found.values()))) - self.false

    @property
    def figures(self) -> dict[str, float]:
        """For manifest and report."""
        return {
            **{f"{kind}_found": share for kind, share in self.found.items()},
            "false": self.false,
            "score": self.score,
        }


@dataclass(frozen=True, slots=True)
class _Stretch:
    """A left-out stretch of one run, from `begin` to `end`, with the fault in its middle."""

    run: int
    member: int
    begin: int
    end: int

    @property
    def fault(self) -> slice:
        quarter = (self.end - self.begin) // 4
        return slice(self.begin + quarter, self.end - quarter)


def try_chart(
    runs: Sequence[ScaledRun],
    members: int,
    make: Callable[[Sequence[ScaledRun], int], LevelMonitor | PcaMonitor | EwmaMonitor],
) -> Trial | None:
    """Try a chart.

    Args:
        runs: of normal operation, with the folds.
        members: number of folds.
        make: learns the chart.

    Returns:
        None: the logs are too short to leave anything out.
    """
    tally = _Tally()
    for stretch in _stretches(runs, members):
        others = cut_out(runs, [longer_side(run.fold, stretch.member, members) for run in runs], members)
        if not others:
            continue
        monitor = make(others, members)
        chart = chart_of(monitor, runs[0].values.shape[1])
        begin = max(stretch.begin - WARM_TICKS, 0)
        for kind, spoiled in _spoiled(runs[stretch.run], stretch):
            shown = part_of(spoiled, slice(begin, stretch.end))
            tally.take(kind, stretch, run_chart(chart, [shown], [None])[stretch.begin - begin :])
    return tally.trial()


def try_network(
    runs: Sequence[ScaledRun],
    told: Sequence[Floats],
    step: LitertStep,
    shape: NetworkShape,
    knobs: RecurrentKnobs,
) -> Trial | None:
    """Try a network that forecasts: the arguments are those of `forecast_monitor`, and its deployed step."""
    tally = _Tally()
    for stretch in _stretches(runs, shape.members):
        others = masked(runs, [longer_side(run.fold, stretch.member, shape.members) for run in runs])
        if not any(run.mask.any() for run in others):
            continue
        monitor = forecast_monitor(others, told, knobs, shape.states)
        chart = chart_of(monitor, shape.channels)
        begin = max(stretch.begin - WARM_TICKS, 0)
        for kind, spoiled in _spoiled(runs[stretch.run], stretch):
            shown = part_of(spoiled, slice(begin, stretch.end))
            rows = roll_out(step, shown, knobs.input_clip) if kind else told[stretch.run][begin : stretch.end]
            tally.take(kind, stretch, run_chart(chart, [shown], [rows])[stretch.begin - begin :])
    return tally.trial()


class _Tally:
    def __init__(self) -> None:
        self._found: dict[str, list[float]] = {kind: [] for kind in KINDS}
        self._false: list[float] = []

    def take(self, kind: str | None, stretch: _Stretch, statistics: Floats) -> None:
        """Count one pass; kind None: nothing was put in."""
        alarm, known = statistics >= 1, np.isfinite(statistics)
        inside = np.zeros(len(statistics), bool)
        if kind is not None:
            inside[stretch.fault.start - stretch.begin : stretch.fault.stop - stretch.begin] = True
            if (known & inside).any():
                self._found[kind].append(float(alarm[known & inside].mean()))
        after = known & ~inside
        if kind is not None:
            after[: stretch.fault.start - stretch.begin] = False
        if after.any():
            self._false.append(float(alarm[after].mean()))

    def trial(self) -> Trial | None:
        found = {kind: float(np.mean(shares)) for kind, shares in self._found.items() if shares}
        return Trial(found, float(np.mean(self._false))) if found and self._false else None


def _stretches(runs: Sequence[ScaledRun], members: int) -> Iterator[_Stretch]:
    """The longest stretch of each fold."""
    for member in range(members):
        longest: _Stretch | None = None
        for place, run in enumerate(runs):
            inside = np.flatnonzero(run.fold == member)
            if not inside.size:
                continue
            begin, end = int(inside[0]), int(inside[-1]) + 1
            begin = max(begin, end - MOST_STRETCH)
            if longest is None or end - begin > longest.end - longest.begin:
                longest = _Stretch(place, member, begin, end)
        if longest is not None and longest.end - longest.begin >= LEAST_STRETCH:
            yield longest


def _spoiled(run: ScaledRun, stretch: _Stretch) -> Iterator[tuple[str | None, ScaledRun]]:
    """The run as it is, and once with each kind of fault in the stretch."""
    yield None, run
    generator = np.random.default_rng((stretch.member, stretch.begin, 11))
    for place, kind in enumerate(KINDS):
        size = SIZES[(place + stretch.member) % len(SIZES)]
        values = run.values.copy()
        _spoil(values, kind, stretch.fault, size, generator)
        values = np.where(run.mask, np.clip(values, -RESIDUAL_BOUND, RESIDUAL_BOUND), 0.0)
        yield kind, replace(run, values=values)


def _spoil(values: Floats, kind: str, where: slice, size: float, generator: np.random.Generator) -> None:
    rows, channels = where.stop - where.start, values.shape[1]
    channel = int(generator.integers(channels))
    sign = float(generator.choice([-1.0, 1.0]))
    ticks = np.arange(rows)
    match kind:
        case "step":
            values[where, channel] += sign * 2 * size
        case "drift":
            values[where, channel] += sign * np.linspace(0, 3 * size, rows)
        case "noise":
            values[where, channel] += size * generator.standard_normal(rows)
        case "stuck":
            values[where, channel] = values[where.start, channel]
        case "relation":
            values[where, channel] = np.roll(values[:, channel], len(values) // 2 + int(generator.integers(rows)))[
                where
            ]
        case "level":
            values[where] += size * generator.choice([-1.0, 0.0, 1.0], channels)
            values[where, channel] += sign * size
        case "oscillation":
            values[where, channel] += 1.5 * size * np.sin(2 * np.pi * ticks / PERIOD_TICKS)
