"""The `print` command: evaluating Python over the arrays of a pass."""

import re
import reprlib
from typing import Any, Iterable, Mapping

import numpy as np

from ..model import merge_heads, split_heads
from ..ops import activation, gelu, layer_norm, linear, softmax
from ..tap import STAGES

OPERATIONS = {operation.__name__: operation
              for operation in (softmax, activation, gelu, layer_norm, linear, split_heads, merge_heads)}
IN_A_BLOCK = [stage.name.removeprefix("h.i.") for stage in STAGES if stage.name.startswith("h.i.")]

BRIEF = reprlib.Repr()  # limits long values to what a screen can show
BRIEF.maxlist = BRIEF.maxtuple = BRIEF.maxdict = BRIEF.maxset = BRIEF.maxfrozenset = BRIEF.maxdeque = 1000
BRIEF.maxstring = BRIEF.maxother = BRIEF.maxlong = 20_000


def evaluate(text: str, names: Mapping[str, Any], own: dict[str, Any]) -> str:
    """The value of a Python expression over these names, as text; "" for statements.

    own: the variables assigned by earlier statements; new ones are added. Raises whatever the code raises.
    """
    try:
        code, has_value = compile(text, "<print>", "eval"), True
    except SyntaxError:
        code, has_value = compile(text, "<print>", "exec"), False
    own.update(names)
    try:
        result = eval(code, own)
        taken = [name for name in names if own.get(name) is not names[name]]
    finally:
        for name in names:
            own.pop(name, None)
    if taken:
        raise NameError(f"{taken[0]} is a name of the walk: assign to another one")
    if not has_value:
        return ""
    return str(result) if isinstance(result, (np.ndarray, np.generic)) else BRIEF.repr(result)


def explained(error: Exception, text: str, to_come: Iterable[str]) -> str:
    """The error in one line. to_come: the stages that the pass has not reached."""
    if isinstance(error, (NameError, SyntaxError)) and as_python(text):
        return as_python(text)
    message = str(error.args[0]) if isinstance(error, (KeyError, SyntaxError)) and error.args else str(error)
    for name in to_come:
        if isinstance(error, KeyError) and re.search(rf"['\"]{re.escape(name)}['\"]", text):
            message = f"{name} is still to come"
        if isinstance(error, NameError) and name.rpartition(".")[2] == error.name:
            message = f"{error.name} is still to come"
    return f"{type(error).__name__}: {(message.splitlines() or [''])[0]}"


def as_python(text: str) -> str:
    """A hint how to write the first dotted name in a text, h.3.attn.q, in Python; "" if it has none."""
    dotted = re.search(r"""(?<![\w."'])h\.(\d+)\.(\w[\w.]*)""", text)
    if not dotted:
        return ""
    name, block, path = dotted.group(), *dotted.groups()
    stage = max((stage for stage in IN_A_BLOCK if f"{path}.".startswith(f"{stage}.")), key=len, default="")
    if stage and not re.search(r"\.(weight|bias)\b", path):
        return f'{name} is not Python: write acts["h.{block}.{stage}"]{path.removeprefix(stage)}'
    return f"{name} is not Python: write model.h[{block}].{path}"
