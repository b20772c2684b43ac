"""What the service manager is told: ready, alive, stopping; datagrams as sd_notify(3) describes them.

Without ``$NOTIFY_SOCKET`` (started by hand) nothing is sent. The station is not stopped by a socket that refuses: a
message that gets lost shows as a missing sign of life, which is what the watchdog is there for.
"""

import logging
import os
import socket
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from station.errors import ConfigurationError
from station.ports import Clock

logger = logging.getLogger(__name__)

ALIVE_EVERY_S = 1.0
"""Signs of life are sent at most this often; less where the watchdog asks for more."""
_LARGEST_STATUS = 500
"""Characters of the status line, which is for people."""


class SystemdNotify:
    """A ServiceManager over systemd's notification socket.

    Args:
        environment: NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID are read.
        clock: monotonic time.
    """

    def __init__(self, environment: Mapping[str, str], clock: Clock) -> None:
        self._address = environment.get("NOTIFY_SOCKET") or None
        self._every_s = _alive_every_s(environment)
        self._clock = clock
        self._socket: socket.socket | None = None
        self._sent_s = float("-inf")
        self._refused = False

    def __enter__(self) -> Self:
        """Open a socket where there is someone to tell.

        Raises:
            ConfigurationError: $NOTIFY_SOCKET is not the name of a socket.
        """
        if self._address is not None:
            if self._address[0] not in "/@" or len(self._address) < 2:  # noqa: PLR2004
                raise ConfigurationError(
                    f"environment: NOTIFY_SOCKET = {self._address!r}: allowed are an absolute path or an abstract "
                    "name that begins with @"
                )
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            # Nobody waits for the service manager.
            self._socket.setblocking(False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def ready(self) -> None:
        """The station has started."""
        self._send("READY=1")

    def report(self, status: str, *, alive: bool) -> None:
        """Show `status` in ``systemctl status``, and feed the watchdog when `alive`."""
        now_s = self._clock.monotonic_s()
        if now_s - self._sent_s >= self._every_s:
            self._sent_s = now_s
            self._send("WATCHDOG=1" if alive else None, status)

    def stopping(self) -> None:
        """The station has begun its orderly stop."""
        self._send("STOPPING=1", "stopping")

    def _send(self, word: str | None, status: str | None = None) -> None:
        if self._socket is None or self._address is None:
            return
        line = None if status is None else "STATUS=" + " ".join(status.split())[:_LARGEST_STATUS]
        message = "\n".join(part for part in (word, line) if part is not None)
        # An abstract address is written with @ and begins with a zero byte (unix(7)).
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            self._socket.sendto(message.encode(), address)
        except OSError as exc:
            if not self._refused:
                logger.warning("the service manager cannot be told %s: %s", word or "the status", exc)
            self._refused = True
            return
        self._refused = False


def _alive_every_s(environment: Mapping[str, str]) -> float:
    """A quarter of the watchdog's time, and at most `ALIVE_EVERY_S`."""
    text = environment.get("WATCHDOG_USEC", "")
    for_us = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
    if not for_us or not text.isdecimal() or int(text) == 0:
        return ALIVE_EVERY_S
    return min(ALIVE_EVERY_S, int(text) / 1e6 / 4)
