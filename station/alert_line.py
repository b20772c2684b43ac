"""Alerts in the running station: verdicts and faults in, messages to the journal and the broker out."""

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence

from station import wire
from station.alert_messages import Alert, AlertStateName
from station.alerts import AlertBook, Instant, Sounding
from station.faults import FaultBoard
from station.messages import Outgoing, StandingAlert, Verdict
from station.ports import Clock
from station.process_line import ProcessLines
from station.process_settings import ProcessSettings

logger = logging.getLogger(__name__)


class AlertLine:
    """Drives the book of alerts; any thread may tell it of a verdict.

    Args:
        book: the alerts, not restored yet.
        record: takes messages for the journal and the broker without waiting; False: not now, ask again.
        faults: what is wrong.
        clock: time.
        process: whose alarms are told; None: there are none.
        groups: the settings of the process groups.
    """

    def __init__(
        self,
        book: AlertBook,
        record: Callable[[Outgoing], bool],
        faults: FaultBoard,
        clock: Clock,
        process: ProcessLines | None = None,
        groups: Mapping[str, ProcessSettings] | None = None,
    ) -> None:
        self._book = book
        self._record = record
        self._faults = faults
        self._clock = clock
        self._process = process
        self._alarms = {
            (group, name): Sounding(group, name, alarm.priority, alarm.text)
            for group, settings in (groups or {}).items()
            for name, alarm in settings.alarms().items()
        }
        # The order of the messages is that of their numbers: they are recorded under the lock.
        self._lock = threading.Lock()
        self._waiting: deque[Outgoing] = deque()

    def restore(self, former: Iterable[Alert]) -> None:
        """Go on with what stood when the station went down; before anything else."""
        with self._lock:
            self._hand_on(self._book.restore(former, self._now()))

    def judged(self, verdict: Verdict) -> None:
        """A frame has its verdict."""
        with self._lock:
            self._hand_on(self._book.judged(verdict.camera, verdict.outcome, self._now()))

    def look(self) -> None:
        """Look at the faults and the process alarms; the supervisor calls it a few times a second."""
        _, groups = self._process.health() if self._process is not None else ({}, {})
        sounding = [
            self._alarms[group, name]
            for group, health in groups.items()
            for name in health.alarms
            if (group, name) in self._alarms
        ]
        faults = self._faults.now()
        with self._lock:
            self._hand_on(self._book.look(faults, sounding, self._now()))

    @property
    def standing(self) -> Sequence[StandingAlert]:
        """The alerts that stand now, for `health`."""
        with self._lock:
            return [
                StandingAlert(
                    alert_id=alert.alert_id,
                    alert=alert.alert,
                    subject=alert.subject,
                    priority=alert.priority.value,
                    since=alert.since,
                )
                for alert in self._book.standing
            ]

    def _now(self) -> Instant:
        return Instant(self._clock.now(), self._clock.monotonic_s())

    def _hand_on(self, alerts: Iterable[Alert]) -> None:
        for alert in alerts:
            self._waiting.append(wire.outgoing_alert(alert))
            raised = alert.state is AlertStateName.RAISED
            logger.log(
                logging.WARNING if raised else logging.INFO,
                "alert %s (%s) %s: %s: %s",
                alert.alert,
                alert.priority.value,
                alert.state.value,
                alert.subject,
                alert.reason,
                extra={"camera": alert.camera} if alert.camera else {},
            )
        # Neither a camera's thread nor the supervisor may stand still because the journal does.
        while self._waiting and self._record(self._waiting[0]):
            self._waiting.popleft()
