"""Where in model.py each stage is made: read from the source itself, so that no edit of it makes this stale."""

import ast
import inspect
import re
from dataclasses import dataclass
from functools import cache
from types import FrameType
from typing import Iterator

from .. import model

FILE = "numpy_gpt2/model.py"  # what a debugger takes too: break numpy_gpt2/model.py:120


@dataclass(frozen=True)
class SourceLine:
    """One line of model.py: the function it is in, its number, its text."""

    function: str
    number: int
    text: str

    def __str__(self) -> str:
        return f"{FILE}:{self.number}  {self.text}"


def makers(name: str) -> list[SourceLine]:
    """The lines that made the array announced as `name`, `h.3.attn.scores` say, from top to bottom.

    They assign the variable that the tap is handed, or one without a tap of its own that these lines read. What a
    function was itself handed was made where it is called. Raises KeyError for a name that is announced nowhere.
    """
    function, announcement, variable = find_announcement(re.sub(r"^h\.\d+\.", "", name))
    made = last_assignments(function, variable, announcement)
    if not made:
        function, call, variable = find_argument(function, variable)
        return lines_of(function, [*last_assignments(function, variable, call), call])
    announced = {announced_by(statement)[1] for statement in ast.walk(function)}
    for statement in list(made):
        for read in names(statement, ast.Load) - announced - {variable}:
            made += last_assignments(function, read, statement)
    return lines_of(function, made)


def last_assignments(function: ast.FunctionDef, variable: str, before: ast.stmt) -> list[ast.stmt]:
    """The statements that gave a variable the value it has at a statement: back to one that does not read it itself.

    What a tap has handed back is where it begins.
    """
    skipped = skipped_with_a_tap(function)
    assignments = [node for node in ast.walk(function) if node not in skipped and isinstance(node, ast.Assign)
                   and variable in names(node, ast.Store) and node.lineno < before.lineno]
    found: list[ast.stmt] = []
    for statement in sorted(assignments, key=lambda node: node.lineno, reverse=True):
        if announced_by(statement) != ("", ""):
            break
        found.append(statement)
        if variable not in names(statement, ast.Load):
            break
    return found


def skipped_with_a_tap(function: ast.FunctionDef) -> set[ast.AST]:
    """What stands below an `if tap is no_tap ...`: a shorter way for passes that nobody looks into."""
    shortcuts = [node for node in ast.walk(function) if isinstance(node, ast.If)
                 and "no_tap" in names(node.test, ast.Load)]
    return {node for shortcut in shortcuts for statement in shortcut.body for node in ast.walk(statement)}


def find_announcement(name: str) -> tuple[ast.FunctionDef, ast.stmt, str]:
    """The line `variable = tap("name", variable)`: its function, itself, and the variable."""
    for function in functions():
        for statement in ast.walk(function):
            announced, variable = announced_by(statement)
            if announced == name and isinstance(statement, ast.stmt):
                return function, statement, variable
    raise KeyError(name)


def announced_by(statement: ast.AST) -> tuple[str, str]:
    """The name and the variable of `variable = tap("name", variable)`; two empty ones for any other statement."""
    match statement:
        case ast.Assign(value=ast.Call(args=[ast.Constant(value=str(name)), ast.Name(id=variable)])):
            return name, variable
    return "", ""


def find_argument(function: ast.FunctionDef, parameter: str) -> tuple[ast.FunctionDef, ast.stmt, str]:
    """Where a function is called: in which one, in which statement, and which variable becomes the parameter."""
    place = [argument.arg for argument in function.args.args].index(parameter)
    for caller in functions():
        for statement in ast.walk(caller):
            match statement:
                case ast.Assign(value=ast.Call(func=ast.Name(id=called), args=arguments)) if called == function.name:
                    argument = arguments[place]
                    assert isinstance(argument, ast.Name)
                    return caller, statement, argument.id
    raise KeyError(function.name)


def names(statement: ast.AST, context: type[ast.expr_context]) -> set[str]:
    """The variables that a statement reads (ast.Load) or assigns (ast.Store)."""
    return {node.id for node in ast.walk(statement) if isinstance(node, ast.Name) and isinstance(node.ctx, context)}


def lines_of(function: ast.FunctionDef, statements: list[ast.stmt]) -> list[SourceLine]:
    """Statements as they stand in the file, comments included, with the `if` below which they stand."""
    numbers = {number for node in statements for number in range(node.lineno, (node.end_lineno or node.lineno) + 1)}
    numbers |= {node.lineno for node in ast.walk(function) if isinstance(node, ast.If)
                and any(statement in node.body for statement in statements)}
    return [SourceLine(function.name, number, source()[number - 1].strip()) for number in sorted(numbers)]


@cache
def source() -> list[str]:
    return inspect.getsource(model).splitlines()


@cache
def functions() -> list[ast.FunctionDef]:
    tree = ast.parse("\n".join(source()))
    return [node for node in tree.body if isinstance(node, ast.FunctionDef)]


def live_frames() -> Iterator[FrameType]:
    """The calls in model.py that are under way, the innermost first."""
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_globals is vars(model):
            yield frame
        frame = frame.f_back
