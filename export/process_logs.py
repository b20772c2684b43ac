"""Sensor logs for early warning, through the same reader and the same window as on the line."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from export.samples import DatasetError
from station.process_messages import Readings, Tick
from station.sensor_log import SensorLog, read_log
from station.sensor_settings import LogForm
from station.window import Channel, Window

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

LABEL_NAMES = ("label", "anomaly", "is_anomaly", "fault", "faulty", "failure", "target", "class")
"""Columns taken for the label, without regard to case; the first of these wins."""
NOTE_NAMES = frozenset({"changepoint", "change_point", "index", "id", "row", "no", "nr"})
"""Columns of numbers that measure nothing."""
HOLD_STEPS = 5
"""A value is held for so many steps, as by default on the line."""
RESET_S = 60.0
"""A longer gap begins anew, as by default on the line; at least `HOLD_STEPS` steps."""


@dataclass(frozen=True, slots=True)
class ProcessLog:
    """One log.

    Attributes:
        origin: the file.
        sha256: of the file, hexadecimal.
        time_s: `[rows]` seconds since 1970.
        values: `[rows, channels]`, NaN where there is none.
        faulty: `[rows]`: 1 fault, 0 none, NaN not labelled.
    """

    origin: str
    sha256: str
    time_s: Floats
    values: Floats
    faulty: Floats


@dataclass(frozen=True, slots=True)
class LogSet:
    """Logs of the same channels.

    Attributes:
        channels: names, in the order of the first log.
        units: of each channel, "" where the logs name none.
        label: the column that says what is a fault; None: there is none.
        logs: in the order of their names.
    """

    channels: tuple[str, ...]
    units: tuple[str, ...]
    label: str | None
    logs: tuple[ProcessLog, ...]


@dataclass(frozen=True, slots=True)
class Ticks:
    """A log on the fixed step.

    Attributes:
        at_s: `[ticks]`.
        values: `[ticks, channels]`; 0 where the mask is False.
        mask: `[ticks, channels]`.
        begins: places where the window began anew (the first is 0).
        of_row: `[rows of the log]`: the tick that each row came into; -1: none.
        faulty: `[ticks]`: of the newest row in each tick; NaN not labelled.
    """

    at_s: Floats
    values: Floats
    mask: Bools
    begins: tuple[int, ...]
    of_row: npt.NDArray[np.int64]
    faulty: Floats


def log_files(path: Path) -> list[Path]:
    """The log itself, or the CSV files below a folder, in the order of their names.

    Raises:
        DatasetError: there are none.
    """
    if path.is_file():
        return [path]
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in (".csv", ".tsv", ".txt"))
    # Beside logs there may be notes: a text file is a log only where nothing else is.
    tables = [file for file in files if file.suffix.lower() != ".txt"]
    if not (tables or files):
        raise DatasetError(f"{path}: is no log and holds none (*.csv, *.tsv)")
    return tables or files


def read_logs(
    paths: Sequence[Path], form: LogForm | None = None, *, label: str | None = None, channels: Sequence[str] = ()
) -> LogSet:
    """Read logs of the same channels.

    Args:
        paths: files and folders.
        form: how they are written; default: found out.
        label: the column of labels; default: one with a name of `LABEL_NAMES`.
        channels: the columns to take, in this order; default: each column of numbers but label and notes.

    Raises:
        LogError: a log cannot be read.
        DatasetError: the logs do not go together, or a column that was asked for is missing.
    """
    files = [file for path in paths for file in log_files(path)]
    named: tuple[str, ...] = tuple(channels)
    units: dict[str, str] = {}
    found_label = label
    logs = []
    for place, file in enumerate(files):
        log = read_log(file, form)
        if place == 0:
            found_label = label or _label_of(log)
            named = named or tuple(
                name for name in log.columns if name != found_label and name.lower() not in NOTE_NAMES
            )
            if not named:
                raise DatasetError(f"{file}: has no column of numbers beside time and label")
            if label is not None and label not in (*log.columns, *log.text):
                raise DatasetError(f"{file}: has no column {label!r} for the label; it has {', '.join(log.columns)}")
        others = set(log.columns) - {found_label} - {name for name in log.columns if name.lower() in NOTE_NAMES}
        missing = [name for name in named if name not in log.columns]
        if missing and set(missing) <= set(log.text):
            raise DatasetError(f"{file}: column {missing[0]!r} holds text where {files[0]} has numbers")
        if missing:
            raise DatasetError(f"{file}: has no column {missing[0]!r}, which {_first(files, channels)} has")
        if not channels and others - set(named):
            raise DatasetError(f"{file}: has a column {min(others - set(named))!r}, which {files[0]} has not")
        for name, unit in log.units.items():
            if units.setdefault(name, unit) != unit:
                raise DatasetError(f"{file}: {name} is in {unit}, in the logs before it is in {units[name]}")
        logs.append(
            ProcessLog(
                str(file),
                hashlib.sha256(file.read_bytes()).hexdigest(),
                log.time_s,
                np.stack([log.column(name) for name in named], axis=1),
                _faults(log, found_label),
            )
        )
    return LogSet(named, tuple(units.get(name, "") for name in named), found_label, tuple(logs))


def step_of(logs: Sequence[ProcessLog]) -> float:
    """The fixed step: the median of the time between rows, to three digits, so that a clock's jitter does not count.

    Raises:
        DatasetError: no two rows have different times.
    """
    steps = np.concatenate([np.diff(log.time_s) for log in logs])
    steps = steps[steps > 0]
    if not steps.size:
        raise DatasetError(f"{logs[0].origin}: all rows have the same time")
    median = float(np.median(steps))
    digits = 2 - math.floor(math.log10(median))
    return max(round(median, digits), 0.001)


def reset_after(step_s: float) -> float:
    """How long a gap may be before training begins anew."""
    return max(RESET_S, HOLD_STEPS * step_s)


def to_ticks(log: ProcessLog, step_s: float, *, flat_after_s: Sequence[float | None] = ()) -> Ticks:
    """Bring a log onto the fixed step, through the window of the line.

    Args:
        log: in the order of time.
        step_s: seconds.
        flat_after_s: of each channel; default: none.
    """
    count = log.values.shape[1]
    names = [str(place) for place in range(count)]
    flat = flat_after_s or [None] * count
    window = Window(
        [
            Channel(name, "log", name, max_age_s=HOLD_STEPS * step_s, flat_after_s=after)
            for name, after in zip(names, flat, strict=True)
        ],
        step_s=step_s,
        reset_after_s=reset_after(step_s),
        min_good=0.0,
    )
    window.connect("log", names)
    ticks: list[Tick] = []
    for at_s, row in zip(log.time_s.tolist(), log.values.tolist(), strict=True):
        ticks.extend(window.put(Readings("log", at_s, at_s, tuple(row))))
    # The last rows wait for a later one that never comes.
    ticks.extend(window.advance(float(log.time_s[-1]) + 1.5 * step_s))
    while ticks and ticks[-1].at_s > log.time_s[-1] + step_s * (1 - 1e-6):
        ticks.pop()
    at_s = np.array([tick.at_s for tick in ticks])
    begins = tuple(place for place, tick in enumerate(ticks) if tick.restart or place == 0)
    of_row = np.searchsorted(at_s, log.time_s - 1e-6)
    of_row = np.where(of_row < len(at_s), of_row, -1)
    faulty = np.full(len(ticks), np.nan)
    inside = of_row >= 0
    faulty[of_row[inside]] = log.faulty[inside]
    return Ticks(
        at_s,
        np.array([tick.values for tick in ticks]).reshape(-1, count),
        np.array([tick.mask for tick in ticks]).reshape(-1, count),
        begins,
        of_row,
        faulty,
    )


def _label_of(log: SensorLog) -> str | None:
    lower = {name.lower(): name for name in (*log.columns, *log.text)}
    return next((lower[name] for name in LABEL_NAMES if name in lower), None)


def _faults(log: SensorLog, label: str | None) -> Floats:
    rows = len(log.time_s)
    if label is None or label not in (*log.columns, *log.text):
        return np.full(rows, np.nan)
    if label in log.text:
        return np.array([_fault_of_text(cell, label, log.origin) for cell in log.text[label]])
    values = log.column(label)
    return np.where(np.isnan(values), np.nan, (values != 0).astype(float))


def _fault_of_text(cell: str, label: str, origin: str) -> float:
    bare = cell.strip().lower()
    if not bare:
        return math.nan
    if bare in ("normal", "ok", "good", "no", "false", "none", "0"):
        return 0.0
    if bare in ("anomaly", "anomalous", "abnormal", "fault", "faulty", "failure", "bad", "yes", "true", "1"):
        return 1.0
    raise DatasetError(f"{origin}: column {label!r}: {cell!r} is no label; normal or fault, 0 or 1 are")


def _first(files: Sequence[Path], channels: Sequence[str]) -> str:
    return "the bundle" if channels else str(files[0])
