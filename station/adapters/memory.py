"""A journal and a publisher that live in memory, for tests: they keep the same contracts as the real ones."""

from collections.abc import Sequence
from types import TracebackType
from typing import Self

from station.errors import StorageError
from station.messages import JournalHealth, Link, OutboxRow, Outgoing, Refusal, Replayed, ReplayResult, Selection
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
        self._replays: list[int] = []
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

    def find(self, selection: Selection) -> Sequence[ReplayResult.Stretch]:
        """The stretches that hold what was asked for."""
        found: dict[tuple[str, int], list[int]] = {}
        for row in self._rows:
            message = row.message
            if message.camera is None or message.epoch is None or message.sequence is None:
                continue
            if selection.camera not in (None, message.camera):
                continue
            if selection.since_s is None or selection.until_s is None:
                first, last = selection.first_sequence or 0, selection.last_sequence or 0
                chosen = message.epoch == selection.epoch and first <= message.sequence <= last
            else:
                chosen = selection.since_s <= row.committed_at_s <= selection.until_s
            if chosen:
                found.setdefault((message.camera, message.epoch), []).append(message.sequence)
        return [
            ReplayResult.Stretch(
                camera=camera,
                epoch=epoch,
                first_sequence=min(numbers),
                last_sequence=max(numbers),
                rows=len(numbers),
            )
            for (camera, epoch), numbers in found.items()
        ]

    def answers(self) -> Sequence[Outgoing]:
        """The responses to commands, oldest first."""
        return [row.message for row in self._rows if row.message.kind == "command"]

    def alerts(self) -> Sequence[Outgoing]:
        """The alerts, oldest first."""
        return [row.message for row in self._rows if row.message.kind == "alert"]

    def begin_replays(self, stretches: Sequence[ReplayResult.Stretch]) -> None:
        """Note what is to be sent again.

        Raises:
            StorageError: `refuse` is set.
        """
        if self.refuse:
            raise StorageError("journal: the disk is full")
        for one in stretches:
            self._replays += [
                row.row
                for row in self._rows
                if (row.message.camera, row.message.epoch) == (one.camera, one.epoch)
                and one.first_sequence <= (row.message.sequence or 0) <= one.last_sequence
            ]

    def replay_next(self, limit: int) -> Replayed | None:
        """Forget up to `limit` acknowledgements."""
        if not self._replays:
            return None
        rows, self._replays = self._replays[:limit], self._replays[limit:]
        for row in rows:
            self._acknowledged.pop(row, None)
        return Replayed(min(rows))

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
            replays=len(self._replays),
        )


class MemoryPublisher:
    """A broker in a list. The test connects, cuts and acknowledges."""

    def __init__(self) -> None:
        self._link = Link(reason="not connected yet")
        self._acknowledgements: list[int] = []
        self._unacknowledged: list[int] = []
        self.sent: list[tuple[OutboxRow, bool]] = []
        self.retained: dict[str, bytes] = {}
        self.copies: list[tuple[str, bytes, bytes | None]] = []
        self.largest_bytes: int | None = None
        self.refused_topics: set[str] = set()
        self._refusals: list[Refusal] = []

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
        if row.message.topic in self.refused_topics:
            self._refusals.append(Refusal(row.row, "Not authorized"))
        else:
            self._unacknowledged.append(row.row)
        return True

    def fits(self, message: Outgoing) -> bool:
        """Whether the payload is no larger than `largest_bytes`, which the test may set."""
        return self.largest_bytes is None or len(message.payload) <= self.largest_bytes

    def acknowledgements(self) -> Sequence[int]:
        """Rows acknowledged since the last call."""
        taken, self._acknowledgements = self._acknowledgements, []
        return taken

    def refusals(self) -> Sequence[Refusal]:
        """Rows of `refused_topics` that were sent since the last call."""
        taken, self._refusals = self._refusals, []
        return taken

    def link(self) -> Link:
        """Where the connection stands."""
        return self._link

    def copy(self, topic: str, payload: bytes, correlation: bytes | None) -> None:
        """Put the message into `copies`, if there is a connection."""
        if self._link.connected:
            self.copies.append((topic, payload, correlation))

    def retain(self, topic: str, payload: bytes, expires_s: float | None = None) -> None:  # noqa: ARG002
        """Keep the newest payload of the topic in `retained`, for ever."""
        self.retained[topic] = payload
