"""Exercises on the real engine: `python -m numpy_gpt2.exercises new my_gpt2`, then check, hint, run."""

import argparse
import csv
import json
import subprocess
import sys
from itertools import groupby
from pathlib import Path
from typing import Any

from ..cli.arguments import ArgumentParser, add_model_argument, read_prompt, whole_number
from ..cli.exits import bad_input, run, say
from .course import LANGUAGES, Exercise, chapter_titles, exercises_by_name, find_exercise
from .folders import find_folder, find_folders, hints_seen, new_folder, next_hint
from .isolation import Result, check_folder, start
from .messages import say_in

RUN_LIMIT = 600  # seconds


def make_parser() -> ArgumentParser:
    """The command line."""
    parser = ArgumentParser(prog="numpy_gpt2.exercises", description="Write GPT-2 yourself, function by function: "
                            "stubs to fill in, checks that name the mistake, hints, and the real model with your "
                            "functions in place of the engine's.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    shared = ArgumentParser(add_help=False)
    shared.add_argument("--language", choices=LANGUAGES, default="en", help="of titles, states and hints (default: en)")
    of_folder = ArgumentParser(add_help=False)
    of_folder.add_argument("--folder", type=Path, metavar="FOLDER",
                           help="the exercises (default: this folder, or the one exercises folder in it)")

    new = commands.add_parser("new", parents=[shared], help="make a folder of stubs, one file for each chapter")
    new.add_argument("folder", type=Path, help="the folder to make; it must not exist")

    check = commands.add_parser("check", parents=[shared], help="what passes, and what is wrong with the rest")
    check.add_argument("exercise", nargs="?", help="one exercise, with the smallest case that fails")
    check.add_argument("--folder", type=Path, action="append", metavar="FOLDER",
                       help="the exercises (default: this folder, or the one exercises folder in it); may be repeated")
    form = check.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="a list of objects, for a program")
    form.add_argument("--csv", action="store_true", help="a row for each folder, for a spreadsheet")

    hint = commands.add_parser("hint", parents=[shared, of_folder], help="one step further each time")
    hint.add_argument("exercise")

    play = commands.add_parser("run", parents=[shared, of_folder], help="the real model with your functions")
    play.add_argument("prompt", nargs="?", default="Once upon a time", help="(default: %(default)s)")
    add_model_argument(play)
    play.add_argument("--max-new-tokens", type=whole_number(1), default=40, metavar="N",
                      help="tokens to write (default: %(default)s)")
    return parser


def main() -> None:
    """Parse and run the command."""
    args = make_parser().parse_args()
    if args.command == "new":
        new_folder(args.folder)
        files = sorted(args.folder.glob("chapter_*.py"))
        print(say_in(args.language, "created", folder=args.folder, n=len(files), file=files[0].name))
    elif args.command == "check":
        check(args)
    elif args.command == "hint":
        hint(args)
    else:
        play(args)


def exercise_named(name: str) -> Exercise:
    with bad_input():
        return find_exercise(name)


# check ----------------------------------------------------------------------------------------------------------------


def check(args: argparse.Namespace) -> None:
    """Check the exercises; exit with 0 only if all have passed."""
    names = [exercise_named(args.exercise).name] if args.exercise else list(exercises_by_name())
    folders = find_folders(args.folder or [None])
    if (args.json or args.csv) and hasattr(sys.stdout, "reconfigure"):  # for a file, whatever the console has
        # Excel takes a table for UTF-8 by the mark at its beginning, which JSON must not have.
        sys.stdout.reconfigure(encoding="utf-8-sig" if args.csv else "utf-8", errors="replace")
    if args.csv:
        print_row(["folder", "passed", "total", "hints", *names])
    several = len(folders) > 1
    everything = []
    for folder in folders:  # each is printed when it is done: a class takes a while
        results = check_folder(folder, names, args.language)
        everything += [{**({"folder": str(folder)} if several else {}), **result.public()} for result in results]
        if args.csv:
            print_marks(folder, results, names)
        elif not args.json:
            if several:
                print(f"{folder}:")
            if args.exercise:
                print_result(results[0], args.language)
            else:
                print_results(results, args.language)
        sys.stdout.flush()
    if args.json:
        print(json.dumps(everything, indent=1, ensure_ascii=False), flush=True)
    if any(result["state"] != "passed" for result in everything):
        sys.exit(1)


def print_result(result: Result, language: str) -> None:
    """The state and all of the message, which for a passed exercise begins by saying so again."""
    print(f"{result.exercise}: {say_in(language, result.state)}")
    lines = result.message.split("\n")
    for line in lines[1:] if result.state == "passed" else lines:
        print(line)


def print_results(results: list[Result], language: str) -> None:
    """Print a line for each exercise, by chapter, and what to do next."""
    exercises = exercises_by_name()
    states = {state: say_in(language, state) for state in ("passed", "not written", "wrong")}
    width = max(map(len, states.values()))
    indent = max(len(result.exercise) for result in results)
    chapter = None
    for result in results:
        exercise = exercises[result.exercise]
        if exercise.chapter != chapter:
            chapter = exercise.chapter
            print(f"{chapter_titles()[chapter][language]} ({exercise.file})")
        why = result.message.split("\n")[0] if result.state == "wrong" else exercise.title[language]
        print(f"  {states[result.state]:{width}}  {result.exercise:{indent}}  {why}")
    todo = [result for result in results if result.state != "passed"]
    print("\n" + say_in(language, "count", passed=len(results) - len(todo), total=len(results)))
    if todo:
        exercise = exercises[todo[0].exercise]
        print(say_in(language, "next", name=exercise.name, file=exercise.file, title=exercise.title[language],
                     minutes=exercise.minutes))
    else:
        print(say_in(language, "all done"))


def print_marks(folder: Path, results: list[Result], names: list[str]) -> None:
    """A row of a class's table: how many passed, how many hints were taken, and each exercise's state."""
    states = [result.state for result in results]
    n_hints = sum(n for name, n in hints_seen(folder).items() if name in names)
    print_row([folder, states.count("passed"), len(states), n_hints, *states])


def print_row(cells: list[Any]) -> None:
    csv.writer(sys.stdout, lineterminator="\n").writerow(cells)


# hint, run ------------------------------------------------------------------------------------------------------------


def hint(args: argparse.Namespace) -> None:
    exercise = exercise_named(args.exercise)
    n = next_hint(find_folder(args.folder), exercise)
    total = len(exercise.hints)
    print(say_in(args.language, "hint", n=n, total=total, hint=exercise.hints[n - 1][args.language]))
    if n == total:
        print(say_in(args.language, "last hint"))


def play(args: argparse.Namespace) -> None:
    """Find the written functions, under the checks' time limit; then run them in a separate process."""
    folder = find_folder(args.folder).resolve()
    with bad_input():
        prompt = read_prompt(args.prompt)
    results = check_folder(folder, exercises_by_name(), args.language)
    names = [result.exercise for result in results if result.state != "not written" and not result.obstacle]
    for why, left_out in groupby(results, key=lambda result: result.obstacle):
        if why:
            print(say_in(args.language, "left out", names=", ".join(result.exercise for result in left_out), why=why))
    sys.stdout.flush()
    process = start("run", folder, {"names": names, "prompt": prompt, "model": args.model,
                                    "n_tokens": args.max_new_tokens, "language": args.language})
    try:
        code = process.wait(timeout=RUN_LIMIT)
    except subprocess.TimeoutExpired:
        say(say_in(args.language, "too slow", limit=RUN_LIMIT))
        code = 1
    finally:
        process.kill()
        process.wait()
    if code:
        sys.exit(code)


if __name__ == "__main__":
    run(main)
