"""Writing a checkpoint: a folder that `load_model` and transformers can read, whose files belong together.

All files are first written completely, in a temporary folder beside those they replace. Then config.json, without which
a folder is not a checkpoint, is removed; the other files are moved into place; and the new config.json is moved last.
A process killed at any point leaves the old checkpoint, the new one, or a folder that `checkpoint_files` refuses with
instructions to finish.
"""

import json
import os
import secrets
import shutil
from contextlib import contextmanager
from functools import partial
from itertools import chain
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, Callable, Iterator, Mapping

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from ..errors import one_line
from ..tokenizer import Tokenizer
from ..weights import GPT2, named_parameters
from .json_file import read_json_object
from .tensors import checked_dtype
from .wanted import BESIDE_TOKENIZER, TOKENIZER

TOKENIZER_FILES = (*chain(*TOKENIZER), *BESIDE_TOKENIZER)

PARTIAL, COMPLETE = ".partial", ".complete"  # how the name of a folder of new files ends


def save(model: GPT2, folder: str | Path, dtype: Any = "float32", tokenizer: Tokenizer | None = None) -> None:
    """Write the model as a folder that `load_model`, and transformers, can read: config.json and model.safetensors.

    dtype: of the tensors in the file, "float32" or "float16". tokenizer: one that was loaded; its files, which `load`
    needs too, are copied, and those of another tokenizer in the folder are removed.
    Existing files are replaced by all of the new ones, or by none. If two processes save into one folder, the second
    waits for the first.
    Raises ValueError if a weight is too large for the type, OSError if the folder cannot be written.
    """
    stored = checked_dtype(dtype, "float32", "float16")
    arrays = {name: narrowed(name, array, stored) for name, array in named_parameters(model)}
    config = model.config.to_dict()
    writers: dict[str, Callable[[Path], Any]] = {}
    stale = {"generation_config.json"}  # an old one would override the new config.json's eos_token_id
    if tokenizer is not None:
        if not tokenizer.files:
            raise ValueError("tokenizer must be one that load or load_tokenizer has read from files. Got another.")
        config |= class_of(tokenizer)
        writers |= {name: partial(shutil.copyfile, tokenizer.files[name]) for name in TOKENIZER_FILES
                    if name in tokenizer.files}
        stale |= {*TOKENIZER_FILES} - writers.keys()
    # transformers opens a file only if its metadata says that it has PyTorch's layout, as GPT-2's checkpoints do
    writers["model.safetensors"] = lambda path: save_file(arrays, path, metadata={"format": "pt"})
    writers["config.json"] = lambda path: path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        complete = write_files(folder, writers)
        for name in ("config.json", *stale):
            (folder / name).unlink(missing_ok=True)
        for name in writers:  # config.json last, so that it is never beside files that it does not belong to
            os.replace(complete / name, folder / name)
        complete.rmdir()


def class_of(tokenizer: Tokenizer) -> dict[str, Any]:
    """The setting of the tokenizer's class, for the new config.json, if its own config.json has it."""
    if "config.json" not in tokenizer.files:
        return {}
    settings = read_json_object(tokenizer.files["config.json"])
    return {key: value for key, value in settings.items() if key == "tokenizer_class"}


def narrowed(name: str, array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """The array in the file's type, in C order, which safetensors assumes."""
    with np.errstate(over="ignore"):
        narrow = np.ascontiguousarray(array, dtype)
    if np.isinf(narrow).sum() != np.isinf(array).sum():
        raise ValueError(f"tensor {name!r} must be at most {np.finfo(dtype).max} to be saved as {dtype.name}. "
                         f"Got {np.abs(array[np.isfinite(array)]).max()}.")
    return narrow


def write_files(folder: Path, writers: Mapping[str, Callable[[Path], Any]]) -> Path:
    """Write all files, config.json last, into a new folder inside this one, and rename it when it is complete."""
    remove_leftovers(folder, PARTIAL)
    new = Path(mkdtemp(PARTIAL, ".save-", folder))
    try:
        for name, write in writers.items():
            write(new / name)
        usual_mode = (new / "config.json").stat().st_mode  # safetensors' own files can be read by their owner only
        for name in writers:
            old = folder / name
            (new / name).chmod(old.stat().st_mode if old.exists() else usual_mode)
        remove_leftovers(folder, COMPLETE)
        return new.rename(new.with_suffix(COMPLETE))
    except SafetensorError as error:
        raise OSError(f"{folder / name}: cannot be written: {one_line(error)}") from error
    finally:
        shutil.rmtree(new, ignore_errors=True)  # what is complete has another name by now


def remove_leftovers(folder: Path, suffix: str) -> None:
    """Remove the remains of killed writers. The caller holds the lock, so no writer is still running."""
    for leftover in folder.glob(f".save-*{suffix}"):
        shutil.rmtree(leftover, ignore_errors=True)


def interrupted_save(folder: Path) -> Path | None:
    """The folder of complete files that a `save` has not moved into place."""
    return next((config.parent for config in folder.glob(f".save-*{COMPLETE}/config.json")), None)


@contextmanager
def locked(path: Path, busy: str = "") -> Iterator[None]:
    """Keep out other processes that lock this file or folder. The system releases the lock when the process ends.

    path: a folder, or a file, which is created if it does not exist.
    busy: the message of the ValueError if another process has locked it. Without one, wait for that process.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDONLY | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (fcntl.LOCK_NB if busy else 0))
        except BlockingIOError as error:
            raise ValueError(busy) from error
        yield
    finally:
        os.close(descriptor)


def write_whole(path: Path, data: bytes) -> None:
    """Write to a temporary name, then rename atomically: no reader ever sees half a file under this name."""
    partial_path = path.with_name(f".{path.name}.{secrets.token_hex(8)}{PARTIAL}")
    try:
        with open(partial_path, "xb") as file:  # never through an existing file or link
            file.write(data)
        if path.exists():
            partial_path.chmod(path.stat().st_mode)
        os.replace(partial_path, path)
    finally:
        partial_path.unlink(missing_ok=True)
