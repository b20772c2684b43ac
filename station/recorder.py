"""From the verdict to the broker's acknowledgement: one synchronous step, to be called in a loop by one thread.

A step takes what waits in the mailbox, commits it together with the acknowledgements that came in (group commit without
a timer: a commit takes what arrived during the last one's fsync), and hands to the publisher what the delivery machine
chooses. It waits only when there is nothing to do, and then on the mailbox, which new messages and the publisher's
`wake` both end.

When the disk refuses a commit, verdicts go to the broker all the same, marked ``durable: false``, and are kept in
memory (the *spool*) until they can be committed after all. What the spool has no room for is counted and declared in a
gap.
"""

import logging
import math
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from station.delivery import PAGE_ROWS, Delivery
from station.errors import ProtocolError, StorageError
from station.ids import uuid7
from station.mailbox import Mailbox
from station.messages import Gap, JournalHealth, OutboxRow, Outgoing, ReplayResult, Verdict
from station.ports import Clock, Journal, Publisher
from station.wire import decode, not_durable, outgoing_gap

logger = logging.getLogger(__name__)

WALL_JUMP_S = 1.0
"""A wall clock that moved against the monotonic one by more than this was set."""
MARK_WITHIN_S = 0.5
"""An acknowledgement is noted in the journal with the next commit, at the latest after this; losing the note in a crash
gives a duplicate, nothing worse."""
RETRY_S = 1.0
"""Pause between two attempts to commit to a disk that refused."""
DECLARE_EVERY_S = 60.0
"""While the disk refuses, a loss is declared this often from the journal's reserve."""
BATCH_ROWS = 1000
"""Messages in one commit at most."""
SPOOL_BYTES = 8_000_000
"""Payload bytes kept in memory while the disk refuses."""
SHORTEST_WAIT_S = 0.05
REFUSED_AGAIN_S = 30.0
"""What the broker refused is tried again after this: its access rules may have been mended."""
REFUSED_SETTLE_S = 10.0
"""A topic of which nothing was refused for this much longer counts as taken."""
WITHHELD_KEPT = 10_000
"""Messages that were too large are remembered, so that none is declared again when the broker forgets the session."""
REPLAY_EVERY_S = 0.1
"""What was asked for again goes back into the outbox in pieces of about this much time, each a transaction."""


@dataclass(slots=True)
class _Spooled:
    message: Outgoing
    at_s: float
    acknowledged: bool = False


@dataclass(frozen=True, slots=True)
class _Loss:
    """Verdicts of one camera and epoch that could not be kept, for one reason."""

    count: int
    began: datetime
    ended: datetime
    first: int
    last: int

    def plus(self, other: "_Loss") -> "_Loss":
        return _Loss(
            self.count + other.count,
            min(self.began, other.began),
            max(self.ended, other.ended),
            min(self.first, other.first),
            max(self.last, other.last),
        )


_LossKey = tuple[str | None, int | None, str]


class _Losses:
    """What must be declared; several threads may add to it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._losses: dict[_LossKey, _Loss] = {}

    def __bool__(self) -> bool:
        return bool(self._losses)

    def add(self, losses: Mapping[_LossKey, _Loss]) -> None:
        with self._lock:
            for key, loss in losses.items():
                known = self._losses.get(key)
                self._losses[key] = loss if known is None else known.plus(loss)

    def take(self) -> dict[_LossKey, _Loss]:
        with self._lock:
            taken, self._losses = self._losses, {}
        return taken


class Recorder:
    """Keeps messages and brings them to the broker.

    Args:
        station: the station's name, for the gaps that it declares.
        epoch: number of this run; a verdict of another epoch in the journal is from a former run.
        journal: entered by the caller; only the thread that calls `step` uses it afterwards.
        publisher: entered by the caller; its `wake` must be the mailbox's.
        mailbox: where verdicts and gaps come in; give `lost` to its `on_drop`.
        clock: wall and monotonic time.
        window: messages in flight at most.
        replay_window_s: when the broker forgot the session, what it acknowledged in this time is sent again.
        replay_rate_hz: verdicts that were asked for again go out at most at this rate.
        spool_bytes: payload bytes kept in memory while the disk refuses.
        on_kept: told of messages once they are in the journal, or in the spool instead.
    """

    def __init__(
        self,
        *,
        station: str,
        epoch: int,
        journal: Journal,
        publisher: Publisher,
        mailbox: Mailbox[Outgoing],
        clock: Clock,
        window: int,
        replay_window_s: float,
        replay_rate_hz: float = 500.0,
        spool_bytes: int = SPOOL_BYTES,
        on_kept: Callable[[Sequence[Outgoing]], None] = lambda _: None,
    ) -> None:
        self._station = station
        self._epoch = epoch
        self._journal = journal
        self._publisher = publisher
        self._mailbox = mailbox
        self._clock = clock
        self._replay_window_s = replay_window_s
        self._spool_limit = spool_bytes
        self._on_kept = on_kept
        self._delivery = Delivery(window)
        self._spool: OrderedDict[int, _Spooled] = OrderedDict()
        self._spool_bytes = 0
        self._next_spool_row = -1
        self._losses = _Losses()
        self._former: dict[str, Outgoing] | None = None
        self._connection = 0
        self._failed_connection = 0
        self._replay_due = False
        self._asked: deque[ReplayResult.Stretch] = deque()
        self._replay_rows = max(1, min(PAGE_ROWS, int(replay_rate_hz * REPLAY_EVERY_S)))
        self._replay_every_s = self._replay_rows / replay_rate_hz
        self._replay_at_s = float("-inf")
        self._replaying = True
        self._fault: str | None = None
        self._read_fault: str | None = None
        self._retry_at_s = 0.0
        self._declare_at_s = 0.0
        self._marked_s = clock.monotonic_s()
        self._refused_topics: dict[str, tuple[str, float]] = {}
        self._try_again_s = math.inf
        self._too_large: dict[int, None] = {}
        self._withheld = 0
        self._wall = self._wall_offset()
        self._former_walls: deque[tuple[float, float]] = deque()
        self._committed = 0
        self._last_row = 0
        self._health: JournalHealth | None = None

    @property
    def fault(self) -> str | None:
        """What is wrong with the journal now, in one line; None when all is well."""
        return self._fault or self._read_fault

    @property
    def refusal(self) -> str | None:
        """What the broker does not take, in one line; None when it takes all."""
        told = [
            f"it refuses {topic}: {reason}; see its access rules" for topic, (reason, _) in self._refused_topics.items()
        ]
        if self._withheld:
            told.append(f"{self._withheld} messages were larger than it takes and stay in the journal")
        return "; ".join(told) or None

    @property
    def committed(self) -> int:
        """Messages made durable, or kept in memory instead, since the start: progress for a watchdog."""
        return self._committed

    @property
    def health(self) -> JournalHealth | None:
        """The journal's figures after the last step; may be read from any thread."""
        return self._health

    @property
    def is_idle(self) -> bool:
        """Whether all that came in is stored, sent and acknowledged, and the journal knows it."""
        return not self._mailbox and not self._spool and self._delivery.is_idle and not self._delivery.settled

    @property
    def replays_waiting(self) -> int:
        """Stretches of verdicts that were asked for and are not yet noted in the journal, or not yet sent again."""
        return len(self._asked) + (self._health.replays if self._health is not None else 0)

    def lost(self, message: Outgoing) -> None:
        """A message found no room in the mailbox: it will be declared. May be called from any thread."""
        self._note_loss(message, "overload")

    def replay(self, stretches: Iterable[ReplayResult.Stretch]) -> None:
        """Send these verdicts again, through the historical lane; any thread.

        It is noted in the journal before any message that is put into the mailbox afterwards, so that an answer which
        says that it will be done outlives a kill only together with what it promises.
        """
        self._asked.extend(stretches)
        self._mailbox.wake()

    def step(self, timeout_s: float) -> None:
        """Do what there is to do; wait up to `timeout_s` when there is nothing."""
        messages = self._mailbox.take_all(self._wait_s(timeout_s), BATCH_ROWS)
        now_s = self._clock.monotonic_s()
        self._follow_wall_clock(now_s)
        self._follow_link()
        self._take_acknowledgements()
        self._take_refusals(now_s)
        self._begin_replays(now_s)
        self._keep(messages, now_s)
        self._replay()
        self._replay_next(now_s)
        self._send(now_s)
        self._health = self._figures()

    def finish(self) -> None:
        """Store what has not been sent or acknowledged for the next run, and declare what cannot be stored.

        Nothing may be put into the mailbox any more; a stop that wants to deliver calls `step` until `is_idle` first.
        """
        self._follow_link()
        self._take_acknowledgements()
        self._delivery.disconnected()
        self._retry_at_s = self._marked_s = float("-inf")
        self._keep(self._mailbox.take_all(0), self._clock.monotonic_s())
        while self._spool and self._fault is None:
            self._keep([], self._clock.monotonic_s())
        for entry in self._spool.values():
            if not entry.acknowledged:
                self._note_loss(entry.message, "disk_full")
        if self._losses:
            self._declare_losses()
        self._health = self._figures()

    def _wait_s(self, timeout_s: float) -> float:
        now_s = self._clock.monotonic_s()
        if self._replaying and self._delivery.is_connected:
            timeout_s = min(timeout_s, max(0.0, self._replay_at_s - now_s))
        if self._fault is not None:
            return min(timeout_s, max(SHORTEST_WAIT_S, self._retry_at_s - now_s))
        if self._delivery.settled:
            return min(timeout_s, max(0.0, self._marked_s + MARK_WITHIN_S - now_s))
        return timeout_s

    def _follow_link(self) -> None:
        link = self._publisher.link()
        if self._delivery.is_connected and not (link.connected and link.connections == self._connection):
            self._delivery.disconnected()
        if link.connected and not self._delivery.is_connected and link.connections != self._failed_connection:
            self._connection = link.connections
            self._withheld = 0
            self._delivery.connected(link.window)
            if not link.session_present:
                self._delivery.session_lost()
                self._replay_due = True

    def _take_acknowledgements(self) -> None:
        for row in self._publisher.acknowledgements():
            if self._delivery.acknowledged(row) and row in self._spool:
                self._spool[row].acknowledged = True

    def _take_refusals(self, now_s: float) -> None:
        """Let what the broker refuses wait, and nothing else for its sake."""
        for refusal in self._publisher.refusals():
            row = self._delivery.refused(refusal.row)
            if row is not None:
                self._refused_topics[row.message.topic] = refusal.reason, now_s
                self._try_again_s = min(self._try_again_s, now_s + REFUSED_AGAIN_S)
        if now_s >= self._try_again_s:
            self._try_again_s = math.inf
            self._delivery.try_again()
        if self._refused_topics:
            self._refused_topics = {
                topic: (reason, at_s)
                for topic, (reason, at_s) in self._refused_topics.items()
                if now_s - at_s < REFUSED_AGAIN_S + REFUSED_SETTLE_S
            }

    def _keep(self, messages: Sequence[Outgoing], now_s: float) -> None:
        """Commit messages, what the spool holds and acknowledgements, as far as the disk lets us."""
        messages = [*self._returns(messages), *messages]
        if self._fault is not None and now_s < self._retry_at_s:
            self._stash(messages, now_s)
            return
        spooled = self._recommittable()
        marks = self._delivery.settled
        marks_due = marks and now_s - self._marked_s >= MARK_WITHIN_S
        if not (messages or spooled or marks_due or self._losses):
            return
        losses = self._losses.take()
        batch = [*(entry.message for entry in spooled.values()), *self._gaps(losses), *messages]
        try:
            rows = self._journal.commit(batch, marks)
        except StorageError as exc:
            self._losses.add(losses)
            self._refused(exc, messages, now_s)
            return
        self._marked_s = now_s
        self._delivery.marked(marks)
        self._committed += len(messages)
        self._on_kept(messages)
        self._see_jump(rows)
        self._unspool(spooled, rows[: len(spooled)])
        self._delivery.committed(rows[len(spooled) :], now_s)
        if self._fault is not None:
            logger.warning("journal: verdicts are durable again")
            self._fault = None

    def _see_jump(self, rows: Sequence[OutboxRow]) -> None:
        """Look for numbers that were passed over: rows that the journal moved over from a damaged file by itself."""
        if not rows:
            return
        numbers = [row.row for row in rows]
        if min(numbers) > self._last_row + 1:
            self._delivery.rewind(self._last_row + 1)
        self._last_row = max(numbers)

    def _refused(self, exc: StorageError, messages: Sequence[Outgoing], now_s: float) -> None:
        if self._fault is None:
            logger.error("%s; verdicts are published with durable: false until the disk takes them again", exc)
            self._declare_at_s = now_s
        self._fault = str(exc)
        self._retry_at_s = now_s + RETRY_S
        self._stash(messages, now_s)
        if self._losses and now_s >= self._declare_at_s:
            self._declare_at_s = now_s + DECLARE_EVERY_S
            self._declare_losses()

    def _declare_losses(self) -> None:
        """Store gaps alone, for which the journal keeps a reserve."""
        losses = self._losses.take()
        try:
            rows = self._journal.commit(self._gaps(losses), ())
        except StorageError as exc:
            self._losses.add(losses)
            logger.warning("%s; a loss could not be declared yet", exc)
            return
        self._delivery.committed(rows, self._clock.monotonic_s())

    def _returns(self, messages: Sequence[Outgoing]) -> list[Outgoing]:
        """Gaps for cameras that are heard for the first time in this run: nobody watched since their last verdict."""
        if self._former is None:
            try:
                found = self._journal.last_verdicts()
            except StorageError as exc:
                logger.debug("%s", exc)
                return []
            self._former = {
                row.message.camera: row.message
                for row in found
                if row.message.camera is not None and row.message.epoch != self._epoch
            }
        gaps = []
        for message in messages if self._former else ():
            if message.kind == "verdict" and message.camera in self._former:
                gaps += self._station_down(self._former.pop(message.camera), message)
        return gaps

    def _station_down(self, former: Outgoing, first: Outgoing) -> list[Outgoing]:
        try:
            before, after = decode(Verdict, former.payload), decode(Verdict, first.payload)
        except ProtocolError as exc:
            logger.warning("journal: the last verdict of camera %s cannot be read: %s", former.camera, exc)
            return []
        gap = Gap(
            id=self._new_id(),
            station=self._station,
            camera=former.camera,
            what="frames",
            count=None,
            began=before.captured_at,
            ended=max(before.captured_at, after.captured_at),
            epoch=before.epoch,
            first_sequence=before.sequence + 1,
            last_sequence=None,
            why="station_down",
        )
        return [outgoing_gap(gap)]

    def _stash(self, messages: Iterable[Outgoing], now_s: float) -> None:
        """Keep messages in memory and send them as not durable."""
        rows = []
        wall_s = self._clock.now().timestamp()
        for message in messages:
            entry = _Spooled(not_durable(message), now_s)
            row = self._next_spool_row
            self._next_spool_row -= 1
            self._spool[row] = entry
            self._spool_bytes += len(entry.message.payload)
            rows.append(OutboxRow(row, wall_s, entry.message))
        self._committed += len(rows)
        self._on_kept([row.message for row in rows])
        self._delivery.committed(rows, now_s)
        excess: set[int] = set()
        while self._spool_bytes > self._spool_limit and (chosen := self._most_dispensable()) is not None:
            entry = self._spool.pop(chosen)
            self._spool_bytes -= len(entry.message.payload)
            excess.add(chosen)
            if not entry.acknowledged:
                self._note_loss(entry.message, "disk_full")
        if excess:
            self._delivery.forget(excess)

    def _most_dispensable(self) -> int | None:
        """The oldest entry that the broker has, else the oldest that is not on its way."""
        for row, entry in self._spool.items():
            if entry.acknowledged:
                return row
        return next((row for row in self._spool if not self._delivery.holds_in_flight(row)), None)

    def _recommittable(self) -> dict[int, _Spooled]:
        """Spooled messages that can move into the journal: those in flight wait for their acknowledgement."""
        chosen: dict[int, _Spooled] = {}
        for row, entry in self._spool.items():
            if len(chosen) >= BATCH_ROWS:
                break
            if not self._delivery.holds_in_flight(row):
                chosen[row] = entry
        return chosen

    def _unspool(self, spooled: Mapping[int, _Spooled], rows: Sequence[OutboxRow]) -> None:
        if not spooled:
            return
        self._delivery.forget(spooled.keys())
        for (former, entry), row in zip(spooled.items(), rows, strict=True):
            del self._spool[former]
            self._spool_bytes -= len(entry.message.payload)
            if entry.acknowledged:
                self._delivery.settle([row.row])
            else:
                self._delivery.committed([row], entry.at_s)

    def _replay(self) -> None:
        """The broker forgot the session: put what it acknowledged of late back into the outbox."""
        if not self._replay_due:
            return
        for row, entry in self._spool.items():
            if entry.acknowledged:
                entry.acknowledged = False
                self._delivery.strand(OutboxRow(row, 0.0, entry.message))
        # In the wall time that was the earliest of all in the window: acknowledgements are noted in wall time.
        began_s = self._clock.monotonic_s() - self._replay_window_s
        try:
            first = self._journal.replay(began_s + min((self._wall, *(offset for _, offset in self._former_walls))))
        except StorageError as exc:
            logger.debug("%s", exc)
            return
        self._replay_due = False
        if first is not None:
            self._delivery.rewind(first)

    def _wall_offset(self) -> float:
        return self._clock.now().timestamp() - self._clock.monotonic_s()

    def _follow_wall_clock(self, now_s: float) -> None:
        """Remember for the replay window by how much the wall clock was other than it is."""
        offset = self._wall_offset()
        if abs(offset - self._wall) > WALL_JUMP_S:
            self._former_walls.append((now_s, self._wall))
            self._wall = offset
        while self._former_walls and self._former_walls[0][0] < now_s - self._replay_window_s:
            self._former_walls.popleft()

    def _begin_replays(self, now_s: float) -> None:
        if not self._asked or (self._fault is not None and now_s < self._retry_at_s):
            return
        stretches = list(self._asked)
        marks = self._delivery.settled
        try:
            # What was acknowledged a moment ago must be known as such, or it would not be found.
            self._journal.commit((), marks)
            self._delivery.marked(marks)
            self._journal.begin_replays(stretches)
        except StorageError as exc:
            self._refused(exc, (), now_s)
            return
        for _ in stretches:
            self._asked.popleft()
        self._replaying = True

    def _replay_next(self, now_s: float) -> None:
        """Put the next piece of what was asked for back into the outbox, while there is a broker to take it."""
        if not (self._replaying and self._delivery.is_connected and now_s >= self._replay_at_s):
            return
        try:
            replayed = self._journal.replay_next(self._replay_rows)
        except StorageError as exc:
            self._replay_at_s = now_s + RETRY_S
            logger.debug("%s", exc)
            return
        self._replaying = replayed is not None
        if replayed is None:
            return
        self._replay_at_s = now_s + self._replay_every_s
        if replayed.first_row is not None:
            self._delivery.rewind(replayed.first_row)

    def _read_backlog(self) -> None:
        after = self._delivery.page_wanted()
        if after is None:
            return
        try:
            rows = self._journal.pending(after, PAGE_ROWS)
        except StorageError as exc:
            if self._read_fault is None:
                logger.error("%s; what waits in the outbox cannot be sent", exc)
            self._read_fault = str(exc)
            return
        self._read_fault = None
        self._delivery.page(rows, complete=len(rows) < PAGE_ROWS)

    def _send(self, now_s: float) -> None:
        while True:
            self._read_backlog()
            sending = self._delivery.next(now_s)
            if sending is None:
                return
            if not self._publisher.fits(sending.row.message):
                self._withhold(sending.row)
            elif not self._publisher.send(sending.row, historical=sending.historical):
                self._failed_connection = self._connection
                self._delivery.disconnected()
                return

    def _withhold(self, row: OutboxRow) -> None:
        """Leave a message in the journal that the broker would never take, so that those behind it go out."""
        message = row.message
        if row.row not in self._too_large:
            if not self._too_large:
                logger.error(
                    "%s: %d bytes are more than the broker takes; what is too large stays in the journal, and of "
                    "verdicts a gap says so",
                    message.topic,
                    len(message.payload),
                )
            self._too_large[row.row] = None
            if len(self._too_large) > WITHHELD_KEPT:
                del self._too_large[next(iter(self._too_large))]
            self._withheld += 1
            self._note_loss(message, "too_large")
        if self._delivery.acknowledged(row.row) and row.row in self._spool:
            self._spool[row.row].acknowledged = True

    def _note_loss(self, message: Outgoing, why: str) -> None:
        if message.kind != "verdict" or message.sequence is None:
            return
        now = self._clock.now()
        loss = _Loss(1, now, now, message.sequence, message.sequence)
        self._losses.add({(message.camera, message.epoch, why): loss})

    def _gaps(self, losses: Mapping[_LossKey, _Loss]) -> list[Outgoing]:
        return [
            outgoing_gap(
                Gap(
                    id=self._new_id(),
                    station=self._station,
                    camera=camera,
                    what="verdicts",
                    count=loss.count,
                    began=loss.began,
                    ended=loss.ended,
                    epoch=epoch,
                    first_sequence=loss.first,
                    last_sequence=loss.last,
                    why=why,
                )
            )
            for (camera, epoch, why), loss in losses.items()
        ]

    def _new_id(self) -> UUID:
        return uuid7(int(self._clock.now().timestamp() * 1e3))

    def _figures(self) -> JournalHealth:
        waiting = sum(not entry.acknowledged for entry in self._spool.values()) if self._spool else 0
        health = self._journal.health()
        if self._fault is None and not waiting:
            return health
        return health.model_copy(update={"outbox": health.outbox + waiting, "durable": self._fault is None})
