"""Saving a training run to a file, from which it resumes bit for bit; and the record of a finished run.

The file is written under a temporary name, then renamed: whenever a run is stopped, by Ctrl-C, kill -9 or a full disk,
the last saved state is intact.
"""

import json
import os
from contextlib import contextmanager
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any, Iterator

import numpy as np

from ..checkpoint.saving import locked
from ..errors import CheckpointError, one_line
from ..weights import named_parameters
from .loop import Run

FILE = "training_run.npz"
PARTIAL = f".{FILE}.partial"  # while it is being written
LOCK = f".{FILE}.lock"  # while a process trains into the folder
RECORD = "training_run.json"  # of a finished run: its settings and losses


def save_run(run: Run, folder: Path, about: dict[str, Any]) -> None:
    """Write the run's state to the folder. about: everything else the run depends on, as JSON."""
    arrays = {"facts": np.array(json.dumps(facts_of(run, about)))}
    arrays |= {f"weight {name}": array for name, array in named_parameters(run.model) if name in run.moments}
    for name, moments in run.moments.items():
        arrays |= {f"{moment} {name}": array for moment, array in moments.items()}
    try:
        with open(folder / PARTIAL, "wb") as file:  # given a path, np.savez would append .npz
            np.savez(file, **arrays)  # type: ignore[arg-type]
        os.replace(folder / PARTIAL, folder / FILE)
    finally:
        (folder / PARTIAL).unlink(missing_ok=True)


def facts_of(run: Run, about: dict[str, Any]) -> dict[str, Any]:
    """What a run's saved state and its record have in common, as JSON."""
    return {"about": about, "step": run.step, "losses": run.losses,
            "held_out_losses": list(run.held_out_losses.items())}


def resume(run: Run, folder: Path, about: dict[str, Any]) -> bool:
    """Restore a newly started run to the state saved in the folder; returns False if there is none.

    Raises ValueError if the saved run is a different one, CheckpointError for a damaged file.
    """
    path = folder / FILE
    if not path.exists():
        return False
    with damage_named(path):
        file = np.load(path, allow_pickle=False)
    with file:
        with damage_named(path):
            facts = json.loads(str(file["facts"]))
            then = dict(facts["about"])
        check_same(about, then, folder)
        with damage_named(path):
            for name, array in named_parameters(run.model):
                if name in run.moments:
                    array[...] = file[f"weight {name}"]
                    for moment, values in run.moments[name].items():
                        values[...] = file[f"{moment} {name}"]
            run.step, run.losses = facts["step"], facts["losses"]
            run.held_out_losses = dict(map(tuple, facts["held_out_losses"]))
    return True


@contextmanager
def damage_named(path: Path) -> Iterator[None]:
    """Turn any error in reading the file into a CheckpointError that names the file."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:  # zipfile, zlib, json and NumPy raise a dozen types
        raise CheckpointError(f"{path}: expected the state of a training run, found a damaged file "
                              f"({one_line(error)}): restart in another folder") from error


def finish_run(run: Run, folder: Path, about: dict[str, Any]) -> None:
    """Replace a finished run's saved state by its record."""
    (folder / RECORD).write_text(json.dumps(facts_of(run, about)) + "\n", encoding="utf-8")
    (folder / FILE).unlink()


def is_finished(folder: Path, about: dict[str, Any]) -> bool:
    """Whether the folder holds this run, finished. Raises ValueError if it holds a different one."""
    if (folder / FILE).exists() or not (folder / RECORD).exists():
        return False
    with damage_named(folder / RECORD):
        then = dict(json.loads((folder / RECORD).read_text(encoding="utf-8"))["about"])
    check_same(about, then, folder, "a finished run", f"to train further, use --model {folder} and another --out")
    return True


@contextmanager
def only_run(folder: Path) -> Iterator[None]:
    """Keep other processes from training into the folder meanwhile. Raises ValueError if one does already."""
    lock = folder / LOCK
    with locked(lock, "--out must be a folder that no other run is writing to. "
                      f"Got {str(folder)!r}: wait for that run, or give another folder."):
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def check_folder(folder: Path) -> None:
    """Raise ValueError unless the folder is new, empty, or a run's, so that nothing is overwritten.

    The partial file of a run that was killed while writing does not count: the next save overwrites it.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--out must be a folder. Got {str(folder)!r}, which is a file.")
    is_of_a_run = (folder / FILE).exists() or (folder / RECORD).exists()
    if folder.is_dir() and {*os.listdir(folder)} - {PARTIAL, LOCK} and not is_of_a_run:
        raise ValueError("--out must be a new folder, or that of a run to resume. "
                         f"Got {str(folder)!r}, which holds something else.")


def check_same(now: dict[str, Any], then: dict[str, Any], folder: Path, what: str = "a run",
               way_out: str = "use that run's settings, or another folder") -> None:
    """Raise ValueError unless the run in the folder has the requested settings."""
    for name in {**then, **now}:
        if now.get(name) != then.get(name):
            raise ValueError(f"{folder} holds {what} with {name} {then.get(name)}. Got {now.get(name)}: {way_out}.")


def description(run: Run, ids: np.ndarray, start_from: str) -> dict[str, Any]:
    """Everything a run depends on: its settings, the model it starts from, and a hash of the text's ids."""
    text = sha256(np.ascontiguousarray(ids, np.int64).tobytes()).hexdigest()[:16]
    return {**asdict(run.config), "freeze": list(run.config.freeze), "start": start_from, "text": text}
