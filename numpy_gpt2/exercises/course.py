"""The course: what an exercise is, read from chapters/ (right solutions) and texts/ (titles, hints, mistakes).

A stub is a solution without its body, and a known mistake is a solution with a line changed: nothing is written twice.
The texts' format, by example:

    == softmax, 10 minutes        the exercise; a method is written KVCache.append
    en Its title
    vi The same in Vietnamese
    hint                          three of these, each with an en and a vi line
    mistake                       a change to the solution, and the sentence that names it
    - the line of the solution
    + what people write instead
"""

import ast
import functools
import types
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable

HERE = Path(__file__).parent
CHAPTERS = tuple(path.stem for path in sorted(HERE.glob("chapters/chapter_*.py")))
LANGUAGES = ("en", "vi")

Text = dict[str, str]  # by language


@dataclass
class Mistake:
    """A change to the solution that people make."""

    text: Text = field(default_factory=dict)
    changes: list[tuple[list[str], list[str]]] = field(default_factory=list)  # lines, and the lines in their place


@dataclass
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
    """A chapter's title and its exercises, as this module's docstring describes their file."""
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
            text = {}
            exercises[-1].hints.append(text)
        elif mark == "mistake":
            mistake = Mistake()
            exercises[-1].mistakes.append(mistake)
            text = mistake.text
        elif mark == "-":
            if not mistake.changes or mistake.changes[-1][1]:
                mistake.changes.append(([], []))
            mistake.changes[-1][0].append(rest)
        elif mark == "+":
            mistake.changes[-1][1].append(rest)
        elif mark in LANGUAGES:
            text[mark] = rest
        elif line:
            raise ValueError(f"{chapter}.txt: a line must begin with ==, hint, mistake, -, +, en or vi. Got {line!r}.")
    return title, exercises


@functools.cache
def chapter_titles() -> dict[str, Text]:
    return {chapter: read_texts(chapter)[0] for chapter in CHAPTERS}


@functools.cache
def exercises_by_name() -> dict[str, Exercise]:
    """All exercises, in the order of the course."""
    return {exercise.name: exercise for chapter in CHAPTERS for exercise in read_texts(chapter)[1]}


# Solutions, stubs, mistakes -------------------------------------------------------------------------------------------


def definition(tree: ast.Module, path: str) -> ast.FunctionDef:
    """The function or method of this path in a file's syntax tree."""
    node: Any = tree
    for name in path.split("."):
        node = next(child for child in node.body if getattr(child, "name", None) == name)
    return node


def stub_source(chapter: str) -> str:
    """The file that a student gets: the solutions without their bodies."""
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
    """A module made of source text, without a file of bytecode beside it."""
    module = types.ModuleType(name)
    module.__file__ = file
    exec(compile(source, file, "exec", dont_inherit=True), vars(module))
    return module


def lookup(module: Any, path: str) -> Callable[..., Any] | None:
    """The function of this path, or the method that its class defines itself; None where there is none."""
    owner, _, name = path.rpartition(".")
    namespace = vars(getattr(module, owner, object)) if owner else vars(module)
    found = namespace.get(name)
    return found if callable(found) else None


@functools.cache
def solutions(chapter: str) -> types.ModuleType:
    return run_source(chapter_source(chapter), f"{__package__}.chapters.{chapter}", f"{chapter}.py")


def mistaken_source(exercise: Exercise, mistake: Mistake) -> str:
    """The chapter's solutions with the mistake's changes made to one of them."""
    source = chapter_source(exercise.chapter)
    node = definition(ast.parse(source), exercise.path)
    lines = source.splitlines()
    body = "\n".join(lines[node.lineno - 1:node.end_lineno])
    indent = " " * (node.col_offset + 4)
    for old, new in mistake.changes:
        old_text, new_text = ("\n".join(indent + line if line else "" for line in part) for part in (old, new))
        if body.count(old_text + "\n") + body.endswith(old_text) != 1:
            raise ValueError(f"{exercise.name}: a mistake must change lines that occur once. Got {old_text!r}.")
        body = body.replace(old_text, new_text)
    lines[node.lineno - 1:node.end_lineno] = body.split("\n")
    return "\n".join(lines) + "\n"


def mistaken_function(exercise: Exercise, mistake: Mistake) -> Callable[..., Any]:
    function = lookup(run_source(mistaken_source(exercise, mistake), "mistake", exercise.file), exercise.path)
    assert function is not None
    return function
