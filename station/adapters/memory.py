"""A journal and a publisher that live in memory, for tests: they keep the same contracts as the real ones."""

from collections.abc import Sequence
from types import TracebackType
from typing import Self

from station.errors import StorageError
from station.messages import JournalHealth, Link, OutboxRow, Outgoing
from station.ports import Clock


class MemoryJournal:
    """Keeps rows as long as it lives. `refuse` makes it behave like a full disk.

    Args:
        clock: wall time of commits.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._rows: list[OutboxRow] = []
        self._acknowledged: dict[int, float] = {}
        self.refuse = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        return None

    def commit(self, messages: Sequence[Outgoing], acknowledged: Sequence[int]) -> Sequence[OutboxRow]:
        """Store messages and mark rows.

        Raises:
            StorageError: `refuse` is set, and there is more to store than gaps.
        """
        if self.refuse and not (messages and all(message.kind == "gap" for message in messages)):
            raise StorageError("journal: the disk is full")
        now_s = self._clock.now().timestamp()
        rows = [OutboxRow(number, now_s, message) for number, message in enumerate(messages, len(self._rows) + 1)]
        self._rows += rows
        self._acknowledged.update((row, now_s) for row in acknowledged if row not in self._acknowledged)
        return rows

    def pending(self, after_row: int, limit: int) -> Sequence[OutboxRow]:
        """Rows after `after_row` that are not acknowledged."""
        return [row for row in self._rows[after_row:] if row.row not in self._acknowledged][:limit]

    def replay(self, acknowledged_since_s: float) -> int | None:
        """Forget acknowledgements at or after this wall time; return the first such row."""
        again = [row for row, at_s in self._acknowledged.items() if at_s >= acknowledged_since_s]
        for row in again:
            del self._acknowledged[row]
        return min(again, default=None)

    def last_verdicts(self) -> Sequence[OutboxRow]:
        """The newest verdict of each camera."""
        newest = {row.message.camera: row for row in self._rows if row.message.kind == "verdict"}
        return list(newest.values())

    def latest(self, limit: int) -> Sequence[OutboxRow]:
        """The newest verdicts, oldest first."""
        return [row for row in self._rows if row.message.kind == "verdict"][-limit:]

    def health(self) -> JournalHealth:
        """Counts; the head is a number, not a hash."""
        return JournalHealth(
            head=str(len(self._rows)),
            rows=len(self._rows),
            outbox=len(self._rows) - len(self._acknowledged),
            size_bytes=0,
            durable=not self.refuse,
        )


class MemoryPublisher:
    """A broker in a list. The test connects, cuts and acknowledges."""

    def __init__(self) -> None:
        self._link = Link(reason="not connected yet")
        self._acknowledgements: list[int] = []
        self._unacknowledged: list[int] = []
        self.sent: list[tuple[OutboxRow, bool]] = []
        self.retained: dict[str, bytes] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        self.cut()

    def connect(self, *, session_present: bool, window: int = 65_535) -> None:
        """Let the broker appear."""
        self._link = Link(True, self._link.connections + 1, session_present, window)
        self._unacknowledged.clear()
        self._acknowledgements.clear()

    def cut(self) -> None:
        """Lose the connection: what is in flight is never acknowledged."""
        self._link = Link(False, self._link.connections, reason="cut")
        self._unacknowledged.clear()
        self._acknowledgements.clear()

    def acknowledge(self, count: int | None = None) -> None:
        """Acknowledge the oldest messages in flight, all of them by default."""
        count = len(self._unacknowledged) if count is None else count
        self._acknowledgements += self._unacknowledged[:count]
        del self._unacknowledged[:count]

    def send(self, row: OutboxRow, *, historical: bool) -> bool:
        """Put the row into `sent`; False without a connection."""
        if not self._link.connected:
            return False
        self.sent.append((row, historical))
        self._unacknowledged.append(row.row)
        return True

    def acknowledgements(self) -> Sequence[int]:
        """Rows acknowledged since the last call."""
        taken, self._acknowledgements = self._acknowledgements, []
        return taken

    def link(self) -> Link:
        """Where the connection stands."""
        return self._link

    def retain(self, topic: str, payload: bytes) -> None:
        """Keep the newest payload of the topic in `retained`."""
        self.retained[topic] = payload
