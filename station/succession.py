"""What holds when: one thing after another, with a while between two in which neither does. Pure.

A frame is judged some time after it was captured, and by then another product may run. What it is judged with is what
held when it was captured; if that was between two things, by neither. `begin` says that one thing has come to its end,
`complete` that the next one holds, `abandon` that the former one holds again.
"""

from bisect import bisect_right
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")

KEPT = 256
"""Newest changes that are remembered; what was captured before them, or before what was forgotten, is taken for between
two things."""


@dataclass(frozen=True, slots=True)
class Held(Generic[T]):
    """What held at a moment.

    Attributes:
        thing: it, or the former one in a while between two.
        between: the moment lies between two things.
    """

    thing: T
    between: bool


class Succession(Generic[T]):
    """Remembers what held when.

    Args:
        first: holds from the beginning.
    """

    def __init__(self, first: T) -> None:
        self._times_s: list[float] = [float("-inf")]
        self._held: list[Held[T]] = [Held(first, between=False)]

    @property
    def newest(self) -> Held[T]:
        """What was told last."""
        return self._held[-1]

    def begin(self, at_s: float) -> None:
        """What holds comes to its end.

        Raises:
            ValueError: it has already.
        """
        if self.newest.between:
            raise ValueError("a change is under way")
        self._append(at_s, Held(self.newest.thing, between=True))

    def complete(self, at_s: float, then: T) -> None:
        """The next thing holds.

        Raises:
            ValueError: no change is under way.
        """
        if not self.newest.between:
            raise ValueError("no change is under way")
        self._append(at_s, Held(then, between=False))

    def abandon(self, at_s: float) -> None:
        """The former thing holds again.

        Raises:
            ValueError: no change is under way.
        """
        self.complete(at_s, self.newest.thing)

    def replace(self, thing: T) -> None:
        """What holds is exchanged for another form of itself, for all that is asked from now on."""
        old = self.newest.thing
        for place in range(len(self._held) - 1, -1, -1):
            if self._held[place].thing is not old:
                break
            self._held[place] = Held(thing, self._held[place].between)

    def at(self, moment_s: float) -> Held[T]:
        """What held at this time."""
        place = bisect_right(self._times_s, moment_s) - 1
        if place < 0:
            return Held(self._held[0].thing, between=True)
        return self._held[place]

    def forget(self, before_s: float) -> None:
        """Nothing that was captured before this time is asked for any more: let go of what held until then."""
        gone = max(0, bisect_right(self._times_s, before_s) - 1)
        del self._times_s[:gone], self._held[:gone]

    def _append(self, at_s: float, held: Held[T]) -> None:
        # A clock that gives the same time twice must not bring the order into disorder.
        self._times_s.append(max(at_s, self._times_s[-1]))
        self._held.append(held)
        if len(self._held) > KEPT:
            del self._times_s[0], self._held[0]
