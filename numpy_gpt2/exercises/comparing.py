"""Whether two results are equal and, if not, where they first differ.

A result is split into leaves: arrays, numbers, strings and lists of these, under paths such as "[0].weight".
"""

import types
from collections.abc import Iterator
from dataclasses import dataclass, is_dataclass
from typing import Any

import numpy as np

from ..cache import KVCache

TOLERANCE = 1e-5  # of the largest number in an array: float32 sums in another order differ by less


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the leaves of a value, each with its path; before the parts of an object, its type."""
    parts: Iterator[tuple[str, Any]]
    if is_plain(value):
        yield path, value
        return
    if isinstance(value, (list, tuple)):
        yield path, value
        for i, item in enumerate(value):
            yield from leaves(item, f"{path}[{i}]")
        return
    if isinstance(value, dict):
        parts = ((f"[{key!r}]", item) for key, item in value.items())
    elif isinstance(value, KVCache):
        parts = iter([(".length", value.length), (".n_positions", value.k.shape[-2]),
                      (".k", value.k[..., :value.length, :]), (".v", value.v[..., :value.length, :])])
    elif is_dataclass(value) and not isinstance(value, type):
        parts = ((f".{name}", item) for name, item in vars(value).items())
    else:
        yield path, value.__name__ if isinstance(value, types.FunctionType) else value
        return
    yield path, type(value)
    for name, part in parts:
        yield from leaves(part, path + name)


def is_plain(value: Any) -> bool:
    """Whether a value is a string, a number, None, or a list or tuple of these."""
    if isinstance(value, (list, tuple)):
        return all(map(is_plain, value))
    return value is None or isinstance(value, (str, bytes, int, float, np.generic))


@dataclass
class Difference:
    """The first place where two results differ."""

    kind: str  # a key of MESSAGES: type, missing, extra, shape, length, value, dtype
    path: str
    expected: Any
    got: Any
    place: Any = None  # where in an array or a list


def difference(expected: dict[str, Any], got: dict[str, Any], tolerance: float = TOLERANCE) -> Difference | None:
    """The first difference: types, shapes and values first, then dtypes. None if there is none."""
    for path in [*expected, *(path for path in got if path not in expected)]:
        if path not in got:
            return Difference("missing", path, expected[path], None)
        if path not in expected:
            return Difference("extra", path, None, got[path])
        found = leaf_difference(path, expected[path], got[path], tolerance)
        if found:
            return found
    for path, one in expected.items():
        if is_array(one) and one.dtype.kind == "f" and one.dtype != got[path].dtype:
            return Difference("dtype", path, one, got[path])
    return None


def leaf_difference(path: str, one: Any, other: Any, tolerance: float) -> Difference | None:
    if not same_type(one, other):
        return Difference("type", path, one, other)
    if isinstance(one, (list, tuple)):
        both_have_parts = not (is_plain(one) or is_plain(other))  # which follow
        return None if both_have_parts else list_difference(path, one, other)
    if np.shape(one) != np.shape(other):
        return Difference("shape", path, one, other)
    if not (is_number(one) and is_number(other)):
        return None if np.all(one == other) else Difference("value", path, one, other)
    near = close(np.asarray(one), np.asarray(other), tolerance)
    if near.all():
        return None
    return Difference("value", path, one, other, [int(i) for i in np.argwhere(~near)[0]])


def list_difference(path: str, one: Any, other: Any) -> Difference | None:
    """The first difference of two plain lists: the whole lists, and the index of the difference."""
    for i, (item, other_item) in enumerate(zip(one, other)):
        found = leaf_difference(f"{path}[{i}]", item, other_item, TOLERANCE)
        if found:
            return Difference("value", path, one, other, [i]) if found.kind == "value" else found
    return None if len(one) == len(other) else Difference("length", path, one, other)


def same_type(one: Any, other: Any) -> bool:
    """Whether types agree. A 0-d array counts as a number, a tuple as a list; an int may replace a float."""
    if is_number(one) and is_number(other):
        allowed = {"b": "b", "i": "iu", "u": "iu", "f": "iuf"}
        kind, other_kind = np.asarray(one).dtype.kind, np.asarray(other).dtype.kind
        return is_array(one) == is_array(other) and other_kind in allowed[kind]
    if isinstance(one, type) or isinstance(other, type):
        return one is other
    return type(one) is type(other) or isinstance(one, (list, tuple)) and isinstance(other, (list, tuple))


def relation(one: Any, other: Any) -> tuple[str, float] | None:
    """A simple relation that turns one array into another: a key of MESSAGES and a number, or None."""
    if not (is_array(one) and is_array(other) and is_number(one) and is_number(other)):
        return None
    flipped = np.swapaxes(one, -1, -2) if one.ndim > 1 else one
    if flipped.shape == other.shape and close(flipped, other, TOLERANCE).all():
        return "transposed", 0.0
    if one.shape != other.shape or one.size < 3 or not (np.isfinite(one) & np.isfinite(other)).all():
        return None
    largest = np.unravel_index(np.argmax(np.abs(one)), one.shape)
    factor = float(other[largest] / one[largest])
    if abs(factor - 1) > 0.01 and factor and close(one * factor, other, TOLERANCE).all():
        return "factor", factor
    shift = float(other[largest] - one[largest])
    return ("shift", shift) if close(one + shift, other, TOLERANCE).all() else None


def is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.ndim > 0


def is_number(value: Any) -> bool:
    return isinstance(value, (np.ndarray, np.number, np.bool_, int, float)) and np.asarray(value).dtype.kind in "biuf"


def close(one: np.ndarray, other: np.ndarray, tolerance: float) -> np.ndarray:
    """Where two arrays of one shape are close: booleans of that shape. Integers must be equal."""
    finite = np.abs(one[np.isfinite(one)], dtype=np.float64)
    allowed = tolerance * finite.max(initial=0) if "f" in one.dtype.kind else 0
    with np.errstate(all="ignore"):
        near = np.abs(one.astype(np.float64) - other) <= allowed
    return near | (one == other) | (np.isnan(one) & np.isnan(other))
