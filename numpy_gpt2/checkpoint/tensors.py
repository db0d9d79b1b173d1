"""A file of weights: the tensors that its header lists, and their numbers, read a few rows at a time.

Source of the format: https://github.com/huggingface/safetensors (eight bytes that give the header's length, the header
in JSON, then the tensors' bytes). It holds numbers only; a pickle, which can hold code, is never opened.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Iterator, Mapping

import numpy as np
from safetensors import SafetensorError, safe_open

from ..errors import CheckpointError, one_line, shown
from .json_file import LARGEST_TEXT, check_amount, check_is_content

# The types a checkpoint's weights may have: safetensors' name, and how NumPy reads the bytes. NumPy has no bfloat16,
# so its two bytes are read as an integer and widened here.
STORED_TYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}

PIECE = 2**18  # numbers read at a time: still in the processor's cache when they are copied


def checked_dtype(dtype: Any, *supported: str) -> np.dtype:
    """The type, by any of its names in NumPy. Raises ValueError if it is not one of the supported."""
    try:
        checked = None if dtype is None else np.dtype(dtype)  # NumPy takes None for float64
    except TypeError:  # bfloat16, which NumPy does not have, or no type at all
        checked = None
    if checked not in supported:
        raise ValueError(f"dtype must be {' or '.join(map(json.dumps, supported))}. Got {shown(dtype)}.")
    return checked


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as a header describes it: where its bytes are, and what they are."""

    path: Path
    name: str  # as in the file
    dtype: str
    shape: tuple[int, ...]
    offset: int  # of its first byte, from the beginning of the file


def read_header(path: Path) -> list[StoredTensor]:
    """The tensors that a safetensors file lists. Raises CheckpointError if the file does not hold them."""
    try:
        with open(path, "rb") as file:
            start = file.read(8)
            start += file.read(header_length(start))
        tensors = tensors_in_header(start, path)
        with safe_open(path, framework="np", backend="pread"):
            pass  # this checks lengths and types, and that the tensors cover the file without overlap
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a whole safetensors file: {one_line(error)}") from error
    return tensors


def header_length(start: bytes) -> int:
    """How many bytes to read after the first eight, which tell the header's length: at most one too many."""
    return min(int.from_bytes(start[:8], "little"), LARGEST_TEXT + 1)


def tensors_in_header(start: bytes, path: Path) -> list[StoredTensor]:
    """The tensors that a file's first bytes, to the end of the header, list. Raises CheckpointError.

    A header larger than any GPT-2's is refused before it is parsed. The offsets are not checked.
    """
    end = 8 + header_length(start)
    check_is_content(start, str(path))
    check_amount(start[8:end], f"{path}: header")
    if len(start) < end:
        raise CheckpointError(f"{path}: not a whole safetensors file: it ends inside its header.")
    try:
        header = json.loads(start[8:end])
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not a whole safetensors file: {one_line(error)}") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: expected a JSON object as the header, found {shown(header)}.")
    header.pop("__metadata__", None)
    tensors = []
    for name, entry in header.items():
        match entry:
            case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [int(first), int()]}:
                tensors.append(StoredTensor(path, name, dtype, tuple(shape), end + first))
            case _:  # safetensors takes a list too, the same values without their names
                raise CheckpointError(f"{path}: tensor {shown(name)}: expected a JSON object with dtype, shape and "
                                      f"data_offsets in the header, found {shown(entry)}.")
    return tensors


def stored_tensors(files: Mapping[str, Path],
                   read: Callable[[Path], list[StoredTensor]] = read_header) -> dict[str, StoredTensor]:
    """Every tensor of the weights' files under its name in the official layout, which has no `transformer.` prefix.

    files: name in the checkpoint -> path, of which those of weights count. read: how a file's header is read.
    """
    tensors: dict[str, StoredTensor] = {}
    for file_name, path in files.items():
        if not file_name.endswith(".safetensors"):
            continue
        for tensor in read(path):
            name = tensor.name.removeprefix("transformer.")
            if name in tensors:
                raise CheckpointError(f"{path}: tensor {shown(name)} appears twice, also in {tensors[name].path}.")
            tensors[name] = tensor
    return tensors


def read_rows(tensor: StoredTensor) -> Iterator[np.ndarray]:
    """A tensor's numbers, a few rows [n_rows, ...] at a time, in the file's type; bfloat16 as float32."""
    n_rows, *of_row = tensor.shape
    row_size = math.prod(of_row)
    rows_at_a_time = max(1, PIECE // row_size)
    try:
        with open(tensor.path, "rb") as file:
            file.seek(tensor.offset)
            for first_row in range(0, n_rows, rows_at_a_time):
                count = min(rows_at_a_time, n_rows - first_row) * row_size
                piece = np.fromfile(file, STORED_TYPES[tensor.dtype], count)
                if piece.size != count:
                    raise OSError("the file has changed since its header was read")
                numbers = widen_bfloat16(piece) if tensor.dtype == "BF16" else piece
                yield numbers.reshape(-1, *of_row)
    except OSError as error:
        raise CheckpointError(f"{tensor.path}: tensor {tensor.name!r}: cannot be read: {one_line(error)}") from error


def widen_bfloat16(bits: np.ndarray) -> np.ndarray:
    """bfloat16 as uint16 -> float32, exactly: a bfloat16 is the upper half of the float32 of the same value."""
    widened = bits.astype(np.uint32)
    widened <<= 16
    return widened.view(np.float32)
