"""Where the process groups stood at a past moment: the groups' threads write it, the cameras' read it for verdicts.

Bounded: of each group the newest `KEEP_S` beyond the longest transport delay, and never more than `MOST` moments.
"""

import threading
from bisect import bisect_right
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from station.messages import ProcessState, ProcessStateName
from station.process_messages import Moment

KEEP_S = 60.0
"""Beyond the longest transport delay: a frame may have waited for its verdict."""
MOST = 50_000
_SLACK_S = 1e-6


@dataclass(slots=True)
class _Past:
    step_s: float
    moments: deque[Moment] = field(default_factory=deque)


class ProcessHistory:
    """The past of all groups.

    Args:
        longest_delay_s: how far back a camera looks at most.
    """

    def __init__(self, longest_delay_s: float = 0.0) -> None:
        self._keep_s = longest_delay_s + KEEP_S
        self._groups: dict[str, _Past] = {}
        self._lock = threading.Lock()

    def begin(self, group: str, step_s: float) -> None:
        """Learn of a group; until its first tick it is not ready."""
        with self._lock:
            self._groups[group] = _Past(step_s)

    def add(self, group: str, moment: Moment) -> None:
        """Note where a group stands; a time before the newest one (a clock set back) forgets what was known.

        Raises:
            KeyError: the group was not begun.
        """
        with self._lock:
            moments = self._groups[group].moments
            if moments and moment.at_s <= moments[-1].at_s:
                moments.clear()
            moments.append(moment)
            while len(moments) > MOST or moments[0].at_s < moment.at_s - self._keep_s:
                moments.popleft()

    def at(self, when: datetime) -> Mapping[str, ProcessState]:
        """Where each group stood at a moment, as far as it is known by now."""
        wanted_s = when.timestamp()
        with self._lock:
            found = {group: (self._moment(past, wanted_s), past) for group, past in self._groups.items()}
        return {group: _state(moment, past, wanted_s) for group, (moment, past) in found.items()}

    @staticmethod
    def _moment(past: _Past, wanted_s: float) -> Moment | None:
        """The newest moment up to the wanted time."""
        place = bisect_right(past.moments, wanted_s + _SLACK_S, key=lambda moment: moment.at_s)
        return past.moments[place - 1] if place else None


def _state(moment: Moment | None, past: _Past, wanted_s: float) -> ProcessState:
    if moment is None:
        return ProcessState(state=ProcessStateName.NOT_READY)
    return ProcessState(
        state=moment.state,
        risk=None if moment.risk is None else round(moment.risk, 6),
        alarms=moment.alarms,
        as_of=datetime.fromtimestamp(moment.at_s, UTC),
        complete=wanted_s - moment.at_s < past.step_s - _SLACK_S,
    )
