"""The journal: an SQLite database that is outbox and audit trail in one.

A commit is durable when it returns: write-ahead log with ``synchronous=FULL``, one fsync a commit. (SQLite's manual,
"PRAGMA synchronous": with NORMAL a transaction may roll back after a power loss.) The log is emptied beside the
commits, by a thread of its own.

A file that turns out to be damaged is set aside under another name, and what can still be read of its outbox goes into
a new one; a gap declares the rest.
"""

import fcntl
import logging
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from station.adapters._checkpointer import Checkpointer
from station.adapters._journal_file import (
    APPLICATION_ID,
    CHECKPOINT,
    COLUMNS,
    GENESIS,
    INSERT_ROW,
    SCHEMA,
    Content,
    Filter,
    JournalRow,
    JournalStats,
    Verification,
    chained,
    content_of,
    export,
    find,
    latest_alerts,
    latest_answers,
    outbox_row,
    pending_rows,
    pruned_digest,
    read_epoch,
    rescue,
    stats,
    translated,
    verify,
    walk,
)
from station.errors import JournalCorrupt, JournalInUse, StorageError
from station.ids import uuid7
from station.messages import Gap, JournalHealth, OutboxRow, Outcome, Outgoing, Replayed, ReplayResult, Selection
from station.ports import Clock
from station.settings import JournalSettings
from station.wire import outgoing_gap

__all__ = [
    "Filter",
    "JournalRow",
    "JournalStats",
    "Mended",
    "SqliteJournal",
    "Verification",
    "export",
    "stats",
    "verify",
]

logger = logging.getLogger(__name__)

RANKS: dict[str | None, int] = {Outcome.OK: 0, Outcome.UNKNOWN: 1, Outcome.NG: 2, None: 3}
"""What goes first when undelivered rows must go; gaps (None) stay."""
RANK_OF_OUTCOME = "CASE outcome WHEN 'ok' THEN 0 WHEN 'unknown' THEN 1 WHEN 'ng' THEN 2 ELSE 3 END"
"""The same in SQL."""
PRUNE_ROWS = 512
"""Rows removed at a time at most: few enough that a commit does not wait long."""
CHECKED_ROWS = 256
"""Rows at the end of the chain that are checked when the journal is opened."""
INDEX_BYTES = 65_536
"""Kept free for the index of the write-ahead log and the lock file."""
CHECKPOINT_FRAMES = 1000
"""The write-ahead log is emptied when it has grown by this many pages, or by a quarter of what it may hold."""
RESCUE_ROWS = 500
"""Rows copied in one transaction from a damaged journal."""
ROW_BYTES = 256
"""What a row takes beside its payload, roughly."""
AGE_CHECK_EVERY_S = 60.0
ANSWER_ROWS = 20_000
"""Among this many newest rows the answers of a former run are looked for: a start must not read the whole file."""
ALERT_ROWS = 10_000
"""Among this many newest alerts those are looked for that stood when the station went down."""


@dataclass(frozen=True, slots=True)
class Mended:
    """What was done to a damaged journal.

    Attributes:
        fault: what was wrong with it.
        aside: where it is now, as it was.
        rescued: undelivered messages that went into the new one.
        lost: undelivered messages that could not be read; None: nobody knows how many.
    """

    fault: str
    aside: Path
    rescued: int
    lost: int | None


class SqliteJournal:
    """The journal of one station. One thread at a time uses it.

    Args:
        path: the database file; its folder is made when it is missing.
        settings: bounds by bytes and age.
        station: the station's name, for the gaps that the journal declares itself.
        clock: wall time of commits.
    """

    def __init__(self, path: Path, settings: JournalSettings, *, station: str, clock: Clock) -> None:
        self._path = path
        self._settings = settings
        self._station = station
        self._clock = clock
        self._reserve = path.with_name(path.name + ".reserve")
        self._reserve_bytes = max(65_536, min(1 << 20, settings.max_bytes // 16))
        self._wal_pages = max(16, min(4000, settings.max_bytes // 64 // 4096))
        self._check_every_bytes = max(16_384, min(1 << 20, settings.max_bytes // 64))
        self._prune_rows = max(16, min(PRUNE_ROWS, settings.max_bytes // 65_536))
        overhead_bytes = self._reserve_bytes + 3 * self._wal_pages * 4096 + 2 * self._check_every_bytes + INDEX_BYTES
        self._limit_bytes = settings.max_bytes - overhead_bytes
        self._connection: sqlite3.Connection | None = None
        self._checkpointer: Checkpointer | None = None
        self._head = GENESIS
        self._last_row = 0
        self._rows = 0
        self._outbox = 0
        self._replays = 0
        self._size_bytes = 0
        self._newest_of: dict[str, int] = {}
        self._unchecked_bytes = 0
        self._loses = False
        self._age_checked_s = float("-inf")
        self._epoch = 0
        self._durable = True
        self._stale = False
        self._lock_file: int | None = None
        self._reserve_held = False
        self._mended: Mended | None = None

    def __enter__(self) -> Self:
        """Open the file; one that is not a journal any more is set aside and a new one begun.

        Raises:
            StorageError: the folder or the file cannot be written.
        """
        self._lock()
        try:
            try:
                self._open_or_release()
            except JournalCorrupt as exc:
                self._begin_anew(exc, undelivered=None)
        except StorageError:
            self._close()
            raise
        return self

    @contextmanager
    def mending(self) -> Iterator[Mended | None]:
        """Open the journal like `with`, but look at every row first, and say what was done to a damaged one.

        Opening by itself looks at the structure as far as it goes, and at the newest rows, so as not to hold up a
        start.

        Raises:
            StorageError: the folder or the file cannot be written.
        """
        self._lock()
        try:
            fault = self._open_whole()
            if fault is not None:
                self._begin_anew(fault, undelivered=None)
            yield self._mended
        finally:
            self._close()

    def _open_whole(self) -> JournalCorrupt | None:
        try:
            found = verify(self._path).fault
            if found is not None:
                return JournalCorrupt(f"journal: {self._path}: {found}")
            self._open_or_release()
        except JournalCorrupt as exc:
            return exc
        return None

    def _lock(self) -> None:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._lock_file = os.open(self._path.with_name(self._path.name + ".lock"), os.O_CREAT | os.O_RDWR, 0o640)
            fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            self._close()
            raise JournalInUse(f"journal: {self._path} is in use by another station") from exc
        except OSError as exc:
            self._close()
            raise StorageError(f"journal: {self._path.parent} cannot be written: {exc.strerror}") from exc

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        self._close()

    def open_epoch(self) -> int:
        """Begin a new epoch: larger than every one before, also when the clock stepped back.

        On a disk that takes nothing more, not even in the reserve's place, the number is not stored: then only a clock
        that steps back before the next start could make it come again.

        Raises:
            StorageError: the file cannot be read.
        """
        with translated(self._path):
            found = self._database.execute("SELECT value FROM meta WHERE key = 'epoch'").fetchone()
        epoch = max((found[0] if found else 0) + 1, int(self._clock.now().timestamp() * 1e3))
        self._epoch = epoch
        try:
            self._store_epoch(epoch)
        except StorageError as exc:
            try:
                if self._release_reserve():
                    self._store_epoch(epoch)
            except StorageError:
                logger.warning("journal: the epoch %d could not be stored: %s", epoch, exc)
        return epoch

    def _store_epoch(self, epoch: int) -> None:
        with self._transaction() as database:
            database.execute("INSERT OR REPLACE INTO meta VALUES ('epoch', ?)", (epoch,))

    def commit(self, messages: Sequence[Outgoing], acknowledged: Sequence[int]) -> Sequence[OutboxRow]:
        """Store messages and mark rows as acknowledged in one transaction; durable when it returns.

        A journal that turns out to be corrupt is set aside, and the messages go into a new one.

        Returns:
            The new rows, in the order of `messages`; after them the gaps that the journal itself had to declare.

        Raises:
            StorageError: nothing of it was stored. On a full disk gaps alone may still be stored, in the reserve.
        """
        try:
            return self._commit(messages, acknowledged)
        except JournalCorrupt as exc:
            gaps = self._begin_anew(exc, undelivered=self._outbox)
            return [*self._commit(messages, ()), *gaps]

    def pending(self, after_row: int, limit: int) -> Sequence[OutboxRow]:
        """Rows after `after_row` that no broker has acknowledged, oldest first.

        Raises:
            StorageError: the file cannot be read.
        """
        try:
            return self._pending(after_row, limit)
        except JournalCorrupt as exc:
            self._begin_anew(exc, undelivered=self._outbox)
            return self._pending(after_row, limit)

    def _pending(self, after_row: int, limit: int) -> list[OutboxRow]:
        return pending_rows(self._database, self._path, after_row, limit)

    def replay(self, acknowledged_since_s: float) -> int | None:
        """Put rows that were acknowledged at or after this wall time (seconds since 1970) back into the outbox.

        Returns:
            The first such row; None when there is none.

        Raises:
            StorageError: nothing was put back.
        """
        return self._put_back("delivered.at >= ?", (acknowledged_since_s,))

    def find(self, selection: Selection) -> Sequence[ReplayResult.Stretch]:
        """Look for verdicts that are kept; any thread, and no other is held up.

        Raises:
            StorageError: the file cannot be read.
        """
        return find(self._path, selection)

    def begin_replays(self, stretches: Sequence[ReplayResult.Stretch]) -> None:
        """Note durably that these verdicts are to be sent again; `replay_next` does it, piece by piece.

        Raises:
            StorageError: nothing was noted.
        """
        if self._stale:
            self._read_state()
        with self._transaction() as database:
            database.executemany(
                "INSERT INTO replays (camera, epoch, next, last) VALUES (?,?,?,?)",
                [(one.camera, one.epoch, one.first_sequence, one.last_sequence) for one in stretches],
            )
        self._replays += len(stretches)

    def replay_next(self, limit: int) -> Replayed | None:
        """Put up to `limit` of the verdicts that are to be sent again back into the outbox; None: there are none.

        Raises:
            StorageError: nothing was put back.
        """
        if not self._replays:
            return None
        try:
            return self._replay_next(limit)
        except JournalCorrupt as exc:
            self._begin_anew(exc, undelivered=self._outbox)
            waiting = self._pending(0, 1)
            return Replayed(waiting[0].row if waiting else None)

    def _replay_next(self, limit: int) -> Replayed | None:
        if self._stale:
            self._read_state()
        with self._transaction() as database:
            stretch = database.execute(
                "SELECT id, camera, epoch, next, last FROM replays ORDER BY id LIMIT 1"
            ).fetchone()
            if stretch is None:
                self._replays = 0
                return None
            number, camera, epoch, following, last = stretch
            found = database.execute(
                "SELECT row, sequence FROM journal WHERE camera = ? AND epoch = ? AND sequence BETWEEN ? AND ? "
                "AND kind = 'verdict' ORDER BY sequence LIMIT ?",
                (camera, epoch, following, last, limit),
            ).fetchall()
            rows = [(row,) for row, _ in found]
            added = database.executemany(
                f"INSERT INTO outbox (row, rank) SELECT row, {RANK_OF_OUTCOME} FROM delivered JOIN journal USING (row) "
                "WHERE row = ?",
                rows,
            ).rowcount
            database.executemany("DELETE FROM delivered WHERE row = ?", rows)
            ended = len(found) < limit
            if ended:
                database.execute("DELETE FROM replays WHERE id = ?", (number,))
            else:
                database.execute("UPDATE replays SET next = ? WHERE id = ?", (found[-1][1] + 1, number))
        self._outbox += max(0, added)
        self._replays -= ended
        return Replayed(min((row for row, _ in found), default=None))

    def last_verdicts(self) -> Sequence[OutboxRow]:
        """The newest verdict of each camera; it is never pruned.

        Raises:
            StorageError: the file cannot be read.
        """
        rows = sorted(self._newest_of.values())
        marks = ",".join("?" * len(rows))
        with translated(self._path):
            found = self._database.execute(f"SELECT {COLUMNS} FROM journal WHERE row IN ({marks})", rows).fetchall()
        return [outbox_row(content) for content in found]

    def latest(self, limit: int) -> Sequence[OutboxRow]:
        """The newest verdicts of all cameras together, oldest first.

        Raises:
            StorageError: the file cannot be read.
        """
        newest = f"SELECT {COLUMNS} FROM journal WHERE kind = 'verdict' ORDER BY row DESC LIMIT ?"
        with translated(self._path):
            found = self._database.execute(newest, (limit,)).fetchall()
        return [outbox_row(content) for content in reversed(found)]

    def answers(self) -> Sequence[Outgoing]:
        """The responses to commands among the newest rows, oldest first; any thread.

        Raises:
            StorageError: the file cannot be read.
        """
        return latest_answers(self._path, ANSWER_ROWS)

    def alerts(self) -> Sequence[Outgoing]:
        """The newest alerts, oldest first; any thread.

        Raises:
            StorageError: the file cannot be read.
        """
        return latest_alerts(self._path, ALERT_ROWS)

    def health(self) -> JournalHealth:
        """Figures for the `health` topic; taken from memory, cheap."""
        return JournalHealth(
            head=self._head.hex(),
            rows=self._rows,
            outbox=self._outbox,
            size_bytes=self._size_bytes,
            durable=self._durable,
            replays=self._replays,
        )

    @property
    def _database(self) -> sqlite3.Connection:
        if self._connection is None:
            raise StorageError(f"journal: {self._path} is not open")
        return self._connection

    def _commit(self, messages: Sequence[Outgoing], acknowledged: Sequence[int]) -> list[OutboxRow]:
        now_s = self._clock.now().timestamp()
        gaps_only = all(message.kind == "gap" for message in messages) and bool(messages)
        if self._stale:
            self._read_state()
        try:
            self._hold_reserve()
            rows = self._store(messages, acknowledged, now_s)
        except JournalCorrupt:
            raise
        except StorageError:
            self._durable = False
            if not gaps_only or not self._release_reserve():
                raise
            return self._store(messages, acknowledged, now_s)
        self._durable = True
        return rows + self._keep_bounds(now_s)

    def _store(self, messages: Sequence[Outgoing], acknowledged: Sequence[int], now_s: float) -> list[OutboxRow]:
        with self._transaction() as database:
            marked = self._mark(database, acknowledged, now_s)
            appended, head = self._append(database, messages, now_s)
        self._head = head
        self._last_row += len(appended)
        self._rows += len(appended)
        self._outbox += len(appended) - marked
        self._unchecked_bytes += sum(len(row.message.payload) + ROW_BYTES for row in appended)
        for row in appended:
            if row.message.kind == "verdict" and row.message.camera is not None:
                self._newest_of[row.message.camera] = row.row
        return appended

    def _mark(self, database: sqlite3.Connection, acknowledged: Sequence[int], now_s: float) -> int:
        if not acknowledged:
            return 0
        database.executemany(
            "INSERT OR REPLACE INTO delivered SELECT row, ? FROM outbox WHERE row = ?",
            [(now_s, row) for row in acknowledged],
        )
        return database.executemany("DELETE FROM outbox WHERE row = ?", [(row,) for row in acknowledged]).rowcount

    def _append(
        self, database: sqlite3.Connection, messages: Iterable[Outgoing], now_s: float
    ) -> tuple[list[OutboxRow], bytes]:
        head = self._head
        rows: list[OutboxRow] = []
        contents: list[tuple[object, ...]] = []
        for row, message in enumerate(messages, self._last_row + 1):
            content = content_of(row, message, now_s)
            head = chained(head, content)
            contents.append((*content, head))
            rows.append(OutboxRow(row, now_s, message))
        database.executemany(INSERT_ROW, contents)
        database.executemany(
            "INSERT INTO outbox (row, rank) VALUES (?,?)", [(row.row, RANKS[row.message.outcome]) for row in rows]
        )
        return rows, head

    def _put_back(self, condition: str, values: tuple[object, ...]) -> int | None:
        try:
            return self._move_back(condition, values)
        except JournalCorrupt as exc:
            self._begin_anew(exc, undelivered=self._outbox)
            waiting = self._pending(0, 1)
            return waiting[0].row if waiting else None

    def _move_back(self, condition: str, values: tuple[object, ...]) -> int | None:
        chosen = f"FROM delivered JOIN journal USING (row) WHERE {condition}"
        with self._transaction() as database:
            first: int | None = database.execute(f"SELECT min(row) {chosen}", values).fetchone()[0]
            added = database.execute(
                f"INSERT INTO outbox (row, rank) SELECT row, {RANK_OF_OUTCOME} {chosen}",
                values,
            ).rowcount
            database.execute("DELETE FROM delivered WHERE row IN (SELECT row FROM outbox)")
        self._outbox += added
        return first

    def _keep_bounds(self, now_s: float) -> list[OutboxRow]:
        """Prune what is too old or too much; a failure is left to the next time, since the commit itself is done."""
        age_due = not 0 <= now_s - self._age_checked_s < AGE_CHECK_EVERY_S
        if self._unchecked_bytes < self._check_every_bytes and not age_due:
            return []
        self._unchecked_bytes = 0
        declared: list[OutboxRow] = []
        try:
            if age_due and not self._prune_old(now_s):
                self._age_checked_s = now_s
            while self._used_bytes() > self._limit_bytes:
                removed, gaps = self._prune_most_dispensable(now_s)
                declared += gaps
                if not removed:
                    break
            self._size_bytes = self._files_bytes()
        except JournalCorrupt:
            raise
        except StorageError as exc:
            logger.warning("journal: could not be pruned: %s", exc)
        return declared

    def _used_bytes(self) -> int:
        with translated(self._path):
            pages = self._database.execute("PRAGMA page_count").fetchone()[0]
            free = self._database.execute("PRAGMA freelist_count").fetchone()[0]
            size = self._database.execute("PRAGMA page_size").fetchone()[0]
        return int((pages - free) * size)

    def _files_bytes(self) -> int:
        total = 0
        for suffix in ("", "-wal", "-shm", ".reserve"):
            with suppress(OSError):
                total += self._path.with_name(self._path.name + suffix).stat().st_size
        return total

    def _prune_old(self, now_s: float) -> bool:
        """Remove acknowledged rows beyond the age limit; True when there may be more of them."""
        oldest_s = now_s - self._settings.max_age_days * 86_400
        with translated(self._path):
            found = self._database.execute(
                "SELECT row FROM (SELECT row FROM delivered ORDER BY row LIMIT ?) JOIN journal USING (row) "
                "WHERE committed_at < ?",
                (self._prune_rows, oldest_s),
            ).fetchall()
        victims = self._removable(found)
        if victims:
            self._remove(victims, now_s, declare=False)
        return len(victims) == self._prune_rows

    def _prune_most_dispensable(self, now_s: float) -> tuple[bool, list[OutboxRow]]:
        with translated(self._path):
            found = self._database.execute(
                "SELECT row FROM delivered ORDER BY row LIMIT ?", (self._prune_rows,)
            ).fetchall()
        victims = self._removable(found)
        if victims:
            return True, self._remove(victims, now_s, declare=False)
        verdicts = [RANKS[outcome] for outcome in (Outcome.OK, Outcome.UNKNOWN, Outcome.NG)]
        for first, last in (
            [(verdicts[0], verdicts[-1])]
            if self._settings.drop_first == "oldest"
            else [(rank, rank) for rank in verdicts]
        ):
            with translated(self._path):
                found = self._database.execute(
                    "SELECT row FROM outbox WHERE rank BETWEEN ? AND ? ORDER BY row LIMIT ?",
                    (first, last, self._prune_rows),
                ).fetchall()
            victims = self._removable(found)
            if victims:
                return True, self._remove(victims, now_s, declare=True)
        return False, []

    def _removable(self, found: Sequence[tuple[int]]) -> list[int]:
        newest = set(self._newest_of.values())
        return [row for (row,) in found if row not in newest]

    def _remove(self, victims: Sequence[int], now_s: float, *, declare: bool) -> list[OutboxRow]:
        """Delete these rows, ascending, keep the chain verifiable, and declare what was never delivered."""
        with self._transaction() as database:
            gaps = self._gaps_for(database, victims) if declare else []
            appended, head = self._append(database, gaps, now_s)
            rows, head = self._delete(database, victims, self._last_row + len(appended), head, now_s)
        if declare and not self._loses:
            logger.error("journal: full, the oldest undelivered verdicts are dropped from now on; gaps say which")
        self._loses = declare
        self._head = head
        self._last_row += len(appended) + 1
        self._rows += len(appended) + 1 - rows
        self._outbox += len(appended) - (len(victims) if declare else 0)
        return appended

    def _delete(
        self, database: sqlite3.Connection, victims: Sequence[int], last_row: int, head: bytes, now_s: float
    ) -> tuple[int, bytes]:
        first, last = victims[0], victims[-1]
        former = database.execute(
            f"SELECT row FROM journal WHERE kind = '{CHECKPOINT}' AND row BETWEEN ? AND ?", (first, last)
        ).fetchall()
        doomed = sorted({*victims, *(row for (row,) in former)})
        for begin, end in _ranges(doomed):
            end_hash = database.execute("SELECT hash FROM journal WHERE row = ?", (end,)).fetchone()[0]
            self._note_pruned(database, begin, end, end_hash)
        marks = [(row,) for row in doomed]
        for table in ("journal", "outbox", "delivered"):
            database.executemany(f"DELETE FROM {table} WHERE row = ?", marks)
        checkpoint: Content = (
            last_row + 1,
            uuid7(int(now_s * 1e3)).bytes,
            CHECKPOINT,
            "",
            pruned_digest(database),
            None,
            None,
            None,
            None,
            now_s,
        )
        head = chained(head, checkpoint)
        database.execute(INSERT_ROW, (*checkpoint, head))
        return len(doomed), head

    @staticmethod
    def _note_pruned(database: sqlite3.Connection, begin: int, end: int, end_hash: bytes) -> None:
        """Add a range and merge it with its neighbours."""
        before = database.execute("SELECT first FROM pruned WHERE last = ?", (begin - 1,)).fetchone()
        after = database.execute("SELECT first, last, hash FROM pruned WHERE first = ?", (end + 1,)).fetchone()
        if before:
            begin = before[0]
        if after:
            database.execute("DELETE FROM pruned WHERE first = ?", (after[0],))
            end, end_hash = after[1], after[2]
        database.execute("INSERT OR REPLACE INTO pruned (first, last, hash) VALUES (?,?,?)", (begin, end, end_hash))

    def _gaps_for(self, database: sqlite3.Connection, victims: Sequence[int]) -> list[Outgoing]:
        """One gap for each camera and epoch among the victims."""
        lost: dict[tuple[str | None, int | None], list[tuple[int, float]]] = {}
        for row in victims:
            camera, epoch, sequence, committed_s = database.execute(
                "SELECT camera, epoch, sequence, committed_at FROM journal WHERE row = ?", (row,)
            ).fetchone()
            lost.setdefault((camera, epoch), []).append((sequence, committed_s))
        return [
            self._gap(
                "journal_full",
                camera=camera,
                count=len(entries),
                began_s=entries[0][1],
                ended_s=entries[-1][1],
                epoch=epoch,
                first=min(sequence for sequence, _ in entries),
                last=max(sequence for sequence, _ in entries),
            )
            for (camera, epoch), entries in lost.items()
        ]

    def _gap(
        self,
        why: str,
        *,
        camera: str | None,
        count: int | None,
        began_s: float,
        ended_s: float,
        epoch: int | None = None,
        first: int | None = None,
        last: int | None = None,
    ) -> Outgoing:
        return outgoing_gap(
            Gap(
                id=uuid7(int(self._clock.now().timestamp() * 1e3)),
                station=self._station,
                camera=camera,
                what="verdicts",
                count=count,
                began=datetime.fromtimestamp(began_s, UTC),
                ended=datetime.fromtimestamp(ended_s, UTC),
                epoch=epoch,
                first_sequence=first,
                last_sequence=last,
                why=why,
            )
        )

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Everything or nothing; after a failure the state in memory is read from the file again."""
        database = self._database
        with translated(self._path):
            try:
                database.execute("BEGIN IMMEDIATE")
                yield database
                database.execute("COMMIT")
                if self._checkpointer is not None:
                    self._checkpointer.committed()
            except BaseException:
                self._stale = True
                raise
            finally:
                if database.in_transaction:
                    with suppress(sqlite3.Error):
                        database.execute("ROLLBACK")

    def _open_or_release(self) -> None:
        """Open the file; on a full disk with the room that the reserve kept, since even reading needs an index file."""
        try:
            self._open(first_row=1)
        except JournalCorrupt:
            raise
        except StorageError:
            self._disconnect()
            if not self._release_reserve():
                raise
            self._open(first_row=1)

    def _open(self, first_row: int) -> None:
        with translated(self._path):
            self._connection = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False, timeout=5.0)
            database = self._connection
            tables = database.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
            mark = database.execute("PRAGMA application_id").fetchone()[0]
            if tables and mark != APPLICATION_ID:
                raise JournalCorrupt(f"journal: {self._path} is a database, but not a journal")
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = FULL")
            database.execute("PRAGMA wal_autocheckpoint = 0")
            database.execute(f"PRAGMA journal_size_limit = {self._wal_pages * 4096}")
            database.execute("PRAGMA temp_store = MEMORY")
            if not tables:
                database.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            database.executescript(f"BEGIN; {SCHEMA} COMMIT;")
            database.execute("INSERT OR IGNORE INTO meta VALUES ('first_row', ?)", (first_row,))
        self._checkpointer = Checkpointer(
            self._path, database, min(CHECKPOINT_FRAMES, self._wal_pages // 4), self._wal_pages * 4096
        )
        self._checkpointer.prepare()
        self._read_state()
        self._check_end()
        self._size_bytes = self._files_bytes()
        try:
            self._hold_reserve()
        except StorageError as exc:
            self._durable = False
            logger.warning("%s", exc)

    def _read_state(self) -> None:
        with translated(self._path):
            database = self._database
            found = database.execute("SELECT row, hash FROM journal ORDER BY row DESC LIMIT 1").fetchone()
            first_row = database.execute("SELECT value FROM meta WHERE key = 'first_row'").fetchone()[0]
            last_row, head = found or (first_row - 1, GENESIS)
            if not (isinstance(last_row, int) and isinstance(head, bytes)):
                raise TypeError(f"last row {last_row!r}")
            self._last_row, self._head = last_row, head
            self._rows = database.execute("SELECT count(*) FROM journal").fetchone()[0]
            self._outbox = database.execute("SELECT count(*) FROM outbox").fetchone()[0]
            self._replays = database.execute("SELECT count(*) FROM replays").fetchone()[0]
            self._newest_of = {
                camera: database.execute(
                    "SELECT row FROM journal WHERE camera = ? AND sequence IS NOT NULL "
                    "ORDER BY epoch DESC, sequence DESC LIMIT 1",
                    (camera,),
                ).fetchone()[0]
                for camera in _cameras(database)
            }
        self._stale = False

    def _check_end(self) -> None:
        """Read the newest rows as `verify` does; the damage of a failing disk mostly shows where it wrote last."""
        with translated(self._path):
            start = self._database.execute(
                "SELECT min(row) FROM (SELECT row FROM journal ORDER BY row DESC LIMIT ?)", (CHECKED_ROWS,)
            ).fetchone()[0]
            if start is None:
                return
            fault = walk(self._database, start).fault
        if fault:
            raise JournalCorrupt(f"journal: {self._path}: {fault}")

    def _close(self) -> None:
        self._disconnect()
        if self._lock_file is not None:
            os.close(self._lock_file)
            self._lock_file = None

    def _disconnect(self) -> None:
        if self._checkpointer is not None:
            self._checkpointer.close()
            self._checkpointer = None
        if self._connection is not None:
            with suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None

    def _begin_anew(self, cause: JournalCorrupt, undelivered: int | None) -> list[OutboxRow]:
        """Set the file aside, open a new one, and move into it what can be rescued of the outbox.

        Args:
            cause: what is wrong with the old file.
            undelivered: rows in its outbox; None when that is to be counted in the file.

        Returns:
            The gap that declares what could not be rescued, if any.
        """
        self._disconnect()
        now = self._clock.now()
        try:
            written_s = min(self._path.stat().st_mtime, now.timestamp())
            aside = self._set_aside(now)
        except OSError as exc:
            raise StorageError(f"journal: {self._path} is corrupt and cannot be set aside: {exc.strerror}") from exc
        self._open(first_row=self._last_row + 1)
        self._store_epoch(max(self._epoch, read_epoch(aside) or 0))
        rescued, lost = self._rescue(aside, undelivered)
        self._mended = Mended(str(cause), aside, rescued, lost)
        logger.error(
            "%s; it was set aside as %s and a new one begun; undelivered messages rescued: %d, lost: %s",
            cause,
            aside.name,
            rescued,
            "unknown" if lost is None else lost,
        )
        if lost == 0:
            return []
        gap = self._gap("journal_corrupt", camera=None, count=lost, began_s=written_s, ended_s=now.timestamp())
        return self._commit([gap], ())

    def _rescue(self, aside: Path, undelivered: int | None) -> tuple[int, int | None]:
        """Copy what is left of the outbox; return the number of messages copied and of those lost (None: unknown)."""
        rescued = lost = 0
        chunk: list[Outgoing] = []
        whole = True
        try:
            for message in rescue(aside):
                if message is None:
                    lost += 1
                else:
                    chunk.append(message)
                if len(chunk) == RESCUE_ROWS:
                    rescued += len(self._commit(chunk, ())[: len(chunk)])
                    chunk = []
        except StorageError as exc:
            logger.warning("%s", exc)
            whole = False
        with suppress(StorageError):
            rescued += len(self._commit(chunk, ())[: len(chunk)])
        if undelivered is not None:
            return rescued, max(0, undelivered - rescued)
        return rescued, lost if whole else None

    def _set_aside(self, now: datetime) -> Path:
        stem = f"{self._path.name}.corrupt-{now:%Y%m%dT%H%M%SZ}"
        aside = self._path.with_name(stem)
        number = 1
        while aside.exists():
            number += 1
            aside = self._path.with_name(f"{stem}-{number}")
        for suffix in ("-wal", "-shm", ""):
            source = self._path.with_name(self._path.name + suffix)
            if source.exists():
                source.rename(aside.with_name(aside.name + suffix))
        return aside

    def _hold_reserve(self) -> None:
        """Keep some disk space aside, so that a gap can be written when there is no other left."""
        if self._reserve_held:
            return
        try:
            handle = os.open(self._reserve, os.O_CREAT | os.O_WRONLY, 0o640)
            try:
                os.posix_fallocate(handle, 0, self._reserve_bytes)
            finally:
                os.close(handle)
        except OSError as exc:
            raise StorageError(f"journal: no room for {self._reserve}: {exc.strerror}") from exc
        self._reserve_held = True

    def _release_reserve(self) -> bool:
        """Give the reserve up; False when there was none."""
        held = self._reserve_held or self._reserve.exists()
        self._reserve_held = False
        with suppress(OSError):
            self._reserve.unlink()
        return held


def _cameras(database: sqlite3.Connection) -> list[str]:
    """Names of all cameras, one index look-up each."""
    names: list[str] = []
    name = database.execute("SELECT min(camera) FROM journal WHERE sequence IS NOT NULL").fetchone()[0]
    while name is not None:
        names.append(name)
        name = database.execute(
            "SELECT min(camera) FROM journal WHERE sequence IS NOT NULL AND camera > ?", (name,)
        ).fetchone()[0]
    return names


def _ranges(rows: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Runs of consecutive numbers in an ascending list."""
    begin = end = rows[0]
    for row in rows[1:]:
        if row != end + 1:
            yield begin, end
            begin = row
        end = row
    yield begin, end
