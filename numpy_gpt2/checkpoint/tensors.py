"""A file of weights: what its header says it holds, and the numbers themselves, a few rows at a time.

Source of the format: https://github.com/huggingface/safetensors (eight bytes that give the header's length, the header
in JSON, then the tensors' bytes). It holds numbers only; a pickle, which can hold code, is never opened.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Iterator, Mapping

import numpy as np
from safetensors import SafetensorError, safe_open

from ..errors import CheckpointError, one_line, shown
from .json_file import LARGEST_TEXT, check_amount, check_is_content

# The types a checkpoint's weights may have: safetensors' name, and how NumPy reads the bytes. NumPy has no bfloat16,
# so these two bytes are read as a number and widened by hand.
STORED_TYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}

PIECE = 2**18  # numbers read at a time: still in the processor's cache when they are put into their place


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor's bytes lie, and what they are: all that a header says of it."""

    path: Path
    name: str  # as the file has it
    dtype: str
    shape: tuple[int, ...]
    offset: int  # of its first byte, from the beginning of the file


def read_header(path: Path) -> list[StoredTensor]:
    """What a safetensors file says it holds. Raises CheckpointError where that is not what lies in it."""
    try:
        with open(path, "rb") as file:
            start = file.read(8)
            length = int.from_bytes(start, "little")
            text = file.read(min(length, LARGEST_TEXT + 1))
        check_is_content(start + text, str(path))
        check_amount(text, f"{path}: header")
        with safe_open(path, framework="np", backend="pread"):
            pass  # it checks, once and for all: lengths, types, and that the tensors cover the file without overlap
        header = json.loads(text)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not a whole safetensors file: {one_line(error)}") from error
    header.pop("__metadata__", None)
    for name, entry in header.items():
        if not isinstance(entry, dict):  # safetensors takes a list, the same values without their names
            raise CheckpointError(f"{path}: tensor {shown(name)}: expected a JSON object in the header, "
                                  f"found {shown(entry)}.")
    return [StoredTensor(path, name, entry["dtype"], tuple(entry["shape"]), 8 + length + entry["data_offsets"][0])
            for name, entry in header.items()]


def stored_tensors(files: Mapping[str, Path]) -> dict[str, StoredTensor]:
    """Every tensor of the weights' files under its name in the official layout, which has no `transformer.` prefix."""
    tensors: dict[str, StoredTensor] = {}
    for file_name, path in files.items():
        if not file_name.endswith(".safetensors"):
            continue
        for tensor in read_header(path):
            name = tensor.name.removeprefix("transformer.")
            if name in tensors:
                raise CheckpointError(f"{path}: tensor {shown(name)} is there twice, also in {tensors[name].path}.")
            tensors[name] = tensor
    return tensors


def read_rows(tensor: StoredTensor) -> Iterator[np.ndarray]:
    """A tensor's numbers, a few rows [n_rows, ...] at a time, in the file's type. bfloat16 comes as float32."""
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
