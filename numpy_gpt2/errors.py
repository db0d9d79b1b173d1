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


def as_array(ids: Any) -> np.ndarray:
    """The ids as a NumPy array with axes. Raises ValueError for a number, for text, for prompts of different lengths,
    and for booleans among integers: NumPy would read those of a mask as ids 0 and 1.
    """
    try:
        array = np.asarray(ids)
    except ValueError as error:
        raise ValueError("ids must be prompts of equal length: `ids, mask = pad_ids(prompts)` makes them. "
                         "Got rows of different lengths.") from error
    if array.dtype.kind in "US":
        raise ValueError(f"ids must be token ids: tokenizer.encode(text) gives them. Got text, {shown(ids)}.")
    if array.ndim == 0:
        raise ValueError(f"ids must be a list of one token id or more. Got {type(ids).__name__}.")
    if array.dtype.kind == "i" and isinstance(ids, (list, tuple)):
        if {bool, np.bool_} & set(map(type, np.asarray(ids, dtype=object).flat)):
            raise ValueError("ids must be integers. Got booleans among them; of `ids, mask = pad_ids(prompts)`, "
                             "pass ids alone.")
    return array
