"""Which message goes to the broker next: a state machine without threads, sockets or disk.

Theory of operation
-------------------
A row is a verdict or a gap. The journal keeps rows on disk until the broker has acknowledged them; this machine keeps
only as many in memory as it needs, and decides the order. There are two lanes. The *live* lane carries what was
committed just now. The *historical* lane carries everything else: what a former run left in the outbox, what could not
be sent within `LIVE_FOR_S` of its commit, what a forgetful broker must get again. The historical lane is not a queue in
memory but a cursor into the journal: its rows are read page by page, so a backlog of any length costs the same memory.

Each lane is in order per camera. They share one window of messages in flight; live goes first whenever there is room,
and the historical lane may never fill the window, so that a backlog does not hold up what happens now. When the
connection is lost, all that is in flight goes back to where it came from and is sent again in the old order:
delivery is at least once.

A row is *held* while this machine knows it (live, paged, in flight or settled). The invariant that loses nothing: a row
that no broker has acknowledged is either held, or it stands in the journal's outbox behind the cursor or behind the
place from which its barred topic will be read again.

A topic may be *barred*: the broker refused a row of it, as its access rules may do. Its rows then wait in the journal's
outbox, and the others go on; `try_again` and each new connection lift the bar.

A row with a negative number is not in the journal (the disk refused it); it stays in memory in either lane, in order
with its like, until it is acknowledged or gets a place in the journal.

====================  =================================  ==========================
state                 event                              next state
====================  =================================  ==========================
(new)                 committed                          live
live                  sent                               in flight, live
live                  older than LIVE_FOR_S, lane full   backlog
live                  first connection of the run        backlog
live                  first connection of this run       backlog
backlog               page read                          paged
paged                 sent                               in flight, historical
in flight             acknowledged                       settled
in flight             refused                            barred
any, of such a topic  its turn to be sent                barred
barred                tried again, or a new connection   backlog
in flight, live       connection lost                    live, at the front
in flight, historical connection lost                    backlog
settled               marked in the journal              (done)
settled               session lost                       backlog
(done)                session lost, within the window    backlog (`rewind`)
====================  =================================  ==========================
"""

from collections import deque
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from station.messages import OutboxRow

LIVE_FOR_S = 10.0
"""A row that was not sent this long after its commit goes through the historical lane."""
LIVE_CAPACITY = 1000
"""Rows that may wait in the live lane; when it is full its oldest goes through the historical lane."""
PAGE_ROWS = 256
"""Rows read from the journal at a time."""


@dataclass(frozen=True, slots=True)
class Sending:
    """A row to hand to the publisher now.

    Attributes:
        row: the row.
        historical: which lane it goes through.
    """

    row: OutboxRow
    historical: bool


@dataclass(frozen=True, slots=True)
class _Live:
    row: OutboxRow
    committed_s: float


@dataclass(frozen=True, slots=True)
class _InFlight:
    row: OutboxRow
    historical: bool
    committed_s: float


class Delivery:
    """The machine; all times are monotonic seconds and come as arguments.

    Args:
        window: messages in flight at most; the broker may ask for fewer.
        live_capacity: rows that may wait in the live lane.
    """

    def __init__(self, window: int, live_capacity: int = LIVE_CAPACITY) -> None:
        if window < 1:
            raise ValueError(f"window must be at least 1, not {window}")
        self._configured_window = window
        self._window = window
        self._live_capacity = live_capacity
        self._connected = False
        self._was_connected = False
        self._live: deque[_Live] = deque()
        self._paged: deque[OutboxRow] = deque()
        self._stranded: deque[OutboxRow] = deque()
        self._in_flight: dict[int, _InFlight] = {}
        self._historical_in_flight = 0
        self._settled: set[int] = set()
        self._live_rows: set[int] = set()
        self._barred: dict[str, int | None] = {}
        self._barred_in_memory: list[OutboxRow] = []
        self._cursor = 0
        self._behind = True

    @property
    def is_connected(self) -> bool:
        """Whether rows may be sent."""
        return self._connected

    @property
    def in_flight(self) -> int:
        """Messages sent and not yet acknowledged."""
        return len(self._in_flight)

    @property
    def is_idle(self) -> bool:
        """Whether everything that was ever committed has been sent and acknowledged, as far as this machine knows and
        the broker takes it."""
        return not (self._live or self._paged or self._stranded or self._in_flight or self._behind)

    @property
    def settled(self) -> Sequence[int]:
        """Rows that are acknowledged but not yet marked so in the journal."""
        return tuple(self._settled)

    def holds_in_flight(self, row: int) -> bool:
        """Whether this row was sent and not yet acknowledged."""
        return row in self._in_flight

    def connected(self, window: int) -> None:
        """The broker accepted the station and takes at most `window` unacknowledged messages."""
        if not self._was_connected:
            # What was judged before anybody could listen is history, however short a time ago it was.
            while self._live:
                self._demote_oldest()
        self._connected = self._was_connected = True
        self.try_again()
        self._window = max(1, min(self._configured_window, window))

    def disconnected(self) -> None:
        """The connection is gone: all that is in flight goes back, in order."""
        self._connected = False
        live = [_Live(flight.row, flight.committed_s) for flight in self._in_flight.values() if not flight.historical]
        historical = [flight.row for flight in self._in_flight.values() if flight.historical]
        self._in_flight.clear()
        self._historical_in_flight = 0
        self._live.extendleft(reversed(live))
        self._live_rows.update(entry.row.row for entry in live)
        for row in historical:
            if row.row < 0:
                self.strand(row)
            else:
                self._to_backlog(row.row)

    def session_lost(self) -> None:
        """The broker forgot the session: what it acknowledged and the journal does not know yet goes back."""
        for row in self._settled:
            self._to_backlog(row)
        self._settled.clear()

    def rewind(self, first_row: int) -> None:
        """The journal put rows from `first_row` on back into the outbox."""
        self._to_backlog(first_row)

    def committed(self, rows: Iterable[OutboxRow], committed_s: float) -> None:
        """These rows are new, in order; those with a negative number are not in the journal."""
        for row in rows:
            self._live.append(_Live(row, committed_s))
            self._live_rows.add(row.row)
        while len(self._live) > self._live_capacity:
            self._demote_oldest()

    def forget(self, rows: Collection[int]) -> None:
        """Rows that waited in memory only have got a place in the journal under other numbers; none is in flight."""
        self._live_rows.difference_update(rows)
        self._live = deque(entry for entry in self._live if entry.row.row not in rows)
        self._stranded = deque(row for row in self._stranded if row.row not in rows)
        self._barred_in_memory = [row for row in self._barred_in_memory if row.row not in rows]

    def strand(self, row: OutboxRow) -> None:
        """Send a row that is in memory only (again), through the historical lane, in its place among its like."""
        place = len(self._stranded)
        while place and self._stranded[place - 1].row < row.row:  # later rows have lower numbers
            place -= 1
        self._stranded.insert(place, row)

    def settle(self, rows: Iterable[int]) -> None:
        """Rows that were acknowledged before they got these numbers in the journal."""
        self._settled.update(rows)

    def acknowledged(self, row: int) -> bool:
        """The broker acknowledged this row; False when it was not in flight."""
        flight = self._in_flight.pop(row, None)
        if flight is None:
            return False
        if flight.historical:
            self._historical_in_flight -= 1
        if row >= 0:
            self._settled.add(row)
        return True

    def refused(self, row: int) -> OutboxRow | None:
        """The broker refused this row: its topic is barred; None when it was not in flight."""
        flight = self._in_flight.pop(row, None)
        if flight is None:
            return None
        if flight.historical:
            self._historical_in_flight -= 1
        self._bar(flight.row)
        return flight.row

    def try_again(self) -> None:
        """Send what the broker refused once more, in order, through the historical lane."""
        rows = [row for row in self._barred.values() if row is not None]
        self._barred.clear()
        if rows:
            self._to_backlog(min(rows))
        waiting, self._barred_in_memory = self._barred_in_memory, []
        for row in waiting:
            self.strand(row)

    def marked(self, rows: Iterable[int]) -> None:
        """The journal knows that these rows are acknowledged."""
        self._settled.difference_update(rows)

    def page_wanted(self) -> int | None:
        """Return the row after which the journal's outbox should be read now; None when no page is needed."""
        if self._connected and self._behind and not self._paged:
            return self._cursor
        return None

    def page(self, rows: Sequence[OutboxRow], *, complete: bool) -> None:
        """Take a page of the outbox, read after the row that `page_wanted` gave.

        Args:
            rows: in ascending order.
            complete: no row of the outbox stands behind these.
        """
        self._paged.extend(row for row in rows if not self._is_held(row.row))
        if rows:
            self._cursor = rows[-1].row
        self._behind = not complete

    def next(self, now_s: float) -> Sending | None:
        """Return what to send now and count it as in flight; None when there is nothing, or no room in the window."""
        self.age(now_s)
        if not self._connected or len(self._in_flight) >= self._window:
            return None
        while self._live:
            entry = self._live.popleft()
            self._live_rows.discard(entry.row.row)
            if entry.row.message.topic in self._barred:
                self._bar(entry.row)
                continue
            self._in_flight[entry.row.row] = _InFlight(entry.row, False, entry.committed_s)
            return Sending(entry.row, historical=False)
        if self._historical_in_flight >= self._historical_window:
            return None
        while lane := self._paged or (self._stranded if not self._behind else None):
            row = lane.popleft()
            if row.message.topic in self._barred:
                self._bar(row)
                continue
            self._in_flight[row.row] = _InFlight(row, True, now_s)
            self._historical_in_flight += 1
            return Sending(row, historical=True)
        return None

    def age(self, now_s: float) -> None:
        """Move rows that waited too long to the historical lane."""
        while self._live and now_s - self._live[0].committed_s > LIVE_FOR_S:
            self._demote_oldest()

    @property
    def _historical_window(self) -> int:
        """A quarter of the window, at least one place, stays free for live rows (but one is always left to history)."""
        return max(1, self._window - max(1, self._window // 4))

    def _bar(self, row: OutboxRow) -> None:
        topic = row.message.topic
        first = self._barred.setdefault(topic, None)
        if row.row < 0:
            self._barred_in_memory.append(row)
        else:
            self._barred[topic] = row.row if first is None else min(first, row.row)

    def _demote_oldest(self) -> None:
        row = self._live.popleft().row
        self._live_rows.discard(row.row)
        if row.row < 0:
            self.strand(row)
        else:
            self._to_backlog(row.row)

    def _to_backlog(self, row: int) -> None:
        """Make sure that the cursor will come by this row; pages that were read beyond it are read again."""
        self._behind = True
        first_paged = self._paged[0].row if self._paged else row
        if row <= self._cursor:
            self._cursor = min(row, first_paged) - 1
            self._paged.clear()

    def _is_held(self, row: int) -> bool:
        return row in self._in_flight or row in self._live_rows or row in self._settled
