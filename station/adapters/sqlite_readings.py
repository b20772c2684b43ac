"""The journal of readings: what the process groups' channels were, in a file and with a byte budget of its own.

Rows are kept in blocks: the ticks of a few seconds, packed and compressed (times as float64, values and risk as
float32, the quality of each channel as one byte). A block is one transaction, not fsynced: what is lost with the power
is the last blocks, never the file (SQLite's manual, "PRAGMA synchronous": NORMAL in WAL mode). When the budget is used
up the oldest blocks go.
"""

import json
import logging
import os
import sqlite3
import threading
import zlib
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from station.errors import StorageError
from station.process_messages import QUALITIES, ChannelQuality, Moment, Tick

logger = logging.getLogger(__name__)

BLOCK_TICKS = 512
BLOCK_S = 5.0
"""A block is written after this many ticks or seconds, whichever comes first."""
_SCHEMA = """
CREATE TABLE IF NOT EXISTS lists (list INTEGER PRIMARY KEY, grouped TEXT NOT NULL, channels TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS blocks (
    block INTEGER PRIMARY KEY, list INTEGER NOT NULL, first REAL NOT NULL, last REAL NOT NULL,
    ticks INTEGER NOT NULL, data BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS blocks_by_time ON blocks (list, last);
"""
_DELETED_AT_ONCE = 64
CACHE_KB = 256
"""Pages that SQLite keeps in memory. Its usual 2 MB would fill over more than an hour, and nothing reads them again."""


@dataclass(frozen=True, slots=True)
class KeptReading:
    """One tick as it was kept.

    Attributes:
        at_s: seconds since 1970.
        channels: (name, unit) of each.
        values: None where the channel was not good.
        qualities: of each channel.
        risk: None: there was none.
    """

    at_s: float
    channels: tuple[tuple[str, str], ...]
    values: tuple[float | None, ...]
    qualities: tuple[ChannelQuality, ...]
    risk: float | None


@dataclass(slots=True)
class _Open:
    """A group's block that is being filled."""

    number: int
    times: list[float] = field(default_factory=list)
    values: list[npt.NDArray[np.float64]] = field(default_factory=list)
    codes: list[npt.NDArray[np.int8]] = field(default_factory=list)
    risks: list[float] = field(default_factory=list)


class SqliteReadings:
    """Keeps the ticks of all groups; any thread.

    Args:
        path: the database file; its folder is made when it is missing.
        max_bytes: of the file.
    """

    def __init__(self, path: Path, max_bytes: int) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._database: sqlite3.Connection | None = None
        self._lock = threading.Lock()
        self._open: dict[str, _Open] = {}

    def __enter__(self) -> Self:
        """Open the file; one that is no such journal is set aside.

        Raises:
            StorageError: the folder or the file cannot be written.
        """
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._database = self._connect()
            except sqlite3.DatabaseError as exc:
                if isinstance(exc, sqlite3.OperationalError):
                    raise
                aside = self._path.with_name(f"{self._path.name}.damaged-{os.getpid()}")
                self._path.rename(aside)
                logger.warning("readings: %s is damaged (%s); it is kept as %s", self._path, exc, aside.name)
                self._database = self._connect()
        except (OSError, sqlite3.Error) as exc:
            raise StorageError(f"readings: {self._path} cannot be opened: {exc}") from exc
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        if self._database is not None:
            self._database.close()
            self._database = None

    def begin(self, group: str, channels: Sequence[tuple[str, str]]) -> None:
        """Learn a group's channels, (name, unit) each, in the order of its ticks.

        Raises:
            StorageError: nothing was noted.
        """
        listed = json.dumps([list(one) for one in channels], ensure_ascii=False)
        with self._lock, self._writing() as database:
            found = database.execute(
                "SELECT list FROM lists WHERE grouped = ? AND channels = ?", (group, listed)
            ).fetchone()
            if found is None:
                found = database.execute(
                    "INSERT INTO lists (grouped, channels) VALUES (?, ?) RETURNING list", (group, listed)
                ).fetchone()
            self._open[group] = _Open(found[0])

    def keep(self, group: str, ticks: Sequence[Tick], moments: Sequence[Moment]) -> None:
        """Take ticks with where the group stood at them; they are written with their block.

        Raises:
            StorageError: a block could not be written, and is lost.
            KeyError: the group was not begun.
        """
        with self._lock:
            block = self._open[group]
            for tick, moment in zip(ticks, moments, strict=True):
                if block.times and not 0 <= tick.at_s - block.times[-1] <= BLOCK_S:
                    self._write(block)
                block.times.append(tick.at_s)
                block.values.append(tick.values)
                block.codes.append(tick.codes)
                block.risks.append(np.nan if moment.risk is None else moment.risk)
                if len(block.times) >= BLOCK_TICKS or tick.at_s - block.times[0] >= BLOCK_S:
                    self._write(block)

    def flush(self) -> None:
        """Write what is in memory.

        Raises:
            StorageError: something could not be written, and is lost.
        """
        with self._lock:
            for block in self._open.values():
                if block.times:
                    self._write(block)

    def _write(self, block: _Open) -> None:
        times, values, codes, risks = block.times, block.values, block.codes, block.risks
        block.times, block.values, block.codes, block.risks = [], [], [], []
        data = zlib.compress(
            np.array(times).tobytes()
            + np.array(values, np.float32).tobytes()
            + np.array(codes, np.int8).tobytes()
            + np.array(risks, np.float32).tobytes(),
            1,
        )
        with self._writing() as database:
            database.execute(
                "INSERT INTO blocks (list, first, last, ticks, data) VALUES (?, ?, ?, ?, ?)",
                (block.number, times[0], times[-1], len(times), data),
            )
            while self._used_bytes(database) > self._max_bytes:
                removed = database.execute(
                    "DELETE FROM blocks WHERE block IN (SELECT block FROM blocks ORDER BY block LIMIT ?)",
                    (_DELETED_AT_ONCE,),
                ).rowcount
                if not removed:
                    break

    @staticmethod
    def _used_bytes(database: sqlite3.Connection) -> int:
        pages, free, size = (
            database.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")
        )
        return int((pages - free) * size)

    def _connect(self) -> sqlite3.Connection:
        database = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False, timeout=5.0)
        try:
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = NORMAL")
            database.execute(f"PRAGMA cache_size = -{CACHE_KB}")
            database.executescript(_SCHEMA)
        except BaseException:
            database.close()
            raise
        return database

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        if self._database is None:
            raise StorageError(f"readings: {self._path} is not open")
        try:
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield self._database
            except BaseException:
                self._database.execute("ROLLBACK")
                raise
            self._database.execute("COMMIT")
        except sqlite3.Error as exc:
            raise StorageError(f"readings: {self._path}: {exc}") from exc


def readings_at(path: Path, group: str, at_s: float) -> KeptReading | None:
    """The newest tick of a group up to a time; None: none is kept.

    Raises:
        StorageError: the file cannot be read.
    """
    with _reading(path) as database:
        found = database.execute(
            "SELECT channels, ticks, data FROM blocks JOIN lists USING (list) "
            "WHERE grouped = ? AND first <= ? ORDER BY first DESC, block DESC LIMIT 1",
            (group, at_s + 1e-6),
        ).fetchone()
    if found is None:
        return None
    newest: KeptReading | None = None
    for reading in _unpacked(*found):
        if reading.at_s > at_s + 1e-6:
            break
        newest = reading
    return newest


def readings_between(path: Path, group: str, since_s: float, until_s: float) -> Iterator[KeptReading]:
    """The ticks of a group from one time to another, both included, in the order in which they were kept.

    Raises:
        StorageError: the file cannot be read.
    """
    with _reading(path) as database:
        blocks = database.execute(
            "SELECT channels, ticks, data FROM blocks JOIN lists USING (list) "
            "WHERE grouped = ? AND last >= ? AND first <= ? ORDER BY block",
            (group, since_s, until_s),
        )
        for block in blocks:
            yield from (reading for reading in _unpacked(*block) if since_s <= reading.at_s <= until_s)


def groups_kept(path: Path) -> Sequence[str]:
    """The groups of which there are readings.

    Raises:
        StorageError: the file cannot be read.
    """
    with _reading(path) as database:
        return [
            row[0]
            for row in database.execute("SELECT DISTINCT grouped FROM lists JOIN blocks USING (list) ORDER BY grouped")
        ]


def _unpacked(channels: str, ticks: int, data: bytes) -> Iterator[KeptReading]:
    named = tuple((str(name), str(unit)) for name, unit in json.loads(channels))
    count = len(named)
    raw = zlib.decompress(data)
    if len(raw) != ticks * (8 + 5 * count + 4):
        raise StorageError(f"readings: a block holds {len(raw)} bytes for {ticks} ticks of {count} channels")
    times = np.frombuffer(raw, np.float64, ticks)
    values = np.frombuffer(raw, np.float32, ticks * count, 8 * ticks).reshape(ticks, count)
    codes = np.frombuffer(raw, np.int8, ticks * count, (8 + 4 * count) * ticks).reshape(ticks, count)
    risks = np.frombuffer(raw, np.float32, ticks, (8 + 5 * count) * ticks)
    for row in range(ticks):
        yield KeptReading(
            at_s=float(times[row]),
            channels=named,
            values=tuple(
                float(f"{value:.7g}") if code == 0 else None
                for value, code in zip(values[row], codes[row], strict=True)
            ),
            qualities=tuple(QUALITIES[code] for code in codes[row]),
            risk=None if np.isnan(risks[row]) else float(f"{risks[row]:.6g}"),
        )


@contextmanager
def _reading(path: Path) -> Iterator[sqlite3.Connection]:
    if not path.is_file():
        raise StorageError(f"readings: {path} does not exist")
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=5.0)) as database:
            yield database
    except (sqlite3.Error, zlib.error, ValueError, IndexError) as exc:
        raise StorageError(f"readings: {path}: {exc}") from exc
