"""The active calls in model.py, and the lines that computed the array passed to a tap."""

import ast
import inspect
from functools import cache
from itertools import islice
from types import FrameType
from typing import Iterator

from .. import model

FILE = "numpy_gpt2/model.py"  # works in a debugger too: break numpy_gpt2/model.py:120
SOURCE = inspect.getsource(model)  # read at import, so that edits during the walk do not move lines
STATEMENTS = [node for node in ast.walk(ast.parse(SOURCE)) if isinstance(node, ast.stmt)]  # outer before inner


def live_frames() -> Iterator[FrameType]:
    """The active calls in model.py, the innermost first: the one that calls the tap."""
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_globals is vars(model):
            yield frame
        frame = frame.f_back


def making_lines() -> list[str]:
    """The lines of model.py that computed the array now passed to the tap, from top to bottom.

    These are the statement that calls the tap and, if it passes a variable, the statements above that assign it, wholly
    or in part; for a parameter, the call that passed it.
    """
    return lines_behind(*(frame.f_lineno for frame in islice(live_frames(), 2)))


@cache
def lines_behind(line: int, line_of_caller: int | None = None) -> list[str]:
    call = statement_at(line)
    variables = {value.id for value in given_to_taps(call) if isinstance(value, ast.Name)}
    above = range(statement_at(line, ast.FunctionDef).lineno + 1, call.lineno)
    made = [statement for statement in STATEMENTS if statement.lineno in above and lines_of(statement)[-1] in above
            and variables & assigned(statement) and not given_to_taps(statement)]
    if variables and not made and line_of_caller:
        made = [statement_at(line_of_caller)]
    numbers = sorted({number for statement in [*made, call] for number in lines_of(statement)})
    texts = [SOURCE.splitlines()[number - 1] for number in numbers]
    indent = min(len(text) - len(text.lstrip()) for text in texts if text.strip())
    return [f"{FILE}:{number}  {text[indent:]}" for number, text in zip(numbers, texts)]


def statement_at(line: int, kind: type[ast.stmt] = ast.stmt) -> ast.stmt:
    """The innermost statement of this kind that includes the line."""
    return [statement for statement in STATEMENTS if isinstance(statement, kind) and line in lines_of(statement)][-1]


def given_to_taps(statement: ast.stmt) -> list[ast.expr]:
    """The values in all calls `tap("name", value)` of a statement."""
    calls = [node.args for node in ast.walk(statement) if isinstance(node, ast.Call) and len(node.args) == 2]
    return [value for name, value in calls if isinstance(name, ast.Constant) and isinstance(name.value, str)]


def assigned(statement: ast.stmt) -> set[str]:
    """The variables that a statement assigns, in whole or in part."""
    targets = [node for node in ast.walk(statement) if isinstance(getattr(node, "ctx", None), ast.Store)]
    return {node.id for target in targets for node in ast.walk(target) if isinstance(node, ast.Name)}


def lines_of(statement: ast.stmt) -> range:
    return range(statement.lineno, (statement.end_lineno or statement.lineno) + 1)
