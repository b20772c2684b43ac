"""Where a value stands in a JSON document: the small grammar of `path` and `time_path` in the settings.

::

    path  = step *( "." name / index / key )
    step  = name / index / key
    name  = one or more characters other than . [ ] " and blanks
    index = "[" *digit "]"              an element of an array, from 0
    key   = "[" JSON string "]"         a key with characters that a name cannot have
"""

import json
import re

JsonPath = tuple[str | int, ...]
"""Steps from the root: a str is a key of an object, an int an index of an array."""

_STEP = re.compile(
    r"""(?P<dot>\.)?(?P<name>[^.\[\]"\s]+)|\[(?P<index>0|[1-9]\d{0,8})\]|\[(?P<key>"(?:[^"\\]|\\.)*")\]""", re.DOTALL
)


def parse_json_path(text: str) -> JsonPath:
    """Read a path.

    Raises:
        ValueError: it does not follow the grammar.
    """
    steps: list[str | int] = []
    at = 0
    while at < len(text):
        match = _STEP.match(text, at)
        if match is None or (match["name"] is not None and bool(match["dot"]) != bool(steps)):
            raise ValueError(f'is no JSON path from character {at + 1}; write it as a.b[0].c or ["a key"][2]')
        if match["index"] is not None:
            steps.append(int(match["index"]))
        elif match["key"] is not None:
            try:
                steps.append(json.loads(match["key"]))
            except ValueError as exc:
                raise ValueError(f"has a key that is no JSON string at character {at + 1}: {exc}") from None
        else:
            steps.append(match["name"])
        at = match.end()
    if not steps:
        raise ValueError("is empty; write it as a.b[0].c")
    return tuple(steps)


def written(path: JsonPath) -> str:
    """The shortest text that reads as this path."""
    text = ""
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
        elif re.fullmatch(r"""[^.\[\]"\s]+""", step):
            text += f".{step}" if text else step
        else:
            text += f"[{json.dumps(step, ensure_ascii=False)}]"
    return text


def find(document: object, path: JsonPath) -> object:
    """Return what stands at the path.

    Raises:
        LookupError: the document has another shape; the text says where it ends, in one line.
    """
    for depth, step in enumerate(path):
        where = written(path[:depth]) or "the message"
        if isinstance(step, str):
            if not isinstance(document, dict):
                raise LookupError(f"{where} is {_kind(document)}, not an object with the key {step!r}")
            if step not in document:
                raise LookupError(f"{where} has no key {step!r}")
            document = document[step]
        else:
            if not isinstance(document, list):
                raise LookupError(f"{where} is {_kind(document)}, not an array")
            if step >= len(document):
                raise LookupError(f"{where} has {len(document)} elements, none at [{step}]")
            document = document[step]
    return document


def number(value: object) -> float:
    """Return a JSON value as a number; true is 1 and false 0.

    Raises:
        LookupError: it is no number.
    """
    if not isinstance(value, (int, float)):
        raise LookupError(f"is {_kind(value)}, not a number")
    try:
        return float(value)
    except OverflowError:
        raise LookupError("is too great a number") from None


def _kind(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "true or false"
        case int() | float():
            return "a number"
        case str():
            return f"the text {value[:30]!r}"
        case list():
            return "an array"
        case _:
            return "an object"
