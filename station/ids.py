"""Identifiers that sort by time: UUID version 7 (RFC 9562, section 5.7)."""

import os
from uuid import UUID


def uuid7(unix_ms: int) -> UUID:
    """Return a version 7 UUID for a wall time in milliseconds since 1970.

    48 bits of time, then 74 random bits from the operating system: unique also when the clock steps back.

    Raises:
        ValueError: `unix_ms` is negative or does not fit into 48 bits.
    """
    if not 0 <= unix_ms < 1 << 48:
        raise ValueError(f"unix_ms must be between 0 and 2**48 - 1, not {unix_ms}")
    random = int.from_bytes(os.urandom(10), "big") & ((1 << 74) - 1)
    return UUID(int=unix_ms << 80 | 0x7 << 76 | (random >> 62) << 64 | 0b10 << 62 | random & ((1 << 62) - 1))
