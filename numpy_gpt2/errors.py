"""What can go wrong outside the program: the exceptions, and how an error, or a value in one, becomes a single line."""

import operator
import reprlib
from typing import Any

import numpy as np


class CheckpointError(Exception):
    """A checkpoint's file is not what it should be. One line: the file, the tensor or key, what was seen, expected."""


class HubError(Exception):
    """The hub could not be reached, or refused. One line: what happened, and the ways out."""


class CheckpointWarning(UserWarning):
    """A checkpoint loads, but not all in it means what its writer may think. One line, as for CheckpointError."""


SHORTENED = reprlib.Repr()
SHORTENED.maxlevel = 2
SHORTENED.maxstring = SHORTENED.maxother = 100
shown = SHORTENED.repr  # a value from a file, for an error's one line: its writer may have made it long, or deep


def one_line(error: BaseException) -> str:
    """An error's message, cut where it is very long, without line breaks and whatever else a terminal would obey."""
    printable = "".join(letter if letter.isprintable() else " " for letter in str(error)[:1000])
    return " ".join(printable.split())


def check_int(name: str, value: Any, low: int, high: int | None = None) -> int:
    """The value as an int, from low to high (None: as large as you like). Raises ValueError, whatever else it is."""
    try:
        number = operator.index(value)
    except TypeError:  # a float, a text, None
        number = low - 1
    if isinstance(value, bool) or number < low or (high is not None and number > high):
        limits = f", {low:,} or more" if high is None else f" from {low:,} to {high:,}"
        raise ValueError(f"{name} must be a whole number{limits}. Got {shown(value)}.")
    return number


def check_number(name: str, value: Any, low: float, high: float, meaning: str) -> float:
    """The argument as a Python float (a NumPy scalar would turn logits into float64), from low to high. ValueError.

    meaning: what it must be, in the words of the error.
    """
    number = float(value) if isinstance(value, np.floating) else value  # in float32, the largest float64 is inf
    if not isinstance(number, (int, float, np.integer)) or isinstance(value, bool) or not low <= number <= high:
        raise ValueError(f"{name} must be {meaning}. Got {shown(value)}.")
    return float(number)
