"""Empties a write-ahead log beside the commits, instead of within one of them.

SQLite copies the log into the database when it has grown long enough, and does so inside the commit that made it so:
that one, and all that wait behind it, take as long as a few thousand pages need. A second connection may do the same
while the first goes on writing (SQLite's manual, "PRAGMA wal_checkpoint", PASSIVE: neither waits for the other).

When everything is copied, the writer begins the log again at its front. A short log is thus written over and over in
place, and making it durable changes nothing but its data: the file system has no new size or extents to write beside.
Everything is never copied while commits come faster than they can be followed; then the log reaches its limit, and the
writer copies it as SQLite would.
"""

import logging
import os
import sqlite3
import threading
from contextlib import closing, suppress
from pathlib import Path

from station.adapters._journal_file import translated
from station.errors import StorageError

logger = logging.getLogger(__name__)

PASSES = 6
"""What was committed during one pass is copied by the next, until one finds nothing new."""
PREPARED = 1.25
"""The log is made as long as it grows before it is emptied, with so much to spare."""
FRAMES_OF_A_COMMIT = 4
"""A commit writes at least this many pages: the last ones of the journal, its index, the outbox, the delivered."""
CHANGES_OF_A_FRAME = 4
"""About this many rows that are inserted or deleted share a page."""
FRAME_BYTES = 4096 + 24
CHECKPOINT = "PRAGMA wal_checkpoint(PASSIVE)"


class Checkpointer:
    """Keeps the log short; its thread is begun when there is something to do for the first time.

    Its failures are no one's: what is in the log is safe, and the writer, which meets the same file and the same disk,
    says so.

    Args:
        path: the database.
        writer: the only connection that writes; it must not empty the log by itself (``wal_autocheckpoint = 0``).
        every_frames: pages in the log after which it is emptied, roughly.
        limit_bytes: beyond this the writer is held up until the log is emptied.
    """

    def __init__(self, path: Path, writer: sqlite3.Connection, every_frames: int, limit_bytes: int) -> None:
        self._path = path
        self._writer = writer
        self._every_frames = every_frames
        self._limit_bytes = limit_bytes
        self._log = path.with_name(path.name + "-wal")
        self._frames = 0
        self._changes = 0
        self._due = threading.Event()
        self._copying = threading.Lock()
        self._stopping = False
        self._thread: threading.Thread | None = None

    def prepare(self) -> None:
        """Give a new log the length that it will grow to, so that no commit has to; before the first of them.

        What stands behind the last commit counts for nothing (SQLite's file format, 4.4: a frame is valid by its
        salts and checksum).
        """
        with suppress(OSError), self._log.open("r+b") as log:
            length = int(PREPARED * self._every_frames) * FRAME_BYTES
            missing = length - log.seek(0, os.SEEK_END)
            if missing > 0:
                log.write(bytes(missing))
                log.flush()
                os.fdatasync(log.fileno())

    def committed(self) -> None:
        """The writer committed; to be called in its thread."""
        changes = self._writer.total_changes
        self._frames += FRAMES_OF_A_COMMIT + (changes - self._changes) // CHANGES_OF_A_FRAME
        self._changes = changes
        if self._is_at_its_limit():
            self._frames = 0
            try:
                with self._copying, translated(self._path):
                    self._writer.execute(CHECKPOINT)
            except StorageError as exc:
                _not_emptied(exc)
        elif self._frames >= self._every_frames:
            self._frames = 0
            self._due.set()
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="checkpointer")
                self._thread.start()

    def close(self) -> None:
        """End the thread; the file is then used by it no more."""
        if self._thread is not None:
            self._stopping = True
            self._due.set()
            self._thread.join()
            self._thread = None

    def _is_at_its_limit(self) -> bool:
        with suppress(OSError):
            return self._log.stat().st_size > self._limit_bytes
        return False

    def _work(self) -> None:
        while not self._stopping:
            try:
                self._keep_short()
            except StorageError as exc:
                _not_emptied(exc)

    def _keep_short(self) -> None:
        with (
            translated(self._path),
            closing(sqlite3.connect(self._path, isolation_level=None, timeout=0.0)) as database,
        ):
            database.execute("PRAGMA synchronous = FULL")
            while True:
                self._due.wait()
                self._due.clear()
                # Before its first look at the file a connection does not know that there is a log.
                database.execute("SELECT 1 FROM sqlite_schema").fetchone()
                before = None
                for _ in range(PASSES):
                    if self._stopping:
                        return
                    with self._copying:
                        busy, in_log, copied = database.execute(CHECKPOINT).fetchone()
                    # What was committed during a pass is only seen by the next.
                    if busy or copied < in_log or in_log == before:
                        break
                    before = in_log


def _not_emptied(exc: StorageError) -> None:
    logger.debug("journal: the log was not emptied: %s", exc)
