"""What `print` takes: Python over the arrays of a pass, under the names they have in the checkpoint and in tap.py."""

import difflib
import re
from typing import Any, Iterable, Mapping

import numpy as np


def part_of(name: str) -> str:
    """The part of the model in which a stage is: `h.3` for `h.3.attn.q`; outside the blocks the stage itself."""
    block = re.match(r"h\.\d+", name)
    return block.group() if block else name


def spoken_names(names: Iterable[str], block: str) -> dict[str, str]:
    """What a user may call each stage, and its whole name: h.3.attn.q, and inside block h.3 also attn.q and q.

    Of two that end alike, the later one is meant.
    """
    names = list(names)
    spoken = {}
    for name in names:
        if part_of(name) in (block, name):
            spoken[name.rpartition(".")[2]] = name
            spoken[name.removeprefix(block + ".")] = name
    return {**spoken, **{name: name for name in names}}


def evaluate(expression: str, arrays: Mapping[str, np.ndarray], others: Mapping[str, Any], to_come: list[str]) -> Any:
    """The value of a Python expression over arrays by name: `h.3.attn.q @ value`, though no variable may be called so.

    others: what else it may use. to_come: names of arrays that are not there yet. Raises whatever the expression does.
    """
    variables = {name: array for name, array in arrays.items() if "." not in name}
    dotted = sorted(arrays.keys() - variables.keys(), key=len, reverse=True)  # of two that fit, the longer one
    any_dotted = "|".join(map(re.escape, dotted)) or "$."
    python = re.sub(rf"(?<![\w.])({any_dotted})(?!\w)", lambda found: f"arrays[{found.group()!r}]", expression)
    for name in re.findall(r"(?<![\w.])h\.\d[\w.]*", python.replace("arrays['h.", "")):
        raise NameError(why_not(name, to_come, [*arrays, *to_come]))
    try:
        return eval(python.strip(), {**variables, **others, "arrays": arrays})
    except NameError as error:
        if any(stage.rpartition(".")[2] == error.name for stage in to_come):
            raise NameError(f"{error.name} is still to come") from error
        raise


def why_not(name: str, to_come: list[str], known: list[str]) -> str:
    if any(name == stage or name.startswith(stage + ".") for stage in to_come):
        return f"{name} is still to come"
    return f"no array is called {name}; the nearest are {', '.join(difflib.get_close_matches(name, known, cutoff=0))}"
