"""A student's folder: the stubs, where it is, and the count of hints, all that is ever written to it later."""

import json
from pathlib import Path

from ..cli.exits import BadInput
from .course import CHAPTERS, Exercise, stub_source

HINTS_FILE = ".hints"


def new_folder(folder: Path) -> None:
    """Write the stubs into a folder of their own. Raises BadInput where it exists."""
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
    """The folder that was given, or else the current one, or the one exercises folder in it. Raises BadInput."""
    if given is not None:
        if not given.is_dir():
            raise BadInput(f"--folder must be a folder that `new` has made. Got {str(given)!r}, which is none.")
        return given
    here = Path()
    if is_exercises_folder(here):
        return here
    inside = sorted(folder for folder in here.iterdir() if folder.is_dir() and is_exercises_folder(folder))
    if len(inside) > 1:
        raise BadInput(f"several folders here hold exercises, {', '.join(map(str, inside))}: choose one with --folder")
    if not inside:
        raise BadInput("no exercises here: make them with `python -m numpy_gpt2.exercises new my_gpt2`, or name their "
                       "folder with --folder")
    return inside[0]


def hints_seen(folder: Path) -> dict[str, int]:
    """How many hints were asked for, by exercise. A file that cannot be read counts as none."""
    try:
        counts = json.loads((folder / HINTS_FILE).read_text(encoding="utf-8"))
        return {str(name): int(n) for name, n in counts.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


def next_hint(folder: Path, exercise: Exercise) -> int:
    """The number of the next hint, from 1; the last one repeats. It is counted."""
    counts = hints_seen(folder)
    n = min(counts.get(exercise.name, 0) + 1, len(exercise.hints))
    counts[exercise.name] = n
    (folder / HINTS_FILE).write_text(json.dumps(counts, indent=1) + "\n", encoding="utf-8")
    return n
