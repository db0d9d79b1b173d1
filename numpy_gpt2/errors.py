"""The package's exceptions, argument checks, and how an error or a value in it becomes a single line."""

import operator
import reprlib
from typing import Any

import numpy as np


class CheckpointError(Exception):
    """An invalid file of a checkpoint. One line: the file, the tensor or key, what was expected and found."""


class HubError(Exception):
    """The hub could not be reached, or refused a request. One line: what happened, and what to do."""


class CheckpointWarning(UserWarning):
    """A checkpoint loads, but some of its settings may not have the intended effect. One line, as CheckpointError."""


SHORTENED = reprlib.Repr()
SHORTENED.maxlevel = 2
SHORTENED.maxstring = SHORTENED.maxother = 100
shown = SHORTENED.repr  # a value in an error message: one from a file may be very long or deeply nested


def one_line(error: BaseException) -> str:
    """An error's message on one line, at most 1,000 characters, without control characters."""
    printable = "".join(letter if letter.isprintable() else " " for letter in str(error)[:1000])
    return " ".join(printable.split())


def check_int(name: str, value: Any, low: int, high: int | None = None) -> int:
    """The value as an int from low to high (None: no limit). Raises ValueError for anything else."""
    try:
        number = operator.index(value)
    except TypeError:  # a float, a text, None
        number = low - 1
    if isinstance(value, bool) or number < low or (high is not None and number > high):
        limits = f", {low:,} or more" if high is None else f" from {low:,} to {high:,}"
        raise ValueError(f"{name} must be a whole number{limits}. Got {shown(value)}.")
    return number


def check_number(name: str, value: Any, low: float, high: float, meaning: str) -> float:
    """The value as a Python float (a NumPy scalar would turn logits into float64). Raises ValueError.

    low, high: the allowed range. meaning: that range in words, for the error.
    """
    number = float(value) if isinstance(value, np.floating) else value  # in float32, the largest float64 is inf
    if not isinstance(number, (int, float, np.integer)) or isinstance(value, bool) or not low <= number <= high:
        raise ValueError(f"{name} must be {meaning}. Got {shown(value)}.")
    return float(number)
