"""Whether something holds: a value against a limit, with a deadband and delays, so that it does not chatter.

A value at its limit for `on_delay_s` without a break makes it hold; a value back beyond limit and deadband for
`off_delay_s` without a break ends it. In between nothing changes.
"""

import math


class Condition:
    """One condition; times are seconds on any clock, always the same one.

    Args:
        limit: of the value.
        rising: it is met by value >= limit; else by value <= limit.
        deadband: how far beyond the limit the value must come back.
        on_delay_s, off_delay_s: how long without a break.
    """

    def __init__(
        self,
        limit: float,
        *,
        rising: bool = True,
        deadband: float = 0.0,
        on_delay_s: float = 0.0,
        off_delay_s: float = 0.0,
    ) -> None:
        sign = 1.0 if rising else -1.0
        self._sign = sign
        self._limit = sign * limit
        self._over = sign * limit - deadband
        self._on_delay_s = on_delay_s
        self._off_delay_s = off_delay_s
        self._pending_s = math.nan
        self.active = False
        self.active_since_s: float | None = None

    def restart(self) -> None:
        """Begin both delays anew."""
        self._pending_s = math.nan

    @property
    def pending(self) -> bool:
        """Whether a delay runs."""
        return not math.isnan(self._pending_s)

    def look(self, at_s: float, value: float) -> bool:
        """Take a value; return whether `active` changed."""
        signed = self._sign * value
        moving = signed < self._over if self.active else signed >= self._limit
        if not moving:
            self._pending_s = math.nan
            return False
        # Also after a clock that was set back the delay is a full one.
        if not self._pending_s <= at_s:
            self._pending_s = at_s
        if at_s - self._pending_s < (self._off_delay_s if self.active else self._on_delay_s):
            return False
        self.active = not self.active
        self.active_since_s = self._pending_s if self.active else None
        self._pending_s = math.nan
        return True
