"""What a number on the command line may be; a wrong one is answered in words."""

import argparse
import math
from collections.abc import Callable


def positive(text: str) -> float:
    """A number above 0.

    Raises:
        ArgumentTypeError: it is none, as in the other functions here.
    """
    return _number(text, "a number above 0", lambda value: value > 0)


def not_negative(text: str) -> float:
    """A number from 0."""
    return _number(text, "0 or a number above it", lambda value: value >= 0)


def share(text: str) -> float:
    """A number from 0 to below 1."""
    return _number(text, "a number from 0 to below 1", lambda value: 0 <= value < 1)


def share_up_to(most: float) -> Callable[[str], float]:
    """A reader of numbers above 0 that are `most` at most."""

    def read(text: str) -> float:
        return _number(text, f"a number above 0, at most {most:g}", lambda value: 0 < value <= most)

    return read


def count_from(least: int) -> Callable[[str], int]:
    """A reader of whole numbers from `least`."""

    def read(text: str) -> int:
        wanted = f"a whole number, at least {least}"
        value = _number(text, wanted, lambda value: value >= least and value == int(value))
        return int(value)

    return read


def _number(text: str, wanted: str, allowed: Callable[[float], bool]) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or not allowed(value):
        raise argparse.ArgumentTypeError(f"{text!r}: must be {wanted}")
    return value
