"""Check a student's files in a process of its own, under a time limit: nothing that they do reaches the caller.

The parent starts `python -m numpy_gpt2.exercises.isolation` and reads a line of JSON for each thing that happens. An
exercise that takes too long, or ends the process, counts as wrong; a new process continues with the next.
"""

import json
import os
import queue
import re
import subprocess
import sys
import threading
import time
import tokenize
import types
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Callable, Iterable

from ..cli.exits import run
from .checking import check_function, describe_error
from .course import Exercise, exercises_by_name, lookup, run_source, solutions
from .laws import LAWS
from .messages import say_in

TIME_LIMIT = 5.0  # seconds for one exercise
START_LIMIT = 60.0  # seconds for Python and NumPy to start
SHOWN_OUTPUT = 200  # characters of what a function prints


@dataclass
class Result:
    """How one exercise of one folder did."""

    exercise: str
    state: str
    message: str
    file: str
    seconds: float
    obstacle: str = ""  # why `run` must leave it out, although it is written

    def public(self) -> dict[str, Any]:
        """What `check --json` prints."""
        return {name: value for name, value in vars(self).items() if name != "obstacle"}


# The parent -----------------------------------------------------------------------------------------------------------


def check_folder(folder: Path, names: Iterable[str], language: str = "en", limit: float = TIME_LIMIT) -> list[Result]:
    """The results of these exercises in a student's folder, in the order given."""
    exercises = exercises_by_name()
    todo = [exercises[name] for name in names]
    results: list[Result] = []
    while todo:
        done, failed_in_load, problem = check_in_one_process(folder, todo, language, limit)
        results += done
        todo = todo[len(done):]
        if problem is None:
            break
        broken = [exercise for exercise in todo if exercise.chapter == todo[0].chapter] if failed_in_load else todo[:1]
        results += [Result(exercise.name, "wrong", problem, str(folder / exercise.file), limit, problem)
                    for exercise in broken]
        todo = todo[len(broken):]
    return results


def check_in_one_process(folder: Path, todo: list[Exercise], language: str,
                         limit: float) -> tuple[list[Result], bool, str | None]:
    """What a process manages to check, whether it ended while a file was loaded, and how; None where it did all."""
    process = start("check", folder, {"names": [exercise.name for exercise in todo], "language": language},
                    stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    lines: queue.Queue[str] = queue.Queue()
    assert process.stdout is not None
    threading.Thread(target=pass_on, args=(process.stdout, lines), daemon=True).start()
    results: list[Result] = []
    loading = True
    try:
        patience = START_LIMIT
        while len(results) < len(todo):
            try:
                event = json.loads(lines.get(timeout=patience) or "null")
            except queue.Empty:
                return results, loading, say_in(language, "too slow", limit=limit)
            if event is None:
                return results, loading, say_in(language, "died", code=process.wait())
            if "exercise" in event:
                results.append(Result(**event))
            else:
                loading = event["loading"]
            patience = limit
        return results, False, None
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def pass_on(stream: IO[str], lines: "queue.Queue[str]") -> None:
    """Put each line into a queue, which supports waiting with a timeout, then an empty one at the end."""
    try:
        for line in stream:
            lines.put(line)
    except ValueError:  # the parent has closed it
        pass
    lines.put("")


def start(task: str, folder: Path, request: dict[str, Any], **streams: Any) -> "subprocess.Popen[str]":
    """A Python process that can import this package and runs a task; the request goes to its standard input."""
    package_parent = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, [package_parent, os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONUTF8": "1"}
    process = subprocess.Popen([sys.executable, "-m", __name__, task], env=environment, stdin=subprocess.PIPE,
                               encoding="utf-8", **streams)
    assert process.stdin is not None
    with process.stdin as stream:
        json.dump({"folder": str(folder), **request}, stream)
    process.stdin = None  # for `communicate`, which would flush it
    return process


# The child ------------------------------------------------------------------------------------------------------------


class Output:
    """Replaces sys.stdout: counts the characters printed, and keeps only the beginning."""

    def __init__(self) -> None:
        self.start = ""
        self.n = 0

    def write(self, text: str) -> int:
        self.start += text[:SHOWN_OUTPUT - len(self.start)]
        self.n += len(text)
        return len(text)

    def flush(self) -> None:
        pass


def load_file(folder: Path, exercise: Exercise) -> types.ModuleType:
    """A student's file as a module. Raises whatever it raises, and UnicodeError if it is not text."""
    file = folder / exercise.file
    try:
        with tokenize.open(file) as stream:
            source = stream.read()
    except SyntaxError as error:  # so it says of the first two lines, where Python looks for an encoding's name
        raise UnicodeError from error
    module = run_source(source, exercise.chapter, str(file))
    sys.modules[exercise.chapter] = module
    return module


def use_the_engine_elsewhere(module: types.ModuleType, exercise: Exercise) -> None:
    """In a student's file, put the engine's functions in place of all but one: a mistake spoils no other exercise."""
    owner = exercise.path.split(".")[0]
    for other in exercises_by_name().values():
        name = other.path.split(".")[0]
        if name != owner and name in vars(module):
            right = LAWS[other.name].reference if name == other.name else vars(solutions(other.chapter))[name].__base__
            setattr(module, name, right)


def check_exercise(folder: Path, exercise: Exercise, language: str, tell: Callable[[dict[str, Any]], None]) -> Result:
    """The result of one exercise, whatever the student's file does."""
    file = folder / exercise.file
    started = time.perf_counter()

    def result(state: str, message: str, obstacle: str = "") -> Result:
        if output.n:
            shown = repr(output.start)[1:-1]
            message += "\n" + say_in(language, "printed", n=f"{output.n:,}", start=shown)
        return Result(exercise.name, state, message, str(file), round(time.perf_counter() - started, 3), obstacle)

    output = Output()
    sys.stdout = sys.stderr = output
    if not file.is_file():
        return result("not written", say_in(language, "no file", file=exercise.file))
    try:
        tell({"loading": True})
        module = load_file(folder, exercise)
    except KeyboardInterrupt:
        raise
    except UnicodeError:
        problem = say_in(language, "not UTF-8", file=exercise.file)
        return result("wrong", problem, problem)
    except SyntaxError as error:
        place = say_in(language, "syntax", file=exercise.file, line=error.lineno or 1, error=error.msg)
        inside = function_at(file, error.lineno or 1) == exercise.name
        return result("wrong", place if inside else say_in(language, "unread", place=place), place)
    except BaseException as error:  # exit() as well
        error_text = describe_error(error, exercise.file, language)
        problem = say_in(language, "load", file=exercise.file, error=error_text)
        return result("wrong", problem, problem)
    tell({"loading": False})
    function = lookup(module, exercise.path)
    if function is None:
        return result("not written", say_in(language, "not found", path=exercise.path, file=exercise.file))
    if function is LAWS[exercise.name].reference:  # imported, or assigned
        problem = say_in(language, "engine", name=exercise.name)
        return result("wrong", problem, problem)
    use_the_engine_elsewhere(module, exercise)
    try:
        verdict = check_function(exercise, function, language)
    except Exception as error:  # what it returned cannot even be looked at
        return result("wrong", say_in(language, "raised", error=describe_error(error, exercise.file, language)))
    return result(verdict.state, verdict.message, verdict.obstacle)


def function_at(file: Path, line: int) -> str | None:
    """The function around a line of a file that Python may be unable to parse, as a best guess."""
    above = file.read_text(encoding="utf-8", errors="replace").splitlines()[:line]
    names = re.findall(r"^(?: {4})?def (\w+)", "\n".join(above), re.MULTILINE)
    return names[-1] if names else None


def check_all(folder: Path, names: list[str], language: str) -> None:
    """The child's main function: writes results to its original standard output, and discards everything printed."""
    results = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)

    def tell(event: dict[str, Any]) -> None:
        results.write(json.dumps(event) + "\n")
        results.flush()

    sys.path.append(str(folder))  # one file may import another
    for name in names:
        result = check_exercise(folder, exercises_by_name()[name], language, tell)
        tell(vars(result))


def main() -> None:
    request = json.load(sys.stdin)
    folder = Path(request.pop("folder"))
    if sys.argv[1] == "check":
        check_all(folder, **request)
    else:
        from .running import run_with
        run_with(folder, **request)


if __name__ == "__main__":
    run(main)
