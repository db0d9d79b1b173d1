"""The real model with a student's functions in place of the engine's, compared with the engine.

In every loaded module of this package, and in the student's files, each name that is the engine's object is bound to
the student's, until the context manager ends. For methods, that is a subclass which has the student's.
"""

import sys
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Callable, Iterator

import numpy as np

from .. import decoding, tap
from .. import model as model_module
from ..checkpoint import loading
from ..cli.exits import bad_input
from ..tokenizer import Tokenizer
from ..weights import GPT2
from .checking import close, describe_error
from .course import Exercise, exercises_by_name, lookup, solutions
from .isolation import load_file
from .laws import LAWS
from .messages import say_in

TOLERANCE = 1e-3  # of the largest number of an array: the roundings of many layers add up
# What a student's function returns is announced under the stage's name, whether it calls its tap or not.
STAGE_OF_RESULT = {"embed": "h.0.resid_pre", "attend": "attn.z", "attention": "attn.out", "mlp": "mlp.out",
                   "block": "resid_post", "unembed": "logits"}
SETTINGS: tuple[dict[str, Any], ...] = ({"temperature": 0}, {"temperature": 0.8, "top_k": 40, "top_p": 0.9, "seed": 0})


@contextmanager
def functions_of(folder: Path, names: list[str]) -> Iterator[set[str]]:
    """The student's functions of these names in place of the engine's; yields the set of those called so far."""
    called: set[str] = set()
    undo: list[tuple[dict[Any, Any], Any, Any]] = []
    try:
        for engines, students in replacements(folder, [exercises_by_name()[name] for name in names], called):
            for module in list(sys.modules.values()):
                if is_concerned(getattr(module, "__name__", "")):
                    undo += rebind(vars(module), engines, students)
        yield called
    finally:
        for namespace, key, engines in reversed(undo):
            namespace[key] = engines


def is_concerned(name: str) -> bool:
    """The package's modules and the student's; the course's own go on to compare with the engine."""
    package = __name__.split(".")[0]
    ours = name == package or name.startswith(package + ".")
    return (ours and not name.startswith(__package__ or package)) or name.startswith("chapter_")


def rebind(namespace: dict[Any, Any], engines: Any, students: Any) -> Iterator[tuple[dict[Any, Any], Any, Any]]:
    """Change each name that is the engine's object, in tables of functions too; yield what undoes it."""
    for key, value in list(namespace.items()):
        if value is engines:
            yield namespace, key, value
            namespace[key] = students
        elif type(value) is dict and not str(key).startswith("__"):
            yield from rebind_values(value, engines, students)


def rebind_values(table: dict[Any, Any], engines: Any, students: Any) -> Iterator[tuple[dict[Any, Any], Any, Any]]:
    for key, value in list(table.items()):
        if value is engines:
            yield table, key, value
            table[key] = students


def replacements(folder: Path, exercises: list[Exercise], called: set[str]) -> list[tuple[Any, Any]]:
    """Pairs of the engine's function or class and the student's."""
    modules = {exercise.chapter: load_file(folder, exercise) for exercise in exercises}
    pairs: list[tuple[Any, Any]] = []
    methods: dict[type, dict[str, Any]] = {}
    for exercise in exercises:
        function = lookup(modules[exercise.chapter], exercise.path)
        assert function is not None
        announced = announcing(function, exercise.name, called)
        owner = exercise.path.rpartition(".")[0]
        if owner:
            base = vars(solutions(exercise.chapter))[owner].__base__
            methods.setdefault(base, {})[exercise.name] = announced
        else:
            pairs += [(LAWS[exercise.name].reference, announced), (function, announced)]
    return pairs + [(base, type(base.__name__, (base,), written)) for base, written in methods.items()]


def announcing(function: Callable[..., Any], name: str, called: set[str]) -> Callable[..., Any]:
    """The function, which notes that it was called, and gives its result to its tap, the last argument."""
    def announcing_function(*args: Any, **keywords: Any) -> Any:
        called.add(name)
        result = function(*args, **keywords)
        announces = name in STAGE_OF_RESULT and callable(args[-1])
        return args[-1](STAGE_OF_RESULT[name], result) if announces else result

    return announcing_function


# A run ----------------------------------------------------------------------------------------------------------------


def run_with(folder: Path, names: list[str], prompt: str, model: str, n_tokens: int, language: str) -> None:
    """Write on with the student's functions, print it, and say whether the engine does the same."""
    with bad_input():
        loading.load(model)
    expected = [list(write_on(model, prompt, n_tokens, settings)) for settings in SETTINGS]
    engines_passes = list(passes(model, prompt, n_tokens))
    print(say_in(language, "yours", names=", ".join(names)) if names else say_in(language, "none yours"))
    sys.path.append(str(folder))
    with functions_of(folder, names) as called:
        for settings, pieces in zip(SETTINGS, expected):
            print("\n[" + ", ".join(f"{key} {value}" for key, value in settings.items()) + "]")
            print(prompt, end="", flush=True)
            got = []
            error = None
            try:
                for piece in write_on(model, prompt, n_tokens, settings):
                    got.append(piece)
                    print(piece, end="", flush=True)
            except Exception as raised:
                error = raised
            print()
            if error is None and got == pieces:
                print(say_in(language, "same text"))
                continue
            if error is None:
                print(say_in(language, "engine text", text=prompt + "".join(pieces)))
            else:
                print(say_in(language, "run failed", error=error_with_place(error, folder, language)))
            with suppress(Exception):  # where the pass fails before it parts, that has been said
                print(parting(engines_passes, passes(model, prompt, n_tokens), got, pieces, language))
            if error is not None:
                sys.exit(1)
    idle = [name for name in names if name not in called]
    if idle:
        print("\n" + say_in(language, "idle", names=", ".join(idle)))


def error_with_place(error: Exception, folder: Path, language: str) -> str:
    """The error, with the file and line of the student's that it came through last."""
    file = ""
    trace = None if isinstance(error, FloatingPointError) else error.__traceback__  # found too late for that
    while trace is not None:
        path = Path(trace.tb_frame.f_code.co_filename)
        if path.parent == folder:
            file = path.name
        trace = trace.tb_next
    return describe_error(error, file or "no file", language) + (f" [{file}]" if file else "")


def write_on(model: str, prompt: str, n_tokens: int, settings: dict[str, Any]) -> Iterator[str]:
    """The pieces of a continuation. Names are looked up in their modules when called: they may be the student's."""
    loaded, tokenizer = load_readable(model)
    yield from decoding.stream_text(loaded, tokenizer, prompt, max_new_tokens=n_tokens, **settings)


def load_readable(model: str) -> tuple[GPT2, Tokenizer]:
    """A model, and its tokenizer, which encodes by bpe.merge even where tiktoken could: it may be the student's."""
    loaded, tokenizer = loading.load(model)
    tokenizer._ids_are_ranks = False
    return loaded, tokenizer


def passes(model: str, prompt: str, n_tokens: int) -> Iterator[dict[str, np.ndarray]]:
    """The named arrays of the prompt's pass, then of each likeliest token's, read from the cache."""
    loaded, tokenizer = load_readable(model)
    cache = model_module.KVCache(loaded)
    ids = tokenizer.encode(prompt)[:cache.n_positions] or [0]
    for _ in range(1 + n_tokens):
        acts = tap.Recorder()
        logits = model_module.forward(loaded, ids, cache=cache, tap=acts)
        yield {"ids": np.array(ids), **acts.activations}
        if cache.length == cache.n_positions:
            return
        ids = [int(np.argmax(logits[-1]))]


def parting(engines: list[dict[str, np.ndarray]], students: Iterator[dict[str, np.ndarray]], got: list[str],
            expected: list[str], language: str) -> str:
    """The first stage, by name, at which the student's pass is not the engine's."""
    for n, (right, theirs) in enumerate(zip(engines, students)):
        if n == 0 and list(right["ids"]) != list(theirs["ids"]):
            return say_in(language, "part tokens", got=theirs["ids"].tolist()[:8], expected=right["ids"].tolist()[:8])
        for name, array in right.items():
            if name in theirs and not same(array, theirs[name]):
                where = say_in(language, "part token", n=n) if n else say_in(language, "part prompt")
                return say_in(language, "part", stage=name, where=where)
    n = next((i for i, (one, other) in enumerate(zip(got, expected)) if one != other), min(len(got), len(expected)))
    return say_in(language, "part choice", n=n + 1)


def same(one: np.ndarray, other: np.ndarray) -> bool:
    return one.shape == other.shape and bool(np.all(close(one, other, TOLERANCE)))
