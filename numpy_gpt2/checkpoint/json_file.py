"""A checkpoint's text files, read within limits: JSON, the config, the merges."""

import json
from pathlib import Path
from typing import Any, Mapping

from ..config import GPT2Config
from ..errors import CheckpointError

CONFIG_FILES = ("config.json", "generation_config.json")

# The limits of a file of JSON or merges. A GPT-2 needs less (small's tokenizer.json: 3.6 MB, 200,000 values). They are
# applied before parsing, because a file of brackets alone takes 25 times its size in memory.
LARGEST_TEXT = 8 * 2**20  # bytes
MOST_VALUES = 500_000
# A tokenizer.json has every token and every merge, three values each. The members of an object take the most memory, so
# each counts as three.
LARGEST_TOKENIZER = 16 * 2**20
MOST_TOKENIZER_VALUES = 900_000


def read_config(path: Path) -> GPT2Config:
    """The config in a hub `config.json`. Raises CheckpointError."""
    return config_from(read_json_object(path), path)


def read_configs(files: Mapping[str, Path]) -> dict[str, dict[str, Any]]:
    """The settings in config.json and generation_config.json, if given: {file name: settings}."""
    return {name: read_json_object(files[name]) for name in CONFIG_FILES if name in files}


def config_from(settings: Mapping[str, Any], path: Path) -> GPT2Config:
    """The config with the settings of this file. Raises CheckpointError if they are not a GPT-2's."""
    if "model_type" not in settings:
        raise CheckpointError(f'{path}: no key "model_type", expected "gpt2": is this a GPT-2 checkpoint?')
    if settings.get("quantization_config") is not None:
        raise CheckpointError(f"{path}: quantization_config: expected weights that are not quantized. In transformers, "
                              "model.dequantize() and save_pretrained() write such a checkpoint.")
    try:
        return GPT2Config.from_dict(settings)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises CheckpointError."""
    data = read_text_file(path)
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error).splitlines()[0]
        raise CheckpointError(f"{path}: not valid JSON: {reason}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def read_text_file(path: Path) -> bytes:
    """The bytes of a file of JSON or merges. Raises CheckpointError if it cannot be read or is too large."""
    name = str(path)
    try:
        with open(path, "rb") as file:
            data = file.read(largest_text(name) + 1)
    except OSError as error:
        raise CheckpointError(f"{name}: cannot be read: {error.strerror}") from error
    check_is_content(data, name)
    check_amount(data, name)
    return data


def check_is_content(data: bytes, name: str) -> None:
    """Raise CheckpointError for a git-lfs pointer, which takes the place of a large file until it is fetched."""
    if data.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{name}: a git-lfs pointer, not the file: git lfs pull, in its folder, fetches it.")


def check_amount(data: bytes, name: str) -> None:
    """Raise CheckpointError, before parsing, for a text that would take far more memory than any GPT-2's."""
    if len(data) > largest_text(name):
        raise CheckpointError(f"{name}: expected at most {largest_text(name):,} bytes, found more.")
    most_values = MOST_VALUES
    n_values = data.count(b",") + data.count(b"[") + data.count(b"{")  # at most so many
    if name.endswith("tokenizer.json"):
        most_values = MOST_TOKENIZER_VALUES
        n_values += 2 * data.count(b":")
    if n_values > most_values:
        raise CheckpointError(f"{name}: expected at most {most_values:,} values, found more.")


def largest_text(name: str) -> int:
    """The largest size of a file of this name or path, in bytes."""
    return LARGEST_TOKENIZER if name.endswith("tokenizer.json") else LARGEST_TEXT
