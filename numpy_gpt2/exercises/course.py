"""The course: exercises, read from chapters/ (solutions) and texts/ (titles, hints, mistakes).

A stub is a solution without its body, and a known mistake is a solution with a changed line: nothing is written twice.
The texts' format, by example:

    == softmax, 15 minutes           the exercise; a method is written KVCache.append
    en Its title
    vi The same in Vietnamese
    hint en What to do first         three hints
    hint vi The same in Vietnamese
    + largest = 0                    a mistake: what people write in place of the line that begins with `largest =`,
    en The sentence that names it    or after `- ` the line or lines themselves, where that is not clear
    vi The same in Vietnamese
"""

import ast
import difflib
import functools
import re
import textwrap
import types
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable

HERE = Path(__file__).parent
CHAPTERS = tuple(path.stem for path in sorted(HERE.glob("chapters/chapter_*.py")))
LANGUAGES = ("en", "vi")

Text = dict[str, str]  # by language


@dataclass(eq=False)
class Mistake:
    """A common mistake, as a change to the solution."""

    text: Text = field(default_factory=dict)
    changes: list[tuple[list[str], list[str]]] = field(default_factory=list)  # lines, and the lines in their place

    def add(self, mark: str, line: str) -> None:
        """Add a line to a change; the first `-`, or a `+` without one, begins a new change."""
        if not self.changes or mark == "-" and self.changes[-1][1]:
            self.changes.append(([], []))
        self.changes[-1][mark == "+"].append(line)


@dataclass(eq=False)
class Exercise:
    """One function to write, or one method of a class."""

    path: str  # softmax, or KVCache.append
    chapter: str  # chapter_2_operations
    minutes: int
    title: Text = field(default_factory=dict)
    hints: list[Text] = field(default_factory=list)
    mistakes: list[Mistake] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.path.split(".")[-1]

    @property
    def file(self) -> str:
        return self.chapter + ".py"


def chapter_source(chapter: str) -> str:
    return (HERE / "chapters" / f"{chapter}.py").read_text(encoding="utf-8")


def read_texts(chapter: str) -> tuple[Text, list[Exercise]]:
    """A chapter's title and exercises, in the format of this module's docstring."""
    title: Text = {}
    exercises: list[Exercise] = []
    text = title
    for line in (HERE / "texts" / f"{chapter}.txt").read_text(encoding="utf-8").splitlines():
        mark, _, rest = line.partition(" ")
        if mark == "==":
            path, minutes = rest.removesuffix(" minutes").split(", ")
            exercises.append(Exercise(path, chapter, int(minutes)))
            text = exercises[-1].title
        elif mark == "hint":
            language, _, hint = rest.partition(" ")
            if language == LANGUAGES[0]:
                exercises[-1].hints.append({})
            exercises[-1].hints[-1][language] = hint
        elif mark in ("-", "+"):
            if text:  # of what comes before: here something new begins
                text = {}
                exercises[-1].mistakes.append(Mistake(text))
            exercises[-1].mistakes[-1].add(mark, rest)
        elif mark in LANGUAGES:
            text[mark] = rest
        elif line:
            raise ValueError(f"{chapter}.txt: a line must begin with ==, hint, -, +, en or vi. Got {line!r}.")
    return title, exercises


@functools.cache
def chapter_titles() -> dict[str, Text]:
    return {chapter: read_texts(chapter)[0] for chapter in CHAPTERS}


@functools.cache
def exercises_by_name() -> dict[str, Exercise]:
    """All exercises, in the order of the course."""
    return {exercise.name: exercise for chapter in CHAPTERS for exercise in read_texts(chapter)[1]}


def find_exercise(name: str) -> Exercise:
    """The exercise of this name. Raises ValueError, with similar names, if there is none."""
    exercises = exercises_by_name()
    if name not in exercises:
        near = difflib.get_close_matches(name.lower(), exercises, cutoff=0.5)
        advice = f"Did you mean {' or '.join(near)}?" if near else f"There are {', '.join(exercises)}."
        raise ValueError(f"the name must be an exercise's. Got {name!r}. {advice}")
    return exercises[name]


# Solutions, stubs, mistakes -------------------------------------------------------------------------------------------


def definition(tree: ast.Module, path: str) -> ast.FunctionDef:
    """The function or method of this path in a file's syntax tree."""
    node: Any = tree
    for name in path.split("."):
        node = next(child for child in node.body if getattr(child, "name", None) == name)
    return node


def stub_source(chapter: str) -> str:
    """The stubs of a chapter: the solutions without their bodies."""
    source = chapter_source(chapter)
    lines = source.splitlines()
    tree = ast.parse(source)
    functions = [definition(tree, exercise.path) for exercise in read_texts(chapter)[1]]
    for function in sorted(functions, key=lambda function: -function.lineno):  # line numbers before the cut stay right
        docstring, *body = function.body
        assert docstring.end_lineno is not None
        lines[docstring.end_lineno:body[-1].end_lineno] = [" " * docstring.col_offset + "raise NotImplementedError"]
    return "\n".join(lines) + "\n"


def run_source(source: str, name: str, file: str) -> types.ModuleType:
    """A module from source text, without a bytecode file."""
    module = types.ModuleType(name)
    module.__file__ = file
    exec(compile(source, file, "exec", dont_inherit=True), vars(module))
    return module


def lookup(module: Any, path: str) -> Callable[..., Any] | None:
    """The function at this path, or the method that its class itself defines; None if there is none."""
    owner, _, name = path.rpartition(".")
    namespace = vars(getattr(module, owner, object)) if owner else vars(module)
    found = namespace.get(name)
    return found if callable(found) else None


@functools.cache
def solutions(chapter: str) -> types.ModuleType:
    return run_source(chapter_source(chapter), f"{__package__}.chapters.{chapter}", f"{chapter}.py")


def mistaken_source(exercise: Exercise, mistake: Mistake) -> str:
    """The solution with a mistake's changes applied."""
    source = chapter_source(exercise.chapter)
    node = definition(ast.parse(source), exercise.path)
    lines = source.splitlines()
    start, end = node.body[0].end_lineno, node.end_lineno
    assert start is not None
    body = lines[start:end]
    for old, new in mistake.changes:
        i, n = place_of(old, new, body)
        indent = " " * min(len(line) - len(line.lstrip()) for line in body[i:i + n])
        body[i:i + n] = [indent + line for line in new]
    lines[start:end] = body
    return "\n".join(lines) + "\n"


def place_of(old: list[str], new: list[str], body: list[str]) -> tuple[int, int]:
    """Where the old lines are in a body, and how many: without any, the line that begins as the new ones end."""
    if old:
        found = [i for i in range(len(body)) if textwrap.dedent("\n".join(body[i:i + len(old)])).split("\n") == old]
    else:
        found = [i for i, line in enumerate(body) if beginning(line) == beginning(new[-1])]
    if len(found) != 1:
        raise ValueError(f"a mistake must change lines that occur once. Got {old or new[-1:]}.")
    return found[0], len(old) or 1


def beginning(line: str) -> str | None:
    """`x =`, `return` or `yield`, by which a line is known."""
    match = re.match(r"\s*(return|yield|[^=]*?[^=<>!]=(?!=))", line)
    return match.group(1) if match else None


@functools.cache
def mistaken_function(exercise: Exercise, mistake: Mistake) -> Callable[..., Any]:
    function = lookup(run_source(mistaken_source(exercise, mistake), "mistake", exercise.file), exercise.path)
    assert function is not None
    return function
