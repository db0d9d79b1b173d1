"""Check one function on seeded random cases against the engine, and name the mistake.

A law (laws/) has the engine's function, the cases, and how the function is called. The comparison covers everything
that a call produces: its result or error, and the caches it was given; every other argument must be unchanged.
"""

import copy
import inspect
import warnings
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Callable

import numpy as np

from ..cache import KVCache
from .comparing import Difference, difference, leaves, relation
from .course import Exercise, mistaken_function
from .laws import LAWS, Law
from .laws.law import Args
from .messages import say_in
from .rebinding import rebound
from .showing import show_case, type_name

Function = Callable[..., Any]


class CallsTheEngine(Exception):
    """Raised by the engine's function if the student's calls it."""


# A function that raises one of these has no mistake to look for.
ENDINGS = {NotImplementedError: "todo", SystemExit: "exit", CallsTheEngine: "engine"}

# How a message describes the expected and the actual value, by the kind of their difference.
DESCRIBE: dict[str, Callable[[Any], Any]] = {"type": type_name, "dtype": np.result_type, "length": len,
                                             "shape": lambda value: list(np.shape(value))}


@dataclass
class Verdict:
    """The result of checking a function. The message's first line is a summary."""

    state: str  # "passed", "not written" or "wrong"
    message: str
    obstacle: str = ""  # why it cannot even run


@dataclass
class Outcome:
    """Everything that a call produced."""

    result: Any = None
    leaves: dict[str, Any] = field(default_factory=dict)  # of the result, and of caches among the arguments
    changed: list[str] = field(default_factory=list)  # the arguments that it modified
    error: BaseException | None = None


def observe(law: Law, function: Function, args: Args) -> Outcome:
    """Call a function with copies of the arguments."""
    given = copy.deepcopy(args)
    try:
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
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


def parameter_names(law: Law, args: Args) -> list[str]:
    """The names of a case's arguments: the function's own, then the law's."""
    names = list(inspect.signature(law.reference).parameters)
    if law.without_self:
        names.remove("self")
    n_own = len(args) - len(law.more_names)
    return [*names[:n_own], *law.more_names]


def same_outcome(law: Law, one: Outcome, other: Outcome) -> bool:
    """Whether two outcomes agree, except for float64 instead of float32, which is a mistake of its own."""
    by_type = (KeyError, *law.own_errors)  # which key is missing first depends on the order of the look-ups
    if isinstance(one.error, by_type) and type(one.error) is type(other.error):
        return True
    if one.error or other.error or one.changed != other.changed:
        return repr(one.error) == repr(other.error) and one.changed == other.changed
    found = difference(other.leaves, one.leaves)
    return found is None or found.kind == "dtype"


# Verdict --------------------------------------------------------------------------------------------------------------


@dataclass
class Failure:
    """A case in which a function differs from the engine."""

    args: Args
    expected: Outcome
    got: Outcome
    found: Difference | None

    @property
    def only_dtype(self) -> bool:
        return self.found is not None and self.found.kind == "dtype"


def check_function(exercise: Exercise, function: Function, language: str = "en") -> Verdict:
    """The verdict on a function: if it is wrong, with the known mistake, if any, and the smallest failing case."""
    law = LAWS[exercise.name]
    pairs: list[tuple[Args, Outcome]] = []
    namespace = getattr(function, "__globals__", {})
    with nullcontext() if function is law.reference else rebound(law.reference, refuse, namespace):
        for args in law.seeded_cases(exercise.name):
            got = observe(law, function, args)
            ending = ENDINGS.get(type(got.error))  # type: ignore[arg-type]
            if ending:
                message = say_in(language, ending, name=exercise.name)
                return Verdict("not written", message) if ending == "todo" else Verdict("wrong", message, message)
            pairs.append((args, got))
    failures = []
    for args, got in pairs:
        expected = observe(law, law.expected or law.reference, args)
        found = difference(expected.leaves, got.leaves)
        if type(expected.error) is not type(got.error) or got.changed or found:
            failures.append(Failure(args, expected, got, found))
    if not failures:
        return Verdict("passed", say_in(language, "passed"))
    smallest = min(failures, key=lambda failure: failure.only_dtype)  # the first that has wrong numbers
    sentence = diagnosis(exercise, function, pairs, failures, smallest, language)
    named = dict(zip(parameter_names(law, smallest.args), smallest.args))
    case = show_case(named, smallest.expected.error, smallest.got.error, smallest.found, language)
    return Verdict("wrong", f"{sentence}\n{case}")


def diagnosis(exercise: Exercise, function: Function, pairs: list[tuple[Args, Outcome]], failures: list[Failure],
              smallest: Failure, language: str) -> str:
    """The known mistake that explains all cases, or all without a batch; otherwise a description of the smallest."""
    law = LAWS[exercise.name]
    singles = [(args, got) for args, got in pairs if not law.has_batch(args)]
    fails_alone = not law.has_batch(smallest.args)
    sentence = known_mistake(exercise, law, pairs, language)
    if sentence is None and fails_alone and not smallest.only_dtype:
        sentence = known_mistake(exercise, law, singles, language)
    if sentence is not None:
        return sentence
    results = [(args, got) for args, got in pairs if got.error is None]  # an error's text may contain a memory address
    repeats = all(same_outcome(law, observe(law, function, args), got) for args, got in results)
    if not repeats and not (smallest.found and smallest.found.kind == "type"):  # each call makes another generator
        return say_in(language, "random")
    sentence = unknown_mistake(failures, smallest, exercise.file, language)
    if singles and all(law.has_batch(failure.args) for failure in failures):
        sentence += " " + say_in(language, "only batch")
    return sentence


def refuse(*_: Any, **__: Any) -> None:
    """Replaces the engine's function while the student's version of it runs."""
    raise CallsTheEngine


def known_mistake(exercise: Exercise, law: Law, pairs: list[tuple[Args, Outcome]], language: str) -> str | None:
    """The sentence of the known mistake that reproduces the student's outcome in all of these cases, or None."""
    for mistake in exercise.mistakes:
        function = mistaken_function(exercise, mistake)
        if all(same_outcome(law, outcome, observe(law, function, args)) for args, outcome in pairs):
            return mistake.text[language]
    return None


def unknown_mistake(failures: list[Failure], smallest: Failure, file: str, language: str) -> str:
    """A description of the smallest failing case, for which there is no known mistake."""
    expected, got, found = smallest.expected, smallest.got, smallest.found
    if got.error is not None or expected.error is not None:
        return error_mistake(expected.error, got.error, file, language)
    if got.changed and (found is None or found.kind == "value"):
        return say_in(language, "in place", names=", ".join(got.changed))
    assert found is not None
    if found.kind == "type" and got.result is None:
        return say_in(language, "none")
    if found.kind in ("value", "shape"):
        simple = [relation(failure.found.expected, failure.found.got) for failure in failures
                  if failure.found and failure.got.error is None]
        kinds = {each[0] if each else None for each in simple}
        if len(kinds) == 1 and simple[0]:  # the same in every case: one alone may be an accident
            kind, number = simple[0]
            return say_in(language, kind, number=f"{number:.4g}")
    what = found.path if found.path[:1].isalpha() else say_in(language, "result") + found.path
    if isinstance(found.got, list) and "" in found.got and "" not in found.expected:
        return say_in(language, "empty", what=what)
    describe = DESCRIBE.get(found.kind, str)
    return say_in(language, found.kind, what=what, expected=describe(found.expected), got=describe(found.got))


def error_mistake(expected: BaseException | None, got: BaseException | None, file: str, language: str) -> str:
    """Where an error was raised, or should have been."""
    sentences = []
    if got is not None:
        sentences.append(say_in(language, "raised", error=describe_error(got, file, language)))
    if isinstance(got, np.exceptions.AxisError):
        sentences.append(say_in(language, "axis"))
    if expected is not None:
        sentences.append(say_in(language, "other error" if got else "no error", error=type(expected).__name__))
    return " ".join(sentences)


def describe_error(error: BaseException, file: str, language: str) -> str:
    """ValueError: its first line (line 12): the last line of the student's file that it came through."""
    text = f"{type(error).__name__}: {error}".split("\n")[0].removesuffix(": ")[:200].rstrip(" .")
    trace = error.__traceback__
    line = None
    while trace is not None:
        if trace.tb_frame.f_code.co_filename.endswith(file):
            line = trace.tb_lineno
        trace = trace.tb_next
    return text + (say_in(language, "at line", line=line) if line else "")
