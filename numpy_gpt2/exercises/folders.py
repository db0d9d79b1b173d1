"""A student's folder: creating the stubs, finding it, and counting hints, the only thing written to it later."""

import json
from collections.abc import Sequence
from pathlib import Path

from ..cli.exits import BadInput
from .course import CHAPTERS, Exercise, stub_source

HINTS_FILE = ".hints"


def new_folder(folder: Path) -> None:
    """Write the stubs into a new folder. Raises BadInput if it exists."""
    try:
        folder.mkdir()
    except FileExistsError:
        raise BadInput(f"{folder} exists: name a new folder, so that nothing in it is overwritten") from None
    except FileNotFoundError:
        raise BadInput(f"{folder.parent} does not exist: name a new folder inside one that does") from None
    for chapter in CHAPTERS:
        (folder / f"{chapter}.py").write_text(stub_source(chapter), encoding="utf-8")


def is_exercises_folder(folder: Path) -> bool:
    return any((folder / f"{chapter}.py").is_file() for chapter in CHAPTERS)


def find_folder(given: Path | None) -> Path:
    """The folder that was given, or else the current one, or the one exercises folder in it. Raises BadInput.

    Students hand in their folder inside another often enough.
    """
    here = given or Path()
    if is_exercises_folder(here):
        return here
    inside = sorted(filter(is_exercises_folder, here.iterdir())) if here.is_dir() else []
    if len(inside) > 1:
        raise BadInput(f"{here} has several folders of exercises, {', '.join(map(str, inside))}: choose one with "
                       "--folder")
    if inside:
        return inside[0]
    if given is None:
        raise BadInput("no exercises here: make them with `python -m numpy_gpt2.exercises new my_gpt2`, or name their "
                       "folder with --folder")
    lack = f"has no {CHAPTERS[0]}.py or other chapter" if given.is_dir() else "is no folder"
    raise BadInput(f"--folder must be a folder that `new` has made. Got {str(given)!r}, which {lack}.")


def find_folders(given: Sequence[Path | None]) -> list[Path]:
    """All of them. Raises BadInput with everything that is wrong: a class has many."""
    found, problems = [], []
    for folder in given:
        try:
            found.append(find_folder(folder))
        except BadInput as problem:
            problems.append(str(problem))
    if problems:
        raise BadInput(" ".join(problems))
    return found


def hints_seen(folder: Path) -> dict[str, int]:
    """The number of hints used, by exercise. An unreadable file counts as none."""
    try:
        counts = json.loads((folder / HINTS_FILE).read_text(encoding="utf-8"))
        return {str(name): int(n) for name, n in counts.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


def next_hint(folder: Path, exercise: Exercise) -> int:
    """Count a hint and return its number, from 1; the last one repeats."""
    counts = hints_seen(folder)
    n = min(counts.get(exercise.name, 0) + 1, len(exercise.hints))
    counts[exercise.name] = n
    (folder / HINTS_FILE).write_text(json.dumps(counts, indent=1) + "\n", encoding="utf-8")
    return n
