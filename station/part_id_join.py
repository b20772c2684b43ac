"""Which part id belongs to which frame. Synchronous; knows no clock, no thread and no source.

Theory of operation. An id's *moment* is its own time plus `lead_s`: when its frame is expected. An id and a frame are
*near* when the moment and the capture lie at most `window_s` apart. They are joined when each is the only one that is
near the other::

    ids near the frame    frames near that id    the frame is
    none                                         missing, or source_fault when the source was away meanwhile
    one                   this one               joined; unreadable when what came holds no id
    one                   more                   ambiguous
    more                                         ambiguous

What was joined before, what came too late and what went by without a verdict counts as well, so nothing is ever used
twice and nothing is taken by elimination: a frame whose id got lost never gets its neighbour's.

When parts follow each other at more than `window_s` plus the jitter (the largest distance between a part's capture and
its own id's moment), an id is near one frame at most, its own, whatever was lost and in whatever order things come: a
wrong join is impossible. The same text again within `window_s` is the same message, delivered twice.

A frame is decided as soon as nothing can come any more that changes the answer: no id near it (`arrival_s` after the
last one's time), and no frame near its id. Frames leave in the order in which they came.
"""

from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

from station.messages import PartIdState
from station.part_id_messages import FoundId, SeenId

MOST_FRAMES = 4096
"""Frames that wait at most; the oldest of more are not awaited."""
MOST_IDS = 4096
"""Ids that are remembered at most."""
REMEMBERED = 256
"""Frames that are decided and still count for what comes later."""
OUTAGES = 64


@dataclass(frozen=True, slots=True)
class JoinRule:
    """What belongs together, all in seconds.

    Attributes:
        lead_s: a frame is expected so long after its id's time.
        window_s: and is at most so far from there.
        arrival_s: an id that has not come so long after its time comes too late.
    """

    lead_s: float
    window_s: float
    arrival_s: float

    @property
    def longest_wait_s(self) -> float:
        """A frame is decided at the latest this long after its capture, when the frames behind it are known."""
        return max(self.arrival_s - self.lead_s + self.window_s, 2 * self.window_s)


@dataclass(frozen=True, slots=True)
class Decision:
    """What became of a frame: its key, and what is known of its id."""

    key: int
    found: FoundId


@dataclass(slots=True, eq=False)
class _Frame:
    key: int
    at_s: float | None
    decided: bool = False


@dataclass(slots=True, eq=False)
class _Id:
    text: str | None
    moment_s: float
    claimed: bool = False


class Joiner:
    """Joins the frames of one camera with the ids of one source.

    Args:
        rule: what belongs together.
    """

    def __init__(self, rule: JoinRule) -> None:
        self._rule = rule
        self._waiting: deque[_Frame] = deque()
        self._frames: list[_Frame] = []
        self._ids: list[_Id] = []
        self._outages: deque[tuple[float, float]] = deque(maxlen=OUTAGES)
        self._down_since_s: float | None = -inf
        self.late = 0
        self.unclaimed = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def frame(self, key: int, at_s: float | None) -> None:
        """A frame was captured.

        Args:
            key: comes back in its decision.
            at_s: monotonic time of the capture; None: nobody knows, so that no id can be joined to it.
        """
        frame = _Frame(key, at_s)
        self._waiting.append(frame)
        if at_s is not None:
            insort(self._frames, frame, key=_capture_s)

    def seen(self, one: SeenId) -> bool:
        """An id came; False when it is too late for a frame that was decided without it."""
        moment_s = one.at_s + self._rule.lead_s
        near = self._ids_near(moment_s)
        if one.text is not None and any(other.text == one.text for other in near):
            return True
        late = any(frame.decided for frame in self._frames_near(moment_s))
        self.late += late
        insort(self._ids, _Id(one.text, moment_s, claimed=late), key=_moment_s)
        if len(self._ids) > MOST_IDS:
            self._count_unclaimed(self._ids[:1])
            del self._ids[0]
        return not late

    def source(self, *, running: bool, at_s: float) -> None:
        """The source of the ids came back, or went away, at this monotonic time."""
        if running and self._down_since_s is not None:
            self._outages.append((self._down_since_s, at_s))
            self._down_since_s = None
        elif not running and self._down_since_s is None:
            self._down_since_s = at_s

    def advance(self, now_s: float, frames_until_s: float) -> Sequence[Decision]:
        """Decide what can be decided now, in the order of the frames.

        Args:
            now_s: monotonic time; every id that came before has been `seen`.
            frames_until_s: every frame that was captured before this monotonic time has been given to `frame`.
        """
        decisions = []
        while self._waiting:
            frame = self._waiting[0]
            found = self._decide(frame, now_s, frames_until_s)
            if found is None and len(self._waiting) > MOST_FRAMES:
                found = FoundId(PartIdState.NOT_AWAITED)
            if found is None:
                break
            self._waiting.popleft()
            frame.decided = True
            decisions.append(Decision(frame.key, found))
        self._forget(frames_until_s)
        return decisions

    def flush(self) -> Sequence[Decision]:
        """Decide the rest without waiting."""
        rest = [Decision(frame.key, FoundId(PartIdState.NOT_AWAITED)) for frame in self._waiting]
        self._waiting.clear()
        return rest

    def due_s(self, frames_behind_s: float) -> float | None:
        """When the oldest frame can be decided at the latest, in monotonic time; None: none waits.

        Args:
            frames_behind_s: frames become known so long after their capture, while none comes.
        """
        if not self._waiting:
            return None
        at_s = self._waiting[0].at_s
        if at_s is None:
            return -inf
        near = self._ids_near(at_s)
        frames_s = max((one.moment_s for one in near), default=-inf) + self._rule.window_s + frames_behind_s
        return max(self._ids_known_s(at_s), frames_s)

    def _ids_known_s(self, at_s: float) -> float:
        """When the last id that is near a frame has come."""
        return at_s + self._rule.window_s - self._rule.lead_s + self._rule.arrival_s

    def _decide(self, frame: _Frame, now_s: float, frames_until_s: float) -> FoundId | None:
        """None: something may still come that changes the answer."""
        if frame.at_s is None:
            return FoundId(PartIdState.MISSING)
        if now_s < self._ids_known_s(frame.at_s):
            return None
        near = self._ids_near(frame.at_s)
        if not near:
            away = self._was_away(frame.at_s)
            return FoundId(PartIdState.SOURCE_FAULT if away else PartIdState.MISSING)
        if len(near) > 1:
            for one in near:
                one.claimed = True
            return FoundId(PartIdState.AMBIGUOUS)
        (one,) = near
        rivals = len(self._frames_near(one.moment_s)) > 1
        if not rivals and frames_until_s <= one.moment_s + self._rule.window_s:
            return None
        if rivals or one.claimed:
            one.claimed = True
            return FoundId(PartIdState.AMBIGUOUS)
        one.claimed = True
        if one.text is None:
            return FoundId(PartIdState.UNREADABLE)
        return FoundId(PartIdState.JOINED, one.text)

    def _was_away(self, at_s: float) -> bool:
        first_s = at_s - self._rule.lead_s - self._rule.window_s
        last_s = self._ids_known_s(at_s)
        if self._down_since_s is not None and self._down_since_s <= last_s:
            return True
        return any(began_s <= last_s and ended_s >= first_s for began_s, ended_s in self._outages)

    def _forget(self, frames_until_s: float) -> None:
        window_s = self._rule.window_s
        excess = len(self._frames) - len(self._waiting) - REMEMBERED
        if excess > REMEMBERED:
            # Those that wait are the newest: frames come in the order of their captures.
            self._frames[:excess] = [frame for frame in self._frames[:excess] if not frame.decided]
        self._count_unclaimed(self._ids[: bisect_left(self._ids, frames_until_s - window_s, key=_moment_s)])
        oldest_s = frames_until_s
        if self._waiting and self._waiting[0].at_s is not None:
            oldest_s = min(oldest_s, self._waiting[0].at_s)
        # An id that was used must still be there when a frame comes that is near it as well.
        del self._ids[: bisect_left(self._ids, oldest_s - 2 * window_s, key=_moment_s)]

    def _count_unclaimed(self, ids: Sequence[_Id]) -> None:
        for one in ids:
            if not one.claimed and not self._frames_near(one.moment_s):
                one.claimed = True
                self.unclaimed += 1

    def _ids_near(self, at_s: float) -> Sequence[_Id]:
        first = bisect_left(self._ids, at_s - self._rule.window_s, key=_moment_s)
        return self._ids[first : bisect_right(self._ids, at_s + self._rule.window_s, key=_moment_s)]

    def _frames_near(self, moment_s: float) -> Sequence[_Frame]:
        first = bisect_left(self._frames, moment_s - self._rule.window_s, key=_capture_s)
        return self._frames[first : bisect_right(self._frames, moment_s + self._rule.window_s, key=_capture_s)]


def _capture_s(frame: _Frame) -> float:
    assert frame.at_s is not None
    return frame.at_s


def _moment_s(one: _Id) -> float:
    return one.moment_s
