"""Reads sensor logs in CSV: for the replay on the line and for training, through the same code.

A log has a header row, one column of timestamps, and columns of numbers; other columns may hold text. Separator,
decimal sign, the column of timestamps and their form are found out where the settings do not name them. What is not
clear is an error that names file, line and column; nothing is guessed silently:

- A cell that is empty, or says in one of the usual words that there was no value (`NaN`, `null`, `n/a`, `Bad` …), is
  NaN. Other text in a column of numbers is an error.
- A timestamp with a zone is taken by it; one without is in `LogForm.time_zone`. Both kinds in one log are an error, and
  so are two zones, unless the change is one to or from summer time.
- A time before that of the row above is an error, unless `LogForm.backwards` says otherwise. In a local time zone the
  hour that summer time's end repeats is read as repeated. The same time twice is allowed.
- A unit in brackets behind a column's name, or in a row of units under the header, is the column's unit.

The file is read in blocks, so that a replay of any length needs little memory.
"""

import csv
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import BinaryIO
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt

from station.errors import LogError
from station.sensor_settings import LogForm

Floats = npt.NDArray[np.float64]

BLOCK_BYTES = 4_000_000
TIME_NAMES = ("timestamp", "datetime", "date_time", "time_stamp", "time", "date", "ts", "zeitstempel", "zeit")
"""Names of columns of timestamps, without regard to case and blanks, the first of these wins."""
NO_VALUE = frozenset({"", "nan", "na", "n/a", "#n/a", "null", "none", "nil", "bad", "no data", "-", "--", "?"})
"""Cells, in lower case, that say that there was no value."""
_SWITCHES = {"true": 1.0, "false": 0.0}
_UNIT = re.compile(r"^(?P<name>.*\S)\s*(?:\[(?P<square>[^\[\]]*)\]|\((?P<round>[^()]*)\))$")
_COMMA_NUMBER = re.compile(r"^\s*[-+]?\d+,\d+(?:[eE][-+]?\d+)?\s*$")
_ISO_BEGIN = re.compile(r"^\s*\d{4}-\d\d-\d\d")
_EPOCH_UNITS = ((1e17, 1e-9), (1e14, 1e-6), (1e11, 1e-3))
"""From this number on a count since 1970 is one of nanoseconds, microseconds, milliseconds: 1e11 s is the year 5138."""
_SUMMER_TIME = timedelta(hours=1)
_DAY_S = 86_400.0
_QUARTER_US = 900_000_000
_EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001  local times are counted from it


@dataclass(frozen=True, slots=True)
class SensorLog:
    """A log, or a block of one.

    Attributes:
        origin: the file, for error texts.
        columns: names of the columns of numbers, in the file's order, without the units in brackets.
        units: column → unit, for the columns that state one.
        time_s: `[rows]` seconds since 1970, UTC.
        values: `[rows, columns]`; NaN where the log has no value.
        text: column → `[rows]` cells of each column that holds text.
    """

    origin: str
    columns: tuple[str, ...]
    units: Mapping[str, str]
    time_s: Floats
    values: Floats
    text: Mapping[str, tuple[str, ...]]

    def column(self, name: str) -> Floats:
        """`[rows]` values of one column; the unit in brackets behind its name may be given.

        Raises:
            LogError: there is no such column of numbers; the text names those that there are.
        """
        bare, _ = name_and_unit(name)
        if bare not in self.columns:
            kind = "holds text" if bare in self.text else f"is not in it; it has {', '.join(self.columns) or 'none'}"
            raise LogError(f"{self.origin}: column {bare!r} {kind}")
        return self.values[:, self.columns.index(bare)]


@dataclass(slots=True)
class _Layout:
    """What is known of a file after its first rows."""

    origin: str
    form: LogForm
    separator: str
    names: list[str]
    units: dict[str, str]
    time: int
    decimal: str = "."
    text: frozenset[int] = frozenset()
    epoch_unit_s: float | None = None
    aware: bool | None = None
    offset: timedelta | None = None
    offset_changed_s: float = -math.inf
    last_s: float = -math.inf
    last_naive_us: int = -(2**62)
    again: bool = False
    named: list[int] = field(default_factory=list)
    fresh: bool = True

    def error(self, line: int, column: int | None, text: str) -> LogError:
        where = "" if column is None else f", column {self.names[column]!r}"
        return LogError(f"{self.origin}: line {line}{where}: {text}")


def name_and_unit(header: str) -> tuple[str, str | None]:
    """Split `Pressure [bar]` or `Pressure (bar)` into name and unit."""
    header = header.strip()
    match = _UNIT.match(header)
    if match is None:
        return header, None
    return match["name"], (match["square"] or match["round"] or "").strip() or None


def instant_s(stamp: str | float, zone: str = "UTC") -> float | None:
    """Return a single time as seconds since 1970: ISO 8601, or a count since 1970 whose unit shows in its size.

    Args:
        stamp: the time as a text or a number.
        zone: of a text that names none.

    Returns:
        None when it is no time.
    """
    try:
        text = stamp.strip() if isinstance(stamp, str) else repr(float(stamp))
        count = _number(text)
        if count is not None:
            return count * (_epoch_unit_s(text) or 1.0) if math.isfinite(count) else None
        at = datetime.fromisoformat(text)
        return (at if at.tzinfo is not None else at.replace(tzinfo=ZoneInfo(zone))).timestamp()
    except (ValueError, OverflowError):
        return None


def read_log(path: Path, form: LogForm | None = None) -> SensorLog:
    """Read a whole log.

    Args:
        path: the file.
        form: how it is written; default: found out.

    Raises:
        LogError: it cannot be read, or is not a log; file, line and column are named.
    """
    blocks = list(read_blocks(path, form))
    first = blocks[0]
    return SensorLog(
        first.origin,
        first.columns,
        first.units,
        np.concatenate([block.time_s for block in blocks]),
        np.concatenate([block.values for block in blocks]),
        {name: tuple(cell for block in blocks for cell in block.text[name]) for name in first.text},
    )


def read_blocks(path: Path, form: LogForm | None = None) -> Iterator[SensorLog]:
    """Read a log block by block; each block has at least one row, and columns and units do not change.

    Raises:
        LogError: as for `read_log`, when the block concerned is reached.
    """
    try:
        with path.open("rb") as file:
            yield from _blocks(file, str(path), form or LogForm())
    except OSError as exc:
        raise LogError(f"{path}: cannot be read: {exc.strerror}") from exc


def _blocks(file: BinaryIO, origin: str, form: LogForm) -> Iterator[SensorLog]:
    layout: _Layout | None = None
    line = 1
    while raw := file.readlines(BLOCK_BYTES):
        lines = _decoded(raw, origin, line)
        numbers: Sequence[int] = range(line, line + len(lines))
        line += len(lines)
        if any(not text or text.isspace() for text in lines):
            kept = [place for place, text in enumerate(lines) if text and not text.isspace()]
            lines, numbers = [lines[place] for place in kept], [numbers[place] for place in kept]
        if layout is None:
            header = next((place for place, text in enumerate(lines) if not text.startswith("#")), None)
            if header is None:
                continue
            layout = _read_header(numbers[header], lines[header], origin, form)
            lines, numbers = lines[header + 1 :], numbers[header + 1 :]
        if not lines:
            continue
        columns = _columns(layout, lines, numbers)
        if layout.fresh:
            if _is_row_of_units(layout, columns):
                _take_units(layout, columns)
                columns, numbers = [cells[1:] for cells in columns], numbers[1:]
            if not numbers:
                continue
            _look_at_first(layout, columns, numbers[0])
        yield _block(layout, columns, numbers)
    if layout is None:
        raise LogError(f"{origin}: is empty; a header row and rows with a timestamp are expected")
    if layout.fresh:
        raise LogError(f"{origin}: has a header row and no other")


def _decoded(raw: Sequence[bytes], origin: str, first_line: int) -> list[str]:
    try:
        text = b"".join(raw).decode("utf-8-sig" if first_line == 1 else "utf-8").replace("\r\n", "\n")
    except UnicodeDecodeError:
        for number, one in enumerate(raw, first_line):
            try:
                one.decode("utf-8")
            except UnicodeDecodeError as exc:
                raise LogError(
                    f"{origin}: line {number}: is not UTF-8 text: byte 0x{one[exc.start]:02x} at {exc.start + 1}; "
                    "save the file as UTF-8"
                ) from None
        raise
    if "\0" in text or "\r" in text:
        raise LogError(f"{origin}: after line {first_line - 1}: control characters that no table has: is it CSV?")
    lines = text.split("\n")
    if lines[-1] == "":
        del lines[-1]
    return lines


def _read_header(line: int, text: str, origin: str, form: LogForm) -> _Layout:
    separator: str = form.separator
    if separator == "auto":
        bare = re.sub(r'"[^"]*"', "", text)
        counts = {sign: bare.count(sign) for sign in (";", "\t", ",", "|")}
        separator = max(counts, key=lambda sign: counts[sign])
        if not counts[separator]:
            raise LogError(f"{origin}: line {line}: no separator (; , | or a tab) in the header row {text[:80]!r}")
    names, units = [], {}
    for cell in _split(text, separator, origin, line):
        name, unit = name_and_unit(cell)
        names.append(name)
        if unit is not None:
            units[name] = unit
    layout = _Layout(origin, form, separator, names, units, time=-1)
    named = [name for name in names if name]
    repeated = sorted({name for name in named if named.count(name) > 1})
    if repeated:
        raise layout.error(line, None, f"two columns are called {repeated[0]!r}")
    layout.time = _time_column(layout, line)
    # A column without a name is an index, or comes from a separator at the end of each line: it is left out.
    layout.named = [index for index, name in enumerate(names) if name and index != layout.time]
    return layout


def _time_column(layout: _Layout, line: int) -> int:
    wanted = layout.form.time_column
    if wanted is not None:
        bare, _ = name_and_unit(wanted)
        if bare not in layout.names:
            raise layout.error(line, None, f"no column {bare!r} (time_column); there are {', '.join(layout.names)}")
        return layout.names.index(bare)
    lower = [name.lower().replace(" ", "_") for name in layout.names]
    return next((lower.index(name) for name in TIME_NAMES if name in lower), -1)


def _columns(layout: _Layout, lines: Sequence[str], numbers: Sequence[int]) -> list[Sequence[str]]:
    """Split lines into columns of cells, as many as the header has."""
    separator, width = layout.separator, len(layout.names)
    text = "\n".join(lines)
    if '"' not in text and all(one.count(separator) == width - 1 for one in lines):
        # One flat list instead of a list for each row: a tenth of the objects, which the garbage collector looks at.
        flat = text.replace("\n", separator).split(separator)
        return [flat[index::width] for index in range(width)]
    rows = []
    for number, one in zip(numbers, lines, strict=True):
        row = _split(one, separator, layout.origin, number)
        if len(row) == width + 1 and not row[-1].strip():
            del row[-1]
        if len(row) != width:
            advice = ""
            if separator == "," and len(row) > width and _COMMA_NUMBER.match(",".join(row[-2:])):
                advice = "; numbers with a decimal comma need another separator, or quotes"
            raise layout.error(number, None, f"{len(row)} cells where the header row has {width}{advice}")
        rows.append(row)
    return list(zip(*rows, strict=True))


def _split(text: str, separator: str, origin: str, line: int) -> list[str]:
    if '"' not in text:
        return text.split(separator)
    if text.count('"') % 2:
        raise LogError(f"{origin}: line {line}: a quote is not closed")
    try:
        return next(csv.reader([text], delimiter=separator))
    except csv.Error as exc:
        raise LogError(f"{origin}: line {line}: {exc}") from exc


def _is_row_of_units(layout: _Layout, columns: Sequence[Sequence[str]]) -> bool:
    if layout.time >= 0 and any(sign.isdigit() for sign in columns[layout.time][0]):
        return False
    others = [columns[index][0].strip() for index in layout.named]
    return any(others) and not any(map(_is_reading, others))


def _is_reading(cell: str) -> bool:
    """Whether a cell holds a number, with whichever decimal sign, or a time: then it is no unit."""
    return _number(cell.replace(",", ".")) is not None or _ISO_BEGIN.match(cell) is not None


def _take_units(layout: _Layout, columns: Sequence[Sequence[str]]) -> None:
    for index in layout.named:
        unit = columns[index][0].strip().strip("[]()")
        if unit:
            layout.units[layout.names[index]] = unit


def _look_at_first(layout: _Layout, columns: Sequence[Sequence[str]], line: int) -> None:
    """Find out by the first rows what the header does not tell."""
    layout.fresh = False
    if layout.time < 0:
        layout.time = next((index for index, cells in enumerate(columns) if _ISO_BEGIN.match(cells[0])), -1)
        if layout.time < 0:
            raise layout.error(
                line,
                None,
                f"no column of timestamps: none of {', '.join(layout.names)} has a name such as "
                f"{', '.join(TIME_NAMES[:2])} or holds dates such as 2026-01-31T12:00:00Z; name it with time_column",
            )
        layout.named = [index for index in layout.named if index != layout.time]
    layout.decimal = "." if layout.form.decimal == "auto" else layout.form.decimal
    if layout.form.decimal == "auto" and any(
        _COMMA_NUMBER.match(cell) for index in layout.named for cell in columns[index] if "," in cell
    ):
        layout.decimal = ","
    texts = frozenset(index for index in layout.named if _holds_text(layout, columns[index]))
    layout.text = texts
    layout.named = [index for index in layout.named if index not in texts]


def _holds_text(layout: _Layout, cells: Sequence[str]) -> bool:
    """Whether the first cell with something in it is no number in any form."""
    for cell in cells:
        bare = cell.strip()
        if bare.lower() not in NO_VALUE:
            return _number(bare.replace(",", ".") if layout.decimal == "," else bare) is None and not bare[0].isdigit()
    return False


def _block(layout: _Layout, columns: Sequence[Sequence[str]], lines: Sequence[int]) -> SensorLog:
    time_s = _times(layout, columns[layout.time], lines)
    values = np.empty((len(lines), len(layout.named)))
    for place, index in enumerate(layout.named):
        values[:, place] = _numbers(layout, index, columns[index], lines)
    return SensorLog(
        origin=layout.origin,
        columns=tuple(layout.names[index] for index in layout.named),
        units=layout.units,
        time_s=time_s,
        values=values,
        text={layout.names[index]: tuple(columns[index]) for index in sorted(layout.text)},
    )


def _numbers(layout: _Layout, index: int, cells: Sequence[str], lines: Sequence[int]) -> Floats:
    try:
        joined = "\0".join(cells)
        # float() also takes 1_000, which no logger writes as a number.
        if "_" not in joined:
            if layout.decimal == ".":
                return np.fromiter(map(float, cells), np.float64, len(cells))
            if "." not in joined:
                return np.fromiter(map(float, joined.replace(",", ".").split("\0")), np.float64, len(cells))
    except ValueError:
        pass
    values = np.empty(len(cells))
    for place, cell in enumerate(cells):
        number = _number(cell if layout.decimal == "." else cell.replace(".", "_").replace(",", "."))
        if number is None:
            advice = ""
            if layout.decimal == "." and _COMMA_NUMBER.match(cell):
                advice = '; for a decimal comma set decimal = ","'
            elif layout.decimal == "," and "." in cell:
                advice = f"; the log's decimal sign is {layout.decimal!r}"
            raise layout.error(lines[place], index, f"{cell.strip()[:40]!r} is not a number{advice}")
        values[place] = number
    return values


def _number(cell: str) -> float | None:
    """A cell's value, NaN for one without; None when it is neither."""
    word = cell.strip().lower()
    if word in NO_VALUE:
        return math.nan
    if word in _SWITCHES:
        return _SWITCHES[word]
    try:
        return None if "_" in word else float(word)
    except ValueError:
        return None


def _times(layout: _Layout, cells: Sequence[str], lines: Sequence[int]) -> Floats:
    if layout.epoch_unit_s is None and layout.aware is None and layout.form.time_format is None:
        layout.epoch_unit_s = _epoch_unit_s(cells[0])
    time_s = (_stamps if layout.epoch_unit_s is None else _epochs)(layout, cells, lines)
    before = np.concatenate(([layout.last_s], time_s[:-1]))
    back = np.flatnonzero(time_s < before)
    if back.size and layout.form.backwards == "error":
        row = int(back[0])
        earlier = f"{_shown(time_s[row])} comes after {_shown(before[row])}"
        raise layout.error(lines[row], layout.time, f'time goes backwards: {earlier}; backwards = "keep" accepts that')
    layout.last_s = float(time_s[-1])
    return time_s


def _shown(time_s: float) -> str:
    return datetime.fromtimestamp(time_s, UTC).isoformat().replace("+00:00", "Z")


def _epoch_unit_s(cell: str) -> float | None:
    """Seconds in the unit of a count since 1970; None when the cell is no such count."""
    count = _number(cell.replace(",", "."))
    if count is None or not math.isfinite(count):
        return None
    return next((unit_s for least, unit_s in _EPOCH_UNITS if abs(count) >= least), 1.0)


def _epochs(layout: _Layout, cells: Sequence[str], lines: Sequence[int]) -> Floats:
    unit_s = layout.epoch_unit_s
    assert unit_s is not None
    time_s = _numbers(layout, layout.time, cells, lines) * unit_s
    wrong = np.flatnonzero(~np.isfinite(time_s))
    if wrong.size:
        row = int(wrong[0])
        raise layout.error(lines[row], layout.time, f"{cells[row].strip()[:40]!r} is not a timestamp")
    return time_s


def _stamps(layout: _Layout, cells: Sequence[str], lines: Sequence[int]) -> Floats:
    """Timestamps that are written as dates."""
    try:
        if layout.form.time_format is None:
            stamps = list(map(datetime.fromisoformat, cells))
        else:
            stamps = [datetime.strptime(cell.strip(), layout.form.time_format) for cell in cells]  # noqa: DTZ007
    except ValueError:
        stamps = [_stamp(layout, cell, line) for cell, line in zip(cells, lines, strict=True)]
    if layout.aware is None:
        layout.aware = stamps[0].tzinfo is not None
    for place, stamp in enumerate(stamps):
        if (stamp.tzinfo is not None) != layout.aware:
            zones = "names no zone, others do" if layout.aware else "names a zone, others do not"
            raise layout.error(lines[place], layout.time, f"mixed time zones: {cells[place].strip()!r} {zones}")
    if layout.aware:
        return _aware_times(layout, stamps, lines)
    return _naive_times(layout, stamps, cells)


def _stamp(layout: _Layout, cell: str, line: int) -> datetime:
    try:
        if layout.form.time_format is not None:
            return datetime.strptime(cell.strip(), layout.form.time_format)  # noqa: DTZ007
        return datetime.fromisoformat(cell.strip())
    except ValueError:
        wanted = layout.form.time_format or "ISO 8601, such as 2026-01-31T12:00:00Z; set time_format for another form"
        raise layout.error(line, layout.time, f"{cell.strip()[:40]!r} is not a timestamp ({wanted})") from None


def _aware_times(layout: _Layout, stamps: Sequence[datetime], lines: Sequence[int]) -> Floats:
    time_s = np.fromiter((stamp.timestamp() for stamp in stamps), np.float64, len(stamps))
    for place, stamp in enumerate(stamps):
        offset = stamp.utcoffset()
        if offset == layout.offset:
            continue
        now_s = float(time_s[place])
        if layout.offset is not None and offset is not None:
            if abs(offset - layout.offset) > _SUMMER_TIME or now_s - layout.offset_changed_s < _DAY_S:
                raise layout.error(
                    lines[place], layout.time, f"mixed time zones: UTC{_hours(layout.offset)}, then UTC{_hours(offset)}"
                )
            layout.offset_changed_s = now_s
        layout.offset = offset
    return time_s


def _hours(offset: timedelta) -> str:
    minutes = round(offset.total_seconds() / 60)
    return f"{'-' if minutes < 0 else '+'}{abs(minutes) // 60:02d}:{abs(minutes) % 60:02d}"


def _naive_times(layout: _Layout, stamps: Sequence[datetime], cells: Sequence[str]) -> Floats:
    """Times that name no zone, taken as local times of the form's zone."""
    if layout.form.time_format is None and all(cell[4:5] == "-" for cell in cells):
        try:
            naive_us = np.array(cells, "datetime64[us]").astype(np.int64)
        except ValueError:
            naive_us = np.array(stamps, "datetime64[us]").astype(np.int64)
    else:
        naive_us = np.array(stamps, "datetime64[us]").astype(np.int64)
    # Clocks change on a quarter of an hour: within one, the offset is the same, or the whole of it is repeated.
    quarters, of_row = np.unique(naive_us // _QUARTER_US, return_inverse=True)
    zone = ZoneInfo(layout.form.time_zone)
    starts = [_EPOCH + timedelta(microseconds=int(quarter) * _QUARTER_US) for quarter in quarters]
    first_s = np.array([_offset_s(start, zone, fold=0) for start in starts])
    second_s = np.array([_offset_s(start, zone, fold=1) for start in starts])
    time_s: Floats = naive_us / 1e6 - first_s[of_row]
    before_us = np.concatenate(([layout.last_naive_us], naive_us[:-1]))
    repeated = first_s[of_row] != second_s[of_row]
    layout.last_naive_us = int(naive_us[-1])
    again = layout.again and bool(repeated[0])
    previous = -1
    for row in np.flatnonzero(repeated).tolist():
        # Where time steps back within the hour that is repeated, its second pass has begun.
        again = (again and row == previous + 1) or naive_us[row] < before_us[row]
        if again:
            time_s[row] = naive_us[row] / 1e6 - second_s[of_row[row]]
        previous = row
    layout.again = again and bool(repeated[-1])
    return time_s


def _offset_s(local: datetime, zone: ZoneInfo, *, fold: int) -> float:
    offset = local.replace(tzinfo=zone, fold=fold).utcoffset()
    assert offset is not None
    return offset.total_seconds()
