"""Scores a process bundle on logs, through the deployed path: window, step, risk, alarm.

Figures are causal, of single rows, unfiltered and without point adjusting (which counts a whole event as found when one
of its rows is), and of events: was there an alarm, when did it come against the onset, and how many alarms were false.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from export.process_calibration import alarm_episodes, begins
from export.process_logs import LogSet, ProcessLog, Ticks, to_ticks
from export.samples import DatasetError
from station.process_bundle import ProcessManifest
from station.step_model import ProcessModel

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Played:
    """A log that went through the deployed path.

    Attributes:
        log: as read.
        ticks: on the fixed step.
        risk: `[ticks]`, NaN where there is none.
        alarm: `[ticks]`, whether the alarm's condition holds.
        top: `[ticks]`, index of the channel with the largest part; -1: none.
        expected: `[ticks, channels]`, in the channels' units.
    """

    log: ProcessLog
    ticks: Ticks
    risk: Floats
    alarm: Bools
    top: npt.NDArray[np.int64]
    expected: Floats

    def rows(self, of_ticks: npt.NDArray[np.generic], missing: float) -> Floats:
        """A quantity of the ticks, for each row of the log."""
        table = of_ticks.astype(np.float64)
        return np.where(self.ticks.of_row >= 0, table[self.ticks.of_row], missing)


def check_units(manifest: ProcessManifest, logs: LogSet) -> None:
    """Refuse logs in other units than the bundle was made on.

    Raises:
        DatasetError: the first channel whose units differ.
    """
    for channel, unit in zip(manifest.channels, logs.units, strict=True):
        if channel.unit and unit and channel.unit != unit:
            raise DatasetError(
                f"{logs.logs[0].origin}: {channel.name} is in {unit}, the bundle {manifest.name} was made for "
                f"{channel.unit}"
            )


def play(model: ProcessModel, log: ProcessLog) -> Played:
    """Run a log through window, step, risk and alarm, from a fresh start.

    Raises:
        InferenceError: the runtime failed.
    """
    ticks = to_ticks(log, model.step_s, flat_after_s=model.flat_after_s)
    count = len(ticks.at_s)
    risk, top = np.full(count, np.nan), np.full(count, -1)
    expected = np.full(ticks.values.shape, np.nan)
    anew = set(ticks.begins)
    least_good = 0.5 * ticks.mask.shape[1]
    for place in range(count):
        if place in anew:
            model.reset()
        said = model.step(float(ticks.at_s[place]), ticks.values[place], ticks.mask[place])
        expected[place] = said.expected
        # Fewer good channels than the line asks for is a sensor fault, neither an alarm nor an all-clear.
        if said.risk is not None and ticks.mask[place].sum() >= least_good:
            risk[place] = said.risk
            if said.shares.any():
                top[place] = int(said.shares.argmax())
    model.reset()
    limits = model.bundle.manifest.limits
    return Played(log, ticks, risk, alarm_episodes(risk, limits, model.step_s), top, expected)


def evaluate_process(played: Sequence[Played], step_s: float, skip_rows: int = 0) -> dict[str, float | None]:
    """Figures over labelled logs, pooled; those that labels are needed for are None without any.

    Args:
        played: through one bundle, or each through its own.
        step_s: the fixed step.
        skip_rows: at the beginning of each log, which count for nothing (they were trained on).

    Returns:
        Of rows: `f1`, `far`, `mar` (shares of normal rows in alarm and of faulty ones without). Of events (stretches of
        faulty rows): `events`, `events_found`, `event_recall`, `event_precision` (share of alarms that overlap an
        event), `delay_median_s` and `delay_mean_s` of the first alarm from the onset. Of alarms: `alarms`,
        `false_alarms`, `hours`, `false_alarms_per_day`.
    """
    hit = false = missed = quiet = 0
    events = found = alarms = true_alarms = 0
    delays: list[float] = []
    normal_s = 0.0
    labelled = False
    for one in played:
        alarm = one.rows(one.alarm, 0.0) > 0
        faulty = one.log.faulty
        counted = np.arange(len(faulty)) >= skip_rows
        known = np.isfinite(faulty)
        labelled |= bool(known.any())
        # A log without labels is one of normal operation; single rows without one count for nothing.
        bad, good = (faulty == 1) & counted, ((faulty == 0) | ~known.any()) & counted
        hit += int((alarm & bad).sum())
        missed += int((~alarm & bad).sum())
        false += int((alarm & good).sum())
        quiet += int((~alarm & good).sum())
        normal_s += float(good.sum()) * step_s
        event = _carried_on(faulty) & counted
        onsets = begins(event)
        ends = np.concatenate([begins(~event), [len(event)]])
        for onset in onsets:
            end = int(ends[ends > onset].min())
            inside = np.flatnonzero(alarm[onset:end])
            events += 1
            if inside.size:
                found += 1
                delays.append(float(one.log.time_s[onset + inside[0]] - one.log.time_s[onset]))
        shown = alarm & counted
        for begin in begins(shown):
            end = begin + int(np.argmin(np.append(shown[begin:], False)))
            alarms += 1
            true_alarms += bool(event[begin:end].any())
    days = normal_s / 86_400
    figures: dict[str, float | None] = {
        "rows": float(hit + missed + false + quiet),
        "alarms": float(alarms),
        "false_alarms": float(alarms - true_alarms),
        "hours": normal_s / 3600,
        "false_alarms_per_day": (alarms - true_alarms) / days if days else None,
    }
    names = ("f1", "far", "mar", "events", "events_found", "event_recall", "event_precision")
    if not labelled:
        return figures | dict.fromkeys((*names, "delay_median_s", "delay_mean_s"))
    values = (
        2 * hit / max(2 * hit + false + missed, 1),
        false / max(false + quiet, 1),
        missed / max(missed + hit, 1),
        float(events),
        float(found),
        found / events if events else math.nan,
        true_alarms / alarms if alarms else math.nan,
    )
    return figures | {
        **{name: None if math.isnan(value) else value for name, value in zip(names, values, strict=True)},
        "delay_median_s": float(np.median(delays)) if delays else None,
        "delay_mean_s": float(np.mean(delays)) if delays else None,
    }


def _carried_on(faulty: Floats) -> Bools:
    """Whether each row belongs to a fault; one without a label is as the one before."""
    known = np.isfinite(faulty)
    newest = np.maximum.accumulate(np.where(known, np.arange(len(faulty)), -1))
    return np.asarray((newest >= 0) & (faulty[np.maximum(newest, 0)] == 1))
