"""The form of a journal file, and everything that only reads one: verify, stats, export, rescue.

Rows are chained: ``hash = SHA-256(hash of the row before | content of the row)``, so that a changed or deleted row
shows. What is still to be sent stands in ``outbox``, what was acknowledged in ``delivered``; both are outside the
chain. Pruning keeps the hash at the end of each range that it removed (``pruned``) and adds a chained row of the kind
``checkpoint`` that holds a digest of that table. The schema grows by addition only, so that an older version of the
station can open the file after a rollback.
"""

import hashlib
import os
import sqlite3
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from uuid import UUID

from station.errors import JournalCorrupt, StorageError
from station.messages import OutboxRow, Outcome, Outgoing, ReplayResult, Selection

APPLICATION_ID = 0x494E5350
"""Marks the file as a station's journal ("INSP")."""
SCHEMA = """
CREATE TABLE IF NOT EXISTS journal (
    row INTEGER PRIMARY KEY,
    id BLOB NOT NULL,
    kind TEXT NOT NULL,
    topic TEXT NOT NULL,
    payload BLOB NOT NULL,
    camera TEXT,
    epoch INTEGER,
    sequence INTEGER,
    outcome TEXT,
    committed_at REAL NOT NULL,
    hash BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS journal_sequence ON journal (camera, epoch, sequence) WHERE sequence IS NOT NULL;
CREATE TABLE IF NOT EXISTS outbox (row INTEGER PRIMARY KEY, rank INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS delivered (row INTEGER PRIMARY KEY, at REAL NOT NULL);
CREATE TABLE IF NOT EXISTS pruned (first INTEGER PRIMARY KEY, last INTEGER NOT NULL, hash BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS replays (
    id INTEGER PRIMARY KEY, camera TEXT NOT NULL, epoch INTEGER NOT NULL, next INTEGER NOT NULL, last INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
"""
SQLITE_MAGIC = b"SQLite format 3\0"
WRITE_VERSION_WAL = 2
"""Of the file format's write versions the largest that is defined; it stands behind the magic and the page's size."""
GENESIS = bytes(32)
"""The hash before the first row."""
COLUMNS = "row, id, kind, topic, payload, camera, epoch, sequence, outcome, committed_at"
INSERT_ROW = f"INSERT INTO journal ({COLUMNS}, hash) VALUES (?,?,?,?,?,?,?,?,?,?,?)"
"""Columns by name: a later version may have added one, and an older one must still write after a rollback."""
CHECKPOINT = "checkpoint"
"""The kind of the rows that pruning adds."""
EXPORT_ROWS = 1000
"""Rows read at a time."""
DAMAGED_ONE_BY_ONE = 100
"""So many damaged rows are passed over one by one, so many more by fours, and so on."""
_KINDS: dict[str, Literal["verdict", "gap", "command", "alarm", "alert"]] = {
    "gap": "gap",
    "command": "command",
    "alarm": "alarm",
    "alert": "alert",
}
"""What is not among them is a verdict, or of a later version, and is sent as it is."""
_TRANSIENT = frozenset(
    {
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_PROTOCOL,
    }
)
"""Result codes that speak of the disk or of other users. Every other one, of statements that are known to be right,
means that the file does not hold what it should."""

Content = tuple[int, bytes, str, str, bytes, str | None, int | None, int | None, str | None, float]
"""A journal row without its hash, in the order of `COLUMNS`."""


@dataclass(frozen=True, slots=True)
class JournalRow:
    """One row as it stands in the file.

    Attributes:
        row: its number.
        message: its content.
        committed_at_s: wall time of the commit, seconds since 1970.
        acknowledged_at_s: wall time at which the broker's acknowledgement was noted; None while it is in the outbox.
        hash: of this row, hexadecimal.
    """

    row: int
    message: Outgoing
    committed_at_s: float
    acknowledged_at_s: float | None
    hash: str


@dataclass(frozen=True, slots=True)
class Verification:
    """What `verify` found.

    Attributes:
        rows: rows whose hash was checked.
        pruned: rows that pruning removed and accounts for.
        head: hash of the newest row, hexadecimal.
        fault: what is wrong and where; None when the chain is whole.
    """

    rows: int
    pruned: int
    head: str
    fault: str | None


_OF_PART = (
    "CASE WHEN kind = 'verdict' AND json_valid(CAST(payload AS TEXT)) "
    "THEN json_extract(CAST(payload AS TEXT), '$.part_id') END = ?"
)
"""The part's id stands in the message only; a damaged one has none."""


@dataclass(frozen=True, slots=True)
class Filter:
    """Which rows to export; None: all.

    Attributes:
        camera, epoch, outcome: only those of.
        first_sequence, last_sequence: both ends included.
        since_s, until_s: wall times of the commit, seconds since 1970, both ends included.
        part_id: only verdicts of this part.
    """

    camera: str | None = None
    epoch: int | None = None
    first_sequence: int | None = None
    last_sequence: int | None = None
    since_s: float | None = None
    until_s: float | None = None
    outcome: str | None = None
    part_id: str | None = None

    def condition(self) -> tuple[str, list[object]]:
        """As SQL, with its values."""
        wanted = (
            ("camera = ?", self.camera),
            ("epoch = ?", self.epoch),
            ("sequence >= ?", self.first_sequence),
            ("sequence <= ?", self.last_sequence),
            ("committed_at >= ?", self.since_s),
            ("committed_at <= ?", self.until_s),
            ("outcome = ?", self.outcome),
            (_OF_PART, self.part_id),
        )
        given = [(text, value) for text, value in wanted if value is not None]
        return " AND ".join(("1", *(text for text, _ in given))), [value for _, value in given]


EVERYTHING = Filter()


@dataclass(frozen=True, slots=True)
class JournalStats:
    """Figures of a journal file.

    Attributes:
        rows: rows kept.
        outbox: rows not acknowledged.
        first_committed_at_s, last_committed_at_s: wall times of the oldest and the newest row; None when it is empty.
        by_outcome: verdicts kept, by outcome.
        by_kind: all rows kept, by kind.
        head: hash of the newest row, hexadecimal.
        size_bytes: the database without its write-ahead log.
    """

    rows: int
    outbox: int
    first_committed_at_s: float | None
    last_committed_at_s: float | None
    by_outcome: dict[str, int]
    by_kind: dict[str, int]
    head: str
    size_bytes: int


def verify(path: Path, head: str | None = None) -> Verification:
    """Check the file's structure and every hash of a journal; it may be in use.

    Args:
        path: the file.
        head: a head hash that `health` published earlier, hexadecimal; a journal whose tail was cut no longer has it.

    Raises:
        JournalCorrupt: the file is so damaged that its rows cannot all be read.
        StorageError: the file cannot be read.
    """
    with _reading(path) as database:
        structure = str(database.execute("PRAGMA quick_check(1)").fetchone()[0])
        if structure != "ok":
            bad = _first_unreadable(database)
            where = "" if bad is None else f"; row {bad} is the first that cannot be read"
            raise JournalCorrupt(f"journal: {path}: {' '.join(structure.split())}{where}")
        found = walk(database, None)
        if found.fault is None and head is not None and not _knows(database, bytes.fromhex(head)):
            why = f"no row has the hash {head}: the end is cut off"
            if found.pruned:
                why = f"no kept row has the hash {head}: the end is cut off, or its row is among the pruned ones"
            return Verification(found.rows, found.pruned, found.head, why)
        return found


def stats(path: Path) -> JournalStats:
    """Count what a journal holds; it may be in use.

    Raises:
        StorageError: the file cannot be read.
    """
    with _reading(path) as database:
        rows, first_s, last_s = database.execute(
            "SELECT count(*), min(committed_at), max(committed_at) FROM journal"
        ).fetchone()
        by_outcome = dict(
            database.execute("SELECT outcome, count(*) FROM journal WHERE kind = 'verdict' GROUP BY outcome").fetchall()
        )
        by_kind = dict(database.execute("SELECT kind, count(*) FROM journal GROUP BY kind").fetchall())
        newest = database.execute("SELECT hash FROM journal ORDER BY row DESC LIMIT 1").fetchone()
        head = bytes(newest[0] if newest else GENESIS).hex()
        waiting = database.execute("SELECT count(*) FROM outbox").fetchone()[0]
        times = _seconds(first_s), _seconds(last_s)
        for name in (*by_outcome, *by_kind):
            if not isinstance(name, str):
                raise TypeError(f"outcome or kind {name!r}")
    return JournalStats(rows, waiting, *times, by_outcome, by_kind, head, path.stat().st_size)


def export(
    path: Path, chosen: Filter = EVERYTHING, unreadable: Callable[[int, int], None] | None = None
) -> Iterator[JournalRow]:
    """Give the verdicts, gaps and commands of a journal, oldest first; it may be in use.

    They are read in pieces, so that a slow reader does not hold up the station's own work on the file.

    Args:
        path: the file.
        chosen: which rows.
        unreadable: told of the row numbers, first and last, at which the file is damaged; those behind them follow.

    Raises:
        StorageError: the file cannot be read, or it is damaged and there is no `unreadable`.
    """
    condition, values = chosen.condition()
    query = (
        f"SELECT {COLUMNS}, hash, delivered.at FROM journal LEFT JOIN delivered USING (row) "
        f"WHERE row > ? AND row <= ? AND kind != '{CHECKPOINT}' AND {condition} ORDER BY row LIMIT {EXPORT_ROWS}"
    )
    with _reading(path) as database:
        ranges, damaged = [(-1, _last_row(database, path))], 0
        while ranges:
            after, last = ranges.pop()
            try:
                with translated(path):
                    found = [_exported(row) for row in database.execute(query, (after, last, *values)).fetchall()]
            except JournalCorrupt:
                if unreadable is None:
                    raise
                if last - after <= 4 ** (damaged // DAMAGED_ONE_BY_ONE):
                    # Where much is damaged the steps grow: row numbers may be far apart.
                    damaged += 1
                    unreadable(after + 1, last)
                else:
                    middle = after + (last - after) // 2
                    ranges += [(middle, last), (after, middle)]
                continue
            yield from found
            if len(found) == EXPORT_ROWS:
                ranges.append((found[-1].row, last))


def _last_row(database: sqlite3.Connection, path: Path) -> int:
    """The largest row number that any table tells.

    Raises:
        JournalCorrupt: none tells any.
    """
    found, fault = [], None
    for table in ("journal", "outbox", "delivered"):
        try:
            with translated(path):
                found.append(int(database.execute(f"SELECT ifnull(max(row), 0) FROM {table}").fetchone()[0]))
        except JournalCorrupt as exc:
            fault = fault or exc
    if fault is not None and not any(found):
        raise fault
    return max(found)


def _exported(fields: tuple[Any, ...]) -> JournalRow:
    *content, digest, at_s = fields
    row = outbox_row(tuple(content))
    committed_s = _seconds(row.committed_at_s)
    if committed_s is None:
        raise TypeError(f"row {row.row}: no time of its commit")
    return JournalRow(row.row, row.message, committed_s, _seconds(at_s), digest.hex())


def _seconds(value: object) -> float | None:
    """A time as it must stand in the file; SQLite keeps what it is given, whatever a column is declared as."""
    if value is None or isinstance(value, float):
        return value
    if isinstance(value, int):
        return float(value)
    raise TypeError(f"time {value!r}")


def find(path: Path, selection: Selection) -> list[ReplayResult.Stretch]:
    """Look for verdicts that are kept; the journal may be in use, and its user is not held up.

    Returns:
        Stretches of sequences that hold all that was asked for; where the clock was stepped, more than that.

    Raises:
        StorageError: the file cannot be read.
    """
    with _reading(path) as database:
        if selection.since_s is None or selection.until_s is None:
            stretches: Iterable[tuple[Any, ...]] = [
                (selection.camera, selection.epoch, selection.first_sequence, selection.last_sequence)
            ]
        else:
            stretches = database.execute(
                "SELECT camera, epoch, min(sequence), max(sequence) FROM journal WHERE kind = 'verdict' "
                "AND committed_at BETWEEN ? AND ? AND (?3 IS NULL OR camera = ?3) GROUP BY camera, epoch",
                (selection.since_s, selection.until_s, selection.camera),
            ).fetchall()
        found = []
        for camera, epoch, first, last in stretches:
            lowest, highest, rows = database.execute(
                "SELECT min(sequence), max(sequence), count(*) FROM journal "
                "WHERE camera = ? AND epoch = ? AND sequence BETWEEN ? AND ? AND kind = 'verdict'",
                (camera, epoch, first, last),
            ).fetchone()
            if rows:
                found.append(
                    ReplayResult.Stretch(
                        camera=camera, epoch=epoch, first_sequence=lowest, last_sequence=highest, rows=rows
                    )
                )
        return found


def latest_answers(path: Path, rows: int) -> list[Outgoing]:
    """Give the responses to commands among the newest rows, oldest first; the journal may be in use.

    Raises:
        StorageError: the file cannot be read.
    """
    with _reading(path) as database:
        found = database.execute(
            f"SELECT {COLUMNS} FROM journal WHERE kind = 'command' AND row > (SELECT max(row) FROM journal) - ? "
            "ORDER BY row",
            (rows,),
        ).fetchall()
        return [outbox_row(content).message for content in found]


def latest_alerts(path: Path, limit: int) -> list[Outgoing]:
    """Give the newest alerts, oldest first, without reading the whole file; the journal may be in use.

    Raises:
        StorageError: the file cannot be read.
    """
    with _reading(path) as database:
        # The condition is that of the index on sequences, in which alerts are the few rows without a camera.
        found = database.execute(
            f"SELECT {COLUMNS} FROM journal WHERE camera IS NULL AND sequence IS NOT NULL AND kind = 'alert' "
            "ORDER BY epoch DESC, sequence DESC LIMIT ?",
            (limit,),
        ).fetchall()
        return [outbox_row(content).message for content in reversed(found)]


def rescue(path: Path) -> Iterator[Outgoing | None]:
    """Give the messages of a damaged journal's outbox that can still be read and match their hash, None for the others.

    Raises:
        StorageError: not even the outbox can be read to its end.
    """
    with _reading(path) as database:
        rows = [row for (row,) in database.execute("SELECT row FROM outbox ORDER BY row")]
        for row in rows:
            message: Outgoing | None = None
            with suppress(StorageError), translated(path):
                found = _pending_rows(database, row - 1, 1)
                if found and found[0].row == row:
                    message = found[0].message
            yield message


def read_epoch(path: Path) -> int | None:
    """The last epoch of a damaged journal, if it can still be read."""
    with suppress(StorageError), _reading(path) as database:
        found = database.execute("SELECT value FROM meta WHERE key = 'epoch'").fetchone()
        return int(found[0]) if found else None
    return None


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turn what SQLite raises, and what values of the wrong kind in the file lead to, into the station's errors."""
    try:
        yield
    except sqlite3.Error as exc:
        code = getattr(exc, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF
        kind = StorageError if code in _TRANSIENT and not _claims_to_be_later(path) else JournalCorrupt
        raise kind(f"journal: {path}: {exc}") from exc
    except (TypeError, ValueError, OverflowError, struct.error) as exc:
        raise JournalCorrupt(f"journal: {path}: holds a value of the wrong kind: {exc}") from exc


def _claims_to_be_later(path: Path) -> bool:
    """Whether the file's header says that only a later version of SQLite may write to it (SQLite's file format 1.3.3).

    No station makes such a file; SQLite calls it read-only, which no other disk would change.
    """
    with suppress(OSError), path.open("rb") as file:
        header = file.read(len(SQLITE_MAGIC) + 3)
        return header.startswith(SQLITE_MAGIC) and header[-1] > WRITE_VERSION_WAL
    return False


def pending_rows(database: sqlite3.Connection, path: Path, after_row: int, limit: int) -> list[OutboxRow]:
    """Rows of the outbox, each checked against its hash.

    Raises:
        JournalCorrupt: a row was changed.
        StorageError: the file cannot be read.
    """
    with translated(path):
        return _pending_rows(database, after_row, limit)


def _pending_rows(database: sqlite3.Connection, after_row: int, limit: int) -> list[OutboxRow]:
    found = database.execute(
        f"SELECT {COLUMNS}, hash, (SELECT hash FROM journal AS former WHERE former.row = journal.row - 1) "
        "FROM outbox JOIN journal USING (row) WHERE row > ? ORDER BY row LIMIT ?",
        (after_row, limit),
    ).fetchall()
    rows = []
    for *fields, digest, before in found:
        content: Content = tuple(fields)
        if chained(before or _hash_before(database, content[0]), content) != digest:
            raise ValueError(f"row {content[0]} does not match its hash")
        rows.append(outbox_row(content))
    return rows


def _hash_before(database: sqlite3.Connection, row: int) -> bytes:
    """Hash at the end of the pruned range before a row, or the one that every chain begins with."""
    found = database.execute("SELECT hash FROM pruned WHERE last = ?", (row - 1,)).fetchone()
    return found[0] if found else GENESIS


def content_of(row: int, message: Outgoing, now_s: float) -> Content:
    """A message as a row."""
    return (
        row,
        message.id.bytes,
        message.kind,
        message.topic,
        message.payload,
        message.camera,
        message.epoch,
        message.sequence,
        None if message.outcome is None else message.outcome.value,
        now_s,
    )


def outbox_row(content: Sequence[Any]) -> OutboxRow:
    """A row as a message.

    Raises:
        ValueError: a value is not what it should be.
    """
    row, identifier, kind, topic, payload, camera, epoch, sequence, outcome, committed_s = content
    return OutboxRow(
        row,
        committed_s,
        Outgoing(
            id=UUID(bytes=identifier),
            kind=_KINDS.get(kind, "verdict"),
            topic=topic,
            payload=payload,
            camera=camera,
            epoch=epoch,
            sequence=sequence,
            outcome=None if outcome is None else Outcome(outcome),
        ),
    )


def chained(before: bytes, content: Content) -> bytes:
    """Hash of a row: every field with its length, so that no two contents give the same bytes."""
    row, identifier, kind, topic, payload, camera, epoch, sequence, outcome, committed_s = content
    digest = hashlib.sha256(before)
    digest.update(struct.pack(">qd", row, committed_s))
    digest.update(struct.pack(">qq", -1 if epoch is None else epoch, -1 if sequence is None else sequence))
    texts = (kind, topic, "" if camera is None else camera, "" if outcome is None else outcome)
    for part in (identifier, payload, *(text.encode() for text in texts)):
        digest.update(struct.pack(">I", len(part)))
        digest.update(part)
    return digest.digest()


def pruned_digest(database: sqlite3.Connection) -> bytes:
    """What a checkpoint row holds: a digest of the list of pruned ranges."""
    digest = hashlib.sha256()
    for first, last, end in database.execute("SELECT first, last, hash FROM pruned ORDER BY first"):
        digest.update(struct.pack(">qq", first, last) + end)
    return digest.digest()


def walk(database: sqlite3.Connection, start: int | None) -> Verification:
    """Check the chain from a row on; None means from the beginning."""
    pruned = {first: (last, end) for first, last, end in database.execute("SELECT first, last, hash FROM pruned")}
    removed = sum(last - first + 1 for first, (last, _) in pruned.items())
    if start is None:
        expected = database.execute("SELECT value FROM meta WHERE key = 'first_row'").fetchone()[0]
        head: bytes | None = GENESIS
    else:
        expected = start
        before = database.execute("SELECT hash FROM journal WHERE row = ?", (start - 1,)).fetchone()
        head = before[0] if before else None
    rows = 0
    checkpoint: bytes | None = None
    for *fields, digest in database.execute(
        f"SELECT {COLUMNS}, hash FROM journal WHERE row >= ? ORDER BY row", (expected,)
    ):
        content: Content = tuple(fields)
        if content[0] != expected and expected in pruned:
            last, head = pruned[expected]
            expected = last + 1
        if content[0] != expected:
            return Verification(rows, removed, (head or GENESIS).hex(), f"row {expected} is missing")
        if head is not None and not _matches(head, content, digest):
            return Verification(rows, removed, head.hex(), f"row {expected} does not match its hash")
        if content[2] == CHECKPOINT:
            checkpoint = content[4]
        head, expected, rows = digest, expected + 1, rows + 1
    fault = None
    waiting = database.execute("SELECT count(*) FROM outbox WHERE row NOT IN (SELECT row FROM journal)").fetchone()[0]
    if pruned and start is None and checkpoint != pruned_digest(database):
        fault = "the list of pruned rows was changed"
    elif waiting:
        fault = f"{waiting} rows of the outbox are missing"
    return Verification(rows, removed, (head or GENESIS).hex(), fault)


def _matches(before: bytes, content: Content, digest: bytes) -> bool:
    try:
        return chained(before, content) == digest
    except (TypeError, ValueError, AttributeError, OverflowError, struct.error):
        return False  # a field was changed into another type


def _first_unreadable(database: sqlite3.Connection) -> int | None:
    """The first row of a damaged file that cannot be read, if it is in the journal's own table."""
    row = 0
    try:
        for (row,) in database.execute("SELECT row FROM journal WHERE length(payload) >= 0 ORDER BY row"):  # noqa: B007
            pass
    except sqlite3.Error:
        return row + 1
    return None


def _knows(database: sqlite3.Connection, digest: bytes) -> bool:
    return any(
        database.execute(f"SELECT 1 FROM {table} WHERE hash = ? LIMIT 1", (digest,)).fetchone()
        for table in ("journal", "pruned")
    )


@contextmanager
def _reading(path: Path) -> Iterator[sqlite3.Connection]:
    try:
        if not path.is_file():
            raise StorageError(f"journal: {path} does not exist")
        # Even reading needs an index file beside a write-ahead log; where neither is nor can be, nobody writes either.
        alone = not (os.access(path.parent, os.W_OK) or path.with_name(path.name + "-wal").exists())
    except OSError as exc:
        raise StorageError(f"journal: {path} cannot be read: {exc.strerror}") from exc
    address = f"{path.resolve().as_uri()}?mode=ro{'&immutable=1' if alone else ''}"
    with translated(path), closing(sqlite3.connect(address, uri=True, timeout=5.0)) as database:
        yield database
