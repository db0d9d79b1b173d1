"""Check one function: give it seeded random cases, compare with the engine, and say what the mistake is.

A law (laws/) holds an engine's function, the cases, and how the function is called. What is compared is all that a call
leaves: what it returned or raised, and caches it was given; every other argument must be as it was before.
"""

import copy
import inspect
import types
from dataclasses import dataclass, field, is_dataclass
from typing import Any, Callable, Iterator

import numpy as np

from ..cache import KVCache
from .course import Exercise, mistaken_function
from .laws import LAWS, Law
from .messages import say_in

TOLERANCE = 1e-5  # of the largest number in an array: float32 sums in another order differ by less
Function = Callable[..., Any]


@dataclass
class Verdict:
    """How a function did. The message's first line is a summary."""

    state: str  # "passed", "not written" or "wrong"
    message: str


@dataclass
class Outcome:
    """What a call left behind: arrays, numbers and texts under paths such as "[0].weight"."""

    result: Any = None
    leaves: dict[str, Any] = field(default_factory=dict)
    changed: list[str] = field(default_factory=list)  # the arguments that it wrote to
    error: BaseException | None = None


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The arrays, numbers and texts that a value is made of, each with its path."""
    if isinstance(value, (list, tuple)):
        yield path + "(length)", len(value)
        for i, item in enumerate(value):
            yield from leaves(item, f"{path}[{i}]")
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, f"{path}[{key!r}]")
    elif isinstance(value, KVCache):
        yield path + ".length", value.length
        yield path + ".k", value.k[..., :value.length, :]
        yield path + ".v", value.v[..., :value.length, :]
    elif is_dataclass(value) and not isinstance(value, type):
        for name, item in vars(value).items():
            yield from leaves(item, f"{path}.{name}")
    elif isinstance(value, types.FunctionType):
        yield path, value.__name__
    else:
        yield path, value


def observe(law: Law, function: Function, args: tuple[Any, ...]) -> Outcome:
    """Call a function with copies of the arguments."""
    given = copy.deepcopy(args)
    try:
        with np.errstate(all="ignore"):
            result = law.call(function, given)
            outcome = Outcome(result, dict(leaves(result)))
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # exit() as well
        return Outcome(error=error)
    for name, before, after in zip(parameter_names(law, args), args, given):
        if isinstance(before, KVCache):
            outcome.leaves.update(leaves(after, name))
        elif difference(dict(leaves(before)), dict(leaves(after)), tolerance=0):
            outcome.changed.append(name)
    return outcome


def parameter_names(law: Law, args: tuple[Any, ...]) -> list[str]:
    """What each argument of a case is called: as the function calls it, or as the law does."""
    names = list(inspect.signature(law.reference).parameters)
    if law.without_self:
        names.remove("self")
    n_own = len(args) - len(law.more_names)
    return [*names[:n_own], *law.more_names]


# Comparison -----------------------------------------------------------------------------------------------------------


@dataclass
class Difference:
    """The first place where two outcomes are not alike."""

    kind: str  # a key of MESSAGES: type, shape, value, dtype
    path: str
    expected: Any
    got: Any


def difference(expected: dict[str, Any], got: dict[str, Any], tolerance: float = TOLERANCE) -> Difference | None:
    """Types and shapes count first, then numbers, then the arrays' types."""
    for path in [*expected, *(path for path in got if path not in expected)]:
        if path not in got or path not in expected:
            return Difference("type", path, expected.get(path), got.get(path))
        one, other = expected[path], got[path]
        if is_array(one) != is_array(other):
            return Difference("type", path, one, other)
        if np.shape(one) != np.shape(other):
            return Difference("shape", path, one, other)
        if not alike(one, other, tolerance):
            return Difference("value", path, one, other)
    for path, one in expected.items():
        if is_array(one) and one.dtype.kind == "f" and one.dtype != got[path].dtype:
            return Difference("dtype", path, one.dtype, got[path].dtype)
    return None


def alike(one: Any, other: Any, tolerance: float) -> bool:
    """Equal, or for floats closer than the tolerance times the largest of them."""
    if isinstance(one, (bool, np.bool_)) != isinstance(other, (bool, np.bool_)):
        return False
    if not is_number(one) or not is_number(other):
        return type(one) is type(other) and bool(np.all(one == other))
    return bool(np.all(close(np.asarray(one), np.asarray(other), tolerance)))


def is_array(value: Any) -> bool:
    """Without axes, an array is as good as a number."""
    return isinstance(value, np.ndarray) and value.ndim > 0


def is_number(value: Any) -> bool:
    return isinstance(value, (np.ndarray, np.number, np.bool_, int, float)) and np.asarray(value).dtype.kind in "biuf"


def close(one: np.ndarray, other: np.ndarray, tolerance: float) -> np.ndarray:
    """Where two arrays of one shape are alike: booleans of that shape. Integers must be equal."""
    finite = np.abs(one[np.isfinite(one)], dtype=np.float64)
    allowed = tolerance * finite.max(initial=0) if "f" in one.dtype.kind else 0
    with np.errstate(all="ignore"):
        near = np.abs(one.astype(np.float64) - other) <= allowed
    return near | (one == other) | (np.isnan(one) & np.isnan(other))


def same_outcome(one: Outcome, other: Outcome) -> bool:
    """Whether two functions made the same mistake; float64 in place of float32 is a mistake of its own."""
    if one.error or other.error or one.changed != other.changed:
        return repr(one.error) == repr(other.error) and one.changed == other.changed
    found = difference(one.leaves, other.leaves)
    return found is None or found.kind == "dtype"


# Verdict --------------------------------------------------------------------------------------------------------------


def check_function(exercise: Exercise, function: Function, language: str = "en") -> Verdict:
    """Whether a function obeys its law, and if not, which known mistake it makes and the smallest failing case."""
    law = LAWS[exercise.name]
    cases = law.seeded_cases(exercise.name)
    outcomes = []
    failed = []
    for i, args in enumerate(cases):
        outcomes.append(observe(law, function, args))
        if isinstance(outcomes[i].error, NotImplementedError):
            return Verdict("not written", say_in(language, "todo"))
        if isinstance(outcomes[i].error, SystemExit):
            return Verdict("wrong", say_in(language, "exit"))
        expected = observe(law, law.expected or law.reference, args)
        if type(expected.error) is not type(outcomes[i].error) or outcomes[i].changed \
                or difference(expected.leaves, outcomes[i].leaves):
            failed.append(i)
    if not failed:
        return Verdict("passed", say_in(language, "passed"))
    first = failed[0]
    expected = observe(law, law.expected or law.reference, cases[first])
    names = parameter_names(law, cases[first])
    sentence = known_mistake(exercise, law, cases, outcomes, language)
    if sentence is None:
        sentence = unknown_mistake(expected, outcomes[first], exercise.file, language)
        if first > 0 and law.has_batch(cases[first]) and not any(law.has_batch(args) for args in cases[:first]):
            sentence += " " + say_in(language, "only batch")
    return Verdict("wrong", sentence + "\n" + show_case(names, cases[first], expected, outcomes[first], language))


def known_mistake(exercise: Exercise, law: Law, cases: list[tuple[Any, ...]], outcomes: list[Outcome],
                  language: str) -> str | None:
    """The sentence of the mistake that gives the student's outcome in every case."""
    for mistake in exercise.mistakes:
        function = mistaken_function(exercise, mistake)
        if all(same_outcome(outcome, observe(law, function, args)) for outcome, args in zip(outcomes, cases)):
            return mistake.text[language]
    return None


def unknown_mistake(expected: Outcome, got: Outcome, file: str, language: str) -> str:
    """What can be said of an outcome by itself."""
    if got.error is not None:
        return say_in(language, "raised", error=describe_error(got.error, file, language))
    if expected.error is not None:
        return say_in(language, "no error", error=type(expected.error).__name__)
    found = difference(expected.leaves, got.leaves)
    if got.changed and (found is None or found.kind == "value"):
        return say_in(language, "in place", names=", ".join(got.changed))
    assert found is not None
    if found.kind == "type" and got.result is None:
        return say_in(language, "none")
    if found.kind == "type":
        return say_in(language, "type", expected=type_name(expected.result), got=type_name(got.result))
    if found.kind == "shape":
        return say_in(language, "shape", expected=list(np.shape(found.expected)), got=list(np.shape(found.got)))
    return say_in(language, found.kind, expected=found.expected, got=found.got)


def describe_error(error: BaseException, file: str, language: str) -> str:
    """ValueError: its first line (line 12): the last line of the student's file that it came through."""
    text = f"{type(error).__name__}: {error}".split("\n")[0].removesuffix(": ")[:200]
    trace = error.__traceback__
    line = None
    while trace is not None:
        if trace.tb_frame.f_code.co_filename.endswith(file):
            line = trace.tb_lineno
        trace = trace.tb_next
    return text + (say_in(language, "at line", line=line) if line else "")


# Showing a case -------------------------------------------------------------------------------------------------------


def show_case(names: list[str], args: tuple[Any, ...], expected: Outcome, got: Outcome, language: str) -> str:
    """Input, expected, got, and the first difference, each on a line or a few."""
    lines = [say_in(language, "case")]
    lines += [labelled(name, show(value)) for name, value in zip(names, args)]
    found = None if expected.error or got.error else difference(expected.leaves, got.leaves)
    for key, outcome in (("expected", expected), ("got", got)):
        label = say_in(language, key)
        if outcome.error is not None:
            lines.append(labelled(label, say_in(language, "raises", error=type(outcome.error).__name__)))
        elif found is not None and found.kind != "dtype":
            value = found.expected if key == "expected" else found.got
            lines.append(labelled(label + found.path, show(value)))
        elif outcome.leaves:
            lines.append(labelled(label, show(next(iter(outcome.leaves.values())))))
    if found is not None and found.kind == "value" and is_array(found.expected) and is_number(found.got):
        place = tuple(int(i) for i in np.argwhere(~close(found.expected, np.asarray(found.got), TOLERANCE))[0])
        numbers = " ".join(f"{say_in(language, key)} {show(np.asarray(value)[place])}"
                           for key, value in (("expected", found.expected), ("got", found.got)))
        lines.append(labelled(say_in(language, "first difference"), f"{list(place)}: {numbers}"))
    return "\n".join(lines)


def labelled(label: str, text: str) -> str:
    return f"  {label} = " + text.replace("\n", "\n" + " " * (len(label) + 5))


def show(value: Any) -> str:
    """A value on a few lines: small arrays whole, large ones at their corners."""
    if isinstance(value, np.ndarray):
        numbers = np.array2string(value, precision=4, threshold=40, edgeitems=2, suppress_small=True, separator=", ")
        return f"{value.dtype} {list(value.shape)}" + ("\n" if value.ndim > 1 else " ") + numbers
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return f"{value:.6g}"
    if callable(value) and hasattr(value, "__name__"):
        return value.__name__
    text = repr(value)
    return text if len(text) <= 300 else text[:297] + "..."


def type_name(value: Any) -> str:
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, np.ndarray) else type(value).__name__
