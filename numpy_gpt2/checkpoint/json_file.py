"""A checkpoint's files of text, read within limits: JSON, the config in it, the lines of merges."""

import json
from pathlib import Path
from typing import Any

from ..config import GPT2Config
from ..errors import CheckpointError

# What a file of JSON, or of merges, may hold. A GPT-2 needs less (small's tokenizer.json: 3.6 MB, 200,000 values), and
# a file of nothing but brackets, which takes 25 times its size in memory, is refused before it is parsed.
LARGEST_TEXT = 8 * 2**20  # bytes
MOST_VALUES = 500_000


def read_config(path: Path, name: str = "config.json") -> GPT2Config:
    """The config in a hub `config.json`; `name` is what errors call the file. Raises CheckpointError."""
    settings = read_json_object(path, name)
    if "model_type" not in settings:
        raise CheckpointError(f'{name}: no key "model_type", expected "gpt2": is this a GPT-2 checkpoint?')
    try:
        return GPT2Config.from_dict(settings)
    except ValueError as error:
        raise CheckpointError(f"{name}: {error}") from error


def read_json_object(path: Path, name: str) -> dict[str, Any]:
    """The JSON object in a file that `name` stands for in errors. Raises CheckpointError."""
    data = read_text_file(path, name)
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error).splitlines()[0]
        raise CheckpointError(f"{name}: not valid JSON: {reason}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{name}: expected a JSON object, found {type(value).__name__}")
    return value


def read_text_file(path: Path, name: str) -> bytes:
    """The bytes of a file of JSON or of merges. Raises CheckpointError where it cannot be read, or holds too much."""
    try:
        with open(path, "rb") as file:
            data = file.read(LARGEST_TEXT + 1)
    except OSError as error:
        raise CheckpointError(f"{name}: cannot be read: {error.strerror}") from error
    check_amount(data, name)
    return data


def check_amount(data: bytes, name: str) -> None:
    """Raise CheckpointError for a text that would take far more memory than any GPT-2's, before it is parsed."""
    if len(data) > LARGEST_TEXT:
        raise CheckpointError(f"{name}: expected at most {LARGEST_TEXT:,} bytes, found more.")
    if data.count(b",") + data.count(b"[") + data.count(b"{") > MOST_VALUES:  # there are no more values than that
        raise CheckpointError(f"{name}: expected at most {MOST_VALUES:,} values, found more.")
