"""Values and times in JSON messages of others; what is not there is told in one line."""

import functools
import json

from station.json_path import JsonPath, find, parse_json_path
from station.sensor_log import instant_s

_SHOWN = 40


def document_of(text: str) -> object:
    """Return the document that a message is.

    Raises:
        LookupError: it is no JSON.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise LookupError(f"the message is not JSON: {text[:_SHOWN]!r}") from None


def value_at(document: object, path: str) -> object:
    """Return what stands at a path of the grammar in `station.json_path`.

    Raises:
        LookupError: the document has another shape.
    """
    try:
        return find(document, _path(path))
    except LookupError as exc:
        raise LookupError(f"{path}: {exc}") from None


def time_at_s(document: object, path: str) -> float:
    """Return the time at a path, in ISO 8601 or counted since 1970, as seconds since 1970.

    Raises:
        LookupError: there is none.
    """
    stamp = value_at(document, path)
    at_s = instant_s(stamp) if isinstance(stamp, (str, int, float)) and not isinstance(stamp, bool) else None
    if at_s is None:
        raise LookupError(f"{path} is {str(stamp)[:_SHOWN]!r}, which is no time")
    return at_s


@functools.cache
def _path(text: str) -> JsonPath:
    return parse_json_path(text)
