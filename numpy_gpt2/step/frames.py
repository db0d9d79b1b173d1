"""The calls of model.py that are under way, and the lines in them that made the array which a tap is given."""

import ast
import inspect
from functools import cache
from itertools import islice
from types import FrameType
from typing import Iterator

from .. import model

FILE = "numpy_gpt2/model.py"  # what a debugger takes too: break numpy_gpt2/model.py:120
SOURCE = inspect.getsource(model)  # as Python has just read it: an edit while the walk is on moves no line
STATEMENTS = [node for node in ast.walk(ast.parse(SOURCE)) if isinstance(node, ast.stmt)]  # the outer before the inner


def live_frames() -> Iterator[FrameType]:
    """The calls in model.py that are under way, the innermost first: the one that calls the tap."""
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_globals is vars(model):
            yield frame
        frame = frame.f_back


def making_lines() -> list[str]:
    """The lines of model.py that made the array which the tap is given now, from top to bottom.

    They are the statement that calls the tap and, where this only hands a variable over, those above that computed the
    variable; where it is a parameter, the call that passed it in.
    """
    return lines_behind(*(frame.f_lineno for frame in islice(live_frames(), 2)))


@cache
def lines_behind(line: int, line_of_caller: int | None = None) -> list[str]:
    call = statement_at(line)
    variables = handed_over(call)
    made = computing(variables, call)
    if variables and not made and line_of_caller:
        made = [statement_at(line_of_caller)]
    return text_of([*made, call])


def statement_at(line: int) -> ast.stmt:
    """The innermost statement that has this line."""
    return [statement for statement in STATEMENTS if line in lines_of(statement)][-1]


def handed_over(call: ast.AST) -> set[str]:
    """The variable that `tap("name", variable)` is given; empty where it is given an expression."""
    given = [given_to_tap(node) for node in ast.walk(call)]
    return {value.id for value in given if isinstance(value, ast.Name)}


def given_to_tap(node: ast.AST) -> ast.expr | None:
    match node:
        case ast.Call(args=[ast.Constant(value=str()), value]):
            return value
    return None


def computing(variables: set[str], call: ast.stmt) -> list[ast.stmt]:
    """The statements of the function, above the call, on which these variables depend, back to what a tap was given."""
    function = [statement for statement in STATEMENTS
                if isinstance(statement, ast.FunctionDef) and call.lineno in lines_of(statement)][-1]
    above = [statement for statement in STATEMENTS if lines_of(statement)[0] > function.lineno
             and lines_of(statement)[-1] < call.lineno and not any(map(given_to_tap, ast.walk(statement)))]
    found = []
    for statement in sorted(above, key=lambda statement: statement.lineno, reverse=True):
        if variables & names(statement, ast.Store):
            found.append(statement)
            variables = variables | names(statement, ast.Load)
    return found


def names(statement: ast.stmt, context: type[ast.expr_context]) -> set[str]:
    """The variables that a statement reads (ast.Load) or assigns (ast.Store), in whole or in part."""
    parts = [node for node in ast.walk(statement) if isinstance(getattr(node, "ctx", None), context)]
    return {node.id for part in parts for node in ast.walk(part) if isinstance(node, ast.Name)}


def lines_of(statement: ast.stmt) -> range:
    return range(statement.lineno, (statement.end_lineno or statement.lineno) + 1)


def text_of(statements: list[ast.stmt]) -> list[str]:
    """The lines of these statements as they are in the file, with their numbers, less the indent they share."""
    numbers = sorted({number for statement in statements for number in lines_of(statement)})
    lines = [SOURCE.splitlines()[number - 1] for number in numbers]
    indent = min(len(line) - len(line.lstrip()) for line in lines if line.strip())
    return [f"{FILE}:{number}  {line[indent:]}" for number, line in zip(numbers, lines)]
