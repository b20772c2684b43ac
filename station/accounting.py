"""Where the captured frames went. Pure counting; the caller keeps two threads from counting at once."""

from collections import Counter

from station.messages import Account, Capture, Outcome, SkipReason


class FrameAccount:
    """Counts of one camera; `captured = ok + ng + unknown + skipped + pending` by construction.

    A frame is captured when its number is known, and leaves `pending` exactly once, by `judged` or `skipped`.
    """

    def __init__(self) -> None:
        self._captured = 0
        self._outcomes: Counter[Outcome] = Counter()
        self._skipped: Counter[SkipReason] = Counter()
        self._lines_lost = 0

    def captured(self, capture: Capture) -> None:
        """Count a frame in."""
        self._captured += 1
        self._lines_lost += capture.lines_lost

    def judged(self, outcome: Outcome) -> None:
        """Count a frame out with a verdict.

        Raises:
            ValueError: no frame is pending; the caller counted one frame out twice.
        """
        self._leave()
        self._outcomes[outcome] += 1

    def skipped(self, reason: SkipReason) -> None:
        """Count a frame out without a verdict.

        Raises:
            ValueError: no frame is pending.
        """
        self._leave()
        self._skipped[reason] += 1

    def snapshot(self, waiting: int) -> Account:
        """The account now; `waiting` frames are numbered by the camera and not yet taken from it."""
        return Account(
            captured=self._captured + waiting,
            ok=self._outcomes[Outcome.OK],
            ng=self._outcomes[Outcome.NG],
            unknown=self._outcomes[Outcome.UNKNOWN],
            skipped={reason: self._skipped[reason] for reason in SkipReason if self._skipped[reason]},
            pending=self._pending() + waiting,
            lines_lost=self._lines_lost,
        )

    def _pending(self) -> int:
        return self._captured - self._outcomes.total() - self._skipped.total()

    def _leave(self) -> None:
        if self._pending() <= 0:
            raise ValueError("a frame leaves the account that was never counted in")
