"""Writing a checkpoint: a folder that `load_model` and transformers can read, of files that are whole or not there."""

import json
import os
import shutil
from functools import partial
from pathlib import Path
from typing import Any, Callable, Mapping

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from ..errors import one_line
from ..weights import GPT2, named_parameters


def save(model: GPT2, folder: str | Path, dtype: Any = "float32",
         tokenizer_files: Mapping[str, Path] | None = None) -> None:
    """Write the model as a folder that `load_model`, and transformers, can read: config.json and model.safetensors.

    dtype: "float32" or "float16", of the tensors in the file. tokenizer_files: name -> file, copied beside them
    (`checkpoint_files(name, None, [TOKENIZER])` has those of a checkpoint), which `load` needs too.
    A file appears under its name when it is whole, config.json last, without which the folder is no checkpoint.
    Raises ValueError where a weight is too large for the type, OSError where the folder cannot be written.
    """
    dtype = np.dtype(dtype)
    if dtype not in (np.float32, np.float16):
        raise ValueError(f'dtype must be "float32" or "float16". Got {dtype.name!r}.')
    arrays = {name: narrowed(name, array, dtype) for name, array in named_parameters(model)}
    config = json.dumps(model.config.to_dict(), indent=2) + "\n"
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, source in (tokenizer_files or {}).items():
        write_whole(folder / name, partial(shutil.copyfile, source))
    # transformers opens a file only if it says that it follows PyTorch's layout, as all checkpoints of GPT-2 do
    write_whole(folder / "model.safetensors", lambda path: save_file(arrays, path, metadata={"format": "pt"}))
    write_whole(folder / "config.json", lambda path: path.write_text(config, encoding="utf-8"))


def narrowed(name: str, array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """The array in the file's type, in C order, which safetensors takes for granted."""
    with np.errstate(over="ignore"):
        narrow = np.ascontiguousarray(array, dtype)
    if np.isinf(narrow).sum() != np.isinf(array).sum():
        raise ValueError(f"tensor {name!r} must be at most {np.finfo(dtype).max} to be saved as {dtype.name}. "
                         f"Got {np.abs(array[np.isfinite(array)]).max()}.")
    return narrow


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Write under another name, then rename, which is one step: nobody ever sees half a file under this name."""
    partial_path = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial_path.touch()
        usual_mode = partial_path.stat().st_mode
        try:
            write(partial_path)
        except SafetensorError as error:
            raise OSError(f"{path}: cannot be written: {one_line(error)}") from error
        partial_path.chmod(usual_mode)  # safetensors makes files that only their owner can read
        os.replace(partial_path, path)
    finally:
        partial_path.unlink(missing_ok=True)
