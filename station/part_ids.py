"""The part ids of one camera: found in the frame itself, or joined to it as they come; and the verdicts that wait.

A verdict whose id is not there yet waits here, without the frame's pixels, until `station.part_id_join` has decided or
the window is over; verdicts leave in the order of their frames. All of it runs in the camera's thread, except `keep`.
"""

import logging
import re
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from math import inf
from pathlib import PurePosixPath
from types import TracebackType
from typing import Self, assert_never

from station.errors import StorageError
from station.judge import lacking_part_id
from station.messages import Capture, PartIdHealth, PartIdState, Reason, SourceStateName, Verdict
from station.part_id_join import Decision, Joiner, JoinRule
from station.part_id_messages import FoundId, SeenId
from station.part_id_settings import (
    CodePartId,
    CounterPartId,
    FileNamePartId,
    JoinedPartId,
    PartIdSettings,
)
from station.part_id_text import read_id
from station.ports import Clock, CodeReader, PartIdSource, StateStore
from station.process_messages import SourceEvent

logger = logging.getLogger(__name__)

FRAMES_BEHIND_S = 0.1
"""A frame is known so long after its capture, at most, when none waits to be judged."""
HAND_OVER_S = 0.02
"""From the moment that a source gives an id to the moment that it can be read, at most."""
SHORTEST_WAIT_S = 0.001
END_WITHIN_S = 2.0
"""A stopping station waits for ids this long at most; what is left is not awaited."""
RESERVED = 1000
"""Numbers that are noted as used ahead of time: a station that is killed goes on behind them."""


class PartCounter:
    """Counts parts, and never gives a number twice: numbers are noted on the disk before they are used.

    Args:
        camera: whose parts.
        start: the first number ever.
        store: keeps the note.
    """

    def __init__(self, camera: str, start: int, store: StateStore) -> None:
        self._camera = camera
        self._next = start
        self._noted: int | None = None
        self._store = store
        self._ended = False
        self._lock = threading.Lock()

    def take(self) -> int | None:
        """The next number; None: the disk has not taken the note that would make it safe."""
        if self._noted is None or self._next >= self._noted:
            return None
        self._next += 1
        return self._next - 1

    def keep(self) -> None:
        """Note further numbers as used, if it is time; any thread, may wait for the disk.

        Raises:
            StorageError: nothing was noted, or nobody can say which numbers a former run used.
        """
        with self._lock:
            if self._ended:
                return
            if self._noted is None:
                self._begin()
            elif self._next + RESERVED // 2 >= self._noted:
                self._note(self._next + RESERVED)

    def end(self) -> None:
        """Give back the numbers that were not used.

        Raises:
            StorageError: the next run goes on behind them.
        """
        with self._lock:
            self._ended = True
            if self._noted is not None:
                self._note(self._next)

    def _begin(self) -> None:
        note = self._store.load(self._camera)
        if note is not None:
            if not note.isdigit():
                raise StorageError(f"part ids of {self._camera}: the note of used numbers is damaged: {note[:20]!r}")
            self._next = max(self._next, int(note))
        self._note(self._next + RESERVED)

    def _note(self, number: int) -> None:
        self._store.save(self._camera, str(number).encode())
        self._noted = number


class UsedIds:
    """Which ids were used of late.

    Args:
        most: how many are remembered; 0: none.
        within_s: only those of this long ago count; None: all.
    """

    def __init__(self, most: int, within_s: float | None) -> None:
        self._most = most
        self._within_s = within_s
        self._ids: dict[str, datetime] = {}

    def use(self, text: str, at: datetime) -> bool:
        """Remember an id; True when it was used before."""
        before = self._ids.pop(text, None)
        if self._most:
            self._ids[text] = at
        if len(self._ids) > self._most:
            del self._ids[next(iter(self._ids))]
        return before is not None and (self._within_s is None or abs((at - before).total_seconds()) <= self._within_s)


@dataclass(slots=True)
class _Waiting:
    """A verdict that waits for its id; None stands for a frame that was passed over."""

    verdict: Verdict | None
    captured_s: float
    judged_s: float
    found: FoundId | None


class PartIds:
    """Gives the verdicts of one camera their part ids.

    Args:
        camera: the camera's name.
        settings: its table `part_id`.
        late_after_ms: a verdict that took longer is late.
        clock: time.
        fault: told what is wrong with the source of the ids, and None when all is well again.
        source: where ids come from by themselves; None: they are found in the frame.
        reader: reads codes in pictures, for the kind `code`.
        store: keeps the counter over a restart, for the kind `counter`.
        used: ids of former runs with the times of their frames, oldest first.
    """

    def __init__(
        self,
        camera: str,
        settings: PartIdSettings,
        *,
        late_after_ms: float,
        clock: Clock,
        fault: Callable[[str | None], None],
        source: PartIdSource | None = None,
        reader: CodeReader | None = None,
        store: StateStore | None = None,
        used: Iterable[tuple[str, datetime]] = (),
    ) -> None:
        self._camera = camera
        self._settings = settings
        self._late_after_ms = late_after_ms
        self._clock = clock
        self._fault = fault
        self._source = source
        self._reader = reader
        self._counter: PartCounter | None = None
        self._pattern: re.Pattern[str] | None = None
        if isinstance(settings, CounterPartId):
            assert store is not None
            self._counter = PartCounter(camera, settings.start, store)
        elif settings.pattern is not None:
            self._pattern = re.compile(settings.pattern)
        self._joiner: Joiner | None = None
        if isinstance(settings, JoinedPartId):
            self._joiner = Joiner(JoinRule(settings.lead_s, settings.window_s, settings.arrival_s + HAND_OVER_S))
        self._used = UsedIds(settings.doubled_memory, settings.doubled_within_s)
        for text, at in used:
            self._used.use(text, at)
        self._waiting: deque[_Waiting] = deque()
        self._first_key = 0
        self._frames_until_s = -inf
        self._states: Counter[PartIdState] = Counter()
        self._told: str | None = None
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        if self._source is not None:
            self._stack.enter_context(self._source)
        self.keep()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        self._stack.close()
        if self._counter is not None:
            self._at_the_store(self._counter.end)

    def keep(self) -> None:
        """Look after what stands on the disk; another thread's work, since it may wait."""
        if self._counter is not None:
            self._at_the_store(self._counter.keep)

    def look(self, capture: Capture) -> FoundId | None:
        """Find the id in the frame itself, before its pixels are given back; None: it comes by another way."""
        match self._settings:
            case CounterPartId() as wanted:
                assert self._counter is not None
                number = self._counter.take()
                if number is None:
                    return FoundId(PartIdState.SOURCE_FAULT)
                return FoundId(PartIdState.JOINED, wanted.format.format(number=number))
            case FileNamePartId():
                return self._readable(PurePosixPath(capture.source or "").name)
            case CodePartId():
                return self._code(capture)
            case JoinedPartId():
                return None
            case _:
                assert_never(self._settings)

    def take(self, verdict: Verdict, capture: Capture, found: FoundId | None) -> None:
        """A frame was judged; its verdict comes out of `ready`."""
        self._add(verdict, capture, found)

    def passed_over(self, capture: Capture) -> None:
        """A frame got no verdict; the id that was its own must not go to another one."""
        if self._joiner is not None:
            self._add(None, capture, None)

    def ready(self, *, idle: bool, last: bool = False) -> list[Verdict]:
        """Return the verdicts that are complete, in the order of their frames.

        Args:
            idle: no frame waits to be judged.
            last: no frame comes any more.
        """
        now_s = self._clock.monotonic_s()
        if self._joiner is not None:
            self._listen(self._joiner)
            until_s = inf if last else max(self._frames_until_s, now_s - FRAMES_BEHIND_S if idle else -inf)
            self._note(self._joiner.advance(now_s, until_s))
        return self._leave(now_s)

    def rest(self) -> list[Verdict]:
        """Return all that waits, when no frame comes any more; wait up to `END_WITHIN_S` for ids."""
        verdicts = self.ready(idle=True, last=True)
        joiner, source = self._joiner, self._source
        if joiner is None or source is None:
            return verdicts
        until_s = self._clock.monotonic_s() + END_WITHIN_S
        while self._waiting and (left_s := until_s - self._clock.monotonic_s()) > 0:
            self._hear(joiner, source.read(self.wait_s(left_s)))
            verdicts += self.ready(idle=True, last=True)
        self._note(joiner.flush())
        return verdicts + self._leave(self._clock.monotonic_s())

    def wait_s(self, longest_s: float) -> float:
        """How long nothing need be done, `longest_s` at most."""
        due_s = self._joiner.due_s(FRAMES_BEHIND_S) if self._joiner is not None else None
        if due_s is None:
            return longest_s
        return min(longest_s, max(SHORTEST_WAIT_S, due_s - self._clock.monotonic_s()))

    @property
    def health(self) -> PartIdHealth:
        """Figures for the `health` topic; any thread."""
        return PartIdHealth(
            states={state: self._states[state] for state in PartIdState if self._states[state]},
            waiting=len(self._waiting),
            late=self._joiner.late if self._joiner is not None else 0,
            unclaimed=self._joiner.unclaimed if self._joiner is not None else 0,
        )

    def _add(self, verdict: Verdict | None, capture: Capture, found: FoundId | None) -> None:
        captured_s = capture.captured_monotonic_s
        if self._joiner is not None:
            # Of a frame that died with the camera's process only the number is known.
            known = capture.fault is not Reason.CAMERA_FAULT
            self._joiner.frame(self._first_key + len(self._waiting), captured_s if known else None)
            self._frames_until_s = max(self._frames_until_s, captured_s if known else -inf)
        self._waiting.append(_Waiting(verdict, captured_s, self._clock.monotonic_s(), found))

    def _listen(self, joiner: Joiner) -> None:
        assert self._source is not None
        while (item := self._source.read(0.0)) is not None:
            self._hear(joiner, item)

    def _hear(self, joiner: Joiner, item: SeenId | SourceEvent | None) -> None:
        match item:
            case SourceEvent():
                running = item.state is SourceStateName.RUNNING
                joiner.source(running=running, at_s=self._clock.monotonic_s())
                self._fault(None if running else item.reason or "delivers nothing")
            case SeenId(text=None):
                joiner.seen(item)
                self._tell(f"what came is no id: {item.reason}")
            case SeenId():
                if joiner.seen(item):
                    self._tell(None)
                else:
                    self._tell(f"the id {item.text} came too late for its frame; see lead_s and window_s")

    def _note(self, decisions: Iterable[Decision]) -> None:
        for decision in decisions:
            self._waiting[decision.key - self._first_key].found = decision.found

    def _leave(self, now_s: float) -> list[Verdict]:
        complete = []
        while self._waiting and self._waiting[0].found is not None:
            one = self._waiting.popleft()
            self._first_key += 1
            if one.verdict is not None and one.found is not None:
                complete.append(self._completed(one.verdict, one, one.found, now_s))
        return complete

    def _completed(self, verdict: Verdict, one: _Waiting, found: FoundId, now_s: float) -> Verdict:
        state = found.state
        if found.text is not None and self._used.use(found.text, verdict.captured_at):
            state = PartIdState.DOUBLED
        self._states[state] += 1
        if self._settings.required and state is not PartIdState.JOINED:
            verdict = lacking_part_id(verdict)
        total_ms = max(verdict.latency_ms.total, round((now_s - one.captured_s) * 1e3, 3))
        spent_ms = round(total_ms - verdict.latency_ms.total, 3)
        return verdict.model_copy(
            update={
                "part_id": found.text,
                "part_id_state": state,
                "latency_ms": verdict.latency_ms.model_copy(update={"part_id": spent_ms, "total": total_ms}),
                "late": total_ms > self._late_after_ms,
            }
        )

    def _code(self, capture: Capture) -> FoundId:
        assert isinstance(self._settings, CodePartId)
        assert self._reader is not None
        pixels = capture.pixels
        if pixels is None:
            return FoundId(PartIdState.UNREADABLE)
        if (region := self._settings.region) is not None:
            pixels = pixels[region.y_px : region.y_px + region.height_px, region.x_px : region.x_px + region.width_px]
        codes = self._reader.read(pixels)
        found = [self._readable(text) for text in sorted(set(codes.texts))]
        joined = [one for one in found if one.state is PartIdState.JOINED]
        # The code that cannot be read may be the part's, and the readable one its neighbour's.
        if joined and len(joined) + codes.unread > 1:
            return FoundId(PartIdState.AMBIGUOUS)
        return joined[0] if joined else FoundId(PartIdState.UNREADABLE)

    def _readable(self, raw: str) -> FoundId:
        try:
            found = FoundId(PartIdState.JOINED, read_id(raw, self._pattern))
        except ValueError as exc:
            self._tell(f"what was read is no id: {exc}")
            return FoundId(PartIdState.UNREADABLE)
        self._tell(None)
        return found

    def _tell(self, trouble: str | None) -> None:
        """Log what is wrong with the ids once, and once that it is over."""
        if trouble is not None and self._told is None:
            logger.warning("part ids of camera %s: %s", self._camera, trouble, extra={"camera": self._camera})
        elif trouble is None and self._told is not None:
            logger.info("part ids of camera %s: there are ids again", self._camera, extra={"camera": self._camera})
        self._told = trouble

    def _at_the_store(self, work: Callable[[], None]) -> None:
        try:
            work()
        except StorageError as exc:
            self._fault(str(exc))
        else:
            self._fault(None)
