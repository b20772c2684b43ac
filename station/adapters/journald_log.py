"""The log as systemd's journal keeps it: one entry a record, with priority, camera and verdict as fields.

``journalctl -u inspection-station STATION_CAMERA=line1 -p err`` then finds what one camera had to say. The protocol is
systemd's "Native Journal Protocol": a datagram of ``NAME=value`` lines, a value with line breaks preceded by its length
(64 bit, little-endian); what is too large for a datagram goes as a sealed memory file.
"""

import errno
import fcntl
import logging
import os
import socket
import struct
from collections.abc import Mapping
from typing import IO

SOCKET = "/run/systemd/journal/socket"
IDENTIFIER = "inspection-station"
_PRIORITIES = (
    (logging.CRITICAL, 2),
    (logging.ERROR, 3),
    (logging.WARNING, 4),
    (logging.INFO, 6),
)
"""Levels of `logging` and the priorities of syslog (RFC 5424, table 2)."""
_DEBUG = 7
_EXTRA = {"camera": "STATION_CAMERA", "verdict": "STATION_VERDICT"}
"""What a call to the logger gives as `extra`, and the field that it becomes."""


def goes_to_journal(stream: IO[str], environment: Mapping[str, str]) -> bool:
    """Whether the stream is connected to the journal: $JOURNAL_STREAM names its device and inode (systemd.exec(5))."""
    try:
        found = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return environment.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


class JournaldHandler(logging.Handler):
    """Sends records to the journal.

    Args:
        address: the journal's socket.
    """

    def __init__(self, address: str = SOCKET) -> None:
        super().__init__()
        self._address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)

    def emit(self, record: logging.LogRecord) -> None:
        """Send one record; one that cannot be sent goes to stderr, as `logging` does with its own failures."""
        try:
            self._send(datagram(record, self.format(record)))
        except Exception:  # noqa: BLE001  # logging's own convention: a handler never raises into the program
            self.handleError(record)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()
        super().close()

    def _send(self, payload: bytes) -> None:
        try:
            self._socket.sendto(payload, self._address)
        except OSError as exc:
            if exc.errno not in (errno.EMSGSIZE, errno.ENOBUFS):
                raise
            self._send_as_file(payload)

    def _send_as_file(self, payload: bytes) -> None:
        descriptor = os.memfd_create("journal-entry", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            with os.fdopen(os.dup(descriptor), "wb") as stream:
                stream.write(payload)
            seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", descriptor))
            self._socket.sendmsg([], [rights], 0, self._address)
        finally:
            os.close(descriptor)


def datagram(record: logging.LogRecord, message: str) -> bytes:
    """One journal entry for a record whose text (with traceback) is `message`."""
    fields = {
        "MESSAGE": message,
        "PRIORITY": str(next((priority for level, priority in _PRIORITIES if record.levelno >= level), _DEBUG)),
        "SYSLOG_IDENTIFIER": IDENTIFIER,
        "LOGGER": record.name,
        "THREAD_NAME": record.threadName or "",
        "CODE_FILE": record.pathname,
        "CODE_LINE": str(record.lineno),
        "CODE_FUNC": record.funcName or "",
    }
    for name, field in _EXTRA.items():
        value = getattr(record, name, None)
        if value is not None:
            fields[field] = str(value)
    return b"".join(_field(name, value) for name, value in fields.items())


def _field(name: str, value: str) -> bytes:
    encoded = value.encode("utf-8", errors="replace")
    if b"\n" not in encoded:
        return name.encode() + b"=" + encoded + b"\n"
    return name.encode() + b"\n" + struct.pack("<Q", len(encoded)) + encoded + b"\n"
