"""The real model with a student's functions in place of the engine's, compared with the engine.

In every loaded module of this package, and in the student's files, each name that is the engine's function is bound to
the student's.
"""

import sys
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Callable, Iterator

import numpy as np

from .. import decoding, tap
from .. import model as model_module
from ..checkpoint import loading
from ..cli.exits import bad_input
from ..tokenizer import Tokenizer
from ..weights import GPT2
from .checking import describe_error
from .comparing import close
from .course import exercises_by_name, lookup
from .isolation import load_file
from .laws import LAWS
from .messages import say_in
from .rebinding import rebound

TOLERANCE = 1e-3  # of the largest number of an array: the roundings of many layers add up
# What a student's function returns is given to the tap under the stage's name, whether it calls its tap or not.
STAGE_OF_RESULT = {"embed": "h.0.resid_pre", "attend": "attn.z", "attention": "attn.out", "mlp": "mlp.out",
                   "block": "resid_post", "unembed": "logits"}
SETTINGS: tuple[dict[str, Any], ...] = ({"temperature": 0}, {"temperature": 0.8, "top_k": 40, "top_p": 0.9, "seed": 0})


@contextmanager
def functions_of(folder: Path, names: list[str]) -> Iterator[set[str]]:
    """The student's functions of these names in place of the engine's; yields the set of those called so far."""
    exercises = [exercises_by_name()[name] for name in names]
    modules = {exercise.chapter: load_file(folder, exercise) for exercise in exercises}
    called: set[str] = set()
    with ExitStack() as stack:
        for exercise in exercises:
            function = lookup(modules[exercise.chapter], exercise.path)
            assert function is not None
            watched = watching(function, exercise.name, called)
            stack.enter_context(rebound(LAWS[exercise.name].reference, watched))
            if "." not in exercise.path:
                stack.enter_context(rebound(function, watched))  # where the student's functions call each other
        yield called


def watching(function: Callable[..., Any], name: str, called: set[str]) -> Callable[..., Any]:
    """The function, which notes that it was called, and gives its result to its tap, an argument that can be called."""
    def watching_function(*args: Any, **keywords: Any) -> Any:
        called.add(name)
        result = function(*args, **keywords)
        taps = [value for value in (*args, *keywords.values()) if callable(value)]
        return taps[0](STAGE_OF_RESULT[name], result) if name in STAGE_OF_RESULT and taps else result

    return watching_function


# A run ----------------------------------------------------------------------------------------------------------------


def run_with(folder: Path, names: list[str], prompt: str, model: str, n_tokens: int, language: str) -> None:
    """Generate with the student's functions, print the text, and compare it with the engine's."""
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
            error: BaseException | None = None
            try:
                for piece in write_on(model, prompt, n_tokens, settings):
                    got.append(piece)
                    print(piece, end="", flush=True)
            except (Exception, SystemExit) as raised:
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


def error_with_place(error: BaseException, folder: Path, language: str) -> str:
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
    """The named arrays of the prompt's pass, then of each greedy token's pass with the cache."""
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
    """The name of the first stage at which the student's pass differs from the engine's."""
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
