"""What counts as a part id: printable characters, not many of them, in the form that the settings ask for."""

import re

LONGEST = 64
"""Characters of an id, at most: it goes into each verdict, into file names of others and onto labels."""
LONGEST_LOOKED_AT = 1024
"""Characters of a text that a pattern is held against, at most: a stranger may send any."""
_SHOWN = 40


def read_id(raw: str, pattern: re.Pattern[str] | None) -> str:
    """Return the id that a text holds: without blanks and NUL characters around it, which pad registers and lines.

    Args:
        raw: the text as it came.
        pattern: it must match the whole text; its group `id`, or else its first group, is the id. None: any text is.

    Raises:
        ValueError: it is no id; the text says why, in one line.
    """
    text = raw.strip(" \t\r\n\0")
    if len(text) > LONGEST_LOOKED_AT:
        raise ValueError(f"{shown(text)} has {len(text)} characters, more than {LONGEST_LOOKED_AT}")
    if pattern is not None:
        match = pattern.fullmatch(text)
        if match is None:
            raise ValueError(f"{shown(text)} does not match the pattern {pattern.pattern!r}")
        text = (match["id"] if "id" in pattern.groupindex else match[min(1, pattern.groups)]) or ""
    if not text:
        raise ValueError("it is empty")
    if not text.isprintable():
        raise ValueError(f"{shown(text)} has characters that cannot be printed")
    if len(text) > LONGEST:
        raise ValueError(f"{shown(text)} has {len(text)} characters, more than {LONGEST}")
    return text


def shown(text: str) -> str:
    """The beginning of a stranger's text, so that it breaks neither a line nor a log."""
    return ascii(text[:_SHOWN])
